"""Judged answers for KTO: a conversation, or a prompt and its completion, and a label that says true or false."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import NOWHERE, fields_found, value_of
from luthier.data.formats._instructions import history_of, question_of
from luthier.data.formats._preferences import answer_of, is_judgement, judgement
from luthier.data.layouts import OPENAI, SHAREGPT, Layout, TurnOptions
from luthier.data.records import LabelledConversation, Message, RawRow, RowError
from luthier.data.turns import AROUND, around, conversation, holds_turns, turns_of

RECORD = LabelledConversation


class Options(TurnOptions):
    """Columns of a judged answer."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "messages": "messages",
        "prompt": "prompt",
        "completion": "completion",
        "label": "label",
        "input": NOWHERE,  # LLaMA-Factory's, read where they are named: beside a prompt that is text
        "history": NOWHERE,
        **AROUND,
    }
    REQUIRED: ClassVar[tuple[str, ...]] = ("label",)
    NEEDS: ClassVar[str] = "label (true or false), and messages, or prompt and completion"
    LAYOUT: ClassVar[Layout] = OPENAI
    name: Literal["kto"] = "kto"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has a label of true or false, and what it judges."""
    label = options.column("label")
    mapped = "label" in options.columns and sample.get(label) in (0, 1, "0", "1")
    if not (is_judgement(sample.get(label)) or mapped):
        return None
    columns = [options.column("messages")]
    if "messages" not in options.columns:
        columns.append("conversations")
    for column in columns:
        for layout in (options.layout(), SHAREGPT):
            if holds_turns(sample.get(column), layout.role_key, layout.content_key):
                tags = {"role_tag": layout.role_key, "content_tag": layout.content_key, **options.tags}
                changed = {"columns": {**options.columns, "messages": column}, "tags": tags}
                return options.model_copy(update=changed), f"the column {column} holds turns, and {label} judges them"
    prompt, completion = options.column("prompt"), options.column("completion")
    if prompt in sample and completion in sample:
        return options, f"has the columns {prompt} and {completion}, and {label} judges them"
    return None


def build(options: Options) -> Callable[[RawRow], LabelledConversation]:
    """A function from a row to a judged conversation, which raises `RowError`."""
    layout = _layout(options)

    def convert(row: RawRow) -> LabelledConversation:
        label = judgement(value_of(row, options, "label"), options.column("label"))
        checked = conversation(
            _turns(row, options, layout),
            row.origin,
            **around(row, options),
        )
        return LabelledConversation(checked.messages, label, row.origin, checked.notes, checked.tools)

    return convert


def _layout(options: Options) -> Layout:
    """ShareGPT's role names where the turns have its keys."""
    if options.tags.get("role_tag") != SHAREGPT.role_key:
        return options.layout()
    layout = options.layout()
    roles = {**SHAREGPT.roles, **layout.roles} if set(options.tags) <= {"role_tag", "content_tag"} else layout.roles
    return Layout(layout.role_key, layout.content_key, roles, layout.call_roles | SHAREGPT.call_roles)


def _turns(row: RawRow, options: Options, layout: Layout) -> list[Message]:
    values, column = value_of(row, options, "messages"), options.column("messages")
    if values is not None:
        return turns_of(values, column, layout)
    prompt, name = value_of(row, options, "prompt"), options.column("prompt")
    if prompt is None:
        lacking = f"has no {name!r}" if column == NOWHERE else f"has neither {column!r} nor {name!r}"
        raise RowError(f"{lacking}; fields found: {fields_found(row.values)}.")
    answer = answer_of(value_of(row, options, "completion"), options.column("completion"), layout)
    if not isinstance(prompt, list):
        return [*history_of(row, options), Message("user", question_of(row, options, "prompt")), *answer]
    for part in ("input", "history"):
        if value_of(row, options, part):
            raise RowError(
                f"the field {options.column(part)!r} stands beside {name!r}, which is a list of turns; one must go."
            )
    return turns_of(prompt, name, layout) + answer
