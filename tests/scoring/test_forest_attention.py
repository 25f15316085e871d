"""Attention of a forest in parts = one dense masked attention, written out, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import luthier.scoring.attention as attention
from luthier.data.batch import Segment
from luthier.scoring.attention import Layout, segmented_attention
from luthier.scoring.forest_attention import ForestAttention, Part, Parts

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


def parts_of(layout: Layout) -> tuple[Parts, Parts]:
    assert layout.parts is not None
    return layout.parts


def tensors(length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, length, heads, WIDTH, dtype=torch.float64, generator=generator).transpose(1, 2).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 13), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.integers(2, 12),
    st.none() | st.lists(st.booleans(), min_size=78, max_size=78),
    st.booleans(),
)
def test_parts_equal_one_dense_attention(
    lengths: list[int], climbs: list[int], halved_from: int, read: list[bool] | None, masks: bool
) -> None:
    """Of all rows or of some, in parts of the kernel or, as for rows that lie scattered, by masks."""
    segments = laid_depth_first(lengths, climbs[: len(lengths)])
    rows_U = torch.arange(sum(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "HALVED_FROM", halved_from)
        patch.setattr(attention, "HALVED_WITH_THREADS", halved_from)
        patch.setattr(attention, "WORTH_A_RUN", 1e9 if masks else 1)
        layout = Layout.of(segments)
        if read is not None:
            rows_U = rows_U[torch.tensor([True, *read])[: sum(lengths)]]
            of_last = Layout.of(segments, rows_U).last
            assert of_last is not None
            layout = of_last
    assert layout.parts or (masks and read is not None)
    inputs = tensors(sum(lengths))
    asked = inputs[0].index_select(2, rows_U)
    got, _ = segmented_attention(nn.Identity(), asked, *inputs[1:], None, segments=layout)
    expected = dense(*inputs, segments).index_select(1, rows_U)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view(got.shape)
    own = torch.autograd.grad((got * weights).sum(), inputs)
    for gradient, reference in zip(own, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        assert torch.allclose(gradient, reference, rtol=1e-11, atol=1e-12)


def test_its_gradient_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "HALVED_FROM", 4)
    monkeypatch.setattr(attention, "HALVED_WITH_THREADS", 4)
    parts = parts_of(Layout.of((Segment(0, 5), Segment(5, 7, 0), Segment(7, 9, 0))))
    assert torch.autograd.gradcheck(lambda *inputs: ForestAttention.apply(*inputs, *parts, 0.7), tensors(9))


def test_a_long_segment_is_computed_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """[0, 9) from 4 tokens on: 4 + 1 + 4, each four as 2 + 2; what is alike in both fours goes through one call."""
    monkeypatch.setattr(attention, "HALVED_FROM", 4)
    parts = parts_of(Layout.of((Segment(0, 9), Segment(9, 10, 0))))[0].parts
    fours = {"blocks": 2, "step": 5, "key_step": 5}
    triangles = [Part(start, 2, start, 2, causal=True, **fours) for start in (0, 2)]
    with_first_halves = [Part(2, 2, 0, 2, **fours), Part(4, 5, 0, 5)]
    assert list(parts) == [*triangles, Part(9, 1, 9, 1, causal=True), *with_first_halves, Part(9, 1, 0, 9)]
    computed = sum(part.blocks * part.rows * part.keys for part in parts)
    assert computed == 59, "of 81 + 1 + 9: what is masked whole is left out"


def test_an_even_rectangle_is_computed_in_two_blocks() -> None:
    """Of the queries; both see the same keys, whose gradient is the sum of theirs."""
    parts = parts_of(Layout.of((Segment(0, 3), Segment(3, 9, 0), Segment(9, 13, 0))))
    assert parts[1].parts[-1] == Part(3, 5, 0, 3, blocks=2, step=5)
    assert torch.autograd.gradcheck(lambda *inputs: ForestAttention.apply(*inputs, *parts, 0.7), tensors(13))


def test_with_several_threads_shorter_segments_are_halved_in_backward() -> None:
    before = torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            layouts = [parts_of(Layout.of((Segment(0, length),))) for length in (127, 128, 383, 384)]
            found[threads] = [[len(parts.parts) for parts in layout] for layout in layouts]
    finally:
        torch.set_num_threads(before)
    assert found == {1: [[1, 1], [1, 1], [1, 1], [2, 2]], 2: [[1, 1], [1, 2], [1, 2], [2, 2]]}


def test_rows_that_lie_scattered_are_worth_no_parts() -> None:
    """Twelve of 24, one by one: 12 runs for one segment, of which 1 + 12 / 8 are worth their calls."""
    scattered = Layout.of((Segment(0, 24),), torch.arange(0, 24, 2)).last
    together = Layout.of((Segment(0, 24),), torch.arange(12, 24)).last
    assert scattered is not None and together is not None
    assert scattered.parts is None
    for parts in parts_of(together):
        assert list(parts.parts) == [Part(0, 12, 12, 12, causal=True), Part(0, 6, 0, 12, blocks=2, step=6)]
        assert not len(parts.bare_rows) and parts.bare_keys.tolist() == list(range(12))


def test_a_window_that_cuts_nothing_off_leaves_the_kernel_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tokens and two below them, twice: no token has eight before it, though the row has 16."""
    segments = (Segment(0, 6), Segment(6, 8, 0), Segment(8, 14), Segment(14, 16, 2))
    inputs = tensors(16)
    calls: list[object] = []
    own = ForestAttention.apply
    monkeypatch.setattr(ForestAttention, "apply", lambda *arguments: calls.append(1) or own(*arguments))
    found = {}
    for window in (8, 7):
        calls.clear()
        found[window], _ = segmented_attention(
            nn.Identity(), *inputs, None, segments=Layout.of(segments), sliding_window=window
        )
        assert bool(calls) == (window == 8)
    assert torch.allclose(found[8], dense(*inputs, segments), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found[7], found[8])
