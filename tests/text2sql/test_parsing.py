"""Tokens and parsed queries: what the official parser reads, and what it can't."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.text2sql.evaluation.hardness import hardness
from luthier.text2sql.evaluation.parsing import parse
from luthier.text2sql.evaluation.query import Column, Condition, Expression, Query, Selected
from luthier.text2sql.evaluation.tokens import UnreadableError, tokenize

TABLES = {
    "singer": ("id", "name", "age", "country"),
    "concert": ("id", "singer_id", "year", "title"),
    "sqlite_sequence": ("name", "seq"),
}


def column(name: str, aggregate: str = "", distinct: bool = False) -> Column:
    return Column(aggregate, name, distinct)


def plain(name: str, aggregate: str = "") -> Expression:
    return Expression("", column(name, aggregate), None)


@pytest.mark.parametrize(
    ("query", "tokens"),
    [
        ("SELECT count(*) FROM t", ["select", "count", "(", "*", ")", "from", "t"]),
        ("a=1", ["a=1"]),
        ("a = 1", ["a", "=", "1"]),
        ("a='X y'", ["a=\ue0000\ue001"]),
        ("a ='X y'", ["a", "=\ue0000\ue001"]),
        ('a >="It"', ["a", ">", "=\ue0000\ue001"]),
        ("a>=5", ["a", ">", "=5"]),
        ("a > = 5", ["a", ">=", "5"]),
        ("a != 5", ["a", "!=", "5"]),
        ("a <> 5", ["a", "<", ">", "5"]),
        ("a,b , c", ["a", ",", "b", ",", "c"]),
        ("in (1,2)", ["in", "(", "1,2", ")"]),
        ("t1.a = t2.b;", ["t1.a", "=", "t2.b", ";"]),
        ("a+b - c", ["a+b", "-", "c"]),
        ("LIMIT 1.", ["limit", "1", "."]),
        ("FROM t. This reads t.", ["from", "t.", "this", "reads", "t", "."]),
        ("by name. This", ["by", "name", ".", "this"]),
        ("`a b`", ["`", "a", "b", "`"]),
        ("a--b", ["a", "--", "b"]),
        ("", []),
    ],
)
def test_tokens(query: str, tokens: list[str]) -> None:
    assert tokenize(query) == tokens


def test_a_quote_that_is_not_closed() -> None:
    with pytest.raises(UnreadableError, match="a quote is not closed"):
        tokenize("SELECT name FROM singer WHERE name = 'O'Brien'")


@given(st.text(alphabet="ab1_.,:;()[]{}<>=!?*+-/%$&@#` \n«”éÉ", max_size=40))
@settings(max_examples=400, deadline=None)
def test_tokens_are_those_of_the_treebank_rules(text: str) -> None:
    """nltk's own tokenizer, sentence by sentence as one: where no full stop stands before white space."""
    nltk = pytest.importorskip("nltk")
    text = (
        text.replace(".\n", "\n")
        .replace(". ", " ")
        .replace(",,", ",")
        .replace("::", ":")
        .replace(",:", ",")
        .replace(":,", ",")
    )
    text = text.replace(",\n", ", ").replace(":\n", ": ")
    expected = [token.lower() for token in nltk.tokenize.NLTKWordTokenizer().tokenize(text)]
    joined: list[str] = []
    for token in expected:
        if token == "=" and joined and joined[-1] in ("!", ">", "<"):
            joined[-1] += "="
        else:
            joined.append(token)
    assert tokenize(text) == joined


def test_a_whole_query() -> None:
    query = (
        "SELECT DISTINCT T1.name, count(DISTINCT T2.title), age - min(age) FROM singer AS T1 JOIN concert AS T2 "
        "ON T1.id = T2.singer_id AND T1.age = 3 WHERE T2.year NOT IN (SELECT year FROM concert WHERE title LIKE 'A%') "
        "OR age BETWEEN 20 AND 30 GROUP BY T1.country HAVING count(*) >= 2 ORDER BY T1.age DESC, name LIMIT 3 "
        "UNION SELECT title FROM concert"
    )
    inner = Query(
        False,
        (Selected("", plain("concert.year")),),
        ("concert",),
        where=(Condition(False, "like", plain("concert.title"), '"A%"', None),),
    )
    assert parse(query, TABLES) == Query(
        distinct=True,
        select=(
            Selected("", plain("singer.name")),
            # the aggregate of an item stands before its brackets, DISTINCT within
            Selected("count", Expression("", column("concert.title", distinct=True), None)),
            Selected("", Expression("-", column("singer.age"), column("singer.age", "min"))),
        ),
        tables=("singer", "concert"),
        joins=(
            Condition(False, "=", plain("singer.id"), column("concert.singer_id"), None),
            "and",
            Condition(False, "=", plain("singer.age"), 3.0, None),
        ),
        where=(
            Condition(True, "in", plain("concert.year"), inner, None),
            "or",
            Condition(False, "between", plain("singer.age"), 20.0, 30.0),
        ),
        group_by=(column("singer.country"),),
        having=(Condition(False, ">=", plain("*", "count"), 2.0, None),),
        direction="desc",
        order_by=(plain("singer.age"), plain("singer.name")),
        limited=True,
        union=Query(False, (Selected("", plain("concert.title")),), ("concert",)),
    )


