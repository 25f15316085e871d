"""Bases in 4 and 8 bits: what is quantized, that it is the published arithmetic, which methods train beside it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.config.model_section import QuantizationConfig
from luthier.config.plugins import METHODS
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import MissingExtraError, ModelError
from luthier.model import loading, quantization
from luthier.model.method import Apply, count_parameters, save_for_resuming
from luthier.model.methods import lora
from luthier.model.quantization import dequantized, is_quantized, quantized_layers, weight_bytes
from luthier.scoring.scorer import Scorer
from luthier.scoring.virtual_tokens import has_virtual_tokens
from tests.model.methods.test_contract import build, logits, one_step, plain_attention, state
from tests.tiny import tiny_folder

NF4 = QuantizationConfig.model_validate({"type": "nf4"})
INT8 = QuantizationConfig.model_validate({"type": "int8"})
WAYS = {name: QuantizationConfig.model_validate({"type": name}) for name in ("nf4", "fp4", "int8")}
WAYS["nf4-single"] = NF4.model_copy(update={"double": False})
HOW = Apply(seed=3, base_name="base/of-it", total_steps=30, quantized=True)
KINDS = ("llama", "qwen2", "gpt2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("quantized")
    wide = {"hidden_size": 64, "intermediate_size": 128}
    gpt2 = {"n_embd": 64}
    return {kind: tiny_folder(place / kind, kind, **(gpt2 if kind == "gpt2" else wide)) for kind in KINDS}


def quantized(folder: Path, how: QuantizationConfig) -> Any:
    return loading.weights_at(folder, torch.float32, quantization=how)


def plain(folder: Path) -> Any:
    return loading.weights_at(folder, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_linear_layers_are_quantized_and_nothing_else(kind: str, folders: dict[str, Path]) -> None:
    model = quantized(folders[kind], NF4)
    found = {name for name, module in model.named_modules() if is_quantized(module)}
    expected = {
        name
        for name, module in plain(folders[kind]).named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and name != "lm_head"
    }
    assert found == expected
    assert set(quantized_layers(loading.skeleton(loading.config_at(folders[kind])))) == expected
    assert type(model.get_output_embeddings()) is nn.Linear, "the fused head needs a plain one"
    kept = {p.dtype for n, p in model.named_parameters() if n.rpartition(".")[0] not in found}
    assert kept == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_two_weights_in_a_byte_are_counted_as_two(kind: str, way: str, folders: dict[str, Path]) -> None:
    assert count_parameters(quantized(folders[kind], WAYS[way])).total == count_parameters(plain(folders[kind])).total


def test_nf4_is_the_published_arithmetic(folders: dict[str, Path]) -> None:
    """Dettmers et al. 2023, appendix E: sixteen values; blocks of 64 weights are scaled by their largest magnitude."""
    # fmt: off
    table = torch.tensor([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ])
    # fmt: on
    weight = plain(folders["llama"]).model.layers[0].mlp.up_proj.weight.detach()
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks[..., None] / scale[..., None] - table).abs().argmin(dim=-1)
    expected = (table[nearest] * scale).reshape(weight.shape)
    model = dequantized(quantized(folders["llama"], WAYS["nf4-single"]), torch.float32)
    assert torch.allclose(model.model.layers[0].mlp.up_proj.weight, expected, atol=1e-6)


def test_widths_that_a_processor_computes_wrongly_stay_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """down_proj is 80 wide here; where bitsandbytes' kernel is right, it is quantized as well."""
    folder = tiny_folder(tmp_path / "model", hidden_size=64, intermediate_size=80)
    monkeypatch.setattr(quantization, "odd_widths_are_wrong", lambda device: True)
    model = quantized(folder, NF4)
    assert {n.split(".")[-1] for n in quantized_layers(model)} == {"down_proj"}
    assert type(model.get_output_embeddings()) is nn.Linear
    with pytest.raises(ModelError, match="no layer of LlamaForCausalLM has a width"):
        quantized(tiny_folder(tmp_path / "narrow", intermediate_size=80), NF4)
    quantized(folder, INT8).save_pretrained(tmp_path / "eight")  # which has no blocks
    monkeypatch.setattr(quantization, "odd_widths_are_wrong", lambda device: False)
    everything = quantized(folder, NF4)
    assert not quantized_layers(everything)
    everything.save_pretrained(tmp_path / "four")
    monkeypatch.setattr(quantization, "odd_widths_are_wrong", lambda device: True)
    with pytest.raises(ModelError, match=r"down_proj are in 4 bits and 80 wide"):
        plain(tmp_path / "four")


