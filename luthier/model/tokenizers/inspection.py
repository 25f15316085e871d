"""What a tokenizer does with a text, stage by stage, and how many tokens it needs for a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import ModelError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_TEXTS = 500
# a word is what stands between white space; in scripts without spaces, each character
UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


@dataclass(frozen=True)
class PreToken:
    """A piece that the model then splits on its own. `start` and `end` count the normalized text's characters."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Window:
    """What a model is given; a text longer than --max-length has several.

    Args:
        tokens: as the vocabulary writes them.
        pieces: the text that each stands for ("" for a special token).
        ids: their numbers.
        offsets: where each piece stands in its text.
        type_ids: 0, and 1 for a second text where the post-processor says so.
        special_tokens_mask: 1 for tokens that stand in no text.
        attention_mask: 1 for tokens that are no padding.
    """

    tokens: tuple[str, ...]
    pieces: tuple[str, ...]
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    type_ids: tuple[int, ...]
    special_tokens_mask: tuple[int, ...]
    attention_mask: tuple[int, ...]


@dataclass(frozen=True)
class Stages:
    """A text's way through one tokenizer.

    Args:
        tokenizer: its name.
        normalized: the text and its pair after the normalizer.
        pre_tokens: the pieces of each.
        window: what the model is given.
        overflowing: the windows after it, where --max-length cut the text.
        decoded: the window's ids as text, special tokens left out.
        unknown: how many of the window's tokens are the unknown token.
    """

    tokenizer: str
    normalized: tuple[str, ...]
    pre_tokens: tuple[tuple[PreToken, ...], ...]
    window: Window
    overflowing: tuple[Window, ...]
    decoded: str
    unknown: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def stages_of(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    pair: str | None = None,
    *,
    max_length: int | None = None,
    stride: int = 0,
) -> Stages:
    """Follow a text, or two, through a tokenizer.

    Args:
        max_length: longest window in tokens; None: no limit.
        stride: tokens that a window repeats of the one before.

    Raises:
        ModelError: the tokenizer is not made by the `tokenizers` library, so its stages can't be seen.
        UserError: the stride leaves no room.
    """
    backend = backend_of(name, tokenizer)
    if max_length is not None:
        around = tokenizer.num_special_tokens_to_add(pair is not None)
        if max_length - around <= stride:
            raise UserError(
                f"--max-length {max_length} leaves no room in {name}: {around} special tokens and a stride of {stride} fill it.",
                f"Ask for more than {around + stride}.",
            )
    texts = [text] if pair is None else [text, pair]
    # what an earlier call set stays in the tokenizer, and would cut this text
    backend.no_padding()
    backend.no_truncation()
    if max_length is not None:
        backend.enable_truncation(max_length, stride=stride)
    try:
        encoding = backend.encode(text, pair)
    except Exception as error:  # the library's own class is plain Exception
        raise UserError(f"{name} can't cut this text into windows: {error}.", "Choose another --max-length.") from error
    finally:
        backend.no_truncation()
    normalized = [backend.normalizer.normalize_str(part) if backend.normalizer else part for part in texts]
    windows = [_window(part, texts) for part in (encoding, *encoding.overflowing)]
    return Stages(
        name,
        tuple(normalized),
        tuple(_pre_tokens(backend, part) for part in normalized),
        windows[0],
        tuple(windows[1:]),
        tokenizer.decode(list(windows[0].ids), skip_special_tokens=True),
        windows[0].ids.count(-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id),
    )


def backend_of(name: str, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The `tokenizers.Tokenizer` inside. Raises ModelError if there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{name} is a {type(tokenizer).__name__}, whose stages can't be seen.",
            "luthier shows tokenizers that have a tokenizer.json.",
        )
    return backend


def _pre_tokens(backend: Any, text: str) -> tuple[PreToken, ...]:
    if backend.pre_tokenizer is None:
        return (PreToken(text, 0, len(text)),) if text else ()
    return tuple(PreToken(piece, *place) for piece, place in backend.pre_tokenizer.pre_tokenize_str(text))


def _window(encoding: Any, texts: Sequence[str]) -> Window:
    pieces = [
        "" if sequence is None else texts[sequence][start:end]
        for sequence, (start, end) in zip(encoding.sequence_ids, encoding.offsets, strict=True)
    ]
    return Window(
        tuple(encoding.tokens),
        tuple(pieces),
        tuple(encoding.ids),
        tuple(tuple(place) for place in encoding.offsets),
        tuple(encoding.type_ids),
        tuple(encoding.special_tokens_mask),
        tuple(encoding.attention_mask),
    )


@dataclass(frozen=True)
class Fertility:
    """How many tokens a tokenizer needs for texts, special tokens not counted.

    Args:
        tokenizer: its name.
        vocabulary: how many tokens it knows.
        texts, characters, bytes, words, tokens: what was counted; bytes in UTF-8; a word is what stands between white
            space, or one character of Chinese or Japanese.
        unknown: tokens that are the unknown token.
    """

    tokenizer: str
    vocabulary: int
    texts: int
    characters: int
    bytes: int
    words: int
    tokens: int
    unknown: int

    def as_dict(self) -> dict[str, Any]:
        """The counts, and characters_per_token, bytes_per_token, tokens_per_word, unknown_share."""
        return {
            **asdict(self),
            "characters_per_token": self.characters / self.tokens if self.tokens else None,
            "bytes_per_token": self.bytes / self.tokens if self.tokens else None,
            "tokens_per_word": self.tokens / self.words if self.words else None,
            "unknown_share": self.unknown / self.tokens if self.tokens else None,
        }


def fertility_of(tokenizers: dict[str, PreTrainedTokenizerBase], texts: Iterable[str]) -> list[Fertility]:
    """Count the tokens of texts under several tokenizers, reading the texts once, a few at a time."""
    backends = {name: backend_of(name, tokenizer) for name, tokenizer in tokenizers.items()}
    unknown_ids = {name: tokenizer.unk_token_id for name, tokenizer in tokenizers.items()}
    seen = {"texts": 0, "characters": 0, "bytes": 0, "words": 0}
    tokens, unknown = dict.fromkeys(backends, 0), dict.fromkeys(backends, 0)
    rest = iter(texts)
    while batch := list(islice(rest, BATCH_TEXTS)):
        seen["texts"] += len(batch)
        seen["characters"] += sum(map(len, batch))
        seen["bytes"] += sum(len(text.encode()) for text in batch)
        seen["words"] += sum(len(WORD.findall(text)) for text in batch)
        for name, backend in backends.items():
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
                tokens[name] += len(encoding.ids)
                unknown[name] += encoding.ids.count(unknown_ids[name])
    return [
        Fertility(name, len(tokenizer), **seen, tokens=tokens[name], unknown=unknown[name])
        for name, tokenizer in tokenizers.items()
    ]
