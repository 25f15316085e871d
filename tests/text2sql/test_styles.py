"""What each style writes, to the letter, and what is told beside names and keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.config.plugins import PROMPT_STYLES
from luthier.data.records import Origin
from luthier.text2sql.layout import Question
from luthier.text2sql.linking import Linked
from luthier.text2sql.schema import Column, ForeignKey, Schema, Table
from luthier.text2sql.style import Context, Style, literal
from luthier.text2sql.values import FoundValue
from luthier.text2sql.words import Likeness, name_words, words
from tests.text2sql.conftest import QUESTIONS, prepare, rows_of, write

SCHEMA = Schema(
    "workshop",
    (
        Table(
            "instrument",
            (Column("id", "INTEGER"), Column("kind", "TEXT", description="what it is\ncalled"), Column("maker id", "INTEGER")),
            (("id",),),
        ),
        Table("order", (Column("instrument_id", "INTEGER"), Column("year", "INTEGER", title="year")), (("instrument_id", "year"),)),
        Table("maker", (Column("id", "INTEGER"), Column("nm", "TEXT", title="name")), (("id",),)),
    ),
    (ForeignKey("instrument", "maker id", "maker", "id"), ForeignKey("order", "instrument_id", "instrument", "id")),
)  # fmt: skip
QUESTION = Question("workshop", "Which lutes?", "SELECT id\nFROM instrument", Origin("f", 1), "a lute is a kind")
CONTEXT = Context(
    SCHEMA,
    rows={"instrument": [(1, "lute", None), (2, "viola d'amore", 7)], "maker": []},
    values=[FoundValue("instrument", "kind", "lute")],
    examples=[QUESTION],
    meanings=True,
)


def style(name: str) -> Style:
    module = PROMPT_STYLES.load(name)
    built: Style = module.build(module.Options())
    return built


def test_create_table() -> None:
    written = style("create_table")
    assert written.instruction(CONTEXT) == (
        "Write one SQLite query that answers the question about the database workshop.\n"
        "\n"
        "CREATE TABLE instrument (\n"
        "  id INTEGER PRIMARY KEY,\n"
        "  kind TEXT, -- what it is called\n"
        '  "maker id" INTEGER,\n'
        '  FOREIGN KEY ("maker id") REFERENCES maker (id)\n'
        ");\n"
        "/* 2 rows of instrument:\n"
        "id | kind | maker id\n"
        "1 | 'lute' | NULL\n"
        "2 | 'viola d''amore' | 7\n"
        "*/\n"
        "\n"
        'CREATE TABLE "order" (\n'
        "  instrument_id INTEGER,\n"
        "  year INTEGER,\n"
        "  PRIMARY KEY (instrument_id, year),\n"
        "  FOREIGN KEY (instrument_id) REFERENCES instrument (id)\n"
        ");\n"
        "\n"
        "CREATE TABLE maker (\n"
        "  id INTEGER PRIMARY KEY,\n"
        "  nm TEXT -- name\n"
        ");\n"
        "\n"
        "-- instrument.kind holds 'lute'\n"
        "\n"
        "-- Known: a lute is a kind\n"
        "Question: Which lutes?\n"
        "SELECT id FROM instrument;\n"
    )
    assert written.input(QUESTION) == "Known: a lute is a kind\nQuestion: Which lutes?"


def test_compact() -> None:
    written = style("compact")
    assert written.instruction(CONTEXT) == (
        "Answer with one SQLite query.\n"
        "Database workshop\n"
        "instrument(id, kind: what it is called, maker id)\n"
        "order(instrument_id, year)\n"
        "maker(id, nm: name)\n"
        "instrument.maker id = maker.id\n"
        "order.instrument_id = instrument.id\n"
        "instrument: 1, 'lute', NULL\n"
        "instrument: 2, 'viola d''amore', 7\n"
        "instrument.kind has 'lute'\n"
        "a lute is a kind\n"
        "Which lutes?\n"
        "SELECT id FROM instrument\n"
    )
    assert written.input(QUESTION) == "a lute is a kind\nWhich lutes?"


def test_schema_sentences_with_all_that_can_be_told() -> None:
    written = style("schema_sentences")
    _, _, told = written.instruction(CONTEXT).partition("\n##Instruction:\n")
    assert told == (
        "workshop contains tables such as instrument, order, maker. "
        "Table instrument has columns such as id, kind, maker id. id is the primary key.\n"
        "Table order has columns such as instrument_id, year. "
        "The combination of (instrument_id, year) are the primary key.\n"
        "Table maker has columns such as id, nm. id is the primary key.\n"
        "The maker id of instrument is the foreign key of id of maker.\n"
        "The instrument_id of order is the foreign key of id of instrument.\n"
        "The kind of instrument means what it is called.\n"
        "The nm of maker means name.\n"
        "Table instrument has rows such as (1, 'lute', NULL), (2, 'viola d''amore', 7).\n"
        "The kind of instrument has values such as 'lute'.\n"
        "\n"
        "###Input:\nWhich lutes?\na lute is a kind\n\n###Response:\nSELECT id FROM instrument\n\n"
    )


@pytest.mark.parametrize("name", PROMPT_STYLES.names())
def test_every_style_tells_every_table_column_value_and_example(name: str) -> None:
    text = style(name).instruction(CONTEXT)
    for table in SCHEMA.tables:
        assert table.name in text
        assert all(column.name in text for column in table.columns)
    assert "viola" in text and "SELECT id FROM instrument" in text and "what it is called" in text
    bare = style(name).instruction(Context(SCHEMA))
    assert "viola" not in bare and "SELECT" not in bare and "called" not in bare
    assert "Which lutes?" in style(name).input(QUESTION)


def test_literals() -> None:
    assert [literal(value) for value in (None, 3, 2.5, "it's", b"abc", "x" * 50, "a\n b")] == [
        "NULL", "3", "2.5", "'it''s'", "(3 bytes)", "'" + "x" * 40 + "...'", "'a b'",
    ]  # fmt: skip


def test_words_of_names_and_of_chinese() -> None:
    assert name_words("budgetInBillions_2") == ["budget", "in", "billions", "2"]
    assert words("有多少把 Lute？") == ["有", "多", "少", "把", "lute"]


def test_bm25_is_the_papers() -> None:
    """Three texts of one word each time: idf = ln(1 + (N - n + 0.5) / (n + 0.5)); the longer text counts for less."""
    texts = ["lute", "lute string string string", "viola"]
    assert Likeness(texts).nearest("a lute", 3) == [0, 1]
    assert Likeness(texts).nearest("viola lute", 3) == [2, 0, 1]  # the rarer word counts for more
    assert Likeness(texts).nearest("drum", 3) == []


def test_linking_keeps_what_a_question_names() -> None:
    cut = Linked(SCHEMA, "What are the names of the makers?").first(2)
    assert [(table.name, [column.name for column in table.columns]) for table in cut.tables] == [
        ("maker", ["id", "nm"])
    ]
    assert cut.foreign_keys == ()
    by_value = Linked(SCHEMA, "Who made the lute?", [FoundValue("instrument", "kind", "lute")]).first(1)
    assert by_value.tables[0].columns[0].name == "kind"
    linked = Linked(SCHEMA, "")
    assert linked.first(len(linked)) == SCHEMA


def test_rows_values_and_examples_come_from_the_data(spider: Path, tmp_path: Path) -> None:
    asked = [{**QUESTIONS[0], "question": "How old is the head who was born in alabama?"}]
    write(spider / "dev.json", asked)
    out = tmp_path / "o.json"
    told = ["--sample-rows", 1, "--column-values", 2, "--shots", 1]
    assert prepare(spider, "--split", "dev", *told, "--out", out) == 0
    text = rows_of(out)[0]["instruction"]
    assert "Table head has rows such as (1, 'Tiger Woods', 'Alabama', 67.0).\n" in text
    assert "The born_state of head has values such as 'Alabama'.\n" in text
    assert text.endswith(f"###Input:\n{QUESTIONS[1]['question']}\n\n###Response:\n{QUESTIONS[1]['query']}\n\n")


def test_a_question_is_no_example_of_itself(spider: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    assert prepare(spider, "--shots", 1, "--out", out) == 0
    first, second = rows_of(out)
    assert QUESTIONS[1]["query"] in first["instruction"] and QUESTIONS[0]["query"] not in first["instruction"]
    assert QUESTIONS[0]["query"] in second["instruction"] and QUESTIONS[1]["query"] not in second["instruction"]


def paraphrased(path: Path) -> Path:
    """Two questions with one query, which no training question has."""
    texts = ("Who is the oldest of the heads?", "Which of the heads is the oldest?")
    return write(path, [{**QUESTIONS[0], "question": text, "query": ANSWER} for text in texts])


ANSWER = "SELECT name FROM head ORDER BY age DESC LIMIT 1"


@pytest.mark.parametrize("split", [[], ["--split", "train"], ["--split", "dev"]])
@pytest.mark.parametrize("queries", [[], ["--without-queries"]])
def test_questions_of_named_files_show_each_other_no_query(
    split: list[str], queries: list[str], spider: Path, tmp_path: Path
) -> None:
    asked, out = paraphrased(tmp_path / "dev.json"), tmp_path / "o.json"
    assert prepare(spider, *split, "--questions", asked, "--shots", 3, *queries, "--out", out) == 0
    rows = rows_of(out)
    assert len(rows) == 2
    assert all(ANSWER not in row["instruction"] and QUESTIONS[1]["query"] in row["instruction"] for row in rows)


def test_a_training_split_that_is_not_there(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = paraphrased(spider / "dev.json")
    (spider / "train_spider.json").rename(tmp_path / "train.json")
    assert prepare(spider, "--questions", asked, "--shots", 1, "--out", tmp_path / "o.json") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "takes examples from the training split:" in told and "other files with --shots-from" in told
    shots = ["--shots", 1, "--shots-from", tmp_path / "train.json"]
    assert prepare(spider, "--questions", asked, *shots, "--out", tmp_path / "o.json") == 0


def test_a_layout_without_splits_shows_no_query_of_what_is_asked(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = spider / "database/department_management/department_management.sqlite"
    asked, out = paraphrased(tmp_path / "dev.json"), tmp_path / "o.json"
    line = [database, "--questions", asked, "--shots", 1, "--out", out]
    assert prepare(*line, "--without-queries") == 2
    assert "--shots would show queries of the questions that are asked" in " ".join(capsys.readouterr().err.split())
    assert prepare(*line, "--without-queries", "--shots-from", spider / "train_spider.json") == 0
    assert all(ANSWER not in row["instruction"] for row in rows_of(out))
    assert prepare(*line) == 0  # to be learnt
    assert all(ANSWER in row["instruction"] for row in rows_of(out))


def test_rows_of_a_database_that_is_not_there(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spider / "database/department_management/department_management.sqlite").unlink()
    assert prepare(spider, "--out", tmp_path / "o.json") == 0
    assert prepare(spider, "--sample-rows", 2, "--out", tmp_path / "o.json") == 2
    assert "row 1: its database 'department_management' is not there" in capsys.readouterr().err


def test_a_wide_schema_is_cut_to_the_tokenizers_count(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.data.rendering import Renderer
    from luthier.text2sql.counting import ANSWER_TOKENS, conversation_of
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "o.json"
    assert prepare(spider, "--out", out) == 0
    renderer = Renderer(tokenizer)

    def length(row: dict[str, object]) -> int:
        return len(renderer.prompt_ids(conversation_of(row, 1).messages[:-1])) + ANSWER_TOKENS

    whole = [length(row) for row in rows_of(out)]
    most = min(whole) - 40
    limit = ["--max-length", most, "--tokenizer", tmp_path / "tokenizer"]
    assert prepare(spider, *limit, "--out", out) == 0
    assert "the schemas of 2 rows were cut" in capsys.readouterr().err
    assert all(most - 60 < length(row) <= most for row in rows_of(out))
    assert all("head" in row["instruction"] and "age" in row["instruction"] for row in rows_of(out)[:1])
    assert prepare(spider, "--max-length", 20, *limit[2:], "--out", out) == 2
    assert "is longer than 20 tokens even with one column" in capsys.readouterr().err
    assert prepare(spider, "--max-length", 20, "--out", out) == 2
    assert "Name the model: --tokenizer MODEL" in capsys.readouterr().err
    assert prepare(spider, *limit[2:], "--out", out) == 2
    assert "no effect without --max-length" in capsys.readouterr().err


def test_shots_from_without_shots(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(spider, "--shots-from", "train_spider.json", "--out", tmp_path / "o.json") == 2
    assert "no effect without --shots" in capsys.readouterr().err


def test_spider_with_examples_of_its_training_rows(real_spider: Path, tmp_path: Path) -> None:
    out = tmp_path / "dev.jsonl"
    told = ["--shots", 2, "--shots-from", "train_spider_min.json", "--column-values", 3]
    assert prepare(real_spider, "--split", "dev", *told, "--out", out) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1034
    assert all(row["instruction"].count("###Response:") == 2 for row in rows)
    named = [row for row in rows if "has values such as 'France'" in row["instruction"]]
    assert named and all("france" in row["input"].lower() for row in named)
