"""Gold and predicted queries in the files that benchmarks use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.foundation.errors import DataError
from luthier.foundation.files import need_file

# BIRD's predictions: the query, this, the database
BIRD_MARK = "\t----- bird -----\t"
QUERY_KEYS = ("query", "SQL", "sql")
PREDICTION_KEYS = ("prediction", "predict", "predicted", "pred", "output", *QUERY_KEYS)


@dataclass(frozen=True, slots=True)
class GoldQuery:
    """A query that is right.

    Args:
        session: number of its conversation; where a file has no conversations each is 0.
        turn: its place in the conversation, from 1.
        question: empty where the file has none.
        difficulty: as the file says; empty where it does not.
    """

    query: str
    db_id: str
    session: int = 0
    turn: int = 1
    question: str = ""
    difficulty: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """A predicted query, or why there is none to run."""

    query: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Gold queries, the prediction for each, and what a person should know about the two files."""

    gold: tuple[GoldQuery, ...]
    predictions: tuple[Prediction, ...]
    notes: tuple[str, ...]

    @property
    def conversations(self) -> bool:
        return any(item.session != self.gold[0].session for item in self.gold)


def read_pairs(gold: Path, predicted: Path) -> Pairs:
    """Both files.

    Lines `SQL<TAB>db_id` or one query a line; blank lines between conversations where the gold file has them; JSON and JSONL of
    rows {db_id, query} (BIRD: SQL), of conversations {database_id, interaction}, and BIRD's predictions {"0": "SQL...", ...}.

    Raises:
        UserError: a file is missing. DataError: a row of the gold file can't be used, or there is none.
    """
    for path in (gold, predicted):
        if path.is_dir():
            raise DataError(f"{path} is a folder.", "Name the file of queries in it.")
    rows = _gold(need_file(gold, "the gold file"))
    if not rows:
        raise DataError(f"{gold} holds no query.", "Is it the file of gold queries?")
    if not predicted.exists() or predicted.stat().st_size:  # an empty file is one without predictions
        need_file(predicted, "the predictions file")
    predictions, notes = _predictions(predicted, rows)
    return Pairs(tuple(row for row in rows if row is not None), tuple(predictions), tuple(notes))


def _gold(path: Path) -> list[GoldQuery | None]:
    """The gold queries in order; None where a conversation ends."""
    if path.suffix in (".json", ".jsonl"):
        return list(_gold_rows(path))
    found: list[GoldQuery | None] = []
    session, turn = 0, 0
    for number, line in enumerate(_lines(path), start=1):
        text = line.decode("utf-8", errors="replace").strip()
        if not text:
            if turn:
                found.append(None)
                session, turn = session + 1, 0
            continue
        query, tab, db_id = text.rpartition("\t")
        if not tab or not query.strip():
            raise DataError(
                f"{path}, line {number} is no gold query: {text[:80]!r}.",
                "A line is SQL, a tab and the database's name.",
            )
        turn += 1
        found.append(GoldQuery(query.split("\t")[0].strip(), db_id.strip(), session, turn))
    while found and found[-1] is None:
        found.pop()
    return found


def _gold_rows(path: Path) -> Iterator[GoldQuery | None]:
    session = 0
    for number, row in enumerate(_json_rows(path), start=1):
        turns = row.get("interaction") if isinstance(row, Mapping) else None
        if not isinstance(turns, list):
            yield _gold_row(row, f"{path}, row {number}")
            continue
        if session:
            yield None
        for turn, part in enumerate(turns, start=1):
            place = f"{path}, row {number}, turn {turn}"
            if not isinstance(part, Mapping):
                raise DataError(f"{place} is {part!r}, not an object.", "A turn is {utterance, query}.")
            yield _gold_row({"db_id": row.get("database_id"), **part}, place, session, turn)
        session += 1


def _gold_row(row: Any, place: str, session: int = 0, turn: int = 1) -> GoldQuery:
    values = row if isinstance(row, Mapping) else {}
    query = next((values[key] for key in QUERY_KEYS if isinstance(values.get(key), str)), None)
    db_id = values.get("db_id")
    if query is None or not isinstance(db_id, str):
        raise DataError(
            f"{place} is no gold query: it has {', '.join(values) or 'no fields'}.",
            f"A row needs db_id and one of {', '.join(QUERY_KEYS)}.",
        )
    question = str(values.get("question") or values.get("utterance") or "")
    texts = (query.strip(), db_id, question, str(values.get("difficulty") or ""))
    query, db_id, question, difficulty = (text.encode("utf-8", errors="replace").decode("utf-8") for text in texts)
    return GoldQuery(query, db_id, session, turn, question, difficulty)


def _json_rows(path: Path) -> Sequence[Any]:
    """The rows of a JSON or JSONL file."""
    if path.suffix == ".jsonl":
        return [_json(line, f"{path}, line {number}") for number, line in enumerate(_lines(path), 1) if line.strip()]
    value = _json(path.read_bytes(), str(path))
    if _numbered(value):
        return [value[key] for key in sorted(value, key=int)]
    return value if isinstance(value, list) else [value]


def _json(content: bytes, place: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} is no JSON: {error}.", "A file of lines must not be named .json or .jsonl."
        ) from error


def _numbered(value: Any) -> bool:
    """Whether these are BIRD's rows: an object with a number for each."""
    return isinstance(value, dict) and bool(value) and all(key.isdecimal() for key in value)


