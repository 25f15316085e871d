"""`luthier evaluate` on the command line: its options and help."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.commands.predict_verb import Engine, Generation, generation_settings, mapping_or_text
from luthier.commands.verb_options import (
    Json,
    OnModel,
    Placed,
    RemoteCode,
    Template,
    people,
    print_json,
)
from luthier.foundation.errors import UserError

if TYPE_CHECKING:
    from luthier.config.schema import ModelConfig
    from luthier.evaluation.statistics import Drawing

ENGINE, TEMPLATE, CUTOFF, BATCH = "transformers", "auto", 1024, 8
CONFIDENCE, RESAMPLES = 0.95, 2000

Models = Annotated[
    list[str] | None,
    typer.Argument(help="A model, a run, a checkpoint or an adapter; with --compare, files that --out wrote."),
]
Data = Annotated[
    list[str] | None,
    typer.Option("--data", help="Rows: a path, or a mapping as in data.train; may be repeated. Each is a source."),
]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="exact_match, rouge, bleu4, bleu, chrf, edit_distance, numeric_match, ..., or a mapping with its options: "
        "'{name: rouge, tokenizer: english}'; may be repeated. Answers are generated for them. With --compare: by name, "
        "compare only these.",
    ),
]
Generate = Annotated[bool, typer.Option("--generate", help="Generate answers also where no metric is named.")]
Predictions = Annotated[
    str | None, typer.Option(help="Measure this file of answers, which `predict` wrote, and read no model.")
]
Compare = Annotated[bool, typer.Option("--compare", help="Compare evaluations with the first of them.")]
Out = Annotated[
    str | None, typer.Option(help="Write the numbers here, as JSON, and the rows beside it; --compare takes it.")
]
Html = Annotated[str | None, typer.Option(help="With --compare: write a page.")]
Benchmark = Annotated[
    str | None,
    typer.Option(help="Multiple-choice questions: a folder laid out as MMLU, C-Eval or CMMLU; answered by likelihood."),
]
Split = Annotated[str, typer.Option(help="With --benchmark: dev, val or test.")]
Subject = Annotated[
    list[str] | None, typer.Option("--subject", help="With --benchmark: only this one; may be repeated.")
]
Shots = Annotated[
    int | None,
    typer.Option(min=0, help="Answered questions shown before each (--benchmark: 5; --harness: the task's)."),
]
Harness = Annotated[
    str | None,
    typer.Option(
        help="Tasks of lm-evaluation-harness, or .yaml files of your own, parted by commas; where it is installed."
    ),
]
SkipLoss = Annotated[bool, typer.Option("--skip-loss", help="Take no loss.")]
NewTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens (256).")]
Cutoff = Annotated[int, typer.Option(min=2, help="Longest row of which the loss is taken, in tokens.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows at a time, for the loss.")]
Confidence = Annotated[float, typer.Option(help="Of intervals.")]
Resamples = Annotated[int, typer.Option(min=0, help="Draws for an interval or a test; 0: no intervals.")]
Seed = Annotated[int, typer.Option(min=0, help="Of these draws.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


def evaluate(
    models: Models = None,
    *,
    data: Data = None,
    metric: Metric = None,
    generate: Generate = False,
    predictions: Predictions = None,
    compare: Compare = False,
    out: Out = None,
    html: Html = None,
    benchmark: Benchmark = None,
    split: Split = "test",
    subject: Subject = None,
    shots: Shots = None,
    harness: Harness = None,
    skip_loss: SkipLoss = False,
    max_new_tokens: NewTokens = None,
    generation: Generation = None,
    engine: Engine = ENGINE,
    template: Template = TEMPLATE,
    cutoff_length: Cutoff = CUTOFF,
    batch_size: BatchSize = BATCH,
    confidence: Confidence = CONFIDENCE,
    resamples: Resamples = RESAMPLES,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    on_model: OnModel,
    placed: Placed,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    """Measure a model on rows: loss, perplexity and metrics of its answers; or compare evaluations."""
    given = SimpleNamespace(**locals())
    for option in ("predictions", "out", "html", "benchmark"):  # a shell expands ~ in `--out ~/x`, not in `--out=~/x`
        text = getattr(given, option)
        setattr(given, option, Path(text).expanduser() if text else None)
    given.how = _drawing(confidence, resamples, seed)
    if overwrite and not (out or html):
        raise UserError("--overwrite would have no effect without --out.", "Leave it out.")
    if compare:
        _compare(given)
    elif benchmark or harness:
        _ask_questions(given)
    else:
        _measure(given)


def _drawing(confidence: float, resamples: int, seed: int) -> Drawing | None:
    from luthier.evaluation.statistics import Drawing

    if not 0 < confidence < 1:
        raise UserError(f"--confidence is {confidence:g}, which must lie between 0 and 1.", "Such as 0.95.")
    if not resamples:
        _refuse_with("with --resamples 0", {"--confidence": confidence != CONFIDENCE, "--seed": seed})
    return Drawing(confidence, resamples, seed) if resamples else None


def _check_named(models: list[str], data: list[str] | None, predictions: str | None) -> None:
    """Raise UserError where there is no model, or more than one, or nothing to evaluate it on."""
    if len(models) > 1 or not (models or predictions):
        raise UserError(
            f"one model is evaluated at a time, found {len(models)}: {', '.join(models) or 'none'}.",
            "luthier evaluate MODEL --data FILE; luthier evaluate --compare A.json B.json compares what --out wrote.",
        )
    if not data and not predictions:
        raise UserError("there are no rows to evaluate on.", "Name them with --data.")


def _measure(given: SimpleNamespace) -> None:
    """Measure a model, or answers in a file."""
    from luthier.commands.evaluate import Asked, evaluate
    from luthier.commands.evaluation_tables import evaluation_table

    _refuse_with("without --compare", {"--html": given.html})
    changed = given.split if given.split != "test" else None
    _refuse_with(
        "without --benchmark", {"--split": changed, "--subject": given.subject, "--shots": given.shots is not None}
    )
    _check_named(given.models or [], given.data, given.predictions)
    engine = mapping_or_text(given.engine, "--engine")
    of_loss = {**_of_batches(given), "--cutoff-length": given.cutoff_length != CUTOFF}
    if given.predictions:
        unread = {"MODEL": given.models, "--generate": given.generate, "--skip-loss": given.skip_loss}
        unread |= {
            **_of_model(given),
            **_of_generation(given),
            **_of_rows(given),
            **_of_batches(given),
            **_of_placing(given),
        }
        _refuse_with("with --predictions, which reads no model", unread)
    elif not given.metric and not given.generate:
        unasked = {**_of_generation(given), "--engine": given.engine != ENGINE}
        _refuse_with("without --metric or --generate, where nothing is answered", unasked)
    if given.skip_loss:
        _refuse_with("with --skip-loss", of_loss)
    if (engine if isinstance(engine, str) else engine.get("name")) != ENGINE:
        _refuse_with("on the loss, which only the engine transformers gives", of_loss)
    asked = Asked(
        metrics=[mapping_or_text(text, "--metric") for text in given.metric or ()],
        generate=given.generate,
        generation=generation_settings({"max_new_tokens": given.max_new_tokens}, given.generation or ()),
        predictions=given.predictions,
        take_loss=not given.skip_loss,
        engine=engine,
        template=given.template,
        cutoff_length=given.cutoff_length,
        batch_size=given.batch_size,
        how=given.how,
        out=given.out,
        overwrite=given.overwrite,
        placement=given.placed.placement(),
        trust_remote_code=given.trust_remote_code,
    )
    found = evaluate(_model(given), [mapping_or_text(text, "--data") for text in given.data or ()], asked)
    print(evaluation_table(found), file=people(given.as_json))
    if given.as_json:
        print_json(found.as_dict())


def _ask_questions(given: SimpleNamespace) -> None:
    """Multiple-choice questions of a folder, or the harness's tasks."""
    name = "--benchmark" if given.benchmark else "--harness"
    other = {"--data": given.data, "--metric": given.metric, "--predictions": given.predictions}
    other |= {"--generate": given.generate, "--html": given.html, "--skip-loss": given.skip_loss}
    other |= {**_of_generation(given), **_of_rows(given)}
    if given.benchmark:
        other |= {"--harness": given.harness}
    else:
        other |= {"--split": given.split if given.split != "test" else None, "--subject": given.subject}
        other |= _of_placing(given)
        other |= _of_drawing(given)
    _refuse_with(f"with {name}", other)
    _check_named(given.models or [], ["questions"], None)
    model = _model(given)
    assert model is not None
    common = {"batch_size": given.batch_size, "out": given.out, "overwrite": given.overwrite}
    common |= {"trust_remote_code": given.trust_remote_code}
    found: Any
    if given.benchmark:
        from luthier.commands.benchmark import Benchmark, benchmark
        from luthier.commands.evaluation_tables import benchmark_table

        shots = 5 if given.shots is None else given.shots
        asked = Benchmark(
            given.benchmark,
            given.split,
            shots,
            tuple(given.subject or ()),
            how=given.how,
            placement=given.placed.placement(),
            **common,
        )
        found = benchmark(model, asked)
        print(benchmark_table(found), file=people(given.as_json))
    else:
        from luthier.commands.evaluation_tables import harness_table
        from luthier.commands.harness import harness

        tasks = [task.strip() for task in given.harness.split(",") if task.strip()]
        found = harness(model, tasks, shots=given.shots, **common)
        print(harness_table(found), file=people(given.as_json))
    if given.as_json:
        print_json(found.as_dict())


