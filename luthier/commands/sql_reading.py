"""A text-to-SQL data set read and put into rows, as `luthier sql prepare` writes them and `luthier sql predict` asks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.config.plugins import PROMPT_STYLES
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
        shots_from: files of questions to take examples from; empty: the layout's training questions.
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
    pool = _pool(name, dataset, reading) if reading.told.shots else ()
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


def _pool(name: str, dataset: Dataset, reading: Reading) -> Sequence[Question]:
    """The questions that examples are taken from."""
    settings = dict(reading.settings)
    if reading.shots_from:
        settings["questions"] = list(reading.shots_from)
    elif settings.get("split", "train") == "train":
        return dataset.questions
    else:
        settings.pop("questions", None)
        settings["split"] = "train"
    pool = chosen_layout(name, settings)[1].questions
    if not any(question.query for question in pool):
        raise DataError("no question with a query is left to take examples from.", "Name others with --shots-from.")
    return pool


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
