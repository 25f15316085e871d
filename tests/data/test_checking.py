"""What a check looks for in texts: each finding occurs where it should, and not where it should not."""

from __future__ import annotations

import re
import sys

import pytest

from luthier.data.checking import answers, control_tokens, duplicates, languages, near_duplicates, privacy
from luthier.data.checking.findings import FINDINGS, Hit, by_finding, checked_names, failing
from luthier.data.checking.lengths import Lengths
from luthier.data.checking.masking import excerpt, masked
from luthier.data.checking.rows import RowTexts, texts_of
from luthier.data.records import (
    Conversation,
    Document,
    Labelled,
    LabelledConversation,
    Message,
    Origin,
    Pair,
    ToolCall,
)
from luthier.foundation.errors import MissingExtraError, UserError

QUESTION = "What is the capital of France, and how many people live there?"
PROSE = (
    "The quick brown fox jumps over the lazy dog while seven small bells ring in the old tower beside the river. "
    "Nobody in the village remembers who hung them there, or why the smallest has a crack."
)


def talk(question: str, answer: str, row: int = 1, split: str = "train") -> RowTexts:
    messages = (Message("system", "Be kind."), Message("user", question), Message("assistant", answer))
    return texts_of(Conversation(messages, Origin("a.jsonl", row)), split)


def found(hits: list[Hit]) -> list[tuple[str, int]]:
    return [(hit.finding, hit.origin.row) for hit in hits]


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        ("", "no_answer"),
        (" \n\t", "no_answer"),
        ("...", "blank_answer"),
        ("。？！", "blank_answer"),
        ("N/A", "blank_answer"),
        ("null", "blank_answer"),
        ("No", "short_answer"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I’m sorry, but as an AI I am unable to do this.", "refusal"),
        ("Unfortunately, I am unable to open links.", "refusal"),
        ("I cannot provide medical advice.", "refusal"),
        ("Well, as an AI language model, I have no favourite colour.", "refusal"),
        ("很抱歉，我无法回答这个问题。", "refusal"),
        ("作为一个人工智能语言模型，我没有情感。", "refusal"),
        (QUESTION, "echoed_question"),
        (f"what is  the capital of FRANCE, and how many people live there? {PROSE}", "echoed_question"),
        ("The answer is blue, " * 30, "looping_answer"),
        (f"{PROSE} 我今天去了北京的一家餐馆吃饭。" + "我今天去了北京的一家餐馆吃饭。" * 9, "looping_answer"),
        (PROSE + " Then the old man climbed up and began to", "cut_answer"),
        (PROSE + "\n```python\nfor row in rows:\n    print(row)", "cut_answer"),
    ],
)
def test_an_answer_that_looks_wrong(answer: str, finding: str) -> None:
    assert found(list(answers.find([talk(QUESTION, answer)]))) == [(finding, 1)]


@pytest.mark.parametrize(
    "answer",
    [
        "Yes.",
        "巴黎",
        "Paris has about two million people.",
        "I am sorry to hear that your dog is ill. Here is what you can do.",
        "Sorry seems to be the hardest word, sang Elton John.",
        "A thesis about AI: as an AI researcher once said, data is all.",
        PROSE,
        PROSE + "\n\n- one\n- two\n- three",
        PROSE + "\n```python\nprint(1)\n```",
        "| a | b |\n" + "|---|---|\n" * 40 + PROSE,
        "\n".join(f"{number}. Item number {number * number} of the list" for number in range(30)),
    ],
)
def test_an_answer_that_looks_right(answer: str) -> None:
    assert not list(answers.find([talk("Where?", answer)]))


def test_every_turn_is_looked_at_and_a_call_is_an_answer() -> None:
    messages = (
        Message("user", "Weather in Rome?"),
        Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Rome"}),)),
        Message("tool", "21 degrees"),
        Message("assistant", ""),
        Message("user", "Thank you for that!"),
        Message("assistant", "You are welcome."),
    )
    row = texts_of(Conversation(messages, Origin("a", 1)), "train")
    assert found(list(answers.find([row]))) == [("no_answer", 1)]
    assert '"name": "weather"' in row.exchanges[0][1]


def test_of_a_pair_the_chosen_answer_is_judged() -> None:
    prompt, good, bad = (Message("user", QUESTION),), (Message("assistant", "Paris, two million."),), "I can't help"
    refusal = (Message("assistant", f"I'm sorry, {bad}."),)
    first = texts_of(Pair(prompt, good, refusal, Origin("a", 1)), "train")
    second = texts_of(Pair(prompt, refusal, good, Origin("a", 2)), "train")
    same = texts_of(Pair(prompt, good, good, Origin("a", 3)), "train")
    empty = texts_of(Pair(prompt, good, (Message("assistant", " "),), Origin("a", 4)), "train")
    hits = list(answers.find([first, second, same, empty]))
    assert found(hits) == [("refusal", 2), ("identical_pair", 3), ("no_answer", 4)]


