"""The property that defines each method, and its bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils.other import ModulesToSaveWrapper
from pydantic import ValidationError
from transformers import TrainerState

from luthier.config.plugins import METHODS
from luthier.data.packing import pack
from luthier.foundation.errors import ModelError, TrainingError
from luthier.model.method import Apply, count_parameters, save_for_resuming
from luthier.model.methods import (
    adalora,
    bitfit,
    freeze,
    full,
    ia3,
    lora,
    norm_tuning,
    oft,
    p_tuning,
    prefix_tuning,
    prompt_tuning,
    vera,
)
from luthier.model.methods._peft_adapter import PeftMethod
from luthier.scoring.padded import unroll
from luthier.scoring.scorer import Scorer
from luthier.training.optimization import parameter_groups
from tests.model.methods.families import family_model
from tests.scoring.test_routes import random_examples
from tests.tiny import tiny_model

HOW = Apply(seed=3)


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("layers", "expected"), [(1, {2}), (2, {1, 2}), (-1, {0}), (-2, {0, 1}), (3, {0, 1, 2})])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_freeze_trains_the_last_or_first_layers(kind: str, layers: int, expected: set[int]) -> None:
    model = freeze.build(freeze.Options(trainable_layers=layers)).apply(tiny_model(kind), HOW)
    prefix = "model.layers" if kind == "llama" else "transformer.h"
    assert {int(name.removeprefix(f"{prefix}.").split(".")[0]) for name in trained(model)} == expected
    for index in expected:
        assert all(p.requires_grad for n, p in model.named_parameters() if n.startswith(f"{prefix}.{index}."))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lm_head", {"lm_head.weight"}),
        ("model.norm", {"model.norm.weight"}),
        ("model.layers.1.mlp", {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}),
        ("k_proj", {f"model.layers.{i}.self_attn.k_proj.weight" for i in range(3)}),
        ("model.layers.*.input_layernorm", {f"model.layers.{i}.input_layernorm.weight" for i in range(3)}),
    ],
)
def test_freeze_trains_named_modules(name: str, expected: set[str]) -> None:
    options = freeze.Options(trainable_layers=0, trainable_modules=[name])
    assert trained(freeze.build(options).apply(tiny_model("llama"), HOW)) == expected


def test_freeze_names_what_exists() -> None:
    with pytest.raises(ModelError) as caught:
        freeze.build(freeze.Options(trainable_modules=["self_atn"])).apply(tiny_model("llama"), HOW)
    assert "Did you mean self_attn" in str(caught.value)
    assert "q_proj" in str(caught.value)
    with pytest.raises(ModelError, match="has 3 layers"):
        freeze.build(freeze.Options(trainable_layers=4)).apply(tiny_model("llama"), HOW)
    with pytest.raises(ModelError, match="nothing would learn"):
        freeze.build(freeze.Options(trainable_layers=0)).apply(tiny_model("llama"), HOW)


def test_full_trains_everything_in_float32() -> None:
    model = full.build(full.Options()).apply(tiny_model("llama").to(torch.bfloat16), HOW)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    pure = full.build(full.Options()).apply(tiny_model("llama"), Apply(seed=3, pure_bf16=True))
    assert {p.dtype for p in pure.parameters()} == {torch.bfloat16}


def test_frozen_weights_keep_their_16_bits() -> None:
    model = lora.build(lora.Options()).apply(tiny_model("llama").to(torch.bfloat16), HOW)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "peft"),
    [
        ({}, {}),
        ({"use_rslora": True, "rank": 4}, {"use_rslora": True, "r": 4}),
        ({"use_dora": True}, {"use_dora": True}),
        ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
        ({"init": "orthogonal"}, {"init_lora_weights": "orthogonal"}),
        (
            {"bias": "all", "target_modules": ["q_proj", "v_proj"]},
            {"bias": "all", "target_modules": ["q_proj", "v_proj"]},
        ),
        ({"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
        (
            {"target_modules": r".*layers\.1\..*_proj", "dropout": 0.1},
            {"target_modules": r".*layers\.1\..*_proj", "lora_dropout": 0.1},
        ),
    ],
)
def test_lora_is_pefts_own(options: dict, peft: dict) -> None:
    """Same modules, same settings, and with the same seed the same bits as peft makes them."""
    ours = lora.build(lora.Options(**options)).apply(tiny_model("qwen2"), HOW)
    torch.manual_seed(3)
    defaults = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(tiny_model("qwen2"), LoraConfig(**{**defaults, **peft}))
    assert trained(ours) == trained(theirs)
    own, reference = ours.state_dict(), theirs.state_dict()
    assert own.keys() == reference.keys()
    assert all(torch.equal(own[name], value) for name, value in reference.items())


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("llama", "norm", {"model.norm"}),
        ("llama", "layers.1.mlp", {"model.layers.1.mlp"}),
        ("llama", "input_layernorm", {f"model.layers.{index}.input_layernorm" for index in range(3)}),
        ("gpt2", "attn", {f"transformer.h.{index}.attn" for index in range(3)}),
    ],
)
def test_modules_learn_whole_by_parts_of_their_names(kind: str, name: str, expected: set[str], tmp_path: Path) -> None:
    """peft takes any ending of a name: input_layernorm for norm, c_attn for attn. What is saved says the same to it."""
    method = lora.build(
        lora.Options(modules_to_save=[name], target_modules=[{"llama": "q_proj", "gpt2": "c_fc"}[kind]])
    )
    made: Any = method.apply(tiny_model(kind), HOW)
    method.save(made, tmp_path)
    for model in (made, PeftModel.from_pretrained(tiny_model(kind), tmp_path)):
        inner = model.get_base_model()
        assert {full for full, part in inner.named_modules() if isinstance(part, ModulesToSaveWrapper)} == expected


def test_lora_finds_conv1d_of_gpt2() -> None:
    model = lora.build(lora.Options(rank=2)).apply(tiny_model("gpt2"), HOW)
    # c_attn 32 -> 96, c_proj 32 -> 32, c_fc 32 -> 128, c_proj 128 -> 32, in three layers
    assert count_parameters(model).trainable == 3 * 2 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_proj", "qproj"]}, "'qproj'"),
        ({"target_modules": ".*nothing.*"}, "expression '.*nothing.*'"),
        ({"target_modules": "(["}, "is broken"),
        ({"modules_to_save": ["head"]}, "modules_to_save names 'head'"),
    ],
)
def test_names_that_match_nothing(options: dict, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        lora.build(lora.Options(**options)).apply(tiny_model("llama"), HOW)
    assert said in str(caught.value)
    if "broken" not in said:
        assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(caught.value)


# --- variants of LoRA -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
@pytest.mark.parametrize(("kind", "init"), [("llama", "pissa"), ("gpt2", "pissa_niter_16"), ("qwen2", "olora")])
def test_an_update_taken_out_of_the_weight_fits_the_untouched_base(
    kind: str, init: str, options: dict, tmp_path: Path
) -> None:
    """Base and update start as the base (to rounding), the base alone does not; saved, it is a plain LoRA of twice the
    rank that plain peft puts on the base, and loaded back it has the same bits."""
    ids = torch.arange(3, 40)[None]
    base = tiny_model(kind)
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = lora.build(lora.Options(init=init, rank=4, **options))
        made: Any = model.apply(tiny_model(kind), HOW)
        assert torch.allclose(made(input_ids=ids).logits, before, atol=1e-4)
        with made.disable_adapter():
            assert (made(input_ids=ids).logits - before).abs().max() > 0.1
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        trained_logits = made(input_ids=ids).logits
        model.save(made, tmp_path)
        plain = PeftModel.from_pretrained(base, tmp_path)
        assert plain.peft_config["default"].r == 8
        assert torch.allclose(plain(input_ids=ids).logits, trained_logits, atol=1e-4)
        other = lora.build(lora.Options(init=init, rank=4, **options))
        again = other.apply(tiny_model(kind), HOW)
        other.load(again, tmp_path)
        own = dict(made.named_parameters())
        assert all(torch.equal(parameter, own[name]) for name, parameter in again.named_parameters())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_follows_the_model_to_another_device(
    init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine moves the model after the method has been applied; what is written is on the model's device."""
    written: dict[str, torch.Tensor] = {}

    def note(method: Any, model: torch.nn.Module, folder: Path) -> None:
        written.update({name: value.data for name, value in model.named_parameters() if "lora_" in name})

    method = lora.build(lora.Options(init=init, rank=4))
    made = method.apply(tiny_model("llama"), HOW)
    monkeypatch.setattr(PeftMethod, "save", note)
    method.save(made.to("meta"), tmp_path)
    assert {value.device.type for value in written.values()} == {"meta"}
    assert {min(value.shape) for value in written.values()} == {8}


