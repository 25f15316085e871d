"""`generate`: token prompts in, answers out as they finish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from luthier.config.generation_section import GenerationSettings
from luthier.foundation.progress import say
from luthier.model.generation import Generated, Job, OnToken, by_transformers
from luthier.scoring.decoding.decoder import Decoder
from luthier.scoring.decoding.fitness import why_not
from luthier.scoring.probe import probe
from luthier.scoring.scorer import transformers_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    stop_token_ids: Sequence[int],
    rows: Sequence[int] | None = None,
    on_token: OnToken | None = None,
    say: Callable[[str], None] = say,
) -> Iterator[Generated]:
    """Answers to prompts, each as soon as it is finished, in any order: `row` and `number` tell which it is.

    Args:
        model: a transformers model, or a peft model around one, in evaluation mode. Nothing of it is changed afterwards.
        prompts: token ids, generation prompt included; none empty.
        stop_token_ids: ids that end an answer.
        rows: a number for each prompt, which its answers bear. A row's random numbers are drawn from the seed and this
            number alone, so they do not depend on the other prompts. Unset: 0, 1, 2, ...
        on_token: told of every token as it is chosen.
        say: told once why the fast way can't be taken.
    """
    numbers = range(len(prompts)) if rows is None else rows
    stops = _stop_ids(tokenizer, settings, stop_token_ids)
    job = Job(model, tokenizer, prompts, numbers, settings, stops, on_token)
    fitting = [place for place, prompt in enumerate(prompts) if job.room(prompt) > 0]
    for place in sorted({*range(len(prompts))} - {*fitting}):
        for number in range(settings.num_return_sequences):
            yield Generated(numbers[place], number, (), "", "prompt_too_long")
    if not fitting:
        return
    job = Job(model, tokenizer, [prompts[p] for p in fitting], [numbers[p] for p in fitting], settings, stops, on_token)
    reason = why_not(job)
    if not reason:
        model = transformers_model(job.model)
        finding = probe(model.config, type(model))
        yield from Decoder(job, model, finding.plain_head).run()
        return
    say(f"generating with transformers' own generate: {reason}")
    yield from by_transformers(job)


def _stop_ids(
    tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings, stop_token_ids: Sequence[int]
) -> tuple[int, ...]:
    """The ids that end an answer, and those of special tokens among the stop strings, which no text shows."""
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = [special[text] for text in settings.stop_strings if text in special]
    return tuple(dict.fromkeys([*stop_token_ids, *named]))
