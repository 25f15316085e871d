"""The last layer where it is read only: equal to the padded route, and nothing computed for rows that nobody reads."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.data.packing import pack
from luthier.scoring.fused.low_rank import LowRankMaps
from luthier.scoring.readouts import HeadAt, TargetLogp
from luthier.scoring.scorer import Scorer
from luthier.scoring.segmented import hidden_at
from tests.scoring.test_fused import lora_model
from tests.scoring.test_routes import forests, gradients, random_examples, relative
from tests.tiny import tiny_model

# plain; biases of queries, keys and values; a window; norms of heads; layers without rotation; a part of each head turned
KINDS = ("llama", "qwen2", "mistral", "qwen3", "smollm3", "glm")


def family(kind: str) -> Any:
    if kind != "glm":
        return tiny_model(kind)
    small = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 2}
    config = transformers.GlmConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3, **small)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GlmForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.normal_(0.0, 0.15)
    return model


def norm_in_double(self: Any, x: Tensor) -> Tensor:
    """transformers' own rounds to float32 within."""
    epsilon = self.variance_epsilon
    return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)  # type: ignore[no-any-return]


@functools.cache
def scorer(kind: str, lora: bool, route: str) -> Scorer:
    """In float64, with updates of all linear layers, or all layers trained."""
    model = (lora_model(kind) if lora else family(kind)).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(norm_in_double, module)
    if not lora:
        model.requires_grad_(False)
        model.get_decoder().layers.requires_grad_(True)
    return Scorer(model, route).train()  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(kind, lora) for kind in KINDS for lora in (True, False) if (kind, lora) != ("glm", True)]),
    forests(),
)
def test_values_and_gradients_of_any_forest_are_the_padded_routes(model: tuple[str, bool], batch: Batch) -> None:
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {}
    for route in ("segmented", "padded"):
        own = scorer(*model, route)
        own.zero_grad(set_to_none=True)
        logp_N = own(batch).logp_N
        (logp_N * batch.weights_N).sum().backward()
        found[route] = (logp_N.detach(), gradients(own))
    assert relative(found["segmented"][0], found["padded"][0]) < 1e-12
    assert found["segmented"][1].keys() == found["padded"][1].keys()
    whole = torch.stack([gradient.norm() for gradient in found["padded"][1].values()]).norm()
    for name, gradient in found["padded"][1].items():
        assert (found["segmented"][1][name] - gradient).norm() < 1e-11 * whole, name


def rows_seen(layer: Any) -> dict[str, list[int]]:
    """How many rows reach each linear layer of a decoder layer, noted from now on."""
    seen: dict[str, list[int]] = {}
    for name, module in layer.named_modules():
        if name.endswith("_proj"):
            key = name.split(".")[-1]
            module.register_forward_hook(
                lambda module, inputs, output, key=key: seen.setdefault(key, []).append(inputs[0].shape[-2])
            )
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_computes_only_what_is_read(kind: str) -> None:
    """Keys and values see every token but the last of each sequence, the rest those that predict a target; the layer before
    sees all of them."""
    batch = pack(random_examples([30, 14, 25]))
    read, every = len(batch.targets_N), len(batch.input_ids_T) - 3
    assert read < every - 3  # some tokens are read by nobody, beside the last ones
    model = family(kind)
    seen = [rows_seen(layer) for layer in model.get_decoder().layers[-2:]]
    Scorer(model, "segmented")(batch)
    assert {name for name, rows in seen[0].items() if rows == [every]} == set(seen[0])
    assert {name: rows for name, rows in seen[1].items() if rows != [read]} == {"k_proj": [every], "v_proj": [every]}
    plain = family(kind)
    whole = rows_seen(plain.get_decoder().layers[-1])
    Scorer(plain, "segmented", fused=False)(batch)
    assert {name for name, rows in whole.items() if rows == [every]} == set(whole)


def test_so_do_the_fused_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of one input: queries; keys and values; what leads out of attention; gate and up; down."""
    batch = pack(random_examples([30, 14, 25]))
    read, every = len(batch.targets_N), len(batch.input_ids_T) - 3
    calls: list[tuple[int, int]] = []
    own = LowRankMaps.forward
    monkeypatch.setattr(
        LowRankMaps, "forward", lambda self, x: calls.append((len(self.maps), x.shape[0])) or own(self, x)
    )
    Scorer(lora_model(), "segmented")(batch)
    assert calls[:4] == [(3, every), (1, every), (2, every), (1, every)]
    assert calls[-5:] == [(1, read), (2, every), (1, read), (2, read), (1, read)]


def test_an_attention_that_is_listened_to_computes_all_rows() -> None:
    """A hook sees what its family's attention gives, and the result is the same."""
    batch = pack(random_examples([30, 14]))
    expected = Scorer(tiny_model("llama"), "segmented")(batch).logp_N
    model, seen = tiny_model("llama"), []
    model.get_decoder().layers[-1].self_attn.register_forward_hook(
        lambda module, inputs, output: seen.append(output[0].shape)
    )
    assert relative(Scorer(model, "segmented")(batch).logp_N, expected) < 1e-6
    assert seen == [(1, 42, 32)]


def readings(model: nn.Module, route: str, batch: Batch, wanted: Sequence[Any]) -> list[Tensor]:
    """What is read, then the gradient of a sum of it."""
    model.zero_grad(set_to_none=True)
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    scores = Scorer(model, route)(batch, wanted)  # type: ignore[arg-type]
    torch.stack(
        [(scores[item] * torch.linspace(0.5, 1, len(scores[item])).view(-1, 1)).sum() for item in wanted]
    ).sum().backward()
    return [*(scores[item].detach() for item in wanted), *gradients(model).values()]


@settings(max_examples=10, deadline=None)
@given(forests())
def test_heads_on_hidden_states_are_right(batch: Batch) -> None:
    """A value at every source, and a reward at every sequence's end, which predicts nothing."""
    model = tiny_model("qwen3")
    model.value = nn.Linear(32, 1)
    wanted = (TargetLogp(), HeadAt("value", "sources"), HeadAt("value", "ends"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.value.reset_parameters()
    segmented, padded = (readings(model, route, batch, wanted) for route in ("segmented", "padded"))
    assert len(segmented) == len(padded) > 3
    scale = torch.stack([part.norm() for part in padded[3:]]).norm()
    for value, reference in zip(segmented[:3], padded[:3], strict=True):
        assert relative(value, reference) < 1e-5
    assert all((a - b).norm() < 1e-5 * scale for a, b in zip(segmented[3:], padded[3:], strict=True))


def test_hidden_states_that_are_asked_for_are_whole() -> None:
    model = tiny_model("llama")
    batch = pack(random_examples([30, 14]))
    Scorer(model, "segmented")
    _, narrow_UH, _ = hidden_at(model, batch, batch.source_positions_N)
    output, hidden_UH, _ = hidden_at(model, batch, batch.source_positions_N, output_hidden_states=True)
    assert [states.shape[1] for states in output.hidden_states] == [44] * 4
    assert relative(narrow_UH, hidden_UH) < 1e-6
