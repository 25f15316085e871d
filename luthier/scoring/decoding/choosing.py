"""The next token of each answer, from logits: penalties, then the likeliest or a drawn one.

In the order of transformers' processors: repetition penalty, n-grams, temperature, top-k, top-p, min-p. Every answer draws
from random numbers of its own, so what stands beside it does not change it.

Shapes: A answers, V vocabulary, C candidates.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from luthier.config.generation_section import GenerationSettings

FIRST_CANDIDATES = 1024
"""Top-p looks at so many of the likeliest tokens, and at all only where these have too little probability: sorting a whole
vocabulary takes longer than the model's head."""


class Past:
    """What an answer has had, as the penalties ask for it, kept up token by token: the hundredth costs no more than the first.

    Args:
        prompt: its tokens. answer: a list that grows as tokens are chosen.
        size: of the runs that may not come twice; 0: they are not kept.
    """

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], size: int = 0) -> None:
        self._parts = (prompt, answer)
        self._size = size
        self._known = 0  # tokens of the answer
        self._begun = False
        self._seen: dict[int, None] = {}
        self._tensor = torch.zeros(0, dtype=torch.long)
        self._ending: deque[int] = deque(maxlen=max(size - 1, 0))
        self._next: dict[tuple[int, ...], set[int]] = {}

    def seen(self, device: torch.device) -> Tensor:
        """Each token that was there, once."""
        self._catch_up()
        new = len(self._seen) - len(self._tensor)
        if new or self._tensor.device != device:
            latest = torch.tensor(list(islice(reversed(self._seen), new)), dtype=torch.long, device=device)
            self._tensor = torch.cat([self._tensor.to(device), latest])
        return self._tensor

    def repeating(self) -> set[int]:
        """Tokens that would end a run of `size` tokens which is there already."""
        self._catch_up()
        return self._next.get(tuple(self._ending), set()) if len(self._ending) == self._size - 1 else set()

    def _catch_up(self) -> None:
        prompt, answer = self._parts
        if not self._begun:
            self._take(prompt)
            self._begun = True
        self._take(islice(answer, self._known, None) if self._known else answer)
        self._known = len(answer)

    def _take(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self._seen.setdefault(token)
            if self._size:
                if len(self._ending) == self._size - 1:
                    self._next.setdefault(tuple(self._ending), set()).add(token)
                self._ending.append(token)


class Writing(Protocol):
    """An answer, as the choice sees it."""

    chance: random.Random
    past: Past


class Chooser:
    """Chooses tokens as some settings say."""

    def __init__(self, settings: GenerationSettings) -> None:
        self._settings = settings

    def choose(self, logits_AV: Tensor, writings: Sequence[Writing]) -> list[int]:
        """A token for each answer; the logits are changed."""
        settings = self._settings
        if settings.repetition_penalty != 1.0:
            for logits_V, writing in zip(logits_AV, writings, strict=True):
                _penalize(logits_V, writing.past.seen(logits_V.device), settings.repetition_penalty)
        if settings.no_repeat_ngram_size:
            for logits_V, writing in zip(logits_AV, writings, strict=True):
                banned = writing.past.repeating()
                logits_V[torch.tensor(sorted(banned), dtype=torch.long, device=logits_V.device)] = -math.inf
        if not settings.do_sample:
            tokens: list[int] = logits_AV.max(dim=-1).indices.tolist()  # four times as fast as argmax on a CPU
            return tokens
        uniforms = [writing.chance.random() for writing in writings]
        return self._draw(logits_AV.div_(settings.temperature), uniforms)

    def _draw(self, logits_AV: Tensor, uniforms: Sequence[float]) -> list[int]:
        """A token for each uniform number in [0, 1), by the inverse of the distribution function."""
        settings = self._settings
        uniform_A1 = torch.tensor(uniforms, dtype=torch.float64, device=logits_AV.device)[:, None]
        if not (settings.top_k or settings.top_p < 1 or settings.min_p):
            drawn: list[int] = _inverse(logits_AV.softmax(dim=-1), uniform_A1)[:, 0].tolist()
            return drawn
        vocabulary = logits_AV.shape[1]
        count = min(settings.top_k or (vocabulary if settings.min_p else FIRST_CANDIDATES), vocabulary)
        whole_A1 = logits_AV.logsumexp(dim=-1, keepdim=True)
        while True:
            candidates = logits_AV.topk(count, dim=-1)
            # top-p counts probability among what top-k leaves
            base_A1 = candidates.values.logsumexp(dim=-1, keepdim=True) if settings.top_k else whole_A1
            probability_AC = (candidates.values - base_A1).exp_()
            before_AC = probability_AC.cumsum(dim=-1) - probability_AC
            if count == vocabulary or settings.top_k or bool((before_AC[:, -1] >= settings.top_p).all()):
                break
            count = min(16 * count, vocabulary)
        kept_AC = torch.ones_like(probability_AC, dtype=torch.bool)
        if settings.top_p < 1:
            kept_AC &= before_AC < settings.top_p
        if settings.min_p:
            kept_AC &= probability_AC >= settings.min_p * probability_AC[:, :1]
        kept_AC[:, 0] = True
        place_A1 = _inverse(probability_AC * kept_AC, uniform_A1)
        drawn = candidates.indices.gather(1, place_A1)[:, 0].tolist()
        return drawn


def _inverse(weights_AC: Tensor, uniform_A1: Tensor) -> Tensor:
    """The first places [A, 1] where the sum of weights passes a share of the whole; never one of weight 0."""
    upto_AC = weights_AC.double().cumsum(dim=-1)
    wanted_A1 = uniform_A1 * upto_AC[:, -1:]
    return torch.searchsorted(upto_AC, wanted_A1, right=True).clamp_(max=weights_AC.shape[1] - 1)


def _penalize(logits_V: Tensor, seen: Tensor, penalty: float) -> None:
    """Keskar et al. 2019, https://arxiv.org/abs/1909.05858, equation 2, as transformers has it: positive logits divided by
    the penalty, negative ones multiplied."""
    found = logits_V[seen]
    logits_V[seen] = torch.where(found < 0, found * penalty, found / penalty)
