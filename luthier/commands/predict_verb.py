"""`luthier predict` on the command line: its options and help."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.commands.verb_options import (
    Adapters,
    Combine,
    DeviceMap,
    Json,
    OffloadFolder,
    RemoteCode,
    named_model,
    people,
    print_json,
)
from luthier.foundation.errors import UserError

Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="Rows: a path, or a mapping as in data.train: '{path: rows.csv, columns: {instruction: q}, system: Be brief.}'; "
        "may be repeated.",
    ),
]
Generation = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another setting of the generation: min_p, num_beams, length_penalty, early_stopping, repetition_penalty, "
        "no_repeat_ngram_size, num_return_sequences, ...; may be repeated.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="transformers, openai or vllm, or a mapping with its options: '{name: openai, base_url: http://localhost:8000/v1}'."
    ),
]


def predict(
    model: Annotated[str, typer.Argument(help="A model, a run, a checkpoint or an adapter.")],
    data: Data,
    out: Annotated[str, typer.Option(help="The file of answers, JSON lines; a killed run goes on when called again.")],
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens (256).")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest prompt and answer together, in tokens.")] = None,
    do_sample: Annotated[bool, typer.Option("--do-sample", help="Draw tokens; else the likeliest is taken.")] = False,
    temperature: Annotated[float | None, typer.Option(help="With --do-sample: divides the logits (1).")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --do-sample: this share of the probability (1).")] = None,
    top_k: Annotated[int | None, typer.Option(help="With --do-sample: so many of the likeliest (0: all).")] = None,
    seed: Annotated[int | None, typer.Option(help="With --do-sample: seed (0).")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer before this text; may be repeated.")] = None,
    generation: Generation = None,
    template: Annotated[str, typer.Option(help="Chat template: auto is the tokenizer's own.")] = "auto",
    engine: Engine = "transformers",
    keep_prompts: Annotated[bool, typer.Option("--keep-prompts", help="Write each row's prompt too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where the file is there.")] = False,
    adapter: Adapters = None,
    combine: Combine = "stack",
    quantization: Annotated[str | None, typer.Option(help="Read a plain base as nf4, fp4 or int8.")] = None,
    device_map: DeviceMap = None,
    offload_folder: OffloadFolder = None,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    """Answer every row of files, one row out for each, in order."""
    from luthier.commands.predict import predict as command
    from luthier.model.placement import parse

    given = {
        "max_new_tokens": max_new_tokens,
        "max_length": max_length,
        "do_sample": do_sample or None,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop_strings": stop,
    }
    result = command(
        named_model(model, adapter or (), combine, quantization),
        [mapping_or_text(entry, "--data") for entry in data],
        out,
        generation_settings(given, generation or ()),
        engine=mapping_or_text(engine, "--engine"),
        template=template,
        keep_prompts=keep_prompts,
        overwrite=overwrite,
        placement=parse(device_map, offload_folder),
        trust_remote_code=trust_remote_code,
    )
    ended = ", ".join(f"{count:,} {reason}" for reason, count in sorted(result.finish_reasons.items()))
    print(
        f"{result.rows:,} rows in {result.seconds:,.1f} s, {result.tokens:,} tokens generated ({ended}): {result.out}",
        file=people(as_json),
    )
    if as_json:
        print_json(result.as_dict())


def generation_settings(given: dict[str, Any], more: list[str] | tuple[()]) -> Any:
    """`GenerationSettings` from options that were given (None: was not) and from KEY=VALUE.

    Raises:
        UserError: with every problem.
    """
    from luthier.commands.predict import checked
    from luthier.config.generation_section import GenerationSettings
    from luthier.config.loading import apply_override

    values = {name: value for name, value in given.items() if value is not None}
    for setting in more:
        apply_override(values, setting)
    return checked(GenerationSettings, values, "the generation")


def mapping_or_text(text: str, option: str) -> str | dict[str, Any]:
    """An option's text, or what it says where it is a YAML mapping in braces.

    Raises:
        UserError: broken YAML.
    """
    if not text.lstrip().startswith("{"):
        return text
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"{option} is broken YAML: {text!r}.", "Such as '{path: rows.jsonl, format: alpaca}'."
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{option} is no mapping: {text!r}.", "Such as '{path: rows.jsonl, format: alpaca}'.")
    return found
