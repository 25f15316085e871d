"""What a layout makes of its files. A plug-in in `luthier/text2sql/layouts` keeps to this contract.

A plug-in holds `Options` (what it can be told), `recognizes(path)` (why a place looks like it, or None) and
`build(options) -> Dataset`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from luthier.config.plugins import SQL_LAYOUTS
from luthier.config.sections import PluginOptions
from luthier.data.records import Origin, RawRow, Rejected
from luthier.foundation.errors import UserError
from luthier.text2sql.databases import Database
from luthier.text2sql.schema import Schema


class LayoutOptions(PluginOptions):
    """Base of every layout's `Options`. A layout has those of the further settings that mean something to it."""

    path: str = Field(description="The data set's folder, or what else the layout reads from.")


@dataclass(frozen=True, slots=True)
class Question:
    """A question to a database.

    Args:
        query: the gold query; None where there is none.
        evidence: what one has to know beside the schema; empty where nothing was written down.
        history: earlier questions of the same conversation with their queries, oldest first.
    """

    db_id: str
    text: str
    query: str | None
    origin: Origin
    evidence: str = ""
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Everything a layout found.

    Args:
        schemas, databases: by db_id; a database that is not there is in neither case an error of its own.
        rejected: rows (of questions or of schemas) that can't be used, each with the reason.
        notes: what is odd and worth a line.
        opaque_names: the columns' names say nothing, so that their meanings must be told.
    """

    questions: Sequence[Question]
    schemas: Mapping[str, Schema]
    databases: Mapping[str, Database] = field(default_factory=dict)
    rejected: Sequence[Rejected] = ()
    notes: Sequence[str] = ()
    opaque_names: bool = False


def text_problem(row: RawRow, key: str) -> str | None:
    """Why a field holds no text, or None where it does."""
    value = row.values.get(key)
    if value is None:
        found = ", ".join(map(str, row.values)) or "none"
        return f"has no field {key!r} (fields found: {found})"
    if not isinstance(value, str):
        return f"the field {key!r} is {value!r}, not text"
    return None if value.strip() else f"the field {key!r} is empty"


def chosen_layout(name: str, settings: Mapping[str, Any]) -> tuple[str, Dataset]:
    """Read a place in the layout that is named, or in the one it looks like ("auto").

    Raises:
        UserError: no such layout, none recognizes the place, or a setting that the layout has no use for.
        DataError: from the layout.
    """
    path = Path(settings["path"])
    if name == "auto":
        name = _recognized(path)
    layout = SQL_LAYOUTS.load(name)
    known = layout.Options.model_fields
    strange = [key for key in settings if key not in known]
    if strange:
        flags = [f"--{key.replace('_', '-')}" for key in strange]
        useful = sorted(f"--{key.replace('_', '-')}" for key in known if key not in ("name", "path"))
        raise UserError(
            f"the layout {name} has no use for {' and '.join(flags)}.",
            f"It takes {', '.join(useful)}." if useful else "It takes no settings.",
        )
    try:
        options = layout.Options.model_validate({"name": name, **settings})
    except ValidationError as error:
        found = "; ".join(f"--{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise UserError(f"the layout {name} can't be read so: {found}.", "See luthier sql prepare --help.") from error
    return name, layout.build(options)


def _recognized(path: Path) -> str:
    reasons = {name: SQL_LAYOUTS.load(name).recognizes(path) for name in SQL_LAYOUTS.names()}
    fitting = {name: reason for name, reason in reasons.items() if reason}
    if len(fitting) == 1:
        return next(iter(fitting))
    if not path.exists() and not fitting:
        raise UserError(f"{str(path)!r} does not exist.", "Paths are relative to where luthier runs.")
    found = "; ".join(f"{name} ({reason})" for name, reason in fitting.items())
    raise UserError(
        f"{str(path)!r} looks like {'several layouts: ' + found if found else 'no layout of text-to-SQL data'}.",
        f"Name it: --layout {' or --layout '.join(fitting or SQL_LAYOUTS.names())}.",
    )