def test_an_unwanted_answer_may_be_bad_but_not_empty() -> None:
    def judged(answer: str, label: bool, row: int) -> RowTexts:
        messages = (Message("user", QUESTION), Message("assistant", answer))
        return texts_of(LabelledConversation(messages, label, Origin("a", row)), "train")

    rows = [judged("No", False, 1), judged("", False, 2), judged("No", True, 3)]
    assert found(list(answers.find(rows))) == [("no_answer", 2), ("short_answer", 3)]


def test_duplicates_conflicts_and_leakage() -> None:
    rows = [
        talk("Who are you?", "I am Strado.", 1),
        talk("Who  are you?\n", "I am\nStrado.", 2),
        talk("Who are you?", "Strado it is.", 3),
        talk("Who are you?", "Somebody else.", 4, "validation"),
        talk("Where are you?", "Here.", 5, "test"),
        texts_of(Labelled("too bad", 0, Origin("b", 1)), "train"),
        texts_of(Labelled("too bad", 1, Origin("b", 2)), "train"),
    ]
    hits = list(duplicates.find(rows))
    assert found(hits) == [("duplicates", 2), ("conflicting_labels", 2), ("leakage", 4)]
    assert hits[0].detail.startswith("the same as row 1: ")
    assert "1 here, 0 in row 1" in hits[1].detail
    assert hits[2].detail.startswith("the question of row 1")


def test_near_duplicates_and_near_leakage() -> None:
    changed = PROSE.replace("seven", "eight")
    rows = [
        talk(QUESTION, PROSE, 1),
        talk(QUESTION, changed, 2),
        talk(QUESTION, PROSE, 3),
        talk("How do whales sleep?", "With one half of the brain at a time, near the surface.", 4),
        talk("Yes?", "No.", 5),
        talk("And the capital of France, how many live there?", changed, 6, "validation"),
        talk("What do bees do in winter?", "They gather around the queen and keep her warm.", 7, "validation"),
    ]
    told: list[int] = []
    hits = list(near_duplicates.find(rows, told.append))
    assert found(hits) == [("near_duplicates", 2), ("near_leakage", 6)]
    assert re.match(r"9\d% like row 1: ", hits[0].detail)
    assert sum(told) == len(rows)


