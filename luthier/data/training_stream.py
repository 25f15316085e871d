"""Training rows read while they are trained on: nothing is counted, sorted or kept before, so size does not matter.

Rows are taken in windows of `data.buffer_size`, each shuffled by (seed, epoch, window). So where a stream goes on is
two numbers, the window and the examples taken from it, and a resumed run sees the same examples in the same order;
what lies before is read again, but not tokenized.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from luthier.config.data_section import DataConfig, DataEntry
from luthier.data.detection import absent_columns
from luthier.data.encoding import ChosenEncoder, EncodedRecords
from luthier.data.entries import Convert, convert_rows, formats_of, wrong_kind
from luthier.data.examples import TokenizedExample
from luthier.data.mixing import drawn_sources
from luthier.data.records import RawRow, Record, Rejected
from luthier.data.rejecting import refuse, rejected_line
from luthier.data.stream_sources import RowStream, open_entry
from luthier.data.streamed import News, Place, Streamed
from luthier.foundation.errors import DataError
from luthier.foundation.seeding import derive_seed, permutation

SAMPLED_ROWS = 1000  # from which a format is found out


class TrainingStream:
    """The examples of data.train.

    Raises:
        DataError: an entry that can't be opened, has no rows, or is in no known format.
    """

    def __init__(self, data: DataConfig, seed: int, chosen: ChosenEncoder) -> None:
        self._data, self._seed, self._chosen = data, seed, chosen
        self.entries = [_Entry.open(entry, place, seed, chosen.record) for place, entry in enumerate(data.train)]

    def remarks(self) -> list[str]:
        """What a person should know before training."""
        return [
            remark
            for entry in self.entries
            for remark in (f"{entry.stream.shown}: streamed, format {entry.format} ({entry.reason})", *entry.remarks)
        ]

    def first_records(self, rows: int) -> list[Record]:
        """What the first rows became; those that can't be used are left out, or refused, as data.invalid_rows says."""
        records, rejected = convert_rows(list(islice(self._rows(), rows)))
        refuse(rejected, self._data.invalid_rows)
        return records

    def examples(self, epoch: int, place: Place) -> Iterator[Streamed]:
        """The examples of an epoch from a place on.

        Raises:
            DataError: a row that can't be used, under `invalid_rows: error`; no row of the stream can be trained on.
        """
        size = self._data.buffer_size
        rows = islice(self._rows(), place.window * size, None)
        for number in range(place.window, 2**62):
            window = list(islice(rows, size))
            if not window:
                if number == 0:
                    raise DataError("the training stream holds no rows.", "Name files with rows in data.train.")
                return
            examples, news = self._encoded(window)
            offset = place.offset if number == place.window else 0
            if epoch == 0 and offset == 0 and news is not None:
                yield Streamed(None, Place(number), news)
            order = permutation(len(examples), self._seed, "stream", epoch, number)
            if not self._data.shuffle:
                order = list(range(len(examples)))
            for taken, index in enumerate(order[offset:], start=offset + 1):
                yield Streamed(examples[index], Place(number, taken))
            if number == 0 and not examples:
                raise DataError(
                    f"none of the first {len(window):,} rows of the training stream can be trained on.",
                    "`luthier data check` says why; data.buffer_size decides how many are looked at.",
                )

    def _rows(self) -> Iterator[tuple[RawRow, Convert]]:
        """All rows in the order of data.mix, each with what makes records of it."""
        entries = self.entries
        if self._data.mix == "concat":
            yield from chain.from_iterable(entry.rows() for entry in entries)
            return
        running = [entry.rows() for entry in entries]
        ended: set[int] = set()
        oversample = self._data.mix == "interleave_over"
        waiting = [next(rows, None) for rows in running]
        for source in drawn_sources([entry.entry.weight for entry in entries], self._seed):
            row = waiting[source]
            if row is None:
                raise DataError(f"data.train.{source} holds no row to mix.", "Remove it.")
            yield row
            waiting[source] = next(running[source], None)
            if waiting[source] is None:
                ended.add(source)
                if not oversample or len(ended) == len(entries):
                    return
                running[source] = entries[source].rows()
                waiting[source] = next(running[source], None)

    def _encoded(self, window: Sequence[tuple[RawRow, Convert]]) -> tuple[list[TokenizedExample], News | None]:
        records, rejected = convert_rows(window)
        refuse(rejected, self._data.invalid_rows)
        found = self._chosen.encode_counted(records, self._data.cutoff_length)
        refuse(found.refused, self._data.invalid_rows)
        return found.used, _news(found, [*rejected, *found.refused, *found.too_long, *found.untrained])

    def facts(self) -> list[Mapping[str, Any]]:
        """What tells one stream from another without reading it: each entry's settings, and names and sizes of its files
        or a hub set's commit."""
        return [{**entry.entry.model_dump(exclude={"path"}), **entry.stream.facts} for entry in self.entries]


