"""How hard a gold query is, by what it is made of (the script of Spider's authors)."""

from __future__ import annotations

from luthier.text2sql.evaluation.query import Query, conditions_of

LEVELS = ("easy", "medium", "hard", "extra")


def hardness(query: Query) -> str:
    """easy, medium, hard or extra."""
    parts, nested, others = _parts(query), _nested(query), _others(query)
    if parts <= 1 and others == 0 and nested == 0:
        return "easy"
    if nested == 0 and ((others <= 2 and parts <= 1) or (parts <= 2 and others < 2)):
        return "medium"
    if (
        (others > 2 and parts <= 2 and nested == 0)
        or (2 < parts <= 3 and others <= 2 and nested == 0)
        or (parts <= 1 and others == 0 and nested <= 1)
    ):
        return "hard"
    return "extra"


def _parts(query: Query) -> int:
    """WHERE, GROUP BY, ORDER BY, LIMIT, each JOIN, each OR, each LIKE."""
    clauses = (bool(query.where), bool(query.group_by), query.ordered, query.limited)
    likes = sum(condition.operator == "like" for condition in query.conditions())
    return sum(clauses) + max(len(query.tables) - 1, 0) + query.connectors().count("or") + likes


def _nested(query: Query) -> int:
    """Queries in conditions, and EXCEPT, UNION, INTERSECT."""
    values = [value for condition in query.conditions() for value in (condition.value, condition.upper)]
    operands = (query.intersect, query.except_, query.union)
    return sum(isinstance(value, Query) for value in values) + sum(operand is not None for operand in operands)


def _others(query: Query) -> int:
    """More than one aggregate, selected column, condition, grouping column: one for each.

    The script finds aggregates by the first field of whatever it looks at: a NOT in WHERE or HAVING counts as one, and
    an AND or OR in HAVING does.
    """
    sorting = [column for expression in query.order_by for column in (expression.left, expression.right) if column]
    aggregates = (
        sum(bool(item.aggregate) for item in query.select)
        + sum(condition.negated for condition in conditions_of(query.where))
        + sum(bool(column.aggregate) for column in (*query.group_by, *sorting))
        + sum(isinstance(element, str) or element.negated for element in query.having)
    )
    return sum((aggregates > 1, len(query.select) > 1, len(query.where) > 1, len(query.group_by) > 1))
