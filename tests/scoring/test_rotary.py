"""Rotations in fewer passes: the mathematics, transformers' own function, and when a layer keeps it."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from luthier.scoring.fused.choosing import fuse
from luthier.scoring.fused.rotary import Rotation
from tests.tiny import tiny_model


def angles(length: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """cos and sin [1, T, D] of every position and frequency."""
    frequencies = 10.0 ** -torch.arange(width // 2, dtype=dtype)
    both = (torch.arange(length, dtype=dtype)[:, None] * frequencies).repeat(1, 2)[None]
    return both.cos(), both.sin()


def test_a_head_of_two_turns_by_its_position() -> None:
    """(1, 0) at position t becomes (cos t, sin t)."""
    cos, sin = angles(3, 2)
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, 1, 3, 2)
    expected = torch.tensor([[math.cos(t), math.sin(t)] for t in range(3)], dtype=torch.float64)
    assert torch.allclose(Rotation.apply(x, cos, sin)[0, 0], expected)


def test_it_passes_gradcheck() -> None:
    """With angles that differ between the halves, too: the formula does not ask for equal ones."""
    torch.manual_seed(0)
    x = torch.randn(1, 5, 2, 6, dtype=torch.float64).transpose(1, 2).requires_grad_()
    cos, sin = torch.randn(2, 1, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(Rotation.apply, (x, cos, sin))
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    assert torch.allclose(Rotation.apply(x, cos, sin), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("family", "settings"), [("Llama", {}), ("Qwen2", {}), ("Qwen3", {"head_dim": 4}), ("Mistral", {"head_dim": 4})]
)
def test_a_family_computes_the_same_with_it(family: str, settings: dict[str, int]) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(vocab_size=20, num_key_value_heads=2, **small, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).double().eval()
    ids = torch.randint(3, 20, (2, 7))
    found: list[tuple[Tensor, ...]] = []
    for fused in (False, True):
        if fused:
            assert fuse(model)[f"{family}Attention"] == 2
        logits = model(input_ids=ids, use_cache=False).logits
        found.append((logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))))
    for value, reference in zip(found[1], found[0], strict=True):
        assert torch.allclose(value, reference, rtol=1e-10, atol=1e-10)


def passes(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a forward turns something by `Rotation`."""
    calls: list[int] = []
    own = Rotation.apply
    with monkeypatch.context() as patch:
        patch.setattr(Rotation, "apply", lambda *arguments: calls.append(1) or own(*arguments))
        model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
    return len(calls)


def test_a_layer_steps_back_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    layers = model.config.num_hidden_layers
    assert fuse(model)["LlamaAttention"] == layers
    assert fuse(model)["LlamaAttention"] == 0, "a forward that stands there already is left alone"
    assert passes(model, monkeypatch) == 2 * layers
    with torch.autocast("cpu", dtype=torch.bfloat16):  # queries of 16 bits, angles of 32
        assert passes(model, monkeypatch) == 2 * layers
    rotary = model.model.rotary_emb
    own = rotary.forward
    monkeypatch.setattr(rotary, "forward", lambda *a, **k: tuple(part.bfloat16() for part in own(*a, **k)))
    assert passes(model, monkeypatch) == 0  # angles of 16 bits, queries of 32


def test_values_of_16_bits_are_turned_in_the_precision_of_their_angles() -> None:
    torch.manual_seed(0)
    cos, sin = angles(5, 6, torch.float32)
    x = torch.randn(1, 2, 5, 6).bfloat16().requires_grad_()
    turned = Rotation.apply(x, cos, sin)
    expected, _ = apply_rotary_pos_emb(x, x, cos, sin)
    assert turned.dtype == torch.bfloat16 and torch.equal(turned, expected.bfloat16())
    direction = torch.randn(1, 2, 5, 6).bfloat16()
    (own,) = torch.autograd.grad((turned * direction).sum(), x)
    wide = x.detach().float().requires_grad_()
    (exact,) = torch.autograd.grad((apply_rotary_pos_emb(wide, wide, cos, sin)[0] * direction).sum(), wide)
    assert own.dtype == torch.bfloat16 and torch.allclose(own.float(), exact, rtol=2**-8, atol=1e-6)


def test_other_rotations_are_left_alone() -> None:
    """Pairs that stand side by side (Cohere), and positions that are learnt (GPT-2)."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    with torch.device("meta"):
        model = transformers.CohereForCausalLM(transformers.CohereConfig(vocab_size=20, pad_token_id=0, **small))
    assert fuse(model)["CohereAttention"] == 0
    assert fuse(tiny_model("gpt2"))["GPT2Attention"] == 0
