"""A model opened for use: weights, tokenizer, chat template, and what ends its answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.config.schema import ModelConfig
from luthier.data.rendering import AUTO, Renderer, own_template
from luthier.foundation.devices import choose_device
from luthier.foundation.errors import DataError, ModelError
from luthier.model import loading
from luthier.model.heads import saved_head
from luthier.model.merging import check_mergeable, merge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.model.loading import ModelSource
    from luthier.model.placement import Placement


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that can answer.

    Args:
        renderer: of its chat template; None where it has none, and only continues text.
        stop_token_ids: what ends an answer.
    """

    source: ModelSource
    model: Any
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer | None
    stop_token_ids: tuple[int, ...]


def find_speaker(model: ModelConfig) -> ModelSource:
    """Where a model's parts stand, before anything of it is read.

    Raises:
        ModelError: it is not there, or gives labels and not words.
    """
    source = loading.find(model)
    head = saved_head(source.adapter, source.base)
    if head is not None:
        raise ModelError(
            f"{model.name} was trained for {head.problem.replace('_', ' ')}: it gives "
            f"{', '.join(head.labels) or 'a number'} and can't talk.",
            "Its predictions on data.validation and data.test stand in the run's predictions.jsonl; for other texts load "
            "final/ in transformers (docs/classification.md).",
        )
    return source


def open_words(
    source: ModelSource, template: str = AUTO, *, trust_remote_code: bool = False, needs_template: bool = True
) -> tuple[PreTrainedTokenizerBase, Renderer | None]:
    """The tokenizer and the renderer of its template.

    Args:
        needs_template: whether a model without one is refused.
    """
    tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    if not needs_template and template == AUTO:
        try:
            own_template(tokenizer)
        except DataError:
            return tokenizer, None
    return tokenizer, Renderer(tokenizer, template)


def text_to_continue(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """A function that gives the ids of a text to be continued: with what the tokenizer puts before a text by itself (BOS),
    and without what some put behind it (EOS, SEP), after which a model begins something else."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    own = list(tokenizer("a")["input_ids"])
    starts = [place for place in range(len(own)) if bare and own[place : place + len(bare)] == bare]
    behind = len(own) - starts[0] - len(bare) if starts else 0

    def ids(text: str) -> list[int]:
        found = list(tokenizer(text)["input_ids"])
        return found[: len(found) - behind]

    return ids


def read_in(source: ModelSource, wish: str = "auto", *, trust_remote_code: bool = False) -> Any:
    """The precision that a model is read in here; see `luthier.model.loading.choose_dtype`."""
    return loading.choose_dtype(wish, loading.config_of(source, trust_remote_code=trust_remote_code), choose_device())


def open_weights(
    source: ModelSource, *, wish: str = "auto", placement: Placement | None = None, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """The model in evaluation mode on the best device, and the precision it was read in.

    Args:
        wish: auto, or that precision.

    Raises:
        ModelError: it does not load.
    """
    device = choose_device()
    dtype = read_in(source, wish, trust_remote_code=trust_remote_code)
    loading.check_quantization(source, device, training=False)
    model = loading.load(source, dtype, device=device, placement=placement, trust_remote_code=trust_remote_code)
    return model.eval(), dtype


def folded(model: Any, source: ModelSource, dtype: Any) -> Any:
    """The model with its adapter in its weights, where that changes no more than the last bits: a third less work a token."""
    import torch

    quantized = source.saved_quantization is not None or source.settings.quantization is not None
    if source.adapter is None or quantized or dtype != torch.float32:
        return model
    try:
        check_mergeable(source.adapter)
    except ModelError:
        return model
    return merge(model).eval()


def stop_tokens(source: ModelSource, model: Any, renderer: Renderer | None, eos: int | None = None) -> tuple[int, ...]:
    """What ends an answer: the template's stop tokens, and those in the generation_config beside the model.

    Args:
        model: None where it is not at hand, and its own are not asked.
        eos: the tokenizer's, which stands for a template's where there is none.
    """
    kept = source.adapter / "generation_config.json" if source.adapter is not None else None
    if kept is not None and kept.exists():
        named = json.loads(kept.read_text(encoding="utf-8")).get("eos_token_id")
    else:
        named = None if model is None else getattr(model.generation_config, "eos_token_id", None)
    ids = [named] if isinstance(named, int) else list(named or ())
    own = renderer.stop_token_ids if renderer is not None else (eos,) if eos is not None else ()
    return tuple(dict.fromkeys([*own, *ids]))