def test_near_duplicates_agree_with_the_exact_jaccard_similarity() -> None:
    """Texts of known similarity: those above 0.9 are found, those below 0.7 are not."""
    words = [f"word{number}" for number in range(400)]
    base = " ".join(words[:200])
    found_at = {}
    for other in (2, 8, 30, 60, 120):
        text = " ".join([*words[: 200 - other], *words[200 : 200 + other]])
        first, second = (set(near_duplicates.shingles(item)) for item in (base, text))
        hits = list(near_duplicates.find([talk("", base, 1), talk("", text, 2)]))
        found_at[len(first & second) / len(first | second)] = bool(hits)
    assert {similarity for similarity in found_at if similarity > 0.9} and min(found_at) < 0.5
    assert all(hit for similarity, hit in found_at.items() if similarity > 0.88)
    assert not any(hit for similarity, hit in found_at.items() if similarity < 0.7)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (PROSE, "en"),
        ("Der schnelle braune Fuchs springt über den faulen Hund, während im Turm die Glocken läuten.", "de"),
        ("保持健康的三个提示：多吃蔬菜，每天运动，早睡早起。", "zh"),
        ("これは日本語の文章です。今日はとても良い天気ですね。", "ja"),
        ("2 + 2 = 4", "und"),
        ("好的", "und"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert languages.language_of(text) == language


def test_other_languages_are_a_finding_where_some_are_wanted() -> None:
    rows = [talk("", PROSE, 1), talk("", "保持健康的三个提示：多吃蔬菜，每天运动，早睡早起。", 2), talk("", "OK", 3)]
    counts, hits = languages.count(rows, ["en"])
    assert counts == {"train": {"en": 1, "zh": 1, "und": 1}}
    assert found(hits) == [("other_language", 2)]
    assert languages.count(rows, [])[1] == []
    with pytest.raises(UserError, match=r"'eng' is no language.*\n.*Did you mean en"):
        languages.count(rows, ["eng"])


KEYS = {
    "AWS access key": "AKIA" + "IOSFODNN7EXAMPLE",
    "GitHub token": "ghp_" + "a1B2" * 10,
    "Hugging Face token": "hf_" + "a1B2c3" * 6,
    "API key": "sk-" + "proj-" + "a1B2c3" * 6,
    "Slack token": "xoxb-" + "1234567890-abcdef",
    "Google API key": "AIza" + "Sy12345" * 5,
    "JSON web token": "eyJ" + "hbGciOiJIUz.eyJ" + "zdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END",
}


@pytest.mark.parametrize(("kind", "secret"), KEYS.items())
def test_a_secret_is_found_and_never_shown_whole(kind: str, secret: str) -> None:
    row = talk("How do I log in?", f"Use {secret} for it.")
    hits = list(privacy.find([row]))
    assert [hit.detail.split(":")[0] for hit in hits if hit.finding == "secrets"] == [kind]
    for text in (hits[0].detail, masked(row.whole), excerpt(row.whole), str(hits[0].as_dict())):
        assert secret not in text and secret[10:] not in text


def test_passwords_behind_a_name_and_in_an_address() -> None:
    row = talk("password: hunter2hunter", 'api_key = "abc123def456" at postgres://me:pa55word@db.host/x')
    details = [hit.detail for hit in privacy.find([row]) if hit.finding == "secrets"]
    assert len(details) == 3
    assert not any(secret in "".join(details) for secret in ("hunter2hunter", "abc123def456", "pa55word"))
    prose = talk("What is a password: something you know?", "The secret: patience. token = tokenizer(text)")
    assert not list(privacy.find([prose]))


def test_emails() -> None:
    row = talk("Write to jane.doe@company.org", "or to somebody@example.com, user@mail.test, @handle")
    assert [(hit.finding, hit.detail) for hit in privacy.find([row])] == [("emails", "j…@company.org")]


def test_control_tokens() -> None:
    rows = [talk("What does <|im_end|> do?", "It ends a turn.", 1), talk("What?", "Nothing.", 2)]
    hits = list(control_tokens.find(rows, re.compile(re.escape("<|im_end|>"))))
    assert found(hits) == [("control_tokens", 1)]
    assert hits[0].detail == "<|im_end|> in: What does <|im_end|> do?"


def test_texts_of_documents_and_labels() -> None:
    assert texts_of(Document("Some text.", Origin("a", 1)), "test").question == "Some text."
    pair = texts_of(Labelled("one", "yes", Origin("a", 1), text_pair="two"), "train")
    assert (pair.question, pair.label, pair.every) == ("one\ntwo", "yes", ("one", "two"))


def test_lengths() -> None:
    lengths = Lengths.of([*range(1, 101)])
    assert lengths is not None
    assert (lengths.shortest, lengths.longest, lengths.mean) == (1, 100, 50.5)
    assert lengths.percentiles == {5: 5, 25: 25, 50: 50, 75: 75, 95: 95, 99: 99}
    assert sum(bar.rows for bar in lengths.bars) == 100 and lengths.bars[-1].end is None
    assert [(bar.start, bar.end, bar.rows) for bar in lengths.bars][:2] == [(0, 10, 9), (10, 20, 10)]
    same = Lengths.of([7, 7])
    assert same is not None and [(bar.start, bar.end, bar.rows) for bar in same.bars] == [(7, 8, 2)]
    outlier = Lengths.of([10] * 999 + [100_000])
    assert outlier is not None and sum(bar.rows for bar in outlier.bars) == 1000 and len(outlier.bars) <= 15
    assert Lengths.of([]) is None


def test_names_of_findings() -> None:
    assert checked_names(["near-duplicates, ANY", "secrets"]) == ("near_duplicates", "any", "secrets")
    with pytest.raises(UserError, match=r"no finding named 'duplicate'.*\n.*Did you mean duplicates"):
        checked_names(["duplicate"])


def test_a_row_counts_once_for_each_finding() -> None:
    hits = [Hit("emails", "train", Origin("a", 1), "x"), Hit("emails", "train", Origin("a", 1), "y")]
    grouped = by_finding([*hits, Hit("no_answer", "train", Origin("a", 1), "z")])
    assert list(grouped) == ["no_answer", "emails"] and len(grouped["emails"]) == 1
    assert failing(grouped, ("any",)) == ("no_answer", "emails")
    assert failing(grouped, ("emails", "secrets")) == ("emails",)
    assert set(grouped) <= set(FINDINGS)


def test_an_excerpt_is_one_harmless_line() -> None:
    assert excerpt("a\n\tb \x1b[31mred") == "a b ␛[31mred"
    assert len(excerpt("word " * 100, 40)) == 40


@pytest.mark.parametrize("module", ["rensa", "py3langid.langid"])
def test_a_missing_package_names_its_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    languages._model.cache_clear()
    with pytest.raises(MissingExtraError, match=r"luthier\[check\]"):
        if module == "rensa":
            list(near_duplicates.find([talk("a", "b")]))
        else:
            languages.count([talk("a", PROSE)], [])
    languages._model.cache_clear()
