"""What luthier imports is installed with it, or named by an extra: other packages stand on this machine by chance."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def named(requirements: Iterable[str]) -> list[str]:
    """The packages of requirements, without those for other systems and for extras."""
    found = map(Requirement, requirements)
    return [canonicalize_name(one.name) for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def brought() -> set[str]:
    """The packages that luthier's dependencies need, directly or not, and those that extras name (not those that these need:
    nobody looks at whether they stay)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = named(project["dependencies"])
    found: set[str] = set()
    while waiting:
        package = waiting.pop()
        if package not in found:
            found.add(package)
            waiting += named(metadata.requires(package) or [])
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    return found.union({"pip"}, *(named(needs) for needs in extras.values()))  # pip installed it


def test_every_import_is_of_a_package_that_the_project_brings() -> None:
    owners, there = metadata.packages_distributions(), brought()
    strange = []
    for path in sorted((ROOT / "luthier").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for module in {name.split(".")[0] for name in names} - {"luthier", *sys.stdlib_module_names}:
                packages = set(named(owners.get(module, ())))
                if packages and not packages & there:
                    strange.append(f"{path.relative_to(ROOT)}: {module}, of {', '.join(sorted(packages))}")
    assert not strange
