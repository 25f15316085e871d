"""Many answers at a time: prompts computed once where they begin alike, slots refilled as answers end.

A step is one pass of the model over one token of every answer. When enough answers have ended, the next prompts go through
the model end to end, without padding, and take the free slots.

Shapes: T tokens of a row, A answers that are being made, V vocabulary.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.foundation.devices import free_memory_bytes
from luthier.model.generation import Generated, Job
from luthier.model.placement import input_device
from luthier.model.token_text import TokenText
from luthier.scoring.backbone import backbone_of
from luthier.scoring.decoding.choosing import Chooser, Past
from luthier.scoring.decoding.passes import Below, NextToken, Pass, Prefill, decoding_attention_in
from luthier.scoring.decoding.prompt_row import PromptRow
from luthier.scoring.decoding.store import Beginning, Slots
from luthier.scoring.decoding.tree import LEAST_SAVED, Plan, Planned, plan
from luthier.scoring.head import Head

MOST_SLOTS = 128
MOST_PROMPT_TOKENS = 4096  # in one pass, unless a single prompt is longer
FIRST_ROOM = 64  # tokens; slots grow where answers are longer
REFILL_SHARE = 4  # a quarter of the slots free: fewer, and the prompts' passes are too small to be fast
SHARE_OF_MEMORY = 4  # keys and values take no more than a quarter of what is free


@dataclass(slots=True)
class Writing:
    """An answer that is being made."""

    planned: Planned
    slot: int
    row: int
    prompt: Sequence[int]
    room: int
    text: TokenText
    chance: random.Random
    past: Past

    @property
    def last(self) -> int:
        """The token that the next pass begins with."""
        return self.text.token_ids[-1]

    @property
    def position(self) -> int:
        """Of that token."""
        return len(self.prompt) + len(self.text.token_ids) - 1


class Decoder:
    """Answers the prompts of a job; see `luthier.scoring.decoding.fitness` for the models it can do this with.

    Args:
        model: the transformers model inside the job's.
        plain_head: see `luthier.scoring.head.Head`.
        most_slots: answers at a time.
        least_saved: see `luthier.scoring.decoding.tree.LEAST_SAVED`.
    """

    def __init__(
        self,
        job: Job,
        model: PreTrainedModel,
        plain_head: bool,
        most_slots: int = MOST_SLOTS,
        least_saved: int = LEAST_SAVED,
    ) -> None:
        self._job = job
        self._model = model
        self._head = Head(model, plain_head)
        self._device = input_device(model)
        self._chooser = Chooser(job.settings)
        self.plan: Plan = plan(job.prompts, job.settings.num_return_sequences, least_saved)
        self._waiting = deque(self.plan.answers)
        self._active: list[Writing] = []
        self._slots = Slots(self._slot_count(most_slots))
        self._below: list[Below] = []
        self._slots_A = torch.zeros(0, dtype=torch.long)

    def run(self) -> Iterator[Generated]:
        """The answers, as they end."""
        while self._waiting or self._active:
            if self._waiting and (not self._active or self._slots.free * REFILL_SHARE >= len(self._slots)):
                yield from self._admit()
            elif self._active:
                yield from self._step()

    def _slot_count(self, most: int) -> int:
        """Slots for the answers, so many that the rounds are even, and no more than fit into memory."""
        text: Any = self._model.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        bytes_each: int = 2 * text.num_hidden_layers * heads * width * self._model.dtype.itemsize
        longest = max(len(planned.own) + self._room(planned) for planned in self.plan.answers)
        fitting = max(1, free_memory_bytes(self._device) // SHARE_OF_MEMORY // (bytes_each * longest))
        count = len(self.plan.answers)
        rounds = -(-count // min(most, fitting))
        return -(-count // rounds)

    def _room(self, planned: Planned) -> int:
        return self._job.room(self._job.prompts[planned.prompt])

    def _admit(self) -> Iterator[Generated]:
        """Take prompts into the free slots, as many as make a pass, and choose the first token of each."""
        row = PromptRow(self.plan.tokens)
        new: list[Writing] = []
        places: list[int | None] = []
        while self._waiting and self._slots.free:
            planned = self._waiting[0]
            added = row.added_by(planned.beginning, planned.own)
            if new and len(row.ids) + added > MOST_PROMPT_TOKENS:
                break
            self._waiting.popleft()
            new.append(self._begin(planned))
            places.append(row.add(planned.beginning, planned.own, new[-1].slot))
        row.finish()
        logits_AV = self._prefill(row, new, places)
        self._active += new
        yield from self._take_tokens(logits_AV, new)
        self._lay_out()

    def _begin(self, planned: Planned) -> Writing:
        job = self._job
        row, slot = job.rows[planned.prompt], self._slots.take()
        self._slots.lengths[slot] = len(planned.own)
        chance = random.Random(job.seed(row, planned.number))  # noqa: S311 - a draw, not a secret
        prompt = job.prompts[planned.prompt]
        text = job.text()
        past = Past(prompt, text.token_ids, job.settings.no_repeat_ngram_size)
        return Writing(planned, slot, row, prompt, self._room(planned), text, chance, past)

    def _prefill(self, row: PromptRow, new: Sequence[Writing], places: Sequence[int | None]) -> Tensor:
        """The logits [A, V] after the prompts of new answers; their keys and values are kept.

        Args:
            places: where in the row each prompt ends; None where that was computed before.
        """
        self._slots.reserve(max(len(one.planned.own) + min(one.room, FIRST_ROOM) for one in new))
        if row.ids:
            read = sorted({place for place in places if place is not None})
            prefill = Prefill(self._slots, row.stretches, row.below)
            logits_RV = self._logits(prefill, row.ids, row.positions, read)
            number_of = {place: number for number, place in enumerate(read)}
        found = []
        for one, place in zip(new, places, strict=True):
            beginning = one.planned.beginning
            if place is not None:
                found.append(logits_RV[number_of[place]])
            elif beginning is not None and beginning.logits_V is not None:
                found.append(beginning.logits_V)
            if not one.planned.own and beginning is not None:
                beginning.logits_V = found[-1].clone()  # other answers to this prompt may come later
        return torch.stack(found)

    def _step(self) -> Iterator[Generated]:
        """One token more of every answer."""
        active = self._active
        if len(active) * 2 <= len(self._slots) and not self._waiting:
            self._slots.keep_only([one.slot for one in active])
            for place, one in enumerate(active):
                one.slot = place
            self._lay_out()
        self._slots.reserve(max(self._slots.lengths[one.slot] for one in active) + 1)
        ids, positions = [one.last for one in active], [one.position for one in active]
        step = NextToken(self._slots, self._slots_A, self._below)
        logits_AV = self._logits(step, ids, positions, None)
        for one in active:
            self._slots.lengths[one.slot] += 1
        before = len(active)
        yield from self._take_tokens(logits_AV, list(active))
        if len(self._active) != before:
            self._lay_out()

    def _logits(self, what: Pass, ids: Sequence[int], positions: Sequence[int], read: Sequence[int] | None) -> Tensor:
        """float32 logits after some tokens of a row; `read`: after which, None: after all."""
        backbone: Any = backbone_of(self._model)
        with torch.inference_mode(), decoding_attention_in(self._model):
            hidden_TH = backbone(
                input_ids=torch.tensor([list(ids)], device=self._device),
                position_ids=torch.tensor([list(positions)], device=self._device),
                use_cache=False,
                decoding=what,
            ).last_hidden_state[0]
            if read is not None:
                hidden_TH = hidden_TH.index_select(0, torch.tensor(list(read), device=hidden_TH.device))
            return self._head.logits(hidden_TH)

    def _take_tokens(self, logits_AV: Tensor, writings: Sequence[Writing]) -> Iterator[Generated]:
        """Choose a token for each answer; those that end go."""
        job = self._job
        with torch.inference_mode():
            tokens = self._chooser.choose(logits_AV, writings)
        ended: set[int] = set()
        found: list[Generated] = []
        for one, token in zip(writings, tokens, strict=True):
            stopped = token in job.stop_token_ids
            if not stopped:
                stopped = one.text.push(token)
                if job.on_token is not None:
                    job.on_token(one.row, one.planned.number, token)
            if stopped or len(one.text.token_ids) >= one.room:
                ended.add(id(one))
                found.append(self._end(one, "stop" if stopped else "length"))
        if ended:
            self._active = [one for one in self._active if id(one) not in ended]
        yield from found

    def _end(self, one: Writing, reason: Any) -> Generated:
        self._slots.give_back(one.slot)
        if one.planned.beginning is not None:
            one.planned.beginning.release()
        return Generated(one.row, one.planned.number, tuple(one.text.token_ids), one.text.finish(), reason)

    def _lay_out(self) -> None:
        """Which answers go on with which beginning; consecutive ones, since answers stand depth first."""
        self._slots_A = torch.tensor([one.slot for one in self._active], dtype=torch.long, device=self._device)
        first: dict[Beginning, int] = {}
        last: dict[Beginning, int] = {}
        for place, one in enumerate(self._active):
            for beginning in one.planned.beginning.chain() if one.planned.beginning is not None else ():
                first.setdefault(beginning, place)
                last[beginning] = place + 1
        self._below = [Below(first[one], last[one], one) for one in first]
