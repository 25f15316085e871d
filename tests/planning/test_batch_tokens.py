"""training.tokens_per_batch auto: the most tokens that a budget holds; found once, and the same run as without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

import luthier
from luthier.commands.plan import PlanResult, _planned, _result, plan
from luthier.commands.setup import set_up
from luthier.config.loading import load
from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.foundation.errors import ConfigError, TrainingError, UserError
from luthier.planning import rows as rows_of_a_plan
from luthier.planning.advice import advise
from luthier.planning.batch_tokens import PREDICTED_SHARE, BatchTokens, BudgetTooSmallError, choose_tokens, with_tokens
from luthier.planning.hardware import Device, Hardware
from luthier.planning.planner import Planner
from luthier.planning.rows import Rows, _ending
from luthier.planning.subject import Subject
from luthier.training.exhaustion import memory_explained, reading
from luthier.training.grouping import Packing, pack_step
from luthier.training.schedule import IndexedSchedule
from tests.tiny import config_for
from tests.training.whole_runs import traces

GIB = 2**30
CARD = Device("card", 16 * GIB, kind="cuda")
STEP = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "tokens_per_batch": "auto"}


def settings(model: Path, rows: Path, out: Path, **training: Any) -> dict[str, Any]:
    """Steps of eight rows, a row at a time but for what is merged."""
    return config_for(model, rows, out, **{"max_steps": 6, **STEP, **training})


def planner_for(config: dict[str, Any], hardware: Hardware | None = None) -> Planner:
    return Planner(Subject.of(set_up(load(config), say=lambda text: None)), hardware or Hardware(CARD))


def within(planner: Planner, peak_bytes: float) -> BatchTokens:
    """What a budget holds in which just so much may be planned with."""
    budget = planner.fixed_bytes + (peak_bytes - planner.fixed_bytes) / PREDICTED_SHARE
    config = planner.subject.config
    training = config.training.model_copy(update={"memory_budget_gib": (budget + 8) / GIB})
    return choose_tokens(planner, config.model_copy(update={"training": training}), None)


def test_a_larger_budget_holds_no_fewer_tokens(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    planner = planner_for(settings(tiny_llama, rows, tmp_path / "run"))
    config, lengths = planner.subject.config, planner.subject.rows.token_counts
    most, longest = int(sum(sorted(lengths)[-8:])), int(max(lengths))
    least, whole = (planner.full_batch(with_tokens(config, n), n, alone=n == most) for n in (longest, most))
    found = [within(planner, peak) for peak in (least, (least + whole) / 2, whole)]
    assert [one.tokens for one in found[::2]] == [longest, most] and longest < found[1].tokens < most
    assert [one.whole_steps for one in found] == [False, False, True]
    assert found[1].peak_bytes <= (least + whole) / 2 + 8


def test_it_holds_all_the_tokens_that_it_can(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that takes 1,000 bytes a token, and 20,000 for the gradients of other batches of a step."""
    planner = planner_for(settings(tiny_llama, rows, tmp_path / "run"))

    def full_batch(config: Any, tokens: int, *, alone: bool) -> int:
        return planner.fixed_bytes + 1000 * tokens + (0 if alone else 20_000)

    monkeypatch.setattr(planner, "full_batch", full_batch)
    most, longest = (
        int(sum(sorted(planner.subject.rows.token_counts)[-8:])),
        int(max(planner.subject.rows.token_counts)),
    )
    rooms = range(1000 * longest + 20_000, 1000 * most + 20_000, 17_000)
    found = [within(planner, planner.fixed_bytes + room) for room in rooms]
    assert [one.tokens for one in found] == sorted(one.tokens for one in found)
    for room, one in zip(rooms, found, strict=True):
        assert one.peak_bytes <= planner.fixed_bytes + room + 8
        if room + 8 >= 1000 * most:
            assert one.tokens == most and one.whole_steps
        else:
            assert not one.whole_steps and 1.045 * one.tokens + 1 > (room - 20_000) / 1000


