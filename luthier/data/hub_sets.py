"""Data sets of a hub, through `datasets`: the Arrow files of its cache.

The Hugging Face Hub or a mirror (HF_ENDPOINT); ModelScope's sets are downloaded by modelscope_sets first.

HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, HF_HOME and HF_DATASETS_CACHE mean what they mean to that library. Where the hub
can't be reached, a set that was loaded before comes from the cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.modelscope_sets import PREFIX as MODELSCOPE
from luthier.data.modelscope_sets import preferred, snapshot
from luthier.data.records import Origin, RawRow
from luthier.data.sources._arrow_rows import rows_of
from luthier.foundation.errors import DataError

PREFIX = "huggingface:"
ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
PATIENCE_SECONDS = 8


def hub_id(path: str) -> str | None:
    """The hub id that a path is (`owner/name`, anything after `huggingface:`, or one of ModelScope's), or None."""
    if path.startswith(PREFIX):
        return path.removeprefix(PREFIX)
    if path.startswith(MODELSCOPE):
        return path
    if not ID.fullmatch(path):
        return None
    return MODELSCOPE + path if preferred() else path


def modelscope_id(name: str) -> str | None:
    """`owner/name` of a hub id that is ModelScope's, else None.

    Raises:
        DataError: it is no owner/name.
    """
    if not name.startswith(MODELSCOPE):
        return None
    own = name.removeprefix(MODELSCOPE)
    if not ID.fullmatch(own):
        raise DataError(f"{own!r} is no id of a data set on ModelScope.", "Write it as modelscope:owner/name.")
    return own


def hub_files(name: str, subset: str | None, split: str, folder: str | None) -> tuple[Path, ...]:
    """The Arrow files of one split, downloaded where the cache lacks them.

    Raises:
        DataError: no such set, subset or split; not reachable and not cached; a set that needs its own script.
    """
    modelscope = modelscope_id(name)
    reachable = modelscope is not None or _find(name)
    source = str(snapshot(modelscope)) if modelscope is not None else name
    import datasets

    try:
        with _offline(not reachable):
            loaded: Any = datasets.load_dataset(source, subset, split=split, data_dir=folder)
    except Exception as error:  # the library raises classes of many kinds; each says what the hub or the files lack
        where = "" if reachable else " (the hub can't be reached, so only the cache was looked at)"
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"the data set {name}{f' ({subset})' if subset else ''}, split {split}, can't be loaded{where}: {first}",
            "Check its id, subset and split on the hub and the connection (HF_ENDPOINT names a mirror), or download it and name its files.",
        ) from error
    files = tuple(Path(item["filename"]) for item in loaded.cache_files)
    if not files:
        raise DataError(f"the data set {name}, split {split}, holds no rows.", "Name another split.")
    return files


@dataclass(frozen=True)
class OpenedSet:
    """A split of a hub's data set that is read as it is asked for.

    Args:
        named: what rows are said to come from.
        facts: id and commit. count: its rows, where the hub tells.
    """

    named: str
    facts: dict[str, Any]
    count: int | None
    rows: Callable[[], Iterator[RawRow]]


def stream_hub_set(name: str, subset: str | None, split: str, folder: str | None) -> OpenedSet:
    """One split, of which nothing is downloaded but what is read.

    Raises:
        DataError: no such set, subset or split; not reachable; a set that needs its own script.
    """
    if not _find(name):
        raise DataError(
            f"the data set {name} can't be streamed: the hub can't be reached.",
            "Check the connection (HF_ENDPOINT names a mirror), or set data.streaming to false to use the cache.",
        )
    import datasets
    from huggingface_hub import HfApi

    named = f"{name} ({', '.join(filter(None, (subset, folder, split)))})"
    try:
        commit = HfApi().dataset_info(name, timeout=PATIENCE_SECONDS).sha
        loaded: Any = datasets.load_dataset(name, subset, split=split, data_dir=folder, streaming=True, revision=commit)
    except Exception as error:  # the library raises classes of many kinds; each says what the hub or the files lack
        raise DataError(
            f"the data set {named} can't be streamed: {str(error).strip().partition(chr(10))[0] or type(error).__name__}",
            "Check its id, subset and split on the hub, or set data.streaming to false.",
        ) from error
    splits = loaded.info.splits or {}
    count = splits[split].num_examples if split in splits else None

    def rows() -> Iterator[RawRow]:
        # as tables of a row each, for where the library knows no types beforehand (a JSON array) it parses no JSON columns
        values = (row for table in loaded.with_format("arrow") for row in rows_of(table))
        return (RawRow(row, Origin(named, number)) for number, row in enumerate(values, 1))

    return OpenedSet(named, {"hub": name, "commit": commit, "folder": folder}, count, rows)


def _find(name: str) -> bool:
    """Whether the hub answers; the library itself would try again and again for half a minute.

    Raises:
        DataError: the hub has no such data set, or gives it only to those who may see it.
    """
    import httpx2  # huggingface_hub's own HTTP library; its errors come through
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if constants.is_offline_mode():
        return False
    try:
        HfApi().dataset_info(name, timeout=PATIENCE_SECONDS)
    except HFValidationError as error:
        raise DataError(f"{name!r} is no id of a data set: {error}.", "An id is owner/name.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status == 429:
            return False
        raise DataError(
            f"{name!r} is neither a local path nor a data set that {constants.ENDPOINT} shows (HTTP status {status}).",
            "Check the spelling; a private or gated set needs HF_TOKEN, and its terms accepted on the hub.",
        ) from error
    except (httpx2.HTTPError, OfflineModeIsEnabled, OSError):
        return False
    return True


@contextmanager
def _offline(switch: bool) -> Iterator[None]:
    """Keep `datasets` from trying an unreachable hub; the libraries read these flags at every use."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if switch:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