def test_lora_plus_gives_the_second_factor_its_own_learning_rate() -> None:
    method = lora.build(lora.Options(lora_plus_ratio=16))
    model = method.apply(tiny_model("llama"), HOW)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for group in parameter_groups(model, 0.1, 1e-3, method.learning_rate_ratio)
        for parameter in group["params"]
    }
    assert rates.keys() == trained(model)
    assert all(rate == pytest.approx(1.6e-2 if "lora_B" in name else 1e-3) for name, rate in rates.items())


def test_a_start_that_a_model_can_not_give_says_why() -> None:
    with pytest.raises(ModelError, match="loftq, which mends the error of a quantized base, and this base is not"):
        lora.build(lora.Options(init="loftq")).apply(tiny_model("llama"), HOW)
    with pytest.raises(ModelError, match="computes wrongly for the Conv1D"):
        lora.build(lora.Options(init="olora")).apply(tiny_model("gpt2"), HOW)


# --- a few weights of the model's own ---------------------------------------------------------------------------------


def test_bitfit_trains_the_biases() -> None:
    model = bitfit.build(bitfit.Options()).apply(tiny_model("qwen2"), HOW)
    assert trained(model) == {f"model.layers.{i}.self_attn.{part}_proj.bias" for i in range(3) for part in "qkv"}
    with pytest.raises(ModelError, match="no bias terms") as caught:
        bitfit.build(bitfit.Options()).apply(tiny_model("llama"), HOW)
    assert "norm_tuning" in str(caught.value)
    assert "lora" in str(caught.value)


