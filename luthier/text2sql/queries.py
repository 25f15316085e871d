"""The query in what a model answered, as one line."""

from __future__ import annotations

import re

NO_QUERY = "-- no query"  # stands for an empty answer: in files of queries a blank line is a separator to other tools
_FENCED = re.compile(r"```[ \t]*\w*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_LINE_END = re.compile(r"\r\n?|\n")
# what is one piece of SQL and may hold what looks like another: literals and quoted names (a quote of the same kind is
# doubled), comments; then a semicolon, which ends the query, and line breaks
_PIECE = re.compile(
    r"""(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]\n]*\])"""
    r"""|(?P<comment>\s*(?:--[^\n]*|/\*.*?(?:\*/|\Z))\s*)|(?P<end>;)|(?P<break>\s*[\r\n]\s*)""",
    re.DOTALL,
)


def query_in(answer: str) -> str:
    """The first query of an answer without code fences, comments and line breaks, and what stands after its semicolon.

    An answer without a query becomes `NO_QUERY`.
    """
    fenced = _FENCED.search(answer)
    text = fenced.group(1) if fenced else answer
    parts: list[str] = []
    position = 0
    for found in _PIECE.finditer(text):
        parts.append(text[position : found.start()])
        position = found.end()
        if found.lastgroup == "end":
            if "".join(parts).strip():
                break
        elif found.lastgroup == "quoted":
            parts.append(_LINE_END.sub(" ", found.group()))  # Unicode's own separators are part of the value
        else:
            parts.append(" ")
    else:
        parts.append(text[position:])
    return "".join(parts).strip() or NO_QUERY
