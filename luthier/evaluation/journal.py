"""Answers on disk while they come in, so that a killed run goes on where it stopped, and the file that is made of them.

`OUT.partial` has a first line that says what run it is of, then a line for each finished row, in the order they finished; where a
row has several, the last counts. It goes when OUT is written. The last line may be torn by a kill; it is cut off and its row answered again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from luthier.foundation.errors import UserError
from luthier.foundation.files import write_text

FORMAT_VERSION = 1


class Journal:
    """The finished rows of a run, open for more; made by `open_journal`.

    Attributes:
        done: lines of the rows finished before, by their number.
    """

    def __init__(self, stream: BinaryIO, done: dict[int, dict[str, Any]]) -> None:
        self.done = done
        self._stream = stream

    @property
    def answered(self) -> set[int]:
        """The rows that need not be asked again: all but those that an engine could not answer."""
        return {row for row, line in self.done.items() if _is_answered(line)}

    def add(self, row: int, line: Mapping[str, Any]) -> None:
        """Keep a finished row, in place of what was kept of it before."""
        self.done[row] = dict(line)
        self._stream.write(_line({"row": row, "line": line}))
        self._stream.flush()  # a killed process loses nothing that the system has


@contextmanager
def open_journal(
    out: Path, identity: Mapping[str, Any], *, anew: bool = False, made_of_it: Sequence[Path] = ()
) -> Iterator[Journal]:
    """The journal beside `out`, begun anew or gone on with; where the block ends well, `out` is written of it, in order.

    Args:
        identity: what the answers depend on, as JSON.
        anew: what an earlier run left goes, `out` too; never the journal of one that is still running.
        made_of_it: files that were made of `out`, and go with it.

    Raises:
        UserError: a journal of another run is there, or another process writes it.
    """
    path = partial_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(out) from None
        if not path.exists() or os.fstat(stream.fileno()).st_ino != path.stat().st_ino:
            raise _busy(out)  # it ended between opening and locking, and took its journal with it
        if anew:
            stream.truncate(0)
            for file in (*made_of_it, out):
                file.unlink(missing_ok=True)
        journal = Journal(stream, _begin(stream, path, identity))
        yield journal
        write_text(
            out, "".join(json.dumps(journal.done[row], ensure_ascii=False) + "\n" for row in sorted(journal.done))
        )
        path.unlink()


def _is_answered(line: Mapping[str, Any]) -> bool:
    return all(sample.get("finish_reason") != "error" for sample in line.get("samples", [line]))


def _busy(out: Path) -> UserError:
    return UserError(f"another process is writing {out}.", "Wait for it, or name another file with --out.")


def partial_path(out: Path) -> Path:
    """Where a run's finished rows stand until all are."""
    return out.with_name(f"{out.name}.partial")


def _begin(stream: BinaryIO, path: Path, identity: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The finished rows in a journal, whose torn end is cut off; one without answers is begun anew, whose ever it was."""
    stream.seek(0)
    kept = 0
    lines: list[dict[str, Any]] = []
    for raw in stream:
        try:
            line = json.loads(raw)
        except ValueError:
            break
        if not raw.endswith(b"\n") or not isinstance(line, dict):
            break
        lines.append(line)
        kept += len(raw)
    stream.truncate(kept)
    head = {"format_version": FORMAT_VERSION, **json.loads(json.dumps(identity))}
    before = lines[0] if lines else {}
    differing = [name for name in dict.fromkeys([*before, *head]) if before.get(name) != head.get(name)]
    done = {line["row"]: line["line"] for line in lines[1:]}
    if not differing:
        return done
    if any(_is_answered(line) for line in done.values()):
        raise UserError(
            f"{path} holds the answers of an unfinished run that differs from this one in: {', '.join(differing)}.",
            "Put that back as it was to go on, start anew with --overwrite, or name another file with --out.",
        )
    stream.truncate(0)
    stream.write(_line(head))
    stream.flush()
    os.fsync(stream.fileno())
    return {}


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
