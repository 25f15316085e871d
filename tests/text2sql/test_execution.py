"""Whether two results are the same, and what is run of a query."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.text2sql.evaluation.efficiency import (
    efficiency_score,
    reward,
    rewarded_score,
    without_outliers,
)
from luthier.text2sql.evaluation.execution import (
    orders,
    runnable,
    same_result,
    same_set,
    several_statements,
    with_placeholders_filled,
)

CELLS = st.sampled_from([1, 2, 0, "a", "1", None, 2.5])


@pytest.mark.parametrize(
    ("query", "run"),
    [
        ("SELECT DISTINCT a FROM t", "SELECT  a FROM t"),
        ("SELECT count( distinct a ) FROM t", "SELECT count(  a ) FROM t"),
        ("SELECT 'distinct', \"DISTINCT\", distinct_id FROM t", "SELECT 'distinct', \"DISTINCT\", distinct_id FROM t"),
        ("SELECT a /* distinct */ FROM t -- distinct", "SELECT a /* distinct */ FROM t -- distinct"),
        ("SELECT a FROM t WHERE a > = 1 AND b ! = 2 AND c < = 3", "SELECT a FROM t WHERE a >= 1 AND b != 2 AND c <= 3"),
        ("SELECT year(curdate( ) ) - 1", "SELECT 2020- 1"),
        ("SELECT a FROM t; This query reads a.", "SELECT a FROM t;"),
        ("SELECT a FROM t; ```", "SELECT a FROM t;"),
        ("SELECT a FROM t;;", "SELECT a FROM t;"),
        ("SELECT ';' FROM t; x", "SELECT ';' FROM t;"),
        ("SELECT 'it''s'; x", "SELECT 'it''s';"),
        ("", ""),
    ],
)
def test_what_is_run(query: str, run: str) -> None:
    assert runnable(query) == run


@pytest.mark.parametrize(
    ("query", "several"),
    [
        ("SELECT a FROM t", False),
        ("SELECT a FROM t;;", False),
        ("SELECT a FROM t; -- SELECT b", False),
        ("SELECT ';SELECT b' FROM t", False),
        ("SELECT a FROM t; With this query a is read.", False),
        ("SELECT a FROM t; Explain: a is read.", False),
        ("SELECT a FROM t; SELECT b FROM t", True),
        ("SELECT a FROM t; WITH x AS (SELECT 1) SELECT 2", True),
        ("SELECT a FROM t; UPDATE t SET a = 1", True),
        ("SELECT a FROM t; VACUUM INTO 'x'", True),
        ("SELECT a FROM t; DROP TABLE t", True),
        ("SELECT a FROM t; /* x */ -- y\n delete from t", True),
        (";SELECT a FROM t", True),
    ],
)
def test_a_second_statement_is_told_from_text(query: str, several: bool) -> None:
    assert several_statements(query) is several


def test_a_text_made_to_take_long_does_not() -> None:
    assert runnable("/*" * 50_000).startswith("/*")
    assert not several_statements("SELECT 1;" + "/**/" * 20_000 + "x")
    assert runnable("'" * 99_999)
    assert not several_statements("SELECT 1;" + "update " * 20_000)


def test_value_stands_for_a_value_but_in_names_of_the_database() -> None:
    assert with_placeholders_filled("SELECT a FROM t WHERE b = 'value' LIMIT value", {"t": ("a", "b")}) == (
        "SELECT a FROM t WHERE b = '1' LIMIT 1"
    )
    tables = {"t": ("a", "market_value", "value_points")}
    query = "SELECT t.Market_value, value_points FROM t WHERE a = value OR a = 'values'"
    assert with_placeholders_filled(query, tables) == query.replace("= value", "= 1").replace("'values'", "'1s'")
    assert with_placeholders_filled("SELECT value FROM t", {"t": ("value",)}) == "SELECT value FROM t"


@pytest.mark.parametrize(
    ("gold", "predicted", "unordered", "ordered"),
    [
        ([], [], True, True),
        ([(1,)], [], False, False),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
        ([(1, "a")], [("a", 1)], True, True),
        ([(1, 2), (2, 1)], [(2, 1), (1, 2)], True, True),  # ordered too: the columns are turned round
        ([(1, 2), (2, 2)], [(2, 1), (2, 2)], True, True),
        ([(1,)], [(1, 1)], False, False),
        ([(1,)], [("1",)], False, False),
        ([(1,)], [(1.0,)], True, True),
        ([(None,)], [(None,)], True, True),
        ([(1, 2), (3, 4)], [(1, 4), (3, 2)], False, False),
        # equal numbers of different types in one row: the script sorts them as text, and finds a difference
        ([(1, 1.5)], [(1.0, 1.5)], False, False),
        ([(2, 1.5)], [(2.0, 1.5)], True, True),
    ],
)  # fmt: skip
def test_results(gold: list[Any], predicted: list[Any], unordered: bool, ordered: bool) -> None:
    assert same_result(gold, predicted, False) is unordered
    assert same_result(gold, predicted, True) is ordered


@given(
    st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[CELLS] * width), min_size=1, max_size=5)),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_permuted_columns_and_rows_are_the_same(rows: list[tuple[Any, ...]], seed: int) -> None:
    shuffled = random.Random(seed)
    places = shuffled.sample(range(len(rows[0])), len(rows[0]))
    turned = [tuple(row[place] for place in places) for row in rows]
    assert same_result(rows, turned, True) and same_result(rows, turned, False)
    assert same_result(rows, shuffled.sample(turned, len(turned)), False)


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.tuples(*[st.lists(st.tuples(*[st.sampled_from([0, 1])] * width), min_size=1, max_size=4)] * 2)
    )
)
@settings(deadline=None, max_examples=300)
def test_the_search_is_as_trying_every_order_of_columns(pair: tuple[list[Any], list[Any]]) -> None:
    gold, predicted = pair
    for ordered in (True, False):
        tried = any(
            (gold == turned if ordered else sorted(gold) == sorted(turned))
            for places in permutations(range(len(gold[0])))
            for turned in [[tuple(row[place] for place in places) for row in predicted]]
        )
        assert same_result(gold, predicted, ordered) is tried


def test_many_columns_are_no_trouble() -> None:
    rows = [tuple((row >> place) & 1 for place in range(60)) for row in range(64)]
    turned = [tuple(reversed(row)) for row in rows]
    assert same_result(rows, turned, False) and same_result(rows, turned, True)


def test_whether_order_counts() -> None:
    assert orders("SELECT a FROM t ORDER BY a") and orders("SELECT 'order by' FROM t")
    assert not orders("SELECT a FROM t ORDER  BY a")


def test_birds_sets() -> None:
    assert same_set([(1,), (1,), (2,)], [(2,), (1,)])
    assert not same_set([(1, 2)], [(2, 1)]) and not same_set([(1,)], [])


def test_birds_efficiency_written_out() -> None:
    # right and 4 times as fast, right and as fast, wrong: (2 + 1 + 0) / 3
    assert efficiency_score([4.0, 1.0, 0.0]) == pytest.approx(100.0)
    assert [reward(ratio) for ratio in (2.0, 1.9, 1.0, 0.5, 0.3, 0.1)] == [1.25, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rewarded_score([2.0, 0.3, 0.0]) == pytest.approx(100 * (1.25**0.5 + 0.5**0.5) / 3)
    # ten ones and a hundred: mean 10, deviation 28.46 of the population, so 100 is more than three of them away
    assert without_outliers([1.0] * 10 + [100.0]) == [1.0] * 10
    assert without_outliers([2.0, 2.0]) == [2.0, 2.0]
