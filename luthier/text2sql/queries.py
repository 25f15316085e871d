"""The query in what a model answered, as one line."""

from __future__ import annotations

import re

from luthier.text2sql.evaluation.execution import STATEMENT

# stands for an empty answer: in files of queries a blank line is a separator to other tools, and a comment a query without
# rows, which would be right where the gold query has none
NO_QUERY = "(no query)"
# a fence's first line may name a language; on one line with the query it is sql if it is any
_FENCED = re.compile(
    r"```(?:[ \t]*(?!(?:select|with)\b)\w*[ \t]*\n|[ \t]*sql(?:ite)?\b)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)
# where a statement may begin: on a line of its own, perhaps behind words and a colon (`SQL query: SELECT ...`)
_LINE_BEGINNING = re.compile(r"^[ \t]*+(?=\S)(?:[\w ]{1,30}:[ \t]*)?", re.MULTILINE)
_INLINE = re.compile("`([^`]*)`")
_BRACKETS = re.compile(r"[\s(]*")
_LINE_END = re.compile(r"\r\n?|\n")
# what is one piece of SQL and may hold what looks like another: literals and quoted names (a quote of the same kind is
# doubled), comments; then a semicolon, which ends the query, and line breaks
_PIECE = re.compile(
    r"""(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]\n]*\])"""
    r"""|(?P<comment>(?:--[^\n]*|/\*.*?(?:\*/|\Z))\s*)|(?P<end>;)|(?P<break>[\r\n]\s*)""",
    re.DOTALL,
)


def _fenced(answer: str) -> str:
    """What stands in the first code fence that begins with a statement, or in the first; the whole where there is none."""
    fences = [fence[1] for fence in _FENCED.finditer(answer)]
    return next((fence for fence in fences if STATEMENT.match(fence)), fences[0] if fences else answer)


def _without_preface(text: str) -> str:
    """From the first line on that begins with a statement; or what stands in backticks and does; else the whole."""
    for line in _LINE_BEGINNING.finditer(text):
        brackets = _BRACKETS.match(text, line.end())
        if STATEMENT.match(text, brackets.end() if brackets else line.end()):
            return text[line.end() :]
    return next((code[1] for code in _INLINE.finditer(text) if STATEMENT.match(code[1])), text)


def query_in(answer: str) -> str:
    """The first query of an answer without code fences, comments and line breaks, and what stands after its semicolon; a
    reasoning model's thoughts, which end with `</think>`, are not its answer.

    An answer without a query becomes `NO_QUERY`.
    """
    text = _without_preface(_fenced(answer.rpartition("</think>")[2]))
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
            before = parts.pop().rstrip()
            if before or parts[-1:] != [" "]:  # of comments and breaks in a row one space is left
                parts += [before, " "]
    else:
        parts.append(text[position:])
    return "".join(parts).strip() or NO_QUERY
