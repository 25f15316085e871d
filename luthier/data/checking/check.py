"""Everything a data set is checked for, one step after the other: read, tokenize, look. Bad rows never stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from luthier.config.data_section import DataConfig, DataEntry
from luthier.config.plugins import FORMATS
from luthier.data.checking import answers, control_tokens, duplicates, languages, near_duplicates, privacy
from luthier.data.checking.findings import Hit
from luthier.data.checking.lengths import Lengths
from luthier.data.checking.report import CheckReport, SplitCheck
from luthier.data.checking.rows import RowTexts, texts_of
from luthier.data.detection import FormatError
from luthier.data.entries import LoadedEntry, load_entry
from luthier.data.examples import Encoded
from luthier.data.locating import locate
from luthier.data.piece_tokens import control_pattern
from luthier.data.preparing import (
    SPLITS,
    ChosenEncoder,
    LoadedRecords,
    choose_encoder,
    rows_of_training_files,
    split_rows,
)
from luthier.data.reading import read_files
from luthier.data.records import Document, Record, Rejected
from luthier.data.report import DataReport, SourceReport, SplitReport
from luthier.data.turns import NO_ASSISTANT_TURN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

ROWS_AT_ONCE = 1000
NO_FORMAT = "none"
# parts that hold an answer in formats without turns
ANSWERS = ("output", "completion")


class Bar(Protocol):
    """Shows how far a step has come."""

    def advance(self, amount: float = 1) -> None: ...


Progress = Callable[[str, int], AbstractContextManager[Bar]]
"""Opens a bar for a step with this many rows."""


@dataclass(slots=True)
class Checked:
    """What the steps have gathered so far."""

    tokenizer: PreTrainedTokenizerBase
    progress: Progress
    report: CheckReport
    rows: list[RowTexts] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)


def check_data(
    data: DataConfig,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    encoder: str,
    encoder_options: Mapping[str, Any],
    renderer: Renderer | None,
    *,
    wanted_languages: Sequence[str] = (),
    progress: Progress,
) -> CheckReport:
    """Check a config's data.

    Args:
        seed: decides which rows are held out and sampled, as in training.
        wanted_languages: ISO 639 codes of the languages rows may be in; empty for any.

    Raises:
        DataError: a file that is missing or can't be read at all; settings that contradict each other.
    """
    # a row that is too long stops training under `error`; here it is counted like one that is dropped
    measured = data.model_copy(update={"over_length": "drop"}) if data.over_length == "error" else data
    chosen = choose_encoder(measured, tokenizer, encoder, encoder_options, renderer)
    loaded, hits = read_rows(data, seed, chosen.record)
    if chosen.depends_on_rows:
        rows = rows_of_training_files(data, loaded.splits)
        chosen = choose_encoder(measured, tokenizer, encoder, encoder_options, chosen.renderer, rows)
    template = chosen.renderer.name if chosen.renderer is not None else None
    checked = Checked(tokenizer, progress, CheckReport(loaded.report.sources, template, loaded.rejected), hits=hits)
    for split, records in loaded.splits.items():
        _encode(checked, split, records, chosen, measured)
    _look(checked, wanted_languages)
    checked.report.take(checked.hits)
    return checked.report


def read_rows(data: DataConfig, seed: int, accepts: type) -> tuple[LoadedRecords, list[Hit]]:
    """Every row of every split, each once: before data.mix draws from them; and the rejected ones as hits.

    The rows of a file in no known format are all rejected.

    Raises:
        DataError: a file that is missing or can't be read at all, settings that fit none of its rows.
    """
    loaded = LoadedRecords({}, DataReport())
    hits: list[Hit] = []
    for name in SPLITS:
        asked = getattr(data, name)
        if isinstance(asked, list):
            entries = [_entry(entry, name, index, seed, accepts) for index, entry in enumerate(asked)]
            loaded.add(name, entries)
            for found in entries:
                hits += [Hit("rejected", name, item.origin, item.reason) for item in found.rejected]
                entry = found.located.entry  # with the columns that a registry names
                unanswered = [item for item in found.rejected if _unanswered(item, entry, found.report.format)]
                hits += [Hit("no_answer", name, item.origin, item.reason) for item in unanswered]
    shares = {
        name: getattr(data, name) for name in ("test", "validation") if isinstance(getattr(data, name), (int, float))
    }
    rows = loaded.splits["train"]
    if shares and rows:
        parts = split_rows(len(rows), shares, seed)
        loaded.splits.update({name: [rows[index] for index in indices] for name, indices in parts.items()})
    loaded.splits = {name: loaded.splits[name] for name in SPLITS if name in loaded.splits}
    return loaded, hits


def _entry(entry: DataEntry, split: str, index: int, seed: int, accepts: type) -> LoadedEntry:
    """An entry's records; all of its rows rejected where they are in no format, or in one for another stage."""
    try:
        return load_entry(entry, split, index, seed, accepts)
    except FormatError as error:
        located = locate(entry)
        rows = read_files(located)
        reason = f"{error.problem} {error.remedy}".strip()
        source = SourceReport(located.shown, split, NO_FORMAT, "see the rejected rows", (), len(rows), len(rows), 0, 0)
        source.rejected[reason] = len(rows)
        return LoadedEntry([], [Rejected(row.origin, reason, row.values) for row in rows], source, located)


