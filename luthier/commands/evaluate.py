"""`luthier evaluate`: how good a model is on rows: its loss, and metrics of what it writes or which labels it gives."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.commands.predict import engine_name, entry_of, on_server, open_engine, predict, refuse_bare_texts
from luthier.config.data_section import DataEntry
from luthier.config.generation_section import GenerationSettings
from luthier.config.metric_choice import check_packages, check_references
from luthier.config.schema import ModelConfig
from luthier.data.entries import load_entry
from luthier.data.locating import local_files
from luthier.data.records import Record
from luthier.data.rejecting import MEND, refuse
from luthier.evaluation.engine import Engine
from luthier.evaluation.engines.transformers import TransformersEngine
from luthier.evaluation.matching import PROMPT_HASH, hash_of, matched, refuse_without_reference, told_unanswered
from luthier.evaluation.measuring import LOSS, Measured, chosen_metrics, measure_labels, measure_losses, measure_texts
from luthier.evaluation.prompts import Prompt, prompt_of
from luthier.evaluation.results import Evaluated, predictions_path, read_lines, rows_path, verdicts_path
from luthier.evaluation.statistics import Drawing, scipy_stats
from luthier.evaluation.unanswered import marked
from luthier.foundation.errors import DataError, UserError
from luthier.foundation.files import need_apart, need_place
from luthier.foundation.progress import say
from luthier.metrics._text import TextRow

if TYPE_CHECKING:
    from luthier.commands.reading import Reading
    from luthier.model.placement import Placement

DEFAULT_TEXT_METRICS = ("exact_match", "rouge", "bleu4")


@dataclass(frozen=True)
class Sources:
    """The rows of an evaluation.

    Args:
        names: of the entries, each once. records: of each entry.
    """

    entries: Sequence[DataEntry]
    names: Sequence[str]
    records: Sequence[Sequence[Record]]

    @classmethod
    def load(cls, entries: Sequence[DataEntry], answers: bool) -> Sources:
        """Read the entries' rows.

        Args:
            answers: as `predict` reads them, where answers are measured: a last question without one stays. Else as training
                reads them.

        Raises:
            DataError: rows that can't be used, or none.
        """
        change = marked if answers else None
        loaded = [load_entry(entry, "test", place, 0, None, change=change) for place, entry in enumerate(entries)]
        refuse([item for part in loaded for item in part.rejected], remedy=MEND)
        names = [entry.path if entry.split is None else f"{entry.path} {entry.split}" for entry in entries]
        names = [f"{name} #{place + 1}" if names.count(name) > 1 else name for place, name in enumerate(names)]
        for name, part in zip(names, loaded, strict=True):
            if not part.records:
                raise DataError(f"{name} has no row.", "Name a file that has some.")
        return cls(entries, names, [part.records for part in loaded])

    def prompts(self) -> list[tuple[str, Prompt]]:
        """Every row's source and prompt, in order."""
        named = [(name, record) for name, part in zip(self.names, self.records, strict=True) for record in part]
        return [(name, prompt_of(record, row)) for row, (name, record) in enumerate(named)]


@dataclass(frozen=True)
class Asked:
    """What is wanted of an evaluation; see `evaluate`."""

    metrics: Sequence[Any] = ()
    generate: bool = False
    generation: GenerationSettings | None = None
    predictions: Path | None = None
    take_loss: bool = True
    engine: str | Mapping[str, Any] = "transformers"
    template: str = "auto"
    cutoff_length: int = 1024
    batch_size: int = 8
    how: Drawing | None = field(default_factory=Drawing)
    out: Path | None = None
    overwrite: bool = False
    placement: Placement | None = None
    trust_remote_code: bool = False

    @property
    def writes(self) -> bool:
        """Whether answers are needed."""
        return self.generate or self.predictions is not None or bool(self.metrics)


