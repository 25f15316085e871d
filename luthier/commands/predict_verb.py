"""`luthier predict` on the command line: its options and help."""

from __future__ import annotations

from typing import Annotated, Any

import typer

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
        help="Another setting of the generation: num_return_sequences, min_p, no_repeat_ngram_size or early_stopping; may be "
        "repeated.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="transformers, openai or vllm, or a mapping with its options: '{name: openai, base_url: http://localhost:8000/v1}'."
    ),
]


Temperature = Annotated[
    float, typer.Option(min=0.0, help="Above 0: draw tokens, the logits divided by this; 0: the likeliest each time.")
]
Out = Annotated[str, typer.Option(help="The file of answers, JSON lines; a killed run goes on when called again.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1: tokens that were there become less likely (1).")
]


def predict(
    model: Annotated[str, typer.Argument(help="A model, a run, a checkpoint or an adapter.")],
    data: Data,
    out: Out,
    *,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens (256).")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest prompt and answer together, in tokens.")] = None,
    temperature: Temperature = 0.0,
    top_p: Annotated[float | None, typer.Option(help="Draw from this share of the probability (1).")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the likeliest tokens (0: all).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draws (0).")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beam search over so many (1: none).")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Beams: above 0 favours long answers (1).")] = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer before this text; may be repeated.")] = None,
    generation: Generation = None,
    template: Template = "auto",
    engine: Engine = "transformers",
    keep_prompts: Annotated[bool, typer.Option("--keep-prompts", help="Write each row's prompt too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where the file is there.")] = False,
    on_model: OnModel,
    placed: Placed,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    """Answer every row of files, one row out for each, in order."""
    from luthier.commands.predict import predict as command

    given = {"max_new_tokens": max_new_tokens, "max_length": max_length, "top_p": top_p, "top_k": top_k, "seed": seed}
    given |= {"num_beams": num_beams, "length_penalty": length_penalty, "repetition_penalty": repetition_penalty}
    given |= {"do_sample": True, "temperature": temperature} if temperature else {}
    result = command(
        on_model.named(model),
        [mapping_or_text(entry, "--data") for entry in data],
        out,
        generation_settings({**given, "stop_strings": stop}, generation or ()),
        engine=mapping_or_text(engine, "--engine"),
        template=template,
        keep_prompts=keep_prompts,
        overwrite=overwrite,
        placement=placed.placement(),
        trust_remote_code=trust_remote_code,
    )
    print(result.text(), file=people(as_json))
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
