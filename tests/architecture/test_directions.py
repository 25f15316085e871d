"""The house's rules (docs: the table of rooms): imports point down, nothing heavy is imported to read a config."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.config import plugins

ROOT = Path(__file__).parents[2] / "luthier"

# from the ground up; rooms of one row never import each other
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"foundation"}),
    frozenset({"config", "metrics", "sandbox"}),
    frozenset({"data", "model"}),
    frozenset({"scoring"}),
    frozenset({"training", "evaluation", "exporting"}),
    frozenset({"planning"}),
    frozenset({"webui", "serving", "text2sql"}),
    frozenset({"commands"}),
    frozenset({"cli"}),
)
# rooms that may import less than everything below their row
ONLY: dict[str, frozenset[str]] = {
    "foundation": frozenset(),
    "config": frozenset({"foundation"}),
    "metrics": frozenset({"foundation"}),
    "sandbox": frozenset({"foundation"}),
    "data": frozenset({"config", "foundation"}),
    "model": frozenset({"config", "foundation"}),
    "evaluation": frozenset({"scoring", "data", "model", "metrics", "sandbox", "config", "foundation"}),
    "exporting": frozenset({"scoring", "data", "model", "metrics", "sandbox", "config", "foundation"}),
    "planning": frozenset({"training", "scoring", "data", "model", "metrics", "sandbox", "config", "foundation"}),
}
# the package itself: the version, and the public call, which imports its command when it is called
EVERYWHERE = frozenset({"", "__init__"})
VAGUE = {"util", "utils", "misc", "common", "helper", "helpers", "extra", "extras", "stuff", "tools"}
HEAVY = ("torch", "transformers", "peft", "datasets", "huggingface_hub", "matplotlib", "pandas", "pyarrow")


def rows_by_room() -> dict[str, int]:
    return {room: height for height, row in enumerate(ROWS) for room in row}


def source_files() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """The rooms of ours that a file imports (also inside functions and for types), with the line."""
    package = ("luthier", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (above, node.module or "") if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "luthier" else [module]
        for name in names:
            if name.split(".")[0] == "luthier" and isinstance(node, ast.stmt):
                yield [*name.split("."), ""][1], node.lineno


def may_import(room: str, other: str) -> bool:
    rows = rows_by_room()
    if other == room or room == "__init__":
        return True
    if other not in rows:
        return other in EVERYWHERE or other.startswith("__")
    return other in ONLY[room] if room in ONLY else rows[other] < rows[room]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    assert room in {*rows_by_room(), "__init__", "__main__"}, f"the room {room} is not in the table"
    wrong = [f"line {line}: {other}" for other, line in imported_rooms(path) if not may_import(room, other)]
    assert not wrong, f"{room} may not import: {', '.join(wrong)}"


def test_no_room_has_a_vague_name() -> None:
    vague = [
        path for path in ROOT.rglob("*") if path.stem.lower().strip("_") in VAGUE and "__pycache__" not in path.parts
    ]
    assert not vague


def test_no_file_and_no_function_is_too_long() -> None:
    long = []
    for path in source_files():
        text = path.read_text(encoding="utf-8")
        if (count := len(text.splitlines())) > 400:
            long.append(f"{path.relative_to(ROOT)}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                long += [f"{path.relative_to(ROOT)}: {node.name} has {count} lines"] if count > 60 else []
    assert not long


def test_no_exception_is_passed_over_in_silence() -> None:
    silent = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and all(isinstance(part, ast.Pass) for part in node.body):
                silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not silent


def plugin_modules() -> list[str]:
    found = []
    for registry in plugins.ALL:
        place = ROOT.joinpath(*registry.package.split(".")[1:])
        if place.is_dir():
            found += [f"{registry.package}.{name}" for name in registry.names()]
    return found


def heavy_after(statement: str) -> list[str]:
    """Which heavy packages one statement, run in a fresh interpreter, has imported."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_plugins_and_the_command_line_are_read_without_heavy_packages() -> None:
    commands = ("config", "doctor", "data", "data_check", "data_cache")
    modules = ["luthier", "luthier.cli", *(f"luthier.commands.{name}" for name in commands), *plugin_modules()]
    assert len(modules) > 4
    statement = "\n".join(f"import {module}" for module in modules)
    loaded = heavy_after(statement)
    if loaded:
        guilty = {module: heavy for module in modules if (heavy := heavy_after(f"import {module}"))}
        pytest.fail(f"these are imported at the top of a file: {guilty}")


def test_help_is_given_without_the_schema() -> None:
    """pydantic and the sections take as long to import as all that `luthier --help` needs."""
    code = "import luthier.cli, sys; print(sorted({'pydantic', 'yaml', 'luthier.config.schema'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_config_is_checked_without_heavy_packages() -> None:
    statement = (
        "from luthier.config.loading import load\nload({'model': 'm', 'data': {'train': 'a'}}, ['method.rank=4'])"
    )
    assert heavy_after(statement) == []


@pytest.mark.parametrize("module", plugin_modules())
def test_every_plugin_has_a_build_and_says_what_it_is(module: str) -> None:
    tree = ast.parse(ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{module} has no docstring"
    assert "build" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{module} has no build"
