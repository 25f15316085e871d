"""Preference pairs as TRL and the chat API write them: a prompt, and the answers chosen and rejected.

The prompt is a text or a list of turns, in `prompt` or `messages`; without one, chosen and rejected are whole
conversations, and the turns they begin with alike are the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import value_of
from luthier.data.formats._preferences import answers_of, has_answers, pair, prompt_of, shared_start
from luthier.data.layouts import OPENAI, Layout, TurnOptions
from luthier.data.records import Message, Pair, RawRow, RowError
from luthier.data.turns import AROUND, around, holds_turns

RECORD = Pair


class Options(TurnOptions):
    """Columns of a prompt and two answers."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "prompt": "prompt",
        "chosen": "chosen",
        "rejected": "rejected",
        **AROUND,
    }
    REQUIRED: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    NEEDS: ClassVar[str] = "chosen, rejected, and prompt or messages"
    LAYOUT: ClassVar[Layout] = OPENAI
    name: Literal["openai_pair"] = "openai_pair"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has two answers and a prompt, or two whole conversations."""
    if not has_answers(sample, options):
        return None
    layout = options.layout()
    keys = (layout.role_key, layout.content_key)
    answers = f"{options.column('chosen')} and {options.column('rejected')}"
    columns = [options.column("prompt")] if "prompt" in options.columns else ["prompt", "messages", "conversations"]
    for column in columns:
        value = sample.get(column)
        if (isinstance(value, str) and column == columns[0]) or holds_turns(value, *keys):
            chosen = options.model_copy(update={"columns": {**options.columns, "prompt": column}})
            return chosen, f"has the column {column}, and {answers}"
    others = {"instruction", "conversations"} & set(sample)
    if not others and all(holds_turns(sample[options.column(part)], *keys) for part in ("chosen", "rejected")):
        return options, f"the columns {answers} hold turns with {keys[0]} and {keys[1]}"
    return None


def build(options: Options) -> Callable[[RawRow], Pair]:
    """A function from a row to a pair, which raises `RowError`."""
    layout = options.layout()

    def convert(row: RawRow) -> Pair:
        chosen, rejected = answers_of(row, options, layout)
        start = shared_start(chosen, rejected)
        prompt = _prompt(row, options, layout)
        if prompt is None:
            prompt = chosen[:start]
            chosen, rejected = chosen[start:], rejected[start:]
        elif start and prompt == chosen[:start]:  # TRL's older data sets repeat the prompt in both answers
            chosen, rejected = chosen[start:], rejected[start:]
        if not prompt:
            raise RowError(
                f"has no {options.column('prompt')!r}, and {options.column('chosen')!r} and "
                f"{options.column('rejected')!r} begin with no turn in common."
            )
        return pair(
            prompt,
            chosen,
            rejected,
            row.origin,
            **around(row, options),
        )

    return convert


def _prompt(row: RawRow, options: Options, layout: Layout) -> list[Message] | None:
    """The prompt's turns, None where the row has none of its own."""
    value, column = value_of(row, options, "prompt"), options.column("prompt")
    return None if value is None else prompt_of(value, column, layout)
