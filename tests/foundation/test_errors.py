"""Errors say what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.foundation import errors
from luthier.foundation.errors import ConfigError, Interrupted, MissingExtraError, UserError, import_extra


def test_exit_statuses() -> None:
    assert errors.LuthierError("x").exit_status == 1
    assert UserError("x").exit_status == 2
    assert Interrupted("x", "y", 15).exit_status == 143
    assert Interrupted("x", "y", 2).exit_status == 130


def test_problem_and_remedy() -> None:
    assert str(UserError("wrong.", "do that.")) == "wrong.\ndo that."
    assert str(UserError("wrong.")) == "wrong."


def test_a_config_error_counts_its_problems() -> None:
    assert str(ConfigError(["a: b"], "c.yaml")).startswith("c.yaml has 1 problem:\n  - a: b\n")
    assert str(ConfigError(["a", "b"])).startswith("the config has 2 problems:\n  - a\n  - b\n")


def test_a_missing_extra_gives_the_command() -> None:
    with pytest.raises(MissingExtraError) as caught:
        import_extra("no_such_package", extra="wandb", purpose="training.report_to: wandb")
    assert 'pip install "luthier[wandb]"' in str(caught.value)
    assert "'no_such_package'" in str(caught.value)


def test_an_extra_that_is_there_but_broken_shows_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import what_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        import_extra("half_there", extra="x", purpose="x")


def test_an_extra_that_is_there() -> None:
    assert import_extra("json", extra="x", purpose="x").__name__ == "json"