def test_wrong_widths_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the try says is what a layer of that width does."""
    functional = quantization.bitsandbytes().functional
    weight = torch.randn(48, 80)
    back = functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type="nf4"))
    off = float((back - weight).norm() / weight.norm())
    assert quantization.odd_widths_are_wrong("cpu") == (off > 0.15), off


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["nf4", "fp4", "nf4-single"])
def test_it_computes_with_the_values_that_its_bits_stand_for(kind: str, way: str, folders: dict[str, Path]) -> None:
    model = quantized(folders[kind], WAYS[way])
    evaluated = logits(model)
    with torch.no_grad():
        trained = model.train()(input_ids=torch.arange(3, 40)[None]).logits
    assert torch.equal(trained, evaluated), "training and evaluation are the same arithmetic"
    back = dequantized(quantized(folders[kind], WAYS[way]), torch.float32)
    assert not [module for module in back.modules() if is_quantized(module)]
    assert type(back.get_submodule(quantized_layers(plain(folders[kind]))[0])) is type(
        plain(folders[kind]).get_submodule(quantized_layers(plain(folders[kind]))[0])
    )
    assert torch.allclose(logits(back), evaluated, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(plain(folders[kind])), evaluated, atol=1e-2), "something was rounded"


@pytest.mark.parametrize("way", ["nf4", "int8"])
def test_the_gradient_reaches_the_input(way: str, folders: dict[str, Path]) -> None:
    """Written out: for y = W x the gradient of sum(y) is W's column sums, whatever was evaluated before."""
    layer = quantized(folders["llama"], WAYS[way]).model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.eval()(torch.randn(3, 64))
    values = dequantized(quantized(folders["llama"], WAYS[way]), torch.float32).model.layers[0].mlp.up_proj.weight
    given = torch.randn(5, 64, requires_grad=True)
    layer.train()(given).sum().backward()
    assert given.grad is not None
    assert torch.allclose(given.grad, values.sum(0).detach().expand(5, 64), rtol=1e-4, atol=1e-4)


def test_int8_is_near_the_plain_model(folders: dict[str, Path]) -> None:
    expected, found = logits(plain(folders["llama"])), logits(quantized(folders["llama"], INT8))
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


def test_the_threshold_acts(folders: dict[str, Path]) -> None:
    every_column = INT8.model_copy(update={"int8_threshold": 1e-6})  # all are outliers: activations are not rounded
    none = INT8.model_copy(update={"int8_threshold": 0.0})
    expected = logits(dequantized(quantized(folders["llama"], INT8), torch.float32))
    distance = {
        how: float((logits(quantized(folders["llama"], how)) - expected).norm()) for how in (every_column, none)
    }
    assert distance[every_column] < 0.3 * distance[none]


def test_compute_dtype_acts(folders: dict[str, Path]) -> None:
    rough = NF4.model_copy(update={"compute_dtype": "bfloat16"})
    expected, found = logits(quantized(folders["llama"], NF4)), logits(quantized(folders["llama"], rough))
    assert found.dtype == torch.float32
    assert 1e-5 < (found - expected).abs().max() < 0.3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(64, 64), (192, 576), (48, 32), (1, 7)])
def test_bytes_of_a_weight_are_those_that_are_kept(way: str, shape: tuple[int, int]) -> None:
    from luthier.model.quantization import _quantized_layer

    layer: Any = _quantized_layer(nn.Linear(shape[1], shape[0], bias=False), WAYS[way]).to("cpu")
    if way == "int8":
        kept = layer.weight.nbytes + layer.weight.SCB.nbytes
    else:
        found = layer.weight.quant_state
        parts = [layer.weight.data, found.absmax, found.code]
        if found.nested:
            parts += [found.state2.absmax, found.state2.code, found.offset]
        kept = sum(part.nbytes for part in parts)
    assert weight_bytes(shape, WAYS[way]) == kept


