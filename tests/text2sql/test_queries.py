"""The query in an answer: fences, comments, line breaks, words before it and behind it."""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.text2sql.queries import NO_QUERY, query_in


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("SELECT 1", "SELECT 1"),
        ("SELECT name\nFROM head\r\n  WHERE age > 5\n", "SELECT name FROM head WHERE age > 5"),
        ("SELECT count(*) FROM head WHERE age  >  56", "SELECT count(*) FROM head WHERE age  >  56"),
        ("Here it is:\n```sql\nSELECT 1\nFROM t\n```\nIt counts.", "SELECT 1 FROM t"),
        ("```\nSELECT 1", "SELECT 1"),
        ("```sql SELECT 1 FROM t``` It counts.", "SELECT 1 FROM t"),
        ("```SELECT\n 1```", "SELECT 1"),
        ("The query counts all rows:\n\nSELECT count(*)\nFROM t;", "SELECT count(*) FROM t"),
        ("```python\nrun(x)\n```\nwhere x is\n```sql\nSELECT 1\n```", "SELECT 1"),
        ("```\nno statement\n```", "no statement"),
        ("`SELECT name FROM head;`", "SELECT name FROM head"),
        ("It is `SELECT 1`, which is one.", "SELECT 1"),
        ("SELECT `select x` FROM t", "SELECT `select x` FROM t"),
        ("<think>\nSELECT 1? No.\n</think>\n\nSELECT 2", "SELECT 2"),
        ("With this the heads are found.\nSQL query: SELECT name FROM head", "SELECT name FROM head"),
        (
            "-- heads\nWITH RECURSIVE c(x) AS (\nSELECT 1)\nSELECT x FROM c",
            "WITH RECURSIVE c(x) AS ( SELECT 1) SELECT x FROM c",
        ),
        ("(\nSELECT 1)", "( SELECT 1)"),
        ("INSERT INTO t\nSELECT 1", "INSERT INTO t SELECT 1"),
        ("There are 12 heads.", "There are 12 heads."),
        ("SELECT 1; SELECT 2", "SELECT 1"),
        ("SELECT\tname\tFROM head WHERE name = 'a\tb'", "SELECT name FROM head WHERE name = 'a b'"),
        ("`SELECT` is what begins it: `SELECT name FROM head`", "SELECT name FROM head"),
        ("SELECT name FROM head.", "SELECT name FROM head"),
        ("There are 12 heads.\n\nThis is what was asked for.", "There are 12 heads. This is what was asked for."),
        ("; SELECT 2;", "SELECT 2"),
        ("SELECT 'a;b', \"c;d\" FROM t; DROP TABLE t", "SELECT 'a;b', \"c;d\" FROM t"),
        ("SELECT a -- the name\nFROM t", "SELECT a FROM t"),
        ("SELECT 1\n-- the rows\nFROM t", "SELECT 1 FROM t"),
        ("SELECT 1\n-- the\n-- rows\n/* of */ -- t\nFROM t", "SELECT 1 FROM t"),
        ("-- one\n-- two\nSELECT 'a' -- three\n-- four\n, 'b'", "SELECT 'a' , 'b'"),
        ("SELECT '--no comment' /* one; two\n */ FROM t", "SELECT '--no comment' FROM t"),
        ("SELECT 'it''s\nhere'", "SELECT 'it''s here'"),
        ("SELECT 'open ; FROM t", "SELECT 'open"),
        ("", NO_QUERY),
        ("  \n ", NO_QUERY),
        ("-- I do not know", NO_QUERY),
        (";;", NO_QUERY),
    ],
)
def test_what_is_taken(answer: str, expected: str) -> None:
    assert query_in(answer) == expected


QUERY = "SELECT count(*) FROM head WHERE age > 56"


