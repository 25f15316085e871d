"""Two or more evaluations of the same rows: which differ by more than chance, and on which rows.

The first is what the others are compared with. Every test is of one metric; of twenty that test nothing, one falls below 0.05.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.config.metric_choice import metric_options
from luthier.config.plugins import METRICS
from luthier.evaluation.matching import PROMPT_HASH
from luthier.evaluation.measuring import LOSS, Measured, Number, measure_labels, measure_losses, measure_texts
from luthier.evaluation.results import Saved, read_evaluation
from luthier.evaluation.statistics import Drawing, Paired, Statistics, paired
from luthier.foundation.errors import UserError
from luthier.metrics._metric import Array
from luthier.metrics._text import Scored, TextRow

SHOWN_REMARK_ROWS = 3


@dataclass(frozen=True)
class ComparedRun:
    """A run in a comparison: what it is called there, and where it is from."""

    label: str
    path: str
    model: str


@dataclass(frozen=True)
class ComparedMetric:
    """A metric of every run, and of each but the first what a paired test with the first gives."""

    name: str
    greater_is_better: bool
    numbers: Sequence[Number]
    pairs: Sequence[Paired]

    def better(self, pair: Paired) -> int | None:
        """Rows that got better."""
        return pair.increased if self.greater_is_better else pair.decreased

    def worse(self, pair: Paired) -> int | None:
        """Rows that got worse."""
        return pair.decreased if self.greater_is_better else pair.increased


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        changed: rows of which some run's score differs from the first run's: place, reference, and of each run the
            prediction and the scores.
    """

    runs: Sequence[ComparedRun]
    rows: int
    metrics: Sequence[ComparedMetric]
    changed: Sequence[Mapping[str, Any]]
    confidence: float
    remarks: Sequence[str]
    out: str | None = None
    html: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the rows that changed among them."""
        return {
            "kind": "luthier comparison",
            "format_version": 1,
            "runs": [vars(run) for run in self.runs],
            "rows": self.rows,
            "confidence": self.confidence,
            "metrics": {metric.name: self._metric(metric) for metric in self.metrics},
            "changed": [dict(row) for row in self.changed],
            "remarks": list(self.remarks),
            "out": self.out,
            "html": self.html,
        }

    def _metric(self, metric: ComparedMetric) -> dict[str, Any]:
        counts = [{"better": metric.better(pair), "worse": metric.worse(pair)} for pair in metric.pairs]
        return {
            "greater_is_better": metric.greater_is_better,
            "values": [{"value": n.value, "low": n.low, "high": n.high} for n in metric.numbers],
            "against_first": [
                {
                    "difference": pair.difference,
                    "low": pair.low,
                    "high": pair.high,
                    "p_value": pair.p_value,
                    "test": pair.test,
                    **count,
                    "same": pair.equal,
                }
                for pair, count in zip(metric.pairs, counts, strict=True)
            ],
        }


def compare(paths: Sequence[Path], how: Drawing, say: Callable[[str], None], only: Sequence[str] = ()) -> Comparison:
    """Compare evaluations that `luthier evaluate --out` wrote.

    Args:
        only: the metrics to compare; empty: all that are luthier's own. Another's module must be named here: it runs as it
            is imported, which no file may bring about.

    Raises:
        UserError: fewer than two, files that can't be read, evaluations of other rows, or with no metric in common.
    """
    if len(paths) < 2:
        raise UserError("a comparison needs at least two evaluations.", "luthier evaluate --compare A.json B.json")
    saved = [read_evaluation(path) for path in paths]
    for other in saved[1:]:
        check_same_rows(saved[0], other)
    remarks: list[str] = []
    metrics: list[ComparedMetric] = []
    for name in chosen(saved[0], only):
        reason = why_not_imported(name, saved[0], only) or why_not(name, saved)
        if reason:
            remarks.append(reason)
            continue
        say(f"comparing {name}")
        judged = judged_in_all(name, saved) if is_judged(saved[0], name) else None
        if judged is not None and (unjudged := len(saved[0].rows) - len(judged)):
            remarks.append(f"{name}: {unjudged:,} rows without a verdict in one of them are left out")
        if judged == []:
            continue
        measured = [measured_again(one, name, judged) for one in saved]
        numbers = [one.number(how) for one in measured]
        pairs = [paired(measured[0].sample, other.sample, how) for other in measured[1:]]
        metrics.append(ComparedMetric(name, measured[0].greater_is_better, numbers, pairs))
    if not metrics:
        raise UserError(
            "the evaluations have no metric in common.", " ".join(remarks) or "Evaluate both with the same --metric."
        )
    return Comparison(
        labelled(saved), len(saved[0].rows), metrics, changed_rows(saved, metrics), how.confidence, remarks
    )


def labelled(saved: Sequence[Saved]) -> list[ComparedRun]:
    """Runs by the shortest ends of their files' paths that tell them apart."""
    paths = [one.path.absolute().with_suffix("") for one in saved]
    length = 1
    while len({path.parts[-length:] for path in paths}) < len({path.parts for path in paths}):
        length += 1
    names = ["/".join(path.parts[-length:]) for path in paths]
    names = [f"{name} #{place + 1}" if names.count(name) > 1 else name for place, name in enumerate(names)]
    return [ComparedRun(name, str(one.path), str(one.values["model"])) for name, one in zip(names, saved, strict=True)]


