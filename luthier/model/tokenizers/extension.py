"""New words for a model: tokens in its tokenizer, rows in its embedding and head."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.foundation.errors import ModelError, UserError
from luthier.foundation.files import whole_folder
from luthier.foundation.registry import nearest
from luthier.foundation.seeding import derive_seed
from luthier.model import loading
from luthier.model.embeddings import both_embeddings
from luthier.model.quiet import quiet_bars

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INITS = ("mean", "noise", "description")
SHOWN = 8
# scripts that write no spaces between words: there a word may stand beside any letter
UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Extension:
    """What was added.

    Args:
        words: the new tokens, in the order of `ids`.
        ids: their numbers.
        rows_before: rows of the embedding before.
        rows: and after.
        tied: whether embedding and head are one.
    """

    words: tuple[str, ...]
    ids: tuple[int, ...]
    rows_before: int
    rows: int
    tied: bool


def check_init(init: str, words: Mapping[str, str | None]) -> None:
    """Raise UserError for an unknown --init, no words, or a word without the description it needs."""
    if init not in INITS:
        close = nearest(init, INITS)
        raise UserError(
            f"there is no --init named {init!r}.",
            (f"Did you mean {close[0]!r}? " if close else "") + f"Known: {', '.join(INITS)}.",
        )
    if not words:
        raise UserError("there are no words to add.", "Name them with --add, or in a file with --add-file.")
    bare = [word for word, description in words.items() if not description]
    if init == "description" and bare:
        raise UserError(
            f"--init description: {_listed(bare)} {'has' if len(bare) == 1 else 'have'} no description.",
            "Write lines of word, tabulator, description into the file of --add-file.",
        )
    described = [word for word, description in words.items() if description]
    if init != "description" and described:
        raise UserError(
            f"{_listed(described)} {'has a description' if len(described) == 1 else 'have descriptions'}, which --init "
            f"{init} does not read.",
            "Add --init description, or take the descriptions out.",
        )


def known_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[str]:
    """Those that the tokenizer writes as one token already (other than the unknown token)."""
    vocabulary = tokenizer.get_vocab()
    known = []
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if word in vocabulary or (len(ids) == 1 and ids[0] != tokenizer.unk_token_id):
            known.append(word)
    return known


def add_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """Add tokens, taken as they are written. A word in a script with spaces is found only between other letters' ends.

    Raises:
        UserError: some exist already.
    """
    from tokenizers import AddedToken

    if known := known_words(tokenizer, words):
        raise UserError(
            f"the tokenizer has {'a token' if len(known) == 1 else 'tokens'} for {_listed(known)} already.",
            "Leave " + ("it" if len(known) == 1 else "them") + " out.",
        )
    tokens = [
        AddedToken(word, single_word=UNSPACED.search(word) is None, normalized=False, special=False) for word in words
    ]
    tokenizer.add_tokens(tokens)
    return [int(tokenizer.convert_tokens_to_ids(word)) for word in words]


def extend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: Mapping[str, str | None],
    init: str = "mean",
    seed: int = 0,
) -> Extension:
    """Give a model and its tokenizer new words, in place. Rows of old tokens keep their bits.

    Args:
        words: each with its description, or None.
        init: mean: the mean of the old tokens' rows, in embedding and head each; noise: the mean plus a draw with
            standard deviation 1 / sqrt(width) (as LLaMA-Factory has it), a function of the seed and the
            word's place; description: the mean of the rows of the description's tokens.
        seed: of the noise.

    Raises:
        UserError: see `check_init` and `add_words`.
        ModelError: the tokenizer has more tokens than the model has rows.
    """
    import torch

    check_init(init, words)
    old, before = len(tokenizer), model.get_input_embeddings().weight.shape[0]
    if old > before:
        raise ModelError(
            f"the tokenizer has {old} tokens, the model only {before} rows for them.", "They don't belong together."
        )
    described = [tokenizer(text or "", add_special_tokens=False)["input_ids"] for text in words.values()]
    ids = add_words(tokenizer, list(words))
    if max(ids) >= before:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for name, weight in enumerate(both_embeddings(model)):
            known = weight[:old].float()
            rows = known.mean(dim=0).repeat(len(ids), 1)
            if init == "noise":
                rows += _noise(rows, derive_seed(seed, "extend", name))
            if init == "description":
                rows = torch.stack([known[tokens].mean(dim=0) for tokens in described])
            weight[ids] = rows.to(weight.dtype)
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None:
            bias[ids] = bias[:old].mean()
    tied = len(both_embeddings(model)) == 1
    return Extension(tuple(words), tuple(ids), before, model.get_input_embeddings().weight.shape[0], tied)


def _noise(rows: torch.Tensor, seed: int) -> torch.Tensor:
    import torch

    draw = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    return draw / math.sqrt(rows.shape[1])


def extend_folder(
    source: loading.ModelSource,
    out: Path,
    words: Mapping[str, str | None],
    *,
    init: str = "mean",
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Extension:
    """Read a model, extend it, and write a folder that plain transformers loads; whole or not at all.

    Weights keep their precision: nothing is computed but means.

    Raises:
        ModelError: an adapter, or a model that does not load.
    """
    import torch

    check_init(init, words)
    if source.adapter is not None:
        raise ModelError(
            f"{source.adapter} is an adapter; new words need rows in its base's embedding.",
            f"Merge it first: `luthier export {source.adapter} OUT`.",
        )
    tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    if known := known_words(tokenizer, list(words)):
        add_words(tokenizer, known)  # refuses them, before weights are read
    config = loading.config_at(source.base, trust_remote_code=trust_remote_code)
    own = str(getattr(config.get_text_config(), "dtype", None) or "float32").removeprefix("torch.")
    model = loading.weights_at(source.base, getattr(torch, own), trust_remote_code=trust_remote_code)
    extension = extend(model, tokenizer, words, init, seed)
    with whole_folder(out) as building, quiet_bars():
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)
        for path in building.iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner can read
    return extension


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(map(repr, words[:SHOWN])) + more
