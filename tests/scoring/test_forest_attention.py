"""Attention of a forest in parts = one dense masked attention, written out, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import luthier.scoring.attention as attention
from luthier.data.batch import Segment
from luthier.scoring.attention import Layout
from luthier.scoring.forest_attention import ForestAttention, Part

HEADS, KEY_HEADS, WIDTH = 4, 2, 3


def laid_depth_first(lengths: list[int], climbs: list[int]) -> tuple[Segment, ...]:
    """Each segment below the one before, or below an ancestor of it that many steps up; a root where none is left."""
    segments: list[Segment] = []
    path: list[int] = []
    start = 0
    for index, (length, climb) in enumerate(zip(lengths, climbs, strict=True)):
        path = path[: max(0, len(path) - climb)]
        segments.append(Segment(start, start + length, path[-1] if path else None))
        path.append(index)
        start += length
    return tuple(segments)


def dense(query: Tensor, key: Tensor, value: Tensor, segments: tuple[Segment, ...]) -> Tensor:
    """[1, T, H, D]: softmax(q k / sqrt(D)) v over the tokens of the segment so far and of all its ancestors."""
    length = query.shape[2]
    seen_TT = torch.zeros(length, length, dtype=torch.bool)
    for index, segment in enumerate(segments):
        seen_TT[segment.start : segment.end, segment.start : segment.end] = True
        above = segments[index].parent
        while above is not None:
            seen_TT[segment.start : segment.end, segments[above].start : segments[above].end] = True
            above = segments[above].parent
    seen_TT &= torch.ones(length, length, dtype=torch.bool).tril()
    groups = HEADS // KEY_HEADS
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores_HTT = (query @ key.transpose(-1, -2) * WIDTH**-0.5).masked_fill(~seen_TT, -torch.inf)
    return (torch.softmax(scores_HTT, dim=-1) @ value).transpose(1, 2)


def tensors(length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, length, heads, WIDTH, dtype=torch.float64, generator=generator).transpose(1, 2).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 13), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.integers(2, 12),
)
def test_parts_equal_one_dense_attention(lengths: list[int], climbs: list[int], halved_from: int) -> None:
    segments = laid_depth_first(lengths, climbs[: len(lengths)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "HALVED_FROM", halved_from)
        parts = Layout.of(segments).parts
    inputs = tensors(sum(lengths))
    got, expected = ForestAttention.apply(*inputs, parts, WIDTH**-0.5), dense(*inputs, segments)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view(got.shape)
    own = torch.autograd.grad((got * weights).sum(), inputs)
    for gradient, reference in zip(own, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        assert torch.allclose(gradient, reference, rtol=1e-11, atol=1e-12)


def test_its_gradient_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "HALVED_FROM", 4)
    parts = Layout.of((Segment(0, 5), Segment(5, 7, 0), Segment(7, 9, 0))).parts
    assert torch.autograd.gradcheck(lambda *inputs: ForestAttention.apply(*inputs, parts, 0.7), tensors(9))


def test_a_long_segment_is_computed_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """[0, 9) from 4 tokens on: 2 + 2 + 2 + 3 with themselves, each second half with the first, twice over."""
    monkeypatch.setattr(attention, "HALVED_FROM", 4)
    parts = Layout.of((Segment(0, 9), Segment(9, 10, 0))).parts
    triangles = [Part(0, 2, 0, 2), Part(2, 4, 2, 4), Part(4, 6, 4, 6), Part(6, 9, 6, 9), Part(9, 10, 9, 10)]
    squares = [Part(2, 4, 0, 2), Part(6, 9, 4, 6), Part(4, 9, 0, 4)]
    assert list(parts) == [*triangles, *squares, Part(9, 10, 0, 9)]
    pairs = sum((part.end - part.start) * (part.key_end - part.key_start) for part in parts)
    assert pairs == 81 + 1 + 9 - 2 * 2 - 2 * 3 - 4 * 5, "what is masked in whole is left out"