@pytest.mark.parametrize(
    "behind",
    [
        "\n\nThis query counts the heads that are older than 56.",
        "\nThis query counts the heads.",
        "\n\nIt counts heads.",
        "\n\nIt is one number.",
        "\n\nDone.",
        "\n\nShow all the heads.",
        "\n\nWhere is the head of the department?",
        "\n\nHope so!\n",
        "\r\n\r\nHere, we use a function to find how many there are.",
        "\n\nIn this query we count all rows.",
        "\n\nExplanation: `count(*)` counts rows;\nthe others are left out.",
        "\n\n**Explanation:**\n- `head` is the table",
        "\n### Explanation\nIt counts.",
        "\n\n1. First the table head is read.\n2. Then its rows are counted.",
        "\n\n- The table is `head`.",
        "\n\nThe query's answer isn't a list; it's one number.",
        "\n\nThe `head` table holds them.",
        "\n\nQuestion: How many are younger?\nSQL: SELECT 1",
        "\n\n###Input:\nHow many are younger?\n\n###Response:SELECT 1",
        "\n\n| count(*) |\n|---|\n| 5 |",
        "\n\n这个查询统计年龄大于56的主管人数。",
        "\n\n说明：统计人数",
        "\n```\nThis query counts the heads.",
        "\n```\n\n```sql\nSHOW TABLES\n```",
        "\n\nSELECT name FROM head",
        "\nWITH old AS (SELECT * FROM head) SELECT * FROM old",
        " -- the older ones\n\nThis query counts the heads.",
        "\n-- the older ones\nThis query counts the heads.",
        ";\nThis query counts the heads; all of them.",
        "\n</s>",
        "</s>",
        "<|im_end|>\n<|im_start|>user",
        "</sql> This query counts the heads.",
        "\n\n✅ This query counts the heads.",
    ],
)
def test_what_stands_behind_a_query_is_none_of_it(behind: str) -> None:
    assert query_in(QUERY + behind) == QUERY
    assert query_in(f"SQL: {QUERY}{behind}") == QUERY


@pytest.mark.parametrize(
    "before",
    [
        "SQL: ",
        "SQL:",
        "SQL query:\n\n",
        "**SQL:** ",
        "### SQL\n",
        "1. ",
        "- ",
        "> ",
        "<sql>",
        "Answer: <sql>",
        "<sql>\n",
        "Sure, here is the query that you asked for:\n",
        "The SQL for it (SQLite) is: ",
        "Select all the heads that are older than 56:\n\n",
        "Select the heads who are older, then count them.\n",
        "这是查询：",
        "```sql\n-- all\n",
        "<think>SELECT 1</think>",
    ],
)
def test_what_stands_before_a_query_is_none_of_it(before: str) -> None:
    assert query_in(before + QUERY) == QUERY
    assert query_in(f"{before}{QUERY}\n\nThis query counts the heads.") == QUERY


