"""Log-probabilities of targets, from hidden states through the family's own output head, in chunks.

A [T, vocab] or [N, vocab] tensor never exists: logits are made for a few hundred positions at a time.

Shapes: N targets, C targets of one chunk, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CACHE_BYTES = 2 * 1024 * 1024
CHUNK_BYTES = 64 * 1024 * 1024  # of float32 logits; on a CPU 16 to 256 MiB differ by 5 %, 4 MiB take twice as long


class _GivenHidden(nn.Module):
    """Stands in for a backbone and returns hidden states computed before."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        # the class with the most fields, so that families which read router_logits find the attribute
        return MoeModelOutputWithPast(last_hidden_state=self.hidden)


class Head:
    """The output head of a causal language model, soft caps and scales included.

    Args:
        model: the transformers model (not a peft wrapper; adapters inside it are used).
        plain: whether its head is one linear map of the last hidden state and nothing more (see `probe`).
    """

    def __init__(self, model: nn.Module, plain: bool) -> None:
        self.model = model
        self.plain = plain

    def logits(self, hidden_CH: Tensor) -> Tensor:
        """float32 logits [C, V] of hidden states [C, H]."""
        if self.plain:
            logits_CV: Tensor = self.model.get_output_embeddings()(hidden_CH)  # type: ignore[operator]
            return logits_CV.float()
        with _backbone_replaced(self.model, _GivenHidden(hidden_CH[None])):
            dummy = torch.zeros(1, hidden_CH.shape[0], dtype=torch.long, device=hidden_CH.device)
            output = self.model(input_ids=dummy, use_cache=False)
        logits: Tensor = output.logits[0]
        return logits.float()

    def frozen_linear(self) -> nn.Linear | None:
        """The head as a plain frozen `nn.Linear` (no adapter, no trained or tied-to-trained weight), else None."""
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        if self.plain and type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
            return head
        return None

    def target_logp(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        """log p(target) of every position, float32 [N]."""
        return self.read(hidden_NH, targets_N)[0]

    def read(
        self, hidden_NH: Tensor, targets_N: Tensor, functions: Sequence[Callable[[Tensor, slice], Tensor]] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """log p(target) of every position, float32 [N], and what each function makes of the logits, [N, k].

        Args:
            functions: from the logits [C, V] of some positions, and which they are, to [C, k].
        """
        vocabulary: int = self.model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        chunk = max(16, CHUNK_BYTES // (4 * vocabulary))
        linear = self.frozen_linear()
        if linear is not None and not functions:
            logp_N: Tensor = _FrozenLinearLogp.apply(hidden_NH, linear.weight, linear.bias, targets_N, chunk)  # type: ignore[no-untyped-call]
            return logp_N, []
        if not len(targets_N):  # a head that runs the model's own forward may not take rows of no tokens
            none_CV = hidden_NH.new_zeros((0, vocabulary), dtype=torch.float32)
            return none_CV.sum(dim=1), [function(none_CV, slice(0, 0)) for function in functions]
        pieces = []
        for number, (hidden_CH, targets_C) in enumerate(
            zip(hidden_NH.split(chunk), targets_N.split(chunk), strict=True)
        ):
            rows = slice(number * chunk, number * chunk + len(targets_C))
            # recomputed in backward: the logits of a chunk live only while the chunk is worked on
            pieces.append(checkpoint(self._chunk, hidden_CH, targets_C, functions, rows, use_reentrant=False))
        logp_N, *values = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return logp_N, values

    def _chunk(
        self, hidden_CH: Tensor, targets_C: Tensor, functions: Sequence[Callable[[Tensor, slice], Tensor]], rows: slice
    ) -> tuple[Tensor, ...]:
        logits_CV = self.logits(hidden_CH)
        logp_C = logits_CV.gather(1, targets_C[:, None])[:, 0] - logits_CV.logsumexp(dim=1)
        return logp_C, *(function(logits_CV, rows) for function in functions)


class _FrozenLinearLogp(torch.autograd.Function):
    """log softmax(W h + b)[target] for a W that is not trained, forward and backward in one pass over the chunks.

    d logp / dh = W[target] - sum_v p_v W[v]  does not depend on the gradient that comes in, which only scales it; so
    it is made while the logits of a chunk are there, and no logits are recomputed in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, chunk: int
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        logp_N = torch.empty(hidden_NH.shape[0], dtype=torch.float32, device=hidden_NH.device)
        gradient_NH = torch.empty_like(hidden_NH) if needs_gradient else None
        scores_CV = None
        for start in range(0, hidden_NH.shape[0], chunk):
            rows = slice(start, start + chunk)
            targets_C = targets_N[rows]
            scores_CV = _logits(hidden_NH[rows], weight_VH, bias_V, scores_CV)
            target_C1 = scores_CV.gather(1, targets_C[:, None])
            top_C1, sum_C1 = _exponentiate(scores_CV)
            logp_N[rows] = (target_C1 - top_C1 - sum_C1.log())[:, 0]
            if gradient_NH is not None:
                # divided by the sum after the product: a pass over [C, H] in place of one over [C, V]
                expected_CH = (scores_CV.to(weight_VH.dtype) @ weight_VH).div_(sum_C1.to(weight_VH.dtype))
                gradient_NH[rows] = (weight_VH[targets_C] - expected_CH).to(hidden_NH.dtype)
        if gradient_NH is not None:
            ctx.save_for_backward(gradient_NH)
        return logp_N

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * gradient_N[:, None].to(gradient_NH.dtype), None, None, None, None


def _logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, into_CV: Tensor | None) -> Tensor:
    """float32 logits [C, V], in the memory of an earlier chunk's where that fits: fresh memory costs as much as a pass."""
    if (
        weight_VH.dtype != torch.float32
        or hidden_CH.dtype != torch.float32
        or torch.is_autocast_enabled(hidden_CH.device.type)
    ):
        return F.linear(hidden_CH, weight_VH, bias_V).float()
    if into_CV is None:
        into_CV = hidden_CH.new_empty(hidden_CH.shape[0], weight_VH.shape[0])
    into_CV = into_CV[: hidden_CH.shape[0]]
    torch.mm(hidden_CH, weight_VH.t(), out=into_CV)
    return into_CV if bias_V is None else into_CV.add_(bias_V)


def _exponentiate(scores_CV: Tensor) -> tuple[Tensor, Tensor]:
    """exp(scores - their largest), in place; returns the largest and the sum of every row, [C, 1].

    On a CPU a few rows at a time, so that the four passes find them in the processor's cache: twice as fast.
    """
    tops, sums = [], []
    on_cpu = scores_CV.device.type == "cpu"
    rows = max(1, CACHE_BYTES // (4 * scores_CV.shape[1])) if on_cpu else scores_CV.shape[0]
    for rows_RV in scores_CV.split(rows):
        top_R1 = rows_RV.amax(dim=1, keepdim=True)
        sums.append(rows_RV.sub_(top_R1).exp_().sum(dim=1, keepdim=True))
        tops.append(top_R1)
    return torch.cat(tops), torch.cat(sums)


@contextmanager
def _backbone_replaced(model: nn.Module, stand_in: nn.Module) -> Iterator[None]:
    """The model with its backbone swapped for `stand_in`, so that its own forward runs only what follows it."""
    backbone = model.get_decoder()  # type: ignore[operator]
    name = next(name for name, child in model.named_children() if child is backbone)
    model._modules[name] = stand_in
    try:
        yield
    finally:
        model._modules[name] = backbone