def test_norm_tuning_trains_the_norms() -> None:
    model = norm_tuning.build(norm_tuning.Options()).apply(tiny_model("llama"), HOW)
    assert count_parameters(model).trainable == 32 * (3 * 2 + 1)  # two in each of three layers, one at the end


# --- scales, rotations, shared matrices -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "scaled"),
    [("llama", {"k_proj", "v_proj", "down_proj"}), ("gpt2", {"c_attn", "c_proj"}), ("falcon", {"query_key_value", "dense_4h_to_h"})],
)  # fmt: skip
def test_ia3_finds_keys_values_and_the_feed_forward(kind: str, scaled: set[str]) -> None:
    model = ia3.build(ia3.Options()).apply(family_model(kind), HOW)
    assert {name.split(".ia3_l")[0].split(".")[-1] for name in trained(model)} == scaled
    assert not any("attn.c_proj" in name for name in trained(model)), "only the feed-forward's own"


def test_ia3_names_what_is_wrong() -> None:
    with pytest.raises(ModelError, match="'kproj'"):
        ia3.build(ia3.Options(target_modules=["kproj"])).apply(tiny_model("llama"), HOW)
    with pytest.raises(ModelError, match="both name down_proj"):
        ia3.build(ia3.Options(target_modules=["down_proj"])).apply(tiny_model("llama"), HOW)


def test_vera_trains_two_vectors_a_layer_beside_shared_matrices() -> None:
    model = vera.build(vera.Options(rank=16, target_modules=["q_proj", "v_proj"])).apply(tiny_model("llama"), HOW)
    # b has the output's width (32 and 16), d the rank
    assert count_parameters(model).trainable == 3 * ((32 + 16) + (16 + 16))
    shared = {buffer.data_ptr() for name, buffer in model.named_buffers() if "vera_A" in name}
    assert len(shared) == 1


@pytest.mark.parametrize(("exact", "error"), [(True, 1e-5), (False, 3e-3)])
def test_oft_keeps_the_length_of_what_it_turns(exact: bool, error: float) -> None:
    """W R with R orthogonal: every row of the merged weight has the length of the base's."""
    base = tiny_model("llama")
    lengths = base.model.layers[0].self_attn.q_proj.weight.norm(dim=1)
    model: Any = oft.build(oft.Options(exact=exact, block_size=8)).apply(tiny_model("llama"), HOW)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    turned = model.merge_and_unload().model.layers[0].self_attn.q_proj.weight
    assert (turned - base.model.layers[0].self_attn.q_proj.weight).abs().max() > 0.05
    assert torch.allclose(turned.norm(dim=1), lengths, rtol=error)


def test_oft_says_what_it_can_not_turn(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="Conv1D"):
        oft.build(oft.Options()).apply(tiny_model("gpt2"), HOW)
    oft.build(oft.Options()).apply(tiny_model("llama"), HOW)  # its feed-forward is 48 wide
    assert "no multiple of block_size 32 have blocks of 24" in capsys.readouterr().err


