"""Ids from the memo of words are the library's own, text by text; other tokenizers are left to the library."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from luthier.data import word_memo
from luthier.data.word_memo import PATTERNS, WordMemo

SPECIAL = ["<|im_start|>", "<|im_end|>", "<tool_call>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog, isn't it? It's 12345 o'clock and we're done!\n\nWell... ok:\n  - one",
    "x = [a for b in c if d]  # comment\n\treturn x\r\n 你好，世界。 Ça va été naïve “quoted” — dash… 😀",
]
DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
UNSPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split_by(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


PRE_TOKENIZERS = {
    "gpt2": BYTES,
    "smollm2": pre_tokenizers.Sequence([DIGITS, BYTES]),
    "llama3": pre_tokenizers.Sequence([split_by(PATTERNS[0]), UNSPLIT]),
    "qwen2": pre_tokenizers.Sequence([split_by(PATTERNS[1]), UNSPLIT]),
}


def trained(pre_tokenizer: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def memo_of(tokenizer: Tokenizer) -> tuple[WordMemo | None, Any]:
    def encode(texts: Any) -> list[list[int]]:
        return [found.ids for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return WordMemo.of(tokenizer, encode), encode


# what pre-tokenizers tell apart: letters of several scripts, marks, digits, punctuation, every kind of white space
ATOMS = [
    *SPECIAL,
    *"aZ é中́ßǅ٣7²'\"!?.,-_#😀‍؟",
    *" \t\n\r\u00a0\u3000\u0085\u200b\x1c\x00",
    " the",
    " fox",
    "'s",
    "'RE",
    " 's",
    "  x",
    "\n\n",
    "<|im_start",
    "|>",
    "ſ",
]
TEXTS = st.lists(st.lists(st.sampled_from(ATOMS), max_size=14).map("".join), max_size=4)


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["plain", "nfc"])
def test_ids_are_those_of_the_library(kind: str, normalizer: Any) -> None:
    memo, encode = memo_of(trained(PRE_TOKENIZERS[kind], normalizer))
    assert memo is not None

    @settings(max_examples=80, deadline=None)
    @given(TEXTS)
    def same(texts: list[str]) -> None:
        assert memo(texts) == encode(texts)
        assert memo(texts) == encode(texts)  # the second time from the memo

    same()


def test_words_are_tokenized_once_and_long_or_foreign_parts_are_not_kept() -> None:
    tokenizer = trained(BYTES)
    asked: list[str] = []

    def encode(texts: Any) -> list[list[int]]:
        asked.extend(texts)
        return [found.ids for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    memo = WordMemo.of(tokenizer, encode)
    assert memo is not None
    text = "<|im_start|>the fox, the fox 你好, and " + "x" * 30
    memo([text, text])
    assert sorted(asked) == sorted(["<|im_start|>", "the", " fox,", " the", " fox 你好,", " and", " " + "x" * 30])
    asked.clear()
    memo([text])
    assert sorted(asked) == sorted([" fox 你好,", " " + "x" * 30])


def test_the_memo_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_memo, "MOST_PARTS", 3)
    memo, encode = memo_of(trained(BYTES))
    assert memo is not None
    for texts in (["a b"], ["c d e f g"], ["a b c"]):
        assert memo(texts) == encode(texts)
        assert len(memo.known) <= 3


def changed(**parts: Any) -> Tokenizer:
    made = json.loads(trained(BYTES).to_str())
    for name, value in parts.items():
        made[name] = {**made[name], **value} if isinstance(value, dict) and made[name] else value
    return Tokenizer.from_str(json.dumps(made))


def with_token(token: AddedToken) -> Tokenizer:
    tokenizer = trained(BYTES)
    tokenizer.add_tokens([token])
    return tokenizer


def taking_special_tokens_for_text() -> Tokenizer:
    tokenizer = trained(BYTES)
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda: trained(UNSPLIT),
        lambda: trained(pre_tokenizers.Sequence([split_by(r"\s+"), UNSPLIT])),
        lambda: trained(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), BYTES])),
        lambda: trained(BYTES, normalizers.NFKC()),
        lambda: trained(BYTES, normalizers.Replace("n t", "nt")),
        lambda: changed(pre_tokenizer=None),
        lambda: changed(model={"dropout": 0.1}),
        lambda: with_token(AddedToken("<x>", normalized=False, lstrip=True)),
        lambda: with_token(AddedToken("<x>", normalized=True)),
        lambda: with_token(AddedToken("fox", normalized=False, single_word=True)),
        lambda: with_token(AddedToken("a b", normalized=False)),
        lambda: taking_special_tokens_for_text(),
    ],
)
def test_other_tokenizers_are_left_to_the_library(tokenizer: Any) -> None:
    assert memo_of(tokenizer())[0] is None


def test_an_added_token_within_a_word_is_found() -> None:
    memo, encode = memo_of(with_token(AddedToken("ox", normalized=False)))
    assert memo is not None
    assert memo(["the fox oxox"]) == encode(["the fox oxox"])
    assert memo.known["ox"] == encode(["ox"])[0]
