"""`luthier data` on the command line: options and help of its verbs, which import what they need when they run.

Each verb returns its result and whether --json was given; the command line prints the object.
"""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.commands.verb_options import Config, Ended, Json, RemoteCode, Settings, people, split_config

data_app = typer.Typer(help="Data: see rows as the model sees them.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command("show")
def data_show(
    config: Config = None,
    settings: Settings = None,
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> Ended:
    """Rows as the model sees them, the trained tokens coloured."""
    from rich.console import Console

    from luthier.commands.data import show

    source, overrides = split_config(config, settings)
    console = Console(file=people(as_json), highlight=False)
    result = show(source, overrides, rows=rows, split=split, trust_remote_code=trust_remote_code, console=console)
    return result, as_json