def _of_rows(given: SimpleNamespace) -> dict[str, bool]:
    """What only acts where a model reads rows, for answers or for the loss, and whether it was given."""
    return {
        "--engine": given.engine != ENGINE,
        "--template": given.template != TEMPLATE,
        "--cutoff-length": given.cutoff_length != CUTOFF,
    }


def _of_placing(given: SimpleNamespace) -> dict[str, str | None]:
    return {"--device-map": given.placed.device_map, "--offload-folder": given.placed.offload_folder}


def _of_batches(given: SimpleNamespace) -> dict[str, bool]:
    return {"--batch-size": given.batch_size != BATCH}


def _of_generation(given: SimpleNamespace) -> dict[str, bool]:
    return {"--set": bool(given.generation), "--max-new-tokens": given.max_new_tokens is not None}


def _of_drawing(given: SimpleNamespace) -> dict[str, bool]:
    changed = {"--confidence": given.confidence != CONFIDENCE, "--resamples": given.resamples != RESAMPLES}
    return {**changed, "--seed": given.seed != 0}


def _of_model(given: SimpleNamespace) -> dict[str, bool]:
    """What is put on a model, and how it is read."""
    on_model: OnModel = given.on_model
    found = {"--adapter": bool(on_model.adapter), "--combine": on_model.combine != OnModel().combine}
    return {**found, "--quantization": bool(on_model.quantization), "--trust-remote-code": given.trust_remote_code}


