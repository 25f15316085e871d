"""Errors for people: one sentence says what is wrong and where, one says what to do.

`cli.main` prints a `LuthierError` without a traceback and exits with its `exit_status`: 2 for whatever the user can
mend (config, data, hub, disk, a missing extra), 1 for our own faults.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType


class LuthierError(Exception):
    """Anything luthier says on purpose.

    Args:
        problem: what is wrong and where, with the value found.
        remedy: what to do about it; empty when there is nothing sensible to say.
    """

    exit_status = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}\n{remedy}" if remedy else problem)


class UserError(LuthierError):
    """Something the user can mend; exit status 2."""

    exit_status = 2


class ConfigError(UserError):
    """All problems of a config at once, one line each.

    Args:
        where: whose they are.
        rest: the config without the keys that are wrong, where that is one: what it names can be looked for all the same.
    """

    def __init__(self, problems: Sequence[str], where: str = "the config", rest: object = None) -> None:
        self.problems, self.where, self.rest = list(problems), where, rest
        count = len(self.problems)
        head = f"{where} has {count} problem{'s' if count != 1 else ''}:"
        super().__init__(
            "\n".join([head, *(f"  - {problem}" for problem in self.problems)]),
            "`luthier config explain KEY` describes a setting; `luthier config schema` lists them all.",
        )


class DataError(UserError):
    """A file or row that can't be used: names file, row, field and what was found."""


class ModelError(UserError):
    """A model folder, tokenizer or method that can't be used as asked."""


class HubError(UserError):
    """A model source that did not answer, or answered with something that is not a model."""


class CheckpointError(UserError):
    """A checkpoint that can't be written, found or verified."""


class TrainingError(UserError):
    """A run that can't go on: a non-finite loss, memory or disk used up."""


class RankStoppedError(LuthierError):
    """Another rank of the run met an error, and tells it: this one ends without a word, and with the same status."""

    def __init__(self, problem: str, exit_status: int) -> None:
        super().__init__(problem)
        self.exit_status = exit_status


class MissingExtraError(UserError):
    """An optional package is needed and absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed.",
            f"Install it with: {how_to_install(extra)}",
        )


def how_to_install(extra: str) -> str:
    """The command that brings an extra, for people."""
    return f'pip install "luthier[{extra}]"; in a clone of the project: pip install -e ".[{extra}]"'


def import_extra(module: str, *, package: str | None = None, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise `MissingExtraError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there, something it needs is not: that traceback is the useful one
        raise MissingExtraError(package or module, extra, purpose) from error


class Interrupted(LuthierError):
    """The run was asked to stop (Ctrl-C or SIGTERM) and has saved its state; exit status 128 + the signal's number."""

    def __init__(self, problem: str, remedy: str, signal_number: int) -> None:
        super().__init__(problem, remedy)
        self.exit_status = 128 + signal_number
