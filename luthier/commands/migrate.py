"""`luthier config migrate`: LLaMA-Factory's config or command line as luthier's, every key accounted for."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.migration.commands import CONFIG, Verbs
from luthier.config.migration.migrating import Migration
from luthier.config.migration.migrating import migrate as migrate_source
from luthier.config.migration.sources import from_file, from_words
from luthier.config.migration.writing import header
from luthier.config.yaml_text import config_yaml, flow
from luthier.foundation.errors import ConfigError, UserError
from luthier.foundation.files import write_text


@dataclass(frozen=True)
class MigrationResult:
    """A migration, and where its config was written.

    Args:
        written: the file, or None.
        text: the file's text, "" where there is no config.
    """

    migration: Migration
    written: str | None
    text: str

    @property
    def command(self) -> str:
        """The command line that does the same."""
        written = shlex.quote(self.written or CONFIG)  # not into a variable before it that is called so
        return re.sub(rf"(?<= train ){CONFIG}(?= |$)", lambda found: written, self.migration.command)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        found = self.migration
        return {
            "source": found.source,
            "work": found.work,
            "written": self.written,
            "config": found.config,
            "command": self.command,
            "keys": [outcome.as_dict() for outcome in found.outcomes],
            "added": dict(found.added),
            "problems": list(found.problems),
        }

    def table(self) -> str:
        """Every key with what became of it, for the terminal."""
        from rich.console import Console
        from rich.table import Table

        console = Console(file=io.StringIO(), width=min(140, shutil.get_terminal_size((120, 24)).columns))
        table = Table("key", "value", "", "luthier", title=f"From {self.migration.source}", title_justify="left")
        for outcome in self.migration.outcomes:
            table.add_row(
                *map(_plain, (outcome.key, outcome.value, outcome.status, _luthier(outcome.luthier, outcome.note)))
            )
        for target, value in self.migration.added.items():
            table.add_row("", "", "added", _plain(f"{target}: {flow(value)} (LLaMA-Factory's default)"))
        console.print(table)
        text: str = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
        return text

    def summary(self) -> str:
        """What was found, in one line, and how to go on."""
        counts = ", ".join(
            f"{len(self.migration.having(status))} {status}" for status in ("mapped", "changed", "refused")
        )
        lines = [f"{len(self.migration.outcomes)} keys: {counts}."]
        if self.written:
            lines.append(f"Written to {self.written}.")
        if self.command:
            lines.append(f"The same in luthier: {self.command}")
        return "\n".join(lines)


def _luthier(settings: Mapping[str, Any], note: str) -> str:
    return "; ".join(filter(None, [", ".join(f"{target}: {flow(value)}" for target, value in settings.items()), note]))


def _plain(value: Any) -> Any:
    from rich.text import Text

    return Text(value if isinstance(value, str) else flow(value))


def migrate(words: Sequence[str], verbs: Verbs, *, out: str | None = None, overwrite: bool = False) -> MigrationResult:
    """Migrate a file or a command line.

    Args:
        words: a file (`run.py#train_args` for one of several dicts), or a command line's words.
        verbs: luthier's verbs with their options.
        out: the file to write the config to.

    Raises:
        UserError: the source can't be read, is another tool's, or the file to write exists.
    """
    file, _, name = words[0].partition("#")
    if len(words) > 1 or (re.search(r"\s", words[0]) and not Path(words[0]).exists()):
        source = from_words(words)
    else:
        source = from_file(Path(file).expanduser(), name or None)
    target = Path(out).expanduser() if out is not None else None
    if target is not None and target.exists() and not overwrite:
        raise UserError(f"{out} is there already.", "Choose another file, or replace it with --overwrite.")
    found = migrate_source(source, verbs)
    text = ""
    if found.config is not None:
        text = header(found.source, found.outcomes, found.added) + config_yaml(found.config)
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, text)
    return MigrationResult(found, out if text and target is not None else None, text)


def refusal(result: MigrationResult) -> ConfigError | None:
    """Why nothing was written, where nothing was."""
    found = result.migration
    return ConfigError(found.problems, found.source) if found.problems else None
