"""LLaMA-Factory's registry of data sets, read as it is: the path `data/dataset_info.json#name` is its entry `name`.

What the entry in luthier's config sets itself goes before what the registry says. Differences to LLaMA-Factory: an
entry with both a hub's address and a file is taken from the hub, as there (from ModelScope where it is the only hub, or
USE_MODELSCOPE_HUB=1); scripts, and files behind a cloud address,
are refused; num_samples larger than the data takes every row once, where LLaMA-Factory repeats some; a file whose
file_sha1 is another one is refused, where LLaMA-Factory warns.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from luthier.config.data_section import DataEntry
from luthier.config.sections import Section
from luthier.data.hub_sets import PREFIX
from luthier.data.modelscope_sets import PREFIX as MODELSCOPE
from luthier.data.modelscope_sets import preferred
from luthier.foundation.errors import DataError, UserError
from luthier.foundation.files import digest_of, need_file
from luthier.foundation.registry import nearest

MARK = ".json#"
# luthier's format, by (formatting, ranking, judged), and its names for the registry's columns
_COMMON = {"system": "system", "tools": "tools"}
_PAIR = {"chosen": "chosen", "rejected": "rejected"}
_ALPACA = {"prompt": "instruction", "query": "input", "history": "history", **_COMMON}
FORMATS: Mapping[tuple[str, bool, bool], tuple[str, Mapping[str, str]]] = {
    ("alpaca", False, False): ("alpaca", {**_ALPACA, "response": "output"}),
    ("sharegpt", False, False): ("sharegpt", {"messages": "conversations", **_COMMON}),
    ("openai", False, False): ("openai", {"messages": "messages", **_COMMON}),
    ("alpaca", True, False): ("alpaca_pair", {**_ALPACA, **_PAIR}),
    ("sharegpt", True, False): ("sharegpt_pair", {"messages": "conversations", **_PAIR, **_COMMON}),
    ("openai", True, False): ("openai_pair", {"messages": "prompt", **_PAIR, **_COMMON}),
    ("alpaca", False, True): ("kto", {**_ALPACA, "prompt": "prompt", "response": "completion", "kto_tag": "label"}),
    ("sharegpt", False, True): ("kto", {"messages": "messages", "kto_tag": "label", **_COMMON}),
    ("openai", False, True): ("kto", {"messages": "messages", "kto_tag": "label", **_COMMON}),
}
# LLaMA-Factory's own names, which are also what the formats expect
USUAL_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


class Registered(Section):
    """An entry of dataset_info.json."""

    hf_hub_url: str | None = None
    ms_hub_url: str | None = None
    om_hub_url: str | None = None
    script_url: str | None = None
    cloud_file_name: str | None = None
    file_name: str | None = None
    file_sha1: str | None = Field(None, pattern="^[0-9a-fA-F]{40}$")
    stage: Literal["pt", "sft", "rm"] | None = None  # of older registries: what the rows are for
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = Field(None, gt=0)
    columns: dict[str, str | None] = Field(default_factory=dict)
    tags: dict[str, str | None] = Field(default_factory=dict)


def resolve(entry: DataEntry) -> DataEntry:
    """The entry that `dataset_info.json#name` stands for; any other entry as it is.

    Raises:
        DataError: the registry lacks the name or can't be read; a key or value of it is unknown or can't be had here.
    """
    if MARK not in entry.path or Path(entry.path).exists():
        return entry
    file, _, name = entry.path.partition("#")
    registry = _read(Path(file))
    if name not in registry:
        close = nearest(name, registry)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise DataError(f"{file} has no data set {name!r}.", f"{hint}It has: {', '.join(sorted(registry)[:20])}.")
    place = f"{file}, data set {name!r}"
    try:
        found = Registered.model_validate(registry[name])
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise DataError(f"{place}: {problems}.", f"Known keys: {', '.join(Registered.model_fields)}.") from error
    settings = {**_rows(found, Path(file).parent, place), **_layout(found, place)}
    own = entry.model_dump(exclude={"path"}, exclude_unset=True)
    try:
        return DataEntry(**{**settings, **own})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise DataError(f"{place}: {problems}.", "Mend it, or set it in the config's own entry.") from error


def _read(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(need_file(file, "the registry of data sets").read_text(encoding="utf-8"))
    except UserError as error:
        raise DataError(error.problem, error.remedy) from error
    except (ValueError, OSError) as error:
        raise DataError(f"{file} can't be read as JSON: {error}.", "Mend that place.") from error
    if not isinstance(value, dict):
        raise DataError(f"{file} is no object of data sets by name.", 'For instance {"mine": {"file_name": "a.json"}}.')
    return value


def _rows(found: Registered, folder: Path, place: str) -> dict[str, Any]:
    """Where the rows are and which of them are taken."""
    sampled = {} if found.num_samples is None else {"max_samples": found.num_samples}
    hub = None if found.hf_hub_url is None else PREFIX + found.hf_hub_url
    if found.ms_hub_url is not None and (hub is None or preferred()):
        hub = MODELSCOPE + found.ms_hub_url
    if hub is not None:
        if found.file_sha1 is not None:
            raise DataError(f"{place}: file_sha1 has no effect on a hub's data set.", "Remove it from the registry.")
        return {"path": hub, "split": found.split, "subset": found.subset, "folder": found.folder, **sampled}
    if found.file_name is None:
        given = [key for key in ("om_hub_url", "script_url", "cloud_file_name") if getattr(found, key)]
        raise DataError(
            f"{place} has {' and '.join(given) or 'no address'}, and none of hf_hub_url, ms_hub_url and file_name.",
            "Only these are read: download the data and name it with file_name.",
        )
    for key in ("subset", "folder"):
        if getattr(found, key) is not None:
            raise DataError(
                f"{place}: {key} is {getattr(found, key)!r}, which has no effect on a file.",
                "Remove it from the registry.",
            )
    path = folder / found.file_name
    if found.file_sha1 is not None:
        _check_sha1(path, found.file_sha1.lower(), place)
    return {"path": str(path), "split": found.split, **sampled}


def _check_sha1(path: Path, expected: str, place: str) -> None:
    """Refuse a file of other content; one that is missing is told where it is looked for."""
    if path.is_dir():
        raise DataError(f"{place}: file_sha1 has no effect on the folder {path}.", "Remove it from the registry.")
    if not path.is_file():
        return
    facts = path.stat()
    sha1 = _sha1(path, facts.st_size, facts.st_mtime_ns)
    if sha1 != expected:
        raise DataError(
            f"{place}: {path} has the SHA-1 {sha1}, but file_sha1 says {expected}.",
            "Fetch the file again if it is damaged; if it was changed on purpose, write its SHA-1 into the registry, or remove file_sha1.",
        )


@functools.lru_cache(maxsize=64)
def _sha1(path: Path, size: int, changed_ns: int) -> str:
    """A file's SHA-1, once for each state of it: an entry is resolved several times in a run."""
    return digest_of(path, "sha1")


