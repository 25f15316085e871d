"""HTML pages that need nothing but themselves.

`page_frame.html` holds what they have in common: the head with its policy, colours and shapes, the data, and the first lines
of the script. A page's own file holds a `<style>`, a `<body>` and a `<script>`, in this order.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

_OWN = re.compile(r"<style>\n(.*?)</style>\n<body>\n(.*)</body>\n<script>\n(.*)</script>\n", re.DOTALL)


def filled_page(package: str, name: str, title: str, payload: Mapping[str, Any]) -> str:
    """A page that lies in a package, in its frame, with its title and data.

    Texts among the data can't become markup: they stand as JSON in a script element, where only `<` could end it early, and
    that is written as an escape which means the same to JSON.
    """
    own = _OWN.fullmatch(resources.files(package).joinpath(name).read_text(encoding="utf-8"))
    assert own is not None, f"{name} has no style, body and script in this order"
    parts = dict(zip(("STYLE", "BODY", "SCRIPT"), own.groups(), strict=True))
    parts["TITLE"] = html.escape(title)
    parts["DATA"] = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    frame = resources.files("luthier.foundation").joinpath("page_frame.html").read_text(encoding="utf-8")
    return re.sub("__(STYLE|BODY|SCRIPT|TITLE|DATA)__", lambda place: parts[place[1]], frame)
