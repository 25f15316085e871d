"""A new tokenizer from texts, through the `tokenizers` library, saved so that `transformers.AutoTokenizer` loads it.

The same texts and settings give the same files: the library's trainers are deterministic but for `unigram`, whose
threads add numbers in any order, and `wordpiece`, whose alphabet comes out of a hash table; both are put in order here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import DataError, UserError
from luthier.foundation.files import whole_folder
from luthier.foundation.registry import nearest
from luthier.model.tokenizers.components import (
    NONE,
    make_decoder,
    make_normalizer,
    make_post_processor,
    make_pre_tokenizer,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

ROLES = ("unk", "bos", "eos", "pad", "cls", "sep", "mask")
SENTENCE_ROLES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
BERT_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
BYTES = 256
SCORE_DIGITS = 6  # runs differ in the fifteenth
APPENDED_STEP = 1.03e-4  # 0.0001, rounded
CONTINUING = "##"  # wordpiece: what begins a piece inside a word


@dataclass(frozen=True)
class Defaults:
    """What an algorithm takes where nothing is said. `roles` in the order of their ids."""

    normalizer: tuple[str, ...]
    pre_tokenizer: tuple[str, ...]
    post_processor: str
    decoder: str
    roles: Mapping[str, str]


ALGORITHMS: Mapping[str, Defaults] = {
    "bpe": Defaults(("nfc",), ("metaspace",), NONE, "metaspace", SENTENCE_ROLES),
    "byte-bpe": Defaults((), ("byte-level",), NONE, "byte-level", {"eos": "<|endoftext|>", "pad": "<|pad|>"}),
    "wordpiece": Defaults(("bert",), ("bert",), "bert", "wordpiece", BERT_ROLES),
    "unigram": Defaults(("nfkc",), ("metaspace",), NONE, "metaspace", SENTENCE_ROLES),
    "word": Defaults(("nfc",), ("whitespace",), NONE, NONE, SENTENCE_ROLES),
    "char": Defaults(("nfc",), ("characters",), NONE, "fuse", SENTENCE_ROLES),
}


@dataclass(frozen=True)
class TrainingSpec:
    """How a tokenizer is to be made.

    Args:
        algorithm: a name in ALGORITHMS.
        vocab_size: tokens at most, special tokens included.
        normalizer: names in components.NORMALIZERS, in order; None: the algorithm's default.
        pre_tokenizer: names in components.PRE_TOKENIZERS; None: the default.
        post_processor: none, bert or template; None: the default.
        single: template for one text.
        pair: template for two.
        decoder: a name in components.DECODERS, or none; None: the one that undoes the pre-tokenizer.
        special_tokens: further ones, or `ROLE=TOKEN` (roles: unk, bos, eos, pad, cls, sep, mask) for another name of a role's.
        min_frequency: how often a pair or a word must occur.
    """

    algorithm: str
    vocab_size: int
    normalizer: tuple[str, ...] | None = None
    pre_tokenizer: tuple[str, ...] | None = None
    post_processor: str | None = None
    single: str | None = None
    pair: str | None = None
    decoder: str | None = None
    special_tokens: tuple[str, ...] = ()
    min_frequency: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            close = nearest(self.algorithm, ALGORITHMS)
            hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise UserError(
                f"there is no tokenizer algorithm named {self.algorithm!r}.", f"{hint}Known: {', '.join(ALGORITHMS)}."
            )
        if (self.single is not None or self.pair is not None) and self.post != "template":
            raise UserError(
                "--single and --pair say what --post-processor template writes.", "Add it, or leave them out."
            )
        if self.algorithm == "byte-bpe" and "byte-level" not in self.steps:
            raise UserError(
                f"byte-bpe merges bytes, but --pre-tokenizer {','.join(self.steps) or NONE} makes none.",
                f"Write --pre-tokenizer {','.join([*self.steps, 'byte-level'])}, or take --algorithm bpe.",
            )
        if self.min_frequency and self.algorithm == "unigram":
            raise UserError("--min-frequency has no effect with unigram, which prunes by likelihood.", "Leave it out.")

    @property
    def defaults(self) -> Defaults:
        """The algorithm's."""
        return ALGORITHMS[self.algorithm]

    @property
    def steps(self) -> tuple[str, ...]:
        """The pre-tokenizers' names."""
        return self.defaults.pre_tokenizer if self.pre_tokenizer is None else self.pre_tokenizer

    @property
    def post(self) -> str:
        """The post-processor's name."""
        return self.defaults.post_processor if self.post_processor is None else self.post_processor

    @property
    def roles(self) -> dict[str, str]:
        """The special tokens by role, in the order of their ids."""
        given = dict(entry.split("=", 1) for entry in self.special_tokens if _is_role(entry))
        needed = {role: BERT_ROLES[role] for role in ("cls", "sep")} if self.post == "bert" else {}
        return {**self.defaults.roles, **{r: t for r, t in needed.items() if r not in self.defaults.roles}, **given}

    @property
    def all_special_tokens(self) -> list[str]:
        """Special tokens in the order of their ids."""
        return list(dict.fromkeys([*self.roles.values(), *(t for t in self.special_tokens if not _is_role(t))]))

    @property
    def decoder_name(self) -> str:
        """The decoder asked for, else the one that undoes the pre-tokenizer, else the algorithm's."""
        if self.decoder is not None:
            return self.decoder
        undone = [name for name in ("byte-level", "metaspace") if name in self.steps]
        own = self.defaults.decoder
        if self.algorithm == "wordpiece" or not undone:
            return NONE if own in ("byte-level", "metaspace") and not undone else own
        return undone[0]


