"""What the database says to candidate queries: the result that most of them agree on, and the error of one that fails.

Selection by execution as in self-consistency: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in
Language Models", with Li et al. 2022 (AlphaCode, section 4.6) agreeing by results in place of texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

from luthier.sandbox.sandbox import Outcome, Sandbox
from luthier.text2sql.queries import NO_QUERY


class Guide:
    """Runs queries where they can do no harm, and remembers what came of them.

    Args:
        databases: SQLite files by db_id.
    """

    def __init__(self, sandbox: Sandbox, databases: Mapping[str, Path]) -> None:
        self._sandbox, self._databases = sandbox, databases
        self._outcomes: dict[tuple[str, str], Outcome] = {}

    def outcome(self, db_id: str, query: str) -> Outcome:
        """What comes of a query; each is run once."""
        if query == NO_QUERY:
            return Outcome(kind="sql", error="there is no query")
        if (db_id, query) not in self._outcomes:
            self._outcomes[db_id, query] = self._sandbox.run(self._databases[db_id], query)
        return self._outcomes[db_id, query]

    def agreed(self, db_id: str, queries: Sequence[str]) -> str:
        """The first of the queries whose result most of them have; those that fail have no say.

        Where all fail it is the first.
        """
        outcomes = [self.outcome(db_id, query) for query in queries]
        results = [_result(outcome) if outcome.ok else None for outcome in outcomes]
        votes = Counter(result for result in results if result is not None)
        if not votes:
            return queries[0]
        return queries[results.index(max(votes, key=votes.__getitem__))]  # of equal ones the first, which Counter keeps


def _result(outcome: Outcome) -> Hashable:
    """The rows of a result without their order, which a query need not promise."""
    return len(outcome.columns), frozenset(Counter(outcome.rows).items())
