"""Writes runs/text2sql/data in Spider's layout: the database of workshop.sql, and questions to it with their queries.

Questions are made of patterns in English and Chinese. One query in six is kept for dev.json with all its questions, so
that no query of the evaluation was in the training. Run from the repository's root:

    python examples/text2sql/make_data.py
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from luthier.text2sql.databases import SqliteDatabase

HERE = Path(__file__).parent
OUT = Path("runs/text2sql/data")
DB_ID = "workshop"
DEV_SHARE = 6  # every so many-th query is for dev.json


@dataclass(frozen=True)
class Things:
    """A table in words: what its rows and columns are called, in English and Chinese."""

    table: str
    plural: str
    chinese: str
    shown: str  # the column that answers "which"
    shown_words: tuple[str, str]
    texts: dict[str, tuple[str, str]]
    numbers: dict[str, tuple[str, str]]


THINGS = (
    Things("maker", "makers", "制琴师", "name", ("names", "名字"), {"city": ("city", "城市")}, {"founded": ("founding year", "成立年份")}),
    Things("instrument", "instruments", "乐器", "kind", ("kinds", "种类"), {"kind": ("kind", "种类")}, {"year": ("year", "年份"), "price": ("price", "价格")}),
    Things("player", "players", "演奏者", "name", ("names", "名字"), {"city": ("city", "城市")}, {"age": ("age", "年龄")}),
    Things("rental", "rentals", "租借", "rental_id", ("ids", "编号"), {"month": ("month", "月份")}, {"days": ("number of days", "天数")}),
)  # fmt: skip
AGGREGATES = {"avg": ("average", "平均"), "max": ("highest", "最高"), "min": ("lowest", "最低"), "sum": ("total", "总")}
Pair = tuple[str, str, str]  # the query, the question in English and in Chinese


def of_one_table(things: Things, opened: sqlite3.Connection) -> Iterator[Pair]:
    table, plural, chinese = things.table, things.plural, things.chinese
    shown, (shown_en, shown_zh) = things.shown, things.shown_words
    yield f"SELECT count(*) FROM {table}", f"How many {plural} are there?", f"一共有多少{chinese}？"
    for column, (english, zh) in things.texts.items():
        yield (
            f"SELECT DISTINCT {column} FROM {table}",
            f"What are the different values of {english} among the {plural}?",
            f"{chinese}有哪些不同的{zh}？",
        )
        yield (
            f"SELECT {column}, count(*) FROM {table} GROUP BY {column}",
            f"How many {plural} are there for each {english}?",
            f"每个{zh}有多少{chinese}？",
        )
        yield (
            f"SELECT {column} FROM {table} GROUP BY {column} ORDER BY count(*) DESC LIMIT 1",
            f"Which {english} has the most {plural}?",
            f"哪个{zh}的{chinese}最多？",
        )
        for (value,) in opened.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall():
            test = f"FROM {table} WHERE {column} = '{value}'"
            yield (
                f"SELECT count(*) {test}",
                f"How many {plural} have the {english} {value}?",
                f"{zh}是{value}的{chinese}有多少？",
            )
            if column != shown:
                yield (
                    f"SELECT {shown} {test}",
                    f"Show the {shown_en} of the {plural} whose {english} is {value}.",
                    f"列出{zh}是{value}的{chinese}的{shown_zh}。",
                )
            for number, (number_en, number_zh) in things.numbers.items():
                for aggregate, (aggregate_en, aggregate_zh) in AGGREGATES.items():
                    yield (
                        f"SELECT {aggregate}({number}) {test}",
                        f"What is the {aggregate_en} {number_en} of the {plural} with the {english} {value}?",
                        f"{zh}是{value}的{chinese}的{aggregate_zh}{number_zh}是多少？",
                    )
    for number, (english, zh) in things.numbers.items():
        for aggregate, (aggregate_en, aggregate_zh) in AGGREGATES.items():
            yield (
                f"SELECT {aggregate}({number}) FROM {table}",
                f"What is the {aggregate_en} {english} of all {plural}?",
                f"所有{chinese}的{aggregate_zh}{zh}是多少？",
            )
        for order, english_word, chinese_word in (("DESC", "highest", "最高"), ("ASC", "lowest", "最低")):
            for count in (1, 3):
                yield (
                    f"SELECT {shown} FROM {table} ORDER BY {number} {order} LIMIT {count}",
                    f"Show the {shown_en} of the {count} {plural} with the {english_word} {english}.",
                    f"列出{zh}{chinese_word}的{count}个{chinese}的{shown_zh}。",
                )
        values = [value for (value,) in opened.execute(f"SELECT DISTINCT {number} FROM {table}")]
        for value in random.Random(f"{table}.{number}").sample(values, min(4, len(values))):
            for sign, word_en, word_zh in ((">", "above", "高于"), ("<", "below", "低于")):
                test = f"FROM {table} WHERE {number} {sign} {value:g}"
                yield (
                    f"SELECT count(*) {test}",
                    f"How many {plural} have a {english} {word_en} {value:g}?",
                    f"{zh}{word_zh}{value:g}的{chinese}有多少？",
                )
                yield (
                    f"SELECT {shown} {test}",
                    f"Show the {shown_en} of the {plural} with a {english} {word_en} {value:g}.",
                    f"列出{zh}{word_zh}{value:g}的{chinese}的{shown_zh}。",
                )


def of_several_tables(opened: sqlite3.Connection) -> Iterator[Pair]:
    made = "FROM maker AS T1 JOIN instrument AS T2 ON T1.maker_id = T2.maker_id"
    rented = "FROM player AS T1 JOIN rental AS T2 ON T1.player_id = T2.player_id JOIN instrument AS T3 ON T2.instrument_id = T3.instrument_id"
    for (kind,) in opened.execute("SELECT DISTINCT kind FROM instrument").fetchall():
        yield (
            f"SELECT DISTINCT T1.name {made} WHERE T2.kind = '{kind}'",
            f"Which makers have made a {kind}?",
            f"哪些制琴师做过{kind}？",
        )
        yield (
            f"SELECT DISTINCT T1.name {rented} WHERE T3.kind = '{kind}'",
            f"Which players have rented a {kind}?",
            f"哪些演奏者租过{kind}？",
        )
    for (name,) in opened.execute("SELECT name FROM maker").fetchall():
        yield (
            f"SELECT count(*) {made} WHERE T1.name = '{name}'",
            f"How many instruments did {name} make?",
            f"{name}做了多少乐器？",
        )
        yield (
            f"SELECT T2.kind {made} WHERE T1.name = '{name}'",
            f"What kinds of instruments did {name} make?",
            f"{name}做了哪些种类的乐器？",
        )
    for (name,) in opened.execute("SELECT name FROM player").fetchall():
        yield (
            f"SELECT T3.kind {rented} WHERE T1.name = '{name}'",
            f"What kinds of instruments has {name} rented?",
            f"{name}租过哪些种类的乐器？",
        )
    yield (
        f"SELECT T1.name, count(*) {made} GROUP BY T1.maker_id",
        "How many instruments has each maker made?",
        "每位制琴师做了多少乐器？",
    )
    yield (
        "SELECT name FROM player WHERE player_id NOT IN (SELECT player_id FROM rental)",
        "Which players have never rented an instrument?",
        "哪些演奏者从来没有租过乐器？",
    )
    yield (
        "SELECT name FROM maker WHERE maker_id NOT IN (SELECT maker_id FROM instrument)",
        "Which makers have not made an instrument?",
        "哪些制琴师没有做过乐器？",
    )
    yield (
        "SELECT kind FROM instrument WHERE price > (SELECT avg(price) FROM instrument)",
        "Which kinds of instruments cost more than the average?",
        "哪些种类的乐器比平均价格贵？",
    )
    for count in (1, 2):
        yield (
            f"SELECT city FROM player GROUP BY city HAVING count(*) > {count}",
            f"Which cities have more than {count} players?",
            f"哪些城市的演奏者多于{count}位？",
        )


def tables_json(database: SqliteDatabase) -> list[dict[str, object]]:
    """The schema as Spider writes it: columns numbered through all tables, `*` being the first."""
    schema = database.schema()
    columns = [(number, column) for number, table in enumerate(schema.tables) for column in table.columns]
    place = {(schema.tables[number].name, column.name): index for index, (number, column) in enumerate(columns, 1)}
    return [
        {
            "db_id": schema.db_id,
            "table_names_original": [table.name for table in schema.tables],
            "table_names": [table.name for table in schema.tables],
            "column_names_original": [[-1, "*"], *([number, column.name] for number, column in columns)],
            "column_names": [[-1, "*"], *([number, column.name.replace("_", " ")] for number, column in columns)],
            "column_types": ["text", *("text" if column.type == "TEXT" else "number" for _, column in columns)],
            "primary_keys": [place[table.name, name] for table in schema.tables for key in table.primary_keys for name in key],
            "foreign_keys": [[place[key.table, key.column], place[key.to_table, key.to_column]] for key in schema.foreign_keys],
        }
    ]  # fmt: skip


def main() -> None:
    path = OUT / "database" / DB_ID / f"{DB_ID}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as opened:
        opened.executescript((HERE / "workshop.sql").read_text(encoding="utf-8"))
        pairs = [pair for things in THINGS for pair in of_one_table(things, opened)]
        pairs += of_several_tables(opened)
        for query, _, _ in pairs:
            opened.execute(query).fetchall()  # a query that fails is a fault of this script
    random.Random(0).shuffle(pairs)
    splits: dict[str, list[dict[str, str]]] = {"train_spider": [], "dev": []}
    for number, (query, english, chinese) in enumerate(pairs):
        split = splits["dev" if number % DEV_SHARE == 0 else "train_spider"]
        # both languages to learn from; of what is asked in the evaluation, one
        asked = (english, chinese) if split is not splits["dev"] else ((english, chinese)[number // DEV_SHARE % 2],)
        split += [{"db_id": DB_ID, "question": question, "query": query} for question in asked]
    for name, rows in splits.items():
        (OUT / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    gold = "".join(f"{row['query']}\t{DB_ID}\n" for row in splits["dev"])
    (OUT / "dev_gold.sql").write_text(gold, encoding="utf-8")
    tables = json.dumps(tables_json(SqliteDatabase(DB_ID, path)), ensure_ascii=False, indent=1)
    (OUT / "tables.json").write_text(tables + "\n", encoding="utf-8")
    print(f"{OUT}: {len(splits['train_spider'])} questions to learn, {len(splits['dev'])} to evaluate")


if __name__ == "__main__":
    main()