@pytest.mark.parametrize(
    "query",
    [
        "SELECT name,\n\nage FROM head",
        "SELECT name AS\n\nn FROM head",
        "SELECT name n\n\nFROM head T1\n\nWHERE T1.age > 56",
        "SELECT T1.name FROM head\n\nT1 JOIN management\n\nT2 ON T1.head_ID = T2.head_ID",
        "SELECT name FROM head\n\nAS T1",
        "SELECT name FROM head WHERE age\n\nIS NULL",
        "SELECT name FROM head\n\nUNION\n\nSELECT name FROM department",
        "SELECT name FROM head EXCEPT\n-- those\n\nSELECT name FROM department",
        "WITH a AS (\n\nSELECT name FROM head\n\n)\n\nSELECT name FROM a",
        "WITH a AS (SELECT name FROM head),\n\nb AS (SELECT name FROM a)\n\nSELECT name FROM b",
        "INSERT INTO head (name)\n\nSELECT name FROM department",
        "SELECT CASE\n\nWHEN age > 5 THEN 'old'\n\nELSE 'young' END FROM head",
        "SELECT name FROM head ORDER BY age\n\nDESC NULLS LAST\n\nLIMIT 5",
        "SELECT\n\ncount(*)\n\nn FROM head",
        "SELECT a.release,\nrelease\nFROM album AS a",
        "SELECT name FROM head WHERE name LIKE 'Note: %'",
        "SELECT name FROM head WHERE name = 'one.\n\nThis is the other.'",
        "SELECT name FROM head WHERE age IN (\n\n56,\n\n57)",
        "SELECT name\n|| ' of ' || born_state FROM head",
        "SELECT 5\n- 3\n* 2 x",
        "SELECT row_number() OVER (ORDER BY age)\n\nplace FROM head",
        "SELECT name FROM head\n\nWHERE age > :least",
        "SELECT name FROM head WHERE name = '</s> <|x|>' AND age < 5",
        "SELECT name FROM 主管\n\n人 WHERE 人.age > 5",
        "SELECT\n  name, -- name of the head\n  age\nFROM head",
        "SELECT\n  name, /* name of the head */\n  age\nFROM head",
        "SELECT name\nFROM head -- Table: all heads\nWHERE age > 56",
        "SELECT name\nFROM head /* Table: all\nheads */\nWHERE age > 56",
        "SELECT name FROM head -- note: older\nWHERE age > (\nSELECT avg(age) FROM head)",
        "SELECT name -- note: SELECT is what begins it\nFROM head",
        "-- all\nSELECT a -- note: x\nFROM t",
        "-- all\nSELECT a /* note: x */\nFROM t",
        "SELECT name\nFROM head WHERE name\nIN ('-- a', 'b -- c') -- the two names there are",
        "SELECT first_name\n|| ' ' ||\nlast_name FROM head",
    ],
)
def test_blank_lines_end_no_query_that_goes_on(query: str) -> None:
    alone = re.sub(r"('[^']*')|--.*|/\*(?s:.*?)\*/", r"\1", query)
    assert " ".join(query_in(query).split()) == " ".join(alone.split())


def test_every_gold_query_survives_line_breaks_and_loses_what_is_behind_it(real_spider: Path) -> None:
    breaks = itertools.cycle(["\n\n", " ", "\n", "  ", "\r\n\r\n"])
    for question in json.loads((real_spider / "dev.json").read_text()):
        query = " ".join(question["query"].rstrip("; ").split())
        outside = re.split(r"""('[^']*'|"[^"]*")""", query)  # what stands in quotes keeps its blanks
        outside[::2] = [re.sub(" ", lambda _: next(breaks), part) for part in outside[::2]]
        broken = "".join(outside)
        commented = re.sub(r"(?<=\S)(?=\r?\n)", " -- note: the name of it", broken)
        for answer in (broken, commented, f"{query}\n\nIt answers this: {question['question']}"):
            assert query_in(answer).split() == query.split()


@pytest.mark.parametrize("part", [" ", "update \n", "\n", "/*", "```", "`", "(", "[\n", "\n[", "a:", "\na", "'"])
def test_an_answer_made_to_take_long_does_not(part: str) -> None:
    started = time.process_time()
    query_in("SELECT 1" + part * 20_000 + "x")
    query_in(part * 20_000 + "x")
    assert time.process_time() - started < 2


@given(st.text(alphabet=list("SELECT 'a\"`[];-/*.:\n\r\t\u2028x"), max_size=60))
def test_always_one_line_and_never_blank(answer: str) -> None:
    found = query_in(answer)
    assert found.strip() and "\n" not in found and "\r" not in found
    assert query_in(found) == found or found == NO_QUERY


@given(st.lists(st.sampled_from(["1", "'a;b'", "'it''s'", '"x--y"', "2 /* c; */", "3 -- d\n"]), min_size=1, max_size=5))
def test_the_result_is_the_same(parts: list[str]) -> None:
    """What SQLite answers to a query of several lines, it answers to its one line."""
    opened = sqlite3.connect(":memory:")
    query = "SELECT\n" + ",\n".join(f"{part}\n AS c{number}" for number, part in enumerate(parts))
    try:
        expected = opened.execute(query).fetchall()
    except sqlite3.OperationalError:  # a quoted name that is no column, where SQLite does not take it for text
        expected = None
    if expected is not None:
        assert opened.execute(query_in(query + "; SELECT 2")).fetchall() == expected
    opened.close()
