"""`luthier data show`: rows as the model sees them, before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands.data_setup import OpenedData, open_data
from luthier.data.examples import Encoded, TokenizedExample
from luthier.data.preparing import (
    ChosenEncoder,
    LoadedRecords,
    choose_and_load,
    choose_encoder,
    rows_of_training_files,
)
from luthier.data.preview import CLOSE, OPEN, coloured, example_as_dict, spans_of
from luthier.data.records import Document, Record
from luthier.data.report import SourceReport
from luthier.data.rows_page import PageHead, rows_page
from luthier.data.training_stream import open_stream
from luthier.foundation.errors import DataError
from luthier.foundation.files import need_place, write_text

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

LEGEND = f"{OPEN}between brackets (green){CLOSE}: trained; the rest is context; special tokens are magenta."

ROWS_PRINTED = 3
ROWS_OF_A_PAGE = 500
ROWS_OF_A_STREAM = 2000  # which are read to show some of them


@dataclass(frozen=True)
class ShownRows:
    """What was shown.

    Args:
        split: train, validation or test.
        template: the chat template's name, None for plain text.
        sources: the split's files.
        examples: as plain values, see `luthier.data.preview.example_as_dict`.
        left_out: rows that were not shown, each with the reason.
        notes: what was mended in the tokenizer.
    """

    split: str
    template: str | None
    sources: tuple[SourceReport, ...]
    examples: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "template": self.template,
            "sources": [source.as_dict() for source in self.sources],
            "examples": list(self.examples),
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }


def show(
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    rows: int | None = None,
    split: str = "train",
    page: str | Path | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> ShownRows:
    """Print the first rows of a split as the model sees them, the trained tokens coloured; or write them as HTML.

    Args:
        source: a config file or mapping, or None for settings alone.
        rows: how many; unless given 3, or 500 on a page.
        split: train, validation or test.
        page: the HTML file to write instead of printing the rows.
        console: where to print; standard output by default.

    Raises:
        UserError: the config, model or data can't be used; no such split; the page can't be written.
    """
    from rich.console import Console

    if page is not None:
        page = need_place(Path(page).expanduser(), "--html")
    opened = open_data(source, overrides, trust_remote_code=trust_remote_code)
    tokenizer, stage = opened.tokenizer, opened.stage
    chosen, loaded = choose_and_load(opened.config, tokenizer, stage.encoder, stage.encoder_options, opened.renderer)
    notes = (*opened.notes, *_stream_in(opened, chosen, loaded))
    if split not in loaded.splits:
        raise DataError(
            f"there is no {split!r} data in this config; it has: {', '.join(loaded.splits)}.",
            "Set data.validation or data.test, or show another split.",
        )
    wanted = rows or (ROWS_OF_A_PAGE if page is not None else ROWS_PRINTED)
    encoded, records = _encode_first(loaded.splits[split], chosen, wanted)
    examples = encoded.examples[:wanted]
    sources = tuple(report for report in loaded.report.sources if report.split == split)
    shown = ShownRows(
        split=split,
        template=chosen.renderer.name if chosen.renderer is not None else None,
        sources=sources,
        examples=tuple(example_as_dict(example, tokenizer) for example in examples),
        left_out=_left_out(encoded, sources),
        notes=notes,
    )
    printer = console or Console(highlight=False)
    _print_head(shown, printer)
    if page is None:
        _print_rows(shown, examples, tokenizer, chosen, printer)
        return shown
    whole = _untruncated(opened, chosen, records, rows_of_training_files(opened.config.data, loaded.splits))
    head = _page_head(shown, opened, chosen, examples, len(loaded.splits[split]))
    known = whole if len(whole) == len(encoded.examples) else ()
    labels = partial(_labels, chosen=chosen)
    write_text(page, rows_page(head, examples, tokenizer, untruncated=known, labels_of=labels))
    printer.print(f"{len(examples):,} rows written: {page}", markup=False, soft_wrap=True)
    return shown


def _stream_in(opened: OpenedData, chosen: ChosenEncoder, loaded: LoadedRecords) -> list[str]:
    """Put the first rows of streamed training data among those that were read; returns what a person should know."""
    data = opened.config.data
    if not data.streaming:
        return []
    stream = open_stream(data, opened.config.data_seed(), chosen)
    loaded.splits["train"] = stream.first_records(ROWS_OF_A_STREAM)
    return stream.remarks()


def _encode_first(records: Sequence[Record], chosen: ChosenEncoder, wanted: int) -> tuple[Encoded, Sequence[Record]]:
    """Enough of the first records for `wanted` examples, and those; the whole of a large file need not be tokenized."""
    count = wanted + 1
    while True:
        encoded = chosen.encode(records[:count])
        # one more than wanted: the last block of documents may be unfinished
        if len(encoded.examples) > wanted or count >= len(records):
            return encoded, records[:count]
        count *= 4


def _left_out(encoded: Encoded, sources: Sequence[SourceReport]) -> tuple[str, ...]:
    """The rows that are not shown, each with the reason; of those that reading rejected, how many for which."""
    long = [f"{origin}: longer than data.cutoff_length" for origin in encoded.dropped]
    refused = [f"{item.origin}: {item.reason}" for item in encoded.rejected]
    counts = [f"{count:,} x {reason}" for source in sources for reason, count in source.rejected.most_common()]
    return (*long, *refused, *counts)


def _untruncated(
    opened: OpenedData, chosen: ChosenEncoder, records: Sequence[Record], train: Sequence[Record]
) -> Sequence[TokenizedExample]:
    """The records' examples as they would be without a cutoff; none where cutting makes other examples of them."""
    data, stage = opened.config.data, opened.stage
    if chosen.record is Document or not data.over_length.startswith("truncate"):
        return ()
    unlimited = data.model_copy(
        update={"cutoff_length": sys.maxsize, "max_source_length": None, "max_target_length": None}
    )
    rows = train if chosen.depends_on_rows else ()
    encoder = choose_encoder(unlimited, opened.tokenizer, stage.encoder, stage.encoder_options, opened.renderer, rows)
    return encoder.encode(records).examples


