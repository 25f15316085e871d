"""Extension points: a folder whose file names are the registered names.

A plug-in is one file holding `Options` (a frozen pydantic class) and `build(...)`; nothing else need be edited. An
outside package is named by its dotted path. Names are listed without importing anything.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from luthier.foundation.errors import UserError


def nearest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known words most like `word`, best first; the start of a word counts for more than difflib gives it."""
    candidates = list(known)
    close = difflib.get_close_matches(word, candidates, n=count, cutoff=0.6)
    started = [name for name in candidates if name.startswith(word) or word.startswith(name)]
    return list(dict.fromkeys([*close, *started]))[:count]


@dataclass(frozen=True)
class Registry:
    """The plug-ins of one folder.

    Args:
        kind: what one of them is called in messages ("method").
        package: dotted name of the folder ("luthier.model.methods").
    """

    kind: str
    package: str

    def names(self) -> list[str]:
        """Registered names, sorted, from the file names alone."""
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"no package {self.package}")
        modules = pkgutil.iter_modules([str(Path(place)) for place in spec.submodule_search_locations])
        return sorted(module.name for module in modules if not module.name.startswith("_"))

    def load(self, name: str) -> ModuleType:
        """The module of a plug-in.

        Raises:
            UserError: no such name (the nearest are given), or an outside module that can't be imported.
        """
        if name in self.names():
            return importlib.import_module(f"{self.package}.{name}")
        if "." in name:
            return self._load_outside(name)
        close = nearest(name, self.names())
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise UserError(
            f"there is no {self.kind} named {name!r}.", f"{hint}Known: {', '.join(self.names())}; or a dotted path."
        )

    def _load_outside(self, name: str) -> ModuleType:
        if os.getcwd() not in sys.path:  # the path of a console script lacks the current folder
            sys.path.append(os.getcwd())
        try:
            module = importlib.import_module(name)
        except Exception as error:  # whatever somebody else's module raises while it is imported
            raise UserError(
                f"the {self.kind} {name!r} could not be imported: {type(error).__name__}: {error}.",
                "A dotted path must name a Python module that is installed or stands in the current folder.",
            ) from error
        missing = [part for part in ("Options", "build") if not hasattr(module, part)]
        if missing:
            raise UserError(
                f"the module {name!r} is no {self.kind}: it lacks {' and '.join(missing)}.",
                f"A {self.kind} is a module with a pydantic class `Options` and a function `build`.",
            )
        return module
