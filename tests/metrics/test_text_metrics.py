"""Metrics of written answers against the libraries that define them, and their values worked out by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from luthier.config.plugins import METRICS
from luthier.foundation.errors import DataError
from luthier.metrics import _ngrams
from luthier.metrics._text import Scored, TextRow
from luthier.metrics.numeric_match import numbers_in
from luthier.metrics.tool_call_match import calls_in

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # escapes in their sources
    import jieba
    import rouge_chinese
import nltk.translate.bleu_score
import rouge_score.rouge_scorer
import sacrebleu
import sklearn.metrics

ENGLISH = [
    ("The cat sat on the mat.", "The cat is on the mat."),
    ("A quick brown fox jumps over the lazy dog.", "The quick brown fox jumped over the lazy dog!"),
    ("", "Something was expected."),
    ("Nothing alike", "完全不同"),
    ("the the the the", "the cat the dog"),
    ("It costs $3.50, i.e. (almost) nothing.", "It costs $3.50 -- almost nothing."),
    ("Hello", "Hello"),
]
CHINESE = [
    ("今天天气很好，我们去公园吧。你来吗？", "今天的天气真好，我们一起去公园玩吧。"),
    ("我叫 Strado，是琴匠工坊制作的。", "我是 Strado。琴匠工坊做的。”他说。"),
    ("第一行\n\n第二行", "第一行\n第二行"),
    ("他说：“好。”然后走了……再也没有回来", "他说好。然后走了。"),
    (" ", "空"),
    ("重复重复重复重复", "重复"),
]
# words of few kinds, so that n-grams repeat and match
texts = st.lists(
    st.sampled_from(["猫", "狗", "the", "cat", "cat", ".", "。", "？", "\n", " ", "A", "”", "……", "1.5"]), max_size=14
).map("".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


def numbers(name: str, rows: Sequence[tuple[str, str]], **options: Any) -> dict[str, float]:
    return {key: scored.value for key, scored in scored_by(name, rows, **options).items()}


def scored_by(name: str, rows: Sequence[tuple[str, str]], **options: Any) -> dict[str, Scored]:
    module = METRICS.load(name)
    return dict(module.build(module.Options(**options))([TextRow(*row) for row in rows]))


def text_metrics() -> list[str]:
    return [name for name in METRICS.names() if "text" in METRICS.load(name).TASKS]


@pytest.mark.parametrize("name", [name for name in text_metrics() if name != "llm_judge"])
def test_what_every_metric_gives(name: str) -> None:
    """Finite numbers under the names it says, the mean of its rows where it says so, and the best at equal texts."""
    module = METRICS.load(name)
    rows = [("7 猫", "7"), ("A [1]", "A [1]"), ('{"name": "f", "arguments": {}}', "3"), ("3", "3")]
    found = scored_by(name, rows)
    assert tuple(found) == module.GIVES
    for scored in found.values():
        assert len(scored.statistics_ES) == len(rows) and math.isfinite(scored.value)
        if scored.is_mean:
            assert scored.value == pytest.approx(scored.rows_E.mean())
        twice = scored.pool(np.stack([scored.statistics_ES.sum(axis=0), scored.statistics_ES[0]]))
        assert twice.shape == (2,) and twice[0] == pytest.approx(scored.value)
    same = ['[{"name": "f", "arguments": {"a": 1}}]', '{"A": 5}']
    options = {"reference": "search", "pattern": "[A-Z]|a"} if name == "regex_match" else {}
    best = numbers(name, [(text, text) for text in same], **options)
    wanted = (1.0, 100.0) if module.GREATER_IS_BETTER else (0.0,)
    assert all(any(value == pytest.approx(one) for one in wanted) for value in best.values()), best


# ---- against the libraries


@pytest.mark.parametrize(
    "options", [{}, {"tokenize": "zh"}, {"tokenize": "char", "lowercase": True}, {"tokenize": "intl"}]
)
@pytest.mark.parametrize("rows", [ENGLISH, CHINESE, ENGLISH + CHINESE, ENGLISH[2:3], ENGLISH[3:4], ENGLISH[6:]])
def test_bleu_is_sacrebleus(rows: list[tuple[str, str]], options: dict[str, Any]) -> None:
    predictions, references = zip(*rows, strict=True)
    wanted = sacrebleu.BLEU(**options).corpus_score(predictions, [references]).score
    assert numbers("bleu", rows, **options)["bleu"] == pytest.approx(wanted, abs=1e-6)


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_bleu_is_sacrebleus_on_anything(rows: list[tuple[str, str]]) -> None:
    predictions, references = zip(*rows, strict=True)
    assert numbers("bleu", rows)["bleu"] == pytest.approx(
        sacrebleu.BLEU().corpus_score(predictions, [references]).score, abs=1e-6
    )


@given(pairs, st.sampled_from([{}, {"word_order": 2}, {"char_order": 3, "beta": 1.0, "lowercase": True}]))
@settings(max_examples=60, deadline=None)
def test_chrf_is_sacrebleus(rows: list[tuple[str, str]], options: dict[str, Any]) -> None:
    predictions, references = zip(*rows, strict=True)
    library = sacrebleu.CHRF(**{**options, **({"beta": 1} if "beta" in options else {})})
    assert numbers("chrf", rows, **options)["chrf"] == pytest.approx(
        library.corpus_score(predictions, [references]).score, abs=1e-6
    )
    rows_E = scored_by("chrf", rows, **options)["chrf"].rows_E
    assert rows_E == pytest.approx([library.sentence_score(p, [r]).score for p, r in rows], abs=1e-6)


def test_chrf_of_texts() -> None:
    for options in ({}, {"word_order": 2}):
        predictions, references = zip(*ENGLISH + CHINESE, strict=True)
        wanted = sacrebleu.CHRF(**options).corpus_score(predictions, [references]).score
        assert numbers("chrf", ENGLISH + CHINESE, **options)["chrf"] == pytest.approx(wanted, abs=1e-6)


def as_llama_factory_counts(prediction: str, reference: str) -> dict[str, float]:
    """What its evaluation reports for one row, from the three libraries it calls."""
    words = [" ".join(jieba.cut(text)) for text in (prediction, reference)]
    if not all(text.split() for text in words):
        found = dict.fromkeys(("rouge-1", "rouge-2", "rouge-l"), 0.0)
    else:
        scores = rouge_chinese.Rouge().get_scores(*words)[0]
        found = {name: 100 * score["f"] for name, score in scores.items()}
    smoothing = nltk.translate.bleu_score.SmoothingFunction().method3
    bleu = nltk.translate.bleu_score.sentence_bleu(
        [list(reference.strip())], list(prediction.strip()), smoothing_function=smoothing
    )
    return {**found, "bleu-4": 100 * bleu}


@pytest.mark.parametrize("row", ENGLISH + CHINESE)
def test_rouge_and_bleu4_are_llama_factorys(row: tuple[str, str]) -> None:
    found = numbers("rouge", [row]) | numbers("bleu4", [row])
    assert found == pytest.approx(as_llama_factory_counts(*row), abs=1e-6)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_rouge_and_bleu4_are_llama_factorys_on_anything(rows: list[tuple[str, str]]) -> None:
    each = [as_llama_factory_counts(*row) for row in rows]
    found = numbers("rouge", rows) | numbers("bleu4", rows)
    assert found == pytest.approx({name: np.mean([one[name] for one in each]) for name in found}, abs=1e-6)


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_rouge_of_english_is_rouge_scores(rows: list[tuple[str, str]]) -> None:
    scorer = rouge_score.rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    each = [scorer.score(reference, prediction) for prediction, reference in rows + ENGLISH]
    wanted = [100 * np.mean([one[name].fmeasure for one in each]) for name in ("rouge1", "rouge2", "rougeL")]
    assert list(numbers("rouge", rows + ENGLISH, tokenizer="english").values()) == pytest.approx(wanted, abs=1e-6)


labels = st.sampled_from(["yes", "no", "maybe", " yes\n", "rubbish"])


@given(st.lists(st.tuples(labels, st.sampled_from(["yes", "no", "maybe"])), min_size=1, max_size=20))
@settings(deadline=None)
def test_labels_are_scikit_learns(rows: list[tuple[str, str]]) -> None:
    predicted, truth = [row[0].strip() for row in rows], [row[1] for row in rows]
    wanted = sklearn.metrics.f1_score(truth, predicted, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert numbers("label_macro_f1", rows)["label_macro_f1"] == pytest.approx(wanted, abs=1e-6)
    right = sklearn.metrics.accuracy_score(truth, predicted)
    assert numbers("label_accuracy", rows)["label_accuracy"] == pytest.approx(right, abs=1e-6)


def by_table(first: str, second: str, *, common: bool) -> int:
    """The textbook's table: the longest common subsequence, or the Levenshtein distance."""
    table = [[0 if common else i + j for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i, one in enumerate(first, start=1):
        for j, other in enumerate(second, start=1):
            around = (table[i - 1][j], table[i][j - 1])
            if common:
                table[i][j] = table[i - 1][j - 1] + 1 if one == other else max(around)
            else:
                table[i][j] = min(table[i - 1][j - 1] + (one != other), min(around) + 1)
    return table[-1][-1]


@given(st.text("abc", max_size=90), st.text("abcd", max_size=90))
@settings(deadline=None)
def test_bits_count_as_the_table_does(first: str, second: str) -> None:
    assert _ngrams.longest_common_subsequence(first, second) == by_table(first, second, common=True)
    assert _ngrams.edit_distance(first, second) == by_table(first, second, common=False)
    longest = max(len(first), len(second), 1)
    wanted = (
        nltk.edit_distance(first, second) if len(first) * len(second) < 400 else by_table(first, second, common=False)
    )
    assert numbers("edit_distance", [(first, second)])["edit_distance"] == pytest.approx(wanted / longest)


# ---- by hand


@pytest.mark.parametrize(("metric", "best"), [("edit_distance", 0), ("bleu4", None), ("exact_match", 1)])
def test_white_space_that_a_template_puts_around_answers_does_not_count(metric: str, best: float | None) -> None:
    """Falcon's and DeepSeek's write a blank before each answer, llama2's one behind it too; a reference has none."""
    bare = numbers(metric, [("cat", "cat"), ("a fox", "a fox")])
    assert numbers(metric, [(" cat", "cat"), (" a fox ", "a fox")]) == bare
    assert best is None or list(bare.values()) == [best]


def test_edits_by_hand() -> None:
    rows = [("kitten", "sitting"), ("", ""), ("abc", "")]  # three edits of seven; none; all
    assert numbers("edit_distance", rows)["edit_distance"] == pytest.approx((3 / 7 + 0 + 1) / 3)
    assert numbers("edit_distance", rows, normalised=False)["edit_distance"] == pytest.approx((3 + 0 + 3) / 3)
    assert numbers("edit_distance", [("a b c", "a x c")], unit="words")["edit_distance"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("options", "rows", "right"),
    [
        ({}, [(" Yes\n", "Yes"), ("yes", "Yes")], 1),
        ({"strip": False}, [(" Yes", "Yes"), ("Yes", "Yes")], 1),
        ({"ignore_case": True}, [("YES", "yes"), ("ye", "yes")], 1),
        ({"ignore_punctuation": True}, [("好。", "好"), ("It's", "Its"), ("a b", "ab")], 2),
        ({"ignore_articles": True, "collapse_whitespace": True}, [("the  cat", "a cat"), ("then", "n")], 1),
    ],
)
def test_exact_match(options: dict[str, Any], rows: list[tuple[str, str]], right: int) -> None:
    assert numbers("exact_match", rows, **options)["exact_match"] == pytest.approx(right / len(rows))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 1,234.5.", [1234.5]),
        ("3-2=1", [3, 2, 1]),
        ("x = -.5 or −7", [-0.5, -7]),
        ("50% of 1,2,3", [0.5, 1, 2, 3]),
        ("$1,000,000 in 2019-03", [1e6, 2019, 3]),
        ("1e-3", [0.001]),
        ("none", []),
    ],
)
def test_numbers_are_found(text: str, found: list[float]) -> None:
    assert numbers_in(text) == pytest.approx(found)


