"""A small database, and what must not change about it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from luthier.sandbox import child as child_file
from luthier.sandbox.limits import Limits
from luthier.sandbox.sandbox import Sandbox

SCRIPT = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INT);
CREATE VIEW young AS SELECT name FROM singer WHERE age < 30;
CREATE TABLE number (value INT);
CREATE VIRTUAL TABLE notes USING fts5(body);
INSERT INTO singer VALUES (1, 'Ann', 25), (2, 'Bob', 40), (3, NULL, 31);
INSERT INTO notes VALUES ('a song of songs');
WITH RECURSIVE counting(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM counting LIMIT 500) INSERT INTO number SELECT x FROM counting;
"""


def make_database(path: Path, script: str = SCRIPT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as opened:
        opened.executescript(script)
    return path


def state_of(folder: Path) -> dict[str, str]:
    """Every file below a folder and the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("databases")
    make_database(made / "songs" / "songs.sqlite")
    return made


@pytest.fixture(scope="module")
def database(folder: Path) -> Path:
    return folder / "songs" / "songs.sqlite"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """Two workers with narrow limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child_file, "GRACE_SECONDS", 0.3)
        limits = Limits(
            seconds=0.2, rows=1_000, result_bytes=1 << 20, cell_bytes=1 << 20, memory_bytes=64 << 20, sql_bytes=50_000
        )
        with Sandbox(2, limits) as made:
            yield made