def _model(given: SimpleNamespace) -> ModelConfig | None:
    if not given.models:
        return None
    on_model: OnModel = given.on_model
    return on_model.named(given.models[0])


def _compare(given: SimpleNamespace) -> None:
    """Compare evaluations, and write what is asked for."""
    from dataclasses import replace

    from luthier.commands.evaluation_tables import comparison_table
    from luthier.evaluation.comparison import compare
    from luthier.evaluation.comparison_page import comparison_page
    from luthier.foundation.files import finite, need_new, write_json, write_text
    from luthier.foundation.progress import say

    ignored = {"--data": given.data, "--predictions": given.predictions}
    ignored |= {"--benchmark": given.benchmark, "--harness": given.harness, "--subject": given.subject}
    ignored |= {"--split": given.split if given.split != "test" else None, "--shots": given.shots is not None}
    ignored |= {"--skip-loss": given.skip_loss, "--generate": given.generate, **_of_model(given)}
    ignored |= {**_of_generation(given), **_of_rows(given), **_of_batches(given)}
    ignored |= _of_placing(given)
    _refuse_with("with --compare", ignored)
    if given.how is None:
        raise UserError("--resamples 0 leaves a comparison nothing to test with.", "Leave it out.")
    out, html = given.out, given.html
    for option, path in (("--out", out), ("--html", html)):
        if path:
            need_new(path, option, overwrite=given.overwrite)
    paths = [Path(path) for path in given.models or ()]
    found = compare(paths, given.how, say, given.metric or ())
    found = replace(found, out=str(out) if out else None, html=str(html) if html else None)
    if out:
        write_json(out, finite(found.as_dict()))
    if html:
        write_text(html, comparison_page(found))
    print(comparison_table(found), file=people(given.as_json))
    if given.as_json:
        print_json(found.as_dict())


def _refuse_with(what: str, given: dict[str, Any]) -> None:
    """Raise UserError for options that would have no effect."""
    found = [name for name, value in given.items() if value]
    if found:
        raise UserError(f"{', '.join(found)} would have no effect {what}.", "Leave it out.")
