"""Where the files of a data set's folder are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.foundation.errors import UserError


def need_folder(path: str) -> Path:
    """A data set's folder.

    Raises:
        UserError: it is no folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{path!r} {kind}.", "Give the folder that holds the data set's files.")
    return folder


def placed(folder: Path, name: str) -> Path:
    """A file by the path that was given, or by its name in the data set's folder."""
    given = Path(name).expanduser()
    return given if given.exists() or given.is_absolute() or not (folder / name).exists() else folder / name


def question_files(folder: Path, given: Sequence[str], standard: Sequence[str], split: str) -> list[Path]:
    """The files of questions that were named, or those that the data set publishes for a split.

    Raises:
        UserError: none of the split's is there.
    """
    if given:
        return [placed(folder, name) for name in given]
    found = [folder / name for name in standard if (folder / name).is_file()]
    if not found:
        there = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))
        raise UserError(
            f"{folder} has no questions for the split {split}: {' or '.join(standard)} is not there.",
            f"Name the file with --questions; the folder holds {', '.join(there) or 'no JSON file'}.",
        )
    return found


def holds_conversations(folder: Path) -> bool:
    """Whether a folder's questions are conversations: looked for in the first bytes, for the files are long."""
    for file in (folder / "dev.json", *sorted(folder.glob("train*.json"))):
        if file.is_file():
            with file.open("rb") as opened:
                if b'"interaction"' in opened.read(65536):
                    return True
    return False
