"""What the database says to candidate queries: the result that most of them agree on, and the error of one that fails.

Selection by execution as in self-consistency: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in
Language Models", with Li et al. 2022 (AlphaCode, section 4.6) agreeing by results in place of texts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

from luthier.sandbox.limits import Limits
from luthier.sandbox.sandbox import Outcome, Row, Sandbox
from luthier.text2sql.queries import NO_QUERY

# a right query to a small database takes milliseconds, and its answer is for people to read: what goes beyond is a join
# without its condition
LIMITS = Limits(seconds=5.0, rows=100_000, result_bytes=16 << 20)


@dataclass(frozen=True, slots=True)
class Result:
    """What is kept of an outcome: not its rows, of which there may be many for each of thousands of candidates.

    Args:
        error: why the query fails; empty where it runs.
        bag: the number of columns and a digest of the rows, whatever their order.
    """

    error: str
    bag: tuple[int, bytes] | None = None

    @property
    def ok(self) -> bool:
        return not self.error


class Guide:
    """Runs queries where they can do no harm, and remembers what came of them.

    Args:
        databases: SQLite files by db_id.
    """

    def __init__(self, sandbox: Sandbox, databases: Mapping[str, Path]) -> None:
        self._sandbox, self._databases = sandbox, databases
        self._results: dict[tuple[str, str], Result] = {}

    def run(
        self, queries: Iterable[tuple[str, str]], advance: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Run pairs (db_id, query) that were not run yet, as many at a time as the sandbox has workers.

        Args:
            advance: told how many are done, of how many.
        """
        asked = [pair for pair in dict.fromkeys(queries) if pair not in self._results and pair[1] != NO_QUERY]
        with self._sandbox.threads() as threads:
            tasks = {threads.submit(self._run, *pair): pair for pair in asked}
            for done, task in enumerate(as_completed(tasks), 1):
                self._results[tasks.pop(task)] = task.result()
                advance(done, len(asked))

    def result(self, db_id: str, query: str) -> Result:
        """What comes of a query; each is run once."""
        if query == NO_QUERY:
            return Result("there is no query")
        if (db_id, query) not in self._results:
            self._results[db_id, query] = self._run(db_id, query)
        return self._results[db_id, query]

    def agreed(self, db_id: str, queries: Sequence[str]) -> str:
        """The first of the queries whose result most of them have; those that fail have no say.

        Where all fail it is the first.
        """
        bags = [self.result(db_id, query).bag for query in queries]
        votes = Counter(bag for bag in bags if bag is not None)
        if not votes:
            return queries[0]
        return queries[bags.index(max(votes, key=votes.__getitem__))]  # of equal ones the first, which Counter keeps

    def _run(self, db_id: str, query: str) -> Result:
        outcome = self._sandbox.run(self._databases[db_id], query)
        return Result("", bag_of(outcome)) if outcome.ok else Result(outcome.error)


def bag_of(outcome: Outcome) -> tuple[int, bytes]:
    """The number of columns, and a digest of the rows without their order, which a query need not promise.

    Equal rows have equal digests: numbers by their value, 1 as 1.0, apart from texts. Python's own hash would not do: -1 and
    -2 share theirs.
    """
    digest = hashlib.sha256()
    for row in sorted(map(_written, outcome.rows)):
        digest.update(
            row.encode("utf-8", "surrogatepass") + b"\n"
        )  # a line break within a text is written as an escape
    return len(outcome.columns), digest.digest()


def _written(row: Row) -> str:
    return repr([int(cell) if isinstance(cell, float) and cell.is_integer() else cell for cell in row])
