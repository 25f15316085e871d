"""Which file type reads a path, and which format its rows are in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from luthier.config.data_section import DataEntry
from luthier.config.plugins import FORMATS, SOURCES
from luthier.data.columns import FormatOptions, fields_found, suggest
from luthier.data.outside_formats import check_module, guarded
from luthier.data.records import RawRow, Record
from luthier.foundation.errors import DataError

SAMPLED_ROWS = 100


class FormatError(DataError):
    """Rows that are in no known format, in several, or in one that another stage learns from."""


@dataclass(frozen=True, slots=True)
class ChosenFormat:
    """A format, why it was chosen, and what it does to a row.

    Args:
        record: the kind of record it makes.
        convert: a row to its one record; a row that holds several raises `RowError`.
        convert_all: a row to its records.
    """

    name: str
    reason: str
    options: FormatOptions
    record: type
    convert: Callable[[RawRow], Record]
    convert_all: Callable[[RawRow], Sequence[Record]]

    def unused(self, rows: Sequence[RawRow]) -> tuple[str, ...]:
        """The columns of rows that the format does not read."""
        return tuple(sorted(fields_of(rows) - self.options.used()))


def source_of(path: Path) -> ModuleType:
    """The file type that knows a path's suffix.

    Raises:
        DataError: none does; the known suffixes are listed.
    """
    known: dict[str, ModuleType] = {}
    for name in SOURCES.names():
        module = SOURCES.load(name)
        known.update(dict.fromkeys(module.SUFFIXES, module))
    suffix = path.suffix.lower()
    if suffix not in known:
        raise DataError(
            f"the data file {str(path)!r} has the unknown ending {suffix!r}.",
            f"Known endings: {', '.join(sorted(known))}.",
        )
    return known[suffix]


def choose_format(
    entry: DataEntry, rows: Sequence[RawRow], accepts: type | None = None, *, more_follow: bool = False
) -> ChosenFormat:
    """The format an entry names, or the one its first rows are in.

    Args:
        more_follow: these are not all rows, so a column that none of them has may begin later; one that a format can't
            do without may not.
        accepts: the kind of record that is wanted; it decides between plain text and what else a column of text may
            belong to (text with a label), never between answers and judged answers.

    Raises:
        FormatError: no format matches (fields and a mapping are named), or several do.
        DataError: settings that fit no row: unknown columns, tags without effect.
    """
    absent = absent_columns(entry, rows)
    if more_follow:
        absent = {part: column for part, column in absent.items() if _needed(entry, part)}
    if absent:
        part, column = next(iter(absent.items()))
        have_it = f"none of the first {len(rows):,} rows has" if more_follow else "no row has"
        raise DataError(
            f"{entry.path}: columns.{part} names the column {column!r}, which {have_it}.",
            f"Fields found: {fields_found(sorted(fields_of(rows)))}.",
        )
    sample = sample_of(rows)
    if entry.format != "auto":
        module = _named(entry.format)
        options = _options(module, entry)
        found = module.detect(sample, options) if hasattr(module, "detect") else None
        return _chosen(module, found[0] if found else options, "named in the config")
    candidates = [candidate for name in FORMATS.names() if (candidate := _candidate(_named(name), entry, sample))]
    strong = [candidate for candidate in candidates if not getattr(candidate[0], "FALLBACK", False)]
    fallback = [candidate for candidate in candidates if candidate not in strong]
    if accepts is not None and any(candidate[0].RECORD is accepts for candidate in fallback):
        strong = []
        candidates = fallback
    if len(strong) > 1:
        reasons = "; ".join(f"{options.name}: {reason}" for _, options, reason in strong)
        raise FormatError(
            f"{entry.path} matches several formats ({reasons}).", "Say which one is meant: {path: ..., format: ...}."
        )
    for module, options, reason in (*strong, *candidates):
        return _chosen(module, options, reason)
    raise _no_match(entry, sample)


def matches(entry: DataEntry, rows: Sequence[RawRow]) -> bool:
    """Whether the columns of rows are those of a format, or of the named one; any text may be plain text, which is none."""
    sample = sample_of(rows)
    modules = [_named(name) for name in (FORMATS.names() if entry.format == "auto" else [entry.format])]
    return any(
        not getattr(module, "FALLBACK", False) and _candidate(module, entry, sample) is not None
        for module in modules
        if hasattr(module, "detect")
    )


def fields_of(rows: Sequence[RawRow]) -> set[str]:
    """The fields that rows have."""
    return {str(field) for row in rows for field in row.values}


def absent_columns(entry: DataEntry, rows: Sequence[RawRow]) -> dict[str, str]:
    """The parts whose columns an entry names but no row has, each with its column."""
    fields = fields_of(rows)
    return {part: column for part, column in entry.columns.items() if column is not None and column not in fields}


def _needed(entry: DataEntry, part: str) -> bool:
    """Whether the entry's format can't do without a part, or one that its columns may be meant for."""
    kinds = [_named(name).Options for name in (FORMATS.names() if entry.format == "auto" else [entry.format])]
    return any(part in kind.REQUIRED for kind in kinds if set(entry.columns) <= set(kind.PARTS))


def sample_of(rows: Sequence[RawRow]) -> dict[str, Any]:
    """The fields of the first rows, each with its first value that is not empty."""
    sample: dict[str, Any] = {}
    for row in islice(rows, SAMPLED_ROWS):
        for field, value in row.values.items():
            if not sample.get(field):
                sample[field] = value
    return sample


def _named(name: str) -> ModuleType:
    module = FORMATS.load(name)
    if _is_outside(module):
        check_module(module)
    return module


def _candidate(
    module: ModuleType, entry: DataEntry, sample: Mapping[str, Any]
) -> tuple[ModuleType, FormatOptions, str] | None:
    if not set(entry.columns) <= set(module.Options.PARTS):
        return None
    if any(part in module.Options.REQUIRED for part, column in entry.columns.items() if column is None):
        return None
    if entry.system is not None and not module.Options.TAKES_SYSTEM:
        return None
    if entry.tags and "tags" not in module.Options.model_fields:
        return None
    found = module.detect(sample, _options(module, entry))
    return (module, *found) if found else None


def _options(module: ModuleType, entry: DataEntry) -> FormatOptions:
    if entry.tags and "tags" not in module.Options.model_fields:
        raise DataError(
            f"{entry.path}: tags are given, but the format {module.__name__.rsplit('.', 1)[-1]} has no turns to read by them.",
            "Remove tags, or name a format with turns.",
        )
    try:
        options: FormatOptions = module.Options(
            columns=entry.columns, system=entry.system, **({"tags": entry.tags} if entry.tags else {})
        )
    except ValidationError as error:
        problems = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise DataError(f"{entry.path}: {problems}.", "See `luthier config explain data.train.0.columns`.") from error
    return options


def _chosen(module: ModuleType, options: FormatOptions, reason: str) -> ChosenFormat:
    convert = module.build(options)
    convert_all = module.build_all(options) if hasattr(module, "build_all") else lambda row: [convert(row)]
    if _is_outside(module):
        convert_all = guarded(convert_all, module)
    return ChosenFormat(options.name, reason, options, module.RECORD, convert, convert_all)


def _is_outside(module: ModuleType) -> bool:
    return not module.__name__.startswith(f"{FORMATS.package}.")


def _no_match(entry: DataEntry, sample: Mapping[str, Any]) -> FormatError:
    """What to say when no format matches: the fields, what each format needs, and a mapping that may be meant."""
    needs, advice = [], ""
    for name in FORMATS.names():
        options = FORMATS.load(name).Options
        needs.append(f"{name} needs {options.needs()}")
        mapping = suggest(sample, options.REQUIRED)
        fits = len(mapping) == len(options.REQUIRED) and FORMATS.load(name).detect(sample, options(columns=mapping))
        if not advice and fits:
            shown = ", ".join(f"{part}: {column}" for part, column in mapping.items())
            advice = f" Perhaps {{path: {entry.path}, format: {name}, columns: {{{shown}}}}}."
    return FormatError(
        f"no format matches {entry.path}; its fields are: {fields_found(list(sample))}.",
        f"Say where the parts stand with columns: {{part: column}}.{advice} Known formats: {'; '.join(needs)}.",
    )
