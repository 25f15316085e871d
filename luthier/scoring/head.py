"""Log-probabilities of targets, from hidden states through the family's own output head, in chunks.

A [T, vocab] or [N, vocab] tensor never exists: logits are made for a few hundred positions at a time.

Shapes: U positions that are read, N targets (one position may predict several, of sequences that share it), C of one
chunk, H hidden width, V vocabulary.
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
        self,
        hidden_UH: Tensor,
        targets_N: Tensor,
        functions: Sequence[Callable[[Tensor, slice], Tensor]] = (),
        position_of_N: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """log p(target) of every target, float32 [N], and what each function makes of the logits, [N, k].

        Args:
            position_of_N: which of the hidden states predicts each target; None: the n-th the n-th.
            functions: from the logits [C, V] of some positions, and which they are, to [C, k].
        """
        vocabulary: int = self.model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        chunk = max(16, CHUNK_BYTES // (4 * vocabulary))
        linear = self.frozen_linear()
        if linear is not None and not functions:
            if position_of_N is None:
                position_of_N = torch.arange(len(targets_N), device=targets_N.device)
            logp_N: Tensor = _FrozenLinearLogp.apply(  # type: ignore[no-untyped-call]
                hidden_UH, linear.weight, linear.bias, targets_N, position_of_N, chunk
            )
            return logp_N, []
        hidden_NH = hidden_UH if position_of_N is None else hidden_UH[position_of_N]
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

    d logp / dh = W[target] - sum_v p_v W[v]:  the sum does not depend on the gradient that comes in, which only scales it,
    nor on the target; so it is made while the logits of a chunk are there, and no logits are recomputed in backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_UH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        position_of_N: Tensor,
        chunk: int,
    ) -> Tensor:
        logp_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_UH.device)
        expected_UH = torch.empty_like(hidden_UH) if ctx.needs_input_grad[0] else None
        order_N = position_of_N.argsort(stable=True)
        starts = range(0, hidden_UH.shape[0], chunk)
        edges = torch.tensor([*starts, hidden_UH.shape[0]], device=position_of_N.device)
        of_chunks = torch.searchsorted(position_of_N[order_N], edges).tolist()
        scores_CV = None
        for number, start in enumerate(starts):
            rows = slice(start, start + chunk)
            chosen = order_N[of_chunks[number] : of_chunks[number + 1]]
            row_of_target = position_of_N[chosen] - start
            scores_CV = _logits(hidden_UH[rows], weight_VH, bias_V, scores_CV)
            of_targets = scores_CV[row_of_target, targets_N[chosen]]
            top_C1, sum_C1 = _exponentiate(scores_CV)
            logp_N[chosen] = of_targets - (top_C1 + sum_C1.log())[row_of_target, 0]
            if expected_UH is not None:
                # divided by the sum after the product: a pass over [C, H] in place of one over [C, V]
                expected_UH[rows] = (scores_CV.to(weight_VH.dtype) @ weight_VH).div_(sum_C1.to(weight_VH.dtype))
        if expected_UH is not None:
            ctx.save_for_backward(expected_UH, weight_VH, targets_N, position_of_N)
        return logp_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        expected_UH, weight_VH, targets_N, position_of_N = ctx.saved_tensors
        gradient_N = gradients[0].to(expected_UH.dtype)
        whole_U = gradient_N.new_zeros(expected_UH.shape[0]).index_add_(0, position_of_N, gradient_N)
        into_UH = -expected_UH * whole_U[:, None]
        of_targets_NH = weight_VH[targets_N].to(expected_UH.dtype) * gradient_N[:, None]
        return into_UH.index_add_(0, position_of_N, of_targets_NH), None, None, None, None, None


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