def test_a_full_batch_has_the_tokens_asked_for_and_what_is_begun_alike_once(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    planner = planner_for(settings(tiny_llama, rows, tmp_path / "run"))
    for share in (True, False):
        config = with_tokens(load(settings(tiny_llama, rows, tmp_path / "run", prefix_sharing=share)), 1)
        sizes = [
            len(planner.subject.rows.full(config, 1, planner.scorer(config), planner.subject.stage, tokens).input_ids_T)
            for tokens in (60, 100, 200, 300)
        ]
        # sharing a few tokens is not worth a segment of its own, so some of them are laid down more than once
        assert all(tokens <= size <= 1.1 * tokens for tokens, size in zip((60, 100, 200, 300), sizes, strict=True))
        assert share or sizes == [60, 100, 200, 300]


def test_a_full_batch_is_computed_whole_but_for_last_targets(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """Rows whose second half nobody reads: another batch of as many tokens may be read to its end."""
    planner = planner_for(settings(tiny_llama, rows, tmp_path / "run"))
    config = with_tokens(load(settings(tiny_llama, rows, tmp_path / "run")), 1)
    scorer, stage = planner.scorer(config), planner.subject.stage
    read_by_half = [
        TokenizedExample(
            (TokenSequence((number + 3,) * 40, (0.0,) + (1.0,) * 19 + (0.0,) * 20),), Origin("", number), 40
        )
        for number in range(8)
    ]
    found = Rows(read_by_half, np.full(8, 40), IndexedSchedule(8, 1, 8, 1, 6, 0, False))
    batch = found.full(config, 1, scorer, stage, 100)
    assert len(batch.input_ids_T) == 100
    assert scorer.tokens_computed(batch, stage.readout) == 100 - len(batch.leaves)


def test_traces_of_batches_that_are_read_to_different_places_are_kept_apart(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    """Of one row of 40 tokens: ten targets from the second token on, or at the end; ten tokens are computed, or 39."""
    planner = planner_for(settings(tiny_llama, rows, tmp_path / "run"))
    model = planner._model(planner.subject)
    found = []
    for weights in ((0.0, *[1.0] * 10, *[0.0] * 29), (*[0.0] * 30, *[1.0] * 10)):
        row = TokenizedExample((TokenSequence((5,) * 40, weights),), Origin("", 1), 40)
        found.append(planner._trace(planner.subject, model, pack([row]), False, with_heap=False))
    assert found[0] is not found[1]
    early, late = (sum(operation.calls * operation.flops for operation in trace.operations) for trace in found)
    assert early < 0.5 * late


def test_a_budget_below_the_longest_example_is_refused_with_the_numbers(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows, tmp_path / "run", memory_budget_gib=0.01)
    with pytest.raises(
        UserError, match=r"the longest example alone, of \d\d tokens, is predicted to take .* 10\.2 MiB"
    ) as e:
        luthier.train(config)
    assert "training.memory_budget_gib" in e.value.remedy and "whatever the rows" in e.value.remedy
    above_what_stands = BudgetTooSmallError(92, 3 * GIB, 2 * GIB, "of the machine", standing_bytes=GIB, given=True)
    assert "gradient_checkpointing" in above_what_stands.remedy
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"attention": "padded"}, "padded rows"),
        ({"router_aux_loss_coef": 0.1}, "router's load-balancing loss"),
        (
            {"config_overrides": {"max_position_embeddings": 32}, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
            "a sequence of more than 32 tokens stretches the rotary positions",
        ),
    ],
)
def test_what_merging_would_change_or_does_not_bound_is_refused(
    model: dict[str, Any], problem: str, tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "router_aux_loss_coef" in model:
        from luthier.scoring.router import RouterLoss

        monkeypatch.setattr(RouterLoss, "arguments", {"output_router_logits": True})
        model = {}
    config = settings(tiny_llama, rows, tmp_path / "run")
    config["model"] = {"name": config["model"], **model}
    with pytest.raises(ConfigError, match=problem):
        luthier.train(config)


def test_a_budget_without_auto_is_refused(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = settings(tiny_llama, rows, tmp_path / "run", memory_budget_gib=4, tokens_per_batch=64)
    with pytest.raises(ConfigError, match=r"memory_budget_gib=4.* has no effect: it needs tokens_per_batch auto"):
        load(config)


def test_where_memory_runs_out_all_the_same_fewer_tokens_are_advised(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    config = with_tokens(load(settings(tiny_llama, rows, tmp_path / "run")), 3000)
    with pytest.raises(TrainingError) as error, memory_explained(config, tmp_path, "luthier train --resume"):
        raise MemoryError
    assert "training.tokens_per_batch=1500; training.gradient_checkpointing=true" in error.value.remedy
    assert "trunk" not in error.value.remedy  # which comes before the steps
    # a number of tokens beside a budget would be refused
    config = with_tokens(load(settings(tiny_llama, rows, tmp_path / "run", memory_budget_gib=2.0)), 3000)
    with pytest.raises(TrainingError) as error, memory_explained(config, tmp_path, "luthier train --resume"):
        raise MemoryError
    assert "training.memory_budget_gib=1.5; training.gradient_checkpointing=true" in error.value.remedy
    load(settings(tiny_llama, rows, tmp_path / "run", memory_budget_gib=2.0), ["training.memory_budget_gib=1.5"])


def test_where_memory_runs_out_while_rows_are_read_smaller_reading_is_advised(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    """What acts on steps alone, or cuts the rows, is no help against an evaluation's batches."""
    config = load(settings(tiny_llama, rows, tmp_path / "run"))
    with pytest.raises(TrainingError) as error, memory_explained(config, tmp_path, "luthier train --resume"), reading():
        raise MemoryError
    first, *others = error.value.remedy.removeprefix("Try, one after another: ").split("; ")
    assert first == "training.per_device_eval_batch_size=4"
    assert not any("train_batch_size" in other or "checkpointing" in other or "tokens_per" in other for other in others)


def test_the_plan_names_the_number_and_its_peak(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = settings(tiny_llama, rows, tmp_path / "run", memory_budget_gib=3)
    result = plan(config, hardware="1x24GB")
    told = result.as_dict()
    found = told["tokens_per_batch"]
    assert found["budget_bytes"] == 3 * GIB and found["whole_steps"]
    assert told["longest_batch_tokens"] <= found["tokens"]
    shown = result.table()
    assert f"at most {found['tokens']}, for a peak of" in shown and "of 3.0 GiB" in shown
    result = plan(config, ["training.memory_budget_gib=0.1"], hardware="1x24GB")
    told = result.as_dict()
    assert told["tokens_per_batch"] is None and told["fits"] is False and told["advice"] is None
    assert any("the longest example alone" in remark for remark in told["remarks"])
    shown = " ".join(result.table().split())
    assert "does not fit what training.tokens_per_batch auto plans with" in shown and "It fits." not in shown
    assert "Raise training.memory_budget_gib" in shown


def planned_on(config: dict[str, Any], usable: float, *changes: str) -> PlanResult:
    """The plan of a config on a card that holds so many bytes."""
    setup = set_up(load(config, changes), say=lambda text: None)
    card = Hardware(Device("small", round(usable / 0.95) + 1, kind="cuda"))
    return _result(setup, *_planned(Subject.of(setup), card, None), [])


def test_what_a_device_does_not_hold_is_advised_upon_though_a_run_would_be_refused(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    """No budget was set, so none is spoken of; the advice is a whole config, with a number of tokens."""
    config = settings(tiny_llama, rows, tmp_path / "run")
    planner = planner_for(config)
    longest = int(max(planner.subject.rows.token_counts))
    peak = planner.memory(with_tokens(planner.subject.config, longest)).peak
    result = planned_on(config, peak - 1000)
    assert result.plan.fits is False and result.plan.merged is None
    assert "Free memory" in result.remarks[0] and not any("memory_budget_gib" in remark for remark in result.remarks)
    assert result.advice is not None and result.advice.fits
    assert f"training.tokens_per_batch={longest}" in result.advice.settings
    assert "It does not fit: " in result.table()
    followed = planned_on(config, peak - 1000, *result.advice.settings)
    assert followed.plan.fits and followed.plan.peak_bytes == result.advice.peak_bytes


def test_a_budget_above_what_the_device_has_is_remarked_on_and_left_out_of_the_advice(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, rows, tmp_path / "run", memory_budget_gib=100, gradient_checkpointing=True)
    planner = planner_for(config)
    most = int(sum(sorted(planner.subject.rows.token_counts)[-8:]))
    peak = planner.memory(with_tokens(planner.subject.config, most // 2)).peak
    result = planned_on(config, peak)
    assert result.plan.fits is False and result.plan.merged is not None and result.plan.merged.whole_steps
    assert "training.memory_budget_gib is 100.0 GiB, more than the" in result.remarks[0]
    assert result.advice is not None and result.advice.fits
    assert result.advice.settings == (f"training.tokens_per_batch={most // 2}", "training.memory_budget_gib=null")
    followed = planned_on(config, peak, *result.advice.settings)
    assert followed.plan.fits and followed.plan.peak_bytes == result.advice.peak_bytes


def test_where_nothing_can_be_changed_nothing_is_advised(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    small = settings(
        tiny_llama, rows, tmp_path / "run", tokens_per_batch=None, gradient_accumulation_steps=1,
        gradient_checkpointing=True,
    )  # fmt: skip
    small["model"] = {"name": small["model"], "quantization": "nf4"}
    planner = planner_for(small)
    assert advise(Planner(planner.subject, Hardware(Device("none", 1000, kind="cuda")))) is None


def test_a_shape_merges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 512 tokens, eight a step: batches of 4,096 tokens hold all of them, of 1,024 two."""
    settings = ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=8"]
    settings += ["data.cutoff_length=512", "training.max_steps=10"]
    packed: list[int] = []

    def noted(drawn: Any, packing: Packing) -> Any:
        packed.append(sum(map(len, drawn)))
        return pack_step(drawn, packing)

    monkeypatch.setattr(rows_of_a_plan, "pack_step", noted)
    for tokens, together in ((None, 1), (1024, 2), (1600, 3), (4096, 8), (10**6, 8)):
        more = [] if tokens is None else [f"training.tokens_per_batch={tokens}"]
        found = plan(None, [*settings, *more], hardware="1x24GB", model_shape="qwen2.5-0.5b")
        assert found.plan.batch_tokens == 512 * together
    assert set(packed) == {1, 2, 3, 8}  # no more rows than one batch holds


def test_fewer_tokens_are_advised_where_they_bound_a_batch(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    bounded = settings(tiny_llama, rows, tmp_path / "run", tokens_per_batch=256, gradient_checkpointing=True)
    planner = planner_for(bounded)
    fewer = with_tokens(planner.subject.config, 128)
    peak = planner.memory(fewer).peak
    assert peak < planner.memory(planner.subject.config).peak
    small = Device("small", round(peak / 0.95) + 1, kind="cuda")
    advice = advise(Planner(planner.subject, Hardware(small)))
    assert advice is not None and advice.fits and advice.settings == ("training.tokens_per_batch=128",)


def test_the_longest_is_looked_for_among_all_that_may_be() -> None:
    """Pairs of a long question count it twice and lay it down once: a shorter count may lay down more."""
    alike = tuple(range(100, 600))

    def pair(row: int, shared: tuple[int, ...], own: int) -> TokenizedExample:
        answers = ((row, *range(1000, 1000 + own)), (row, *range(2000, 2000 + own)))
        sequences = tuple(TokenSequence((*shared, *a), (0.0,) * len(shared) + (1.0,) * len(a)) for a in answers)
        return TokenizedExample(sequences, Origin("", row), 0)

    examples = [*(pair(row, alike, 10) for row in range(200)), pair(200, alike[:10], 300)]
    counts = np.array([sum(len(part.input_ids) for part in example.sequences) for example in examples])
    schedule = IndexedSchedule(len(examples), 1, 2, 1, -1, 0, False)
    config = load({"model": "m", "data": {"train": "a", "cutoff_length": 2048}, "training": STEP})
    found = Rows(examples, counts, schedule).reach(config, Packing(share=True))
    longest = 10 + 301 + 300  # of the last one, whose answers begin alike too
    assert found[0] == longest


@pytest.mark.parametrize("lengths", [(500, 10), (200, 200), (1, 50, 50), (1, 200)])
def test_a_piece_of_an_example_has_the_tokens_asked_for(lengths: tuple[int, ...]) -> None:
    """Of a pair, also one whose answers are equally long, and of a block with a document of one token."""
    sequences = tuple(TokenSequence(tuple(range(n)), (0.0,) + (1.0,) * (n - 1)) for n in lengths)
    example = TokenizedExample(sequences, Origin("", 0), 0)
    for tokens in (101, 21, 8):
        (piece,) = _ending(example, tokens)
        assert sum(len(part.input_ids) for part in piece.sequences) == tokens
        assert len(pack([piece], True).input_ids_T) == tokens
    assert not _ending(example, 3 if len(lengths) == 2 and 1 not in lengths else 2)


# whole runs


class Batches:
    """The sizes of all batches that runs form, and how much of the machine is free for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from luthier.commands import batching
        from luthier.planning import planner
        from luthier.training import feeds

        self.sizes: list[list[int]] = []
        self.free_bytes = GIB
        pack_step = feeds.pack_step

        def noted(*arguments: Any) -> list[Batch]:
            batches = pack_step(*arguments)
            self.sizes.append([len(batch.input_ids_T) for batch in batches])
            return batches

        monkeypatch.setattr(feeds, "pack_step", noted)
        monkeypatch.setattr(batching, "free_memory_bytes", lambda device: self.free_bytes)
        # what this process takes, and what its heap keeps, differ from moment to moment
        monkeypatch.setattr(planner, "resident_bytes", lambda: GIB)
        monkeypatch.setattr(planner, "heap_here", lambda limit: None)

    def hold(self, config: dict[str, Any], tokens: int) -> None:
        """Let so much be free as a batch of so many tokens takes."""
        from luthier.planning.batch_tokens import FREE_SHARE
        from luthier.planning.hardware import this_machine

        planner = planner_for(config, this_machine(use_cpu=True))
        peak = planner.full_batch(with_tokens(planner.subject.config, tokens), tokens, alone=False)
        self.free_bytes = int((peak - planner.fixed_bytes) / PREDICTED_SHARE / FREE_SHARE) + 16

    def of(self, config: dict[str, Any], **how: Any) -> list[list[int]]:
        """The sizes of a run's batches, step by step."""
        self.sizes = []
        luthier.train(config, **how)
        return list(self.sizes)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    return Batches(monkeypatch)


def settled(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())["batches"]
    return found


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_merged_run_learns_what_an_unmerged_one_does(
    batches: Batches, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    sgd = {"optim": "tests.training.plain_sgd", "learning_rate": 0.1}  # a difference of weights is one of gradients
    batches.hold(settings(tiny_llama, rows, tmp_path / "halves", **sgd), 100)
    halves = batches.of(settings(tiny_llama, rows, tmp_path / "halves", **sgd))
    assert all(1 < len(step) < 8 and max(step) <= 105 for step in halves)
    batches.free_bytes = 100 * GIB
    assert all(len(step) == 1 for step in batches.of(settings(tiny_llama, rows, tmp_path / "whole", **sgd)))
    alone = batches.of(settings(tiny_llama, rows, tmp_path / "alone", **sgd, tokens_per_batch=None))
    assert all(len(step) == 8 for step in alone)
    expected = load_file(tmp_path / "alone" / "final" / "adapter_model.safetensors")
    for name in ("halves", "whole"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "alone"), rel=2e-6)
        found = load_file(tmp_path / name / "final" / "adapter_model.safetensors")
        for key, value in expected.items():
            assert (found[key] - value).abs().max() < 1e-5 * max(1.0, float(value.abs().max())), key


class Stop(TrainerCallback):
    """Ends a run without a word after its fifth step."""

    armed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Stop.armed and state.global_step == 5:
            raise RuntimeError("as if killed")


def test_a_resumed_run_forms_the_same_batches_whatever_is_free_then(
    batches: Batches, tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def config(out: str, **training: Any) -> dict[str, Any]:
        return settings(tiny_llama, rows, tmp_path / out, callbacks=[f"{__name__}.Stop"], **training)

    batches.hold(config("unbroken"), 120)
    unbroken = batches.of(config("unbroken"))
    monkeypatch.setattr(Stop, "armed", True)
    with pytest.raises(RuntimeError, match="as if killed"):
        luthier.train(config("run"))
    before = settled(tmp_path / "run")
    assert before["memory_budget_gib"] is None and 100 < before["tokens"] <= 120
    monkeypatch.setattr(Stop, "armed", False)
    batches.free_bytes = 100 * GIB
    assert batches.of(config("run"), resume=True) == unbroken[4:]
    assert f"batches hold at most {before['tokens']} tokens, as at the run's start" in capsys.readouterr().err
    assert settled(tmp_path / "run") == before
    assert traces(tmp_path / "run") == traces(tmp_path / "unbroken")
    anew = batches.of(config("run"), overwrite=True)
    assert settled(tmp_path / "run")["tokens"] > before["tokens"] and anew != unbroken
    # a budget that was changed on purpose is a changed run, and said to be one
    luthier.train(config("run", max_steps=8, memory_budget_gib=5.0), resume=True)
    assert "changed since the checkpoint: training.memory_budget_gib: None -> 5.0" in capsys.readouterr().err
    assert settled(tmp_path / "run")["memory_budget_gib"] == 5.0


@pytest.mark.slow
def test_pairs_and_streams_are_merged_too(
    batches: Batches, tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.training import reference

    monkeypatch.setattr(reference, "reference_folder", lambda: tmp_path / "references")
    pairs = tmp_path / "pairs.jsonl"
    answers = [{"prompt": "fox " * (1 + n % 5), "chosen": "yes " * (1 + n % 3), "rejected": "no"} for n in range(16)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in answers))
    dpo = settings(tiny_llama, pairs, tmp_path / "dpo", max_steps=2) | {"stage": "dpo"}
    stream = settings(tiny_llama, rows, tmp_path / "stream", max_steps=2)
    stream["data"]["streaming"] = True
    for config, tokens in ((dpo, 90), (stream, 140)):
        out = Path(config["output_dir"])
        batches.hold(config, tokens)
        assert all(1 < len(step) < 8 for step in batches.of(config))
        alone = {**config, "training": {**config["training"], "tokens_per_batch": None}, "output_dir": f"{out}-alone"}
        assert [len(step) for step in batches.of(alone)] == [8, 8]
        assert losses(out) == pytest.approx(losses(Path(alone["output_dir"])), rel=1e-5)


def test_a_rank_plans_with_the_least_that_one_finds(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from luthier.commands import batching

    class Engine:
        device = torch.device("cpu")

        def largest(self, *values: int) -> list[int]:
            return [max(value, -3 * GIB) for value in values]  # another rank has 3 GiB

    setup = set_up(load(settings(tiny_llama, rows, tmp_path / "run")), say=lambda text: None)
    monkeypatch.setattr(batching, "free_memory_bytes", lambda device: 8 * GIB)
    for count, free in ((1, 3), (2, 3), (4, 2)):
        monkeypatch.setattr(batching, "ranks_here", lambda count=count: count)
        assert batching.free_for_each(setup, Engine()) == free * GIB  # type: ignore[arg-type]
