"""Checkpoints by themselves: what a newer one may take the place of."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier.training.checkpoints as checkpoints
from luthier.foundation.errors import CheckpointError
from luthier.foundation.files import write_text
from luthier.training.checkpoints import find_fault


def sealed_again(tmp_path: Path) -> tuple[checkpoints.Checkpoints, Callable[[str], Path]]:
    """Checkpoints of a run, and what writes that of step 3 with the text it is told."""
    made = checkpoints.Checkpoints(tmp_path / "checkpoints", None, {})
    return made, lambda text: made.write(3, lambda folder: write_text(folder / "weights", text))


def test_a_checkpoint_goes_only_after_that_of_the_same_step_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, write = sealed_again(tmp_path)
    assert write("first") == write("second") == made.path_of(3)
    seal = checkpoints.seal

    def and_damage(folder: Path, facts: Any) -> None:
        seal(folder, facts)
        (folder / "weights").write_text("thirst")

    def full(folder: Path, facts: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken, said in ((and_damage, "does not read back"), (full, "step-00000003 is whole and kept")):
        with monkeypatch.context() as patch, pytest.raises(CheckpointError, match=said):
            patch.setattr(checkpoints, "seal", broken)
            write("third")
        assert [path.name for path in made.folder.iterdir()] == ["step-00000003"]
        assert not find_fault(made.path_of(3)) and (made.path_of(3) / "weights").read_text() == "second"


@pytest.mark.parametrize(("damaged", "kept"), [(False, "second"), (True, "first")])
def test_killed_between_two_checkpoints_of_a_step(
    damaged: bool, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the second took the first's place, before it was read back."""
    made, write = sealed_again(tmp_path)
    write("first")

    def killed(path: Path) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "find_fault", killed)
        write("second")
    if damaged:
        (made.path_of(3) / "weights").write_text("thirst")
    found = made.newest(pytest.fail)
    assert found is not None and (found.path / "weights").read_text() == kept
    assert [path.name for path in made.folder.iterdir()] == ["step-00000003"]