def evaluate(
    model: str | ModelConfig | None,
    data: Sequence[DataEntry | str | Mapping[str, Any]],
    asked: Asked = Asked(),
    *,
    say: Callable[[str], None] = say,
) -> Evaluated:
    """Measure a model on rows.

    Args:
        model: a model, a run, a checkpoint or an adapter; None: only `asked.predictions` are measured.
        data: entries as in a config's data.train; may be empty with predictions that bring their labels.
        asked: metrics (names, or mappings with options); answers from `generation` settings or a file that `predict`
            wrote; whether the loss is taken; how intervals are drawn (None: without); `out`, written whole at the end;
            where the model's modules lie.

    Raises:
        UserError: rows, model or metrics that can't be used, or files that are there already.
    """
    if asked.how is not None:
        scipy_stats()
    elsewhere = asked.predictions is None and on_server(asked.engine)
    entries = [entry if isinstance(entry, DataEntry) else entry_of(entry) for entry in data]
    _claim(asked, entries)
    sources = Sources.load(entries, asked.writes)
    named = ModelConfig(name=model) if isinstance(model, str) else model
    found = None
    if named is not None and asked.predictions is None and not elsewhere:
        found = _labels(named, sources, asked, say)
    found = (found or _texts(named, sources, asked, say)).told_not_finite()
    if asked.out is not None:
        found = replace(found, out=str(asked.out))
        found.write(asked.out)
        verdicts_path(asked.out).unlink(missing_ok=True)
    return found


def _claim(asked: Asked, entries: Sequence[DataEntry]) -> None:
    """Raise UserError where what would be written is there already, can't be written, or is read."""
    if asked.out is None:
        return
    made = [asked.out, rows_path(asked.out)]
    if asked.predictions is None and asked.writes:
        made.append(predictions_path(asked.out))
    read = [*local_files(entries), *([asked.predictions] if asked.predictions else [])]
    for path in made:
        need_apart(need_place(path, "--out"), "--out", read)
        if path.exists() and not asked.overwrite:
            remedy = "Name another file with --out, or replace it with --overwrite."
            if path == predictions_path(asked.out):
                remedy = f"Measure these answers with --predictions {path}, or write new ones with --overwrite."
            raise UserError(f"{path} is there already.", remedy)


def _labels(model: ModelConfig, sources: Sources, asked: Asked, say: Callable[[str], None]) -> Evaluated | None:
    """A model that gives labels, by a head or by a run's label words: its stage's loss, and metrics of labels. None of
    another model."""
    from luthier.commands.reading import TASKS, answers_with_labels, open_reading
    from luthier.model import loading
    from luthier.model.heads import saved_head
    from luthier.training.labelling import DEFAULTS

    source = loading.find(model)
    head = saved_head(source.adapter, source.base)
    if head is None and asked.generate:
        refuse_bare_texts(model, [record for part in sources.records for record in part], say)
    if head is None and (asked.generate or not answers_with_labels(model, sources.records)):
        return None
    idle = [name for name, given in _of_answers(asked).items() if given]
    if idle:
        raise UserError(
            f"{model.name} gives labels and writes no answers: {', '.join(idle)} would have no effect.", "Leave it out."
        )
    task = TASKS[head.problem if head is not None else "single_label_classification"]
    metrics = chosen_metrics(asked.metrics or DEFAULTS[task], task)
    reading = open_reading(
        model,
        sources.records,
        head,
        asked.template,
        asked.cutoff_length,
        asked.trust_remote_code,
        placement=asked.placement,
    )
    rows, parts, outcomes = [], [], []
    for name, records in zip(sources.names, sources.records, strict=True):
        numbers_of, found = reading.read(name, records, asked.batch_size, say, each=False)
        assert found.outcomes_EC is not None
        outcomes.append(found.outcomes_EC)
        parts.append(_source(name, len(numbers_of), found.denominator, found.mean_loss, perplexity=False))
        for number, outcome in zip(numbers_of, found.outcomes_EC, strict=True):
            rows.append({**_place(name, records[number]), **reading.stage.prediction(outcome)})
    truth, predicted = reading.stage.labelling.truth_and_predictions(np.concatenate(outcomes))  # type: ignore[attr-defined]
    measured = measure_labels(metrics, truth, predicted)
    rows = _with_scores(rows, measured)
    numbers = [one.number(asked.how, [str(row["source"]) for row in rows]) for one in measured]
    return Evaluated(
        model.name,
        task,
        parts,
        numbers,
        rows,
        _settings(asked, {"labels": list(reading.encoder.options.labels)}),  # type: ignore[attr-defined]
        remarks=[reading.remark] if reading.remark else [],
    )


