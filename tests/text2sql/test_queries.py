"""The query in an answer: fences, comments, line breaks, and what comes after."""

from __future__ import annotations

import sqlite3
import time

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


@pytest.mark.parametrize("part", [" ", "update \n", "\n", "/*", "```", "`", "(", "[\n"])
def test_an_answer_made_to_take_long_does_not(part: str) -> None:
    started = time.process_time()
    query_in("SELECT 1" + part * 20_000 + "x")
    query_in(part * 20_000 + "x")
    assert time.process_time() - started < 2


@given(st.text(alphabet=list("SELECT 'a\"`[];-/*\n\r\u2028x"), max_size=60))
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
