"""Compiled kernels = the mathematics written out in float64, and torch's own operations; and when they are not used."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from luthier.data.batch import Segment
from luthier.data.packing import pack
from luthier.scoring.attention import Layout, segmented_attention
from luthier.scoring.compiled import compiler, passes, tiles, torch_library
from luthier.scoring.compiled.forest import CompiledForestAttention, gradients_of, takes
from luthier.scoring.compiled.tiles import numbers_of, tiles_of
from luthier.scoring.fused.norm import RootMeanSquareNorm
from luthier.scoring.fused.rotary import Rotation
from luthier.scoring.scorer import Scorer
from tests.scoring.test_forest_attention import HEADS, KEY_HEADS, WIDTH, dense, laid_depth_first, tensors
from tests.scoring.test_fused import gradients, lora_model, random_examples, relative

# a kernel that computes something else, or that numba no longer takes, is no reason
here = pytest.mark.skipif(compiler.made_by() == "nothing", reason="no numba, or a torch that does not show its threads")


@here
def test_kernels_work_here() -> None:
    assert compiler.missing() is None


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def forests() -> st.SearchStrategy[tuple[Segment, ...]]:
    climbs = st.lists(st.integers(0, 3), min_size=6, max_size=6)
    lengths = st.lists(st.integers(1, 13), min_size=1, max_size=6)
    return st.builds(lambda lengths, climbs: laid_depth_first(lengths, climbs[: len(lengths)]), lengths, climbs)


read = st.none() | st.lists(st.booleans(), min_size=78, max_size=78)


def rows_of(segments: tuple[Segment, ...], chosen: list[bool] | None) -> list[int]:
    """The first row, and those of the others that are chosen; all without a choice."""
    rows = range(segments[-1].end)
    return [row for row in rows if chosen is None or row == 0 or chosen[row]]


@here
@settings(max_examples=100, deadline=None)
@given(forests(), read, st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_attention_equals_the_dense_one(
    segments: tuple[Segment, ...], chosen: list[bool] | None, stacked: int, count: int
) -> None:
    """Of all rows or of some, in tiles of one, two or four rows of both heads of a group, by one to three threads."""
    rows_U = torch.tensor(rows_of(segments, chosen))
    inputs = tensors(segments[-1].end)
    narrow = [part.detach().float().requires_grad_() for part in inputs]
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "STACKED", 2 * stacked)
        patch.setattr(tiles, "FEWEST", 1)
        tiles_of.cache_clear()
        try:
            torch.set_num_threads(count)
            layout = Layout.of(segments) if chosen is None else Layout.of(segments, rows_U).last
            assert layout is not None
            query = narrow[0].index_select(2, rows_U)
            got, _ = segmented_attention(nn.Identity(), query, *narrow[1:], None, segments=layout)
            assert type(got.grad_fn).__name__ == "CompiledForestAttentionBackward"
            weights = torch.linspace(-1, 1, got.numel()).view(got.shape)
            own = torch.autograd.grad((got * weights).sum(), narrow)
        finally:
            torch.set_num_threads(before)
            tiles_of.cache_clear()
    expected = dense(*inputs, segments).index_select(1, rows_U)
    assert torch.allclose(got.double(), expected, rtol=1e-5, atol=1e-6)
    for gradient, reference in zip(own, torch.autograd.grad((expected * weights.double()).sum(), inputs), strict=True):
        assert torch.allclose(gradient.double(), reference, rtol=1e-4, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(forests(), read, st.integers(1, 3), st.integers(1, 3))
def test_tiles_see_each_pair_of_row_and_key_once(
    segments: tuple[Segment, ...], chosen: list[bool] | None, key_heads: int, count: int
) -> None:
    rows = rows_of(segments, chosen)
    numbers = numbers_of(segments, None if chosen is None else rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "STACKED", 4)
        patch.setattr(tiles, "FEWEST", 1)
        tiles_of.cache_clear()
        found = tiles_of(numbers, key_heads, 2, count)
        tiles_of.cache_clear()
    seen = np.zeros((key_heads, len(rows), segments[-1].end), int)
    for head, first, high, low, end, key, slot in found.tiles:
        assert found.head_of_slot[slot] == head
        for row in range(first, first + high):
            for start, stop in found.ranges[low:end]:
                seen[head, row, start:stop] += 1
            seen[head, row, key : found.position_U[row] + 1] += 1
    expected = np.zeros((len(rows), segments[-1].end), int)
    for place, row in enumerate(rows):
        index: int | None = next(index for index, segment in enumerate(segments) if row < segment.end)
        expected[place, segments[index or 0].start : row + 1] = 1
        while (index := segments[index or 0].parent) is not None:
            expected[place, segments[index].start : segments[index].end] = 1
    assert (seen == expected).all()
    assert len(found.shares) == count + 1 and found.shares[-1] == len(found.tiles)
    # no two shares write into one slot
    used = [{*found.tiles[low:high, 6].tolist()} for low, high in itertools.pairwise(found.shares)]
    assert sum(map(len, used)) == len(set().union(*used)) == len(found.head_of_slot) < key_heads + count


def test_shares_are_about_equal() -> None:
    """Of rows of unlike length, three key heads, two threads: neither gets more than a twentieth above the other."""
    segments = [Segment(0, 24)]
    for length in (150, 90, 330, 210):
        segments.append(Segment(segments[-1].end, segments[-1].end + length, 0))
    found = tiles_of(numbers_of(segments), 3, 3, 2)
    work = [0, 0]
    for share, (low, high) in enumerate(itertools.pairwise(found.shares)):
        for _, first, rows, begin, end, key, _ in found.tiles[low:high]:
            keys = sum(stop - start for start, stop in found.ranges[begin:end])
            work[share] += rows * (keys + found.position_U[first + rows - 1] + 1 - key + tiles.BESIDE)
    assert max(work) < 1.05 * min(work)


@here
@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 4, 16), (8, 1, 32)])
def test_long_rows(heads: tuple[int, int, int], threads: Callable[[int], None]) -> None:
    """Longer than the keys that are taken at once; the same bits each time, whichever core is faster."""
    query_heads, key_heads, width = heads
    segments = (Segment(0, 30), Segment(30, 187, 0), Segment(187, 774, 0), Segment(774, 902))
    generator = torch.Generator().manual_seed(0)
    exact = [
        torch.randn(1, 902, count, width, dtype=torch.float64, generator=generator).transpose(1, 2).requires_grad_()
        for count in (query_heads, key_heads, key_heads)
    ]
    layout = Layout.of(segments)
    expected = by_segments(exact, layout)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    references = torch.autograd.grad((expected * weights).sum(), exact)
    inputs = [part.detach().float().requires_grad_() for part in exact]
    first: list[Tensor] = []
    for count in (1, 2, 3, 3):
        threads(count)
        got = CompiledForestAttention.apply(*inputs, layout.numbers, width**-0.5)
        found = [got, *torch.autograd.grad((got * weights.float()).sum(), inputs)]
        for value, reference in zip(found, (expected, *references), strict=True):
            assert (value.double() - reference).norm() < 1e-6 * reference.norm()
        if count == 3 and first:
            assert all(torch.equal(one, other) for one, other in zip(found, first, strict=True))
        first = found if count == 3 else []


def by_segments(inputs: list[Tensor], layout: Layout) -> Tensor:
    """Segment by segment through sdpa, in the inputs' precision."""
    from luthier.scoring.attention import _by_segments

    query, key, value = inputs
    return _by_segments(query, key, value, layout, None, 0.0, None)