def _of_answers(asked: Asked) -> dict[str, bool]:
    """What acts on a model that writes, by the option that says it, and whether it was asked for."""
    settings = (asked.generation or GenerationSettings()).model_dump(exclude_defaults=True)
    return {
        "--generate": asked.generate,
        "--skip-loss": not asked.take_loss,
        "--engine": engine_name(asked.engine) != "transformers",
        **dict.fromkeys(settings, True),
    }


def _texts(model: ModelConfig | None, sources: Sources, asked: Asked, say: Callable[[str], None]) -> Evaluated:
    """A language model: its loss, and metrics of its answers."""
    metrics = chosen_metrics(asked.metrics or (DEFAULT_TEXT_METRICS if asked.writes else ()))
    check_packages(metrics)
    rows: list[dict[str, Any]] = []
    numbers_of: list[int] = []
    measured: list[Measured] = []
    parts: list[dict[str, Any]] = []
    remarks: list[str] = []
    reasons: Counter[str] = Counter()
    engine: Engine | None = None
    if asked.writes and asked.predictions is None:
        labels = [prompt.label for _, prompt in sources.prompts()]
        refuse_without_reference([row for row, label in enumerate(labels, start=1) if label is None], len(labels))
        check_references(
            metrics, [(f"row {row}", label) for row, label in enumerate(labels, start=1) if label is not None]
        )
    if model is not None and asked.predictions is None:
        engine = open_engine(asked.engine, model, asked.template, asked.placement, asked.trust_remote_code, say)
        if asked.take_loss and not isinstance(engine, TransformersEngine):
            remarks.append("no loss is taken: only the engine transformers gives it")
    if model is not None and asked.take_loss and isinstance(engine, TransformersEngine):
        reading = _reading_of(model, sources, asked, engine)
        if isinstance(reading, str):
            remarks.append(reading)
        else:
            rows, numbers_of, parts, loss = _losses(reading, sources, asked, say)
            measured.append(loss)
            remarks += [reading.remark] if reading.remark else []
    if asked.writes:
        answered = _answered(model, engine, sources, asked, say)
        reasons.update(str(row.get("finish_reason", "unknown")) for row in answered)
        remarks += told_unanswered(answered)
        rows = _joined(rows, numbers_of, answered)
        texts = [TextRow(row["prediction"], row["reference"], row.pop("prompt", "")) for row in answered]
        measured_texts = measure_texts(metrics, texts, verdicts_path(asked.out) if asked.out is not None else None)
        remarks += [one.remark for one in measured_texts if one.remark]
        _with_scores(answered, measured_texts)
        by_text = [str(row["source"]) for row in answered]
        numbers = [one.number(asked.how, [row["source"] for row in rows if "nll" in row]) for one in measured]
        numbers += [one.number(asked.how, by_text) for one in measured_texts]
    else:
        numbers = [one.number(asked.how, [row["source"] for row in rows]) for one in measured]
    if not numbers:
        raise UserError(
            "nothing was asked for that these rows can give.", "Name metrics with --metric, or rows that have answers."
        )
    if not parts:
        counts = Counter(str(row["source"]) for row in rows)
        parts = [{"source": name, "rows": count} for name, count in counts.items()]
    name = model.name if model is not None else str(asked.predictions)
    return Evaluated(name, "text", parts, numbers, rows, _settings(asked), reasons, remarks)


