"""Stand-ins for quantized layers: as many bytes, and the same gradient's way, as bitsandbytes' own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.config.model_section import QuantizationConfig
from luthier.model.quantization import weight_bytes
from luthier.planning.hardware import parse_hardware
from luthier.planning.model_shapes import named_shape
from luthier.planning.planner import Memory, Planner
from luthier.planning.quantized import QuantizedStandIn, quantizable, quantize
from luthier.planning.subject import Subject
from luthier.scoring.fused.low_rank import low_rank
from tests.tiny import tiny_model

NF4, INT8 = QuantizationConfig(), QuantizationConfig(bits=8, type="int8")


def planned(*settings: str) -> Memory:
    from luthier.config.loading import load

    shape = named_shape("qwen2-0.5b")
    base = {"model": shape.name, "data": {"train": "unread", "cutoff_length": 64}, "method": "ia3"}
    config = load({**base, "training": {"per_device_train_batch_size": 1}}, settings)
    planner = Planner(Subject.of_shape(config, shape.model_config_of()), parse_hardware("1x24GB"))
    return planner.memory(config)


def test_a_quantized_base_takes_what_its_bits_take() -> None:
    plain, packed = planned(), planned("model.quantization=nf4")
    embedding, layers = 151_936 * 896, 24
    matrices = (2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864) * layers
    assert plain.weights == pytest.approx(2 * 494_032_768, rel=0.002)  # bfloat16
    small = 2 * (494_032_768 - matrices - embedding)  # biases and norms
    assert packed.weights == pytest.approx(2 * embedding + small + 0.516 * matrices, rel=0.002)
    assert packed.peak < plain.peak
    assert planned("model.quantization=int8").weights == pytest.approx(2 * embedding + small + matrices, rel=0.005)


@pytest.mark.parametrize("how", [NF4, INT8], ids=str)
def test_a_stand_in_holds_what_the_layer_holds(how: QuantizationConfig) -> None:
    layer = QuantizedStandIn((128, 192), None, how, torch.float32)
    assert sum(buffer.nbytes for buffer in layer.buffers()) == weight_bytes((128, 192), how)


def test_layers_are_replaced_where_a_method_has_moved_them() -> None:
    from luthier.config.plugins import METHODS
    from luthier.model.method import Apply

    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    layers = quantizable(model, NF4, "cuda")
    assert len(layers) == 3 * 7
    lora = METHODS.load("lora")
    tuned = lora.build(lora.Options(name="lora")).apply(model, Apply(seed=0, quantized=True))
    quantize(tuned, layers, NF4, torch.float32)
    found = [name for name, module in tuned.named_modules() if isinstance(module, QuantizedStandIn)]
    assert len(found) == len(layers) and all(name.endswith("base_layer") for name in found)
    plain = [name for name, module in tuned.named_modules() if type(module) is nn.Linear and "lora_" not in name]
    assert plain == ["base_model.model.lm_head"]


@pytest.mark.parametrize(("how", "fused"), [(NF4, True), (INT8, False)], ids=str)
def test_a_stand_in_is_fused_where_its_layer_is(how: QuantizationConfig, fused: bool) -> None:
    """Under autocast too: peft's layer over 8 bits computes as it always does, and keeps its input."""
    layer = QuantizedStandIn((128, 192), None, how, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert (low_rank(layer, torch.empty(1, 192)) is not None) == fused