def _layout(found: Registered, place: str) -> dict[str, Any]:
    """Format, columns and tags."""
    columns = {key: column for key, column in found.columns.items() if column is not None}
    judged = "kto_tag" in columns
    ranking = found.ranking or found.stage == "rm"
    if (found.formatting, ranking, judged) not in FORMATS:
        raise DataError(f"{place}: ranking and kto_tag exclude each other.", "Remove one of the two.")
    plain = found.formatting == "alpaca" and not ranking and set(columns) == {"prompt"}
    kind = "pt" if plain else "rm" if ranking else "sft"
    if found.stage not in (None, kind):
        raise DataError(
            f"{place}: stage is {found.stage}, but formatting, ranking and columns say rows of {kind}.",
            "Plain text (pt) has the column prompt alone; pairs (rm) have ranking: true; or remove stage.",
        )
    if plain:
        return {"format": "text", "columns": {"text": columns["prompt"]}, **_tags(found, place)}
    name, parts = FORMATS[found.formatting, ranking, judged]
    for key in columns:
        if key not in parts:
            raise DataError(
                f"{place}: columns.{key} is {columns[key]!r}, but rows of {name} have no such part.",
                f"Remove it; known here: {', '.join(parts)}.",
            )
    return {"format": name, "columns": _columns(found, columns, parts, place), **_tags(found, place)}


def _columns(
    found: Registered, named: Mapping[str, str], parts: Mapping[str, str], place: str
) -> dict[str, str | None]:
    """Where the parts stand; null where LLaMA-Factory reads none, though a column has the usual name.

    There (data/parser.py) system, tools and history are read where they are named, the others by their usual names where the
    registry has no `columns` at all.

    Raises:
        DataError: rows that would have no question, or no answer.
    """
    given = "columns" in found.model_fields_set
    aside = {"system", "tools", "history"} | ({"query"} if given else set())
    columns = {part: named.get(key) for key, part in parts.items() if key in named or key in aside}
    if not given or found.formatting != "alpaca":
        return columns
    if "prompt" not in named and "query" in named:
        columns |= {parts["prompt"]: named["query"], parts["query"]: None}
    elif "prompt" not in named:
        raise DataError(f"{place}: columns names neither prompt nor query.", "Name the question's column: prompt.")
    if "response" in parts and "response" not in named:
        raise DataError(
            f"{place}: columns names no response.",
            "Name the answer's column; rows that bring none are predicted by their own path.",
        )
    return columns | ({"messages": None} if "kto_tag" in named else {})


def _tags(found: Registered, place: str) -> dict[str, Any]:
    """Tags, where they are not the usual ones."""
    tags = {key: name for key, name in found.tags.items() if name is not None}
    for key in tags:
        if key not in USUAL_TAGS:
            raise DataError(f"{place}: tags.{key} is unknown.", f"Known tags: {', '.join(USUAL_TAGS)}.")
    if tags and found.formatting == "alpaca":
        raise DataError(
            f"{place}: tags have no effect on formatting alpaca.", "Remove them, or set formatting to sharegpt."
        )
    usual = found.formatting == "sharegpt" and all(USUAL_TAGS[key] == name for key, name in tags.items())
    return {} if usual or not tags else {"tags": tags}
