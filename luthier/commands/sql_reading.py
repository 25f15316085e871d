"""A text-to-SQL data set read and put into rows, as `luthier sql prepare` writes them and `luthier sql predict` asks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.config.plugins import PROMPT_STYLES, SQL_LAYOUTS
from luthier.data.records import Origin, Rejected
from luthier.foundation.errors import DataError, UserError
from luthier.foundation.progress import say
from luthier.text2sql.layout import Dataset, Question, chosen_layout
from luthier.text2sql.preparing import Preparer, Row, Told


@dataclass(frozen=True)
class Reading:
    """What to read, and how to tell it.

    Args:
        settings: for the layout: path, and what else it takes.
        shots_from: files of questions to take examples from; empty: the layout's training split, or
            its own questions where it has none and they are to be learnt.
        texts: questions to be asked of the one database that the layout reads, in place of files.
    """

    settings: Mapping[str, Any]
    layout: str = "auto"
    style: str = "schema_sentences"
    told: Told = field(default_factory=Told)
    shots_from: Sequence[str] = ()
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Read:
    """Rows, the data set they are of, and what was told of it.

    Args:
        layout: the one that was named or recognized.
        rejected: the rows that can't be used.
    """

    rows: list[Row]
    dataset: Dataset
    layout: str
    rejected: list[Rejected]
    notes: tuple[str, ...]


def read(reading: Reading, count: Callable[[Row], int] | None = None, *, queries: bool = True) -> Read:
    """Read a data set and make its rows.

    Args:
        count: a row's tokens; needed where the rows have a longest length.
        queries: whether each question must have a query, which is the output.

    Raises:
        UserError: the layout, the style or a file can't be used.
    """
    module = PROMPT_STYLES.load(reading.style)
    style = module.build(module.Options(name=reading.style))
    name, dataset = chosen_layout(reading.layout, reading.settings)
    if reading.texts:
        _check_asked(reading)
        dataset = _asked(dataset, reading.texts)
    if reading.shots_from and not reading.told.shots:
        raise UserError("--shots-from has no effect without --shots.", "Say how many: --shots 3.")
    pool = _pool(name, dataset, reading, queries) if reading.told.shots else ()
    told = replace(reading.told, meanings=True) if dataset.opaque_names else reading.told
    preparer = Preparer(dataset, style, told, pool, count)
    rows, unmade = preparer.rows(queries=queries)
    notes = list(dataset.notes)
    if preparer.cut:
        notes.append(
            f"the schemas of {preparer.cut:,} rows were cut to {told.max_length:,} tokens"
            + (f", {preparer.lost:,} of them lost a table of their query" if preparer.lost else "")
        )
    for note in notes:
        say(f"note: {note}")
    return Read(rows, dataset, name, [*dataset.rejected, *unmade], tuple(notes))


def _check_asked(reading: Reading) -> None:
    """Raise UserError for what has no effect where questions are asked as they are."""
    idle = [f"--{key}" for key in ("split", "questions") if key in reading.settings]
    if idle:
        raise UserError(
            f"{' and '.join(idle)} would have no effect with --question.",
            "Leave it out; examples come from --shots-from FILE.",
        )
    if reading.told.shots and not reading.shots_from:
        raise UserError(
            "--shots with --question has no questions to take examples from.", "Name a file of them: --shots-from FILE."
        )


def _asked(dataset: Dataset, texts: Sequence[str]) -> Dataset:
    if len(dataset.schemas) != 1:
        raise UserError(
            f"--question needs one database, and the data set has {len(dataset.schemas):,}.",
            "Name an SQLite file, or a database's URL.",
        )
    (db_id,) = dataset.schemas
    empty = [number for number, text in enumerate(texts, 1) if not text.strip()]
    if empty:
        raise UserError(f"question {empty[0]} is empty.", "Ask something, or leave it out.")
    asked = [Question(db_id, text, None, Origin("--question", number)) for number, text in enumerate(texts, 1)]
    return replace(dataset, questions=asked)


def _pool(name: str, dataset: Dataset, reading: Reading, queries: bool) -> Sequence[Question]:
    """The questions that examples are taken from: those of other files, or of the training split.

    A question is no example of itself, but files of questions ask the same in several ways, with one query: those that are
    to be predicted show no query to each other. Those to be learnt do, where a layout knows no split to take others from.

    Raises:
        UserError: there is no training split, or it is not there.
        DataError: it has no queries.
    """
    settings = dict(reading.settings)
    splits = "split" in SQL_LAYOUTS.load(name).Options.model_fields
    if reading.shots_from:
        settings["questions"] = list(reading.shots_from)
        pool = chosen_layout(name, settings)[1].questions
    elif not splits and not queries:
        raise UserError(
            f"--shots would show queries of the questions that are asked: the layout {name} has no training split.",
            "Name a file of other questions to take examples from: --shots-from FILE.",
        )
    elif not splits or ("questions" not in settings and settings.get("split", "train") == "train"):
        return dataset.questions
    else:
        pool = _training_questions(name, {key: value for key, value in settings.items() if key != "questions"})
    if not any(question.query for question in pool):
        raise DataError("no question with a query is left to take examples from.", "Name others with --shots-from.")
    return pool


def _training_questions(name: str, settings: Mapping[str, Any]) -> Sequence[Question]:
    try:
        return chosen_layout(name, {**settings, "split": "train"})[1].questions
    except UserError as error:
        raise UserError(
            f"--shots takes examples from the training split: {error.problem}", "Name other files with --shots-from."
        ) from error


def counter(tokenizer: str, template: str) -> Callable[[Row], int]:
    """What counts a row's tokens, opened as for training on the rows, so that the count is the one there.

    Raises:
        UserError: there is no such model, or no such template.
    """
    from luthier.commands.data_setup import open_data
    from luthier.text2sql.counting import token_counter

    opened = open_data({"model": tokenizer, "data": {"train": "rows", "template": template}})
    assert opened.renderer is not None
    return token_counter(opened.renderer)
