"""All items of a benchmark, judged in parallel."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.sandbox.limits import Limits
from luthier.sandbox.sandbox import Sandbox
from luthier.text2sql.evaluation.files import GoldQuery, Pairs, Prediction
from luthier.text2sql.evaluation.judging import Benchmark, Judge, Target, Verdict, find_target
from luthier.text2sql.schema import Schema


@dataclass(frozen=True, slots=True)
class Item:
    """A gold query, its prediction and the verdict."""

    index: int
    gold: GoldQuery
    prediction: Prediction
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """As the items of the results file are written."""
        return {
            "index": self.index,
            "db_id": self.gold.db_id,
            "hardness": self.verdict.hardness,
            "exact": self.verdict.exact,
            "execution": self.verdict.execution,
            "reason": self.verdict.reason,
        }


class Targets:
    """The databases of a folder by name, each looked at once. Safe to use from several threads."""

    def __init__(
        self,
        folder: Path,
        stated: Mapping[str, Schema],
        faults: Mapping[str, str],
        benchmark: Benchmark,
        sandbox: Sandbox,
    ) -> None:
        self._folder, self._stated, self._faults = folder, stated, faults
        self._benchmark, self._sandbox = benchmark, sandbox
        self._found: dict[str, Target] = {}
        self._lock = threading.Lock()

    def of(self, db_id: str) -> Target:
        with self._lock:
            if db_id not in self._found:
                stated = self._stated.get(db_id)
                fault = ""
                if stated is None and self._benchmark == "spider":
                    fault = self._faults.get(db_id, f"tables.json has no database {db_id!r}")
                self._found[db_id] = find_target(self._folder, db_id, stated, fault, self._sandbox, self._benchmark)
            return self._found[db_id]


def evaluate(
    pairs: Pairs,
    folder: Path,
    *,
    stated: Mapping[str, Schema],
    faults: Mapping[str, str],
    benchmark: Benchmark,
    jobs: int,
    seconds: float,
    runs: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Item]:
    """Judge every pair; items come in the order of the gold file.

    Args:
        folder: the databases, as db_id/db_id.sqlite.
        stated: schemas of tables.json by db_id; Spider's benchmark needs them.
        faults: of those that can't be used, why.
        jobs: queries that run at the same time, each in a process of its own.
        seconds: wall time of one query.
        runs: how often right queries are timed (BIRD); 0 for never.
        advance: told how many more items are done.
    """
    groups: dict[tuple[str, str, str], list[int]] = {}
    for index, gold in enumerate(pairs.gold):
        groups.setdefault((gold.db_id, gold.query, gold.difficulty), []).append(index)
    verdicts: dict[int, Verdict] = {}
    with Sandbox(jobs, Limits(seconds=seconds)) as sandbox, sandbox.threads() as threads:
        judge = Judge(benchmark, sandbox, runs)
        targets = Targets(folder, stated, faults, benchmark, sandbox)

        def work(indices: Sequence[int]) -> list[Verdict]:
            gold = pairs.gold[indices[0]]
            return judge.judge(gold, targets.of(gold.db_id), [pairs.predictions[index] for index in indices])

        tasks = {threads.submit(work, indices): indices for indices in groups.values()}
        for done in as_completed(tasks):
            verdicts.update(zip(tasks[done], done.result(), strict=True))
            advance(len(tasks[done]))
    return [
        Item(index, gold, prediction, verdicts[index])
        for index, (gold, prediction) in enumerate(zip(pairs.gold, pairs.predictions, strict=True))
    ]
