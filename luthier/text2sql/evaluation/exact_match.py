"""Exact set match as Spider defines it: clause by clause, values and DISTINCT aside, foreign keys taken as one column.

Yu et al., "Spider" (EMNLP 2018), section 5, and the script that its authors publish. What that script does beyond the paper is
kept, for published numbers have it in them: columns are mapped by the tables of the outermost FROM only; a query inside a
condition is compared as it stands, values aside; one in FROM with its values, too; HAVING counts only beside GROUP BY;
grouping columns are compared by name without their table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from luthier.text2sql.evaluation.query import Column, Condition, Conditions, Expression, Query, Selected, conditions_of

PARTS = (
    "select",
    "select(no AGG)",
    "where",
    "where(no OP)",
    "group(no Having)",
    "group",
    "order",
    "and/or",
    "IUEN",
    "keywords",
)


@dataclass(frozen=True, slots=True)
class PartMatch:
    """How one part of two queries compares.

    Args:
        matched: 1 if the two are the same, else 0. The script's accuracy, recall and F1 of one item all have this value.
        predicted: whether the prediction has such a part: only then the item counts for the part's accuracy.
        labelled: whether the gold query has one: only then it counts for recall.
    """

    matched: int
    predicted: bool
    labelled: bool


@dataclass(frozen=True, slots=True)
class ExactMatch:
    """The verdict on one prediction, and its parts by the names in `PARTS`."""

    exact: bool
    parts: Mapping[str, PartMatch]


def compare(predicted: Query, gold: Query, same: Mapping[str, str]) -> ExactMatch:
    """Compare two queries on one database.

    Args:
        predicted: the empty query where the prediction can't be parsed.
        same: foreign keys, a column and the first that it stands for.

    Raises:
        TypeError: an AND or OR is missing between conditions of one, which the script can't compare.
    """
    return _compare(_comparable(predicted, same), _comparable(gold, same))


def _compare(predicted: Query, gold: Query) -> ExactMatch:
    parts = {
        "select": _bags(predicted.select, gold.select),
        "select(no AGG)": _bags(
            [item.expression for item in predicted.select], [item.expression for item in gold.select]
        ),
        "where": _bags(conditions_of(predicted.where), conditions_of(gold.where)),
        "where(no OP)": _bags(
            [condition.expression for condition in conditions_of(predicted.where)],
            [condition.expression for condition in conditions_of(gold.where)],
        ),
        "group(no Having)": _bags(_bare_names(predicted.group_by), _bare_names(gold.group_by)),
        "group": _group(predicted, gold),
        "order": _order(predicted, gold),
        "and/or": _connectors(predicted, gold),
        "IUEN": _set_operations(predicted, gold),
        "keywords": _bags(sorted(keywords(predicted)), sorted(keywords(gold))),
    }
    exact = all(part.matched for part in parts.values())
    return ExactMatch(exact and (not gold.tables or _same_bag(predicted.tables, gold.tables)), parts)


def _comparable(query: Query, same: Mapping[str, str]) -> Query:
    """Values and DISTINCT left out, and columns of the tables in FROM replaced by what they stand for."""
    own = {table for table in query.tables if isinstance(table, str)}
    mapping = {column: first for column, first in same.items() if column.partition(".")[0] in own}
    return _mapped(_without_values(query), mapping)


def _without_values(query: Query) -> Query:
    return replace(
        query,
        joins=_drop_values(query.joins),
        where=_drop_values(query.where),
        having=_drop_values(query.having),
        intersect=query.intersect and _without_values(query.intersect),
        union=query.union and _without_values(query.union),
        except_=query.except_ and _without_values(query.except_),
    )


def _drop_values(group: Conditions) -> Conditions:
    """Queries stay as values; what stands where AND or OR should stays whole."""
    dropped: list[Condition | str] = []
    for place, element in enumerate(group):
        if place % 2 == 0 and isinstance(element, Condition):
            value = _without_values(element.value) if isinstance(element.value, Query) else None
            upper = _without_values(element.upper) if isinstance(element.upper, Query) else None
            element = element._replace(value=value, upper=upper)
        dropped.append(element)
    return tuple(dropped)


def _mapped(query: Query, mapping: Mapping[str, str]) -> Query:
    def column(found: Column) -> Column:
        return found._replace(name=mapping.get(found.name, found.name), distinct=None)

    def expression(found: Expression) -> Expression:
        return found._replace(left=column(found.left), right=found.right and column(found.right))

    def conditions(group: Conditions) -> Conditions:
        return tuple(
            element._replace(expression=expression(element.expression))
            if place % 2 == 0 and isinstance(element, Condition)
            else element
            for place, element in enumerate(group)
        )

    return replace(
        query,
        distinct=None,
        select=tuple(Selected(item.aggregate, expression(item.expression)) for item in query.select),
        joins=conditions(query.joins),
        where=conditions(query.where),
        group_by=tuple(map(column, query.group_by)),
        having=conditions(query.having),
        order_by=tuple(map(expression, query.order_by)),
        # with the outer query's tables
        intersect=query.intersect and _mapped(query.intersect, mapping),
        union=query.union and _mapped(query.union, mapping),
        except_=query.except_ and _mapped(query.except_, mapping),
    )


def _same_bag(first: Sequence[object], second: Sequence[object]) -> bool:
    """Whether two sequences hold the same elements, each equally often."""
    return Counter(first) == Counter(second)


def _bags(predicted: Sequence[object], gold: Sequence[object]) -> PartMatch:
    return PartMatch(int(_same_bag(predicted, gold)), bool(predicted), bool(gold))


def _bare_names(columns: Sequence[Column]) -> list[str]:
    return [column.name.rpartition(".")[2] for column in columns]


def _group(predicted: Query, gold: Query) -> PartMatch:
    """GROUP BY in its order, with its HAVING."""
    has, wanted = bool(predicted.group_by), bool(gold.group_by)
    same = [column.name for column in predicted.group_by] == [column.name for column in gold.group_by]
    matched = has == wanted and (not has or (same and predicted.having == gold.having))
    return PartMatch(int(matched), has, wanted)


def _order(predicted: Query, gold: Query) -> PartMatch:
    """ORDER BY in its order, and whether a LIMIT goes with it."""
    matched = predicted.ordered == gold.ordered
    if gold.ordered:
        matched = (
            (predicted.direction, predicted.order_by) == (gold.direction, gold.order_by)
            and predicted.limited == gold.limited
        )  # fmt: skip
    return PartMatch(int(matched), predicted.ordered, gold.ordered)


def _connectors(predicted: Query, gold: Query) -> PartMatch:
    found, wanted = set(predicted.where[1::2]), set(gold.where[1::2])
    if found == wanted:
        return PartMatch(1, True, True)  # also where there are none
    return PartMatch(0, bool(wanted), bool(found))  # the script has the two the other way round


def _set_operations(predicted: Query, gold: Query) -> PartMatch:
    pairs = [
        (predicted.intersect, gold.intersect),
        (predicted.except_, gold.except_),
        (predicted.union, gold.union),
    ]
    found, wanted = sum(first is not None for first, _ in pairs), sum(second is not None for _, second in pairs)
    same = sum(_compare(first, second).exact for first, second in pairs if first is not None and second is not None)
    return PartMatch(int(found == wanted == same), bool(found), bool(wanted))


def keywords(query: Query) -> set[str]:
    """The keywords that the script looks for."""
    conditions = query.conditions()
    there = {
        "where": query.where,
        "group": query.group_by,
        "having": query.having,
        "order": query.ordered,
        query.direction: query.ordered,
        "limit": query.limited,
        "except": query.except_,
        "union": query.union,
        "intersect": query.intersect,
        "or": "or" in query.connectors(),
        "not": any(condition.negated for condition in conditions),
        "in": any(condition.operator == "in" for condition in conditions),
        "like": any(condition.operator == "like" for condition in conditions),
    }
    return {word for word, found in there.items() if found}
