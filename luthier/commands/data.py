"""`luthier data show`: rows as the model sees them, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands.data_setup import open_data
from luthier.data.examples import Encoded, TokenizedExample
from luthier.data.preparing import ChosenEncoder, choose_and_load
from luthier.data.preview import CLOSE, OPEN, coloured, example_as_dict, spans_of
from luthier.data.records import Record
from luthier.data.report import SourceReport
from luthier.foundation.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

LEGEND = f"{OPEN}between brackets (green){CLOSE}: trained; the rest is context; special tokens are magenta."


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
    rows: int = 3,
    split: str = "train",
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> ShownRows:
    """Print the first rows of a split as the model sees them, the trained tokens coloured.

    Args:
        source: a config file or mapping, or None for settings alone.
        rows: how many.
        split: train, validation or test.
        console: where to print; standard output by default.

    Raises:
        UserError: the config, model or data can't be used; no such split.
    """
    from rich.console import Console

    opened = open_data(source, overrides, trust_remote_code=trust_remote_code)
    tokenizer, stage = opened.tokenizer, opened.stage
    chosen, loaded = choose_and_load(opened.config, tokenizer, stage.encoder, stage.encoder_options, opened.renderer)
    if split not in loaded.splits:
        raise DataError(
            f"there is no {split!r} data in this config; it has: {', '.join(loaded.splits)}.",
            "Set data.validation or data.test, or show another split.",
        )
    encoded = _encode_first(loaded.splits[split], chosen, rows)
    examples = encoded.examples[:rows]
    left_out = [f"{origin}: longer than data.cutoff_length" for origin in encoded.dropped]
    left_out += [f"{item.origin}: {item.reason}" for item in encoded.rejected]
    shown = ShownRows(
        split=split,
        template=chosen.renderer.name if chosen.renderer is not None else None,
        sources=tuple(report for report in loaded.report.sources if report.split == split),
        examples=tuple(example_as_dict(example, tokenizer) for example in examples),
        left_out=tuple(left_out),
        notes=opened.notes,
    )
    _print(shown, examples, tokenizer, chosen, console or Console(highlight=False))
    return shown


def _encode_first(records: Sequence[Record], chosen: ChosenEncoder, wanted: int) -> Encoded:
    """Enough of the first records for `wanted` examples; the whole of a large file need not be tokenized."""
    count = wanted + 1
    while True:
        encoded = chosen.encode(records[:count])
        # one more than wanted: the last block of documents may be unfinished
        if len(encoded.examples) > wanted or count >= len(records):
            return encoded
        count *= 4


def _print(
    shown: ShownRows,
    examples: Sequence[TokenizedExample],
    tokenizer: PreTrainedTokenizerBase,
    chosen: ChosenEncoder,
    console: Console,
) -> None:
    for source in shown.sources:
        console.print(
            f"{source.path}: {source.kept:,} rows, format {source.format} ({source.reason})",
            markup=False,
            soft_wrap=True,
        )
    if shown.template is not None:
        console.print(f"template: {shown.template}", markup=False, soft_wrap=True)
    for note in shown.notes:
        console.print(note, markup=False, soft_wrap=True)
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
    classes = getattr(chosen.options, "labels", ())
    for name, value in example.extras.items():
        meaning = f" ({classes[int(value)]})" if name == "label" and classes else ""
        parts.append(f"{name} {value:g}{meaning}")
    return ", ".join(parts)