@here
def test_what_is_no_number_stays_so() -> None:
    """A NaN in one query reaches its own row and no other; in a key, every row that sees it."""
    layout = Layout.of((Segment(0, 6),))
    for place, rows in (("query", [2]), ("key", [2, 3, 4, 5])):
        inputs = dict(zip(("query", "key", "value"), (part.detach().float() for part in tensors(6)), strict=True))
        inputs[place][0, :, 2] = torch.nan
        got, _ = segmented_attention(nn.Identity(), *inputs.values(), None, segments=layout)
        assert got[0].isnan().flatten(1).any(1).nonzero()[:, 0].tolist() == rows


@here
def test_extreme_scores_are_no_more_than_certain() -> None:
    """Scores of thousands: each row takes the one value whose score is largest."""
    query, key, value = (part.detach().float() for part in tensors(5))
    query, key = query * 1e3, key * 1e3
    got, _ = segmented_attention(nn.Identity(), query, key, value, None, segments=Layout.of((Segment(0, 5),)))
    assert torch.allclose(
        got.double(), dense(query.double(), key.double(), value.double(), (Segment(0, 5),)), atol=1e-5
    )


@here
@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_gated_product(count: int, threads: Callable[[int], None]) -> None:
    """y = silu(g) u, its gradients written out, for small and for very large numbers."""
    threads(count)
    generator = torch.Generator().manual_seed(0)
    gate, up, gradient = (4 * torch.randn(37, 19, generator=generator) for _ in range(3))
    gate[0, :4] = torch.tensor([1e4, -1e4, 100.0, -100.0])
    wide_gate, wide_up, wide_gradient = gate.double(), up.double(), gradient.double()
    sigmoid = wide_gate.sigmoid()
    silu = wide_gate * sigmoid
    assert passes.takes(gate, up)
    assert torch.allclose(passes.gated(gate, up).double(), silu * wide_up, rtol=1e-6, atol=1e-20)
    inner, of_gate = passes.gated_backward(gate, up, gradient)
    assert torch.allclose(inner.double(), silu * wide_up, rtol=1e-6, atol=1e-20)
    assert torch.allclose(gradient.double(), wide_gradient * silu, rtol=1e-6, atol=1e-20)
    expected = wide_gradient * wide_up * (sigmoid + silu * (1 - sigmoid))
    assert torch.allclose(of_gate.double(), expected, rtol=1e-5, atol=1e-6)


