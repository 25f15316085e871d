"""`luthier data` on the command line: options and help of its verbs, which import what they need when they run.

Each verb returns its result and whether --json was given; the command line prints the object.
"""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.commands.verb_options import Config, Ended, Json, RemoteCode, Settings, people, print_json, split_config
from luthier.config.chat_templates import template_list
from luthier.data.checking.findings import FINDINGS

data_app = typer.Typer(
    help="Data: check it, see rows as the model sees them, find public sets, clear the cache.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
cache_app = typer.Typer(
    help="Tokenized data that are kept: list them, remove them.", no_args_is_help=True, rich_markup_mode=None
)
data_app.add_typer(cache_app, name="cache")


@data_app.command("check")
def data_check(
    config: Config = None,
    settings: Settings = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(metavar="FINDING", help=f"Exit with 3 where it is found; repeat it. any, {', '.join(FINDINGS)}."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE", help="A language rows may be in (en, zh, ...); others are the finding other_language."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write check.json, findings.jsonl and rejected.jsonl here.")
    ] = None,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> Ended:
    """Count rows and tokens, and look for what is wrong: bad rows, duplicates, leakage, odd answers, secrets.

    Works for every stage and reads no weights. Exit status 3 where a finding named by --fail-on occurs.
    """
    from rich.console import Console

    from luthier.commands.data_check import check

    source, overrides = split_config(config, settings)
    result = check(
        source,
        overrides,
        fail_on=fail_on or (),
        languages=language or (),
        out=out,
        trust_remote_code=trust_remote_code,
        console=Console(file=people(as_json), highlight=False),
    )
    if result.failed_on:
        if as_json:
            print_json(result.as_dict())
        raise typer.Exit(3)
    return result, as_json


@data_app.command("show", epilog=f"Chat templates for data.template=NAME: {template_list()}.")
def data_show(
    config: Config = None,
    settings: Settings = None,
    rows: Annotated[int | None, typer.Option(min=1, help="How many; default: 3, on a page 500.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the rows as a page that needs nothing but itself.")
    ] = None,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> Ended:
    """Rows as the model sees them, the trained tokens coloured; in the terminal, or as an HTML page."""
    from rich.console import Console

    from luthier.commands.data import show

    source, overrides = split_config(config, settings)
    console = Console(file=people(as_json), highlight=False)
    result = show(
        source, overrides, rows=rows, split=split, page=html, trust_remote_code=trust_remote_code, console=console
    )
    return result, as_json


@cache_app.command("list")
def cache_list(
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file's hash; exit status 2 if any differs.")
    ] = False,
    as_json: Json = False,
) -> Ended:
    """What is kept: when it was last used, its size, where it came from and how it was encoded."""
    from luthier.commands.data_cache import list_cache

    result = list_cache(verify=verify)
    print(result.text(), file=people(as_json))
    if verify and any(entry.fault for entry in result.entries):
        if as_json:
            print_json(result.as_dict())
        raise typer.Exit(2)
    return result, as_json


@cache_app.command("clear")
def cache_clear(
    key: Annotated[str | None, typer.Argument(help="The beginning of an entry's key.")] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Entries that were not used for so long.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All entries.")] = False,
    as_json: Json = False,
) -> Ended:
    """Remove entries; one that a process reads stays."""
    from luthier.commands.data_cache import clear_cache

    result = clear_cache(key, older_than_days=older_than, everything=everything)
    print(result.text(), file=people(as_json))
    return result, as_json


@data_app.command("list")
def data_list(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="Only sets that fit all of them: zh, chat, dpo, apache, ..."),
    ] = None,
    as_json: Json = False,
) -> Ended:
    """Well-known public data sets: hub id, purpose, format, size, languages, licence, and the config entry."""
    from rich.console import Console

    from luthier.commands.data_list import list_sets

    return list_sets(words or (), Console(file=people(as_json), highlight=False)), as_json
