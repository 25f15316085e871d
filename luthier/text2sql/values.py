"""Values of a database that a question names, so that a query can be written with their real spelling."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.text2sql.databases import Database
from luthier.text2sql.schema import Schema
from luthier.text2sql.words import words

MOST_VALUES = 5_000  # different texts of a column that are looked at
LONGEST_VALUE = 8  # words; an ideograph is one
# as values these say nothing about a question that has them
_FUNCTION_WORDS = (
    "a all an and any are as at be by can do each for from has have how i in is it list no not of on one or show than "
    "that the their there to was what when where which who with yes you"
)


@dataclass(frozen=True, slots=True)
class FoundValue:
    """A value that a question names."""

    table: str
    column: str
    value: str


class ValueIndex:
    """The texts in a database's columns, by their words."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self._values: dict[str, list[FoundValue]] = {}
        for table in schema.tables:
            for column in table.columns:
                for value in database.values(table, column, MOST_VALUES):
                    found = words(value)
                    if 0 < len(found) <= LONGEST_VALUE and _telling(found):
                        self._values.setdefault(" ".join(found), []).append(FoundValue(table.name, column.name, value))

    def found_in(self, question: str, most: int) -> list[FoundValue]:
        """Values whose words stand in the question side by side; those of more words first, then as they stand there."""
        asked = words(question)
        found: list[FoundValue] = []
        taken: set[int] = set()
        for length in range(min(LONGEST_VALUE, len(asked)), 0, -1):
            for start in range(len(asked) - length + 1):
                places = range(start, start + length)
                values = self._values.get(" ".join(asked[start : start + length]))
                if values and not taken.issuperset(places):
                    found += values
                    taken.update(places)
        return found[:most]


def _telling(found: list[str]) -> bool:
    return len("".join(found)) > 1 and not set(_FUNCTION_WORDS.split()).issuperset(found)
