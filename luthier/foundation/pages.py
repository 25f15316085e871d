"""HTML pages that need nothing but themselves: a file with `__TITLE__` and `__DATA__` in it, and the data that its script draws."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any


def filled_page(package: str, name: str, title: str, payload: Mapping[str, Any]) -> str:
    """A page that lies in a package, with its title and data.

    Texts among the data can't become markup: they stand as JSON in a script element, where only `<` could end it early, and
    that is written as an escape which means the same to JSON.
    """
    page = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    data = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    before, _, rest = page.partition("__TITLE__")
    middle, _, after = rest.partition("__DATA__")
    return f"{before}{html.escape(title)}{middle}{data}{after}"
