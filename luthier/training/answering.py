"""Evaluation by generation: what the model answers where a row's last answer stood, and metrics of that.

The prompt is the row's own tokens up to its last answer, so it is what training saw, cut where that was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel

from luthier.config.generation_section import GenerationSettings
from luthier.config.metric_choice import check_references
from luthier.config.plugins import METRICS
from luthier.data.examples import TokenizedExample
from luthier.foundation.progress import say
from luthier.metrics._text import TextRow
from luthier.scoring import attention
from luthier.scoring.decoding import generate
from luthier.scoring.scorer import transformers_model
from luthier.training.engine import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answering:
    """How answers are generated and measured in a run's evaluations.

    Args:
        model: as it is saved: a transformers model or a peft model around one.
        stop_token_ids: what ends an answer.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]
    settings: GenerationSettings
    metrics: Sequence[BaseModel]

    def rows(self, engine: Engine, examples: Sequence[TokenizedExample]) -> list[TextRow]:
        """Each example's answer beside its own; the first rank writes them, the others wait.

        The model must be in evaluation mode.
        """
        parts = [prompt_and_answer(example) for example in examples]

        def answers() -> list[str]:
            found = [""] * len(parts)
            # the precision that losses are read in: layers that learn may be float32 above 16-bit ones
            with torch.no_grad(), engine.autocast(), own_attention(self.model):
                for one in generate(
                    self.model,
                    self.tokenizer,
                    [prompt for prompt, _ in parts],
                    self.settings,
                    stop_token_ids=self.stop_token_ids,
                    say=lambda line: None,
                ):
                    if one.number == 0:
                        found[one.row] = one.text
            return found

        texts = engine.lead(answers)
        return [
            TextRow(text, self._text(answer), self._text(prompt))
            for text, (prompt, answer) in zip(texts, parts, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        return _text(self.tokenizer, ids)

    def measure(self, engine: Engine, rows: Sequence[TextRow]) -> dict[str, float]:
        """The metrics of rows; the first rank takes them."""

        def values() -> dict[str, float]:
            found: dict[str, float] = {}
            for options in self.metrics:
                module = METRICS.load(options.name)  # type: ignore[attr-defined]
                scored: Mapping[str, Any] = module.build(options)(rows)
                found |= {name: one.value for name, one in scored.items()}
                for remark in dict.fromkeys(one.remark for one in scored.values() if one.remark):
                    say(remark)
            return found

        return engine.lead(values)


def check_answers(
    metrics: Sequence[BaseModel], tokenizer: PreTrainedTokenizerBase, examples: Iterable[TokenizedExample]
) -> None:
    """Raise DataError, with the row's place, where a metric can't measure the answer of an example that is held back."""
    answers = ((str(example.origin), _text(tokenizer, prompt_and_answer(example)[1])) for example in examples)
    check_references(metrics, answers)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """As answers are decoded: a tokenizer's own clean-up of spaces would make others of some references."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """The model with transformers' attention: the segmented one, which a Scorer gives it, knows no cache."""
    inner: Any = transformers_model(model)
    kept = inner.config._attn_implementation
    if kept != attention.NAME:
        yield
        return
    inner.set_attn_implementation("sdpa" if inner._supports_sdpa else "eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(kept)


def prompt_and_answer(example: TokenizedExample) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """An example's last stretch of trained tokens, and all tokens before it."""
    sequence = [sequence for sequence in example.sequences if sequence.targets][-1]
    end = max(place for place, weight in enumerate(sequence.weights) if weight > 0) + 1
    start = end
    while sequence.weights[start - 1] > 0:
        start -= 1
    return sequence.input_ids[:start], sequence.input_ids[start:end]