def test_numeric_match() -> None:
    rows = [("so 3 + 4 = 7.", "work #### 7"), ("7 apples, not 8", "7"), ("no idea", "7"), ("7.01", "7")]
    assert numbers("numeric_match", rows)["numeric_match"] == 1 / 4
    assert numbers("numeric_match", rows, which="first")["numeric_match"] == 1 / 4  # now the second
    assert numbers("numeric_match", rows, absolute_tolerance=0.1)["numeric_match"] == 2 / 4
    assert numbers("numeric_match", rows, relative_tolerance=0.01)["numeric_match"] == 2 / 4
    with pytest.raises(DataError, match="row 2 has no number in its reference 'seven'"):
        numbers("numeric_match", [("1", "1"), ("7", "seven")])


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("答案是B", "B"),
        ("选择B。", "B"),
        ("B选项是对的", "B"),
        ("我选B，因为A不对", "B"),
        ("答えはCです", "C"),
        ("정답은 D입니다", "D"),
        ("The answer is B.", "B"),
        ("(B)", "B"),
        ("Déjà vu : la réponse est B", "B"),  # D begins a word
        ("Äpfel, also C", "C"),
        ("BMW", ""),
        ("A_1", ""),
        ("B2", ""),
        ("答案是DNA", ""),
    ],
)
def test_regex_match_finds_a_choice_of_any_script(answer: str, letter: str) -> None:
    right = numbers("regex_match", [(answer, each) for each in "ABCD"])["regex_match"]
    assert right == (0.25 if letter else 0)
    assert numbers("regex_match", [(answer, letter)])["regex_match"] == bool(letter)


