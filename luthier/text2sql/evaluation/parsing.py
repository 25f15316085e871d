"""Spider's subset of SQL, read as the official parser reads it.

Exact set match counts a prediction that this parser can't read as wrong, and what it skips is not compared. So its bounds are
part of the measure, and kept: tables have aliases only with AS, which hold in the whole query; no LEFT JOIN, no list of tables
after commas, no `<>`, no IN with several values, no alias after a query in FROM; of `a = b OR c = d` nothing after `b` is read;
and what follows the query is not looked at.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from luthier.text2sql.evaluation.query import (
    AGGREGATES,
    ARITHMETIC,
    COMPARISONS,
    Column,
    Condition,
    Conditions,
    Expression,
    Query,
    Selected,
)
from luthier.text2sql.evaluation.schemas import Tables
from luthier.text2sql.evaluation.tokens import UnreadableError, tokenize

CLAUSES = frozenset({"select", "from", "where", "group", "order", "limit", "intersect", "union", "except"})
JOINING = frozenset({"join", "on", "as"})
SET_OPERATIONS = ("intersect", "union", "except")


def parse(query: str, schema: Tables) -> Query:
    """A query on a database with these tables.

    Raises:
        UnreadableError: the official parser can't read it; says at which token.
    """
    tokens = tokenize(query)
    try:
        return _Parser(tokens, schema, _aliases(tokens, schema)).query()
    except RecursionError as error:
        raise UnreadableError("too many queries in one another") from error


def _aliases(tokens: list[str], schema: Tables) -> dict[str, str]:
    """What stands before and behind every AS, and the tables' own names."""
    names = {}
    for place, word in enumerate(tokens):
        if word != "as":
            continue
        if place + 1 == len(tokens):
            raise UnreadableError("nothing follows AS")
        names[tokens[place + 1]] = tokens[place - 1]
    for table in schema:
        if table in names:
            raise UnreadableError(f"the alias {table} is a table's name")
        names[table] = table
    return names


