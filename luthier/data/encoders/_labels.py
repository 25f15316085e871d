"""Labels as numbers: what the encoders of labelled texts share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luthier.data.records import Labelled, Record, Rejected, RowError

SHOWN_CLASSES = 10


def label_names(records: Sequence[Record]) -> tuple[str, ...]:
    """The class names of the training data, sorted, numbers by size; the same in every split."""
    names = {name for record in records if isinstance(record, Labelled) for name in names_of(record)}
    numbers = {name: number for name in names if (number := as_number(name)) is not None}
    return tuple(sorted(names, key=lambda name: (name not in numbers, numbers.get(name, 0.0), name)))


def names_of(record: Labelled) -> tuple[str, ...]:
    """A record's class names: one, several, or none."""
    return record.label if isinstance(record.label, tuple) else (str(record.label),)


def as_number(name: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def class_numbers(record: Labelled, labels: Sequence[str]) -> list[int]:
    """The numbers of a record's classes.

    Raises:
        RowError: one that is no class.
    """
    found = []
    for name in names_of(record):
        if name not in labels:
            shown = ", ".join(labels[:SHOWN_CLASSES])
            raise RowError(f"has the label {name!r}, which is none of the classes: {shown}.")
        found.append(labels.index(name))
    return found


def only_class(record: Labelled, labels: Sequence[str]) -> int:
    """The number of a record's class.

    Raises:
        RowError: none, several, or one that is no class.
    """
    numbers = class_numbers(record, labels)
    if len(numbers) != 1:
        raise RowError(
            f"has {len(numbers)} labels, and the stage learns one for each row; set stage.multi_label for several."
        )
    return numbers[0]


def rejected(record: Labelled, error: RowError) -> Rejected:
    """A record left out."""
    values = {"text": record.text, "text_pair": record.text_pair, "label": record.label}
    return Rejected(record.origin, str(error), values)
