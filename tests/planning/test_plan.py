"""Plans of tiny runs: their parts, and what to change where they don't fit."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.commands.setup import set_up
from luthier.config.loading import load
from luthier.config.schema import RunConfig
from luthier.foundation.errors import TrainingError, UserError
from luthier.planning.advice import _settings, _sizes, _variants, _with_batch, _with_method, advise, shared_out
from luthier.planning.hardware import Device, Hardware
from luthier.planning.heap import Kept, heap_here
from luthier.planning.planner import Plan, Planner, plan
from luthier.planning.step_time import HOST_BYTES_PER_SECOND, HOST_LINK
from luthier.planning.strategies import STRATEGIES
from luthier.planning.subject import Subject
from luthier.planning.taken import Memory
from tests.tiny import carry_first_layer_up, config_for, tiny_folder

CARD = Device("card", 2**34, 100e12, 20e12, 1e12, 1e11, kind="cuda")


def planner_for(
    tiny_llama: Path, rows: Path, tmp_path: Path, *overrides: str, devices: int = 1, strategy: str | None = None
) -> Planner:
    config = load(config_for(tiny_llama, rows, tmp_path / "run"), overrides)
    return Planner(Subject.of(set_up(config, say=lambda text: None)), Hardware(CARD, devices), strategy)


def memory_of(planner: Planner) -> Memory:
    found = planner.plan(with_time=False).memory
    assert found is not None
    return found


def test_the_parts_of_full_tuning(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    planner = planner_for(tiny_llama, rows, tmp_path, "method=full")
    found = planner.plan(with_time=False)
    count, memory = found.total_parameters, found.memory
    assert found.trainable_parameters == count and memory is not None
    buffers = memory.weights - 4 * count  # rotary frequencies
    assert 0 <= buffers <= 64
    assert memory.all_gradients == 4 * count
    assert memory.optimizer_states == pytest.approx(8 * count, rel=1e-3)  # two moments in float32
    parts = [
        "weights",
        "optimizer_states",
        "gradients",
        "activations",
        "head",
        "update",
        "gathered",
        "allocator",
        "fixed",
    ]
    assert memory.peak == sum(getattr(memory, part) for part in parts)
    assert found.disk.checkpoint == memory.weights + memory.optimizer_states


def test_what_the_optimizer_works_with_counts_where_no_activations_are(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    """Rows are short: all gradients and as much again are more than gradients and activations in backward."""
    short = ("method=full", "training.per_device_train_batch_size=1", "data.cutoff_length=16")
    plain = memory_of(planner_for(tiny_llama, rows, tmp_path, *short))
    averaged = ("training.optim=schedule_free", "training.lr_scheduler_type=constant")
    found = memory_of(planner_for(tiny_llama, rows, tmp_path, *short, *averaged))
    assert (plain.update, found.activations, found.head) == (0, 0, 0)
    assert found.gradients == found.update == found.all_gradients == plain.all_gradients
    assert found.peak - found.optimizer_states > plain.peak - plain.optimizer_states


def test_what_an_update_takes_beyond_the_heap() -> None:
    mib = 2**20
    kept = Kept(arena=100 * mib, mapped=80 * mib, mapped_at_end=64 * mib, room=40 * mib)
    gradients = 84 * mib  # 20 of them in the heap
    assert kept.growth == 180 * mib
    assert kept.update_beyond([], gradients) == kept.update_beyond([6 * mib] * 10, gradients) == 0
    assert kept.update_beyond([6 * mib] * 20, gradients) == (20 + 120 + 64 - 180) * mib
    assert kept.update_beyond([50 * mib] * 2, gradients) == (100 + 64 + (100 - 40) - 180) * mib
    before = kept.beside([50 * mib, mib])
    assert before == Kept(101 * mib, 130 * mib, 114 * mib, 40 * mib)


@pytest.mark.skipif(heap_here(2**33) is None, reason="the allocator is not glibc's")
def test_what_the_heap_keeps_of_a_pass() -> None:
    """Small tensors leave room in the heap for large ones, which do not grow it again; large ones are mapped beside it."""
    mib = 2**20
    heap = heap_here(2**33)
    assert heap is not None
    gc.collect()
    heap.settle()  # what other tests left free
    small = [heap.hold(16 * mib) for _ in range(20)]
    for give_back in small:
        give_back()
    lasting = heap.hold(400 * mib)
    kept = heap.kept(100 * mib)
    assert kept.mapped == pytest.approx(400 * mib, abs=mib) and kept.mapped_at_end == kept.mapped
    assert kept.arena <= 330 * mib and kept.room % (100 * mib) == 0
    assert kept.update_beyond([100 * mib] * (kept.room // (100 * mib)), 400 * mib) == 0
    lasting()
    assert heap.kept(0).mapped_at_end < mib
    heap.settle()


def test_what_is_trained_is_what_costs(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    full = memory_of(planner_for(tiny_llama, rows, tmp_path, "method=full"))
    lora = memory_of(planner_for(tiny_llama, rows, tmp_path, "method=lora"))
    assert lora.optimizer_states < 0.3 * full.optimizer_states and lora.all_gradients < 0.3 * full.all_gradients
    assert lora.weights > full.weights  # its factors stand beside


def test_precisions_of_a_device(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    plain = memory_of(planner_for(tiny_llama, rows, tmp_path))
    half = memory_of(planner_for(tiny_llama, rows, tmp_path, "model.dtype=bfloat16"))
    assert 0.5 * plain.weights < half.weights < 0.75 * plain.weights  # the factors stay float32
    whole = memory_of(planner_for(tiny_llama, rows, tmp_path, "method=full", "model.dtype=bfloat16"))
    assert whole.weights == memory_of(planner_for(tiny_llama, rows, tmp_path, "method=full")).weights
    pure = memory_of(planner_for(tiny_llama, rows, tmp_path, "method=full", "training.pure_bf16=true"))
    assert pure.weights < 0.52 * whole.weights and pure.all_gradients == whole.all_gradients // 2
    assert pure.optimizer_states == pytest.approx(0.5 * whole.optimizer_states, rel=1e-3)


def test_an_optimizer_with_nothing_to_do_is_refused_on_a_shape_too() -> None:
    """Where no run is set up, the planner's own model tells."""
    from luthier.commands import plan as command

    with pytest.raises(TrainingError, match="galore has nothing to project: its rank is 128"):
        command.plan(None, ["training.optim=galore"], hardware="1x24GB", model_shape="qwen2.5-0.5b")


