"""Whether two results are the same: as the test-suite evaluation of Spider takes it, and as BIRD does.

Zhong et al., "Semantic Evaluation for Text-to-SQL with Distilled Test Suites" (EMNLP 2020), and the scripts their authors publish.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from luthier.sandbox.sandbox import Cell, Row
from luthier.text2sql.evaluation.schemas import Tables

# quoted texts, names and comments stay whole; so do words
_LEXEME = re.compile(
    r"""
      '(?:''|\\'|[^'])*' | "(?:""|\\"|[^"])*" | `(?:``|[^`])*` | \[[^\]\[]*\]
    | --[^\r\n]* | /\*.*?(?:\*/|\Z)
    | \w[$\w]*
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
# how statements begin; prose may begin with one of these words, too (`With this query ...`)
STATEMENT = re.compile(
    r"""
    (?>\s|--[^\n]*|/\*.*?\*/)*+
    (?: select\b | values\s*\( | with\s+(?:recursive\s+)?\w+\s*(?:\(|as\b) | explain\s+(?:query\s+plan\s+)?(?:select|with)\b
    | (?:insert|replace)\s+(?:or\s+\w+\s+)?into\b | update\s.{1,200}?\sset\b | delete\s+from\b
    | (?:create|drop|alter)\s+(?:temp|temporary|unique|virtual|table|index|view|trigger)\b
    | (?:attach|detach|pragma|vacuum|reindex|analyze|begin|commit|rollback|savepoint|release)\b
    )
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_THIS_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)


def with_placeholders_filled(query: str, tables: Tables) -> str:
    """A prediction with 1 in place of each `value`, which some models write where a value belongs.

    The script replaces these letters wherever they stand. Names of the database keep them here, so that a query on
    `market_value` can be right.
    """
    names = {name for table, columns in tables.items() for name in (table, *columns) if "value" in name}
    if not names:
        return query.replace("value", "1")
    kept = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.sub(rf"(?<!\w)((?i:{kept}))(?!\w)|value", lambda found: found[1] or "1", query)


def runnable(query: str) -> str:
    """What is run of a query: operators that were written apart joined, DISTINCT left out, MySQL's current year a number.

    Text behind the first semicolon is cut off.
    """
    for apart, joined in (("> =", ">="), ("< =", "<="), ("! =", "!=")):
        query = query.replace(apart, joined)
    kept = first_statement(_lexemes(query))
    return _THIS_YEAR.sub("2020", "".join(lexeme for lexeme in kept if lexeme.lower() != "distinct"))


def several_statements(query: str) -> bool:
    """Whether a second statement, and no mere text, stands behind the first semicolon."""
    lexemes = _lexemes(query)
    return STATEMENT.match("".join(lexemes[len(first_statement(lexemes)) :])) is not None


def holds_statement(query: str) -> bool:
    """Whether anything but comments, semicolons and white space is in a query."""
    return any(not lexeme.startswith(("--", "/*")) and lexeme.strip(" \t\n\f\r;") for lexeme in _lexemes(query))


def _lexemes(query: str) -> list[str]:
    return [match[0] for match in _LEXEME.finditer(query)]


def first_statement(lexemes: Sequence[str]) -> Sequence[str]:
    """The lexemes up to the first semicolon that stands in no bracket, and with it."""
    depth = 0
    for place, lexeme in enumerate(lexemes):
        depth += (lexeme == "(") - (lexeme == ")")
        if lexeme == ";" and depth <= 0:
            return lexemes[: place + 1]
    return lexemes


def orders(gold: str) -> bool:
    """Whether the order of rows counts: wherever in the gold query it stands, as the script looks for it."""
    return "order by" in gold.lower()


def same_result(gold: Sequence[Row], predicted: Sequence[Row], ordered: bool) -> bool:
    """Whether some order of the prediction's columns makes its rows the gold's: as a list, or as a bag (each as often).

    Cells are equal as Python's values are: 1 and 1.0 are, 1 and '1' are not.
    """
    if len(gold) != len(predicted):
        return False
    if not gold:
        return True  # then the columns are not looked at
    if len(gold[0]) != len(predicted[0]) or not _same_as_sets_of_cells(gold, predicted, ordered):
        return False
    return _matching(gold, predicted, ordered)


def _same_as_sets_of_cells(gold: Sequence[Row], predicted: Sequence[Row], ordered: bool) -> bool:
    """The script's first look: rows whose cells are sorted by their text and type.

    It is no mere shortcut: rows that hold equal numbers of different types may be sorted differently, and then differ.
    """
    first, second = (
        [tuple(sorted(row, key=lambda cell: str(cell) + str(type(cell)))) for row in rows] for rows in (gold, predicted)
    )
    return first == second if ordered else set(first) == set(second)


def _matching(gold: Sequence[Row], predicted: Sequence[Row], ordered: bool) -> bool:
    """Find the order of columns, one column after another; a beginning that already differs is not gone on with."""
    wanted = list(zip(*gold, strict=True))
    offered = list(zip(*predicted, strict=True))
    if ordered:  # row by row: then columns are the same one by one, and it is enough to pair them off
        return Counter(wanted) == Counter(offered)
    offered_bags = [Counter(column) for column in offered]
    candidates = []
    for column in wanted:
        bag = Counter(column)
        candidates.append([place for place, other in enumerate(offered_bags) if other == bag])
    # the columns with the fewest choices first
    order = sorted(range(len(wanted)), key=lambda place: len(candidates[place]))

    def extend(chosen: list[int]) -> bool:
        if len(chosen) == len(order):
            return True
        targets = Counter(zip(*(wanted[place] for place in order[: len(chosen) + 1]), strict=True))
        tried: set[tuple[Cell, ...]] = set()
        for place in candidates[order[len(chosen)]]:
            if place in chosen or offered[place] in tried:
                continue
            tried.add(offered[place])
            picked = [*chosen, place]
            if Counter(zip(*(offered[other] for other in picked), strict=True)) == targets and extend(picked):
                return True
        return False

    return extend([])


def same_set(gold: Sequence[Row], predicted: Sequence[Row]) -> bool:
    """BIRD's execution accuracy: the same rows, however often and in whatever order; columns in their order."""
    return set(gold) == set(predicted)
