"""Plug-ins by file name or dotted path."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.foundation.errors import UserError
from luthier.foundation.registry import Registry, nearest


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of two plug-ins, and three modules outside it."""
    package = tmp_path / "instruments"
    package.mkdir()
    plugin = "class Options: pass\ndef build(): pass\n"
    (package / "__init__.py").write_text("")
    (package / "violin.py").write_text(plugin)
    (package / "viola.py").write_text("raise RuntimeError('names() must not import')")
    (package / "_bow.py").write_text("")
    outside = tmp_path / "outside_instruments"
    outside.mkdir()
    (outside / "cello.py").write_text(plugin)
    (outside / "empty.py").write_text("")
    (outside / "broken.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    return Registry("instrument", "instruments")


def test_names_come_from_files_and_import_nothing(registry: Registry) -> None:
    assert registry.names() == ["viola", "violin"]


def test_load(registry: Registry) -> None:
    assert registry.load("violin").__name__ == "instruments.violin"
    assert registry.load("outside_instruments.cello").__name__ == "outside_instruments.cello"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("violn", "there is no instrument named 'violn'.\nDid you mean 'violin'"),
        ("zzz", "Known: viola, violin"),
        ("", "there is no instrument named ''"),
        ("_bow", "there is no instrument named '_bow'"),
        ("outside_instruments.empty", "is no instrument: it lacks Options and build"),
        ("outside_instruments.broken", "could not be imported: SyntaxError"),
        ("outside_instruments.missing", "could not be imported: ModuleNotFoundError"),
        (".violin", "could not be imported"),
        ("..", "could not be imported"),
    ],
)
def test_a_name_that_is_none(registry: Registry, name: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.load(name)
    assert expected in str(caught.value)


def test_a_package_that_is_missing_is_our_fault() -> None:
    with pytest.raises(ModuleNotFoundError):
        Registry("thing", "luthier.nowhere").names()


def test_nearest_puts_the_closest_first() -> None:
    assert nearest("lorra", ["full", "lora", "freeze"]) == ["lora"]
    assert nearest("learning", ["learning_rate", "logging_steps"]) == ["learning_rate"]
    assert nearest("zzz", ["a", "b"]) == []
