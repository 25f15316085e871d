"""Secrets and e-mail addresses by rough patterns, and texts shown without them.

The patterns know the prefixes that services give their keys; a password without such a mark is found only behind a
word such as `password=`. So nothing found does not mean nothing there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SecretKind:
    """A kind of secret.

    Args:
        hints: a text with none of them (in lower case) holds no such secret: a plain search is many times faster.
    """

    name: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]


_ASSIGNED = (
    r"\b(?:password|passwd|pwd|secret|api[_-]?key|access[_-]?token|auth[_-]?token)\b[\"']?\s{0,3}[:=]\s{0,3}[\"']?"
)
# a password has letters and digits, and none of what ends a value in code or prose
_VALUE = r"(?=[^\s\"',;<>(){}\[\]]{0,99}\d)(?=[^\s\"',;<>(){}\[\]]{0,99}[A-Za-z])[^\s\"',;<>(){}\[\]]{8,100}"
SECRET_KINDS = tuple(
    SecretKind(name, hints, re.compile(pattern))
    for name, hints, pattern in (
        ("private key", ("private key",), r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[^-]*"),
        ("AWS access key", ("akia", "asia"), r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
        ("GitHub token", ("gh", "github_pat_"), r"\b(?:gh[pousr]_[0-9A-Za-z]{36,}|github_pat_[0-9A-Za-z_]{50,})"),
        ("Hugging Face token", ("hf_",), r"\bhf_[0-9A-Za-z]{30,}\b"),
        ("API key", ("sk-",), r"\bsk-(?:[a-z]{1,10}-)?[0-9A-Za-z_-]{20,}"),
        ("Slack token", ("xox",), r"\bxox[abeprs]-[0-9A-Za-z-]{10,}"),
        ("Google API key", ("aiza",), r"\bAIza[0-9A-Za-z_-]{35}\b"),
        ("JSON web token", ("eyj",), r"\beyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}"),
        ("password in an address", ("://",), r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,60}:[^\s/:@]{3,80}@"),
        ("password or key", ("passw", "pwd", "secret", "api", "token"), f"(?i:{_ASSIGNED}){_VALUE}"),
    )
)
_EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
# reserved for examples (RFC 2606), so nobody's address
_NOBODYS = re.compile(r"@(?:.*\.)?example(?:\.(?:com|org|net))?$|\.(?:example|invalid|test|localhost)$", re.IGNORECASE)
_NAME = re.compile(_ASSIGNED, re.IGNORECASE)
# control characters as their pictures: a row must not be able to steer the terminal
_VISIBLE = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def secrets_in(text: str) -> Iterator[tuple[str, str]]:
    """(kind, masked text) of each secret."""
    for kind in _likely(text):
        for match in kind.pattern.finditer(text):
            yield kind.name, _masked_secret(match)


def _likely(text: str) -> list[SecretKind]:
    """The kinds that may be in a text."""
    lower = text.lower()
    return [kind for kind in SECRET_KINDS if any(hint in lower for hint in kind.hints)]


def emails_in(text: str) -> Iterator[str]:
    """Each e-mail address, masked; those of example domains are nobody's."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if not _NOBODYS.search(match[0]):
                yield _masked_email(match)


def masked(text: str) -> str:
    """The text with its secrets and e-mail addresses masked."""
    for kind in _likely(text):
        text = kind.pattern.sub(_masked_secret, text)
    return _EMAIL.sub(_masked_email, text) if "@" in text else text


def excerpt(text: str, longest: int = 80) -> str:
    """The text on one line, masked, control characters as their pictures, cut to `longest` characters."""
    # masked before it is cut: half a secret matches no pattern
    shown = " ".join(masked(text).split()).translate(_VISIBLE)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def _masked_secret(match: re.Match[str]) -> str:
    """Its first characters: enough to find it, too little to use it. Of an assignment, the name too."""
    text = match[0]
    if "://" in text:
        return f"{text.split('://')[0]}://…:…@"
    name = _NAME.match(text)
    start, shown = (name.end(), 2) if name else (0, 4)
    return f"{text[: start + shown]}… ({len(text) - start} characters)"


def _masked_email(match: re.Match[str]) -> str:
    name, _, domain = match[0].partition("@")
    return f"{name[0]}…@{domain}"
