"""One query for each question, out of what a model said: of several samples the one whose result most of them have, and where it
fails, what the model says when it is told the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.generation_section import SAMPLING, GenerationSettings
from luthier.data.records import Message
from luthier.evaluation.engine import Answer, Request
from luthier.evaluation.journal import Journal
from luthier.evaluation.matching import UNANSWERED, told_unanswered
from luthier.evaluation.prompts import Prompt
from luthier.foundation.devices import usable_cores
from luthier.foundation.progress import progress_bar
from luthier.sandbox.sandbox import Sandbox
from luthier.text2sql.guiding import LIMITS, Guide, Result
from luthier.text2sql.queries import query_in

if TYPE_CHECKING:
    from luthier.evaluation.engine import Engine


@dataclass(frozen=True)
class Chosen:
    """The queries that were chosen.

    Args:
        unanswered: rows without any answer.
        failing: queries of answers that do not run (None: none was run). repaired: that do after they were asked anew.
        unrepaired: repairs without an answer. tokens: generated for all repairs.
        remarks: what a person should know of rows and repairs without an answer.
    """

    queries: list[str]
    unanswered: int
    remarks: tuple[str, ...]
    failing: int | None = None
    repaired: int = 0
    unrepaired: int = 0
    tokens: int = 0


def choose(
    databases: Mapping[str, Path] | None,
    ids: Sequence[str],
    prompts: Sequence[Prompt],
    engine: Engine,
    journal: Journal,
    settings: GenerationSettings,
    repairs: int,
) -> Chosen:
    """Choose of each row's samples in the journal.

    Args:
        databases: SQLite files by db_id, on which queries are run; None: none is run, and the first sample is taken.
        ids: the rows' db_ids.
        repairs: how often a query that fails is asked anew with its error.
    """
    lines = [journal.done[row] for row in range(len(ids))]
    samples = [[query_in(sample["prediction"]) for sample in _samples(line)] for line in lines]
    said = [_said(line) for line in lines]
    unanswered = {row for row, sample in enumerate(said) if sample["finish_reason"] in UNANSWERED}
    found = Chosen([own[0] for own in samples], len(unanswered), tuple(told_unanswered(said)))
    if databases is None:
        return found
    with Sandbox(usable_cores(), LIMITS) as sandbox:
        guide = Guide(sandbox, databases)
        _run_all(guide, [(db_id, query) for db_id, own in zip(ids, samples, strict=True) for query in own])
        queries = [guide.agreed(db_id, own) for db_id, own in zip(ids, samples, strict=True)]
        failed = _failing(
            guide, ids, queries, set(range(len(ids))) - unanswered
        )  # without an answer nothing is to mend
        repaired = _Repairs(guide, ids, engine, journal, single(settings))
        for place, query in repaired.ask([prompt.request for prompt in prompts], queries, failed, repairs).items():
            queries[place] = query
        failing = len(_failing(guide, ids, queries, failed))
    return replace(
        found,
        queries=queries,
        failing=failing,
        repaired=len(failed) - failing,
        unrepaired=len(repaired.unanswered),
        tokens=repaired.tokens,
        remarks=(*found.remarks, *repaired.remarks()),
    )


def _samples(line: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = line.get("samples", [line])
    return found


def _said(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row's first sample that is an answer; where none is, the first."""
    samples = _samples(line)
    return next((sample for sample in samples if sample["finish_reason"] not in UNANSWERED), samples[0])


def _failing(guide: Guide, ids: Sequence[str], queries: Sequence[str], places: Set[int] | Sequence[int]) -> list[int]:
    """Those of some places whose query does not run."""
    return [place for place in sorted(places) if not guide.result(ids[place], queries[place]).ok]


def _run_all(guide: Guide, queries: Sequence[tuple[str, str]]) -> None:
    """Run them on all cores, and show how far it is: a weak model's may each take as long as they are let."""
    with progress_bar("queries run", len(queries)) as bar:
        guide.run(queries, bar.update)


