"""Fused functions: their gradients, that they equal the modules they stand for, and when they step back."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import luthier
from luthier.data.packing import pack
from luthier.scoring.fused.choosing import fuse
from luthier.scoring.fused.gated_mlp import GatedMlp
from luthier.scoring.fused.low_rank import LowRankLinears, low_rank
from luthier.scoring.fused.norm import RootMeanSquareNorm
from luthier.scoring.scorer import Scorer, transformers_model
from tests.scoring.test_routes import gradients, random_examples, relative
from tests.tiny import config_for, tiny_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def double(*shape: int, learns: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=learns)


class Packed:
    """A weight that is made anew for each product."""

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight_OI = weight_OI

    def unpacked(self) -> Tensor:
        return self._weight_OI.clone()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("input_learns", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("ranks", [(2,), (2, 3, 1), (2, 0, 1), (0, 2)])
def test_low_rank_maps_pass_gradcheck(bias: bool, input_learns: bool, packed: bool, ranks: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    constants: list[tuple[Packed | None, float]] = []
    tensors: list[Tensor | None] = []
    for number, rank in enumerate(ranks):
        weight_OI = double(6 + number, 4)
        constants.append((Packed(weight_OI) if packed else None, 1.7 + number))
        tensors += [None if packed else weight_OI, double(6 + number) if bias else None]
        tensors += [double(rank, 4, learns=True), double(6 + number, rank, learns=True)] if rank else [None, None]
    assert torch.autograd.gradcheck(LowRankLinears.apply, (double(5, 4, learns=input_learns), constants, *tensors))


@pytest.mark.parametrize("weight_learns", [True, False])
def test_the_norm_passes_gradcheck(weight_learns: bool) -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(
        RootMeanSquareNorm.apply, (double(5, 4, learns=True), double(4, learns=weight_learns), 1e-3)
    )


@pytest.mark.parametrize("updated", [(True, True, True), (True, False, False), (False, False, True)])
@pytest.mark.parametrize("packed", [True, False])
def test_the_gated_mlp_passes_gradcheck(updated: tuple[bool, bool, bool], packed: bool) -> None:
    torch.manual_seed(0)
    tensors: list[Tensor | None] = []
    constants: list[tuple[Packed | None, float]] = []
    for has_update, (inner, outer) in zip(updated, ((4, 6), (4, 6), (6, 4)), strict=True):
        weight_OI = double(outer, inner)
        constants.append((Packed(weight_OI) if packed else None, 0.5 + len(constants)))
        tensors += [None if packed else weight_OI, double(outer)]
        tensors += [double(2, inner, learns=True), double(outer, 2, learns=True)] if has_update else [None, None]
    assert torch.autograd.gradcheck(GatedMlp.apply, (double(5, 4, learns=True), constants, *tensors))


def lora_model(kind: str = "llama", **settings: Any) -> Any:
    """A model with updates that are not zero."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"} | settings
    base = tiny_model(kind)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "qwen3", "smollm3"])
def test_fused_models_equal_the_reference_in_value_and_gradient(kind: str) -> None:
    batch = pack(random_examples([9, 4, 15]))
    found = {}
    for route in ("segmented", "padded"):
        scorer = Scorer(lora_model(kind), route=route)  # type: ignore[arg-type]
        attention = transformers_model(scorer.model).get_decoder().layers[0].self_attn
        assert ("forward" in vars(attention)) == (route == "segmented")
        scorer.train()
        logp_N = scorer(batch).logp_N
        (logp_N * batch.weights_N).sum().backward()
        found[route] = (logp_N.detach(), gradients(scorer))
    assert relative(found["segmented"][0], found["padded"][0]) < 1e-5
    assert found["padded"][1].keys() == found["segmented"][1].keys()
    for name, gradient in found["padded"][1].items():
        assert relative(found["segmented"][1][name], gradient) < 1e-5, name


