"""What every optimizer must do, over the registry: a new file is tested without editing this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.config.plugins import OPTIMIZERS
from luthier.config.sections import OPTIMIZER_SETTINGS
from luthier.foundation.errors import ConfigError
from luthier.training.optimization import (
    check_optimizer,
    make_scheduler,
    optimizer_state,
    restore_optimizer,
    to_evaluation,
    to_training,
    trained_shapes,
)
from luthier.training.trained import gradient_bytes, state_bytes, total_bytes
from tests.training.optimizers.tiny_runs import TinyRun, config_of

every = pytest.mark.parametrize("name", OPTIMIZERS.names())
RATE = 2e-3  # AdamW's on the tiny model; others take it times their ratio


def run_of(name: str, method: str = "full", **training: Any) -> TinyRun:
    config = config_of(name, **training)
    if "learning_rate" not in training:
        config = config_of(name, learning_rate=RATE * config.training.optim.learning_rate_ratio, **training)
    return TinyRun(config, method)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of the weights that have the same bits."""
    return [name for name, value in one.items() if torch.equal(value, other[name])]


@every
def test_training_lowers_the_loss(name: str) -> None:
    """At AdamW's rate times the ratio that its options name."""
    losses = run_of(name).steps(40)
    assert losses[-1] < 0.6 * losses[0]
    assert max(losses) < 1.1 * losses[0]


@every
def test_everything_trained_moves_and_nothing_else(name: str) -> None:
    run = run_of(name, "freeze")
    trained = {n for n, parameter in run.model.named_parameters() if parameter.requires_grad}
    before = run.weights()
    run.steps(6)
    assert set(before) - set(same(run.weights(), before)) == trained
    assert trained < set(before)


@every
def test_both_factors_of_lora_learn(name: str) -> None:
    """The first factor has no gradient in its first step, for the second starts at zero."""
    run = run_of(name, "lora")
    trained = [n for n, parameter in run.model.named_parameters() if parameter.requires_grad]
    before = run.weights()
    losses = run.steps(12)
    assert not set(same(run.weights(), before)) & set(trained)
    assert losses[-1] < losses[0]
    far = {
        factor: max(_share_moved(run.weights()[n], before[n]) for n in trained if factor in n)
        for factor in ("lora_A", "lora_B")
    }
    assert min(far.values()) > 1e-3, far


def _share_moved(after: torch.Tensor, before: torch.Tensor) -> float:
    return float((after - before).norm() / (1 + before.norm()))


@every
def test_a_rate_of_zero_moves_nothing(name: str) -> None:
    run = run_of(name, weight_decay=0.1)
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    before = run.weights()
    run.steps(2)
    assert len(same(run.weights(), before)) == len(before)


@every
def test_each_group_has_a_rate_of_its_own(name: str) -> None:
    """The rate of one matrix is set to zero, as LoRA+ makes others larger: that one holds still, the others move."""
    from luthier.training.optimization import make_optimizer

    run = run_of(name)
    still = "model.layers.1.mlp.up_proj.weight"
    run.optimizer = make_optimizer(run.config, run.model, lambda parameter: float(parameter != still))
    before = run.weights()
    run.steps(10)
    assert same(run.weights(), before) == [still]


@every
def test_decay_shrinks_matrices_and_leaves_norms(name: str) -> None:
    """Without a gradient what is left of a step is the decay: theta (1 - lr * weight_decay)."""
    run = run_of(name, weight_decay=0.5, learning_rate=0.01)
    to_training(run.optimizer)
    before = run.weights()
    for parameter in run.model.parameters():
        if parameter.requires_grad:  # one block of badam's
            parameter.grad = torch.zeros_like(parameter)
    moved = [n for n, parameter in run.model.named_parameters() if parameter.requires_grad and "norm" not in n]
    run.optimizer.step()
    after = run.weights()
    for n, value in before.items():
        torch.testing.assert_close(after[n], value * (0.995 if n in moved else 1.0), msg=n)


