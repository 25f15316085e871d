"""Rows of an entry as they are read: of local files, or of a hub's data set, of which only what is read is fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from luthier.config.data_section import DataEntry
from luthier.config.split_slices import SplitSlice
from luthier.data.dataset_info import resolve
from luthier.data.hub_sets import modelscope_id, stream_hub_set
from luthier.data.locating import hub_name, locate
from luthier.data.reading import iterate_files
from luthier.data.records import RawRow
from luthier.foundation.errors import DataError


@dataclass(frozen=True)
class RowStream:
    """An entry's rows, from the first on each time.

    Args:
        entry: with what a registry of other tools adds to it.
        shown: what messages call it.
        facts: names and sizes, or a commit: what tells it from another.
        everything: opens all rows. taken: the numbers of those that `split` and `head` leave.
    """

    entry: DataEntry
    shown: str
    facts: Mapping[str, Any]
    everything: Callable[[], Iterator[RawRow]]
    taken: slice

    def numbered(self) -> Iterator[tuple[int, RawRow]]:
        """The rows that are taken, with their numbers among all."""
        return islice(enumerate(self.everything()), self.taken.start, self.taken.stop)

    def rows(self) -> Iterator[RawRow]:
        """The rows that are taken."""
        return (row for _, row in self.numbered())


def open_entry(entry: DataEntry) -> RowStream:
    """An entry as a stream; a slice that needs the number of rows has them counted first.

    Raises:
        DataError: files that can't be found or read; a slice that takes nothing, or that needs a number nobody knows.
    """
    name = hub_name(resolve(entry))
    if name is not None and modelscope_id(name) is not None:
        name = None  # ModelScope's sets are downloaded, and read as files
    if name is not None:
        entry = resolve(entry)
        split = SplitSlice.parse(entry.split).name if entry.split else None
        opened = stream_hub_set(name, entry.subset, split or "train", entry.folder)
        named, facts, known = opened.named, opened.facts, opened.count
        everything = opened.rows
    else:
        located = locate(entry)
        entry, named, known = located.entry, located.shown, None
        facts = {"files": [(file.name, file.stat().st_size) for file in located.files]}

        def everything() -> Iterator[RawRow]:
            return iterate_files(located)

    return RowStream(entry, named, facts, everything, _taken(entry, named, everything, known, hub=name is not None))


def _taken(
    entry: DataEntry, named: str, everything: Callable[[], Iterator[RawRow]], known: int | None, *, hub: bool
) -> slice:
    """The rows that `split`'s slice and `head` leave."""
    start, stop = 0, None
    if entry.split is not None:
        bounds = SplitSlice.parse(entry.split)
        if bounds.needs_count:
            if hub and known is None:
                raise DataError(
                    f"{named}: split {entry.split!r} counts from the set's size, which the hub does not tell, and a "
                    "stream is not read to its end to find out.",
                    "Give the bounds as numbers of rows from the start, or set data.streaming to false.",
                )
            count = known if known is not None else sum(1 for _ in everything())
            try:
                rows = bounds.rows(count)
            except ValueError as error:
                raise DataError(f"{named}: split {entry.split!r} {error}.", "Name rows that are there.") from error
            start, stop = rows.start, rows.stop
        else:
            start, stop = int(bounds.start or 0), int(bounds.stop) if bounds.stop is not None else None
            if stop is not None and stop <= start:
                raise DataError(f"{named}: split {entry.split!r} takes no row.", "Name rows that are there.")
    if entry.max_samples is not None:
        stop = start + entry.max_samples if stop is None else min(stop, start + entry.max_samples)
    return slice(start, stop)
