"""`luthier evaluate MODEL --benchmark FOLDER`: multiple-choice questions by likelihood, each common beginning computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.config.schema import ModelConfig
from luthier.data.examples import TokenizedExample
from luthier.data.packing import pack
from luthier.evaluation.benchmarks import LETTERS, Question, Subject, encoded, load_benchmark
from luthier.evaluation.matching import PROMPT_HASH, hash_of
from luthier.evaluation.measuring import Measured
from luthier.evaluation.opening import find_speaker, open_weights, text_to_continue
from luthier.evaluation.results import Evaluated, rows_path
from luthier.evaluation.statistics import Drawing, Statistics
from luthier.foundation.files import need_new
from luthier.foundation.progress import progress_bar, say
from luthier.metrics._text import Scored
from luthier.model import loading
from luthier.model.config_changes import known_positions
from luthier.model.placement import Placement, input_device
from luthier.scoring.scorer import Scorer


@dataclass(frozen=True)
class Benchmark:
    """Which questions are asked, and how."""

    folder: Path
    split: str = "test"
    shots: int = 5
    subjects: Sequence[str] = ()
    batch_size: int = 8
    how: Drawing | None = None
    out: Path | None = None
    overwrite: bool = False
    placement: Placement | None = None
    trust_remote_code: bool = False


def benchmark(model: ModelConfig, asked: Benchmark, *, say: Callable[[str], None] = say) -> Evaluated:
    """Accuracy by subject, by category and of all questions.

    Raises:
        UserError: files, rows or a model that can't be used.
    """
    for path in [asked.out, rows_path(asked.out)] if asked.out is not None else []:
        need_new(path, "--out", overwrite=asked.overwrite)
    subjects = load_benchmark(asked.folder, asked.split, asked.shots, asked.subjects)
    source = find_speaker(model)
    tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=asked.trust_remote_code)
    read, _ = open_weights(
        source, wish=model.dtype, placement=asked.placement, trust_remote_code=asked.trust_remote_code
    )
    longest = known_positions(read.config)
    scorer = Scorer(read, model.attention, tokenizer.pad_token_id or 0, fused=model.fused).eval()
    tokenize = text_to_continue(tokenizer)
    rows: list[dict[str, Any]] = []
    fewer = 0
    with progress_bar("asking", sum(len(subject.questions) for subject in subjects), unit="rows") as bar:
        for subject in subjects:
            examples, counts = zip(
                *(encoded(subject, question, tokenize, longest) for question in subject.questions), strict=True
            )
            fewer += sum(count < len(subject.shots) for count in counts)
            for start in range(0, len(examples), asked.batch_size):
                members = examples[start : start + asked.batch_size]
                asked_now = subject.questions[start : start + asked.batch_size]
                likelihoods = _likelihoods(scorer, members)
                rows += [_row(subject, one, found) for one, found in zip(asked_now, likelihoods, strict=True)]
                bar.advance(len(members))
    remarks = [f"{fewer:,} questions had room for fewer examples than their subject has"] if fewer else []
    lacking = [len(subject.shots) for subject in subjects if len(subject.shots) < asked.shots]
    if lacking:
        of_all = f"{len(lacking):,} of {len(subjects):,} subjects"
        remarks.append(f"dev has fewer than {asked.shots} examples for {of_all}, {min(lacking)} the fewest")
    for remark in remarks:
        say(remark)
    found = _evaluated(model.name, asked, subjects, rows, remarks).told_not_finite()
    if asked.out is not None:
        found = replace(found, out=str(asked.out))
        found.write(asked.out)
    return found


def _likelihoods(scorer: Scorer, examples: Sequence[TokenizedExample]) -> list[list[float]]:
    """The log-probability of each choice of each question."""
    batch = pack(examples, scorer.may_share(training=False)).to(input_device(scorer.model))
    with torch.no_grad():
        logp_N = scorer(batch).logp_N.double().cpu().numpy()
    counts = [len(example.sequences) for example in examples]
    sums = np.bincount(batch.sequence_of_source_N.cpu().numpy(), logp_N, sum(counts))
    return [part.tolist() for part in np.split(sums, np.cumsum(counts)[:-1])]


def _row(subject: Subject, question: Question, likelihoods: Sequence[float]) -> dict[str, Any]:
    """A question and what was chosen: nothing, which is wrong, where a likelihood is NaN or none is finite. (NaNs are
    the largest to argmax, and the first of them is A.)"""
    largest = int(np.argmax(likelihoods))
    chosen = largest if math.isfinite(likelihoods[largest]) else None
    return {
        "source": subject.name,
        "file": question.origin.path,
        "row": question.origin.row,
        PROMPT_HASH: hash_of({"prompt": [question.text, *question.choices]}),
        "category": subject.category,
        "question": question.text,
        "label": LETTERS[question.answer],
        "predicted": LETTERS[chosen] if chosen is not None else None,
        "log_likelihoods": {LETTERS[place]: round(value, 6) for place, value in enumerate(likelihoods)},
        "scores": {"accuracy": float(chosen == question.answer)},
    }


def _evaluated(
    model: str, asked: Benchmark, subjects: Sequence[Subject], rows: Sequence[dict[str, Any]], remarks: Sequence[str]
) -> Evaluated:
    def accuracy(name: str, members: Sequence[dict[str, Any]]) -> Measured:
        sample = Statistics(Scored.mean([row["scores"]["accuracy"] for row in members]))
        return Measured(name, {"name": "accuracy"}, greater_is_better=True, sample=sample)

    names = list(dict.fromkeys(subject.category for subject in subjects if subject.category))
    numbers = [accuracy("accuracy", rows).number(asked.how)]
    categories = []
    for name in names:
        found = accuracy(name, [row for row in rows if row["category"] == name]).number(asked.how)
        categories.append(
            {"category": name, "rows": found.rows, "accuracy": found.value, "low": found.low, "high": found.high}
        )
    parts = []
    for subject in subjects:
        found = accuracy(subject.name, [row for row in rows if row["source"] == subject.name]).number(asked.how)
        part = {"source": subject.name, "category": subject.category, "rows": found.rows, "accuracy": found.value}
        parts.append({**part, "low": found.low, "high": found.high})
    settings = {
        "benchmark": str(asked.folder),
        "split": asked.split,
        "shots": asked.shots,
        "labels": list(LETTERS),
        **(vars(asked.how) if asked.how is not None else {}),
    }
    return Evaluated(model, "single_label", parts, numbers, rows, {**settings, "categories": categories}, {}, remarks)
