"""What generation gives, and the slow way to it: transformers' own `generate` on padded batches, for any kind of model.

The fast way, and the choice between both, is `luthier.scoring.decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from luthier.config.generation_section import GenerationSettings
from luthier.foundation.seeding import derive_seed
from luthier.model.config_changes import known_positions
from luthier.model.placement import input_device, without_gradients
from luthier.model.quiet import quiet_peft
from luthier.model.token_text import TokenText, holds_stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length", "prompt_too_long"]
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
OnToken = Callable[[int, int, int], None]
"""Told (row, number, token id) as soon as a token of an answer is chosen; the token that ends it is not told."""


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer.

    Args:
        row: which prompt it answers: its place, or the number that the caller gave it.
        number: which of `num_return_sequences`, from 0.
        token_ids: what was generated, without the stop token; with the tokens of a stop string.
        text: the tokens without special ones, up to a stop string.
        finish_reason: "stop" at a stop token or string, "length" at the longest, "prompt_too_long" where nothing could be
            generated because the prompt leaves no room.
    """

    row: int
    number: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts and how to answer them.

    Args:
        prompts: token ids, none empty.
        rows: a number for each prompt, which its answers bear and their random numbers are drawn from.
        stop_token_ids: ids that end an answer.
        on_token: told of every token.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Sequence[int]]
    rows: Sequence[int]
    settings: GenerationSettings
    stop_token_ids: tuple[int, ...]
    on_token: OnToken | None = None

    def room(self, prompt: Sequence[int]) -> int:
        """Tokens that an answer to a prompt may have; below 1: the prompt is too long."""
        room = self.settings.max_new_tokens
        if self.settings.max_length is not None:
            room = min(room, self.settings.max_length - len(prompt))
        longest = known_positions(self.model.config)
        if longest is not None:
            virtual = getattr(getattr(self.model, "active_peft_config", None), "num_virtual_tokens", None) or 0
            room = min(room, longest - len(prompt) - virtual)
        return room

    def text(self) -> TokenText:
        """An empty answer to put tokens into."""
        return TokenText(self.tokenizer, self.settings.stop_strings)

    def seed(self, row: int, number: int = 0) -> int:
        """Of the random numbers of one answer."""
        return derive_seed(self.settings.seed, "generation", row, number)


def by_transformers(job: Job, batch_size: int = 16) -> Iterator[Generated]:
    """Answers from transformers' `generate`: prompts of similar length together, padded on the left, where their answers
    may have the same length, as beams look ahead; only prompts of one length where padding would change an answer; one at
    a time where tokens are drawn, so that a row's random numbers are its own.

    Args:
        batch_size: prompts at a time.
    """
    size = 1 if job.settings.do_sample or job.on_token is not None else batch_size
    order = sorted(range(len(job.prompts)), key=lambda place: -len(job.prompts[place]))
    unpadded = _padding_shows(job)
    for _, alike in groupby(order, key=lambda at: len(job.prompts[at]) if unpadded else job.room(job.prompts[at])):
        places = list(alike)
        for start in range(0, len(places), size):
            yield from _batch(job, places[start : start + size])


def _padding_shows(job: Job) -> bool:
    """Whether the answer to a padded row is another than to the row alone.

    Virtual tokens that are embeddings stand before the padding, and peft drops the positions that would bring them next to
    the prompt, as they are in training. What forbids or penalises repetition reads the padding, often the token that ends
    an answer, as a part of the prompt: no_repeat_ngram_size always, repetition_penalty in transformers 5.20 (not 5.23).
    """
    if job.settings.no_repeat_ngram_size or job.settings.repetition_penalty != 1:
        return True
    adapter = getattr(job.model, "active_peft_config", None)
    return adapter is not None and bool(adapter.is_prompt_learning) and adapter.peft_type != "PREFIX_TUNING"