def open_stream(data: DataConfig, seed: int, chosen: ChosenEncoder) -> TrainingStream:
    """The stream of data.train.

    Raises:
        DataError: the encoder must see all rows first; see also `TrainingStream`.
    """
    if chosen.depends_on_rows:
        raise DataError(
            "data.streaming is true, but this stage must see all rows before the first step (the classes it learns).",
            "Set data.streaming to false.",
        )
    return TrainingStream(data, seed, chosen)


def _news(found: EncodedRecords, rejected: Sequence[Rejected]) -> News | None:
    reasons = Counter(item.reason for item in rejected)
    sentences = [f"train: {count:,} x left out: {reason}" for reason, count in reasons.most_common()]
    if found.report.truncated:
        sentences.append(
            f"train: {found.report.truncated:,} x cut to the cutoff, {found.report.truncated_tokens:,} tokens lost"
        )
    sentences += [f"train: {count:,} x {finding}" for finding, count in found.report.findings.most_common()]
    return News(tuple(map(rejected_line, rejected)), tuple(sentences)) if sentences else None


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of data.train, its format found out from its first rows.

    Args:
        remarks: what else a person should know of these rows, one sentence each.
    """

    entry: DataEntry
    stream: RowStream
    place: int
    seed: int
    format: str
    reason: str
    converts: tuple[Convert, ...]
    remarks: tuple[str, ...]

    @classmethod
    def open(cls, entry: DataEntry, place: int, seed: int, accepts: type) -> _Entry:
        stream = open_entry(entry)
        first = list(islice(stream.rows(), SAMPLED_ROWS))
        if not first:
            raise DataError(f"{stream.shown} holds no rows.", "Was the file written completely?")
        more_follow = len(first) == SAMPLED_ROWS
        chosen = formats_of(stream.entry, first, accepts, more_follow=more_follow)
        if chosen[0].record is not accepts:
            raise wrong_kind(entry, chosen[0], accepts)
        converts = tuple(choice.convert_all for choice in chosen)
        remarks = [
            f"{stream.shown}: none of the first {len(first):,} rows has the column {column!r}, which columns.{part} names"
            for part, column in absent_columns(stream.entry, first).items()
        ]
        if unused := chosen[0].unused(first):
            known_from = f" (of those in the first {len(first):,} rows)" if more_follow else ""
            remarks.append(f"{stream.shown}: columns not used: {', '.join(unused)}{known_from}")
        return cls(stream.entry, stream, place, seed, chosen[0].name, chosen[0].reason, converts, tuple(remarks))

    def rows(self) -> Iterator[tuple[RawRow, Convert]]:
        """The entry's rows; each gets its system prompt by its own number, as without streaming."""
        for number, row in self.stream.numbered():
            which = derive_seed(self.seed, "system", "train", self.place, number) % len(self.converts)
            yield row, self.converts[which]
