"""Self-instruct seed tasks: an instruction and `instances`, a list of inputs with their outputs, one record each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import FormatOptions, checked_text, fields_found, shown, text_of, value_of
from luthier.data.records import Conversation, Message, RawRow, RowError
from luthier.data.turns import conversation, holds_turns

RECORD = Conversation
# what self-instruct's own generator writes for an instance without input
NO_INPUT = "<noinput>"


class Options(FormatOptions):
    """Columns of a seed task."""

    PARTS: ClassVar[Mapping[str, str]] = {"instruction": "instruction", "instances": "instances"}
    REQUIRED: ClassVar[tuple[str, ...]] = ("instruction", "instances")
    name: Literal["self_instruct"] = "self_instruct"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has an instruction and a list of instances with outputs."""
    column = options.column("instances")
    if options.lacks(sample) or not holds_turns(sample.get(column), "output"):
        return None
    return options, f"the column {column} holds inputs and outputs for the column {options.column('instruction')}"


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to its one conversation, which raises `RowError`."""
    convert_all = build_all(options)

    def convert(row: RawRow) -> Conversation:
        found = convert_all(row)
        if len(found) > 1:
            raise RowError(
                f"the field {options.column('instances')!r} holds {len(found)} instances; write one row for each."
            )
        return found[0]

    return convert


def build_all(options: Options) -> Callable[[RawRow], list[Conversation]]:
    """A function from a row to a conversation for each instance, which raises `RowError`."""
    column = options.column("instances")

    def convert(row: RawRow) -> list[Conversation]:
        instruction = text_of(row, options, "instruction")
        instances = value_of(row, options, "instances")
        if not isinstance(instances, list) or not instances:
            raise RowError(f"the field {column!r} is {shown(instances)}, not a list of inputs and outputs.")
        found = []
        for index, instance in enumerate(instances):
            question, answer = _instance(instance, f"{column}[{index}]")
            question = "\n".join(part for part in (instruction, question) if part)
            turns = [Message("user", question), Message("assistant", answer)]
            found.append(conversation(turns, row.origin, default_system=options.system))
        return found

    return convert


def _instance(instance: Any, place: str) -> tuple[str, str]:
    if not isinstance(instance, Mapping):
        raise RowError(f"{place} is {type(instance).__name__}, not an object with 'input' and 'output'.")
    if "output" not in instance:
        raise RowError(f"{place} lacks 'output'; fields found: {fields_found(instance)}.")
    given = instance.get("input")
    question = "" if given is None else checked_text(given, f"{place}.input")
    return "" if question.strip() == NO_INPUT else question, checked_text(instance["output"], f"{place}.output")
