"""Answers that are empty, or that look wrong. All of it is rough: each finding is a place to look, not a verdict."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

from luthier.data.checking.findings import Hit
from luthier.data.checking.rows import RowTexts

PLACEHOLDERS = frozenset(
    {"n/a", "na", "null", "none", "nan", "todo", "tbd", "undefined", "[object object]", "<nooutput>"}
)
SHORT_CHARACTERS = 2
ECHO_CHARACTERS = 20  # shorter questions are repeated for good reasons
LONG_CHARACTERS = 200
LONG_LINE_CHARACTERS = 60
# the share of its size that zlib leaves of a text; ordinary prose keeps about half, repeated text little
LOOPING_SHARE = 0.4

_REFUSAL = re.compile(
    r"(?:i(?:'|’)?m|i am) (?:very |really |so |truly )?sorry,? (?:but )?(?:i|as an ai)\b.{0,20}(?:can(?:no|'|’)?t|unable|not able)"
    r"|(?:sorry|unfortunately|i apologi[sz]e)\b.{0,30}\bi (?:can(?:no|'|’)?t|am unable|am not able)"
    r"|i (?:cannot|can(?:'|’)t|can not|am unable to|am not able to|won(?:'|’)t) "
    r"(?:help|assist|fulfil|provide|comply|answer|generate|create|engage|discuss|complete|support)"
    r"|(?:很|非常)?(?:抱歉|对不起|遗憾)[，,。！!\s]{0,2}.{0,10}(?:无法|不能|没有办法)"
    r"|我(?:无法|不能)(?:回答|提供|满足|帮助|完成|协助)",
    re.IGNORECASE,
)
_AS_AN_AI = re.compile(
    r"\bas an? (?:ai|artificial intelligence)\b(?: language model| model| assistant|,)"
    r"|作为(?:一个|一名|一款)?(?:AI|人工智能|大?语言模型)(?:语言)?(?:模型|助手|助理)?",
    re.IGNORECASE,
)
_REPEATED = re.compile(r"(.{10,120}?)\1{3,}", re.DOTALL)
_ENDING = re.compile(r"[\w,，、;；:：(（\[\-]$")


def find(rows: Sequence[RowTexts]) -> Iterator[Hit]:
    """Findings about answers: `no_answer`, `blank_answer`, `short_answer`, `refusal`, `echoed_question`,
    `looping_answer`, `cut_answer`, `identical_pair`."""
    for row in rows:
        if len(row.answers) == 2 and row.answers[0] == row.answers[1]:
            yield Hit("identical_pair", row.split, row.origin, row.answers[0])
        last = row.answers[-1:] if not row.exchanges else row.answers[1:]
        for question, answer in (*row.exchanges, *(("", text) for text in last if not text.strip())):
            found = judge(question, answer)
            if found is not None:
                yield Hit(found[0], row.split, row.origin, found[1])


def judge(question: str, answer: str) -> tuple[str, str] | None:
    """(finding, what was found) of an answer that looks wrong, else None."""
    text = answer.strip()
    if not text:
        return "no_answer", f"no answer to: {question}" if question else "no answer"
    if text.lower() in PLACEHOLDERS or not any(letter.isalnum() for letter in text):
        return "blank_answer", text
    if len(text) <= SHORT_CHARACTERS and text.isascii():
        return "short_answer", text
    if _REFUSAL.match(text) or _AS_AN_AI.search(text, 0, LONG_CHARACTERS):
        return "refusal", text
    if _repeats(question, text):
        return "echoed_question", text
    if len(text) >= LONG_CHARACTERS:
        if looped := _loop(text):
            return "looping_answer", f"again and again: {looped}"
        if ending := _cut(text):
            return "cut_answer", f"ends with: {ending}"
    return None


def _repeats(question: str, answer: str) -> bool:
    """Whether an answer is its question, or begins with all of it (`repeat after me` is no such question)."""
    asked, given = (" ".join(text.split()).casefold() for text in (question, answer))
    return len(asked) >= ECHO_CHARACTERS and given.startswith(asked)


def _loop(text: str) -> str:
    """What a text repeats at least four times in a row, or ""."""
    data = text.encode()
    if len(zlib.compress(data, 1)) > LOOPING_SHARE * len(data):
        return ""
    for match in _REPEATED.finditer(text):
        if sum(letter.isalpha() for letter in match[1]) * 2 > len(match[1]):  # a line of a table is no sentence
            return match[1]
    return ""


def _cut(text: str) -> str:
    """The end of a text that breaks off, or ""."""
    if text.count("```") % 2:
        return f"{text[-30:]} (a block of code that is not closed)"
    line = text.rsplit("\n", 1)[-1]
    inside_sentence = len(line) >= LONG_LINE_CHARACTERS and re.search(r"[.!?。！？]\s", line) is not None
    hashtag = line.rsplit(None, 1)[-1].startswith("#")
    return text[-40:] if inside_sentence and _ENDING.search(text) and not hashtag else ""
