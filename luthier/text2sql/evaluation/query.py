"""A parsed query, as far as exact set match looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

AGGREGATES = ("max", "min", "count", "sum", "avg")
ARITHMETIC = ("-", "+", "*", "/")
COMPARISONS = ("not", "between", "=", ">", "<", ">=", "<=", "!=", "in", "like", "is", "exists")


class Column(NamedTuple):
    """`count(DISTINCT singer.name)`. `name` is table.column in small letters, or `*`; `distinct` None: not looked at."""

    aggregate: str
    name: str
    distinct: bool | None


class Expression(NamedTuple):
    """A column, or two with an operator between."""

    operator: str
    left: Column
    right: Column | None


class Selected(NamedTuple):
    """An item of SELECT; the aggregate stands here, not at its column."""

    aggregate: str
    expression: Expression


class Condition(NamedTuple):
    """`expression [NOT] operator value [AND upper]`; a value is a number, a quoted text, a column or a query."""

    negated: bool
    operator: str
    expression: Expression
    value: float | str | Column | Query | None
    upper: float | str | Column | Query | None


Conditions = tuple[Condition | str, ...]
"""Conditions with `and` or `or` between them: as the official parser reads them, flat, and none where it found none."""


@dataclass(frozen=True)
class Query:
    """One SELECT with what follows it. The empty one stands for a prediction that can't be parsed."""

    distinct: bool | None = False
    select: tuple[Selected, ...] = ()
    tables: tuple[str | Query, ...] = ()
    joins: Conditions = ()
    where: Conditions = ()
    group_by: tuple[Column, ...] = ()
    having: Conditions = ()
    direction: Literal["", "asc", "desc"] = ""
    order_by: tuple[Expression, ...] = ()
    limited: bool = False
    intersect: Query | None = None
    union: Query | None = None
    except_: Query | None = None

    @property
    def ordered(self) -> bool:
        return self.direction != ""

    def conditions(self) -> list[Condition]:
        """All of FROM, WHERE and HAVING, from left to right.

        Raises:
            TypeError: as `conditions_of`.
        """
        return [*conditions_of(self.joins), *conditions_of(self.where), *conditions_of(self.having)]

    def connectors(self) -> list[Condition | str]:
        """What stands between them."""
        return [*self.joins[1::2], *self.where[1::2], *self.having[1::2]]


def conditions_of(group: Conditions) -> list[Condition]:
    """Every other element.

    Raises:
        TypeError: a connector is missing between two, so that others stand in the places of conditions.
    """
    found: list[Condition] = []
    for element in group[::2]:
        if isinstance(element, str):
            raise TypeError("AND or OR is missing between two conditions")
        found.append(element)
    return found