def test_regex_match() -> None:
    rows = [("I say B. Not C.", "B"), ("I say C", "B"), ("b", "B")]
    assert scored_by("regex_match", rows)["regex_match"].rows_E.tolist() == [1, 0, 0]
    only = r"\b([A-D])\b"
    assert scored_by("regex_match", rows, pattern=only)["regex_match"].rows_E.tolist() == [1, 0, 0]
    assert scored_by("regex_match", rows, pattern=only, which="last")["regex_match"].rows_E.tolist() == [0, 0, 0]
    assert scored_by("regex_match", rows, pattern=only, ignore_case=True)["regex_match"].rows_E.tolist() == [1, 0, 1]
    assert (
        numbers("regex_match", [("#### 5", "so #### 5")], pattern=r"#### (\d+)", reference="search")["regex_match"] == 1
    )
    with pytest.raises(DataError, match="row 1 has no match"):
        numbers("regex_match", [("#### 5", "5")], pattern=r"#### (\d+)", reference="search")
    with pytest.raises(ValidationError, match="no regular expression"):
        METRICS.load("regex_match").Options(pattern="(")


@pytest.mark.parametrize(
    ("text", "options", "valid"),
    [
        ('{"a": 1}', {}, True),
        ('```json\n{"a": 1}\n```', {}, True),
        ('```json\n{"a": 1}\n```', {"fenced": False}, False),
        ('Here: {"a": 1}', {}, False),
        ("{'a': 1}", {}, False),
        ('{"a": NaN}', {}, False),
        ("[1, 2,]", {}, False),
        ("[1, 2]", {"kind": "object"}, False),
        ("[1, 2]", {"kind": "array"}, True),
        ('{"a": 1}', {"required": ["a", "b"]}, False),
        ('{"a": 1, "b": null}', {"required": ["a", "b"]}, True),
        ("[" * 100_000, {}, False),
        ("", {}, False),
    ],
)
def test_json_validity(text: str, options: dict[str, Any], valid: bool) -> None:
    assert numbers("json_validity", [(text, "")], **options)["json_validity"] == valid


