"""A mixture's experts in a plan: the arithmetic is that of the experts that tokens go to, and timing them multiplies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from luthier.data.packing import pack
from luthier.planning.calibration import _arguments
from luthier.planning.grouped import (
    FALLBACK_BACKWARD,
    GROUPED_MM,
    even_offsets,
    grouped_flops,
    grouped_result,
    is_grouped,
)
from luthier.planning.step_trace import trace_batch
from luthier.planning.subject import Subject, traced_model
from luthier.planning.tracker import Operation, Shape
from tests.model.methods.families import family_model
from tests.planning.test_step_trace import CPU, prepared
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize(("method", "products"), [("full", 3), ("lora", 2)])
def test_experts_count_for_the_tokens_they_get(method: str, products: int, rows: Path, tmp_path: Path) -> None:
    """2 S K N for each of an expert's three matrices, S = T tokens but the last of each row x 2 experts: forward, for the
    input's gradient, and where the experts learn for their own; the first layer's input needs one there too."""
    model = family_model("mixtral")
    model.resize_token_embeddings(len(tiny_tokenizer()))
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    settings = (
        ["method.target_modules=[q_proj]"] if method == "lora" else []
    )  # else peft puts updates on the experts too
    setup = prepared(tmp_path / "model", rows, tmp_path, f"method={method}", *settings)
    planned = traced_model(Subject.of(setup), CPU)
    batch = pack(setup.data.train[:4])
    trace = trace_batch(planned.scorer, setup.stage, batch, further=False)
    counted = sum(operation.calls * operation.flops for operation in trace.operations if is_grouped(operation.function))
    config = model.config
    one = 2 * (2 * (len(batch.input_ids_T) - 4)) * 3 * config.hidden_size * config.intermediate_size
    assert counted == products * config.num_hidden_layers * one


@pytest.mark.parametrize(
    ("left", "right", "flops", "ends"),
    [
        ((12, 8), (3, 8, 4), 2 * 12 * 8 * 4, [4, 8, 12]),
        ((8, 12), (12, 4), 2 * 12 * 8 * 4, [4, 8, 12]),
        ((3, 4, 8), (8, 12), 2 * 12 * 8 * 4, [4, 8, 12]),
        ((3, 4, 8), (3, 8, 4), 2 * 12 * 8 * 4, None),
    ],
)
def test_each_form_of_the_product(
    left: tuple[int, ...], right: tuple[int, ...], flops: int, ends: list[int] | None
) -> None:
    first, second = torch.ones(left), torch.ones(right)
    assert grouped_flops(GROUPED_MM, first, second) == flops
    offsets = even_offsets(first, second, 3) if ends is not None else None
    assert grouped_result(first, second, 3).shape == GROUPED_MM(first, second, offsets).shape
    if ends is not None:
        assert even_offsets(first, second, 3).tolist() == ends


def test_the_fallback_makes_two_products_backward() -> None:
    transformers.integrations.moe  # noqa: B018 - its operators are there once it was imported
    backward: Any = getattr(torch.ops.transformers, FALLBACK_BACKWARD.partition(".")[2]).default
    assert grouped_flops(backward, torch.ones(12, 8), torch.ones(3, 8, 4)) == 2 * (2 * 12 * 8 * 4)


def test_what_is_timed_multiplies_every_row() -> None:
    def shape(*size: int, dtype: torch.dtype = torch.float32) -> Shape:
        return Shape(size, torch.empty(size).stride(), dtype)

    offsets = shape(3, dtype=torch.int32)
    for arguments, named in (
        ((shape(12, 16), shape(3, 16, 16), offsets), ()),
        ((shape(12, 16), shape(3, 16, 16)), (("offs", offsets),)),
    ):
        given, by_name = _arguments(Operation(GROUPED_MM, arguments, named, 0, 0))
        result: Tensor = GROUPED_MM(*given, **by_name)
        assert (result > 0).all()  # all numbers are positive
