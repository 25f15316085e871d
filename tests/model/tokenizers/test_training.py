"""Tokenizers made from texts: equal to the library's own, loaded by AutoTokenizer, and what each algorithm does."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from luthier.foundation.errors import DataError, UserError
from luthier.model.tokenizers.training import ALGORITHMS, TrainedTokenizer, TrainingSpec, save, train

CORPUS = ["low low low low low", "lower lower", "newest newest newest newest newest newest", "widest widest widest"]
CHINESE = ["我们在河边散步。", "河边有很多人。", "a river 🙂🙂 runs"]


def trained(
    algorithm: str, vocab_size: int = 400, texts: list[str] | None = None, **options: object
) -> TrainedTokenizer:
    return train(TrainingSpec(algorithm, vocab_size, **options), lambda: texts or CORPUS)  # type: ignore[arg-type]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_auto_tokenizer_loads_what_was_saved(algorithm: str, tmp_path: Path) -> None:
    made = trained(algorithm)
    save(made, tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("lowest new wide", "Ünknown 河 text"):
        assert loaded(text, "low")["input_ids"] == made.tokenizer(text, "low")["input_ids"]
        assert loaded.tokenize(text) == made.tokenizer.tokenize(text)
    assert loaded.get_vocab() == made.tokenizer.get_vocab()
    assert loaded.special_tokens_map == made.tokenizer.special_tokens_map
    assert loaded.pad_token_id == made.tokenizer.pad_token_id is not None


def test_byte_bpe_equals_the_library() -> None:
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator(CORPUS + CHINESE, trainer)
    ours = trained("byte-bpe", 300, CORPUS + CHINESE).tokenizer.backend_tokenizer
    assert ours.get_vocab() == plain.get_vocab()
    for text in (*CORPUS, *CHINESE, "unseen ж"):
        assert ours.encode(text).ids == plain.encode(text).ids


def test_word_equals_the_library() -> None:
    plain = Tokenizer(models.WordLevel(unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    plain.train_from_iterator(CORPUS, trainers.WordLevelTrainer(vocab_size=7, special_tokens=special))
    assert trained("word", 7).tokenizer.get_vocab() == plain.get_vocab()


def test_unigram_has_the_librarys_pieces() -> None:
    plain = Tokenizer(models.Unigram())
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.UnigramTrainer(vocab_size=30, special_tokens=special, unk_token="<unk>", show_progress=False)
    plain.train_from_iterator(CORPUS, trainer)
    ours = trained("unigram", 30).tokenizer
    assert set(ours.get_vocab()) == set(plain.get_vocab())
    for text in CORPUS:
        assert ours.tokenize(text) == plain.encode(text).tokens


def test_worked_bpe() -> None:
    """`es` (6 + 3 times) is the first merge, then `est`: 9 each; `lo`, `low` 7 times."""
    made = trained("bpe", 19, normalizer=(), pre_tokenizer=("whitespace",), decoder="fuse").tokenizer
    vocabulary = made.get_vocab()
    merged = sorted((token for token in vocabulary if len(token) > 1 and token[0] != "<"), key=vocabulary.get)
    assert merged[:4] == ["es", "est", "lo", "low"]
    assert made.tokenize("lowest")[:2] == ["low", "est"]
    assert made.tokenize("lo河") == ["lo", "<unk>"]


def test_worked_wordpiece() -> None:
    made = trained("wordpiece", 400).tokenizer
    assert made.tokenize("Lowest NEWEST") == ["low", "##est", "newest"]
    assert made.tokenize("low 河 lowq") == ["low", "[UNK]", "[UNK]"], (
        "a word with one unknown character is unknown whole"
    )
    assert made.decode(made("lowest", add_special_tokens=False)["input_ids"]) == "lowest"


def test_unigram_marks_unknown_characters() -> None:
    made = trained("unigram", 30).tokenizer
    ids = made("low 河")["input_ids"]
    assert ids.count(made.unk_token_id) == 1
    assert made.unk_token_id == 0
    assert made.decode(made("lower newest")["input_ids"]) == "lower newest"


def test_word_and_char() -> None:
    word = trained("word", 6).tokenizer  # four special tokens, and the two most frequent words
    assert word.tokenize("newest low widest") == ["newest", "low", "<unk>"]
    char = trained("char").tokenizer
    assert char.tokenize("low e\nz") == ["l", "o", "w", " ", "e", "<unk>", "<unk>"]
    assert char.decode(char("low newest")["input_ids"]) == "low newest"


def test_pairs_of_bert() -> None:
    made = trained("wordpiece").tokenizer
    both = made("low", "newest")
    assert made.convert_ids_to_tokens(both["input_ids"]) == ["[CLS]", "low", "[SEP]", "newest", "[SEP]"]
    assert both["token_type_ids"] == [0, 0, 0, 1, 1]


def test_pairs_of_a_template() -> None:
    once = trained("bpe", post_processor="template", single="<s> $A </s>").tokenizer
    both = once("low", "low")
    assert once.convert_ids_to_tokens(both["input_ids"]) == ["<s>", "▁low", "</s>", "<s>", "▁low", "</s>"]
    assert both["token_type_ids"] == [0, 0, 0, 1, 1, 1]
    own = trained("bpe", post_processor="template", single="<s> $A", pair="<s> $A </s> $B").tokenizer
    assert own.convert_ids_to_tokens(own("low", "low")["input_ids"]) == ["<s>", "▁low", "</s>", "▁low"]
    assert "token_type_ids" not in own("low", "low"), "a model without type ids would refuse them"


def test_parts_act() -> None:
    accents = trained("byte-bpe", normalizer=("strip-accents", "lowercase")).tokenizer
    assert accents.decode(accents("LÓW")["input_ids"]) == "low"
    digits = trained("byte-bpe", texts=["123 123 123 123"], pre_tokenizer=("digits", "byte-level")).tokenizer
    assert digits.tokenize("123") == ["1", "2", "3"]
    rare = trained("bpe", min_frequency=4).tokenizer.get_vocab()
    assert "▁low" in rare
    assert "wid" not in rare
    named = trained("bpe", special_tokens=("eos=<end>", "<tool>")).tokenizer
    assert named.eos_token == "<end>"
    assert "</s>" not in named.get_vocab()
    assert named.tokenize("low<tool>")[-1] == "<tool>"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text("河边有人🙂👩‍👩‍👧é \n\t<|>ab"))
def test_byte_level_gives_every_text_back(text: str) -> None:
    made = BYTES.tokenizer
    ids = made.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert made.decode(ids) == text


BYTES = trained("byte-bpe", 320, CORPUS + CHINESE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"algorithm": "bppe"}, "Did you mean 'bpe'"),
        ({"normalizer": ("nfx",)}, "Did you mean"),
        ({"pre_tokenizer": ("byte-level", "digits")}, "must be the last"),
        ({"algorithm": "byte-bpe", "pre_tokenizer": ("digits",)}, "digits,byte-level"),
        ({"algorithm": "byte-bpe", "vocab_size": 258}, "256 bytes"),
        ({"vocab_size": 10}, "is too small"),
        ({"vocab_size": 10, "algorithm": "unigram"}, "more different characters"),
        ({"vocab_size": 10, "algorithm": "wordpiece"}, "is too small"),
        ({"decoder": "bytes-level"}, "Did you mean 'byte-level'"),
        ({"post_processor": "template"}, "has no template"),
        ({"post_processor": "template", "single": "<q> $A"}, "names <q>, which is no special token here"),
        ({"post_processor": "template", "single": "<s> A $A"}, "names A"),
        # what a shell leaves of "<s> $A </s>", "$A" and "<s> $A </s> $B:1 </s>:1"
        ({"post_processor": "template", "single": "<s>  </s>"}, "goes. Between double quotes"),
        ({"post_processor": "template", "single": ""}, "'' has no $A"),
        ({"post_processor": "template", "single": "$A", "pair": "<s>  </s> :1 </s>:1"}, "has no $A and $B"),
        ({"post_processor": "template", "single": "$A", "pair": "$A </s>"}, "has no $B.\nThat is where the text goes."),
        ({"single": ""}, "--post-processor template"),
        ({"single": "$A"}, "--post-processor template"),
        ({"algorithm": "unigram", "min_frequency": 2}, "no effect"),
    ],
)
def test_refusals(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as error:
        trained(**{"algorithm": "bpe", "vocab_size": 300, **options})  # type: ignore[arg-type]
    assert said in str(error.value)


def test_the_advice_for_a_template_is_for_a_shell() -> None:
    with pytest.raises(UserError, match="names </q>, <q>, which are no special tokens here") as error:
        trained("bpe", post_processor="template", single="<q> $A </q>")
    said, _, command = error.value.remedy.partition(": ")
    assert said == "Add them"
    assert shlex.split(command, comments=True) == ["--special-tokens", "</q>,<q>"]
    assert "'" in command, "unquoted, a shell would read </q> from a file"
    with pytest.raises(UserError) as error:
        trained("bpe", post_processor="template", single="<s> $A", pair="$ $A")
    assert "double quotes" not in str(error.value), "nothing was expanded here"


@pytest.mark.parametrize("texts", [[" ", "\n"], []])
def test_no_text(texts: list[str]) -> None:
    with pytest.raises(DataError, match="no text"):
        train(TrainingSpec("bpe", 300), lambda: texts)


SCRIPT = """
import hashlib, random, sys
from luthier.model.tokenizers.training import *
chance = random.Random(0)
words = ["".join(chance.choices("abcdefghijklmnopqr河边人éüô", k=chance.randint(1, 9))) for _ in range(400)]
texts = [" ".join(chance.choices(words, k=12)) for _ in range(200)]
for name in ALGORITHMS:
    made = train(TrainingSpec(name, 330), lambda: texts)
    print(name, hashlib.sha256(made.tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
"""


def test_every_process_makes_the_same() -> None:
    runs = {subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(runs) == 1


MEMORY = """
import resource, sys
from luthier.commands.tokenizer import located, watched
from luthier.model.tokenizers.training import *
import transformers
spec = TrainingSpec("byte-bpe", 400)
train(spec, lambda: watched([located(sys.argv[1])], "text"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = train(spec, lambda: watched([located(sys.argv[2])], "text"))
print(made.characters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def lines(count: int) -> Iterator[str]:
        for number in range(count):
            yield f"the quick brown fox {number % 997} jumps over the lazy dog {number % 89}\n" * 2

    (tmp_path / "small.txt").write_text("".join(lines(2_000)))
    (tmp_path / "large.txt").write_text("".join(lines(200_000)))
    assert (tmp_path / "large.txt").stat().st_size > 18_000_000
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "small.txt"), str(tmp_path / "large.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    characters, kibibytes = map(int, done.stdout.split())
    assert characters > 18_000_000
    assert kibibytes < 12_000