def test_p_tuning_saves_what_its_network_gives_without_dropout(tmp_path: Path) -> None:
    """A checkpoint is written in the midst of training: what it says is what an evaluation at that step measured."""
    method = p_tuning.build(p_tuning.Options(encoder="lstm", encoder_dropout=0.5))
    model: Any = method.apply(tiny_model("qwen2"), HOW)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        measured = model.eval()(input_ids=ids).logits
        method.save(model.train(), tmp_path)
        assert model.prompt_encoder["default"].training
        plain = PeftModel.from_pretrained(tiny_model("qwen2"), tmp_path)
        assert torch.equal(plain(input_ids=ids).logits, measured)


# --- a budget of ranks ------------------------------------------------------------------------------------------------


def adalora_steps(model: Any, method: Any, steps: int) -> list[float]:
    """Train as the loop does: the penalty, the optimizer's step, the method's callback, gradients away."""
    scorer = Scorer(model, penalty=lambda: method.penalty(model))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    (callback,) = method.callbacks(model)
    batch, losses = pack(random_examples([12, 7])), []
    for step in range(steps):
        scores = scorer.train()(batch)
        loss = -scores.logp_N.mean() + scores.auxiliary_loss
        loss.backward()
        optimizer.step()
        callback.on_optimizer_step(None, TrainerState(global_step=step), None)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_adalora_reaches_its_target_rank() -> None:
    options = adalora.Options(initial_rank=6, target_rank=2, steps_between_cuts=2)
    method = adalora.build(options)
    model = method.apply(tiny_model("llama"), Apply(seed=3, total_steps=20))
    adalora_steps(model, method, 20)
    left = [int((value != 0).sum()) for name, value in model.named_parameters() if "lora_E" in name]
    assert sum(left) == 2 * len(left)
    assert len(set(left)) > 1, "important layers keep more"


def test_adalora_is_pefts_own() -> None:
    """The same losses as plain peft under its documented loop, penalty included, to four digits."""
    options = adalora.Options(initial_rank=6, target_rank=2, steps_between_cuts=2, target_modules=["q_proj", "v_proj"])
    method = adalora.build(options)
    ours = adalora_steps(method.apply(tiny_model("llama"), Apply(seed=3, total_steps=20)), method, 20)
    torch.manual_seed(3)
    settings = {"init_r": 6, "target_r": 2, "deltaT": 2, "tinit": 2, "tfinal": 6, "total_step": 20, "lora_alpha": 16}
    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **settings)
    theirs: Any = get_peft_model(tiny_model("llama"), config).train()
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2)
    rows = unroll(pack(random_examples([12, 7])))
    labels_RL = torch.full_like(rows.input_ids_RL, -100)
    labels_RL[rows.row_N, rows.column_N + 1] = pack(random_examples([12, 7])).targets_N
    losses = []
    for step in range(20):
        loss = theirs(input_ids=rows.input_ids_RL, attention_mask=rows.attention_mask_RL, labels=labels_RL).loss
        loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step + 1)
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert ours == pytest.approx(losses, rel=1e-4)


def test_adalora_goes_on_where_the_model_is(tmp_path: Path) -> None:
    """A checkpoint is put back after the engine has moved the model: what the allocator remembers goes there too."""
    options = adalora.Options(initial_rank=6, target_rank=2, steps_between_cuts=2)
    method = adalora.build(options)
    model = method.apply(tiny_model("llama"), Apply(seed=3, total_steps=20))
    adalora_steps(model, method, 4)
    method.save(model, tmp_path)
    save_for_resuming(method, model, tmp_path)
    again: Any = method.apply(tiny_model("llama"), Apply(seed=3, total_steps=20)).double()
    method.load(again, tmp_path)
    allocator, parameters = again.base_model.rankallocator, dict(again.base_model.model.named_parameters())
    for mean in adalora.MEANS:
        kept = getattr(allocator, mean)
        assert kept.keys() == {name for name in parameters if "lora_" in name}
        assert all(value.dtype == parameters[name].dtype == torch.float64 for name, value in kept.items())