CALL = '<tool_call>\n{"name": "get", "arguments": {"x": 1, "y": "a"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "options", "right"),
    [
        (CALL, {}, True),
        ('Sure: [{"name": "get", "arguments": {"y": "a", "x": 1}}]', {}, True),
        (
            '{"tool_calls": [{"type": "function", "function": {"name": "get", "arguments": "{\\"x\\": 1, \\"y\\": \\"a\\"}"}}]}',
            {},
            True,
        ),
        ('{"name": "get", "parameters": {"x": 1, "y": "a"}}', {}, True),
        (
            '{"content": null, "function_call": {"name": "get", "arguments": "{\\"x\\": 1.0, \\"y\\": \\"a\\"}"}}',
            {},
            True,
        ),
        ('{"name": "get", "arguments": {"x": true, "y": "a"}}', {}, False),
        ('{"name": "get", "arguments": {"x": 1.5, "y": "a"}}', {}, False),
        ('{"name": "get", "arguments": {"x": 2, "y": "a"}}', {}, False),
        ('{"name": "get", "arguments": {"x": 2}}', {"compare": "names"}, True),
        (f"{CALL}\n{CALL}", {}, False),
        ("no call {at all", {}, False),
    ],
)
def test_tool_calls(text: str, options: dict[str, Any], right: bool) -> None:
    assert numbers("tool_call_match", [(text, CALL)], **options)["tool_call_match"] == right


def test_tool_calls_of_several() -> None:
    first, second = '{"name": "a", "arguments": {}}', '{"name": "b", "arguments": {}}'
    assert calls_in(f"{first} {second}") == [("a", {}), ("b", {})]
    assert numbers("tool_call_match", [(first + second, second + first)])["tool_call_match"] == 1
    assert numbers("tool_call_match", [(first + second, second + first)], ordered=True)["tool_call_match"] == 0
    assert numbers("tool_call_match", [("just words", "an answer")])["tool_call_match"] == 1


def test_labels_may_be_levelled() -> None:
    rows = [("Yes\nbecause", "yes")]
    assert numbers("label_accuracy", rows)["label_accuracy"] == 0
    assert numbers("label_accuracy", rows, first_line=True, ignore_case=True)["label_accuracy"] == 1


@pytest.mark.parametrize(("name", "package"), [("bleu", "sacrebleu"), ("rouge", "jieba")])
def test_a_missing_library_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Exception, match=rf"needs the package '{package}'.*\n.*luthier\[evaluation\]"):
        numbers(name, ENGLISH)