@pytest.mark.parametrize(("kind", "way"), [("llama", "nf4"), ("gpt2", "int8")])
@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_trains_beside_it_or_says_why_not(
    name: str, kind: str, way: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    method = build(name)
    if method.saves == "model":
        assert method.quantized_problem()
        return
    try:
        model = method.apply(quantized(folders[kind], WAYS[way]), HOW)
    except ModelError:
        with pytest.raises(ModelError):  # for another reason than the quantization
            build(name).apply(plain(folders[kind]), HOW)
        return
    if not has_virtual_tokens(model):
        assert torch.equal(logits(model), logits(quantized(folders[kind], WAYS[way]))), (
            "a fresh adapter changes nothing"
        )
    trainable = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    before = state(model)
    one_step(model, 3e-2)
    one_step(model, 3e-2)
    changed = {n for n, value in state(model).items() if not torch.equal(value, before[n])}
    assert changed and changed <= trainable
    model = plain_attention(model)
    expected = logits(model)
    method.save(model, tmp_path)
    save_for_resuming(method, model, tmp_path)
    again = build(name).apply(quantized(folders[kind], WAYS[way]), HOW)
    method.load(again, tmp_path)
    Scorer(again)  # which chose how the first one computes, too
    assert torch.equal(logits(plain_attention(again)), expected)


@pytest.mark.parametrize("way", ["nf4", "int8"])
def test_both_routes_are_equal(way: str, folders: dict[str, Path]) -> None:
    from luthier.data.packing import pack
    from tests.scoring.test_routes import random_examples

    batch = pack(random_examples([12, 7, 20]))
    found = {}
    for route in ("segmented", "padded"):
        model = build("lora").apply(quantized(folders["llama"], WAYS[way]), HOW)
        scorer = Scorer(model, route).train()  # type: ignore[arg-type]
        assert scorer._head.frozen_linear() is not None
        logp_N = scorer(batch).logp_N
        logp_N.sum().backward()
        found[route] = [logp_N.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for first, second in zip(found["segmented"], found["padded"], strict=True):
        assert (first - second).norm() <= 1e-5 * second.norm().clamp_min(1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init": "pissa"}, "quantized"),
        ({"init": "olora"}, "quantized"),
        ({"init": "orthogonal"}, "quantized"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_lora_says_what_it_can_not_do_beside_it(options: dict[str, Any], said: str) -> None:
    assert said in lora.Lora(lora.Options(**options)).quantized_problem()


def test_a_quantized_layer_can_not_learn_whole(folders: dict[str, Path]) -> None:
    base = loading.skeleton(loading.config_at(folders["llama"]))  # before weights are read
    for names in (["q_proj"], ["self_attn"]):
        with pytest.raises(ModelError, match="whose weights are quantized"):
            lora.Lora(lora.Options(modules_to_save=names)).apply(copy.deepcopy(base), HOW)
    with pytest.raises(ModelError, match="whose weights are quantized"):
        lora.Lora(lora.Options(modules_to_save=["q_proj"])).apply(quantized(folders["llama"], NF4), HOW)
    lora.Lora(lora.Options(modules_to_save=["lm_head"])).apply(quantized(folders["llama"], NF4), HOW)


@pytest.mark.parametrize("way", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_folder_that_is_quantized_already(kind: str, way: str, folders: dict[str, Path], tmp_path: Path) -> None:
    first = quantized(folders[kind], WAYS[way])
    expected = logits(first)
    first.save_pretrained(tmp_path)
    loading.tokenizer_at(folders[kind]).save_pretrained(tmp_path)
    source = loading.find(ModelConfig(name=str(tmp_path)))
    loading.check_quantization(source, torch.device("cpu"), training=True)
    assert torch.equal(logits(loading.load(source, torch.float32)), expected)
    merged = loading.load(source, torch.float32, plain=True)
    assert torch.equal(
        next(merged.get_submodule(name).weight for name in quantized_layers(merged)),
        next(
            back.get_submodule(name).weight
            for back in [dequantized(quantized(folders[kind], WAYS[way]), torch.float32)]
            for name in quantized_layers(back)
        ),
    )
    again = tmp_path / "plain"
    merged.save_pretrained(again)
    assert torch.equal(logits(plain(again)), logits(merged)), "and is an ordinary model once it is read back"
    with pytest.raises(ModelError, match="quantized already"):
        loading.find(ModelConfig(name=str(tmp_path), quantization=NF4))


@pytest.mark.parametrize(("method", "missing"), [("gptq", "optimum"), ("awq", "gptqmodel"), ("nonsense", "nonsense")])
def test_a_format_without_a_back_end_is_one_clear_error(
    method: str, missing: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(settings))
    source = loading.find(ModelConfig(name=str(folder)))
    with pytest.raises(ModelError, match=f"quantized with {method}.*{missing}") as error:
        loading.check_quantization(source, torch.device("cpu"), training=True)
    assert "nf4" in error.value.remedy


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"luthier\[quantization\]"):
        quantization.check_backend(NF4, torch.device("cpu"))


def test_a_device_that_does_not_compute_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(nn.Module):
        def forward(self, x: Any) -> Any:
            raise NotImplementedError("bitsandbytes::gemm_4bit is not there for this device")

    monkeypatch.setattr(quantization, "_quantized_layer", lambda plain, how: Broken())
    with pytest.raises(ModelError, match=r"nf4 \(double\).*cpu.*gemm_4bit"):
        quantization.check_backend(NF4, torch.device("cpu"))


def test_wrong_numbers_are_no_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "_quantized_layer", lambda plain, how: nn.Linear(64, 64))
    with pytest.raises(ModelError, match="is off by"):
        quantization.check_backend(NF4, torch.device("cpu"))
