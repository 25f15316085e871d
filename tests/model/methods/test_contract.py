"""What every method must do, over the registry: a new file is tested without editing this one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.config.plugins import METHODS
from luthier.data.packing import pack
from luthier.foundation.errors import ModelError
from luthier.model.merging import merge, without_adapter
from luthier.model.method import Apply, Method, count_parameters, save_for_resuming
from luthier.model.quiet import quiet_peft
from luthier.scoring.scorer import Scorer
from luthier.scoring.virtual_tokens import has_virtual_tokens
from tests.model.methods.families import FAMILIES, family_model
from tests.scoring.test_routes import random_examples
from tests.tiny import KINDS

# a method and a kind of model that it honestly refuses; see test_properties.py for what it says
REFUSED = {
    (name, kind)
    for name, kinds in {
        "bitfit": ("llama", "mistral", "baichuan", "mixtral"),
        "oft": ("gpt2",),
        "ia3": ("mixtral",),
        "llama_pro": ("mixtral",),
    }.items()
    for kind in kinds
}


def pairs(kinds: tuple[str, ...]) -> pytest.MarkDecorator:
    """Every method with every kind of model it takes."""
    taken = [(name, kind) for name in METHODS.names() for kind in kinds if (name, kind) not in REFUSED]
    return pytest.mark.parametrize(("name", "kind"), taken)


on_every_kind = pairs(KINDS)
HOW = Apply(seed=3, base_name="base/of-it", total_steps=30)


def build(name: str) -> Method:
    module = METHODS.load(name)
    made: Method = module.build(module.Options(name=name))
    return made


def is_ours(name: str) -> bool:
    """Whether a method writes adapters in a format of our own."""
    return hasattr(METHODS.load(name), "attach")


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=torch.arange(3, 40)[None]).logits
    return found


def one_step(model: nn.Module, rate: float = 1e-2) -> None:
    batch = pack(random_examples([12, 7]))
    scorer = Scorer(model).train()
    loss = -(scorer(batch).logp_N * batch.weights_N).sum() / batch.weights_N.sum()
    loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data -= rate * parameter.grad.sign()
            parameter.grad = None


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@on_every_kind
def test_fresh_weights_leave_the_model_as_it_is(name: str, kind: str) -> None:
    base = family_model(kind)
    expected = logits(base)
    model = build(name).apply(base, HOW)
    if has_virtual_tokens(model):
        pytest.skip("virtual tokens change what is seen from the first step")
    assert torch.equal(logits(model), expected)


@on_every_kind
def test_parameters_are_counted(name: str, kind: str) -> None:
    base = family_model(kind)
    bare = count_parameters(base).total
    count = count_parameters(build(name).apply(base, HOW))
    assert 0 < count.trainable <= count.total
    assert count.total >= bare
    assert (count.trainable == count.total) == (name == "full")


@on_every_kind
def test_a_step_changes_what_it_may_and_nothing_else(name: str, kind: str) -> None:
    model = build(name).apply(family_model(kind), HOW)
    trainable = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    before = state(model)
    one_step(model)
    one_step(model)  # LoRA's first factor moves only once the second is not zero
    changed = {n for n, value in state(model).items() if not torch.equal(value, before[n])}
    assert changed <= trainable
    assert changed, "nothing learnt"


@on_every_kind
def test_saved_and_loaded_gives_the_same_bits(name: str, kind: str, tmp_path: Path) -> None:
    method = build(name)
    model = method.apply(family_model(kind), HOW)
    one_step(model)
    one_step(model)
    model = plain_attention(model)
    expected = logits(model)
    method.save(model, tmp_path)
    save_for_resuming(method, model, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")], "no pickle"
    again = build(name).apply(family_model(kind), HOW)
    method.load(again, tmp_path)
    assert torch.equal(logits(again), expected)


@on_every_kind
def test_loads_in_plain_transformers_or_peft(name: str, kind: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    method = build(name)
    model = method.apply(family_model(kind), HOW)
    one_step(model)
    model = plain_attention(model)
    method.save(model, tmp_path)
    if method.saves == "model":
        plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    elif is_ours(name):
        plain = METHODS.load(name).attach(family_model(kind), tmp_path)
    else:
        with quiet_peft():
            plain = PeftModel.from_pretrained(family_model(kind), tmp_path)
        assert plain.peft_config["default"].base_model_name_or_path == HOW.base_name
    assert torch.allclose(logits(plain), logits(model), atol=1e-6)


@on_every_kind
def test_merged_is_the_same_model(name: str, kind: str) -> None:
    model = build(name).apply(family_model(kind), HOW)
    if has_virtual_tokens(model) or is_ours(name):
        with pytest.raises(ModelError, match="can't be merged"):
            merge(model)
        return
    one_step(model)
    one_step(model)
    model = plain_attention(model)
    expected = logits(model)
    assert torch.allclose(logits(merge(copy.deepcopy(model))), expected, atol=1e-5)


@on_every_kind
def test_disabled_is_the_base(name: str, kind: str) -> None:
    method = build(name)
    model: Any = method.apply(family_model(kind), HOW)
    if method.saves == "model":
        pytest.skip("no adapter to disable: the method changes the model's own weights")
    one_step(model)
    one_step(model)
    model = plain_attention(model)
    with without_adapter(model):
        assert torch.equal(logits(model), logits(family_model(kind)))


@on_every_kind
def test_the_same_seed_makes_the_same_weights(name: str, kind: str) -> None:
    made = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        made.append(state(build(name).apply(family_model(kind), HOW)))
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())


@pairs(("qwen2",))
def test_on_a_16_bit_base(name: str, kind: str, tmp_path: Path) -> None:
    """What is trained is float32 beside frozen 16-bit weights, and the saved adapter works on such a base."""
    from peft import PeftModel

    method = build(name)
    if method.saves == "model":
        pytest.skip("a whole model is trained in one precision")
    model = method.apply(family_model(kind).to(torch.bfloat16), HOW)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    one_step(model)
    expected = logits(plain_attention(model))
    method.save(model, tmp_path)
    base = family_model(kind).to(torch.bfloat16)
    with quiet_peft():
        attach = METHODS.load(name).attach if is_ours(name) else PeftModel.from_pretrained
        loaded: Any = attach(base, tmp_path)
    # a few of bfloat16's steps: it may sum in another order
    assert (logits(loaded) - expected).abs().max() < 0.05 * expected.abs().max()


@pairs(FAMILIES)
def test_other_families(name: str, kind: str, tmp_path: Path) -> None:
    """Targets and layers are found; fresh, it is the base; what is trained has a gradient, what is frozen is left alone;
    saved and loaded, it gives the same bits; disabled, the base's; merged, the same model."""
    method, plain = build(name), logits(family_model(kind))
    model: Any = method.apply(family_model(kind), HOW)
    if not has_virtual_tokens(model):
        assert torch.equal(logits(model), plain)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    scorer = Scorer(model)
    assert scorer.route == ("padded" if kind in ("bloom", "falcon") or has_virtual_tokens(model) else "segmented")
    before = state(model)
    one_step(model)
    one_step(model)
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == trainable
    model = plain_attention(model)
    expected = logits(model)
    method.save(model, tmp_path)
    save_for_resuming(method, model, tmp_path)
    again = build(name).apply(family_model(kind), HOW)
    method.load(again, tmp_path)
    assert torch.equal(logits(again), expected)
    if method.saves == "adapter":
        with without_adapter(model):
            assert torch.equal(logits(model), plain)
    if not has_virtual_tokens(model) and not is_ours(name):
        assert torch.allclose(logits(merge(model)), expected, atol=1e-5)


def plain_attention(model: nn.Module) -> nn.Module:
    """Scoring leaves the segmented attention set, which an ordinary forward pass can't use, and modules that compute in
    fewer passes, whose sums differ in the last bits."""
    from luthier.scoring.scorer import transformers_model

    transformers_model(model).set_attn_implementation("sdpa")
    for module in model.modules():
        vars(module).pop("forward", None)
    return model