def _unanswered(item: Rejected, entry: DataEntry, format_name: str) -> bool:
    """Whether a row was rejected for want of an answer: no assistant turn, or a required answer missing or null."""
    if NO_ASSISTANT_TURN in item.reason:
        return True
    required = FORMATS.load(format_name).Options.REQUIRED if format_name in FORMATS.names() else ()
    columns = [entry.columns.get(part, part) for part in ANSWERS if part in required]
    return any(column is None or item.values.get(column) is None for column in columns)


def _encode(checked: Checked, split: str, records: Sequence[Record], chosen: ChosenEncoder, data: DataConfig) -> None:
    """Tokenize a split, and take note of what became of its rows."""
    parts: list[SplitReport] = []
    counts: list[int] = []
    with checked.progress(f"tokenizing {split}", len(records)) as bar:
        # documents are joined across rows, so they go through the encoder at once
        size = ROWS_AT_ONCE if chosen.record is not Document else max(len(records), 1)
        for start in range(0, len(records), size):
            part = records[start : start + size]
            encoded = chosen.encode(part)
            parts.append(SplitReport.of(len(part), encoded, learns_labels=not chosen.trains_tokens)[0])
            counts += [record.tokens for record in encoded.lengths]
            checked.report.rejected.extend(encoded.rejected)
            checked.hits.extend(_encoding_hits(split, encoded, chosen))
            refused = {item.origin for item in encoded.rejected}
            checked.rows.extend(texts_of(record, split) for record in part if record.origin not in refused)
            bar.advance(len(part))
    checked.report.splits[split] = SplitCheck(
        SplitReport.joined(parts), Lengths.of(counts), data.cutoff_length, chosen.trains_tokens
    )


def _encoding_hits(split: str, encoded: Encoded, chosen: ChosenEncoder) -> Iterator[Hit]:
    """What tokenizing finds: `rejected`, `over_length`, `no_stop_token` and `untrained`."""
    for item in encoded.rejected:
        yield Hit("rejected", split, item.origin, item.reason)
    for record in encoded.lengths:
        if record.examples != 1:
            became = f"split into {record.examples} examples" if record.examples else "left out"
            yield Hit("over_length", split, record.origin, f"{record.tokens} tokens: {became}")
    unfinished = set(encoded.unfinished)
    for example in encoded.examples:
        if example.truncated:
            both = " (of both answers together)" if chosen.sequence_names else ""
            detail = f"{example.untruncated_length} tokens{both}, cut to {example.tokens}"
            yield Hit("over_length", split, example.origin, detail)
            if example.origin in unfinished:
                yield Hit("no_stop_token", split, example.origin, detail)
        if chosen.trains_tokens and not example.targets:
            cut = "all of its answer was cut away" if example.truncated else "no answer with a weight above 0"
            yield Hit("untrained", split, example.origin, cut)


def _look(checked: Checked, wanted_languages: Sequence[str]) -> None:
    """The findings about texts. What needs a missing package is not looked for, and the report says so."""
    report, rows, hits = checked.report, checked.rows, checked.hits
    hits.extend(Hit("mended", row.split, row.origin, note) for row in rows for note in row.notes)
    with checked.progress("looking at texts", len(rows)) as bar:
        control = control_pattern(checked.tokenizer)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            hits.extend([*answers.find(part), *privacy.find(part), *control_tokens.find(part, control)])
            bar.advance(len(part))
    hits.extend(duplicates.find(rows))
    leaked = {(hit.split, hit.origin) for hit in hits if hit.finding == "leakage"}
    with checked.progress("comparing rows", len(rows)) as bar, report.needing_extra("near_duplicates", "near_leakage"):
        near = near_duplicates.find(rows, bar.advance)
        # a row whose very question stands in the training data is told already
        hits.extend(hit for hit in near if hit.finding != "near_leakage" or (hit.split, hit.origin) not in leaked)
    with checked.progress("telling languages", len(rows)) as bar, report.needing_extra("other_language"):
        report.languages, others = languages.count(rows, wanted_languages, bar.advance)
        hits.extend(others)
    if not set(report.splits) & {"validation", "test"}:
        report.not_looked_for |= dict.fromkeys(("leakage", "near_leakage"), "there is no validation or test data")
    if not wanted_languages:
        report.not_looked_for.setdefault("other_language", "name the languages that rows may be in with --language")
