"""What a tokenizer lacks for training, mended and announced: EOS, PAD, a template's own tokens, rows for new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.model.embeddings import both_embeddings
from luthier.model.loading import grow_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FALLBACK_EOS = "<|endoftext|>"
SAMPLING_NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


@dataclass(frozen=True, slots=True)
class Repair:
    """What was changed.

    Args:
        changes: one sentence for each change.
        new_token_ids: ids of tokens that the model never saw; their embedding rows must be trained.
        stop_token_ids: ids that end an answer, EOS first.
    """

    changes: tuple[str, ...]
    new_token_ids: tuple[int, ...]
    stop_token_ids: tuple[int, ...]


def repair(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    special_tokens: Sequence[str] = (),
    stop_tokens: Sequence[str] = (),
) -> Repair:
    """Mend a tokenizer in place.

    Args:
        special_tokens: what the chat template writes as single tokens.
        stop_tokens: those of them that end an answer.
    """
    changes: list[str] = []
    known = tokenizer.get_vocab()
    missing = [token for token in dict.fromkeys([*special_tokens, *stop_tokens]) if token not in known]
    eos = tokenizer.eos_token
    if eos is None:
        eos = _find_eos(tokenizer, config, stop_tokens)
        if eos not in known and eos not in missing:
            missing.append(eos)
    if missing:
        _add(tokenizer, missing)
        changes.append(
            f"the template's tokens {', '.join(missing)} are new to the tokenizer; their embeddings will be trained"
        )
    if tokenizer.eos_token is None:
        tokenizer.eos_token = eos
        changes.append(f"the tokenizer has no EOS token; {eos} is used")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        # harmless here: targets are chosen by the rendered spans, never by comparing ids with the padding
        changes.append(
            f"the tokenizer has no PAD token; EOS ({tokenizer.eos_token}) is used, and stays a target where an answer ends"
        )
    vocabulary = tokenizer.get_vocab()
    stops = dict.fromkeys([tokenizer.eos_token, *stop_tokens])
    ids = dict.fromkeys(vocabulary[token] for token in stops if token is not None)
    return Repair(tuple(changes), tuple(vocabulary[token] for token in missing), tuple(ids))


def repair_padding(tokenizer: PreTrainedTokenizerBase) -> Repair:
    """Mend a tokenizer in place for texts that no model writes: only a PAD token is needed."""
    if tokenizer.pad_token is not None:
        return Repair((), (), ())
    tokenizer.pad_token = next(
        (token for token in (tokenizer.eos_token, tokenizer.unk_token, tokenizer.cls_token) if token is not None),
        tokenizer.convert_ids_to_tokens(0),
    )
    return Repair((f"the tokenizer has no PAD token; {tokenizer.pad_token} is used",), (), ())


def _find_eos(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, stop_tokens: Sequence[str]) -> str:
    """The EOS that the model's config names, else the template's stop token, else a known name for it."""
    named = config.get_text_config().eos_token_id
    number = named[0] if isinstance(named, list) and named else named
    if isinstance(number, int) and number < len(tokenizer):
        return str(tokenizer.convert_ids_to_tokens(number))
    return stop_tokens[0] if stop_tokens else FALLBACK_EOS


def _add(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)


def fit_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mended: Repair) -> list[str]:
    """Give a model rows for new tokens and the ids that end an answer. Returns one sentence for each change.

    New rows start as the mean of the old ones: a neutral token, the same on every run.
    """
    import torch

    changes = []
    rows = model.get_input_embeddings().weight.shape[0]
    old = min(rows, min(mended.new_token_ids, default=rows))
    if grow_embeddings(model, tokenizer):
        changes.append(f"the embedding grows from {rows} to {len(tokenizer)} rows")
    with torch.no_grad():
        for weight in both_embeddings(model) if mended.new_token_ids else ():
            weight[list(mended.new_token_ids)] = weight[:old].mean(dim=0)
    text = model.config.get_text_config()
    text.pad_token_id = tokenizer.pad_token_id
    text.eos_token_id = tokenizer.eos_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None and mended.stop_token_ids:
        before = generation.eos_token_id
        generation.eos_token_id = (
            list(mended.stop_token_ids) if len(mended.stop_token_ids) > 1 else mended.stop_token_ids[0]
        )
        generation.pad_token_id = tokenizer.pad_token_id
        if before is not None and before != generation.eos_token_id:
            changes.append(f"generation stops at token ids {generation.eos_token_id} (the model folder said {before})")
        if not generation.do_sample and any(
            getattr(generation, name) not in (None, neutral) for name, neutral in SAMPLING_NEUTRAL.items()
        ):
            # transformers refuses to save such a file, which would end a run at its first checkpoint
            generation.do_sample = True
            changes.append("generation_config.json set sampling options without do_sample; do_sample is set")
    return changes