def _batch(job: Job, places: Sequence[int]) -> Iterator[Generated]:
    import torch

    settings = job.settings
    prompts = [list(job.prompts[place]) for place in places]
    longest = max(map(len, prompts))
    pad = job.tokenizer.pad_token_id
    pad = pad if pad is not None else (job.stop_token_ids[0] if job.stop_token_ids else 0)
    device = input_device(job.model)
    input_ids = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    with (
        without_gradients(job.model),
        quiet_peft(),
        torch.random.fork_rng(devices=_devices(device)),
        _without_defaults(job.model),
    ):
        torch.manual_seed(job.seed(job.rows[places[0]]))
        output = job.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=_generation_config(job, job.room(prompts[0]), pad),
            stopping_criteria=_stopping(job, longest) if settings.stop_strings else None,
            streamer=_streamer(job, job.rows[places[0]]),
        )
    count = settings.num_return_sequences
    for at, place in enumerate(places):
        for number in range(count):
            ids = output[at * count + number, longest:].tolist()
            yield _read(job, job.rows[place], number, ids, job.room(job.prompts[place]))


def _read(job: Job, row: int, number: int, ids: Sequence[int], room: int) -> Generated:
    """An answer from what a batch of padded rows holds of it."""
    text = job.text()
    for token in ids[:room]:
        if token in job.stop_token_ids:
            return Generated(row, number, tuple(text.token_ids), text.finish(), "stop")
        if text.push(token):
            return Generated(row, number, tuple(text.token_ids), text.finish(), "stop")
    return Generated(row, number, tuple(text.token_ids), text.finish(), "length")


def _generation_config(job: Job, room: int, pad: int) -> Any:
    from transformers import GenerationConfig

    settings = job.settings
    how: dict[str, Any] = {"max_new_tokens": room, "do_sample": settings.do_sample, "num_beams": settings.num_beams}
    if settings.do_sample:
        how |= {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        how |= {"min_p": settings.min_p} if settings.min_p else {}
    if settings.num_beams > 1:
        how |= {"length_penalty": settings.length_penalty, "early_stopping": settings.early_stopping}
    how |= {
        "num_return_sequences": settings.num_return_sequences,
        "repetition_penalty": settings.repetition_penalty,
        "no_repeat_ngram_size": settings.no_repeat_ngram_size,
    }
    return GenerationConfig(**how, eos_token_id=list(job.stop_token_ids) or None, pad_token_id=pad)


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """The model without what its generation_config.json says beyond special tokens: transformers would take from it whatever
    a call leaves open (suppressed tokens, least lengths, penalties), which the fast way and these settings know nothing of."""
    from transformers import GenerationConfig

    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = inner.generation_config
    ids = {name: value for name, value in kept.to_dict().items() if name in SPECIAL_IDS}
    inner.generation_config = GenerationConfig(**ids)
    try:
        yield
    finally:
        inner.generation_config = kept


def _stopping(job: Job, prompt_length: int) -> Any:
    """Ends a row as soon as its answer holds a stop string; transformers' own criterion finds one, too, that begins in the
    prompt."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stops(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **others: Any) -> Any:
            texts = job.tokenizer.batch_decode(
                input_ids[:, prompt_length:], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            ended = [holds_stop(text, job.settings.stop_strings) for text in texts]
            return torch.tensor(ended, device=input_ids.device)

    return StoppingCriteriaList([Stops()])


def _streamer(job: Job, row: int) -> Any:
    """Hands tokens on as transformers makes them; None where nobody listens, or beams are searched."""
    if job.on_token is None or job.settings.num_beams > 1 or job.settings.num_return_sequences > 1:
        return None
    tell: OnToken = job.on_token
    from transformers.generation.streamers import BaseStreamer

    class Tokens(BaseStreamer):  # type: ignore[misc]
        prompt_seen = False

        def put(self, value: Any) -> None:
            if self.prompt_seen and (token := int(value.reshape(-1)[0])) not in job.stop_token_ids:
                tell(row, 0, token)
            self.prompt_seen = True

        def end(self) -> None:
            self.prompt_seen = False

    return Tokens()


def _devices(device: Any) -> list[Any]:
    return [device] if device.type == "cuda" else []
