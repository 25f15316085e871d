"""`luthier sql` on the command line: options and help of its verbs, which import what they need when they run.

Each verb returns its result and whether --json was given; the command line prints the object.
"""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.commands.verb_options import Ended, Json, people

sql_app = typer.Typer(
    help="Text to SQL: make training rows of questions and schemas, predict queries, evaluate them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@sql_app.command("prepare")
def sql_prepare(
    path: Annotated[str, typer.Argument(help="The data set: its folder, or what else its layout reads.")],
    out: Annotated[str, typer.Option(metavar="FILE", help="The rows to write: a .json or .jsonl file.")],
    layout: Annotated[str, typer.Option(help="auto, or spider.")] = "auto",
    split: Annotated[str | None, typer.Option(help="train, dev or test; default: train.")] = None,
    questions: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Questions in place of the split's; may be repeated.")
    ] = None,
    tables: Annotated[
        str | None, typer.Option(metavar="FILE", help="The schemas; default: the folder's tables.json.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(metavar="DIR", help="The databases; default: the folder's own.")
    ] = None,
    style: Annotated[str, typer.Option(help="How the schema is told: schema_sentences.")] = "schema_sentences",
    invalid_rows: Annotated[
        str, typer.Option(help="error, or reject: leave out what can't be used, counted and written beside.")
    ] = "error",
    as_json: Json = False,
) -> Ended:
    """Make training rows {db_id, instruction, input, output, history} of a text-to-SQL data set."""
    from luthier.commands.sql_prepare import prepare

    given = {"path": path, "split": split, "questions": questions, "tables": tables, "database": database}
    settings = {key: value for key, value in given.items() if value is not None}
    result = prepare(out, settings, layout=layout, style=style, invalid_rows=invalid_rows)
    print(result.text(), file=people(as_json))
    return result, as_json