@dataclass
class Counted:
    """Texts that went by: how many, and how many characters they had."""

    texts: int = 0
    characters: int = 0

    def over(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts that hold anything but white space, counted."""
        for text in texts:
            if text.strip():
                self.texts += 1
                self.characters += len(text)
                yield text


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer made from texts.

    Args:
        tokenizer: as transformers has it.
        texts: how many it was made from.
        characters: how many they had.
        notes: what a person should know.
    """

    tokenizer: PreTrainedTokenizerFast
    texts: int
    characters: int
    notes: tuple[str, ...] = field(default=())


def train(spec: TrainingSpec, texts: Callable[[], Iterable[str]], chat_template: str | None = None) -> TrainedTokenizer:
    """Make a tokenizer.

    Args:
        texts: gives the texts from the beginning, one after another; called once, for wordpiece twice.
        chat_template: jinja source to save with it.

    Raises:
        UserError: a setting that can't be met, such as a vocabulary smaller than the alphabet.
        DataError: no text.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer, counted = _from_texts(spec, texts)
    if not counted.texts:
        raise DataError("the sources hold no text: every row is empty.", "Name files with text, or another --column.")
    size = tokenizer.get_vocab_size()
    if size > spec.vocab_size:
        raise UserError(
            f"--vocab-size {spec.vocab_size} is too small: the texts' characters and {len(spec.all_special_tokens)} special "
            f"tokens alone make {size}.",
            f"Ask for more than {size}, or take byte-bpe, whose alphabet is the {BYTES} bytes.",
        )
    if spec.algorithm == "unigram":
        _put_in_order(tokenizer)
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in spec.all_special_tokens}
    processor = make_post_processor(spec.post, spec.single, spec.pair, ids, spec.roles)
    if processor is not None:
        tokenizer.post_processor = processor
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=_inputs(tokenizer),
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in spec.roles.items()},
    )
    if chat_template is not None:
        fast.chat_template = chat_template
    notes = []
    if size < spec.vocab_size:
        notes.append(f"the texts gave {size} tokens; {spec.vocab_size} were asked for.")
    return TrainedTokenizer(fast, counted.texts, counted.characters, tuple(notes))


def save(trained: TrainedTokenizer, folder: Path) -> None:
    """Write a tokenizer's folder, whole or not at all."""
    with whole_folder(folder) as building:
        trained.tokenizer.save_pretrained(building)


def _from_texts(spec: TrainingSpec, texts: Callable[[], Iterable[str]]) -> tuple[Tokenizer, Counted]:
    """The tokenizer before its post-processor is set.

    wordpiece: the library numbers the `##c` of its alphabet in the order of a hash table, and breaks ties between
    merges by these numbers. A first pass, with room for the alphabet alone, finds them; the second is given them in
    order.
    """
    from tokenizers import AddedToken, models

    tokenizer, trainer = prepared(spec)
    counted = Counted()
    if spec.algorithm != "wordpiece":
        try:
            tokenizer.train_from_iterator(counted.over(texts()), trainer)
        except Exception as error:  # unigram's own check; the library's class is plain Exception
            if "not large enough to contain all chars" not in str(error):
                raise
            raise UserError(
                f"--vocab-size {spec.vocab_size} is too small: the texts have more different characters than that.",
                f"Ask for more, or take byte-bpe, whose alphabet is the {BYTES} bytes.",
            ) from error
        return tokenizer, counted
    special = spec.all_special_tokens
    alphabet, trainer = prepared(replace(spec, vocab_size=least_vocabulary(spec) + 1))
    alphabet.train_from_iterator(Counted().over(texts()), trainer)
    inside = sorted(piece for piece in alphabet.get_vocab() if piece.startswith(CONTINUING) and len(piece) == 3)
    trained, trainer = prepared(spec)
    trainer.special_tokens = [AddedToken(token, special=True) for token in [*special, *inside]]
    trained.train_from_iterator(counted.over(texts()), trainer)
    tokenizer.model = models.WordPiece(trained.get_vocab(with_added_tokens=False), unk_token=spec.roles["unk"])
    tokenizer.add_special_tokens(special)
    return tokenizer, counted


def _is_role(entry: str) -> bool:
    role, equals, token = entry.partition("=")
    return bool(equals and token) and role in ROLES


def least_vocabulary(spec: TrainingSpec) -> int:
    """How many tokens there are before any text is read: special ones, and the bytes."""
    with_bytes = "byte-level" in spec.steps and spec.algorithm not in ("word", "char")
    return len(spec.all_special_tokens) + (BYTES if with_bytes else 0)


def prepared(spec: TrainingSpec) -> tuple[Tokenizer, Any]:
    """An untrained tokenizer with its trainer; whatever needs no text is refused here.

    Raises:
        UserError: an unknown name, a template that can't be used, or a vocabulary smaller than what it must hold.
    """
    special, least = spec.all_special_tokens, least_vocabulary(spec)
    if spec.vocab_size <= least:
        raise UserError(
            f"--vocab-size {spec.vocab_size} is too small: {len(special)} special tokens"
            + (f" and the {BYTES} bytes" if least > len(special) else "")
            + f" alone make {least}.",
            f"Ask for more than {least}.",
        )
    normalizer = make_normalizer(spec.defaults.normalizer if spec.normalizer is None else spec.normalizer)
    pre_tokenizer, decoder = make_pre_tokenizer(spec.steps), make_decoder(spec.decoder_name)
    # to refuse what can't be used before hours of reading
    make_post_processor(spec.post, spec.single, spec.pair, dict.fromkeys(special, 0), spec.roles)
    tokenizer, trainer = _model_and_trainer(spec)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer, trainer


def _model_and_trainer(spec: TrainingSpec) -> tuple[Tokenizer, Any]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    unk = spec.roles.get("unk")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if "byte-level" in spec.steps else []
    shared: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "special_tokens": spec.all_special_tokens,
        "show_progress": False,
    }
    if spec.algorithm == "unigram":
        trainer = trainers.UnigramTrainer(**shared, unk_token=unk, initial_alphabet=alphabet)
        return Tokenizer(models.Unigram()), trainer
    shared["min_frequency"] = spec.min_frequency
    if spec.algorithm in ("word", "char"):
        return Tokenizer(models.WordLevel(unk_token=str(unk))), trainers.WordLevelTrainer(**shared)
    shared["initial_alphabet"] = alphabet
    if spec.algorithm == "wordpiece":
        return Tokenizer(models.WordPiece(unk_token=str(unk))), trainers.WordPieceTrainer(**shared)
    return Tokenizer(models.BPE(unk_token=unk)), trainers.BpeTrainer(**shared)


