"""Predictions written for this test, with the verdicts that Spider's official scripts gave on them (test-suite evaluator)."""

from __future__ import annotations

from pathlib import Path

from luthier.commands.sql_evaluate import evaluate
from tests.text2sql.conftest import DEPARTMENTS, DEPARTMENTS_SQL, make_database, write

DB = "department_management"
MORE = """
INSERT INTO department VALUES (3, 'Defense', '1947', 3, 439.3, 3000000), (4, 'Justice', '1870', 4, 23.4, 112557);
INSERT INTO head VALUES (3, 'Ann O''Hara', 'Alabama', 52), (4, 'Lee Wang', 'Alabama', 69), (5, 'Lee Wang', 'Delaware', 69);
INSERT INTO management VALUES (1, 1, 'No'), (4, 4, 'Yes');
"""
# (hardness, gold query): exact, execution, prediction
OFFICIAL: dict[tuple[str, str], list[tuple[int, int, str]]] = {
    ('easy', "SELECT count(*) FROM head WHERE age > 56"): [
        (1, 1, "select COUNT ( * ) from HEAD where AGE > 56"),
        (0, 1, "SELECT count(*) FROM head WHERE age > = 56;"),
        (1, 1, "SELECT count(*) FROM head WHERE age>56"),
        (1, 0, "SELECT count(*) FROM head WHERE age > value"),
        (1, 0, "SELECT count(*) FROM head WHERE age > 'value'"),
        (0, 1, "SELECT count(head_ID) FROM head WHERE age > 56"),
        (0, 1, "SELECT count(DISTINCT head_ID) FROM head WHERE age > 56"),
        (0, 1, "SELECT count(*) FROM head WHERE NOT age <= 56"),
        (0, 1, "SELECT count(*) FROM head WHERE age > 56 LIMIT 1"),
        (1, 1, "SELECT count(*) FROM head AS T1 WHERE T1.age > 56"),
        (0, 1, "SELECT count(*) FROM head T1 WHERE T1.age > 56"),
        (0, 1, "SELECT `count`(*) FROM `head` WHERE `age` > 56"),
        (0, 1, "SELECT count(*) FROM head WHERE (age > 56)"),
        (0, 1, "SELECT count(*) FROM head WHERE age > 56 -- older"),
        (1, 1, "SELECT count(*) FROM head WHERE age > 56; older ones"),
        (0, 0, "SELECT count(*), age FROM head WHERE age > 56"),
        (0, 1, "SELECT 4"),
        (0, 0, "```sql SELECT count(*) FROM head WHERE age > 56```"),
        (0, 0, "Here it is: SELECT count(*) FROM head WHERE age > 56"),
        (0, 0, "-- SELECT count(*) FROM head WHERE age > 56"),
        (0, 1, "/* count them */ SELECT count(*) FROM head WHERE age > 56"),
    ],
    ('easy', "SELECT DISTINCT name FROM head ORDER BY age DESC"): [
        (1, 1, "SELECT name FROM head ORDER BY age DESC"),
        (0, 0, "SELECT DISTINCT name FROM head ORDER BY age"),
        (0, 1, "SELECT name FROM head ORDER BY age DESC, name ASC"),
        (0, 0, "SELECT name FROM head GROUP BY name ORDER BY age DESC"),
        (1, 1, "SELECT name FROM head ORDER BY head.age DESC"),
        (0, 0, "SELECT name FROM head"),
        (0, 0, "SELECT name, age FROM head ORDER BY age DESC"),
    ],
    ('extra', "SELECT name, born_state FROM head WHERE born_state = 'Alabama' OR age < 60"): [
        (1, 1, "SELECT born_state, name FROM head WHERE born_state = \"Alabama\" OR age < 60"),
        (1, 1, "SELECT name, born_state FROM head WHERE age < 60 OR born_state = 'Alabama'"),
        (0, 1, "SELECT name, born_state FROM head WHERE born_state ='Alabama' OR age < 60"),
        (0, 0, "SELECT name, born_state FROM head WHERE born_state = 'Alabama' AND age < 60"),
        (1, 0, "SELECT name, born_state FROM head WHERE born_state = 'Alaska' OR age < 70"),
        (0, 1, "SELECT name, born_state FROM head WHERE born_state IN ('Alabama')"),
        (0, 1, "SELECT name, born_state FROM head WHERE born_state LIKE 'Alabama' OR age < 60"),
        (0, 1, "SELECT name, born_state FROM head WHERE born_state = 'Alabama' UNION SELECT name, born_state FROM head WHERE age < 60"),
        (0, 0, "SELECT name, born_state FROM head WHERE name = 'O'Hara' OR age < 60"),
        (0, 0, "SELECT name , born_state FROM head WHERE born_state = “Alabama” OR age < 60"),
        (0, 0, "SELECT * FROM head WHERE born_state = 'Alabama' OR age < 60"),
    ],
    ('medium', "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes'"): [
        (1, 1, "SELECT T2.name FROM management AS T1 JOIN head AS T2 ON T1.head_ID = T2.head_ID WHERE T1.temporary_acting = 'Yes'"),
        (1, 1, "SELECT head.name FROM head JOIN management ON head.head_ID = management.head_ID WHERE management.temporary_acting = 'Yes'"),
        (0, 1, "SELECT T1.name FROM head AS T1 LEFT JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes'"),
        (0, 1, "SELECT T1.name FROM head AS T1, management AS T2 WHERE T1.head_ID = T2.head_ID AND T2.temporary_acting = 'Yes'"),
        (0, 1, "SELECT name FROM head WHERE head_ID IN (SELECT head_ID FROM management WHERE temporary_acting = 'Yes')"),
        (1, 0, "SELECT T1.name FROM head AS T1 JOIN management AS T2 WHERE T2.temporary_acting = 'Yes'"),
        (1, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.department_ID WHERE T2.temporary_acting = 'Yes'"),
        (0, 0, "SELECT T1.head_ID FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes'"),
        (0, 1, "WITH acting AS (SELECT head_ID FROM management WHERE temporary_acting = 'Yes') SELECT name FROM head JOIN acting USING (head_ID)"),
    ],
    ('medium', "SELECT T2.head_ID FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID GROUP BY T2.head_ID HAVING count(*) >= 1"): [
        (1, 1, "SELECT T1.head_ID FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID GROUP BY T1.head_ID HAVING count(*) >= 1"),
        (1, 0, "SELECT T1.head_ID FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID GROUP BY T2.head_ID HAVING count(*) >= 5"),
        (0, 1, "SELECT head_ID FROM management GROUP BY head_ID HAVING count(*) >= 1"),
        (0, 1, "SELECT T2.head_ID FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID GROUP BY T2.head_ID"),
    ],
    ('hard', "SELECT born_state FROM head GROUP BY born_state ORDER BY count(*) DESC LIMIT 1"): [
        (1, 1, "SELECT born_state FROM head GROUP BY born_state ORDER BY count(*) DESC LIMIT value"),
        (1, 0, "SELECT born_state FROM head GROUP BY born_state ORDER BY count(*) DESC LIMIT 3"),
        (0, 0, "SELECT born_state FROM head GROUP BY born_state ORDER BY count(*) DESC"),
        (0, 0, "SELECT born_state FROM head GROUP BY born_state ORDER BY count(*) LIMIT 1"),
        (0, 1, "SELECT born_state FROM head GROUP BY born_state ORDER BY count(born_state) DESC LIMIT 1"),
        (0, 0, "SELECT born_state, count(*) FROM head GROUP BY born_state ORDER BY count(*) DESC LIMIT 1"),
    ],
    ('hard', "SELECT Name FROM department EXCEPT SELECT T1.Name FROM department AS T1 JOIN management AS T2 ON T1.Department_ID = T2.department_ID"): [
        (0, 1, "SELECT Name FROM department WHERE Department_ID NOT IN (SELECT department_ID FROM management)"),
        (1, 1, "SELECT Name FROM department EXCEPT SELECT department.Name FROM department JOIN management ON department.Department_ID = management.department_ID"),
        (0, 0, "SELECT Name FROM department UNION SELECT T1.Name FROM department AS T1 JOIN management AS T2 ON T1.Department_ID = T2.department_ID"),
        (0, 1, "SELECT 'Defense'"),
        (0, 1, "SELECT Name FROM department WHERE Creation = 1947"),
        (0, 1, "SELECT Name FROM department WHERE Creation > = '1900' AND Creation ! = YEAR(CURDATE())"),
    ],
    ('hard', "SELECT Name FROM department WHERE Budget_in_Billions = (SELECT max(Budget_in_Billions) FROM department)"): [
        (0, 1, "SELECT Name FROM department ORDER BY Budget_in_Billions DESC LIMIT 1"),
        (1, 1, "SELECT Name FROM department WHERE Budget_in_Billions = (SELECT MAX ( Budget_in_Billions ) FROM department)"),
        (0, 0, "SELECT Name FROM department WHERE Budget_in_Billions = (SELECT min(Budget_in_Billions) FROM department)"),
        (0, 0, "SELECT Name, max(Budget_in_Billions) FROM department"),
        (0, 1, "SELECT Name FROM department WHERE Budget_in_Billions BETWEEN 400 AND 500"),
    ],
    ('easy', "SELECT name FROM head WHERE age > 100"): [
        (0, 1, "SELECT age, name FROM head WHERE age > 100"),
        (0, 1, "SELECT name FROM head WHERE born_state = 'Alaska'"),
        (0, 0, "SELECT nothing FROM head"),
        (0, 1, "-- there are none"),
        (0, 1, "/* there are none"),
        (0, 1, ";"),
        (0, 1, "-- value; SELECT count(*) FROM head"),
        (0, 0, "# there are none"),
        (0, 0, "EXPLAIN SELECT 1"),
        (0, 0, "(no query)"),
    ],
    ('medium', "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes' AND T1.age > 50"): [
        (1, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T2.head_ID = T1.head_ID WHERE T1.age > 50 AND T2.temporary_acting = 'Yes'"),
        (1, 1, "SELECT b.name FROM management AS a JOIN head AS b ON a.head_ID = b.head_ID WHERE b.age > 50 AND a.temporary_acting = 'Yes'"),
        (1, 1, "select t1.NAME from HEAD as t1 join MANAGEMENT as t2 on t1.HEAD_ID = t2.HEAD_ID where t2.TEMPORARY_ACTING = 'Yes' and t1.AGE > 50"),
        (0, 1, "SELECT T1.name FROM head AS T1 INNER JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes' AND T1.age > 50"),
        (0, 1, "SELECT name FROM head JOIN management USING (head_ID) WHERE temporary_acting = 'Yes' AND age > 50"),
        (0, 1, "SELECT name FROM head NATURAL JOIN management WHERE temporary_acting = 'Yes' AND age > 50"),
        (1, 1, "SELECT name FROM head JOIN management ON head.head_ID = management.head_ID WHERE temporary_acting = 'Yes' AND age > 50"),
        (0, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON (T1.head_ID = T2.head_ID) WHERE T2.temporary_acting = 'Yes' AND T1.age > 50"),
        (0, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID AND T1.age > 50 WHERE T2.temporary_acting = 'Yes'"),
        (0, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 WHERE T1.head_ID = T2.head_ID AND T2.temporary_acting = 'Yes' AND T1.age > 50"),
        (0, 1, "SELECT T1.name FROM (head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID) WHERE T2.temporary_acting = 'Yes' AND T1.age > 50"),
        (0, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE (T2.temporary_acting = 'Yes' AND T1.age > 50)"),
        (0, 1, "SELECT T1.name AS leader FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes' AND T1.age > 50"),
        (0, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID JOIN department AS T3 ON T2.department_ID = T3.Department_ID WHERE T2.temporary_acting = 'Yes' AND T1.age > 50"),
        (0, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes' INTERSECT SELECT name FROM head WHERE age > 50"),
        (0, 1, "SELECT T1.name FROM main.head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes' AND T1.age > 50"),
        (1, 0, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'yes' AND T1.age > 50"),
        (1, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = \"Yes\" AND T1.age > 50 \t(the heads)"),
        (0, 1, "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes' AND T1.age > 50 LIMIT -1"),
    ],
    ('extra', "SELECT name FROM head WHERE age NOT BETWEEN 60 AND 68 AND name NOT LIKE '%Wang%'"): [
        (1, 0, "SELECT name FROM head WHERE name NOT LIKE 'x' AND age NOT BETWEEN 1 AND 2"),
        (0, 0, "SELECT name FROM head WHERE age BETWEEN 60 AND 68 AND name NOT LIKE '%Wang%'"),
        (0, 1, "SELECT name FROM head WHERE (age < 60 OR age > 68) AND name NOT LIKE '%Wang%'"),
        (0, 1, "SELECT name FROM head WHERE NOT (age BETWEEN 60 AND 68) AND NOT name LIKE '%Wang%'"),
        (0, 1, "SELECT name FROM head WHERE age NOT BETWEEN 60 AND 68 EXCEPT SELECT name FROM head WHERE name LIKE '%Wang%'"),
        (0, 1, "SELECT name FROM head WHERE age NOT IN (60, 67, 68) AND name NOT LIKE '%Wang%'"),
        (1, 1, "SELECT name FROM head WHERE age NOT BETWEEN 60 AND 68 AND name NOT LIKE '%wang%'"),
        (0, 1, "SELECT name FROM head WHERE age NOT BETWEEN 60 AND 68 AND name NOT GLOB '*Wang*'"),
    ],
    ('extra', "SELECT born_state, count(DISTINCT name) FROM head GROUP BY born_state HAVING count(*) > 1 ORDER BY count(*) DESC, born_state"): [
        (1, 0, "SELECT born_state, count(name) FROM head GROUP BY born_state HAVING count(*) > 3 ORDER BY count(*), born_state DESC"),
        (1, 1, "SELECT count(DISTINCT name), born_state FROM head GROUP BY born_state HAVING count(*) > 1 ORDER BY count(*) DESC, born_state"),
        (0, 1, "SELECT born_state, count(DISTINCT(name)) FROM head GROUP BY born_state HAVING count(*) > 1 ORDER BY count(*) DESC, born_state ASC"),
        (0, 1, "SELECT born_state, count(DISTINCT name) FROM head GROUP BY born_state HAVING count(*) >= 2 ORDER BY count(*) DESC, born_state"),
        (0, 1, "SELECT born_state, count(DISTINCT name) FROM head GROUP BY born_state HAVING count(*) > 1 ORDER BY 2 DESC, 1"),
        (0, 1, "SELECT born_state, count(DISTINCT name) FROM head GROUP BY 1 HAVING count(*) > 1 ORDER BY count(*) DESC, born_state"),
        (0, 1, "SELECT born_state, count(DISTINCT name) AS n FROM head GROUP BY born_state HAVING n > 1 ORDER BY n DESC, born_state"),
        (1, 1, "SELECT born_state, count(DISTINCT name) FROM head GROUP BY head.born_state HAVING count(*) > 1 ORDER BY count(*) DESC, head.born_state"),
    ],
    ('extra', "SELECT name FROM head WHERE age > (SELECT avg(age) FROM head) UNION SELECT name FROM head WHERE born_state = 'Delaware'"): [
        (0, 1, "SELECT name FROM head WHERE born_state = 'Delaware' UNION SELECT name FROM head WHERE age > (SELECT avg(age) FROM head)"),
        (0, 0, "SELECT name FROM head WHERE age > (SELECT avg(age) FROM head) UNION ALL SELECT name FROM head WHERE born_state = 'Delaware'"),
        (0, 1, "SELECT name FROM head WHERE age > (SELECT avg(age) FROM head WHERE age > 0) UNION SELECT name FROM head WHERE born_state = 'Delaware'"),
        (0, 0, "SELECT DISTINCT name FROM head WHERE age > (SELECT avg(age) FROM head) OR born_state = 'Delaware'"),
        (1, 1, "SELECT name FROM head WHERE age > (SELECT avg(age) FROM head) UNION SELECT name FROM head WHERE born_state = 'Ohio'"),
        (1, 0, "(SELECT name FROM head WHERE age > (SELECT avg(age) FROM head)) UNION (SELECT name FROM head WHERE born_state = 'Delaware')"),
        (0, 1, "SELECT name FROM head WHERE age > (SELECT avg(age) FROM head) UNION SELECT name FROM head WHERE born_state = 'Delaware' ORDER BY name"),
    ],
    ('easy', "SELECT * FROM head WHERE name = 'Sergio García'"): [
        (1, 1, "SELECT * FROM head WHERE name = \"Sergio García\""),
        (0, 1, "SELECT head_ID, name, born_state, age FROM head WHERE name = 'Sergio García'"),
        (0, 1, "SELECT age, born_state, name, head_ID FROM head WHERE name LIKE '%garcía'"),
        (1, 0, "SELECT * FROM head WHERE name = 'Sergio Garcia'"),
        (1, 0, "SELECT\u00a0* FROM head WHERE name = 'Sergio García'"),
        (0, 1, "SELECT T1.* FROM head AS T1 WHERE T1.name = 'Sergio García'"),
        (0, 0, "SELECT * FROM head WHERE name = ’Sergio García’"),
        (0, 1, "SELECT * FROM head WHERE name = 'Sergio García' AND name = 'Sergio García'"),
        (0, 0, "SELECT *, * FROM head WHERE name = 'Sergio García'"),
    ],
}  # fmt: skip


def test_the_verdicts_are_the_official_ones(tmp_path: Path) -> None:
    make_database(tmp_path / "database" / DB / f"{DB}.sqlite", DEPARTMENTS_SQL + MORE)
    tables = write(tmp_path / "tables.json", [DEPARTMENTS])
    cases = [(level, gold, *case) for (level, gold), cases in OFFICIAL.items() for case in cases]
    (tmp_path / "gold.sql").write_text("".join(f"{gold}\t{DB}\n" for _, gold, *_ in cases))
    (tmp_path / "pred.sql").write_text("".join(f"{case[4]}\n" for case in cases))
    result = evaluate(tmp_path / "gold.sql", tmp_path / "pred.sql", tmp_path / "database", tables)
    ours = [
        (item.verdict.hardness, item.gold.query, item.verdict.exact, item.verdict.execution) for item in result.items
    ]
    assert [(*verdict, case[4]) for verdict, case in zip(ours, cases, strict=True)] == cases
