"""The named chat templates: `templates/NAME.jinja`, each with comments on its tokens and where its text comes from.

    {#- stop: <|im_end|> special: <|im_start|> <|im_end|> verified: yes -#}
    {#- source: what its expected strings in the tests were taken from -#}

`eos_token` among the stop tokens stands for the tokenizer's own end-of-sequence token. `verified: no` means that neither
the family's own template nor a public fixture was found to check against.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from luthier.config.chat_templates import template_list, template_names, template_text
from luthier.foundation.errors import DataError
from luthier.foundation.registry import nearest

__all__ = ["EOS", "Template", "is_own", "load_template", "template_list", "template_names"]
_HEADER = re.compile(
    r"\{#-\s*stop:(?P<stop>[^#]*?)\s*special:(?P<special>[^#]*?)\s*verified:\s*(?P<verified>yes|no)\s*-#\}"
)
_SOURCE = re.compile(r"\{#-\s*source:\s*(?P<source>.+?)\s*-#\}")
EOS = "eos_token"


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template of luthier's.

    Args:
        name: its file's name.
        text: the jinja source, which transformers' `apply_chat_template` takes as it is.
        stop_tokens: tokens that end an assistant turn, by their text; empty: the tokenizer's EOS token does.
        special_tokens: tokens that must be one token each, the stop tokens among them.
        verified: whether its text was checked against the family's own template or a public fixture.
        source: what it was checked against, or written after.
    """

    name: str
    text: str
    stop_tokens: tuple[str, ...]
    special_tokens: tuple[str, ...]
    verified: bool
    source: str


def is_own(text: str) -> bool:
    """Whether a template's source comes with luthier; a run's tokenizer carries the one it was trained with."""
    return any(load_template(name).text == text for name in template_names())


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
            f"{hint}Known: auto (the tokenizer's own), {template_list()}.",
        )
    text = template_text(name)
    header, source = _HEADER.search(text), _SOURCE.search(text)
    if header is None or source is None:
        raise ValueError(f"templates/{name}.jinja lacks its comments with stop:, special: and verified:, or source:")
    stop, special = header["stop"].split(), header["special"].split()
    return Template(
        name,
        text,
        tuple(token for token in stop if token != EOS),
        tuple(special),
        header["verified"] == "yes",
        source["source"],
    )
