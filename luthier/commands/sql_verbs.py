"""`luthier sql` on the command line: options and help of its verbs, which import what they need when they run.

Each verb returns its result and whether --json was given; the command line prints the object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.commands.predict_verb import Engine, Generation, generation_settings, mapping_or_text
from luthier.commands.verb_options import (
    Ended,
    Json,
    OnModel,
    Placed,
    RemoteCode,
    Template,
    grouped,
    people,
)
from luthier.config.plugins import PROMPT_STYLES, SQL_LAYOUTS
from luthier.foundation.errors import UserError
from luthier.foundation.signals import ends_at_sigterm

if TYPE_CHECKING:
    from luthier.commands.sql_reading import Reading

sql_app = typer.Typer(
    help="Text to SQL: make training rows of questions and schemas, predict queries, evaluate them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Layout = Annotated[str, typer.Option(help=f"auto, {', '.join(SQL_LAYOUTS.names())}.")]
Split = Annotated[str | None, typer.Option(help="train, dev or test; default: train.")]
Questions = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="Questions in place of the split's; may be repeated.")
]
Tables = Annotated[str | None, typer.Option(metavar="FILE", help="The schemas; default: the data set's own.")]
Databases = Annotated[str | None, typer.Option(metavar="DIR", help="The databases; default: the data set's own.")]
DbId = Annotated[str | None, typer.Option(help="What to call a database that is read as it is.")]
Evidence = Annotated[
    bool | None, typer.Option("--evidence/--no-evidence", help="Tell BIRD's evidence with the question (yes).")
]
StyleName = Annotated[str, typer.Option(help=f"How a schema is told: {', '.join(PROMPT_STYLES.names())}.")]
SampleRows = Annotated[int, typer.Option(min=0, help="Tell so many rows of each table.")]
ColumnValues = Annotated[int, typer.Option(min=0, help="Tell so many values at most that the question names.")]
Meanings = Annotated[bool, typer.Option("--meanings", help="Tell what columns' names do not say.")]
Shots = Annotated[int, typer.Option(min=0, help="Show so many similar questions with their queries.")]
ShotsFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE", help="Questions to take those from; default: the published training split's; may be repeated."
    ),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Cut a schema to what the question is about, down to so many tokens a row.")
]
OF_LAYOUT = ("split", "questions", "tables", "database", "db_id", "evidence")


Model = Annotated[str, typer.Argument(help="A model, a run, a checkpoint or an adapter.")]
Asked = Annotated[
    str,
    typer.Option("--data", metavar="PATH", help="Rows that prepare wrote (.json, .jsonl); or what prepare takes."),
]
QueriesOut = Annotated[str, typer.Option(metavar="FILE", help="The queries, one a line; a killed run goes on.")]
Texts = Annotated[
    list[str] | None, typer.Option("--question", metavar="TEXT", help="Ask this of a database; may be repeated.")
]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Whose tokens --max-length counts; default: the model's own.")
]
Samples = Annotated[
    int, typer.Option(min=1, help="Draw so many queries, and take the one whose result most of them have.")
]
Temperature = Annotated[
    float | None, typer.Option(help="Divides the logits of what is drawn: --samples (0.8), --set do_sample=true (1).")
]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of what is drawn: --samples, --set do_sample=true (0).")]
Repairs = Annotated[int, typer.Option(min=0, help="Ask a query that fails anew with its error, so many times at most.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start anew where the file is there.")]


@dataclass(frozen=True)
class Asking:
    """Which questions of a data set, and what a prompt tells of its databases."""

    layout: Layout = "auto"
    split: Split = None
    questions: Questions = None
    tables: Tables = None
    database: Databases = None
    db_id: DbId = None
    evidence: Evidence = None
    style: StyleName = "schema_sentences"
    sample_rows: SampleRows = 0
    column_values: ColumnValues = 0
    meanings: Meanings = False
    shots: Shots = 0
    shots_from: ShotsFrom = None
    max_length: MaxLength = None

    def reading(self, path: str, texts: list[str] | None = None) -> Reading:
        """What to read, from the options that were given (None: was not)."""
        from luthier.commands.sql_reading import Reading
        from luthier.text2sql.preparing import Told

        of_layout = {name: getattr(self, name) for name in OF_LAYOUT}
        given = {"path": path, **{name: value for name, value in of_layout.items() if value is not None}}
        told = Told(self.sample_rows, self.column_values, self.shots, self.meanings, self.max_length)
        return Reading(given, self.layout, self.style, told, self.shots_from or (), texts or ())


def _generation(
    samples: int, temperature: float | None, seed: int | None, max_new_tokens: int, more: list[str] | tuple[()]
) -> Any:
    """`GenerationSettings` from options (None: was not given) and from --set.

    Raises:
        UserError: settings that can't be used, or one that acts on what is drawn where nothing is.
    """
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    if samples > 1:
        given |= {"num_return_sequences": samples, "do_sample": True}
        given |= {"temperature": 0.8} if temperature is None else {}
        return generation_settings(given, more)
    idle = [name for name, value in {"--temperature": temperature, "--seed": seed}.items() if value is not None]
    if idle and not generation_settings({}, more).do_sample:
        raise UserError(
            f"{' and '.join(idle)} would have no effect without --samples.",
            "Add --samples 8; or draw one answer: --set do_sample=true.",
        )
    return generation_settings(given, more)


@sql_app.command("prepare")
@grouped
def sql_prepare(
    path: Annotated[
        str, typer.Argument(help="The data set's folder, an SQLite file, a database's URL, or env:VARIABLE with one.")
    ],
    out: Annotated[str, typer.Option(metavar="FILE", help="The rows to write: a .json or .jsonl file.")],
    *,
    asking: Asking,
    tokenizer: Annotated[str | None, typer.Option(metavar="MODEL", help="Whose tokens --max-length counts.")] = None,
    template: Annotated[str, typer.Option(help="Chat template of that count: auto is the tokenizer's own.")] = "auto",
    without_queries: Annotated[
        bool, typer.Option("--without-queries", help="Rows to predict, not to learn: outputs stay empty.")
    ] = False,
    invalid_rows: Annotated[
        str, typer.Option(help="error, or reject: leave out what can't be used, counted and written beside.")
    ] = "error",
    as_json: Json = False,
) -> Ended:
    """Make training rows {db_id, instruction, input, output, history} of a text-to-SQL data set."""
    from luthier.commands.sql_prepare import prepare

    with ends_at_sigterm("stopped, as asked: nothing was written."):
        result = prepare(
            out,
            asking.reading(path),
            tokenizer=tokenizer,
            template=template,
            queries=not without_queries,
            invalid_rows=invalid_rows,
        )
    print(result.text(), file=people(as_json))
    return result, as_json


@sql_app.command("predict")
@grouped
def sql_predict(
    model: Model,
    data: Asked,
    out: QueriesOut,
    *,
    question: Texts = None,
    asking: Asking,
    tokenizer: Tokenizer = None,
    samples: Samples = 1,
    temperature: Temperature = None,
    seed: Seed = None,
    repairs: Repairs = 0,
    max_new_tokens: MaxNewTokens = 256,
    generation: Generation = None,
    template: Template = "auto",
    engine: Engine = "transformers",
    overwrite: Overwrite = False,
    on_model: OnModel,
    placed: Placed,
    trust_remote_code: RemoteCode = False,
    as_json: Json = False,
) -> Ended:
    """Write a query for every question, one a line, in order."""
    from luthier.commands.sql_predict import predict

    with ends_at_sigterm("stopped, as asked.", "The same command goes on: what was answered is kept."):
        result = predict(
            on_model.named(model),
            asking.reading(data, question),
            out,
            _generation(samples, temperature, seed, max_new_tokens, generation or ()),
            engine=mapping_or_text(engine, "--engine"),
            template=template,
            tokenizer=tokenizer,
            repairs=repairs,
            overwrite=overwrite,
            placement=placed.placement(),
            trust_remote_code=trust_remote_code,
        )
    print(result.text(), file=people(as_json))
    return result, as_json


@sql_app.command("evaluate")
def sql_evaluate(
    gold: Annotated[
        str, typer.Option(metavar="FILE", help="Gold queries: lines of SQL, a tab and the db_id; or JSON rows.")
    ],
    pred: Annotated[str, typer.Option(metavar="FILE", help="Predicted queries, one a line, in the same order.")],
    database: Annotated[str, typer.Option(metavar="DIR", help="The databases, as DB_ID/DB_ID.sqlite.")],
    tables: Annotated[
        str | None, typer.Option(metavar="FILE", help="tables.json: the foreign keys that exact match needs.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write summary and items as JSON.")] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the wrong queries as a page that needs nothing but itself."),
    ] = None,
    benchmark: Annotated[
        str,
        typer.Option(help="spider (exact match, execution) or bird (execution by sets of rows, efficiency)."),
    ] = "spider",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Queries at the same time; default: one for each core.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="Longest time of one query; default: 10, for bird 30."),
    ] = None,
    runs: Annotated[
        int | None, typer.Option(min=0, help="How often bird's right queries are timed (10); 0: no efficiency score.")
    ] = None,
    as_json: Json = False,
) -> Ended:
    """Judge predicted queries: exact set match and execution by hardness; queries run where they can do no harm."""
    from rich.console import Console

    from luthier.commands.sql_evaluate import evaluate, known_benchmark
    from luthier.foundation.devices import usable_cores

    with ends_at_sigterm("stopped, as asked: nothing was written."):
        result = evaluate(
            gold,
            pred,
            database,
            tables,
            out=out,
            html=html,
            benchmark=known_benchmark(benchmark),
            jobs=jobs or usable_cores(),
            timeout=timeout,
            runs=runs,
            console=Console(file=people(as_json), highlight=False),
        )
    return result, as_json
