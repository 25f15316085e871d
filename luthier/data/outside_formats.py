"""Formats of the user's own (`format: my_package.my_format`): what such a module must have, and where it broke down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import get_args

from luthier.data.columns import FormatOptions
from luthier.data.records import RawRow, Record, RowError
from luthier.foundation.errors import DataError

ConvertAll = Callable[[RawRow], Sequence[Record]]
KINDS = get_args(Record)
EXAMPLE = "docs/data.md has a complete example."


def check_module(module: ModuleType) -> None:
    """Raise `DataError` unless a module has what a format needs; `Options` and `build` are there already."""
    problems = []
    options = module.Options
    if not (isinstance(options, type) and issubclass(options, FormatOptions)):
        problems.append("Options does not inherit from luthier.data.columns.FormatOptions")
    elif not options.PARTS or not set(options.REQUIRED) <= set(options.PARTS):
        problems.append("Options.PARTS must name the columns the format reads, and those of Options.REQUIRED")
    elif "name" not in options.model_fields or options.model_fields["name"].is_required():
        problems.append(f'Options lacks name: Literal["{module.__name__}"] = "{module.__name__}"')
    record = getattr(module, "RECORD", None)
    if record not in KINDS:
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        found = "is missing" if record is None else f"is {record!r}"
        problems.append(f"RECORD {found}; it must be one of luthier.data.records: {kinds}")
    if not callable(module.build):
        problems.append("build is no function")
    if problems:
        raise DataError(f"the module {module.__name__!r} is no data format: {'; '.join(problems)}.", EXAMPLE)


def guarded(convert: ConvertAll, module: ModuleType) -> ConvertAll:
    """A format's function from a row to its records, with the row named where it breaks down.

    Raises:
        DataError: from the function: it raised something else than `RowError`, or made something else than `RECORD`.
    """

    def convert_all(row: RawRow) -> Sequence[Record]:
        try:
            records = convert(row)
            wrong = next((record for record in records if not isinstance(record, module.RECORD)), None)
        except RowError:
            raise
        except Exception as error:  # whatever somebody else's code raises
            raise DataError(
                f"the format {module.__name__} broke down at {row.origin}: {type(error).__name__}: {error}.",
                "Mend it; for a row that can't be used it should raise luthier.data.records.RowError.",
            ) from error
        if wrong is not None:
            raise DataError(
                f"the format {module.__name__} made a {type(wrong).__name__} of {row.origin}, and its RECORD is "
                f"{module.RECORD.__name__}.",
                EXAMPLE,
            )
        return records

    return convert_all