def _lines(path: Path) -> list[bytes]:
    """Without their ends; a byte order mark is none of the first line."""
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n").split(b"\n") if content else []


def _predictions(path: Path, rows: Sequence[GoldQuery | None]) -> tuple[list[Prediction], list[str]]:
    """One for each gold query."""
    count = sum(row is not None for row in rows)
    if path.suffix == ".json" and path.stat().st_size:
        return _predictions_of_json(_json(path.read_bytes(), str(path)), count, path)
    lines = _lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    if path.suffix == ".jsonl":
        filled = [line for line in lines if line.strip()]
        return _fitted(
            [_predicted_json(line) for line in (filled if len(filled) == count else lines)], count, path, "line"
        )
    if None not in rows:
        return _fitted([_predicted_line(line) for line in lines], count, path, "line")
    if len(lines) == len(rows):  # place by place: a blank line is an empty prediction where the gold file has a query
        return [_predicted_line(line) for line, row in zip(lines, rows, strict=True) if row is not None], []
    if all(line.strip() for line in lines):
        return _fitted([_predicted_line(line) for line in lines], count, path, "line")
    return _by_conversation(lines, rows, path)


def _predictions_of_json(value: Any, count: int, path: Path) -> tuple[list[Prediction], list[str]]:
    if not _numbered(value):
        return _fitted(
            [_predicted_row(row) for row in (value if isinstance(value, list) else [value])], count, path, "row"
        )
    found = [
        _predicted_row(value[str(number)])
        if str(number) in value
        else Prediction("", f"no prediction: {path} has no number {number}")
        for number in range(count)
    ]
    rest = value.keys() - set(map(str, range(count)))
    if not rest:
        return found, []
    return found, [
        f"{path} has predictions of other numbers than 0 to {count - 1}, which were not looked at: {sorted(rest)[:5]}"
    ]


def _by_conversation(
    lines: Sequence[bytes], rows: Sequence[GoldQuery | None], path: Path
) -> tuple[list[Prediction], list[str]]:
    """Blank lines part the predictions as they part the gold queries, and each conversation is filled up by itself."""
    groups: list[list[Prediction]] = [[]]
    for line in lines:
        if line.strip():
            groups[-1].append(_predicted_line(line))
        elif groups[-1]:
            groups.append([])
    sizes = [0]
    for row in rows:
        if row is None:
            sizes.append(0)
        else:
            sizes[-1] += 1
    found: list[Prediction] = []
    notes = []
    for number, size in enumerate(sizes):
        group = groups[number] if number < len(groups) else []
        if len(group) != size:
            notes.append(f"conversation {number + 1} of {path} has {len(group)} predictions for {size} gold queries")
        missing = Prediction("", f"no prediction: the file's conversation {number + 1} ends before it")
        found += [*group, *[missing] * size][:size]
    if len(groups) > len(sizes):
        notes.append(f"{path} has {len(groups)} conversations, the gold file {len(sizes)}: the rest was not looked at")
    return found, notes


def _fitted(found: list[Prediction], count: int, path: Path, unit: str) -> tuple[list[Prediction], list[str]]:
    """As many predictions as gold queries, and what is said if they were not as many."""
    if len(found) == count:
        return found, []
    if len(found) > count:
        return found[:count], [
            f"{path} has {len(found):,} {unit}s for {count:,} gold queries: the rest was not looked at"
        ]
    missing = Prediction("", f"no prediction: the file ends at {unit} {len(found)}")
    note = (
        f"{path} has {len(found):,} {unit}s for {count:,} gold queries: the {count - len(found):,} missing ones score 0"
    )
    return [*found, *[missing] * (count - len(found))], [note]


def _predicted_line(line: bytes) -> Prediction:
    if problem := _no_utf8(line):
        return Prediction(line.decode("utf-8", errors="replace").strip().split("\t")[0], problem)
    return _predicted(line.decode("utf-8").strip().split("\t")[0])


def _predicted_json(line: bytes) -> Prediction:
    """Of a line of JSON."""
    problem = _no_utf8(line) or ("" if line.strip() else "the prediction is empty")
    if problem:
        return Prediction(line.decode("utf-8", errors="replace").strip(), problem)
    try:
        return _predicted_row(json.loads(line))
    except (ValueError, RecursionError) as error:
        return Prediction(line.decode("utf-8").strip(), f"the line is no JSON: {error}")


def _no_utf8(line: bytes) -> str:
    """Why a line is no text; empty where it is one."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"the prediction is no UTF-8: byte {line[error.start]:#04x} at its place {error.start + 1}"
    return ""


def _predicted_row(row: Any) -> Prediction:
    values = row if isinstance(row, Mapping) else {"prediction": row}
    found = next((values[key] for key in PREDICTION_KEYS if isinstance(values.get(key), str)), None)
    if found is None:
        return Prediction("", f"the prediction is no text: {json.dumps(row)[:80]}")
    return _predicted(found.split(BIRD_MARK)[0])


def _predicted(text: str) -> Prediction:
    query = text.strip()
    whole = query.encode("utf-8", errors="replace").decode("utf-8")
    if whole != query:
        return Prediction(whole, "the prediction is no UTF-8: JSON's \\u escapes in it make half a character")
    return Prediction(query) if query else Prediction("", "the prediction is empty")
