"""Log-probabilities of targets, from hidden states through the family's own output head, in chunks.

A [T, vocab] or [N, vocab] tensor never exists: logits are made for a few hundred positions at a time.

Shapes: U positions that are read, N targets (one position may predict several, of sequences that share it), C of one
chunk, H hidden width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from luthier.scoring.backbone import backbone_of
from luthier.scoring.compiled import passes
from luthier.scoring.fused.casting import cast_for_product, summed_in
from luthier.scoring.fused.low_rank import has_hooks, is_wrapped, product_dtype

CACHE_BYTES = 1024 * 1024
CHUNK_BYTES = 64 * 1024 * 1024  # of float32 logits; on a CPU 16 to 256 MiB differ by 5 %, 4 MiB take twice as long
# of the vocabulary at a time, where the head is frozen: 2,048 to 16,384 differ by 5 %, all of it takes a sixth longer
COLUMNS = 8192


class _GivenHidden(nn.Module):
    """Stands in for a backbone and returns hidden states computed before."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> Any:
        return _only_hidden()(last_hidden_state=self.hidden)


@functools.cache
def _only_hidden() -> type[Any]:
    """An output that has hidden states and nothing else: whatever further field a family's head reads is None."""
    from transformers.modeling_outputs import BaseModelOutput

    class OnlyHidden(BaseModelOutput):  # type: ignore[misc]
        def __getattr__(self, name: str) -> None:
            if name.startswith("_"):
                raise AttributeError(name)

    return OnlyHidden


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
        """The head as a plain frozen `nn.Linear`, else None: no adapter, no trained or tied-to-trained weight, none that wraps
        others, no hooks, which may listen to its call or bring its weights."""
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        if not self.plain or type(head) is not nn.Linear or has_hooks(head) or is_wrapped(head.weight):
            return None
        return None if any(parameter.requires_grad for parameter in head.parameters()) else head

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
        linear = self.frozen_linear()
        if linear is not None and not functions:
            if position_of_N is None:
                position_of_N = torch.arange(len(targets_N), device=targets_N.device)
            chunk = max(16, CHUNK_BYTES // (4 * min(vocabulary, COLUMNS)))
            logp_N: Tensor = _FrozenLinearLogp.apply(  # type: ignore[no-untyped-call]
                hidden_UH, linear.weight, linear.bias, targets_N, position_of_N, chunk
            )
            return logp_N, []
        chunk = max(16, CHUNK_BYTES // (4 * vocabulary))
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
    A chunk is some rows and some columns of the logits, so that a part of W is read once for many rows; sums are kept
    beside the largest logit seen so far and scaled as that grows (Milakov and Gimelshein 2018,
    https://arxiv.org/abs/1805.02867, algorithm 3).
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
        logp_N = torch.empty(len(targets_N), dtype=summed_in(hidden_UH), device=hidden_UH.device)
        expected_UH = torch.empty_like(hidden_UH) if ctx.needs_input_grad[0] else None
        order_N = position_of_N.argsort(stable=True)
        starts = range(0, hidden_UH.shape[0], chunk)
        edges = torch.tensor([*starts, hidden_UH.shape[0]], device=position_of_N.device)
        of_chunks = torch.searchsorted(position_of_N[order_N], edges).tolist()
        for number, start in enumerate(starts):
            rows = slice(start, start + chunk)
            chosen = order_N[of_chunks[number] : of_chunks[number + 1]]
            of_targets, logsumexp_C, expected_CH = _read(
                hidden_UH[rows], weight_VH, bias_V, targets_N[chosen], position_of_N[chosen] - start,
                with_expected=expected_UH is not None,
            )  # fmt: skip
            logp_N[chosen] = of_targets - logsumexp_C[position_of_N[chosen] - start]
            if expected_UH is not None and expected_CH is not None:
                expected_UH[rows] = expected_CH
        if expected_UH is not None:
            ctx.save_for_backward(expected_UH, weight_VH, targets_N, position_of_N)
            ctx.dtype = product_dtype(hidden_UH)
        return logp_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        expected_UH, weight_VH, targets_N, position_of_N = ctx.saved_tensors
        gradient_N = gradients[0].to(expected_UH.dtype)
        whole_U = gradient_N.new_zeros(expected_UH.shape[0]).index_add_(0, position_of_N, gradient_N)
        into_UH = -expected_UH * whole_U[:, None]
        # rounded as in the sum, which a sure target's row is all of: the difference is then nothing
        of_targets_NH = weight_VH[targets_N].to(ctx.dtype).to(expected_UH.dtype) * gradient_N[:, None]
        return into_UH.index_add_(0, position_of_N, of_targets_NH), None, None, None, None, None


def _read(
    hidden_CH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    targets_M: Tensor,
    row_of_M: Tensor,
    with_expected: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The logits of targets [M], log sum exp of every row [C], and sum_v p_v W[v] [C, H], some columns after the others."""
    rows = hidden_CH.shape[0]
    top_C1 = hidden_CH.new_full((rows, 1), float("-inf"), dtype=summed_in(hidden_CH))
    sum_C1 = torch.zeros_like(top_C1)
    expected_CH = torch.zeros_like(hidden_CH, dtype=top_C1.dtype) if with_expected else None
    of_targets_M = top_C1.new_empty(len(targets_M))
    memory = top_C1.new_empty(rows * min(COLUMNS, weight_VH.shape[0])) if _is_plain(hidden_CH, weight_VH) else None
    for start in range(0, weight_VH.shape[0], COLUMNS):
        weight_DH = cast_for_product(weight_VH[start : start + COLUMNS], product_dtype(hidden_CH))
        bias_D = None if bias_V is None else bias_V[start : start + COLUMNS]
        scores_CD = _logits(hidden_CH, weight_DH, bias_D, memory)
        here = ((targets_M >= start) & (targets_M < start + len(weight_DH))).nonzero()[:, 0]
        of_targets_M[here] = scores_CD[row_of_M[here], targets_M[here] - start].to(of_targets_M.dtype)
        new_top_C1, new_sum_C1 = _exponentiate(scores_CD, top_C1)
        scale_C1 = (top_C1 - new_top_C1).exp_()
        top_C1 = new_top_C1
        sum_C1.mul_(scale_C1).add_(new_sum_C1)
        if expected_CH is not None:
            expected_CH.mul_(scale_C1)
            if memory is None:
                expected_CH.add_(scores_CD @ weight_DH)
            else:
                expected_CH.addmm_(scores_CD, weight_DH)
    if expected_CH is not None:
        expected_CH.div_(sum_C1)
    return of_targets_M, (top_C1 + sum_C1.log())[:, 0], expected_CH


def _is_plain(hidden_CH: Tensor, weight_VH: Tensor) -> bool:
    alike = weight_VH.dtype == hidden_CH.dtype == summed_in(hidden_CH)
    return alike and not torch.is_autocast_enabled(hidden_CH.device.type)


def _logits(hidden_CH: Tensor, weight_DH: Tensor, bias_D: Tensor | None, memory: Tensor | None) -> Tensor:
    """Logits [C, D]; in given memory, where there is some: fresh memory costs as much as a pass."""
    if memory is None:
        return F.linear(hidden_CH, weight_DH, bias_D)
    scores_CD = memory[: hidden_CH.shape[0] * weight_DH.shape[0]].view(hidden_CH.shape[0], -1)
    torch.mm(hidden_CH, weight_DH.t(), out=scores_CD)
    return scores_CD if bias_D is None else scores_CD.add_(bias_D)


def _exponentiate(scores_CD: Tensor, top_C1: Tensor) -> tuple[Tensor, Tensor]:
    """exp(scores - the largest, of `top_C1` too), in place; returns the largest and the sum of every row, [C, 1].

    Scores of 16 bits are widened to the precision of the sums meanwhile. On a CPU a few rows at a time, so that the passes
    find them in the processor's cache: twice as fast.
    """
    if passes.takes(scores_CD, top_C1):
        return passes.exponentiate(scores_CD, top_C1)
    tops, sums = [], []
    on_cpu = scores_CD.device.type == "cpu"
    rows = max(1, CACHE_BYTES // (4 * scores_CD.shape[1])) if on_cpu else scores_CD.shape[0]
    for scores_RD, before_R1 in zip(scores_CD.split(rows), top_C1.split(rows), strict=True):
        wide_RD = scores_RD.to(top_C1.dtype)
        top_R1 = torch.maximum(before_R1, wide_RD.amax(dim=1, keepdim=True))
        sums.append(wide_RD.sub_(top_R1).exp_().sum(dim=1, keepdim=True))
        tops.append(top_R1)
        if wide_RD is not scores_RD:
            scores_RD.copy_(wide_RD)
    return torch.cat(tops), torch.cat(sums)


@contextmanager
def _backbone_replaced(model: nn.Module, stand_in: nn.Module) -> Iterator[None]:
    """The model with its backbone swapped for `stand_in`, so that its own forward runs only what follows it."""
    backbone = backbone_of(model)
    # of models that see pictures too it stands deeper
    name, child = next(
        (name, child) for name, child in model.named_children() if any(part is backbone for part in child.modules())
    )
    model._modules[name] = stand_in
    try:
        yield
    finally:
        model._modules[name] = child