@here
@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_norm_and_its_gradients(count: int, threads: Callable[[int], None]) -> None:
    threads(count)
    generator = torch.Generator().manual_seed(0)
    x, weight, gradient = (torch.randn(*size, generator=generator) for size in ((23, 40), (40,), (23, 40)))
    found, expected = [], []
    for into, kind in ((found, torch.float32), (expected, torch.float64)):
        rows, scale = x.to(kind).requires_grad_(), weight.to(kind).requires_grad_()
        y = RootMeanSquareNorm.apply(rows, scale, 1e-5)
        into += [y, *torch.autograd.grad(y, (rows, scale), gradient.to(kind))]
    for value, reference in zip(found, expected, strict=True):
        assert torch.allclose(value.double(), reference, rtol=1e-5, atol=1e-6)


@here
@pytest.mark.parametrize(("transposed", "count"), [(True, 1), (False, 1), (True, 3), (False, 9)])
def test_turned_heads(transposed: bool, count: int, threads: Callable[[int], None]) -> None:
    """Heads that lie row by row and head by head, there and back."""
    threads(count)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 7, 3, 8) if transposed else (1, 3, 7, 8)
    x, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    cos, sin = (torch.randn(1, 7, 8, generator=generator) for _ in range(2))
    found, expected = [], []
    for into, kind in ((found, torch.float32), (expected, torch.float64)):
        heads = x.to(kind).requires_grad_()
        given = heads.transpose(1, 2) if transposed else heads
        turned = Rotation.apply(given, cos.to(kind), sin.to(kind))
        into += [
            turned,
            *torch.autograd.grad(
                turned, heads, gradient.to(kind).view(x.shape).transpose(1, 2) if transposed else gradient.to(kind)
            ),
        ]
    for value, reference in zip(found, expected, strict=True):
        assert value.shape == reference.shape
        assert torch.allclose(value.double(), reference, rtol=1e-5, atol=1e-6)


@here
@pytest.mark.parametrize("count", [1, 3, 40])
def test_exponentials_beside_the_largest_so_far(count: int, threads: Callable[[int], None]) -> None:
    threads(count)
    generator = torch.Generator().manual_seed(0)
    scores = 30 * torch.randn(9, 1300, generator=generator)
    before = torch.full((9, 1), -torch.inf)
    before[3], before[4] = 500.0, -500.0
    wide = scores.double()
    top = torch.maximum(wide.amax(dim=1, keepdim=True), before.double())
    largest, sums = passes.exponentiate(scores, before)
    assert torch.equal(largest.double(), top)
    assert torch.allclose(scores.double(), (wide - top).exp(), rtol=1e-5, atol=1e-26)
    assert torch.allclose(sums.double(), (wide - top).exp().sum(dim=1, keepdim=True), rtol=1e-6, atol=1e-25)