def _put_in_order(tokenizer: Tokenizer) -> None:
    """Make unigram's pieces the same on every run: scores rounded, and equals by name; special tokens stay in front.

    Characters that got no piece are appended by the library in the order of a hash table, each at most
    0.0001 below the one before it; here they get those scores in the order of their code points.
    """
    from tokenizers import models

    model = json.loads(tokenizer.to_str())["model"]
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    front = [(piece, score) for piece, score in model["vocab"] if piece in special]
    rest = [(piece, round(score, SCORE_DIGITS)) for piece, score in model["vocab"] if piece not in special]
    rest.sort(key=lambda entry: (-entry[1], entry[0]))
    start = len(rest) - 1
    while start > 0 and len(rest[start][0]) == 1 and rest[start - 1][1] - rest[start][1] < APPENDED_STEP:
        start -= 1
    start += start < len(rest) and len(rest[start][0]) > 1
    tail = sorted(piece for piece, _ in rest[start:])
    rest[start:] = [(piece, score) for piece, (_, score) in zip(tail, rest[start:], strict=True)]
    tokenizer.model = models.Unigram(front + rest, model["unk_id"], model.get("byte_fallback", False))


def _inputs(tokenizer: Tokenizer) -> list[str]:
    """What a model is given: type ids only where the post-processor sets them for a second text."""
    types = tokenizer.encode("a", "b").type_ids if tokenizer.post_processor is not None else []
    return ["input_ids", *(["token_type_ids"] if 1 in types else []), "attention_mask"]
