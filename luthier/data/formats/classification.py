"""Classification: a text, or two, and a label, or a list of labels; in a table without a header, the last column is the
label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import FormatOptions, described, is_finite, text_of, value_of
from luthier.data.records import Labelled, RawRow, RowError

RECORD = Labelled
# what well-known sets call their texts (GLUE, SNLI, MultiNLI, QQP)
TEXTS: tuple[tuple[str, ...], ...] = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("text",),
    ("sentence",),
)


class Options(FormatOptions):
    """Columns of a labelled text."""

    PARTS: ClassVar[Mapping[str, str]] = {"text": "text", "text_pair": "text_pair", "label": "label"}
    REQUIRED: ClassVar[tuple[str, ...]] = ("text", "label")
    TAKES_SYSTEM: ClassVar[bool] = False
    name: Literal["classification"] = "classification"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has a label and a text, or two or three columns without names."""
    names = sorted(map(str, sample))
    if not options.columns and names in (["0", "1"], ["0", "1", "2"]):
        label = names[-1]
        columns = dict(zip(("text", "text_pair") if label == "2" else ("text",), names, strict=False))
        if all(isinstance(sample.get(column), str) for column in columns.values()):
            return _with(options, {**columns, "label": label}), "a table without a header; its last column is the label"
        return None
    label = options.column("label")
    if label not in sample and "label" not in options.columns:
        label = "labels"
    if label not in sample or not _may_be_label(sample[label]):
        return None
    if "text" in options.columns:
        candidates: tuple[tuple[str, ...], ...] = ((options.column("text"), options.column("text_pair")),)
        candidates += ((options.column("text"),),)
    else:
        candidates = TEXTS
    for texts in candidates:
        if all(isinstance(sample.get(column), str) for column in texts):
            columns = {**dict(zip(("text", "text_pair"), texts, strict=False)), "label": label}
            return _with(options, columns), f"has the columns {', '.join(texts)} and {label}"
    return None


def _may_be_label(value: Any) -> bool:
    """A value, or a list of them; longer structures are something else."""
    return not isinstance(value, Mapping) and not (
        isinstance(value, list) and any(isinstance(item, (list, Mapping)) for item in value)
    )


def _with(options: Options, columns: Mapping[str, str]) -> Options:
    return options.model_copy(update={"columns": {**columns, **options.columns}})


def build(options: Options) -> Callable[[RawRow], Labelled]:
    """A function from a row to a labelled text, which raises `RowError`."""

    def convert(row: RawRow) -> Labelled:
        text = text_of(row, options, "text")
        if not text.strip():
            raise RowError(f"the field {options.column('text')!r} is empty.")
        second = None
        if value_of(row, options, "text_pair") is not None:
            second = text_of(row, options, "text_pair")
        return Labelled(text, _label(row, options), row.origin, second)

    return convert


def _label(row: RawRow, options: Options) -> str | int | float | tuple[str, ...]:
    value, column = value_of(row, options, "label"), options.column("label")
    if isinstance(value, list):
        return tuple(dict.fromkeys(str(_one_label(item, f"an item of the field {column!r}")) for item in value))
    return _one_label(value, f"the field {column!r}")


def _one_label(value: Any, where: str) -> str | int | float:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if is_finite(value):
        return value
    raise RowError(f"{where} is {described(value)}; it must be a class name or a number.")