@here
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_is_the_same_with_and_without(family: str) -> None:
    """Log-probabilities and gradients of LoRA, through all kernels and through none."""
    found = []
    for off in (False, True):
        scorer = Scorer(lora_model(family), "segmented", fused=True).train()
        batch = pack(random_examples([40, 31, 52]))
        with compiler.switched_off() if off else torch.profiler.profile() as profile:
            logp_N = scorer(batch).logp_N
            (logp_N * batch.weights_N).sum().backward()
        found.append((logp_N.detach(), gradients(scorer)))
        if not off:
            ran = {event.key.removeprefix("luthier::") for event in profile.key_averages() if "luthier::" in event.key}
    kinds = {"forest_attention", "gated", "norm", "forest_attention_backward", "gated_backward", "norm_backward"}
    assert ran == {*kinds, "turn", "exponentiate"}
    assert relative(found[0][0], found[1][0]) < 1e-6
    for name, gradient in found[0][1].items():
        assert relative(gradient, found[1][1][name]) < 1e-5, name


def test_other_precisions_and_layouts_go_to_torch() -> None:
    heads, angles = torch.randn(1, 2, 5, 4), torch.randn(1, 1, 4)
    assert not passes.takes_heads(heads, angles, angles), "angles of one row for all"
    assert not takes(heads.expand(3, 2, 5, 4)) and not takes(heads[:, :, :1].expand(1, 2, 5, 4))
    x = torch.randn(3, 4)
    assert not passes.takes(x.double()) and not passes.takes(x.bfloat16()) and not passes.takes(x.t())
    assert not passes.takes(torch.empty(3, 4, device="meta"))
    with compiler.switched_off():
        assert not passes.takes(x) and compiler.missing() == "they are switched off"


def reason() -> str | None:
    compiler._missing.cache_clear()
    try:
        return compiler._missing()
    finally:
        compiler._missing.cache_clear()


def test_why_they_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numba, with a torch that starts its threads otherwise, with a numpy that numba refuses, and where a kernel
    computes something else."""
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "find_spec", lambda name: None)
        assert reason() == "numba is not installed"
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "find_spec", importlib.util.find_spec)
        patch.setattr(compiler, "addresses", lambda: None)
        assert reason() == "this build of torch does not show its threads and products"
    if torch_library.addresses() is None:
        return

    def refuses() -> Any:
        raise ImportError("Numba needs NumPy 2.3 or less.")

    with monkeypatch.context() as patch:
        patch.setattr(compiler, "numba", refuses)
        assert reason() == "numba cannot make them: Numba needs NumPy 2.3 or less."
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: torch.ones(1, 2, 5, 4))
        assert reason() == compiler.WRONG


@here
@pytest.mark.parametrize("within", ["trace", "autocast", "float64"])
def test_the_trial_is_real_wherever_it_is_asked_for(within: str) -> None:
    """In a plan's trace, where tensors have no values, under autocast, and while transformers builds a model of another
    precision; else kernels would stay off in all that the process does after it."""
    compiler._missing.cache_clear()
    torch.set_default_dtype(torch.float64 if within == "float64" else torch.float32)
    try:
        with FakeTensorMode() if within == "trace" else torch.autocast("cpu", torch.bfloat16, within == "autocast"):
            assert compiler.missing() is None
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_people_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where numba is missing or fails, and nothing where nothing can be done."""

    def told(numba: object, works: bool = True) -> str | None:
        compiler._missing.cache_clear()
        monkeypatch.setattr(compiler, "find_spec", lambda name: numba)
        monkeypatch.setattr(compiler, "_works", lambda: works)
        return compiler.advice()

    monkeypatch.setattr(compiler, "addresses", dict)
    monkeypatch.setattr(compiler, "numba", lambda: None)
    monkeypatch.setattr(compiler, "_make_once", lambda: None)
    try:
        assert 'pip install "luthier[cpu]"' in (told(None) or "") and compiler.made_by() == "nothing"
        assert told(object()) is None
        assert told(object(), works=False) == f"{compiler.WRONG}, so torch's own operations are used"
        monkeypatch.setenv("LUTHIER_KERNELS", "off")
        assert told(object()) is None and compiler.made_by() == "nothing"
        assert compiler.missing() == "LUTHIER_KERNELS switches them off"
        assert not capsys.readouterr().err
    finally:
        compiler._missing.cache_clear()


