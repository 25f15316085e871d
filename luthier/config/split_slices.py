"""How a part of the rows is named: a share, a count, or a split and slice of a data set in Hugging Face's notation
(`train`, `train[:70%]`, `train[10:200]`, `[70%:]`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_BOUND = r"-?\d+(?:\.\d+)?%|-?\d+"
_FORM = re.compile(rf"(?P<name>[\w.-]+)?(?P<slice>\[(?P<start>{_BOUND})?:(?P<stop>{_BOUND})?\])?")


@dataclass(frozen=True, slots=True)
class SplitSlice:
    """A split's name, None where none is given, and the bounds of a slice as they were written."""

    name: str | None
    start: str | None
    stop: str | None

    @classmethod
    def parse(cls, text: str) -> SplitSlice:
        """Read the notation.

        Raises:
            ValueError: it is something else, or a percentage beyond 100.
        """
        found = _FORM.fullmatch(text.replace(" ", ""))
        if not text.strip() or found is None:
            raise ValueError(
                f"must be a split, a slice or both, such as train[:70%], train[10:200] or [70%:], found {text!r}"
            )
        for bound in (found["start"], found["stop"]):
            if bound and bound.endswith("%") and abs(Fraction(bound[:-1])) > 100:
                raise ValueError(f"a percentage goes up to 100, found {bound} in {text!r}")
        return cls(found["name"], found["start"], found["stop"])

    @property
    def needs_count(self) -> bool:
        """Whether the number of all rows decides which ones it takes."""
        return any(
            bound is not None and (bound.endswith("%") or bound.startswith("-")) for bound in (self.start, self.stop)
        )

    def rows(self, count: int) -> range:
        """The indices of `count` rows that the slice takes.

        A percentage is that share of the rows, rounded to the nearest (a half to the even), as `datasets` does: slices
        that meet at a bound are disjoint and leave nothing out. A negative bound counts from the end.

        Raises:
            ValueError: a bound beyond the rows, or nothing between the bounds.
        """
        start = 0 if self.start is None else _index(self.start, count)
        stop = count if self.stop is None else _index(self.stop, count)
        if start >= stop:
            raise ValueError(f"takes none of the {count:,} rows")
        return range(start, stop)


def _index(bound: str, count: int) -> int:
    index = round(Fraction(bound[:-1]) * count / 100) if bound.endswith("%") else int(bound)
    if abs(index) > count:
        raise ValueError(f"reaches to row {bound}, but there are only {count:,} rows")
    return index + count if bound.startswith("-") else index


def checked_split(text: str) -> str:
    """`text` if it is a split or a slice.

    Raises:
        ValueError: it is neither.
    """
    SplitSlice.parse(text)
    return text


def split_number(value: Any) -> Any:
    """A share or a count, also where it is written as text ("0.1")."""
    number = float(value)
    if 0 < number < 1:
        return number
    if not number >= 1 or not number.is_integer() or (isinstance(value, float) and number == 1):
        raise ValueError(f"must be a share between 0 and 1, a count of rows, or files, found {value!r}")
    return int(number)


def split_kind(value: Any) -> str:
    """Which branch of `Split` a value belongs to, so that only that branch reports problems."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return "<entries>"
        return "<number>"
    return "<number>" if isinstance(value, (int, float)) else "<entries>"