class _Parser:
    """Goes through the tokens from left to right. `tables` in its methods: where a column without a table is looked for."""

    def __init__(self, tokens: list[str], schema: Tables, aliases: dict[str, str]) -> None:
        self.tokens, self.schema, self.aliases = tokens, schema, aliases
        self.place = 0

    # tokens

    def at(self, *wanted: str) -> bool:
        """Whether one of these is next."""
        return self.place < len(self.tokens) and self.tokens[self.place] in wanted

    def peek(self) -> str:
        if self.place >= len(self.tokens):
            raise UnreadableError("the query ends too early")
        return self.tokens[self.place]

    def take(self) -> str:
        word = self.peek()
        self.place += 1
        return word

    def skip(self, wanted: str) -> bool:
        """Step over a word, if it is next."""
        found = self.at(wanted)
        self.place += found
        return found

    def expect(self, wanted: str) -> None:
        if self.take() != wanted:
            raise UnreadableError(f"expected {wanted}, found {self.tokens[self.place - 1]!r}")

    def more(self) -> bool:
        """Whether anything is left of the clause."""
        return self.place < len(self.tokens) and self.tokens[self.place] not in CLAUSES and not self.at(")", ";")

    # clauses

    def query(self) -> Query:
        start = self.place
        in_brackets = self.skip("(")
        beginning = self.place
        # FROM first, for its tables say where columns belong
        if "from" not in self.tokens[start:]:
            raise UnreadableError("there is no FROM")
        self.place = self.tokens.index("from", start) + 1
        sources, joins, tables = self.sources()
        end = self.place
        self.place = beginning
        distinct, select = self.select(tables)
        self.place = end
        where = self.conditions(tables) if self.skip("where") else ()
        group_by = self.group_by(tables)
        having = self.conditions(tables) if self.skip("having") else ()
        direction, order_by = self.order_by(tables)
        limited = self.limited()
        self.semicolons()
        if in_brackets:
            self.expect(")")
        self.semicolons()
        whole = Query(
            distinct, select, sources, joins, where, group_by, having, direction, order_by, limited
        )  # fmt: skip
        if not self.at(*SET_OPERATIONS):
            return whole
        operation = self.take()
        second = self.query()
        if operation == "intersect":
            return replace(whole, intersect=second)
        return replace(whole, union=second) if operation == "union" else replace(whole, except_=second)

    def sources(self) -> tuple[tuple[str | Query, ...], Conditions, list[str]]:
        sources: list[str | Query] = []
        joins: list[Condition | str] = []
        tables: list[str] = []
        while self.place < len(self.tokens):
            in_brackets = self.skip("(")
            if self.at("select"):
                sources.append(self.query())
            else:
                self.skip("join")
                table = self.table()
                sources.append(table)
                tables.append(table)
            if self.skip("on"):
                found = self.conditions(tables)
                joins += ["and", *found] if joins else found
            if in_brackets:
                self.expect(")")
            if self.place < len(self.tokens) and not self.more():
                break
        return tuple(sources), tuple(joins), tables

    def table(self) -> str:
        name = self.named(self.take())
        if name not in self.schema:
            raise UnreadableError(f"there is no table {name}")
        if self.at("as"):
            self.place += 2
        return name

    def named(self, alias: str) -> str:
        if alias not in self.aliases:
            raise UnreadableError(f"there is no table or alias {alias}")
        return self.aliases[alias]

    def select(self, tables: list[str]) -> tuple[bool, tuple[Selected, ...]]:
        self.expect("select")
        distinct = self.skip("distinct")
        items = []
        while self.place < len(self.tokens) and self.tokens[self.place] not in CLAUSES:
            aggregate = self.take() if self.at(*AGGREGATES, "none") else ""
            items.append(Selected(_none(aggregate), self.expression(tables)))
            self.skip(",")
        return distinct, tuple(items)

    def group_by(self, tables: list[str]) -> tuple[Column, ...]:
        columns: list[Column] = []
        if not self.skip("group"):
            return ()
        self.expect("by")
        while self.more():
            columns.append(self.column(tables))
            if not self.skip(","):
                break
        return tuple(columns)

    def order_by(self, tables: list[str]) -> tuple[Literal["", "asc", "desc"], tuple[Expression, ...]]:
        direction: Literal["asc", "desc"] = "asc"
        expressions: list[Expression] = []
        if not self.skip("order"):
            return "", ()
        self.expect("by")
        while self.more():
            expressions.append(self.expression(tables))
            # the last direction is taken for all
            if self.at("asc", "desc"):
                direction = "asc" if self.take() == "asc" else "desc"
            if not self.skip(","):
                break
        return direction, tuple(expressions)

    def limited(self) -> bool:
        """Whether there is a LIMIT; of what follows it, one token is stepped over, whatever it is."""
        if not self.skip("limit"):
            return False
        self.take()
        return True

    def semicolons(self) -> None:
        while self.skip(";"):
            continue

    # conditions

    def conditions(self, tables: list[str]) -> Conditions:
        found: list[Condition | str] = []
        while self.place < len(self.tokens):
            found.append(self.condition(tables))
            if self.place < len(self.tokens) and (not self.more() or self.tokens[self.place] in JOINING):
                break
            if self.at("and", "or"):
                found.append(self.take())
        return tuple(found)

    def condition(self, tables: list[str]) -> Condition:
        expression = self.expression(tables)
        negated = self.peek() == "not"
        self.place += negated
        operator = self.take()
        if operator not in COMPARISONS:
            raise UnreadableError(f"{operator!r} is no comparison")
        value = self.value(tables)
        if operator != "between":
            return Condition(negated, operator, expression, value, None)
        self.expect("and")
        return Condition(negated, operator, expression, value, self.value(tables))

    def value(self, tables: list[str]) -> float | str | Column | Query:
        start = self.place
        in_brackets = self.skip("(")
        word = self.peek()
        value: float | str | Column | Query
        if word == "select":
            value = self.query()
        elif '"' in word:
            value = self.take()
        else:
            try:
                value = float(word)
                self.place += 1
            except ValueError:
                value = self.column_value(start, tables)
        if in_brackets:
            self.expect(")")
        return value

    def column_value(self, start: int, tables: list[str]) -> Column:
        """A column at the beginning of what goes on to the next keyword, comma or bracket; the rest of it is skipped."""
        end = self.place
        while end < len(self.tokens):
            word = self.tokens[end]
            if word in (",", ")", "and") or word in CLAUSES or word in JOINING:
                break
            end += 1
        column = _Parser(self.tokens[start:end], self.schema, self.aliases).column(tables)
        self.place = end
        return column

    # expressions

    def expression(self, tables: list[str]) -> Expression:
        in_brackets = self.skip("(")
        left = self.column(tables)
        operator, right = "", None
        if self.at(*ARITHMETIC, "none"):
            operator = _none(self.take())
            right = self.column(tables)
        if in_brackets:
            self.expect(")")
        return Expression(operator, left, right)

    def column(self, tables: list[str]) -> Column:
        in_brackets = self.skip("(")
        if self.peek() in (*AGGREGATES, "none"):
            aggregate = _none(self.take())
            self.expect("(")
            distinct = self.skip("distinct")
            name = self.column_name(tables)
            self.expect(")")
            return Column(aggregate, name, distinct)  # a bracket before it stays open
        distinct = self.skip("distinct")
        name = self.column_name(tables)
        if in_brackets:
            self.expect(")")
        return Column("", name, distinct)

    def column_name(self, tables: list[str]) -> str:
        word = self.take()
        if word == "*":
            return word
        if "." in word:
            alias, _, column = word.partition(".")
            table = self.named(alias)
            if table not in self.schema or "." in column or column not in self.schema[table]:
                raise UnreadableError(f"there is no column {word}")
            return f"{table}.{column}"
        for table in tables:
            if word in self.schema[table]:
                return f"{table}.{word}"
        raise UnreadableError(f"there is no column {word}")


def _none(name: str) -> str:
    """The official lists call the absence of an aggregate or an operator `none`, which a query may then say too."""
    return "" if name == "none" else name
