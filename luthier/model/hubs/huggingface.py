"""The Hugging Face Hub and its mirrors, through the `huggingface_hub` client.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, HF_HOME, HF_HUB_CACHE and the proxy variables mean what they mean to the client.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.config.sections import PluginOptions
from luthier.foundation.errors import HubError
from luthier.model.hub import ITS_OWN_CODE, FetchRequest, Hub, check_endpoint, wanted_files
from luthier.model.hubs import _huggingface_errors as errors
from luthier.model.hubs import _huggingface_resume as resume

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT = re.compile(r"[0-9a-f]{40}")
TRUE = ("1", "true", "yes", "on")
PATIENCE_429 = 5  # times that a request to wait is obeyed
LONGEST_WAIT_SECONDS = 300


class Options(PluginOptions):
    """The client's environment variables hold; there is nothing else to set."""

    name: Literal["huggingface"] = "huggingface"


class HuggingFace:
    """Fetches snapshots into the client's own cache, or into a folder."""

    def fetch(self, request: FetchRequest) -> Path:
        """The snapshot's folder. Large files that were broken off are resumed, even after the process was killed.

        Raises:
            HubError: the hub can't be reached and the cache lacks the model; the endpoint is no https address; or the
                hub refuses (no such model or revision, gated, token not accepted, too many requests).
        """
        # the client would send a description of the environment along with its requests
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import httpx2  # huggingface_hub's own HTTP library; its errors come through
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        endpoint = check_endpoint(request.endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE or constants.is_offline_mode():
            return self._from_cache(request, None, endpoint)
        api = HfApi(endpoint=endpoint, token=request.token)
        try:
            commit = self._find_commit(api, request)
            if request.to is None and not request.include and (folder := self._cached_commit(request, commit)):
                return folder
            return self._download(api, request, commit)
        except HFValidationError as error:
            raise HubError(
                f"{request.name!r} is no name of a model on the hub: {error}", "A hub id is owner/name."
            ) from error
        except HfHubHTTPError as error:
            raise errors.explain(error, request, endpoint) from error
        except (httpx2.TransportError, LocalEntryNotFoundError) as error:
            return self._from_cache(request, error, endpoint)
        except (httpx2.HTTPError, ValueError) as error:
            raise errors.no_hub(error, endpoint) from error
        except OSError as error:
            raise errors.broken_off(error, request, endpoint) from error

    def expected_hashes(self, folder: Path) -> Mapping[str, str]:
        """Git or LFS hashes from the client's own records.

        In the cache a snapshot's files are links to blobs named by their hash; in a folder of the user's they stand in
        `.cache/huggingface/download/*.metadata`.
        """
        hashes = {}
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() and path.resolve().parent.name == "blobs":
                hashes[path.relative_to(folder).as_posix()] = path.resolve().name
        records = folder / ".cache" / "huggingface" / "download"
        for record in sorted(records.rglob("*.metadata")):
            lines = record.read_text(encoding="utf-8").splitlines()
            if len(lines) >= 2:
                hashes[record.relative_to(records).as_posix().removesuffix(".metadata")] = lines[1]
        kinds = {40: "git-sha1", 64: "sha256"}
        return {name: f"{kinds[len(value)]}:{value}" for name, value in hashes.items() if len(value) in kinds}

    def _find_commit(self, api: HfApi, request: FetchRequest) -> str:
        """The commit that a revision names now; a hub that asks to wait is obeyed."""
        from huggingface_hub import constants
        from huggingface_hub.errors import HfHubHTTPError

        if request.revision and COMMIT.fullmatch(request.revision):
            return request.revision
        for attempt in range(PATIENCE_429 + 1):
            try:
                info = api.model_info(request.name, revision=request.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            except HfHubHTTPError as error:
                wait = errors.seconds_to_wait(error)
                if wait is None or wait > LONGEST_WAIT_SECONDS or attempt == PATIENCE_429:
                    raise
                print(f"{api.endpoint} asks to wait {wait:.0f} s (too many requests).", file=sys.stderr)
                time.sleep(wait)
                continue
            if info.sha is None:
                raise HubError(f"{api.endpoint} names no commit for {request.name}.", errors.other_ways(api.endpoint))
            return info.sha
        raise AssertionError("the last attempt returns or raises")

    def _cached_commit(self, request: FetchRequest, commit: str) -> Path | None:
        """A snapshot that is wholly in the cache."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return self._cached(request, commit)
        except LocalEntryNotFoundError:
            return None

    def _cached(self, request: FetchRequest, revision: str | None, without: tuple[str, ...] = ()) -> Path:
        """A snapshot that is in the cache with all files that are wanted of it, but for some patterns.

        Raises:
            LocalEntryNotFoundError: it is not there, or not wholly.
        """
        from huggingface_hub import snapshot_download

        allow, ignore = wanted_files(request)
        return Path(
            snapshot_download(
                request.name,
                revision=revision,
                cache_dir=request.cache_dir,
                local_files_only=True,
                allow_patterns=[pattern for pattern in allow if pattern not in without],
                ignore_patterns=ignore,
            )
        )

    def _download(self, api: HfApi, request: FetchRequest, commit: str) -> Path:
        from huggingface_hub import snapshot_download

        allow, ignore = wanted_files(request)
        files = resume.list_files(api, request.name, commit)
        chosen = resume.choose(files, allow, ignore)
        if not request.include:
            _refuse_unusable(request, [file.path for file in files], [file.path for file in chosen])
        elif not chosen:
            raise HubError(
                f"no file of {request.name} fits {', '.join(request.include)}.",
                f"It has: {', '.join(file.path for file in files[:12])}.",
            )
        resume.download_large(api, request, commit, chosen)
        return Path(
            snapshot_download(
                request.name,
                revision=commit if request.to or COMMIT.fullmatch(request.revision or "") else request.revision,
                cache_dir=request.cache_dir,
                local_dir=request.to,
                endpoint=api.endpoint,
                token=request.token,
                max_workers=request.jobs,
                allow_patterns=allow,
                ignore_patterns=ignore,
                tqdm_class=resume.no_bar(),
            )
        )

    def _from_cache(self, request: FetchRequest, cause: Exception | None, endpoint: str) -> Path:
        """What the cache has of a model when the hub can't be asked; said aloud if a hub was wanted."""
        from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError

        if request.to is not None:  # the client would take any folder with something in it for the model
            raise errors.unreachable(cause, request, endpoint) from cause
        try:
            try:
                folder = self._cached(request, request.revision)
            except IncompleteSnapshotError:  # from when a model's own code was not fetched; most models need none
                folder = self._cached(request, request.revision, without=ITS_OWN_CODE)
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise errors.unreachable(cause, request, endpoint) from (cause or error)
        if cause is not None:
            print(
                f"{endpoint} can't be reached ({errors.first_line(cause)}); using the copy of {request.name} in {folder}.",
                file=sys.stderr,
            )
        return folder


def _refuse_unusable(request: FetchRequest, names: list[str], chosen: list[str]) -> None:
    """Refuse, before gigabytes are fetched, a repository that has no weights luthier can load."""
    if any(name.endswith(".safetensors") for name in chosen):
        return
    for suffixes, what in (
        ((".bin", ".pt", ".pth"), "pickled weights, which can run code when they are loaded"),
        ((".gguf",), "GGUF files"),
        ((".h5", ".msgpack", ".onnx"), "weights of other frameworks"),
    ):
        if found := [name for name in names if name.endswith(suffixes)]:
            one = (
                f"Name one of them to have it converted: {request.name}/{found[0]}. Or look"
                if ".gguf" in suffixes
                else "Look"
            )
            raise HubError(
                f"{request.name} has no safetensors weights, only {what} ({', '.join(found[:3])}).",
                f"{one} for a revision or a sister repository with safetensors; "
                f"`luthier models fetch {request.name} --include '*'` fetches the files as they are.",
            )
    raise HubError(
        f"{request.name} holds no weights; it has: {', '.join(names[:8]) or 'no files'}.", "Is it the right name?"
    )


def build(options: Options) -> Hub:
    """The Hugging Face Hub as a model source."""
    return HuggingFace()
