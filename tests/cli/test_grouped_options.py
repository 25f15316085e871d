"""Options that several verbs have in common, as fields of a class that their signatures name once."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from luthier.commands.verb_options import grouped


@dataclass(frozen=True)
class Size:
    """A group with an option that must be given."""

    width: Annotated[int, typer.Option(min=1, help="How wide.")]
    height: Annotated[int, typer.Option(help="How high.")] = 2

    def area(self) -> int:
        return self.width * self.height


def draw(name: str, *, colour: str = "red", size: Size, fill: bool = False) -> None:
    """Draw something."""
    print(name, colour, size.area(), fill)


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer(rich_markup_mode=None)
    made.command()(grouped(draw))
    return made


def test_a_groups_fields_stand_in_its_place() -> None:
    parameters = inspect.signature(grouped(draw)).parameters
    assert list(parameters) == ["name", "colour", "width", "height", "fill"]
    assert [parameter.default for parameter in parameters.values()] == [
        inspect.Parameter.empty, "red", inspect.Parameter.empty, 2, False,
    ]  # fmt: skip


def test_the_verb_gets_the_group(app: typer.Typer) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["box", "--width", "3"]).output == "box red 6 False\n"
    assert runner.invoke(app, ["box", "--width", "3", "--height", "5", "--fill"]).output == "box red 15 True\n"
    help_text = runner.invoke(app, ["--help"]).output
    assert "Draw something." in help_text and "How wide." in help_text


@pytest.mark.parametrize(("words", "problem"), [(["box"], "--width"), (["box", "--width", "0"], "'--width'")])
def test_a_groups_option_is_checked_as_any(app: typer.Typer, words: list[str], problem: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and problem in result.output
