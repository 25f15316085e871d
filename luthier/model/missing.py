"""What to say of a model's name that nothing on this machine has, before or after a hub was asked."""

from __future__ import annotations

import difflib
from pathlib import Path

from luthier.foundation.errors import HubError
from luthier.foundation.files import held_beside
from luthier.foundation.registry import nearest
from luthier.model.aliases import ALIASES


def is_path(name: str) -> bool:
    """Whether a name means a place on this machine, there or not: it starts as a path does, or in a folder that holds runs
    (`runs/nope`). A folder that is only called like an owner on the hub, such as one of downloaded models, is no sign."""
    first, slash, _ = name.partition("/")
    return name.startswith((".", "~", "/")) or (bool(slash) and any(Path(first).glob("*/run.json")))


def no_such_place(name: str, hub: str = "") -> HubError:
    """A path to nothing.

    Args:
        hub: where the name could stand for a model as well; "": nowhere.
    """
    place = Path(name).expanduser()
    kind = "GGUF file" if name.endswith(".gguf") else "folder"
    above = next(folder for folder in place.absolute().parents if folder.is_dir())
    inside = above.relative_to(Path.cwd()) if above.is_relative_to(Path.cwd()) and not place.is_absolute() else above
    missing = place.absolute().relative_to(above).parts[0]
    close = difflib.get_close_matches(missing, [path.name for path in above.iterdir()], n=1)
    guess = f"Did you mean {inside / close[0]}? " if close else ""
    elsewhere = f" A model on the hub would be {hub}:{name}." if hub else ""
    return HubError(f"there is no {kind} {name!r}.", f"{guess}{held_beside(inside / missing)}{elsewhere}")


def not_here(name: str) -> str:
    """What a name is not, before a hub's word on it: without an owner it may have been meant for a folder or a short name and
    misspelt; with one, for something in a folder that is called so. Empty for other names."""
    if name in ALIASES or Path(name).exists():
        return ""
    if "/" in name:
        return f"there is no folder {name!r} here; " if Path(name.partition("/")[0]).is_dir() else ""
    folders = [path.name for path in Path.cwd().iterdir() if path.is_dir()]
    close = [*nearest(name, ALIASES, 1), *difflib.get_close_matches(name, folders, n=1)]
    guess = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"there is no folder {name!r} here, and no short name {name!r}{guess}; "