def test_later_epochs_begin_above_what_does_not_learn(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    settings = ("method=freeze", "method.trainable_layers=1", "training.max_steps=-1", "training.num_train_epochs=4")
    kept = planner_for(tiny_llama, rows, tmp_path, *settings)
    found = kept.plan()
    whole = planner_for(tiny_llama, rows, tmp_path, *settings, "training.trunk_cache_limit_gib=0").plan()
    assert found.seconds_per_step is not None and whole.seconds_per_step is not None
    assert found.seconds_per_step < 0.9 * whole.seconds_per_step
    # a float32 number for each of 32 units of each token
    assert found.disk.total - whole.disk.total == found.disk.trunk == 4 * 32 * int(kept.subject.rows.token_counts.sum())
    assert (found.trunk_layer, whole.trunk_layer, whole.disk.trunk) == (2, 0, 0)
    small = planner_for(tiny_llama, rows, tmp_path, *settings, "training.trunk_cache_limit_gib=1e-6").plan()
    assert (small.trunk_layer, small.seconds_per_step) == (0, pytest.approx(whole.seconds_per_step))
    assert any("more than training.trunk_cache_limit_gib" in remark for remark in small.remarks)


def test_no_trunk_is_promised_of_a_family_that_has_none(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_folder(tmp_path / "model", rms_norm_eps=4e-6)  # of which the probe knows nothing yet
    carry_first_layer_up(monkeypatch)
    settings = ("method=freeze", "method.trainable_layers=1", "training.max_steps=-1", "training.num_train_epochs=4")
    found = planner_for(model, rows, tmp_path, *settings).plan(with_time=False)
    assert (found.route, found.trunk_layer, found.disk.trunk) == ("segmented", 0, 0)
    assert any(remark.startswith("trunk: none: in this family") for remark in found.remarks)


def test_what_examples_begin_with_alike_is_counted(tiny_llama: Path, tmp_path: Path) -> None:
    """Every step holds two rows of each of two beginnings: those are laid down once where the packing brings them together."""
    lines = [
        {"instruction": f"{word * 20}{'q' * (1 + n % 2)}", "output": "yes"}
        for n in range(8)
        for word in ("fox ", "dog ")
    ]
    data = tmp_path / "alike.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def shared(*settings: str) -> float:
        found = planner_for(tiny_llama, data, tmp_path, "training.per_device_train_batch_size=4", *settings)
        return found.plan(with_time=False).shared

    assert shared("training.prefix_sharing=off") == 0
    together = shared("training.gradient_accumulation_steps=4", "training.grouping=within_step")
    assert together > shared("training.gradient_accumulation_steps=4", "training.grouping=off") > 0


@pytest.mark.parametrize("strategy", ["ddp", "zero-1", "zero-2", "zero-3", "fsdp", "offload"])
def test_sharing_takes_less(strategy: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    alone = memory_of(planner_for(tiny_llama, rows, tmp_path, "method=full"))
    planner = planner_for(tiny_llama, rows, tmp_path, "method=full", devices=4, strategy=strategy)
    found = planner.plan(with_time=False)
    shared = found.memory
    assert shared is not None
    own, whole = shared.weights + shared.optimizer_states, alone.weights + alone.optimizer_states
    assert own <= whole and (own < whole) == (strategy != "ddp")
    assert (shared.host > 0) == (strategy == "offload")
    told = any(f"no engine for {strategy} yet" in remark for remark in found.remarks)
    assert told != found.strategy.runs_here


def test_time_grows_with_the_work(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    def seconds(*overrides: str) -> float:
        found = planner_for(tiny_llama, rows, tmp_path, *overrides).plan().seconds_per_step
        assert found is not None
        return found

    assert seconds("training.gradient_accumulation_steps=3") > 2.5 * seconds()


def test_offload_takes_the_hosts_time_and_memory(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """On one device too: Adam in the host's memory, weights and gradients over its link in every batch."""

    def planned(strategy: str, batches: int, host_bytes: int = 0) -> Plan:
        settings = ("method=full", f"training.gradient_accumulation_steps={batches}")
        planner = planner_for(tiny_llama, rows, tmp_path, *settings, strategy=strategy)
        planner.hardware = replace(planner.hardware, host_bytes=host_bytes)
        return planner.plan()

    def seconds(strategy: str, batches: int) -> float:
        found = planned(strategy, batches).seconds_per_step
        assert found is not None
        return found

    offloaded = planned("offload", 1)
    assert offloaded.memory is not None
    size = offloaded.trainable_parameters
    link = min(CARD.link_bytes_per_second or HOST_LINK, HOST_LINK) / 2
    bandwidth, own = HOST_BYTES_PER_SECOND, (CARD.bytes_per_second or 500e9) * 0.7
    update = (3 + 2 + 4) * 4 * size
    beyond = 3 * 4 * size / link + update / bandwidth - update / own
    assert seconds("offload", 1) - seconds("single", 1) == pytest.approx(beyond, rel=0.02)
    more = (seconds("offload", 3) - seconds("single", 3)) - (seconds("offload", 1) - seconds("single", 1))
    assert more == pytest.approx(2 * 3 * 4 * size / link, rel=0.02)

    assert offloaded.fits and offloaded.fits_host is None  # how much the machine has is not known
    assert any("wait in the machine's own memory, which must have them" in remark for remark in offloaded.remarks)
    assert planned("offload", 1, host_bytes=2 * offloaded.host_bytes).fits
    small = planned("offload", 1, host_bytes=offloaded.host_bytes)
    assert small.fits is False and small.fits_host is False


def test_it_is_timed_here(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = load(config_for(tiny_llama, rows, tmp_path / "run"))
    found = plan(config, set_up(config, say=lambda text: None))
    assert found.hardware.is_this_machine and found.time is not None and found.memory is not None
    assert found.time.measured_share > 0  # how much fits into the seconds depends on who else computes
    assert 1e-3 < found.time.seconds_per_step < 60
    assert found.time.seconds_per_run == pytest.approx(12 * found.time.seconds_per_step)
    assert found.fits
    assert found.memory.fixed > 100 * 2**20  # Python and torch


def room_for(planner: Planner, bytes_left: int) -> Planner:
    """The same plan on a device that has little more than the process takes."""
    small = replace(CARD, memory_bytes=round((planner.fixed_bytes + bytes_left) / 0.95) + 1)
    return Planner(planner.subject, Hardware(small))


def need(planner: Planner, config: RunConfig) -> int:
    return planner.memory(config).peak - planner.fixed_bytes


def test_nothing_is_advised_where_it_fits(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    planner = planner_for(tiny_llama, rows, tmp_path)
    assert advise(planner) is None


def test_the_smallest_sacrifice_is_advised(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    planner = planner_for(tiny_llama, rows, tmp_path, "training.per_device_train_batch_size=2")
    config = planner.subject.config

    def under(**training: Any) -> RunConfig:
        return config.model_copy(update={"training": config.training.model_copy(update=training)})

    one = under(per_device_train_batch_size=1, gradient_accumulation_steps=2)
    needs = [need(planner, each) for each in (config, one)]
    assert needs[0] > needs[1]
    advice = advise(room_for(planner, needs[1]))
    assert advice is not None and advice.fits
    assert advice.settings == (
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=2",
    )
    advice = advise(room_for(planner, needs[1] - 1))
    assert advice is not None and "training.gradient_checkpointing=true" in advice.settings
    assert advice.peak_bytes < needs[1] + planner.fixed_bytes


@pytest.mark.parametrize(
    ("method", "names"),
    # freeze trains layers so small that adamw8bit keeps them as AdamW does, and too few for badam to take less than adafactor
    [("full", ("adamw8bit", "adafactor", "badam")), ("freeze", ("adafactor",))],
)
def test_a_lighter_optimizer_comes_before_another_method(
    method: str, names: tuple[str, ...], rows: Path, tmp_path: Path
) -> None:
    """Each where the ones before it do not do; a plan of what is advised fits, at the bytes that were said."""
    settings = (f"method={method}", "training.per_device_train_batch_size=1", "training.gradient_checkpointing=true")
    base = tiny_folder(tmp_path / "base", num_hidden_layers=8)
    planner = planner_for(base, rows, tmp_path, *settings)

    def with_(*more: str) -> RunConfig:
        return load(config_for(base, rows, tmp_path / "run"), (*settings, *more))

    for name in names:
        tight = room_for(planner, need(planner, with_(f"training.optim={name}")))
        tight._models, tight._traces = planner._models, planner._traces  # the same run's
        advice = advise(tight)
        assert advice is not None and advice.fits
        assert advice.settings == (f"training.optim={name}",)
    followed = Planner(planner_for(base, rows, tmp_path, *settings, *advice.settings).subject, tight.hardware)
    found = followed.plan(with_time=False)
    assert found.fits and found.memory is not None and found.memory.peak == advice.peak_bytes


def test_no_optimizer_is_advised_that_the_config_can_not_take(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advised(*settings: str) -> list[str]:
        planner = planner_for(tiny_llama, rows, tmp_path, "method=full", *settings)
        every = _variants(planner.subject.config, quantized=False)
        return [each for each in dict.fromkeys(config.training.optim.name for config in every) if each != "adamw"]

    assert advised() == ["adamw8bit", "adafactor", "badam"]
    assert advised("method=lora") == []  # its state is small
    assert advised("training.adam_beta1=0.8") == ["adamw8bit", "badam"]  # adafactor has no such decay
    rate = ("training.learning_rate=1e-3", "training.optim=muon")  # the rate is muon's, five times AdamW's
    assert advised(*rate) == ["muon"]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert advised() == ["adafactor", "badam"]


def test_a_step_keeps_its_rows_whatever_the_batch(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """Five rows, twice, are ten: 2 x 5 or 1 x 10, where halves of five would make eight or ten of them."""
    planner = planner_for(
        tiny_llama, rows, tmp_path, "training.per_device_train_batch_size=5", "training.gradient_accumulation_steps=2"
    )
    for size, pieces in ((2, 5), (1, 10)):
        smaller = _with_batch(planner.subject.config, size)
        assert smaller.training.gradient_accumulation_steps == pieces
        advice = advise(room_for(planner, need(planner, smaller)))
        assert advice is not None and advice.settings[0] == f"training.per_device_train_batch_size={size}"
    assert _sizes(planner.subject.config) == [5, 2, 1]
    assert _sizes(load({"model": "m", "data": {"train": "a"}, "training": {"per_device_train_batch_size": 12}})) == [
        12,
        6,
        3,
        1,
    ]
    assert _sizes(load({"model": "m", "data": {"train": "a"}, "training": {"per_device_train_batch_size": 5}})) == [
        5,
        1,
    ]


def _optimizer(name: str) -> Any:
    return load({"model": "m", "data": {"train": "a"}, "training": {"optim": name}}).training.optim


def test_another_method_and_shorter_rows_are_the_last_resorts(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    planner = planner_for(
        tiny_llama, rows, tmp_path, "method=full", "data.cutoff_length=128", "training.gradient_checkpointing=true",
        "training.per_device_train_batch_size=1", "training.optim=sgd", "training.learning_rate=0.01",
    )  # fmt: skip
    lora = planner.subject.config.model_copy(update={"method": load({"model": "m", "data": {"train": "a"}}).method})
    advice = advise(room_for(planner, need(planner, lora)))
    assert advice is not None and advice.fits and advice.settings[0] == "method=lora"
    advice = advise(room_for(planner, 1000))
    assert advice is not None and not advice.fits
    assert "data.cutoff_length=64" in advice.settings
    # the optimizer stays where it has something to do, and keeps less than AdamW
    config = planner.subject.config
    training = config.training.model_copy(update={"learning_rate": None, "optim": _optimizer("adafactor")})
    start = config.model_copy(update={"training": training})
    advice = advise(room_for(planner, 1000), start)
    assert advice is not None and not any("optim" in setting for setting in advice.settings)
    assert "data.cutoff_length=64" in advice.settings


def test_another_method_comes_with_what_it_needs(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """A rate that was set for whole weights becomes one for adapters, and an optimizer with nothing to project gives way."""
    settings = ("method=full", "training.learning_rate=3e-5", "training.optim={name: galore, rank: 16}")
    start = planner_for(tiny_llama, rows, tmp_path, *settings).subject.config
    lora = [config for config in _variants(start, quantized=True) if config.method.name == "lora"]
    assert {config.training.learning_rate for config in lora} == {3e-4}  # 2e-4 is recommended, where full's is 2e-5
    assert [config.training.optim.name for config in lora[:4]] == [
        "galore",
        "galore",
    ]  # whose rate is four times AdamW's
    start = load(config_for(tiny_llama, rows, tmp_path / "run"), ["method=full", "training.optim=muon"])
    free = start.model_copy(update={"training": start.training.model_copy(update={"learning_rate": None})})
    lora = [config for config in _variants(free, quantized=True) if config.method.name == "lora"]
    assert [config.training.optim.name for config in lora[:4]] == ["muon", "muon", "adamw", "adamw"]
    assert _settings(free, lora[2]) == ("method=lora", "training.optim=adamw")
    assert "training.learning_rate=0.05" in _settings(start, _with_method(start, lora[0].method))


def test_several_devices_may_share_the_weights_out(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    one = planner_for(tiny_llama, rows, tmp_path, "method=full")

    def on(devices: int, bytes_left: int, strategy: str | None = None) -> Planner:
        small = replace(CARD, memory_bytes=round((one.fixed_bytes + bytes_left) / 0.95) + 1)
        return Planner(one.subject, Hardware(small, devices), strategy)

    whole = need(on(4, 0), one.subject.config)
    shared = need(on(4, 0, "fsdp"), one.subject.config)
    assert shared < whole
    assert shared_out(on(1, shared)) is None
    assert shared_out(on(4, shared // 4)) is None
    sentence = shared_out(on(4, shared))
    assert sentence is not None and sentence.startswith("with --strategy fsdp each device would hold ")
    assert ("no engine" in sentence) == (not STRATEGIES["fsdp"].runs_here)
    planner = on(4, shared)
    assert shared_out(planner) and planner.strategy.name == "ddp"  # the plan's own is left as it is


SHAPE = ["plan", "--model-shape", "smollm2-135m", "--hardware", "1x24GB", "method=lora", "data.cutoff_length=128"]


def test_a_shape_is_planned_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHAPE, "training.max_steps=5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["total_parameters"] == 134_515_008 + 2_442_240
    assert found["hardware"] == {"name": "24GB", "devices": 1, "memory_bytes": 24 * 2**30}
    assert found["strategy"] == "single" and found["fits"] is True and found["advice"] is None
    assert found["longest_batch_tokens"] == 4 * 128
    assert found["memory_bytes"]["peak"] > found["memory_bytes"]["weights"] > 2 * 134_515_008
    assert found["time"]["seconds_per_run"] == pytest.approx(5 * found["time"]["seconds_per_step"])
    assert found["total_steps"] == 5 and found["steps_per_epoch"] is None


def test_a_shape_takes_the_place_of_the_models_name_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the model's other settings stand in a file or on the command line."""
    config = tmp_path / "config.yaml"
    config.write_text("{model: {name: another, fused: false}, data: {train: unread}}", encoding="utf-8")

    def planned(*line: str) -> dict[str, int]:
        assert main(["plan", *line, *SHAPE[1:], "--json"]) == 0
        memory: dict[str, int] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["memory_bytes"]
        return memory

    own = planned()
    assert planned("model.fused=false")["activations"] > 1.5 * own["activations"]
    assert planned(str(config))["activations"] > 1.5 * own["activations"]
    assert planned("model.dtype=float32")["weights"] > 1.9 * own["weights"]


def test_a_shape_stands_in_for_a_hub_that_does_not_answer(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = [f"data.train={rows}", "data.cutoff_length=64", "training.per_device_train_batch_size=1"]
    arguments = ["plan", "model=Qwen/Qwen2.5-0.5B-Instruct", *settings, "--hardware", "1x24GB"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "494,032,768" not in text and "published shape" in text
    assert "It fits." in text
    arguments[1] = "model=nobody/nothing-like-it"
    assert main(arguments) == 2


def test_stages_that_must_see_their_rows_are_refused_on_a_shape() -> None:
    with pytest.raises(UserError, match="classification"):
        from luthier.commands.plan import plan as command

        command(None, ["stage=classification"], model_shape="smollm2-135m", hardware="1x24GB")


def test_a_plan_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    line = ["plan", "--model-shape", "smollm2-135m", "--hardware", "2x8GB", "data.cutoff_length=1024", "method=full"]
    assert main(line) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    assert "Memory of each of 2 x 8GB, ddp" in shown
    told = " ".join(part.strip() for part in shown[shown.index("It fits.") + 1 :])
    assert (
        "- rows are taken to have data.cutoff_length=1024 tokens, all trained: without a tokenizer they can't" in told
    )
