"""What a model source is asked, and what it promises. A plug-in in `luthier/model/hubs` keeps to this contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from luthier.foundation.errors import HubError

# hashes of a folder's files, as `sha256sum` writes and checks them
CHECKSUMS = "checksum.sha256"
MANIFEST = "manifest.json"  # of a checkpoint or an export of ours
# what config, tokenizer and chat template are read from; code of the model's own runs with --trust-remote-code alone
ITS_OWN_CODE = ("*.tiktoken", "*.py")
BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.txt", "*.model", *ITS_OWN_CODE)
# what a causal language model is loaded from; other frameworks' weights and pickles stay where they are
WANTED = ("*.safetensors", *BESIDE_WEIGHTS, "*.md", "LICENSE*", "NOTICE*")
UNWANTED = (
    "onnx/*",
    "openvino/*",
    "coreml/*",
    "original/*",
    "flax/*",
    "runs/*",
    "consolidated*.safetensors",
    "*/*.safetensors",
)


@dataclass(frozen=True)
class FetchRequest:
    """One model to be brought to this machine.

    Args:
        name: the model's name at the hub, without the hub's prefix.
        revision: branch, tag or commit; None: the hub's default.
        cache_dir: where downloads are kept; None: the hub client's own place.
        token: access token; None: the one the hub client was logged in with.
        endpoint: address of the hub or a mirror; None: the hub's own, or the client's environment variable.
        include: globs of the files wanted; empty: the files luthier can use.
        to: a folder to put the model in, instead of the cache.
        jobs: files fetched at the same time.
    """

    name: str
    revision: str | None = None
    cache_dir: Path | None = None
    token: str | None = None
    endpoint: str | None = None
    include: tuple[str, ...] = ()
    to: Path | None = None
    jobs: int = 8

    def refuse(self, hub: str, *fields: str, because: str) -> None:
        """Refuse settings that this hub could only ignore.

        Raises:
            HubError: one of `fields` is set.
        """
        found = [field for field in fields if getattr(self, field)]
        if found:
            # the token's value never goes into a message
            values = ", ".join(field if field == "token" else f"{field}={getattr(self, field)}" for field in found)
            raise HubError(
                f"{values} {'has' if len(found) == 1 else 'have'} no effect on {self.name!r}, which comes from {hub}: {because}.",
                f"Leave out {' and '.join(found)}.",
            )


class Hub(Protocol):
    """A place that models come from."""

    def fetch(self, request: FetchRequest) -> Path:
        """Bring a model here, or find it here; return its folder.

        A fetch that was broken off is taken up where it stopped, as far as the hub allows.

        Raises:
            HubError: the hub can't be reached, refuses, or does not have the model.
        """
        ...

    def expected_hashes(self, folder: Path) -> Mapping[str, str]:
        """What the hub said about the files of a folder it delivered, from what is stored beside them (no network).

        Returns:
            File name relative to the folder -> `sha256:<hex>` or `git-sha1:<hex>`; empty where nothing is known.
        """
        ...


def wanted_files(request: FetchRequest) -> tuple[list[str], list[str] | None]:
    """Globs of files to fetch and of files to leave: the user's own, or what luthier can use."""
    return (list(request.include), None) if request.include else (list(WANTED), list(UNWANTED))


def check_endpoint(endpoint: str) -> str:
    """An endpoint without its trailing slash.

    Raises:
        HubError: neither https nor loopback, where http is as safe.
    """
    parts = urlsplit(endpoint)
    if parts.scheme == "https" and parts.hostname:
        return endpoint.rstrip("/")
    if parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1"):
        return endpoint.rstrip("/")
    if parts.scheme == "http":
        raise HubError(
            f"the hub's address {endpoint!r} is not encrypted: token and weights could be read and changed on the way.",
            "Use its https:// address (http:// is accepted on localhost only).",
        )
    raise HubError(
        f"the hub's address {endpoint!r} does not start with https://.",
        f"Write it in full, such as https://{endpoint.split('://')[-1].lstrip('/') or 'hf-mirror.com'}.",
    )
