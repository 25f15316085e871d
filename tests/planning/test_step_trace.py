"""What a traced batch says of memory and arithmetic, beside what the same batch takes for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import FlopCounterMode

from luthier.commands.setup import Setup, set_up
from luthier.config.loading import load
from luthier.data.packing import pack
from luthier.model.loading import weights_at
from luthier.planning.hardware import Device
from luthier.planning.step_trace import StepTrace, trace_batch
from luthier.planning.subject import Subject, traced_model
from luthier.scoring.scorer import Scorer
from tests.tiny import config_for

CPU = Device("processor", 2**34, has_bfloat16=False, kind="cpu")


def prepared(tiny_llama: Path, rows: Path, tmp_path: Path, *overrides: str) -> Setup:
    return set_up(load(config_for(tiny_llama, rows, tmp_path / "run"), overrides), say=lambda text: None)


def traced(setup: Setup, count: int = 4, further: bool = False) -> StepTrace:
    model = traced_model(Subject.of(setup), CPU)
    return trace_batch(model.scorer, setup.stage, pack(setup.data.train[:count]), further=further)


def real(setup: Setup) -> tuple[Scorer, Any]:
    model = weights_at(setup.source.base, torch.float32)
    tuned = setup.tune(model)
    if setup.config.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    scorer = Scorer(tuned, setup.config.model.attention)
    scorer.train()
    return scorer, pack(setup.data.train[:4])


@pytest.mark.parametrize("method", ["full", "lora", "ia3", "prompt_tuning", "freeze"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_saved_is_what_autograd_saves(
    method: str, checkpointing: str, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    settings = (f"method={method}", f"training.gradient_checkpointing={checkpointing}")
    setup = prepared(tiny_llama, rows, tmp_path, *settings)
    scorer, batch = real(setup)
    given = {t.untyped_storage().data_ptr() for t in [*scorer.parameters(), *scorer.buffers(), batch.input_ids_T]}
    given |= {
        getattr(batch, name).untyped_storage().data_ptr() for name in ("targets_N", "weights_N", "position_ids_T")
    }
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = setup.stage.loss(scorer(batch, setup.stage.readout), batch)
    found = traced(setup)
    expected = sum(kept.values())
    assert expected <= found.saved * 1.02 + 64
    if checkpointing == "false":  # checkpointed layers keep their inputs where these hooks don't see them
        # what holds no graph lives on too: the loss and its parts, positions and masks
        assert found.saved <= expected * 1.15 + 4096
    assert loss.item() > 0


def test_the_arithmetic_is_what_torch_counts(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    setup = prepared(tiny_llama, rows, tmp_path, "method=full")
    scorer, batch = real(setup)
    with FlopCounterMode(display=False) as counter:
        setup.stage.loss(scorer(batch, setup.stage.readout), batch).backward()
    assert traced(setup).flops == counter.get_total_flops()


def test_gradients_are_as_many_as_weights_and_come_twice_to_no_more(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    setup = prepared(tiny_llama, rows, tmp_path, "method=full")
    once, twice = traced(setup), traced(setup, further=True)
    assert once.gradients == twice.gradients == 4 * setup.count.total
    # with gradients of the batch before, all of them are there at the peak
    assert twice.gradients_at_peak == once.gradients
    assert once.peak < twice.peak <= once.peak + once.gradients


def test_checkpointing_saves_less_and_computes_more(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    plain = traced(prepared(tiny_llama, rows, tmp_path))
    less = traced(prepared(tiny_llama, rows, tmp_path, "training.gradient_checkpointing=true"))
    assert less.saved < 0.5 * plain.saved
    assert less.flops > 1.2 * plain.flops


def test_memory_grows_with_the_rows(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    setup = prepared(tiny_llama, rows, tmp_path)
    assert traced(setup, 2).saved < traced(setup, 4).saved < traced(setup, 8).saved


def test_a_trace_leaves_no_gradient_and_takes_no_memory(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    setup = prepared(tiny_llama, rows, tmp_path)
    model = traced_model(Subject.of(setup), CPU)
    trace_batch(model.scorer, setup.stage, pack(setup.data.train[:4]))
    assert all(parameter.grad is None for parameter in model.scorer.parameters())
    assert all(isinstance(parameter.data, FakeTensor) for parameter in model.scorer.parameters())


def test_autocast_is_traced(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    setup = prepared(tiny_llama, rows, tmp_path)
    model = traced_model(Subject.of(setup), CPU)
    batch = pack(setup.data.train[:4])
    wide = trace_batch(model.scorer, setup.stage, batch)
    narrow = trace_batch(model.scorer, setup.stage, batch, autocast=torch.bfloat16)
    products = [op for op in narrow.operations if op.flops and op.function is torch.ops.aten.mm.default]
    assert {op.arguments[0].dtype for op in products} == {torch.bfloat16}
    assert {op.arguments[0].dtype for op in wide.operations if op.flops} == {torch.float32}