@every
def test_a_state_written_and_read_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    """Saved after any step, in the middle of a subspace's or a block's turn too; only safetensors and JSON."""
    whole, broken = run_of(name), run_of(name)
    for steps in (1, 3, 1):
        broken.steps(steps)
        to_evaluation(broken.optimizer)
        tensors, rest = optimizer_state(broken.model, broken.optimizer)
        save_file(tensors, tmp_path / "optimizer.safetensors")
        read = json.loads(json.dumps(rest))
        again = run_of(name)
        again.model.load_state_dict(broken.model.state_dict())
        counts = again.config.training.optim.counts
        restore_optimizer(again.model, again.optimizer, load_file(tmp_path / "optimizer.safetensors"), read, counts)
        broken = again
    ends = []
    for run, left in ((whole, 12), (broken, 7)):
        run.steps(left)
        to_evaluation(run.optimizer)
        ends.append((run.weights(), optimizer_state(run.model, run.optimizer)))
    (weights, (tensors, rest)), (own, (own_tensors, own_rest)) = ends
    assert len(same(own, weights)) == len(weights)
    assert own_tensors.keys() == tensors.keys()
    assert len(same(own_tensors, tensors)) == len(tensors)
    assert json.loads(json.dumps(own_rest)) == json.loads(json.dumps(rest))


@every
def test_its_memory_is_what_it_says(name: str) -> None:
    """At its most over two rounds: after steps, and while the weights are those of an evaluation."""
    run = run_of(name)
    optim, parameters = run.config.training.optim, trained_shapes(run.model)
    measured, gradients = 0, 0
    for _ in range(12):
        run.gradients()
        gradients = max(gradients, sum(p.grad.nbytes for p in run.model.parameters() if p.grad is not None))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        to_evaluation(run.optimizer)
        kept = {
            value.data_ptr(): value.nbytes
            for state in run.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.numel() > 1  # not the counters
        }
        measured = max(measured, sum(kept.values()))
    assert measured == state_bytes(optim, parameters)
    assert gradients == gradient_bytes(optim, parameters)
    assert gradients <= total_bytes(parameters)


@pytest.fixture(scope="module")
def updates() -> dict[str, list[int]]:
    """What each optimizer's step takes, and what it says, in a process whose heap has no holes yet."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this kernel resets no peak of the resident set")
    command = [sys.executable, "-m", "tests.training.optimizers.update_memory"]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment)
    found: dict[str, list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set's peak is read from /proc")
@every
def test_an_update_works_in_what_it_says(name: str, updates: dict[str, list[int]]) -> None:
    grown, said = updates[name]
    assert grown == pytest.approx(said, rel=0.15, abs=2e6)


@every
def test_a_step_lost_to_an_overflow_leaves_no_trace(name: str) -> None:
    """fp16: the scaler finds an infinite gradient, and neither weights nor state nor counters move."""
    run = run_of(name)
    run.steps(3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.zeros(()))

    def trace() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str]:
        tensors, rest = optimizer_state(run.model, run.optimizer)
        return run.weights(), {key: value.clone() for key, value in tensors.items()}, json.dumps(rest)

    run.gradients()
    next(p for p in run.model.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]
    weights, tensors, rest = trace()
    scaler.unscale_(run.optimizer)
    scaler.step(run.optimizer)
    scaler.update()
    assert scaler.get_scale() == 1.0
    own_weights, own_tensors, own_rest = trace()
    assert len(same(own_weights, weights)) == len(weights)
    assert len(same(own_tensors, tensors)) == len(tensors)
    assert own_rest == rest


@every
def test_gradients_are_there_after_the_step(name: str) -> None:
    """Callbacks look at them then: adalora's does."""
    run = run_of(name)
    run.steps(1)
    run.gradients()
    before = {n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None}
    run.optimizer.step()
    after = {n: p.grad for n, p in run.model.named_parameters() if p.grad is not None}
    assert same(before, after) == list(before)  # type: ignore[arg-type]


@every
def test_pure_bfloat16(name: str) -> None:
    run = run_of(name)
    run.model.to(torch.bfloat16)
    losses = run.steps(12)
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.bfloat16 for parameter in run.model.parameters())


@every
def test_it_is_checked_without_weights(name: str) -> None:
    """On the meta device, where a run finds out what does not fit before it reads anything large."""
    run = run_of(name)
    run.model.to("meta")
    check_optimizer(run.config, run.model, lambda parameter: 1.0, total_steps=10_000)


