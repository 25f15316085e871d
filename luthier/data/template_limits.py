"""What a chat template may use up: it comes with a model's folder, and nobody has read it.

Jinja's sandbox keeps a template from Python's internals, not from looping for ever or filling the memory. Here every
loop's step and every call looks at the clock, and whatever makes text or lists is charged for it before it is made.
It is a guard against mistakes and simple bombs, and costs 40 microseconds a conversation, so luthier's own templates
go without it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from luthier.foundation.errors import DataError

SECONDS = 10.0
CHARACTERS = 256 * 1024 * 1024
ITEM_CHARACTERS = 8  # a place in a list takes eight bytes
LARGEST_WIDTH = 100_000
LARGEST_BITS = 10_000
_LONG_WIDTH = re.compile(rf"\d{{{len(str(LARGEST_WIDTH))},}}")
# filters whose whole numbers are widths, and those that leave a list a list
_WIDTH_FILTERS = {"batch", "center", "indent", "round", "slice", "tojson", "truncate", "wordwrap"}
_LIST_FILTERS = {
    "count",
    "default",
    "first",
    "items",
    "last",
    "length",
    "list",
    "map",
    "reject",
    "rejectattr",
    "reverse",
}
_LIST_FILTERS |= {"select", "selectattr", "sort", "unique"}


class TemplateLimitError(DataError):
    """A template that takes too long or too much memory."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy or "Mend the template, or set data.template to another.")


class _Left:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.deadline = time.monotonic() + SECONDS
        self.characters = CHARACTERS


_LEFT: ContextVar[_Left] = ContextVar("template_limits")


@contextmanager
def limited() -> Iterator[None]:
    """One rendering, within the limits.

    Raises:
        TemplateLimitError: it went beyond them.
    """
    token = _LEFT.set(_Left())
    try:
        yield
    finally:
        _LEFT.reset(token)


def _charge(characters: int) -> None:
    left = _LEFT.get()
    left.characters -= characters
    if left.characters < 0:
        raise TemplateLimitError(
            f"the chat template makes more than {CHARACTERS:,} characters of text for one conversation."
        )
    if time.monotonic() > left.deadline:
        raise TemplateLimitError(f"the chat template takes more than {SECONDS:g} seconds for one conversation.")


def _size(value: Any) -> int:
    """About the characters that a value takes, lists with their places only."""
    if isinstance(value, str):
        return len(value)
    return ITEM_CHARACTERS * len(value) if isinstance(value, (list, tuple, dict)) else ITEM_CHARACTERS


def _charge_text_of(value: Any) -> None:
    """Charge for a value written out: lists may hold one list many times, so that little memory makes long text."""
    if isinstance(value, str):
        _charge(len(value))
        return
    waiting = [value]
    while waiting:
        found = waiting.pop()
        _charge(_size(found))
        if isinstance(found, Mapping):
            waiting.extend((*found.keys(), *found.values()))
        elif isinstance(found, (list, tuple)):
            waiting.extend(found)


def _check_width(*values: Any) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > LARGEST_WIDTH:
            raise TemplateLimitError(f"the chat template asks for text of the width {value}.")


def _check_format(text: Any, values: Iterable[Any]) -> None:
    if isinstance(text, str) and (found := _LONG_WIDTH.search(text)):
        raise TemplateLimitError(f"the chat template asks for text of the width {found.group()[:20]}.")
    if isinstance(text, str) and ("*" in text or "{" in text):  # a width may be one of the values
        _check_width(*values)
    for value in values:
        _charge_text_of(value)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox within the limits; Python's internals are refused instead of read as nothing."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, finalize=_finalize)
        self.globals.pop("lipsum")

    def limit_filters(self) -> None:
        """Called once, when all filters are there."""
        self.filters = {name: _limited_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {"_steps": _steps, "_concatenated": _concatenated}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r} object is unsafe.")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator whose result may be large, charged for before it is worked out."""
        if operator == "+" and type(left) is str and type(right) is str:  # what templates do most, without a detour
            _charge(len(left) + len(right))
            return left + right
        if operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > LARGEST_BITS:
                raise TemplateLimitError("the chat template works out a number of thousands of digits.")
        elif operator == "+":
            _charge(_size(left) + _size(right))
        elif operator == "*":
            count, value = (left, right) if isinstance(left, int) else (right, left)
            _charge(_size(value) * count if isinstance(count, int) else ITEM_CHARACTERS)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call: methods of texts are asked first how much they would make."""
        subject = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(subject, str):
            _check_method(__obj.__name__, subject, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        _charge(_size(result))
        return result


def _check_method(name: str, text: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    values = (*args, *kwargs.values())
    if name in ("format", "format_map"):
        _check_format(text, values)
    elif name == "replace" and len(args) > 1 and all(isinstance(arg, str) for arg in args[:2]):
        _charge(text.count(args[0]) * len(args[1]))
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        _charge(sum(map(_size, args[0])) + len(text) * len(args[0]))
    else:
        _check_width(*values)


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is asked first how much it would make."""
    subject_at = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        subject, values = args[subject_at], (*args[subject_at + 1 :], *kwargs.values())
        if name in _WIDTH_FILTERS:
            _check_width(*values)
        if name in ("format", "replace"):
            _check_method(name, subject, values, {})
        elif name not in _LIST_FILTERS and isinstance(subject, (list, tuple, dict)):
            _charge_text_of(subject)
            _charge(len(subject) * sum(map(_size, values)))  # what join puts between
        result = function(*args, **kwargs)
        _charge(_size(result))
        return result

    return filtered


@pass_context
def _finalize(context: Any, value: Any) -> Any:
    _charge_text_of(value)
    return value


@pass_context
def _steps(context: Any, values: Iterable[Any], literal: int) -> Iterator[Any]:
    """A loop's values, each step charged with the text that stands in the loop's body."""
    for value in values:
        _charge(literal)
        yield value


@pass_context
def _concatenated(context: Any, values: list[Any]) -> str:
    _charge_text_of(values)
    return "".join(map(str, values))


class _Counting(NodeTransformer):
    """Puts the counting filters into a template's tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        literal = sum(len(text.data) for part in node.body for text in part.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_steps", [nodes.Const(literal)], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concatenated", [], [], None, None, lineno=node.lineno)