@dataclass(frozen=True)
class Failure:
    """A query that does not run, and what the database says to it."""

    query: str
    error: str


class _Repairs:
    """Asks failing queries anew.

    A repair that gets no answer is not kept: its row is left as it is, and a run that goes on asks for it again.

    Attributes:
        tokens: generated for them. unanswered: why repairs got no answer, of each that got none.
    """

    def __init__(
        self, guide: Guide, ids: Sequence[str], engine: Engine, journal: Journal, settings: GenerationSettings
    ) -> None:
        self._guide, self._ids, self._engine, self._journal, self._settings = guide, ids, engine, journal, settings
        self.tokens = 0
        self.unanswered: list[str] = []

    def ask(
        self, conversations: list[Request], queries: Sequence[str], left: Sequence[int], attempts: int
    ) -> dict[int, str]:
        """Tell each of the places left what its query fails with, and what comes of that, so many times at most; returns the
        queries that run."""
        latest = {place: queries[place] for place in left}
        mended: dict[int, str] = {}
        for attempt in range(attempts):
            failures = {place: Failure(latest[place], self._result(place, latest[place]).error) for place in left}
            for place, failure in failures.items():
                conversations[place] = told_again(conversations[place], failure.query, failure.error)
            self._ask_once(conversations, failures, attempt)
            said = {place: _repair(self._journal, place, attempt, failure) for place, failure in failures.items()}
            latest = {place: query_in(text) for place, text in said.items() if text is not None}
            _run_all(self._guide, [(self._ids[place], query) for place, query in latest.items()])
            mended |= {place: query for place, query in latest.items() if self._result(place, query).ok}
            left = [place for place in latest if place not in mended]
        return mended

    def _result(self, place: int, query: str) -> Result:
        return self._guide.result(self._ids[place], query)

    def _ask_once(self, conversations: Sequence[Request], failures: Mapping[int, Failure], attempt: int) -> None:
        """Ask those that the journal does not hold yet."""
        unasked = [
            place for place, failure in failures.items() if _repair(self._journal, place, attempt, failure) is None
        ]
        if not unasked:
            return
        for answer in self._engine.answers([conversations[place] for place in unasked], self._settings):
            self.tokens += answer.tokens
            if answer.finish_reason in UNANSWERED:
                self.unanswered.append(answer.reason)
            else:
                _keep_repair(self._journal, attempt, failures[answer.row], answer)

    def remarks(self) -> list[str]:
        """On those without an answer."""
        if not self.unanswered:
            return []
        said = f", such as: {self.unanswered[0]}" if self.unanswered[0] else ""
        return [f"{len(self.unanswered):,} failing queries were asked anew and got no answer{said}"]


def _repair(journal: Journal, row: int, attempt: int, failure: Failure) -> str | None:
    """What was said to a failure when it was shown; None where nothing was yet."""
    kept = journal.done[row].get("repairs", [])[attempt : attempt + 1]
    return kept[0]["prediction"] if kept and Failure(kept[0]["query"], kept[0]["error"]) == failure else None


def _keep_repair(journal: Journal, attempt: int, failure: Failure, answer: Answer) -> None:
    """The row's line anew, with what was said to a failure: the last line of a row counts."""
    line = journal.done[answer.row]
    said = {"prediction": answer.text, "finish_reason": answer.finish_reason, "tokens": answer.tokens}
    earlier = line.get("repairs", [])[:attempt]
    journal.add(answer.row, {**line, "repairs": [*earlier, {**asdict(failure), **said}]})


def told_again(request: Request, query: str, error: str) -> Request:
    """A prompt that goes on with a query that failed and what the database says to it."""
    told = f"The query fails: {error}\nWrite it anew, so that it runs."
    return replace(request, messages=(*request.messages, Message("assistant", query), Message("user", told)))


def single(settings: GenerationSettings) -> GenerationSettings:
    """The settings for one answer, the likeliest: a repair is no place for chance."""
    sampling = {*SAMPLING, "do_sample", "num_return_sequences"}
    return GenerationSettings.model_validate(settings.model_dump(exclude=sampling))
