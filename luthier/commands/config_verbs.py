"""The command line of `luthier config`: schema, explain, migrate."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from luthier.commands.verb_options import Json, people, print_json
from luthier.foundation.errors import LuthierError

config_app = typer.Typer(help="The config's keys.", no_args_is_help=True, rich_markup_mode=None)


@config_app.command("schema")
def config_schema(
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema instead.")] = False,
) -> None:
    """Every key with its type, default and meaning."""
    from luthier.commands import config as command

    if as_json:
        print_json(command.schema())
    else:
        print(command.listing())


@config_app.command("explain")
def config_explain(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="Such as training.seed; none: the sections.")
    ] = None,
    as_json: Json = False,
) -> None:
    """One key in depth."""
    from luthier.commands import config as command

    explanation = command.explain(key)
    if as_json:
        print_json(explanation.as_dict())
    else:
        print(explanation.text())


@config_app.command("migrate")
def config_migrate(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE | -- COMMAND...", help="A YAML, JSON, .sh or .py file, or a command line after --."
        ),
    ],
    out: Annotated[str | None, typer.Option(help="File to write; without it the config is printed.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    as_json: Json = False,
) -> None:
    """A config or command line of LLaMA-Factory's, or DB-GPT-Hub's, as luthier's."""
    from luthier.commands.migrate import migrate as command
    from luthier.commands.migrate import refusal

    result = command(words, _verbs(context), out=out, overwrite=overwrite)
    shown = people(as_json or not out)  # the config alone goes to standard output, for a pipe
    print(result.table(), file=shown)
    print(result.summary(), file=shown)
    error = refusal(result)
    if error is None and not out and not as_json:
        print(result.text, end="", flush=True)
    if as_json:
        print_json(result.as_dict())
    if error is not None:
        _tell(error)


def _tell(error: LuthierError) -> None:
    print(f"error: {error.problem}", file=sys.stderr)
    raise typer.Exit(error.exit_status)


def _verbs(context: typer.Context) -> dict[str, frozenset[str]]:
    """Luthier's verbs, each with its options."""
    root: Any = context.find_root().command
    return {
        name: frozenset(option for parameter in command.params for option in parameter.opts)
        for name, command in root.commands.items()
    }
