"""Chat templates in jinja's sandbox, set up as transformers does it, with the trained spans kept apart.

Between `{% generation %}` and `{% endgeneration %}` (transformers' own tag) stands what the assistant says.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from luthier.data.template_files import is_own
from luthier.data.template_limits import LimitedEnvironment, limited

# no text can hold these by chance or on purpose: they are drawn anew in every process
_OPEN, _CLOSE = (f"\x02{secrets.token_hex(16)}\x03" for _ in range(2))
_MARKS = re.compile(f"({_OPEN}|{_CLOSE})")


class _GenerationTag(Extension):
    """Wraps what a generation block renders in marks, which `Rendering` takes out again."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


class _TemplateNamespace(Namespace):
    """Jinja's namespace without underscore names, which lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        names = dict(*args, **kwargs)
        for name in names:
            _refuse_underscore(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a chat template may not store {name!r} in a namespace")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # jinja's own filter escapes HTML characters
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment(kind: type[ImmutableSandboxedEnvironment]) -> ImmutableSandboxedEnvironment:
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = _TemplateNamespace
    if isinstance(environment, LimitedEnvironment):
        environment.limit_filters()
    return environment


@lru_cache(maxsize=32)
def compile_template(text: str) -> jinja2.Template:
    """A template's source, compiled; one that doesn't come with luthier may use up only so much (template_limits).

    Raises:
        jinja2.TemplateError: a syntax error, or nesting too deep to compile.
    """
    try:
        return _environment(ImmutableSandboxedEnvironment if is_own(text) else LimitedEnvironment).from_string(text)
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise jinja2.TemplateError(f"it is nested too deeply ({type(error).__name__})") from error


def has_generation_tags(text: str) -> bool:
    """Whether a template marks its trained spans."""
    return re.search(r"\{%-?\s*generation\s*-?%\}", text) is not None


def writes_date(text: str) -> bool:
    """Whether a template asks for the date or the time."""
    return re.search(r"\bstrftime_now\b", text) is not None


def render_spans(
    template: jinja2.Template,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]] = (),
    day: date | None = None,
) -> list[tuple[str, bool]]:
    """What a template makes of a conversation: (text, whether it stands in a generation block), end to end.

    Args:
        day: that `strftime_now` tells, at midnight; None: the moment's own.

    Raises:
        jinja2.TemplateError: the template refuses the conversation, reaches out of the sandbox, or is faulty.
        TemplateLimitError: it takes too long, or too much memory.
    """
    moment = {} if day is None else {"strftime_now": datetime.combine(day, time.min).strftime}
    try:
        with limited():
            rendered = template.render(
                messages=messages,
                tools=list(tools) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **special_tokens,
                **moment,
            )
    except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error
    spans: list[tuple[str, bool]] = []
    inside = False
    for part in _MARKS.split(rendered):
        if part in (_OPEN, _CLOSE):
            if inside == (part == _OPEN):
                raise jinja2.TemplateError("generation blocks stand inside each other")
            inside = part == _OPEN
        elif part or inside:
            spans.append((part, inside))
    return spans
