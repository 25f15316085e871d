"""The command line: `main(argv) -> exit status`. Each verb imports its command when it runs, so that help is instant.

Exit status: 0 done, 2 something the user can mend, 1 our own fault, 130 Ctrl-C, 143 SIGTERM, 3 a finding that
`data check --fail-on` names.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from typing import Annotated, Any, Protocol

import typer

from luthier import __version__
from luthier.commands.config_verbs import config_app
from luthier.commands.data_verbs import data_app
from luthier.commands.evaluate_verb import evaluate
from luthier.commands.predict_verb import predict
from luthier.commands.sql_verbs import sql_app
from luthier.commands.tokenizer_verbs import tokenizer_app
from luthier.commands.verb_options import (
    Adapters,
    Combine,
    Config,
    Json,
    OnModel,
    Placed,
    RemoteCode,
    Settings,
    Template,
    grouped,
    people,
    print_json,
    split_config,
)
from luthier.foundation.errors import Interrupted, LuthierError, RankStoppedError
from luthier.foundation.ranks import ranks

app = typer.Typer(
    name="luthier",
    help="Fine-tune language models: one config in, a model out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the plain help is drawn in half the time
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Models: list the aliases, fetch, verify.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models_app, name="models")
app.add_typer(config_app, name="config")

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew in a folder that is in use.")]


class Reportable(Protocol):
    """What a verb returns: its results as plain values."""

    def as_dict(self) -> dict[str, Any]: ...


SECONDS_FOR_THE_FIRST_RANK = 30.0  # it may still be importing torch, on a busy machine


def report(result: Reportable, as_json: bool) -> None:
    """End a verb: with --json, its results as the last line of standard output."""
    if as_json and ranks().rank == 0:
        print_json(result.as_dict())


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"luthier {__version__}")
        raise typer.Exit


# their verbs return their result and whether --json was given
app.add_typer(tokenizer_app, name="tokenizer", result_callback=lambda ended: report(*ended))
app.add_typer(data_app, name="data", result_callback=lambda ended: report(*ended))
app.add_typer(sql_app, name="sql", result_callback=lambda ended: report(*ended))


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Fine-tune language models: one config in, a model out."""


@app.command()
def train(
    context: typer.Context,
    config: Config = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint that verifies, if there is one.")
    ] = False,
    overwrite: Overwrite = False,
    nproc_per_node: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; default: one for each GPU.")
    ] = None,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    """Train a model as a config says."""
    from luthier.commands.launching import launch, processes_for

    source, overrides = split_config(config, settings)
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "trust_remote_code": trust_remote_code}
    processes = processes_for(source, overrides, nproc_per_node, **how)
    if processes > 1:
        flags = {**how, "json": as_json, "debug": context.obj}
        given = [config, *(settings or ()), *(f"--{name.replace('_', '-')}" for name, on in flags.items() if on)]
        raise typer.Exit(launch(["train", *filter(None, given)], processes))
    from luthier.commands.train import train as command

    result = command(source, overrides, **how)
    report(result, as_json)


