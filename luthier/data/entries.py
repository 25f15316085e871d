"""One entry of train, validation or test: its files read, sliced, sampled and turned into records, all of it counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from luthier.config.data_section import DataEntry
from luthier.config.split_slices import SplitSlice
from luthier.data.detection import ChosenFormat, FormatError, choose_format
from luthier.data.locating import Located, locate
from luthier.data.reading import read_files
from luthier.data.records import (
    Conversation,
    Document,
    Labelled,
    LabelledConversation,
    Pair,
    RawRow,
    Record,
    Rejected,
    RowError,
)
from luthier.data.report import SourceReport
from luthier.foundation.errors import DataError
from luthier.foundation.seeding import derive_seed, permutation

Convert = Callable[[RawRow], Sequence[Record]]
# what records of a kind are called, and the stages that learn from them
KINDS: Mapping[type, tuple[str, str]] = {
    Conversation: ("conversations", "stage: sft"),
    Document: ("plain text", "stage: pretrain"),
    Pair: ("preference pairs", "a stage of preferences (reward, dpo, orpo, simpo)"),
    LabelledConversation: ("judged answers", "stage: kto"),
    Labelled: ("labelled texts", "stage: classification or regression"),
}


@dataclass(frozen=True, slots=True)
class LoadedEntry:
    """What became of an entry."""

    records: list[Record]
    rejected: list[Rejected]
    report: SourceReport
    located: Located


def load_entry(
    entry: DataEntry,
    split: str,
    index: int,
    seed: int,
    accepts: type | None,
    located: Located | None = None,
    change: Callable[[DataEntry, Sequence[RawRow]], Sequence[RawRow]] | None = None,
) -> LoadedEntry:
    """An entry's records.

    Args:
        located: its files, where they have been looked up already.
        split: train, validation or test; `index`: the entry's place in its list. Random choices depend on both.
        accepts: the kind of record the encoder takes; None takes any.
        change: what is done to the rows before a format is looked for.

    Raises:
        FormatError: rows in no known format, or records of the wrong kind.
        DataError: files or a format that can't be used, a slice beyond the rows.
    """
    located = located or locate(entry)
    entry = located.entry
    rows: Sequence[RawRow] = read_files(located)
    if change is not None:
        rows = change(entry, rows)
    chosen = formats_of(entry, rows, accepts)
    if accepts is not None and chosen[0].record is not accepts:
        raise wrong_kind(entry, chosen[0], accepts)
    taken = _taken(entry, len(rows), seed, split, index)
    converts = [choice.convert_all for choice in chosen]
    systems = [derive_seed(seed, "system", split, index, row) % len(converts) for row in taken]
    records, rejected = convert_rows([(rows[row], converts[which]) for row, which in zip(taken, systems, strict=True)])
    report = SourceReport(
        path=located.shown,
        split=split,
        format=chosen[0].name,
        reason=chosen[0].reason,
        unused=chosen[0].unused(rows),
        read=len(rows),
        sampled=len(taken),
        kept=len(taken) - len(rejected),
        records=len(records),
        rejected=Counter(item.reason for item in rejected),
    )
    return LoadedEntry(records, rejected, report, located)


def _taken(entry: DataEntry, count: int, seed: int, split: str, index: int) -> Sequence[int]:
    """The rows that `split`'s slice, `max_samples` and `head` leave, in the files' order."""
    rows: Sequence[int] = range(count)
    if entry.split is not None:
        try:
            rows = SplitSlice.parse(entry.split).rows(count)
        except ValueError as error:
            raise DataError(f"{entry.path}: split {entry.split!r} {error}.", "Name rows that are there.") from error
    if entry.max_samples is None or entry.max_samples >= len(rows):
        return rows
    if entry.head:
        return rows[: entry.max_samples]
    picked = permutation(len(rows), seed, "max_samples", split, index)[: entry.max_samples]
    return [rows[place] for place in sorted(picked)]


def formats_of(
    entry: DataEntry, rows: Sequence[RawRow], accepts: type | None, *, more_follow: bool = False
) -> list[ChosenFormat]:
    """The entry's format, once for each system prompt that a row may be given; see `choose_format`."""
    systems = entry.system if isinstance(entry.system, list) else [entry.system]
    told = [entry.model_copy(update={"system": system}) for system in systems]
    chosen = [choose_format(one, rows, accepts, more_follow=more_follow) for one in told]
    if entry.tags and getattr(chosen[0].options, "tags", {}) != entry.tags:
        raise DataError(
            f"{entry.path}: tags is {entry.tags}, which has no effect on the format {chosen[0].name}.",
            "Remove it, or name a format whose rows are lists of turns.",
        )
    return chosen


def convert_rows(rows: Sequence[tuple[RawRow, Convert]]) -> tuple[list[Record], list[Rejected]]:
    """Records of rows, and the rows that can't be used."""
    records: list[Record] = []
    rejected: list[Rejected] = []
    for row, convert in rows:
        try:
            records.extend(convert(row))
        except RowError as error:
            rejected.append(Rejected(row.origin, str(error), row.values))
    return records, rejected


def wrong_kind(entry: DataEntry, chosen: ChosenFormat, accepts: type) -> FormatError:
    """Why records of one kind can't be learnt by a stage of another, and what would do."""
    found, stages = KINDS[chosen.record]
    wanted, _ = KINDS[accepts]
    remedy = f"Train on it with {stages}"
    if accepts is Document:
        remedy += ", or name its text column: {format: text, columns: {text: ...}}"
    elif accepts is Conversation:
        remedy += ", or say where question and answer stand: {format: alpaca, columns: {instruction: ..., output: ...}}"
    elif accepts is LabelledConversation:
        remedy += ", or name the column that judges its answers (true and false, or 0 and 1): {format: kto, columns: {label: ...}}"
    return FormatError(
        f"{entry.path} holds {found} (format {chosen.name}: {chosen.reason}), but this run's stage learns {wanted}.",
        f"{remedy}.",
    )