def _page_head(
    shown: ShownRows, opened: OpenedData, chosen: ChosenEncoder, examples: Sequence[TokenizedExample], records: int
) -> PageHead:
    """What stands above a page's rows."""
    config = opened.config
    tokens, targets = (sum(getattr(example, name) for example in examples) for name in ("tokens", "targets"))
    cut = sum(example.truncated for example in examples)
    both, each = (", both answers", " each") if chosen.sequence_names else ("", "")
    figures = [
        (f"{len(examples):,}", f"rows of {records:,}" if chosen.record is not Document else "blocks of documents"),
        (f"{tokens:,}", "tokens"),
        (f"{tokens / max(len(examples), 1):,.0f}", "tokens a row"),
        (f"{max((example.tokens for example in examples), default=0):,}", f"tokens in the longest{both}"),
        (f"{cut:,}", f"cut at {config.data.cutoff_length:,}{each}"),
    ]
    if chosen.trains_tokens:
        figures.insert(2, (f"{targets / max(tokens, 1):.1%}", "of the tokens trained"))
    about = [config.model.name, f"stage {config.stage.name}", f"{shown.split} data"]
    about += [f"template: {shown.template}"] if shown.template else []
    sources = [f"{source.path}: {source.kept:,} rows, {source.format} ({source.reason})" for source in shown.sources]
    return PageHead(
        title=f"{', '.join(Path(source.path).name for source in shown.sources[:3])}, as the model sees it",
        about=about,
        figures=figures,
        notes=[*sources, *(f"tokenizer: {note}" for note in shown.notes)],
        left_out=shown.left_out,
        names=chosen.sequence_names,
        trains_tokens=chosen.trains_tokens,
    )


def _print_head(shown: ShownRows, console: Console) -> None:
    for source in shown.sources:
        rejected = sum(source.rejected.values())
        rows = (
            f"{source.kept:,} of {source.sampled:,} rows, {rejected:,} rejected"
            if rejected
            else f"{source.kept:,} rows"
        )
        console.print(
            f"{source.path}: {rows}, format {source.format} ({source.reason})",
            markup=False,
            soft_wrap=True,
        )
    if shown.template is not None:
        console.print(f"template: {shown.template}", markup=False, soft_wrap=True)
    for note in shown.notes:
        console.print(note, markup=False, soft_wrap=True)


def _print_rows(
    shown: ShownRows,
    examples: Sequence[TokenizedExample],
    tokenizer: PreTrainedTokenizerBase,
    chosen: ChosenEncoder,
    console: Console,
) -> None:
    console.print(LEGEND, markup=False, soft_wrap=True)
    for example in examples:
        console.rule(f"{example.origin}", align="left")
        console.print(_counts(example, chosen), markup=False, soft_wrap=True)
        for number, spans in enumerate(spans_of(example, tokenizer), 1):
            if chosen.sequence_names:
                console.print(f"-- {chosen.sequence_names[number - 1]}", markup=False)
            elif len(example.sequences) > 1:
                console.print(
                    f"-- document {number} of {len(example.sequences)} (they don't see each other)", markup=False
                )
            console.print(coloured(spans, tokenizer), soft_wrap=True)
    for line in shown.left_out:
        console.print(f"left out: {line}", markup=False, soft_wrap=True)


def _counts(example: TokenizedExample, chosen: ChosenEncoder) -> str:
    """An example's tokens, targets and numbers for the stage, in a line."""
    parts = [f"{example.tokens:,} tokens"]
    if example.truncated:
        parts.append(f"cut from {example.untruncated_length:,}")
    if chosen.trains_tokens:
        nothing = "; NOTHING here is trained: it will be left out" if not example.targets else ""
        parts.append(f"{example.targets:,} targets{nothing}")
    return ", ".join([*parts, *_labels(example, chosen)])


def _labels(example: TokenizedExample, chosen: ChosenEncoder) -> list[str]:
    """An example's numbers for the stage; a label with its class."""
    found = []
    classes = getattr(chosen.options, "labels", ())
    for name, value in example.extras.items():
        number = f"{value:g}"
        meaning = classes[int(value)] if name == "label" and classes else number
        found.append(f"{name} {number}" + (f" ({meaning})" if meaning != number else ""))
    return found