@app.command()
def auto(
    model: Annotated[str, typer.Argument(help="A model: a short name, a folder or a hub id.")],
    data: Annotated[str, typer.Argument(help="Rows: a file, a folder, a pattern or a hub's data set.")],
    output: Annotated[
        str | None,
        typer.Option(help="The run's folder; default: runs/auto-DATA. The config is written as FOLDER.yaml."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the config, and stop.")] = False,
    budget: Annotated[float | None, typer.Option(min=0, help="Minutes that the run may take.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the config and the run that are there.")] = False,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    """Choose a config for rows, a model and this machine, each choice with its reason, and train."""
    from luthier.commands.auto import auto as command

    result = command(
        model,
        data,
        output=output,
        dry_run=dry_run,
        budget=budget,
        resume=resume,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    print(result.text(), file=people(as_json))
    report(result, as_json)


@app.command()
def plan(
    config: Config = None,
    settings: Settings = None,
    hardware: Annotated[
        str | None, typer.Option(help="Such as 1x24GB, 8x80GB or 4xA100-80GB; default: this machine.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="single, ddp, fsdp, zero-1, zero-2, zero-3 or offload; default: single, or ddp.")
    ] = None,
    model_shape: Annotated[
        str | None, typer.Option(help="A public model's sizes in place of the config's model, such as qwen2.5-7b.")
    ] = None,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    """Count rows, tokens and parameters, and reckon memory, time and disk, without reading weights."""
    from luthier.commands.plan import plan as command

    source, overrides = split_config(config, settings)
    result = command(
        source,
        overrides,
        hardware=hardware,
        strategy=strategy,
        model_shape=model_shape,
        trust_remote_code=trust_remote_code,
    )
    print(result.table(), file=people(as_json))
    report(result, as_json)


@app.command()
@grouped
def chat(
    model: Annotated[str, typer.Argument(help="A model, a run or a checkpoint.")],
    *,
    prompt: Annotated[str | None, typer.Option(help="Answer this and end; without it the chat is interactive.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    compare_base: Annotated[
        bool, typer.Option("--compare-base", help="Show the base model's answer beside the tuned one's.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from this share of the probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    template: Template = "auto",
    on_model: OnModel,
    placed: Placed,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    """Talk to a model."""
    if as_json and prompt is None:
        raise typer.BadParameter("--json needs --prompt: an interactive chat has no one result.")
    from luthier.commands.chat import chat as command

    result = command(
        model,
        prompt=prompt,
        system=system,
        compare_base=compare_base,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        template=template,
        adapters=on_model.adapter or (),
        combine=on_model.combine,
        quantization=on_model.quantization,
        device_map=placed.device_map,
        offload_folder=placed.offload_folder,
        trust_remote_code=trust_remote_code,
    )
    if result is not None:
        report(result, as_json)


app.command()(grouped(predict))
app.command()(grouped(evaluate))


@app.command()
@grouped
def export(
    model: Annotated[str, typer.Argument(help="A run, a checkpoint or an adapter.")],
    out: Annotated[str, typer.Argument(help="The folder to write.")],
    *,
    format: Annotated[str, typer.Option(help="merged: a whole model; adapter: peft's format.")] = "merged",
    max_shard_size: Annotated[str, typer.Option(help="Largest file, such as 5GB.")] = "5GB",
    dtype: Annotated[str, typer.Option(help="auto (the base model's own), float32, bfloat16, float16.")] = "auto",
    adapter: Adapters = None,
    combine: Combine = "stack",
    placed: Placed,
    overwrite: Overwrite = False,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> None:
    """Write a model that plain transformers or peft loads."""
    from luthier.commands.export import export as command

    result = command(
        model,
        out,
        format=format,
        max_shard_size=max_shard_size,
        dtype=dtype,
        overwrite=overwrite,
        adapters=adapter or (),
        combine=combine,
        device_map=placed.device_map,
        offload_folder=placed.offload_folder,
        trust_remote_code=trust_remote_code,
    )
    report(result, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """What this machine offers: cores, memory, precisions, libraries, hubs."""
    from luthier.commands.doctor import doctor as command

    result = command()
    print(result.text(), file=people(as_json))
    report(result, as_json)


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """The models with a short name."""
    from luthier.commands.models import list_models
    from luthier.foundation.files import human_bytes

    rows = list_models()
    for row in rows:
        state = f"in {row['folder']}" if row["folder"] else f"{human_bytes(row['download_bytes'])} to fetch"
        print(f"{row['name']}: {row['description']} ({row['licence']}; {row['source']}; {state})", file=people(as_json))
    if as_json:
        print_json({"models": rows})


@models_app.command("fetch")
def models_fetch(
    name: Annotated[str, typer.Argument(help="A short name, a hub id, hub:id or id/FILE.gguf.")],
    to: Annotated[str | None, typer.Option(help="Folder to put it in, instead of the cache.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of the hub or a mirror (https://...).")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    include: Annotated[list[str] | None, typer.Option(help="Glob of files wanted; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(help="Files fetched at the same time.")] = 8,
    as_json: Json = False,
) -> None:
    """Bring a model to this machine; a broken download from a hub goes on where it stopped."""
    from luthier.commands.models import fetch

    path = fetch(name, to=to, endpoint=endpoint, revision=revision, include=include or (), jobs=jobs)
    print(path, file=people(as_json))
    if as_json:
        print_json({"path": str(path)})


@models_app.command("verify")
def models_verify(folder: Annotated[str, typer.Argument(help="A model's folder.")], as_json: Json = False) -> None:
    """Compare a folder's files with the hub's hashes or its checksum.sha256; exit status 2 if any differs."""
    from luthier.commands.models import verify

    result = verify(folder)
    for file in result.files:
        print(f"{file.status:<13} {file.name}  {file.detail}".rstrip(), file=people(as_json))
    if not result.ok and not result.having("bad") and not result.having("missing"):
        print("No file could be compared: nobody recorded its hash.", file=sys.stderr)
    report(result, as_json)
    if not result.ok:
        raise typer.Exit(2)


def entry() -> None:
    """The console script."""
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command line; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # the flag may stand after the verb too, which is where one adds it to a line that failed
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        app(args=arguments, prog_name="luthier", obj=debug)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except LuthierError as error:
        return _tell(error, debug, "--json" in arguments)
    except Exception as error:
        return _confess(error, debug, "--json" in arguments)
    return 0


def _tell(error: LuthierError, debug: bool, as_json: bool) -> int:
    if debug:
        traceback.print_exception(error)
    print_error(error)
    if as_json and ranks().rank == 0:
        print_json({"error": error.problem, "remedy": error.remedy, "exit_status": error.exit_status})
    return error.exit_status


def print_error(error: LuthierError) -> None:
    """Say what went wrong: an interruption is no error, and each of several ranks gives its name."""
    if isinstance(error, RankStoppedError):
        return  # that rank tells it
    rank = os.environ.get("RANK", "0") if "LOCAL_RANK" in os.environ else "0"
    place = "" if rank == "0" else f"[rank {rank}] "
    if place:  # what all ranks meet, the first tells: its launcher ends this one meanwhile
        time.sleep(SECONDS_FOR_THE_FIRST_RANK)
    kind = "" if isinstance(error, Interrupted) else "error: "
    print(f"{place}{kind}{error.problem}", file=sys.stderr)
    if error.remedy:
        print(error.remedy, file=sys.stderr)


def _confess(error: Exception, debug: bool, as_json: bool) -> int:
    """An error nobody foresaw is our fault: say what it was and where to report it."""
    problem = f"luthier failed in a way it should not: {type(error).__name__}: {error}"
    remedy = "Please report it in the project's issue tracker"
    remedy += "." if debug else ", with what the same command prints with --debug."
    if debug:
        traceback.print_exception(error)
    print(f"error: {problem}\n{remedy}", file=sys.stderr)
    if as_json:
        print_json({"error": problem, "remedy": remedy, "exit_status": 1})
    return 1


if __name__ == "__main__":
    entry()