def _reading_of(model: ModelConfig, sources: Sources, asked: Asked, engine: TransformersEngine) -> Reading | str:
    """The engine's model opened for its loss, or why these rows have none."""
    from luthier.commands.reading import open_reading, why_no_loss

    reason = why_no_loss(sources.records)
    if reason:
        return reason
    return open_reading(
        model,
        sources.records,
        None,
        asked.template,
        asked.cutoff_length,
        asked.trust_remote_code,
        lambda: engine.open().model,
    )


def _losses(
    reading: Reading, sources: Sources, asked: Asked, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[int], list[dict[str, Any]], Measured]:
    """Rows with their shares of the loss, their numbers among the records of all sources, the sources' losses, and the loss
    of all."""
    rows, numbers, parts, shares, before = [], [], [], [], 0
    for name, records in zip(sources.names, sources.records, strict=True):
        own, found = reading.read(name, records, asked.batch_size, say, each=True)
        assert found.parts_E2 is not None
        shares.append(found.parts_E2)
        parts.append(_source(name, len(own), found.targets, found.mean_loss, perplexity=True))
        for number, (nll, weight) in zip(own, found.parts_E2.tolist(), strict=True):
            place = _place(name, records[number])
            rows.append({**place, "nll": nll, "weight": weight, "scores": {LOSS: nll / weight}})
        numbers += [before + number for number in own]
        before += len(records)
    return rows, numbers, parts, measure_losses(np.concatenate(shares))


def _place(source: str, record: Record) -> dict[str, Any]:
    """Where a row stands, and the hash of its prompt."""
    asked = hash_of(prompt_of(record, 0).request.as_dict())
    return {"source": source, "file": record.origin.path, "row": record.origin.row, PROMPT_HASH: asked}


def _source(name: str, rows: int, targets: float, loss: float, *, perplexity: bool) -> dict[str, Any]:
    found = {"source": name, "rows": rows, "targets": int(targets), "loss": loss}
    return {**found, "perplexity": math.exp(min(loss, 700.0)) if loss < math.inf else loss} if perplexity else found


def _answered(
    model: ModelConfig | None, engine: Engine | None, sources: Sources, asked: Asked, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows with prediction, reference and prompt: answered now, or read from a file of answers.

    Raises:
        UserError: rows without a right answer; a file that is not of these rows.
    """
    if asked.predictions is not None:
        lines = read_lines(asked.predictions)
    else:
        assert model is not None and engine is not None
        with tempfile.TemporaryDirectory() as scratch:
            out = predictions_path(asked.out) if asked.out is not None else Path(scratch) / "predictions.jsonl"
            predict(
                model,
                sources.entries,
                out,
                asked.generation,
                engine=engine,
                overwrite=asked.overwrite,
                made_of_it=[asked.out, rows_path(asked.out)] if asked.out is not None else [],
                say=say,
            )
            lines = read_lines(out)
    return matched(lines, sources.prompts(), str(asked.predictions or "the answers"))


def _joined(
    rows: Sequence[dict[str, Any]], numbers: Sequence[int], answered: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of the answers, which are all there are, with what the loss found of some.

    Args:
        numbers: of each row of the loss, which of the answered ones it is.
    """
    for number, own in zip(numbers, rows, strict=True):
        answered[number] = {**own, **answered[number]}
    return answered


def _with_scores(rows: list[dict[str, Any]], measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The rows with their own scores of each metric that has any."""
    for one in measured:
        if one.sample.rows_E is not None:
            for row, score in zip(rows, one.sample.rows_E.tolist(), strict=True):
                if not math.isnan(score):  # a row that was not judged
                    row.setdefault("scores", {})[one.name] = score
    return rows


def _settings(asked: Asked, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    drawn = vars(asked.how) if asked.how is not None else {}
    found = {**drawn, "cutoff_length": asked.cutoff_length, "template": asked.template, **(more or {})}
    if asked.writes and asked.predictions is None and not more:
        found["generation"] = (asked.generation or GenerationSettings()).model_dump()
    return found