@every
def test_every_schedule_it_takes_drives_it(name: str) -> None:
    shapes = config_of(name).training.optim.schedules or ("linear", "cosine", "polynomial", "constant_with_warmup")
    for shape in shapes:
        run = run_of(name, lr_scheduler_type=shape, **({"warmup_steps": 3} if "warmup" in shape else {}))
        scheduler = make_scheduler(run.config, run.optimizer, total_steps=8)
        rates = []
        for _ in range(6):
            run.steps(1)
            rates.append(run.optimizer.param_groups[-1]["lr"])
            scheduler.step()
        peak = run.config.learning_rate()
        assert max(rates) == pytest.approx(peak)
        assert (min(rates) < peak) == (shape != "constant")


@every
def test_its_options_are_described(name: str) -> None:
    options = OPTIMIZERS.load(name).Options
    for key, field in options.model_fields.items():
        assert key == "name" or field.description, key
    assert options().name == name
    assert callable(OPTIMIZERS.load(name).state_bytes)


# option -> another value, and what else must be set for it to be seen
CHANGES: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {
    "adafactor": {
        "decay_rate": (-0.5, {}),
        "clip_threshold": (0.1, {}),
        "beta1": (0.9, {}),
        "scale_parameter": (True, {}),
    },
    "adamw": {},
    "adamw8bit": {"min_8bit_size": (10_000, {})},
    "apollo": {
        "rank": (4, {}),
        "update_proj_gap": (1, {}),
        "scale_type": ("tensor", {"scale": 1.0}),
        "scale": (4.0, {}),
        "norm_growth": (1.5, {}),
    },
    "badam": {"switch_block_every": (3, {}), "switch_mode": ("descending", {})},
    "galore": {"rank": (4, {}), "update_proj_gap": (1, {}), "scale": (0.5, {})},
    "lion": {"beta1": (0.5, {}), "beta2": (0.5, {})},
    "muon": {"momentum": (0.5, {}), "nesterov": (False, {}), "ns_steps": (3, {})},
    "schedule_free": {"r": (2.0, {}), "weight_lr_power": (0.0, {"warm": True})},
    "sgd": {"momentum": (0.5, {}), "nesterov": (True, {})},
}
ELSEWHERE = {("adamw8bit", "paged")}  # needs CUDA: tests/training/optimizers/test_formulae.py


def test_every_option_has_a_line_above() -> None:
    known = {(name, key) for name, changes in CHANGES.items() for key in changes} | ELSEWHERE
    for name in OPTIMIZERS.names():
        for key in set(OPTIMIZERS.load(name).Options.model_fields) - {"name"}:
            assert (name, key) in known, f"{name}.{key}"


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, changes in CHANGES.items() for key in changes])
def test_every_option_acts(name: str, key: str) -> None:
    value, needed = CHANGES[name][key]
    ends = []
    for change in ({}, {key: value}):
        own = {setting: given for setting, given in needed.items() if setting != "warm"}
        run = run_of(name, optim={**own, **change}, learning_rate=RATE)
        for step in range(5):
            for group in run.optimizer.param_groups:
                group["lr"] = RATE * (step + 1 if needed.get("warm") else 1)
            run.steps(1)
        to_evaluation(run.optimizer)
        ends.append(run.weights())
    assert len(same(*ends)) < len(ends[0])


@every
@pytest.mark.parametrize("key", sorted(OPTIMIZER_SETTINGS))
def test_what_it_reads_of_training_acts_and_the_rest_is_refused(name: str, key: str) -> None:
    value = {"weight_decay": 0.5, "adam_epsilon": 0.1}.get(key, 0.5)
    if key not in config_of(name).training.optim.reads:
        with pytest.raises(ConfigError, match=f"{key}={value} has no effect: it needs another optim than {name}"):
            config_of(name, **{key: value})
        return
    ends = []
    for change in ({}, {key: value}):
        run = run_of(name, learning_rate=RATE, **change)
        run.steps(3)
        to_evaluation(run.optimizer)
        ends.append(run.weights())
    assert len(same(*ends)) < len(ends[0])


@every
def test_the_rate_it_is_given_where_none_is_set(name: str) -> None:
    config = config_of(name)
    ratio = config.training.optim.learning_rate_ratio
    assert config.learning_rate() == pytest.approx(config.method.recommended_learning_rate * ratio)
    assert config_of(name, learning_rate=3e-3).learning_rate() == 3e-3
