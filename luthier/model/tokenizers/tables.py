"""Stages and fertility of tokenizers as tables for a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    from luthier.model.tokenizers.inspection import Fertility, Stages, Window

PART_OF_NAME = re.compile(r"[^-/_ ]*[-/_ ]*")


@dataclass(frozen=True)
class Name:
    """A tokenizer's name, broken after `/`, `-`, `_` or a space where its column is too narrow."""

    name: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.cells import cell_len
        from rich.measure import Measurement

        return Measurement(max(map(cell_len, PART_OF_NAME.findall(self.name))), cell_len(self.name))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Text]:
        from rich.cells import cell_len
        from rich.text import Text

        lines = [""]
        for part in PART_OF_NAME.findall(self.name):
            if lines[-1] and cell_len((lines[-1] + part).rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")


def stage_table(columns: Sequence[Stages]) -> Table:
    """The stages as rows, a tokenizer a column."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    table.add_column("stage", no_wrap=True)
    for stages in columns:
        table.add_column(Name(stages.tokenizer), overflow="fold")
    for title, cell in STAGE_ROWS.items():
        cells = [cell(stages) for stages in columns]
        if any(cells):
            table.add_row(title, *(Text(value) for value in cells))
    return table


def joined(values: Iterable[object]) -> str:
    return " | ".join(map(str, values))


def pre_tokens_of(stages: Stages) -> str:
    parts = (joined(f"{piece.text} {piece.start}:{piece.end}" for piece in part) for part in stages.pre_tokens)
    return "\n".join(parts)


def overflow_of(stages: Stages) -> str:
    return "\n".join(joined(window.tokens) for window in stages.overflowing)


def of_window(take: Callable[[Window], Iterable[object]]) -> Callable[[Stages], str]:
    return lambda stages: joined(take(stages.window))


STAGE_ROWS: Mapping[str, Callable[[Any], str]] = {
    "normalized": lambda stages: "\n".join(stages.normalized),
    "pre-tokens": pre_tokens_of,
    "tokens": of_window(lambda window: window.tokens),
    "their text": of_window(lambda window: window.pieces),
    "offsets": of_window(lambda window: (f"{start}:{end}" for start, end in window.offsets)),
    "ids": of_window(lambda window: window.ids),
    "type ids": of_window(lambda window: window.type_ids),
    "special": of_window(lambda window: window.special_tokens_mask),
    "attention": of_window(lambda window: window.attention_mask),
    "overflowing": overflow_of,
    "decoded": lambda stages: stages.decoded,
    "count": lambda stages: f"{len(stages.window.ids)} tokens, {stages.unknown} unknown",
}


def fertility_table(name: str, rows: Sequence[Fertility]) -> Table:
    """What a file costs, a tokenizer a row."""
    from rich.table import Table
    from rich.text import Text

    first = rows[0]
    title = f"{name}: {first.texts:,} texts, {first.characters:,} characters, {first.words:,} words"
    # in a terminal of 80 columns numbers stay whole, and names of 18 letters
    table = Table(title=Text(title), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("tokenizer", min_width=len("tokenizer"))
    for heading in (
        "known\ntokens",
        "tokens",
        "characters\nper\ntoken",
        "bytes\nper\ntoken",
        "tokens\nper\nword",
        "unknown",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        rates = row.as_dict()
        ratios = [rates[key] for key in ("characters_per_token", "bytes_per_token", "tokens_per_word")]
        shown = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        unknown = "-" if rates["unknown_share"] is None else f"{rates['unknown_share']:.2%}"
        table.add_row(Name(row.tokenizer), f"{row.vocabulary:,}", f"{row.tokens:,}", *shown, unknown)
    return table
