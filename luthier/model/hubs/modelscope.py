"""ModelScope, through its `modelscope` client (an optional extra). Reached by `modelscope:` or USE_MODELSCOPE_HUB=1.

The part of the client that downloads is the module `modelscope_hub`; the module `modelscope` around it imports torch.

MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN, MODELSCOPE_CACHE and the proxy variables mean what they mean to the client,
which resumes broken downloads and compares hashes itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from luthier.config.sections import PluginOptions
from luthier.foundation.errors import HubError, import_extra
from luthier.foundation.files import is_disk_full, write_text
from luthier.foundation.network import unreachable
from luthier.model.hub import CHECKSUMS, FetchRequest, Hub, check_endpoint, wanted_files
from luthier.model.missing import not_here

DEFAULT_ENDPOINT = "https://modelscope.cn"
OTHER_WAYS = (
    "Take the model from Hugging Face (huggingface:OWNER/NAME) or its mirror (HF_ENDPOINT=https://hf-mirror.com), or name a "
    "folder that has the files."
)
ADVICE = f"Running the same command again goes on where it stopped. {OTHER_WAYS}"


class Options(PluginOptions):
    """The client's environment variables hold; there is nothing else to set."""

    name: Literal["modelscope"] = "modelscope"


class ModelScope:
    """Fetches snapshots into the client's own cache, or into a folder."""

    def fetch(self, request: FetchRequest) -> Path:
        """The snapshot's folder, with a checksum.sha256 of the hashes that the hub listed.

        Raises:
            MissingExtraError: the client is not installed.
            HubError: the hub can't be reached and the cache lacks the model, or it refuses.
        """
        client = import_extra(
            "modelscope_hub", package="modelscope", extra="modelscope", purpose="fetching from ModelScope"
        )
        if request.name.count("/") != 1:
            raise HubError(
                f"{not_here(request.name)}{request.name!r} is no name of a model on ModelScope.",
                "Write it as OWNER/NAME.",
            )
        own = request.endpoint or os.environ.get("MODELSCOPE_ENDPOINT")
        endpoint = check_endpoint(own or DEFAULT_ENDPOINT)
        allow, ignore = wanted_files(request)
        wanted = {
            "revision": request.revision,
            "cache_dir": request.cache_dir,
            "local_dir": request.to,
            "allow_patterns": allow,
            "ignore_patterns": ignore,
        }
        _quieten()
        api = client.HubApi(endpoint=endpoint, token=request.token)
        if (failure := unreachable(endpoint)) is not None:
            return self._from_cache(client, api, request, wanted, f"{endpoint} can't be reached ({failure})")
        try:
            if own is None:  # the model may be on the Chinese or on the international site
                endpoint = client.HubApi(token=request.token).resolve_endpoint_for_read(request.name, repo_type="model")
                api = client.HubApi(endpoint=endpoint, token=request.token)
            files = api.list_repo_files(request.name, "model", revision=request.revision)
            folder = Path(api.download_repo(request.name, "model", **wanted, max_workers=request.jobs))
        except (client.HubError, OSError, ValueError) as error:
            raise explain(error, request, endpoint) from error
        _write_hashes(folder, files)
        return folder

    def expected_hashes(self, folder: Path) -> Mapping[str, str]:
        """Nothing of its own: the hub's hashes stand in the folder's checksum.sha256."""
        return {}

    def _from_cache(self, client: Any, api: Any, request: FetchRequest, wanted: Mapping[str, Any], why: str) -> Path:
        """The copy in the cache, if a fetch of it was once finished (the hashes are written last)."""
        try:
            folder = Path(api.download_repo(request.name, "model", **wanted, local_files_only=True))
        except (OSError, ValueError, client.HubError) as error:
            raise HubError(f"{why}, and {request.name} is not in the cache.", OTHER_WAYS) from error
        if not (folder / CHECKSUMS).is_file():
            raise HubError(f"{why}, and {request.name} is not wholly in {folder}.", ADVICE)
        print(f"{why}; using the copy of {request.name} in {folder}.", file=sys.stderr)
        return folder


def explain(error: Exception, request: FetchRequest, endpoint: str) -> HubError:
    """A refusal of the hub, in a sentence."""
    response = getattr(error, "response", None)
    status = getattr(error, "status_code", None) or getattr(response, "status_code", None)
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    revision = f" at revision {request.revision}" if request.revision else ""
    if is_disk_full(error):
        return HubError(
            f"the disk is full: {request.name} could not be stored ({said}).", "Make room, or use cache_dir or --to."
        )
    if status == 401:
        return HubError(
            f"{endpoint} does not accept the access token ({said}).", "Make a new one in the hub's settings."
        )
    if status == 403:
        return HubError(
            f"{endpoint} refuses access to {request.name} ({said}).",
            "Give a token (MODELSCOPE_API_TOKEN) that may read it.",
        )
    if status == 404:
        return HubError(
            f"{endpoint} has no model {request.name!r}{revision}, or it is private ({said}).",
            "Check the spelling of OWNER/NAME and the revision; for a private model give a token.",
        )
    if status == 429:
        return HubError(
            f"{endpoint} has had too many requests ({said}).",
            "Run the same command later: it goes on where it stopped.",
        )
    return HubError(f"fetching {request.name}{revision} from {endpoint} broke off: {said}", ADVICE)


def _quieten() -> None:
    """The client logs each retry as a warning with its request; what matters comes back as an error."""
    for name in ("modelscope", "modelscope_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _write_hashes(folder: Path, files: list[Any]) -> None:
    """Store the hub's sha256 of each fetched file beside it, for `models verify`, unless the model brings such a list."""
    if any(file.path == CHECKSUMS for file in files):
        return
    hashes = {file.path: file.sha256 for file in files if file.sha256 and (folder / file.path).is_file()}
    write_text(folder / CHECKSUMS, "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)))


def build(options: Options) -> Hub:
    """ModelScope as a model source."""
    return ModelScope()
