"""Any database that SQLAlchemy reaches by a URL, with files of questions and queries (extra `sql`).

A password may stand in an environment variable with the whole URL (`env:NAME`); it is printed nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from luthier.foundation.errors import DataError, UserError, import_extra
from luthier.text2sql.layout import Dataset, LayoutOptions
from luthier.text2sql.layouts._pairs import of_one_database
from luthier.text2sql.schema import Column, ForeignKey, Schema, Table

VARIABLE = "env:"
DIALECTS = {"postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB", "sqlite": "SQLite", "oracle": "Oracle",
            "mssql": "SQL Server"}  # fmt: skip


class Options(LayoutOptions):
    """The questions of a database."""

    name: Literal["sqlalchemy"] = "sqlalchemy"
    questions: list[str] = Field(
        default_factory=list, description="Files of rows with question, query (where there is one) and evidence."
    )
    db_id: str | None = Field(
        None, min_length=1, description="What to call the database; default: its name in the URL."
    )


def recognizes(path: Path) -> str | None:
    """Why this is a database's URL, or None: a path has lost one of its slashes."""
    text = str(path)
    return "a database's URL" if text.startswith(VARIABLE) or re.match(r"[a-z][a-z0-9+_]*:/", text) else None


def build(options: Options) -> Dataset:
    """Read the database's schema and the questions.

    Raises:
        UserError: SQLAlchemy or a driver is not installed, the URL is none, a file is missing.
        DataError: the database does not answer, or has no tables; a file is broken.
    """
    library: Any = import_extra("sqlalchemy", package="SQLAlchemy", extra="sql", purpose="a database's URL")
    url = _url(library, options.path)
    database = SqlalchemyDatabase(
        options.db_id or Path(url.database or "").stem or url.get_backend_name(), _engine(library, url)
    )
    schema = database.schema()
    if not schema.tables:
        raise DataError(
            f"the database {database.place} has no tables that this user sees.", "Is it the right database and schema?"
        )
    return of_one_database(schema, database, [Path(name).expanduser() for name in options.questions])


def _url(library: Any, given: str) -> Any:
    text = given
    if given.startswith(VARIABLE):
        name = given.removeprefix(VARIABLE)
        text = os.environ.get(name, "")
        if not text:
            raise UserError(f"the environment variable {name} is not set.", "It has to hold the database's URL.")
    try:
        return library.make_url(text)
    except (library.exc.ArgumentError, ValueError):
        # whatever was given may hold a password, so it is not repeated
        raise UserError(
            "the database's URL can't be read.", "It is DIALECT+DRIVER://USER:PASSWORD@HOST/NAME, or env:VARIABLE."
        ) from None


def _engine(library: Any, url: Any) -> Any:
    try:
        return library.create_engine(url, poolclass=library.pool.NullPool)
    except library.exc.NoSuchModuleError:
        raise UserError(
            f"SQLAlchemy knows no database {url.drivername!r}.", "Such as postgresql+psycopg, mysql+pymysql, sqlite."
        ) from None
    except ModuleNotFoundError as error:
        raise UserError(
            f"the driver of {url.drivername} is not installed: no module {error.name!r}.", f"pip install {error.name}"
        ) from None


@dataclass(frozen=True)
class SqlalchemyDatabase:
    """A database behind a URL; every transaction is rolled back."""

    db_id: str
    engine: Any

    @property
    def place(self) -> str:
        """The URL without its password."""
        shown: str = self.engine.url.render_as_string(hide_password=True)
        return shown

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import sqlalchemy

        try:
            with self.engine.connect() as opened:
                yield opened
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise DataError(
                f"the database {self.place} can't be read: {self._without_password(error)}.",
                "Does its server run, and may this user read it?",
            ) from None  # the driver's own error may repeat the URL

    def _without_password(self, error: Exception) -> str:
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        password = self.engine.url.password
        return said.replace(str(password), "***") if password else said

    def schema(self) -> Schema:
        """Its tables and keys.

        Raises:
            DataError: the server does not answer, or refuses.
        """
        import sqlalchemy

        with self._opened() as opened:
            found = sqlalchemy.inspect(opened)
            names = found.get_table_names()
            tables = tuple(self._table(found, name) for name in names)
            keys = tuple(
                ForeignKey(name, one, key["referred_table"], other)
                for name in names
                for key in found.get_foreign_keys(name)
                for one, other in zip(key["constrained_columns"], key["referred_columns"], strict=True)
                if key["referred_table"] in names
            )
        dialect = self.engine.dialect.name
        return Schema(self.db_id, tables, keys, DIALECTS.get(dialect, dialect))

    def _table(self, found: Any, name: str) -> Table:
        key = tuple(found.get_pk_constraint(name)["constrained_columns"])
        columns = tuple(
            Column(column["name"], self._type(column["type"]), description=column.get("comment") or "")
            for column in found.get_columns(name)
        )
        return Table(name, columns, (key,) if key else ())

    def _type(self, kind: Any) -> str:
        import sqlalchemy

        if isinstance(kind, sqlalchemy.types.NullType):
            return ""
        shown: str = kind.compile(self.engine.dialect)
        return shown

    def rows(self, table: Table, count: int) -> list[tuple[Any, ...]]:
        """See `Database`."""
        import sqlalchemy

        columns: list[Any] = [sqlalchemy.column(column.name) for column in table.columns]
        chosen = sqlalchemy.select(*columns).select_from(sqlalchemy.table(table.name)).limit(count)
        with self._opened() as opened:
            return [tuple(row) for row in opened.execute(chosen)]

    def values(self, table: Table, column: Column, most: int) -> list[str]:
        """See `Database`."""
        import sqlalchemy

        if not re.search("CHAR|TEXT|CLOB|STRING|ENUM", column.type.upper()):
            return []
        chosen: Any = sqlalchemy.select(sqlalchemy.column(column.name)).select_from(sqlalchemy.table(table.name))
        with self._opened() as opened:
            found = opened.execute(chosen.distinct().limit(most))
            return [value for (value,) in found if isinstance(value, str)]
