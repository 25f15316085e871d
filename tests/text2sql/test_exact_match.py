"""Exact set match: what it looks at, what it leaves aside, and what changes nothing."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.text2sql.evaluation.exact_match import PARTS, compare
from luthier.text2sql.evaluation.parsing import parse
from luthier.text2sql.evaluation.query import Query
from luthier.text2sql.evaluation.schemas import same_columns
from luthier.text2sql.schema import Column, ForeignKey, Schema, Table

TABLES = {"pet": ("id", "owner_id", "name", "age"), "owner": ("id", "name", "city"), "visit": ("id", "pet_id", "day")}
SAME = {"pet.owner_id": "owner.id", "owner.id": "owner.id", "visit.pet_id": "pet.id", "pet.id": "pet.id"}


def exact(predicted: str, gold: str) -> bool:
    return compare(parse(predicted, TABLES), parse(gold, TABLES), SAME).exact


@pytest.mark.parametrize(
    ("predicted", "gold", "same"),
    [
        ("SELECT name FROM pet WHERE age > 3", "SELECT name FROM pet WHERE age > 99", True),  # values are left out
        ("SELECT DISTINCT name FROM pet", "SELECT name FROM pet", True),
        ("SELECT count(DISTINCT name) FROM pet", "SELECT count(name) FROM pet", True),
        ("SELECT name, age FROM pet", "SELECT age, name FROM pet", True),
        ("SELECT name, name FROM pet", "SELECT name FROM pet", False),
        ("SELECT max(age) FROM pet", "SELECT min(age) FROM pet", False),
        ("SELECT name FROM pet WHERE age = 1 AND id = 2", "SELECT name FROM pet WHERE id = 3 AND age = 4", True),
        ("SELECT name FROM pet WHERE age = 1 OR id = 2", "SELECT name FROM pet WHERE id = 3 AND age = 4", False),
        ("SELECT name FROM pet WHERE age = 1", "SELECT name FROM pet WHERE age >= 1", False),
        ("SELECT name FROM pet WHERE age NOT IN (SELECT age FROM pet)", "SELECT name FROM pet WHERE age IN (SELECT age FROM pet)", False),
        # a foreign key is one column with what it refers to, in the tables that FROM names
        (
            "SELECT T1.owner_id FROM pet AS T1 JOIN owner AS T2 ON T1.owner_id = T2.id",
            "SELECT T2.id FROM pet AS T1 JOIN owner AS T2 ON T1.owner_id = T2.id",
            True,
        ),
        ("SELECT owner_id FROM pet", "SELECT id FROM owner", False),
        # ON is not compared, tables are, in any order
        (
            "SELECT T1.name FROM pet AS T1 JOIN owner AS T2 ON T1.id = T2.id",
            "SELECT T2.name FROM owner AS T1 JOIN pet AS T2 ON T1.id = T2.owner_id",
            True,
        ),
        ("SELECT T1.name FROM pet AS T1 JOIN owner AS T2", "SELECT T1.name FROM pet AS T1 JOIN visit AS T2", False),
        # GROUP BY: by name without table, but with HAVING as it stands
        ("SELECT count(*) FROM pet GROUP BY age, name", "SELECT count(*) FROM pet GROUP BY name, age", False),
        ("SELECT count(*) FROM pet GROUP BY age HAVING count(*) > 1", "SELECT count(*) FROM pet GROUP BY age HAVING count(*) > 7", True),
        ("SELECT count(*) FROM pet GROUP BY age HAVING count(*) > 1", "SELECT count(*) FROM pet GROUP BY age HAVING count(*) < 1", False),
        ("SELECT count(*) FROM pet GROUP BY age HAVING count(*) > 1", "SELECT count(*) FROM pet GROUP BY age", False),
        ("SELECT name FROM pet ORDER BY age", "SELECT name FROM pet ORDER BY age DESC", False),
        ("SELECT name FROM pet ORDER BY age, id", "SELECT name FROM pet ORDER BY id, age", False),
        ("SELECT name FROM pet ORDER BY age LIMIT 1", "SELECT name FROM pet ORDER BY age LIMIT 9", True),
        ("SELECT name FROM pet ORDER BY age LIMIT 1", "SELECT name FROM pet ORDER BY age", False),
        ("SELECT name FROM pet LIMIT 1", "SELECT name FROM pet", False),
        ("SELECT name FROM pet UNION SELECT name FROM owner", "SELECT name FROM pet UNION SELECT name FROM owner", True),
        ("SELECT name FROM pet UNION SELECT name FROM owner", "SELECT name FROM owner UNION SELECT name FROM pet", False),
        ("SELECT name FROM pet UNION SELECT name FROM owner", "SELECT name FROM pet EXCEPT SELECT name FROM owner", False),
        (
            "SELECT name FROM pet INTERSECT SELECT name FROM pet WHERE age = 1 AND id = 2",
            "SELECT name FROM pet INTERSECT SELECT name FROM pet WHERE id = 2 AND age = 3",
            True,
        ),
        # in a condition a query is compared as it stands, but for values
        (
            "SELECT name FROM pet WHERE id IN (SELECT pet_id FROM visit WHERE day = 1)",
            "SELECT name FROM pet WHERE id IN (SELECT pet_id FROM visit WHERE day = 2)",
            True,
        ),
        (
            "SELECT name FROM pet WHERE id IN (SELECT DISTINCT pet_id FROM visit)",
            "SELECT name FROM pet WHERE id IN (SELECT pet_id FROM visit)",
            False,
        ),
        # in FROM with its values
        ("SELECT count(*) FROM (SELECT id FROM pet WHERE age = 1)", "SELECT count(*) FROM (SELECT id FROM pet WHERE age = 1)", True),
        ("SELECT count(*) FROM (SELECT id FROM pet WHERE age = 1)", "SELECT count(*) FROM (SELECT id FROM pet WHERE age = 2)", False),
        ("SELECT age + id FROM pet", "SELECT age + id FROM pet", True),
        ("SELECT age + id FROM pet", "SELECT id + age FROM pet", False),
    ],
)  # fmt: skip
def test_pairs(predicted: str, gold: str, same: bool) -> None:
    assert exact(predicted, gold) is same
    assert exact(gold, gold)


CONDITIONS = ["age > 3", "name LIKE 'a'", "id = 4", "age BETWEEN 1 AND 2", "id NOT IN (SELECT pet_id FROM visit)"]
ITEMS = ["name", "age", "count(*)", "max(age)", "id"]


@given(
    items=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=4),
    conditions=st.lists(st.sampled_from(CONDITIONS), max_size=4),
    connector=st.sampled_from([" AND ", " OR "]),
    seed=st.integers(0, 1 << 30),
    end=st.sampled_from(["", " GROUP BY name", " ORDER BY age DESC LIMIT 3", " GROUP BY age HAVING count(*) > 1"]),
)
@settings(deadline=None, max_examples=60)
def test_the_order_of_items_and_conditions_is_nothing(
    items: list[str], conditions: list[str], connector: str, seed: int, end: str
) -> None:
    def query(items: list[str], conditions: list[str]) -> str:
        where = f" WHERE {connector.join(conditions)}" if conditions else ""
        return f"SELECT {', '.join(items)} FROM pet{where}{end}"

    shuffled = random.Random(seed)
    others = shuffled.sample(items, len(items)), shuffled.sample(conditions, len(conditions))
    assert exact(query(*others), query(items, conditions))
    # one more or one less is not the same
    assert not exact(query([*items, "name"], conditions), query(items, conditions))
    if conditions:
        assert not exact(query(items, conditions[1:]), query(items, conditions))


@given(st.tuples(*[st.text(alphabet="abcdefgh", min_size=2, max_size=5)] * 2).filter(lambda pair: pair[0] != pair[1]))
@settings(deadline=None, max_examples=40)
def test_names_of_aliases_are_nothing(names: tuple[str, str]) -> None:
    def query(one: str, two: str) -> str:
        return (
            f"SELECT {one}.name FROM pet AS {one} JOIN owner AS {two} ON {one}.owner_id = {two}.id "
            f"WHERE {two}.city = 'Rome' GROUP BY {one}.id ORDER BY count(*) DESC"
        )

    assert exact(query(*names), query("T1", "T2"))


def test_a_prediction_that_can_not_be_read_matches_in_what_the_gold_query_lacks() -> None:
    match = compare(Query(), parse("SELECT name FROM pet WHERE age = 1", TABLES), SAME)
    assert not match.exact and tuple(match.parts) == PARTS
    assert {name: (part.matched, part.predicted, part.labelled) for name, part in match.parts.items()} == {
        "select": (0, False, True),
        "select(no AGG)": (0, False, True),
        "where": (0, False, True),
        "where(no OP)": (0, False, True),
        "group(no Having)": (1, False, False),
        "group": (1, False, False),
        "order": (1, False, False),
        "and/or": (1, True, True),
        "IUEN": (1, False, False),
        "keywords": (0, False, True),
    }


def test_classes_of_foreign_keys_never_merge() -> None:
    table = Table("t", tuple(Column(name) for name in ("a", "b", "c", "d")))

    def schema(*pairs: tuple[str, str]) -> Schema:
        return Schema("x", (table,), tuple(ForeignKey("t", one, "t", two) for one, two in pairs))

    assert same_columns(schema(("c", "d"), ("a", "b"))) == {"t.c": "t.c", "t.d": "t.c", "t.a": "t.a", "t.b": "t.a"}
    # b - c connects the two: it joins the first, and c stands for what the second says
    assert same_columns(schema(("a", "b"), ("c", "d"), ("b", "c"))) == {
        "t.a": "t.a",
        "t.b": "t.a",
        "t.c": "t.c",
        "t.d": "t.c",
    }