def four_bits(route: str, products: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities and gradients of LoRA over a base that was packed from float32, in autocast's precision if it is another."""
    nn4 = pytest.importorskip("bitsandbytes").nn
    batch = pack(random_examples([9, 4, 15]))
    torch.manual_seed(0)
    base = tiny_model("llama", hidden_size=64, intermediate_size=128)
    for name, layer in list(base.named_modules()):
        if name.endswith("_proj"):
            four = nn4.Linear4bit(layer.in_features, layer.out_features, False, products, quant_type="nf4")
            four.weight = nn4.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            base.set_submodule(name, four.to("cpu"))
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=ALL, task_type="CAUSAL_LM", init_lora_weights=False)
    scorer = Scorer(get_peft_model(base, settings), route=route).train()  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16, enabled=products != torch.float32):
        fused = [low_rank(module, torch.zeros(1)) for module in base.modules()]
        # and the layers beneath
        assert sum(part is not None and not isinstance(part.weight, Tensor) for part in fused) == 2 * 21
        logp_N = scorer(batch).logp_N
    (logp_N * batch.weights_N).sum().backward()
    return logp_N.detach(), gradients(scorer)


@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own
def test_a_base_in_four_bits_under_autocast_is_near_its_products_in_float32() -> None:
    found, reference = four_bits("segmented", torch.bfloat16), four_bits("padded", torch.float32)
    assert relative(found[0], reference[0]) < 1e-2
    whole = [torch.cat([part[name].flatten() for name in reference[1]]) for part in (found[1], reference[1])]
    assert relative(*whole) < 3e-2


@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own
def test_a_base_in_four_bits_equals_the_reference_in_value_and_gradient() -> None:
    found = {route: four_bits(route, torch.float32) for route in ("segmented", "padded")}
    assert relative(found["segmented"][0], found["padded"][0]) < 1e-5
    assert found["padded"][1].keys() == found["segmented"][1].keys()
    for name, gradient in found["padded"][1].items():
        assert relative(found["segmented"][1][name], gradient) < 1e-5, name


def test_every_lora_layer_norm_and_feed_forward_block_of_llama_is_fused() -> None:
    assert fuse(lora_model().get_base_model()) == {
        "Linear": 21,
        "LlamaAttention": 3,
        "LlamaRMSNorm": 7,
        "LlamaMLP": 3,
        "LlamaDecoderLayer": 1,
    }


@pytest.mark.parametrize(
    "kind", ["qwen2", "mistral", "mixtral", "qwen3", "olmo2", "granite", "cohere", "gemma", "gpt2"]
)
def test_a_family_computes_the_same_fused_or_is_left_alone(kind: str) -> None:
    """Which classes are taken is read from their source; that it is the same formula is shown by computing it."""
    import transformers

    names = {"olmo2": "Olmo2", "gpt2": "GPT2"}
    config_class = getattr(transformers, f"{names.get(kind, kind.capitalize())}Config")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4}
    elif kind == "mixtral":
        sizes |= {"num_local_experts": 2}
    config = config_class(vocab_size=64, bos_token_id=None, eos_token_id=None, pad_token_id=None, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.data.normal_()
    plain = copy.deepcopy(model)
    found = fuse(model)
    direction = torch.randn(2, 5, 1)
    for module, reference in zip(model.modules(), plain.modules(), strict=True):
        if "forward" not in vars(module) or (
            "MLP" not in type(module).__name__ and "Norm" not in type(module).__name__
        ):
            continue
        width = next(reference.parameters()).shape[-1]
        values = [
            torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0), requires_grad=True) for _ in "ab"
        ]
        outputs = [part(value) for part, value in zip((module, reference), values, strict=True)]
        for output in outputs:
            (output * direction).sum().backward()
        assert relative(outputs[0].detach(), outputs[1].detach()) < 1e-6
        assert relative(values[0].grad, values[1].grad) < 1e-6  # type: ignore[arg-type]
    expected = {
        "qwen2": 10,
        "mistral": 10,
        "mixtral": 7,
        "qwen3": 14,
        "gemma": 3,
        "granite": 9,
        "cohere": 2,
        "olmo2": 2,
    }
    assert sum(found.values()) == expected.get(kind, 0), found