BITS = """
import torch
from luthier.scoring.compiled import compiler, forest
assert compiler.missing() is None
generator = torch.Generator().manual_seed(0)
query, key, value = (3 * torch.randn(1, heads, 300, 16, generator=generator) for heads in (4, 2, 2))
output, sums = forest.attend(query, key, value, (1, 0, 300, -1), 0.25)
gradients = forest.gradients_of(query, query, key, value, output.transpose(1, 2), sums, (1, 0, 300, -1), 0.25)
print([part.double().sum().item().hex() for part in (output, sums, *gradients)])
"""


@here
def test_the_first_process_computes_the_same_bits_as_the_next(tmp_path: Path) -> None:
    """The one for which kernels are made, which says so, and one that finds them."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", BITS]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, env=environment, check=True) for _ in range(2)
    )
    assert first.stdout == second.stdout
    assert "made for this processor, once" in first.stderr and not second.stderr


def test_a_torch_without_a_function_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_library.NAMES, "luthier_sgemm", "no_such_function_")
    torch_library.addresses.cache_clear()
    try:
        assert torch_library.addresses() is None
    finally:
        monkeypatch.undo()
        torch_library.addresses.cache_clear()


@here
@pytest.mark.parametrize("trouble", ["no folder", "full disk"])
def test_a_kernel_is_made_where_its_code_cannot_be_kept(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the folder should be made, or the disk is full."""
    from numba.core import caching

    asked = []

    def full(*arguments: Any) -> None:
        asked.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "occupied").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / ("occupied" if trouble == "no folder" else "kernels")))
    numba = compiler.numba()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(compiler.machine_code()))
    monkeypatch.setattr(caching.Cache, "save_overload", full)
    compiler._is_kept.cache_clear()

    def write(numbers):  # type: ignore[no-untyped-def]
        numbers[0] = 7.0

    try:
        made = compiler.kernel(numba.types.CPointer(numba.types.float32))(write)
    finally:
        compiler._is_kept.cache_clear()
    memory = np.zeros(1, np.float32)
    compiler.launch(made, memory)
    assert memory[0] == 7.0 and bool(asked) == (trouble == "full disk")


@here
def test_without_numbas_compiler_torch_computes(tmp_path: Path) -> None:
    """NUMBA_DISABLE_JIT makes of each function what it was; no machine code is there from before."""
    code = "from luthier.scoring.compiled import compiler; print(compiler.missing())"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("numba cannot make them: ")


@here
def test_two_threads_of_python_may_attend_at_once(threads: Callable[[int], None]) -> None:
    """Each with a team of two."""
    threads(2)
    layout = Layout.of((Segment(0, 40),))
    inputs = [part.detach().float() for part in tensors(40)]
    expected, _ = segmented_attention(nn.Identity(), *inputs, None, segments=layout)
    found: list[Tensor] = []

    def attend() -> None:
        torch.set_num_threads(2)
        for _ in range(50):
            found.append(segmented_attention(nn.Identity(), *inputs, None, segments=layout)[0])

    workers = [threading.Thread(target=attend) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 100 and all(torch.equal(one, expected) for one in found)


def test_shapes_without_values() -> None:
    """What the plan's trace sees of them: heads and widths of the test's own."""
    query, key = torch.empty(1, HEADS, 6, WIDTH, device="meta"), torch.empty(1, KEY_HEADS, 6, WIDTH, device="meta")
    numbers = numbers_of([Segment(0, 6)])
    output, sums = torch.ops.luthier.forest_attention(query, key, key, numbers, 1.0)
    assert output.shape == (1, 6, HEADS, WIDTH) and sums.shape == (1, 6, HEADS)
    into = gradients_of(query, query, key, key, query, sums, numbers, 1.0)
    assert [part.shape[2] for part in into] == [HEADS, KEY_HEADS, KEY_HEADS]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        torch.ops.luthier.forest_attention(query, key, key, numbers, 1.0)
    # one tile of six rows, each with six keys
    assert counter.get_total_flops() == 4 * WIDTH * HEADS * 6 * 6