@pytest.mark.parametrize("saved_at", [2, 12])
def test_adalora_is_put_back_into_a_model_that_is_past_its_cuts(saved_at: int, tmp_path: Path) -> None:
    """As the best checkpoint is when a run ends, be it from before the first cut or between two: its weights and its ranks."""
    method = adalora.build(adalora.Options(initial_rank=6, target_rank=2, steps_between_cuts=2))
    model: Any = method.apply(tiny_model("llama"), Apply(seed=3, total_steps=20))
    adalora_steps(model, method, saved_at)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    pattern = model.peft_config["default"].rank_pattern
    assert (pattern is None) == (saved_at == 2)
    method.save(model, tmp_path)
    save_for_resuming(method, model, tmp_path)
    adalora_steps(model, method, 20)
    method.load(model, tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.peft_config["default"].rank_pattern == pattern


def lost_step(model: Any, method: Any, step: int) -> None:
    """The callback after a step that fp16's scaler gave up: a clipped overflow leaves nan, and noughts beside it."""
    (callback,) = method.callbacks(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    trained[-1].grad[0] = torch.nan
    callback.on_optimizer_step(None, TrainerState(global_step=step), None)
    for parameter in trained:
        parameter.grad = None


def test_adalora_passes_over_steps_lost_in_fp16() -> None:
    """Ranks are cut all the same, by what the other steps say."""
    options = adalora.Options(initial_rank=6, target_rank=2, steps_between_cuts=2)
    method = adalora.build(options)
    model: Any = method.apply(tiny_model("llama"), Apply(seed=3, total_steps=20))
    lost_step(model, method, 0)
    assert not model.base_model.rankallocator.exp_avg_ipt
    adalora_steps(model, method, 5)
    before = {name: value.clone() for name, value in model.base_model.rankallocator.exp_avg_ipt.items()}
    lost_step(model, method, 5)  # a cut would fall on it
    after = model.base_model.rankallocator.exp_avg_ipt
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    adalora_steps(model, method, 20)
    left = [int((value != 0).sum()) for name, value in model.named_parameters() if "lora_E" in name]
    assert sum(left) == 2 * len(left)


def test_adalora_that_learnt_nothing_of_importance_says_so() -> None:
    method = adalora.build(adalora.Options(steps_between_cuts=2))
    model = method.apply(tiny_model("llama"), Apply(seed=3, total_steps=4))
    for step in range(2):
        lost_step(model, method, step)
    with pytest.raises(TrainingError, match="last time in step 3, and every step before overflowed"):
        lost_step(model, method, 2)


def test_adalora_counts_what_no_token_reached_as_nought() -> None:
    method = adalora.build(adalora.Options(initial_rank=6, target_rank=2))
    model: Any = method.apply(tiny_model("llama"), Apply(seed=3, total_steps=20))
    (callback,) = method.callbacks(model)
    chosen = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parameter in list(chosen.values())[3:]:
        parameter.grad = torch.ones_like(parameter)
    callback.on_optimizer_step(None, TrainerState(global_step=0), None)
    means = model.base_model.rankallocator.exp_avg_ipt
    idle = [name.removeprefix("base_model.model.") for name in list(chosen)[:3]]
    assert all(not means[name].any() for name in idle)
    assert any(value.any() for name, value in means.items() if name not in idle)


def test_adalora_needs_a_step_before_its_last_cut() -> None:
    with pytest.raises(ModelError, match="last time in step 1 of 1"):
        adalora.build(adalora.Options()).apply(tiny_model("llama"), Apply(seed=3, total_steps=1))
    adalora_steps(*made_of(adalora.Options(steps_between_cuts=1), total_steps=2), steps=2)


def made_of(options: adalora.Options, total_steps: int) -> tuple[Any, Any]:
    method = adalora.build(options)
    return method.apply(tiny_model("llama"), Apply(seed=3, total_steps=total_steps)), method


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_rank": 12}, "nothing to cut"),
        ({"initial_share": 0.6, "final_share": 0.5}, "leave no steps"),
    ],
)
def test_adalora_budgets_that_can_not_be_kept(settings: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        adalora.Options(**settings)


@pytest.mark.parametrize(
    ("module", "settings", "said"),
    [
        (prompt_tuning, {"init": "text"}, "text is empty"),
        (prompt_tuning, {"text": "words"}, "would not be read"),
        (p_tuning, {"encoder_dropout": 0.1}, "LSTM only"),
        (prefix_tuning, {"encoder_hidden_size": 8}, "projection is false"),
    ],
)
def test_settings_that_would_not_act_are_refused(module: Any, settings: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        module.Options(**settings)


@pytest.mark.parametrize("name", ["bitfit", "ia3", "prompt_tuning"])
def test_new_tokens_need_a_method_that_trains_embeddings(name: str) -> None:
    module = METHODS.load(name)
    with pytest.raises(ModelError, match="adds 1 tokens to the vocabulary"):
        module.build(module.Options()).apply(tiny_model("qwen2"), Apply(seed=3, new_token_ids=[299]))
