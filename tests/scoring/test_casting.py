"""Weights cast for the moment of a product."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from luthier.scoring.fused.casting import cast_for_product


def test_a_weight_of_the_right_precision_is_itself() -> None:
    weight = torch.randn(3, 4)
    assert cast_for_product(weight, torch.float32) is weight


def test_one_piece_of_memory_serves_weights_of_every_shape() -> None:
    first, second = torch.randn(30, 40), torch.nn.Parameter(torch.randn(5, 7), requires_grad=False)
    cast = cast_for_product(first, torch.bfloat16)
    place = cast.data_ptr()
    assert torch.equal(cast, first.bfloat16())
    cast = cast_for_product(second, torch.bfloat16)
    assert torch.equal(cast, second.bfloat16()) and cast.data_ptr() == place and not cast.requires_grad
    assert torch.equal(cast_for_product(first[:, :20], torch.bfloat16), first[:, :20].bfloat16())
    half = cast_for_product(first, torch.float16)
    assert half.data_ptr() != place and torch.equal(half, first.half())
    larger = torch.randn(60, 40)
    assert torch.equal(cast_for_product(larger, torch.bfloat16), larger.bfloat16())


def test_threads_do_not_share_it() -> None:
    weights = [torch.full((200, 200), float(number)) for number in range(4)]

    def same(weight: Tensor) -> bool:
        return all(torch.equal(cast_for_product(weight, torch.bfloat16).float(), weight) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, weights))


def test_memory_made_while_answering_serves_training() -> None:
    weight = torch.randn(300, 400)  # larger than what the other tests ask for
    with torch.inference_mode():
        cast_for_product(weight, torch.bfloat16)
    x = torch.randn(2, 400).bfloat16().requires_grad_()
    torch.nn.functional.linear(x, cast_for_product(weight, torch.bfloat16)).sum().backward()
    assert x.grad is not None


def test_a_planners_tensors_leave_nothing_behind() -> None:
    with FakeTensorMode():
        fake = torch.empty(500, 500)
        assert cast_for_product(fake, torch.bfloat16).dtype == torch.bfloat16
    weight = torch.randn(500, 500)
    assert torch.equal(cast_for_product(weight, torch.bfloat16), weight.bfloat16())