@pytest.mark.parametrize(
    "query",
    [
        "SELECT name FROM singer, concert",
        "SELECT name FROM singer s",
        "SELECT name FROM singer LEFT JOIN concert ON singer.id = concert.singer_id",
        "SELECT name FROM singer INNER JOIN concert ON singer.id = concert.singer_id",
        "SELECT name FROM singer WHERE age <> 3",
        "SELECT name FROM singer WHERE age=3",
        "SELECT name FROM singer WHERE name='a'",
        "SELECT name FROM singer WHERE name ='a'",
        "SELECT name FROM singer WHERE country IN ('a', 'b')",
        "SELECT name FROM singer WHERE name IS NOT NULL",
        "SELECT name FROM singer WHERE NOT age = 3",
        "SELECT name FROM singer WHERE EXISTS (SELECT 1 FROM concert)",
        "SELECT x.name FROM (SELECT name FROM singer) AS x",
        "SELECT nothing FROM singer",
        "SELECT singer.title FROM singer",
        "SELECT name FROM nothing",
        "SELECT T3.name FROM singer AS T1",
        "SELECT name AS singer FROM singer",
        "SELECT 1",
        "SELECT 1 FROM singer",
        "SELECT upper(name) FROM singer",
        "SELECT name FROM singer LIMIT",
        "SELECT name FROM singer ORDER age",
        "SELECT name FROM singer WHERE age",
        "SELECT name FROM singer WHERE age =",
        "SELECT name FROM singer WHERE age BETWEEN 1 OR 2",
        "SELECT max(age) - min(age) FROM singer",
        "SELECT name FROM singer AS",
        "WITH a AS (SELECT name FROM singer) SELECT name FROM a",
        "```sql SELECT name FROM singer```",
        "Here is the query: SELECT name FROM singer",
        "SELECT name FROM singer WHERE id = " + "(SELECT id FROM singer WHERE id = " * 2_000,
        "",
    ],
)
def test_what_can_not_be_read(query: str) -> None:
    try:
        parsed = parse(query, TABLES)
    except UnreadableError as error:
        assert str(error)
    else:
        pytest.fail(f"{query} was read as {parsed}")


def test_what_the_limit_is_does_not_count() -> None:
    limited = parse("SELECT name FROM singer LIMIT 3", TABLES)
    assert limited.limited and limited != parse("SELECT name FROM singer", TABLES)
    for limit in ("5", "value", '"a"', "1.5"):
        assert parse(f"SELECT name FROM singer LIMIT {limit}", TABLES) == limited


@pytest.mark.parametrize(
    ("query", "other"),
    [
        ("SELECT name FROM singer", "select NAME from Singer;"),
        ("SELECT name FROM singer", "SELECT name FROM singer ; and whatever follows"),
        ("SELECT name FROM singer", "SELECT T1.name FROM singer AS T1"),
        ("SELECT name, age FROM singer", "SELECT name age FROM singer"),
        ("SELECT name FROM singer", "SELECT (name) FROM singer"),
        ("SELECT name FROM singer WHERE age = id", "SELECT name FROM singer WHERE age = id OR age = 4"),
        ("SELECT name FROM singer WHERE age = id", "SELECT name FROM singer WHERE age = id + 5"),
        ("SELECT name FROM singer WHERE name = \"a b\"", "SELECT name FROM singer WHERE name = 'a b'"),
        ("SELECT name FROM singer ORDER BY age DESC, id", "SELECT name FROM singer ORDER BY age, id DESC"),
        ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer ORDER BY age ASC"),
        ("SELECT name FROM singer WHERE age != 1", "SELECT name FROM singer WHERE age ! = 1"),
        ("SELECT name FROM singer", "SELECT name FROM singer WHERE"),
        ("SELECT name FROM singer GROUP BY age", "SELECT name FROM singer GROUP BY age. This counts."),
    ],
)  # fmt: skip
def test_what_is_read_alike(query: str, other: str) -> None:
    assert parse(query, TABLES) == parse(other, TABLES)


@pytest.mark.parametrize(
    ("query", "level"),
    [
        ("SELECT name FROM singer", "easy"),
        ("SELECT name FROM singer WHERE age > 3", "easy"),
        ("SELECT count(*), max(age) FROM singer", "medium"),  # two columns, two aggregates
        ("SELECT name FROM singer WHERE age > 3 ORDER BY age", "medium"),
        ("SELECT name, age FROM singer WHERE age > 3 ORDER BY age", "medium"),
        ("SELECT name FROM singer WHERE age > (SELECT avg(age) FROM singer)", "hard"),
        ("SELECT name FROM singer UNION SELECT title FROM concert", "hard"),
        ("SELECT name FROM singer WHERE age > 3 ORDER BY age LIMIT 1", "hard"),  # three parts
        ("SELECT name FROM singer WHERE age > 3 GROUP BY name ORDER BY age LIMIT 1", "extra"),
        ("SELECT name, age FROM singer WHERE age > (SELECT avg(age) FROM singer)", "extra"),
        # two NOTs count as two aggregates, and so do AND and a condition of HAVING
        ("SELECT name FROM singer WHERE age NOT IN (SELECT age FROM singer)", "hard"),
        ("SELECT name FROM singer GROUP BY name HAVING count(*) > 1 AND max(age) > 2", "easy"),
        ("SELECT name FROM singer WHERE name LIKE 'a' OR name LIKE 'b'", "extra"),  # where, or, like, like
    ],
)
def test_hardness(query: str, level: str) -> None:
    assert hardness(parse(query, TABLES)) == level


def test_the_depth_of_python_does_not_matter() -> None:
    """A query as deep as can be read leaves room for those that compare it."""
    depth = sys.getrecursionlimit() // 8
    query = "SELECT name FROM singer WHERE id = (" * depth + "SELECT name FROM singer" + ")" * depth
    assert hardness(parse(query, TABLES)) == "hard"
