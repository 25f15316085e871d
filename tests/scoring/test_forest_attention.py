"""Attention of a forest in parts = one dense masked attention, written out, in values and gradients."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luthier.data.batch import Segment
from luthier.scoring import forest_parts
from luthier.scoring.attention import Layout, segmented_attention
from luthier.scoring.compiled import compiler
from luthier.scoring.forest_attention import ForestAttention
from luthier.scoring.forest_parts import Decomposition, Part

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


def taken_apart(*segments: Segment) -> Decomposition:
    found = Decomposition.of(segments)
    assert found is not None
    return found


def tensors(length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(1, length, heads, WIDTH, dtype=torch.float64, generator=generator).transpose(1, 2).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 13), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=6, max_size=6),
    st.tuples(st.integers(2, 12), st.integers(2, 12)),
    st.none() | st.lists(st.booleans(), min_size=78, max_size=78),
    st.booleans(),
    st.booleans(),
)
def test_parts_equal_one_dense_attention(
    lengths: list[int],
    climbs: list[int],
    halved_from: tuple[int, int],
    read: list[bool] | None,
    masks: bool,
    dealt: bool,
) -> None:
    """Of all rows or of some, in parts of the kernel, in backward perhaps in others, or, as for rows that lie scattered, by
    masks."""
    segments = laid_depth_first(lengths, climbs[: len(lengths)])
    rows_U = torch.arange(sum(lengths))
    inputs = tensors(sum(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forest_parts, "HALVED_FROM", halved_from[0])
        patch.setattr(forest_parts, "HALVED_FOR_THREADS_FROM", halved_from[1])
        patch.setattr(Decomposition, "backward", lambda self, key_heads: self.dealt if dealt else self.fewest)
        patch.setattr(forest_parts, "WORTH_A_RUN", 1e9 if masks else 1)
        layout = Layout.of(segments)
        if read is not None:
            rows_U = rows_U[torch.tensor([True, *read])[: sum(lengths)]]
            of_last = Layout.of(segments, rows_U).last
            assert of_last is not None
            layout = of_last
        assert layout.decomposition or (masks and read is not None)
        asked = inputs[0].index_select(2, rows_U)
        got, _ = segmented_attention(nn.Identity(), asked, *inputs[1:], None, segments=layout)
    expected = dense(*inputs, segments).index_select(1, rows_U)
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view(got.shape)
    own = torch.autograd.grad((got * weights).sum(), inputs)
    for gradient, reference in zip(own, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        assert torch.allclose(gradient, reference, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "error", "compiled"),
    [(torch.float32, 1e-5, False), (torch.bfloat16, 3e-2, False), (torch.bfloat16, 3e-2, True)],
)
def test_long_segments_with_threads(dtype: torch.dtype, error: float, compiled: bool) -> None:
    """At the lengths where runs are halved, odd ones too, by the kernel's own blocks of 32 and 64 rows; backward of 16 bits
    perhaps by compiled kernels."""
    segments = (Segment(0, 30), Segment(30, 187, 0), Segment(187, 574, 0), Segment(574, 702))
    inputs = [part.detach().to(dtype).requires_grad_() for part in tensors(702)]
    exact = [part.detach().double().requires_grad_() for part in inputs]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        apart = taken_apart(*segments)
        assert apart.backward(KEY_HEADS) is apart.dealt
        with contextlib.nullcontext() if compiled else compiler.switched_off():
            got, _ = segmented_attention(nn.Identity(), *inputs, None, segments=Layout.of(segments))
            weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view(got.shape)
            own = torch.autograd.grad((got * weights.to(dtype)).sum(), inputs)
    finally:
        torch.set_num_threads(before)
    expected = dense(*exact, segments)
    references = torch.autograd.grad((expected * weights.to(dtype).double()).sum(), exact)
    for value, reference in zip((got, *own), (expected, *references), strict=True):
        assert (value.double() - reference).norm() < error * reference.norm()


@pytest.mark.parametrize("way", ["fewest", "dealt"])
def test_its_gradient_passes_gradcheck(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest_parts, "HALVED_FROM", 4)
    monkeypatch.setattr(forest_parts, "HALVED_FOR_THREADS_FROM", 3)
    apart = taken_apart(Segment(0, 5), Segment(5, 7, 0), Segment(7, 9, 0))
    parts = apart.fewest, getattr(apart, way)
    assert torch.autograd.gradcheck(lambda *inputs: ForestAttention.apply(*inputs, *parts, 0.7), tensors(9))


def test_a_long_segment_is_computed_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """[0, 9) from 4 tokens on: 4 + 1 + 4, each four as 2 + 2; what is alike in both fours goes through one call."""
    monkeypatch.setattr(forest_parts, "HALVED_FROM", 4)
    found = taken_apart(Segment(0, 9), Segment(9, 10, 0)).fewest
    fours = {"blocks": 2, "step": 5, "key_step": 5}
    triangles = [Part(start, 2, start, 2, causal=True, **fours) for start in (0, 2)]
    with_first_halves = [Part(2, 2, 0, 2, **fours), Part(4, 5, 0, 5)]
    expected = [*triangles, Part(9, 1, 9, 1, causal=True), *with_first_halves, Part(9, 1, 0, 9)]
    assert sorted(found.parts, key=repr) == sorted(expected, key=repr)
    assert [part.causal for part in found.parts] == [True] * 3 + [False] * 3
    assert found.bare_rows.tolist() == found.bare_keys.tolist() == [4]
    computed = sum(part.blocks * part.rows * part.keys for part in found.parts)
    assert computed == 59, "of 81 + 1 + 9: what is masked whole is left out"


def test_threads_that_get_unequal_heads_get_two_blocks() -> None:
    """In backward, from 128 tokens on, rectangles too where they can be split; three heads on two threads, or two on four, but not
    three on four, where each thread has one either way."""
    counts = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            apart = taken_apart(Segment(0, 200), Segment(200, 280, 0))
            counts[threads] = [[part.blocks for part in apart.backward(heads).parts] for heads in (2, 3)]
    finally:
        torch.set_num_threads(before)
    one, two = [1, 1, 1], [2, 1, 2, 2]
    assert counts == {1: [one, one], 2: [one, two], 4: [two, one]}
    even = taken_apart(Segment(0, 200), Segment(200, 280, 0)).dealt
    assert Part(200, 40, 0, 200, blocks=2, step=40) in even.parts


def test_rows_that_lie_scattered_are_worth_no_parts() -> None:
    """Twelve of 24, one by one: 12 runs for one segment, of which 1 + 12 / 8 are worth their calls."""
    scattered = Layout.of((Segment(0, 24),), torch.arange(0, 24, 2)).last
    together = Layout.of((Segment(0, 24),), torch.arange(12, 24)).last
    assert scattered is not None and together is not None
    assert scattered.decomposition is None and together.decomposition is not None
    found = together.decomposition.fewest
    assert list(found.parts) == [Part(0, 12, 12, 12, causal=True), Part(0, 12, 0, 12)]
    assert not len(found.bare_rows) and found.bare_keys.tolist() == list(range(12))


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