def check_same_rows(first: Saved, other: Saved) -> None:
    """Raise UserError where two evaluations are not of the same rows in the same order."""
    if len(first.rows) != len(other.rows):
        raise UserError(
            f"{first.path} has {len(first.rows):,} rows and {other.path} has {len(other.rows):,}.",
            "Evaluate both models on the same rows.",
        )
    for place, (one, two) in enumerate(zip(first.rows, other.rows, strict=True), start=1):
        hashed = PROMPT_HASH in one and PROMPT_HASH in two
        # where a row stands tells it only where its prompt is not known; of answers that were read from a file each has
        # its own, and what is right must be the same
        by_place = () if hashed or one.get("reference") is not None else ("file", "row")
        for key in (*by_place, *((PROMPT_HASH,) if hashed else ()), "reference", "label"):
            if one.get(key) != two.get(key):
                what = f"{key} {str(one.get(key))[:60]!r}" if key != PROMPT_HASH else "another prompt"
                there = f", and {str(two.get(key))[:60]!r} in" if key != PROMPT_HASH else " than in"
                raise UserError(
                    f"row {place} has {what} in {first.path}{there} {other.path}.",
                    "Evaluate both models on the same rows, in the same order.",
                )


def chosen(first: Saved, only: Sequence[str]) -> list[str]:
    """The numbers that are compared, of those of the first run: all, or those of the named metrics.

    Raises:
        UserError: a metric is named that it does not have.
    """
    owners = {name: owner(first, name) for name in first.values["metrics"]}
    if absent := [name for name in only if name not in owners.values()]:
        raise UserError(
            f"{first.path} has no {', '.join(absent)}.",
            f"Name of its metrics: {', '.join(dict.fromkeys(owners.values()))}.",
        )
    return [name for name in owners if not only or owners[name] in only]


def owner(one: Saved, name: str) -> str:
    """The metric that gives a number, or `loss`."""
    return LOSS if name == LOSS else str(one.values["metrics"][name]["metric"]["name"])


def why_not_imported(name: str, first: Saved, only: Sequence[str]) -> str:
    """Why the metric of a number is left out, where it is a module that only the files name; empty elsewhere."""
    module = owner(first, name)
    if module == LOSS or module in METRICS.names() or module in only:
        return ""
    return (
        f"{name} is left out: {first.path} has it from the module {module}, and what a file names is not imported; "
        f"name it with --metric {module}"
    )


