"""Data sets of ModelScope, through its `modelscope` client (an optional extra): downloaded, then read as a folder of files.

Reached by `modelscope:owner/name`, or by `owner/name` with USE_MODELSCOPE_HUB=1. MODELSCOPE_ENDPOINT,
MODELSCOPE_API_TOKEN and MODELSCOPE_CACHE mean what they mean to the client, which goes on with broken downloads. Where
the hub can't be reached, the copy in the client's cache is taken.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from luthier.foundation.errors import DataError, import_extra
from luthier.foundation.network import unreachable

PREFIX = "modelscope:"
ENDPOINT = "https://modelscope.cn"
SWITCH = "USE_MODELSCOPE_HUB"
DONE = ".luthier-complete"  # written last, so that half a download is never taken for the set


def preferred() -> bool:
    """Whether ids without a hub's name are ModelScope's."""
    return os.environ.get(SWITCH, "").lower() in ("1", "true", "yes", "on")


def snapshot(name: str) -> Path:
    """The folder of a data set's files.

    Raises:
        MissingExtraError: the client is not installed.
        DataError: no such set, or not reachable and not in the cache.
    """
    client = import_extra(
        "modelscope_hub", package="modelscope", extra="modelscope", purpose="a data set of ModelScope"
    )
    for logger in ("modelscope", "modelscope_hub"):  # each retry is a warning to it; what matters comes as an error
        logging.getLogger(logger).setLevel(logging.ERROR)
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or ENDPOINT
    failure = unreachable(endpoint)
    try:
        api = client.HubApi(endpoint=endpoint)
        folder = Path(api.download_repo(name, "dataset", local_files_only=failure is not None))
    except (client.HubError, OSError, ValueError) as error:
        if failure is not None:
            raise _not_here(name, endpoint, failure) from error
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(
            f"the data set {PREFIX}{name} can't be had from {endpoint}: {said}",
            "Check the spelling of owner/name; a private set needs MODELSCOPE_API_TOKEN. Running the same command again "
            "goes on where a download stopped.",
        ) from error
    if failure is None:
        (folder / DONE).touch()
    elif not (folder / DONE).exists():
        raise _not_here(name, endpoint, failure)
    else:
        print(f"{endpoint} can't be reached ({failure}); using the copy of {name} in {folder}.", file=sys.stderr)
    return folder


def _not_here(name: str, endpoint: str, failure: str) -> DataError:
    return DataError(
        f"the data set {PREFIX}{name} is not wholly in the cache, and {endpoint} can't be reached ({failure}).",
        "Check the connection, or take the set from Hugging Face (huggingface:owner/name), or download it and name its files.",
    )
