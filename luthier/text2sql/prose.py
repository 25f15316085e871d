"""Words that a model writes behind its query, told from lines that the query goes on with.

No database is asked, for a query may be wrong, or of a dialect that is not at hand. What tells them apart is that SQL never has
three names in a row: behind a column or a table may stand one alias, and then a keyword, an operator or a comma. So no query that is legal
in SQLite is cut, however many blank lines are in it.
"""

from __future__ import annotations

import re

# what may stand behind an alias or between names in a query; not SQL's words that no SELECT needs (query, table, key, row, to, ...)
_KEYWORDS = """
    select distinct all any some from where group by having order limit offset fetch union intersect except minus values
    join inner left right full outer cross natural on using as and or not in is null isnull notnull like ilike glob regexp match
    between exists case when then else end asc desc nulls first last next only collate escape cast with recursive materialized
    over partition window filter rows range groups unbounded preceding following current exclude indexed
    date time timestamp interval explain insert replace into update set delete create drop alter temp temporary returning
"""
KEYWORDS = frozenset(_KEYWORDS.split())
# behind these a query may end, as behind a name
ENDING = frozenset({"asc", "desc", "null", "end", "first", "last", "isnull", "notnull"})
_BEHIND_ALIAS = """
    from where group having order limit offset union intersect except minus window
    join inner left right full outer cross natural on using indexed
"""
BEHIND_ALIAS = frozenset(_BEHIND_ALIAS.split())
_TOKEN = re.compile(
    r"""(?P<word>[^\W\d]\w*+(?:['’]\w{1,2}\b)*)"""
    r"""|(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\][]*\])"""
    r"""|(?P<number>\d[\w.]*)|(?P<stop>[.!?…](?=\s|\Z))|(?P<other>\S)"""
)
_BULLET = re.compile(r"\s*(?:(?:[-*•>](?!-)|#{1,6}|\d{1,3}[.)]|[^\w\s\x00-\x7f]{1,3})\s+)?")
# the last is a row of a table in Markdown; `||` at a line's ends joins texts
_NEVER_SQL = re.compile(r"\s*(?:```|~~~|\#+\s|\#\#|\*\*|={3}|<[|/]|\|(?!\|).*(?<!\|)\|\s*$)")
# `Explanation: ...`, `**Note:** ...`; SQL has a colon only before a parameter's name, two before a type, and any in comments
LABEL = r"[*_]{0,2}\w(?:(?!--|/\*)[\w ,()/*-]|(?<=\w)['’](?=\w)){0,60}[:：][*_]{0,2}"
_LABEL = re.compile(rf"{LABEL}(?=\s|\Z)")
_FULL_WIDTH = frozenset("，。；：！？、")

Token = tuple[str, str]  # its kind, which is a group of `_TOKEN`, and its text


def last_token(text: str) -> str:
    """The last token of a query: what may follow depends on it."""
    found = ""
    for token in _TOKEN.finditer(text[-200:]):  # a name is no longer
        found = token[0]
    return found


def is_prose(line: str, before: str = "", *, apart: bool = False) -> bool:
    """Whether a line is of words and no SQL.

    Args:
        before: the query's last token before it.
        apart: whether a blank line parts the two. Then two names behind one are enough.
    """
    start = _BULLET.match(line)
    assert start is not None  # it may be empty
    if _NEVER_SQL.match(line) or _LABEL.match(line, start.end()):
        return True
    tokens = [(str(found.lastgroup), found[0]) for found in _TOKEN.finditer(line, start.end())]
    if not tokens or tokens[0][0] != "word":
        return False
    if apart and len(tokens) > 1 and tokens[-1] == ("stop", "?") and _is_name(tokens[-2]):
        return True  # a parameter's mark stands behind an operator
    if not _is_name(tokens[0]):  # `In this query we ...`, and not `WHERE a = 1 this query counts`
        return all(map(_is_name, tokens[1:4])) and len(tokens) > 3
    if any(text in _FULL_WIDTH for _, text in tokens) or _longest_run(tokens) > 2:
        return True
    if len(tokens) > 2 and _is_name(tokens[1]) and tokens[2][0] == "stop":
        return True
    return apart and _ends(before) and _goes_on_in_words(tokens)


def _goes_on_in_words(tokens: list[Token]) -> bool:
    """Whether a line that begins with a name can't follow another: `It counts ...`, `Show all ...`, `Done.`"""
    if len(tokens) == 1:
        return False  # an alias
    kind, text = tokens[1]
    if kind == "word":
        return text.lower() not in BEHIND_ALIAS
    return kind == "quoted" or (kind == "stop" and len(tokens) == 2)


def _is_name(token: Token) -> bool:
    kind, text = token
    return kind == "quoted" or (kind == "word" and text.lower() not in KEYWORDS)


def _longest_run(tokens: list[Token]) -> int:
    """How many names stand in a row."""
    longest = run = 0
    for token in tokens:
        run = run + 1 if _is_name(token) else 0
        longest = max(longest, run)
    return longest


def _ends(before: str) -> bool:
    """Whether a query may end with this token."""
    found = _TOKEN.match(before)
    if found is None:
        return False
    return (
        found.lastgroup in ("quoted", "number")
        or (found.lastgroup == "word" and (_is_name(("word", before)) or before.lower() in ENDING))
        or before == ")"
    )
