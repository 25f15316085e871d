"""The query in what a model answered, as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.text2sql.evaluation.execution import STATEMENT
from luthier.text2sql.prose import LABEL, is_prose, last_token

# stands for an empty answer: in files of queries a blank line is a separator to other tools, and a comment a query without
# rows, which would be right where the gold query has none
NO_QUERY = "(no query)"
# a fence's first line may name a language; on one line with the query it is sql if it is any
_FENCED = re.compile(
    r"```(?:[ \t]*(?!(?:select|with)\b)\w*[ \t]*\n|[ \t]*sql(?:ite)?\b)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE
)
# where a statement may begin: on a line of its own, perhaps behind a bullet, or words and a colon (`SQL query: SELECT ...`)
_LINE_BEGINNING = re.compile(
    rf"^[ \t]*+(?=\S)(?:(?:[-*•>](?!-)|\#{{1,6}}|\d{{1,3}}[.)])[ \t]+)?(?:{LABEL}[ \t]*)?(?:<\w{{1,20}}>[ \t]*)?",
    re.MULTILINE,
)
_INLINE = re.compile("`([^`]*)`")
_BRACKETS = re.compile(r"[\s(]*")
_UNWRITABLE = re.compile(r"\r\n?|\n|\t")  # a tab ends the query in files of them
_LINE = re.compile(r"[^\r\n]*")
_BLANK_LINE = re.compile(r"(?:\r\n?|\n)[ \t]*(?:\r\n?|\n)")
# what is one piece of SQL and may hold what looks like another: literals and quoted names (a quote of the same kind is
# doubled), comments; then what ends the query (a semicolon, `</sql>`, `<|im_end|>`), and line breaks and tabs
_PIECE = re.compile(
    r"""(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]\n]*\])"""
    r"""|(?P<comment>(?:--[^\n]*|/\*.*?(?:\*/|\Z))\s*)|(?P<end>;|</|<\|)|(?P<break>[\r\n\t]\s*)""",
    re.DOTALL,
)
_SELECT_OR_BRACKET = re.compile(r"[()]|\bselect\b", re.IGNORECASE)
_SECOND = re.compile(r"select\b|with\s+(?:recursive\s+)?\w+\s*(?:\(|as\b)", re.IGNORECASE)
# behind these a SELECT on the next line is of the same statement
_GOES_ON = frozenset({"union", "all", "intersect", "except", "minus", "distinct"})
_FULL_STOP = re.compile(r"(?<=[^\W\d]|[)'\"`\]])[.。]+\Z")


def _fenced(answer: str) -> str:
    """What stands in the first code fence that begins with a statement; where none does, before the first fence if a statement
    is there (the prompt may have opened it), else in it; the whole where there is no fence."""
    fences = [(fence.start(), fence[1]) for fence in _FENCED.finditer(answer)]
    if not fences:
        return answer
    before = answer[: fences[0][0]]
    found = next((fence for _, fence in fences if STATEMENT.match(fence)), None)
    if found is not None:
        return found
    return before if any(True for _ in _beginnings(before)) else fences[0][1]


def _beginnings(text: str) -> Iterator[int]:
    """Where lines are that begin with a statement, behind what stands before it."""
    for line in _LINE_BEGINNING.finditer(text):
        brackets = _BRACKETS.match(text, line.end())
        if STATEMENT.match(text, brackets.end() if brackets else line.end()):
            yield line.end()


def _line_at(text: str, place: int) -> str:
    """From a place to the end of its line, without comments: their words are neither SQL nor what stands behind it."""
    found = _LINE.match(text, place)
    return _PIECE.sub(lambda piece: " " if piece.lastgroup == "comment" else piece[0], found[0]) if found else ""


def _without_preface(text: str) -> tuple[str, bool]:
    """From the first line on that begins with a statement, or what stands in backticks and does; else the whole. And whether it
    is a statement. Of sentences that begin like one (`Select the heads that ...`) only the first is taken, and for want of others."""
    first = None
    for place in _beginnings(text):
        if not is_prose(_line_at(text, place)):
            return text[place:], True
        first = place if first is None else first
    if first is not None:
        return text[first:], True
    codes = [code[1].strip() for code in _INLINE.finditer(text) if STATEMENT.match(code[1])]
    code = next((code for code in codes if " " in code), codes[0] if codes else None)
    return (text, False) if code is None else (code, True)


class _Statement:
    """What is known of a statement while its pieces are gone through: whether it may end here."""

    def __init__(self, begun: bool) -> None:
        self._begun = begun
        self._depth = 0
        self._selected = False
        self._last = ""

    def read(self, text: str) -> None:
        """A piece of it without quotes and comments."""
        for found in _SELECT_OR_BRACKET.finditer(text):
            self._depth += (found[0] == "(") - (found[0] == ")")
            self._selected |= found[0] not in "()" and self._depth <= 0
        self._last = last_token(text) or self._last

    def read_quoted(self, text: str) -> None:
        self._last = text

    def ends(self, text: str, place: int, *, apart: bool) -> bool:
        """Whether the line at a place is none of it: words, or another statement."""
        if not self._begun or self._depth > 0:
            return False
        if self._selected and self._last.lower() not in _GOES_ON and _SECOND.match(text, place):
            return True
        return is_prose(_line_at(text, place), self._last, apart=apart)


def query_in(answer: str) -> str:
    """The first query of an answer, as one line without comments: out of code fences, without words before and behind it, and
    without what stands after its semicolon; a reasoning model's thoughts, which end with `</think>`, are not its answer.

    An answer without a query becomes `NO_QUERY`.
    """
    text, begun = _without_preface(_fenced(answer.rpartition("</think>")[2]))
    statement = _Statement(begun)
    parts: list[str] = []
    position = 0
    for found in _PIECE.finditer(text):
        parts.append(text[position : found.start()])
        statement.read(parts[-1])
        position = found.end()
        if found.lastgroup == "end":
            if "".join(parts).strip():
                break
        elif found.lastgroup == "quoted":
            parts.append(_UNWRITABLE.sub(" ", found.group()))  # Unicode's own separators are part of the value
            statement.read_quoted(found.group())
        else:
            space = found.group()[len(found.group().rstrip()) :]  # behind a comment
            apart = _BLANK_LINE.search(space) is not None
            if ("\n" in space or "\r" in space) and statement.ends(text, position, apart=apart):
                break
            before = parts.pop().rstrip()
            if before or parts[-1:] != [" "]:  # of comments and breaks in a row one space is left
                parts += [before, " "]
    else:
        parts.append(text[position:])
    query = "".join(parts).strip()
    return (_FULL_STOP.sub("", query) if begun else query) or NO_QUERY
