"""The named chat templates: `templates/NAME.jinja`, each with a comment that lists its stop and special tokens.

    {#- stop: <|im_end|> special: <|im_start|> <|im_end|> -#}

`eos_token` among the stop tokens stands for the tokenizer's own end-of-sequence token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from luthier.foundation.errors import DataError
from luthier.foundation.registry import nearest

_HEADER = re.compile(r"\{#-?\s*stop:(?P<stop>[^#]*?)\s*special:(?P<special>[^#]*?)\s*-?#\}")
EOS = "eos_token"


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template of luthier's.

    Args:
        name: its file's name.
        text: the jinja source, which transformers' `apply_chat_template` takes as it is.
        stop_tokens: tokens that end an assistant turn, by their text; empty: the tokenizer's EOS token does.
        special_tokens: tokens that must be one token each, the stop tokens among them.
    """

    name: str
    text: str
    stop_tokens: tuple[str, ...]
    special_tokens: tuple[str, ...]


def template_names() -> list[str]:
    """Names of the templates that come with luthier, sorted."""
    folder = resources.files("luthier.data.templates")
    return sorted(file.name.removesuffix(".jinja") for file in folder.iterdir() if file.name.endswith(".jinja"))


@lru_cache
def load_template(name: str) -> Template:
    """A template by name.

    Raises:
        DataError: there is none of that name; the names are listed.
    """
    names = template_names()
    if name not in names:
        close = nearest(name, names)
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise DataError(
            f"data.template: there is no chat template named {name!r}.",
            f"{hint}Known: auto (the tokenizer's own), {', '.join(names)}.",
        )
    text = (resources.files("luthier.data.templates") / f"{name}.jinja").read_text(encoding="utf-8")
    header = _HEADER.search(text)
    if header is None:
        raise ValueError(f"templates/{name}.jinja lacks its comment with stop: and special:")
    stop, special = header["stop"].split(), header["special"].split()
    return Template(name, text, tuple(token for token in stop if token != EOS), tuple(special))