def half(layer: Any) -> None:
    layer.lora_A["default"].to(torch.bfloat16)
    layer.lora_B["default"].to(torch.bfloat16)


def second_adapter(layer: Any) -> None:
    torch.manual_seed(2)
    layer.update_layer("other", r=2, lora_alpha=2, config=LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian"))
    nn.init.normal_(layer.lora_B["other"].weight)
    layer.set_adapter(["default", "other"])


def dropout(layer: Any) -> None:
    layer.lora_dropout["default"] = nn.Dropout(0.5)


class OneMore:
    """In place of DoRA and its like."""

    @staticmethod
    def forward(layer: Any, *, result: Tensor, **_: Any) -> Tensor:
        return result + 1


class Twice(nn.Linear):
    """A base of another class."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def another_base(layer: Any) -> None:
    own = Twice(layer.in_features, layer.out_features, bias=False).requires_grad_(False)
    own.load_state_dict(layer.base_layer.state_dict())
    layer.base_layer = own


class Wrapped(Tensor):
    """A weight that stands for another, as torchao's do: of products it knows `linear` alone."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, *_: Any) -> Wrapped:
        return Wrapped(inner["inner"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            return func(args[0], args[1].inner, *args[2:])
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(f"{func} of a wrapped weight")


def wrapped(layer: Any) -> None:
    weight = Wrapped(layer.base_layer.weight.detach())
    layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)


CHANGES: dict[str, Callable[[Any], object]] = {
    "disabled": lambda layer: layer.enable_adapters(False),
    "merged": lambda layer: layer.merge(),
    "two adapters": second_adapter,
    "no adapter is active": lambda layer: layer.set_adapter([]),
    "a variant": lambda layer: layer.lora_variant.update(default=OneMore()),
    "a bias of the update": lambda layer: layer.lora_B["default"].register_parameter(
        "bias", nn.Parameter(torch.ones(layer.out_features))
    ),
    "dropout": dropout,
    "another precision": half,
    "a trained base": lambda layer: layer.base_layer.requires_grad_(True),
    "another class of base": another_base,
    "another class of weight": wrapped,
    "a hook on the layer": lambda layer: layer.register_forward_hook(lambda module, inputs, output: 2 * output),
    "a hook before the base": lambda layer: layer.base_layer.register_forward_pre_hook(
        lambda module, inputs: (2 * inputs[0],)
    ),
    "a hook on a factor": lambda layer: layer.lora_A["default"].register_full_backward_hook(
        lambda module, into, out: (2 * into[0],)
    ),
    "a stand-in of accelerate": lambda layer: setattr(layer.base_layer, "_hf_hook", object()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_layer_computes_as_its_class_does(change: str) -> None:
    """Each projection changed alone in the second layer: the model's values and gradients are those without fusing."""
    batch = pack(random_examples([9, 4]))
    whole = lora_model()
    for name in ALL:
        found = []
        for fused in (True, False):
            scorer = Scorer(copy.deepcopy(whole), "segmented", fused=fused).train()
            second = scorer.model.get_base_model().model.layers[1]
            layer = getattr(second.self_attn if name in "q_proj k_proj v_proj o_proj" else second.mlp, name)
            x = torch.randn(2, 3, layer.in_features)
            assert low_rank(layer, x) is not None
            CHANGES[change](layer)
            assert low_rank(layer, x) is None
            torch.manual_seed(3)
            logp_N = scorer(batch).logp_N
            logp_N.sum().backward()
            found.append((logp_N.detach(), gradients(scorer)))
        assert relative(found[0][0], found[1][0]) < 1e-5, name
        assert found[0][1].keys() == found[1][1].keys()
        for parameter, gradient in found[1][1].items():
            assert relative(found[0][1][parameter], gradient) < (1e-2 if change == "another precision" else 1e-5), (
                name,
                parameter,
            )


def test_float32_factors_meet_float16_only_where_the_loss_is_scaled() -> None:
    """Without autocast nothing scales it, and what a factor's gradient is made of is below float16's smallest number."""
    layer = lora_model().get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32)
    for dtype, plain in ((torch.float16, False), (torch.bfloat16, True)):
        layer.base_layer.to(dtype)
        assert (low_rank(layer, x.to(dtype)) is not None) == plain
        with torch.autocast("cpu", dtype):
            assert low_rank(layer, x.to(dtype)) is not None


def test_dropout_that_does_nothing_is_no_obstacle() -> None:
    layer = lora_model().get_base_model().model.layers[0].self_attn.q_proj
    dropout(layer)
    layer.eval()
    assert low_rank(layer, torch.randn(3, 32)) is not None


def test_other_arguments_go_to_the_layers_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora_model()
    fuse(model.get_base_model())
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    x = torch.randn(3, 32)
    seen = []
    own = type(layer).forward
    monkeypatch.setattr(type(layer), "forward", lambda self, *a, **k: seen.append(k) or own(self, *a, **k))
    layer(x)
    assert not seen
    layer(x, adapter_names=["default"] * 3)
    assert seen == [{"adapter_names": ["default"] * 3}]


def in_16_bits(base: torch.dtype, autocast: torch.dtype | None, fused: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities and gradients of LoRA in float32 over a base of some precision."""
    model = lora_model("qwen3")  # norms of heads, too
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(base)
    scorer = Scorer(model, "segmented", fused=fused).train()
    batch = pack(random_examples([40, 31, 52]))
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        logp_N = scorer(batch).logp_N
    (logp_N * batch.weights_N).sum().backward()
    return logp_N.detach(), gradients(scorer)


@pytest.mark.parametrize(
    ("base", "autocast"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, None),
        (torch.float16, torch.float16),
    ],
)
def test_in_16_bits_fused_models_are_as_near_to_float32_as_module_by_module(
    base: torch.dtype, autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scorer(lora_model("qwen3"), "segmented")  # the probe, which is made once, computes fused too
    calls: Counter[str] = Counter()
    for function in (LowRankLinears, GatedMlp, RootMeanSquareNorm):
        own_apply = function.apply
        monkeypatch.setattr(function, "apply", lambda *a, f=function, o=own_apply: calls.update([f.__name__]) or o(*a))
    reference = in_16_bits(torch.float32, None, fused=False)
    own = in_16_bits(base, autocast, fused=False)
    assert not calls
    fused = in_16_bits(base, autocast, fused=True)
    # of three layers: the maps to queries, keys and values (in the last, queries apart: only where they are read), and the
    # output; two norms, those of queries and of keys; the last norm
    assert calls == {"LowRankLinears": 3 * 2 + 1, "GatedMlp": 3, "RootMeanSquareNorm": 3 * 4 + 1}
    assert relative(fused[0], reference[0]) < 1.2 * relative(own[0], reference[0])
    assert fused[1].keys() == reference[1].keys()
    assert all(gradient.dtype == torch.float32 for gradient in fused[1].values())

    def error(found: dict[str, Tensor]) -> float:
        flat = [torch.cat([part[name].flatten() for name in reference[1]]) for part in (found, reference[1])]
        return relative(*flat)

    assert error(fused[1]) < 1.2 * error(own[1])


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_in_16_bits_the_norm_rounds_where_transformers_does(weight_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = tiny_model("llama").model.norm.to(weight_dtype)
    norm.weight.data.normal_()
    x = torch.randn(50, 32).bfloat16().requires_grad_()
    direction = torch.randn(50, 32)

    def with_gradients(y: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
        return y, *torch.autograd.grad((y * direction).sum(), of)

    fused = with_gradients(
        RootMeanSquareNorm.apply(x, norm.weight, norm.variance_epsilon),  # type: ignore[no-untyped-call]
        x,
        norm.weight,
    )
    own = with_gradients(norm(x), x, norm.weight)
    wide_x, wide_weight = (part.detach().float().requires_grad_() for part in (x, norm.weight))
    exact = with_gradients(F.rms_norm(wide_x, (32,), wide_weight, norm.variance_epsilon), wide_x, wide_weight)
    assert relative(fused[0].float(), own[0].float()) < 1e-3
    for found, reference, truth in zip(fused, own, exact, strict=True):
        assert found.dtype == reference.dtype
        assert relative(found.float(), truth) < 1.1 * relative(reference.float(), truth)


def test_under_autocast_no_copies_of_weights_are_kept() -> None:
    """What autograd keeps of a block with a float32 base: x and what was computed, no weight in 16 bits."""
    model = lora_model()
    fuse(model.get_base_model())
    layer = model.get_base_model().model.layers[0].mlp
    kept = []

    def note(tensor: Tensor) -> Tensor:
        kept.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    x = torch.randn(1, 20, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert ((20, 48), torch.bfloat16) in kept  # gate(x) and up(x)
    assert ((48, 32), torch.float32) in kept and not {(48, 32), (32, 48)} & {
        shape for shape, dtype in kept if dtype == torch.bfloat16
    }


def test_a_fused_model_can_be_disabled_copied_and_merged() -> None:
    model = lora_model().eval()
    ids = torch.arange(10)[None]
    plain = tiny_model("llama").eval()(ids).logits
    tuned = model(ids).logits
    fuse(model.get_base_model())
    assert relative(model(ids).logits, tuned) < 1e-5
    with model.disable_adapter():
        assert relative(model(ids).logits, plain) < 1e-6
    assert relative(copy.deepcopy(model)(ids).logits, tuned) < 1e-5
    assert relative(model.merge_and_unload()(ids).logits, tuned) < 1e-5


def test_gradient_checkpointing_recomputes_fused_blocks() -> None:
    batch = pack(random_examples([9, 4]))
    found = []
    for checkpointing in (False, True):
        model = lora_model()
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        scorer = Scorer(model, "segmented")
        scorer.train()
        scorer(batch).logp_N.sum().backward()
        found.append(gradients(scorer))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_block_keeps_less_for_backward() -> None:
    """Bytes that autograd keeps of one layer: the block's three maps of the input, not five."""
    model = lora_model()
    layer = model.get_base_model().model.layers[0].mlp
    x = torch.randn(1, 64, 32, requires_grad=True)

    def kept() -> int:
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(x)
        return sum(storages.values())

    before = kept()
    fuse(model.get_base_model())
    weights = 3 * 32 * 48 * 4  # of the three maps: saved, but not made for it
    assert kept() - weights < 0.7 * (before - weights)


def test_the_setting_reaches_the_run(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways train the same curve, and only one of them calls the fused functions."""
    calls = []
    own = LowRankLinears.apply
    monkeypatch.setattr(LowRankLinears, "apply", lambda *a: calls.append(1) or own(*a))
    curves = {}
    for fused in (True, False):
        config = config_for(tiny_llama, rows, tmp_path / str(fused), max_steps=3, logging_steps=1)
        config["model"] = {"name": config["model"], "fused": fused}
        luthier.train(config)
        lines = (tmp_path / str(fused) / "metrics.jsonl").read_text().splitlines()
        curves[fused] = ([json.loads(line)["loss"] for line in lines], len(calls))
        calls.clear()
    assert curves[True][0] == pytest.approx(curves[False][0], rel=1e-5)
    assert curves[True][1] > 0 and curves[False][1] == 0