def why_not(name: str, saved: Sequence[Saved]) -> str:
    """Why a metric can't be compared; empty where it can."""
    metrics = [one.values["metrics"].get(name) for one in saved]
    for one, metric in zip(saved, metrics, strict=True):
        if metric is None:
            return f"{name} is left out: {one.path} has none"
        if metric["metric"] != metrics[0]["metric"]:
            return f"{name} is left out: {one.path} took it with other options"
    for one, metric in zip(saved, metrics, strict=True):
        if metric["value"] is None:
            return f"{name} is left out: in {one.path} it is not finite"
    if name == LOSS:
        weights = [[row.get("weight") for row in one.rows] for one in saved]
        if any(other != weights[0] for other in weights[1:]):
            return "loss is left out: the rows have other numbers of tokens, so the losses are not of the same things"
    return ""


def is_judged(one: Saved, name: str) -> bool:
    """Whether a metric is a judge's, whose verdicts are taken as they are: it is not asked again."""
    if name == LOSS or one.values["task"] != "text":
        return False
    return METRICS.load(one.values["metrics"][name]["metric"]["name"]).__name__.endswith("llm_judge")


def judged_in_all(name: str, saved: Sequence[Saved]) -> list[int]:
    """Places of the rows on which every run has a verdict: means over other questions can't be compared."""
    rows_of = zip(*(one.rows for one in saved), strict=True)
    return [place for place, rows in enumerate(rows_of) if all(_score(row, name) is not None for row in rows)]


def _score(row: Mapping[str, Any], name: str) -> float | None:
    found: float | None = row.get("scores", {}).get(name)
    return found


def measured_again(one: Saved, name: str, judged: Sequence[int] | None = None) -> Measured:
    """A metric of saved rows: from their own scores where it is a judge's, else from what was written.

    Args:
        judged: places of the rows whose verdicts count; None where it is no judge's.
    """
    known = one.values["metrics"][name]
    if name == LOSS:
        return measure_losses(np.array([[row["nll"], row["weight"]] for row in one.rows if "nll" in row]))
    if one.values["task"] != "text":
        truth, predicted = labels_of(one)
        options = metric_options(known["metric"], one.values["task"])
        return measure_labels([options], truth, predicted)[0]
    if judged is not None:
        sample = Statistics(Scored.mean_of_known([_score(one.rows[place], name) for place in judged]))
        return Measured(name, known["metric"], known["greater_is_better"], sample)
    texts = [TextRow(row["prediction"], row["reference"]) for row in one.rows if "prediction" in row]
    found = {item.name: item for item in measure_texts([metric_options(known["metric"])], texts)}
    return found[name]


def labels_of(one: Saved) -> tuple[Array, Array]:
    """What is true and what was predicted of labelled rows, as their metrics take them."""
    pairs = [[row[key] for row in one.rows] for key in ("label", "predicted")]
    if one.values["task"] == "regression":
        return np.array(pairs[0], dtype=np.float64), np.array(pairs[1], dtype=np.float64)
    labels = list(one.values["settings"]["labels"])
    if one.values["task"] == "multi_label":
        several = [np.array([[int(name in row) for name in labels] for row in column]) for column in pairs]
        return several[0], several[1]
    # of a benchmark's question whose likelihoods are not finite nothing is chosen
    numbers = [np.array([labels.index(name) if name is not None else -1 for name in column]) for column in pairs]
    return numbers[0], numbers[1]


def changed_rows(saved: Sequence[Saved], metrics: Sequence[ComparedMetric]) -> list[dict[str, Any]]:
    """Rows whose scores (or labels) differ between the first run and another."""
    names = [metric.name for metric in metrics]
    found = []
    for place, rows in enumerate(zip(*(one.rows for one in saved), strict=True), start=1):
        scores = [{name: row["scores"][name] for name in names if name in row.get("scores", {})} for row in rows]
        said = [row.get("prediction", row.get("predicted")) for row in rows]
        if all(score == scores[0] for score in scores) and all(one == said[0] for one in said):
            continue
        first = rows[0]
        found.append(
            {
                "place": place,
                "source": first["source"],
                "row": first["row"],
                "reference": first.get("reference", first.get("label")),
                "predictions": said,
                "scores": scores,
            }
        )
    return found
