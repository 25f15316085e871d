"""Which examples are computed together, and that it changes what is learnt only where the user allows it."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import luthier
from luthier.commands.setup import set_up
from luthier.config.loading import load
from luthier.config.training_section import TrainingConfig
from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.records import Origin
from luthier.foundation.errors import ConfigError
from luthier.foundation.seeding import permutation
from luthier.scoring.scorer import Scorer
from luthier.training.grouping import GroupedOrder, Packing, dealt, pack_step, regrouped, shares
from luthier.training.schedule import IndexedSchedule
from tests.scoring.test_router import qwen3_moe
from tests.tiny import config_for


def example(*ids: int) -> TokenizedExample:
    weights = (0.0, *[1.0] * (len(ids) - 1))
    return TokenizedExample((TokenSequence(ids, weights),), Origin("rows", 1), len(ids))


HEADS = [tuple(range(start, start + 10)) for start in (10, 30, 50)]


def rows(count: int) -> list[TokenizedExample]:
    """Rows of three heads in turn, each with an end of its own."""
    return [example(*HEADS[number % 3], 100 + number, 200 + number) for number in range(count)]


def ends(batch: Batch) -> list[int]:
    return sorted(batch.targets_N[batch.targets_N >= 200].tolist())


def test_a_step_holds_the_same_examples_however_they_are_grouped() -> None:
    drawn = [rows(12)[start : start + 4] for start in (0, 4, 8)]
    for packing in (Packing(), Packing(share=True), Packing(True, "within_step"), Packing(True, "within_step", 30)):
        batches = pack_step(drawn, packing)
        assert sorted(end for batch in batches for end in ends(batch)) == list(range(200, 212))
        assert sum(batch.tokens for batch in batches) == 144


def test_examples_that_begin_alike_come_into_one_batch() -> None:
    drawn = [rows(12)[start : start + 4] for start in (0, 4, 8)]
    apart = pack_step(drawn, Packing(share=True))
    together = pack_step(drawn, Packing(share=True, grouping="within_step"))
    assert [len(batch.input_ids_T) for batch in apart] == [38, 38, 38]  # each with one head twice
    assert [len(batch.input_ids_T) for batch in together] == [18, 18, 18]
    assert [ends(batch) for batch in together] == [[200 + head + 3 * turn for turn in range(4)] for head in range(3)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=12),
    most=st.integers(10, 80),
    grouping=st.sampled_from(["off", "within_step"]),
)
def test_no_batch_of_several_examples_lays_down_more_than_asked(
    lengths: list[tuple[int, int]], most: int, grouping: Any
) -> None:
    """Whatever they have in common: a few tokens of it are laid down more than once."""
    drawn = [[example(*range(10, 10 + alike), *[100 + row] * own) for row, (alike, own) in enumerate(lengths)]]
    batches = pack_step(drawn, Packing(True, grouping, most))
    assert sum(len(batch.leaves) for batch in batches) == len(lengths)
    assert all(len(batch.leaves) == 1 or len(batch.input_ids_T) <= most for batch in batches)


def test_a_batch_is_bounded_by_what_is_laid_down() -> None:
    drawn = [[*rows(3), example(*range(60, 100)), example(1, 2, 3)]]
    batches = pack_step(drawn, Packing(share=True, grouping="within_step", tokens_per_batch=27))
    # [1 2 3] with one row of 12, another of 12, and [60 ... 99], which is longer than a batch may be, in one of its own
    assert [len(batch.input_ids_T) for batch in batches] == [27, 12, 40]
    assert all(batch.tokens == len(batch.input_ids_T) for batch in batches)
    shared = pack_step([rows(12)], Packing(share=True, grouping="within_step", tokens_per_batch=36))
    assert [len(batch.input_ids_T) for batch in shared] == [36, 18]  # two heads with four ends each, and the third


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12), most=st.integers(10, 80))
def test_on_padded_rows_what_is_padded_counts(lengths: list[int], most: int) -> None:
    drawn = [[example(*[100 + row] * length) for row, length in enumerate(lengths)]]
    batches = pack_step(drawn, Packing(tokens_per_batch=most, padded=True))
    sizes = [[segment.end - segment.start for segment in batch.segments] for batch in batches]
    assert sorted(length for batch in sizes for length in batch) == sorted(lengths)
    assert all(len(batch) == 1 or len(batch) * max(batch) <= most for batch in sizes)
    for few, more in pairwise(sizes):  # no batch takes less than it could
        assert (len(few) + 1) * max(*few, more[0]) > most


def test_a_long_row_does_not_stretch_the_short_ones_of_its_step() -> None:
    drawn = [[example(*range(40)), *[example(5, 6, 7, row) for row in range(10)]]]
    batches = pack_step(drawn, Packing(tokens_per_batch=40, padded=True))
    assert [len(batch.leaves) for batch in batches] == [10, 1]


def test_a_grouped_order_goes_to_other_processes() -> None:
    """Which load data, and are started afresh from Python 3.14 on."""
    schedule = IndexedSchedule(24, 2, 2, epochs=3, max_steps=-1, seed=1, shuffle=True)
    order = GroupedOrder(schedule, rows(24), 12)
    found = [order(epoch) for epoch in (0, 1, 2, 0)]
    assert found[0] == found[3] != found[1] and sorted(found[2]) == list(range(24))
    assert pickle.loads(pickle.dumps(replace(schedule, order=order))).order(1) == found[1]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 40), st.integers(0, 5))
def test_a_regrouped_epoch_is_a_permutation_that_stays_within_its_buffers(
    count: int, step: int, buffer: int, epoch: int
) -> None:
    order = permutation(count, 1, "order", epoch)
    found = regrouped(order, rows(count), step, buffer, 1, epoch)
    assert sorted(found) == list(range(count))
    size = step * -(-buffer // step)
    for start in range(0, count, size):
        assert Counter(found[start : start + size]) == Counter(order[start : start + size])
    assert found == regrouped(order, rows(count), step, buffer, 1, epoch)


def test_a_buffers_steps_hold_rows_of_one_head() -> None:
    found = regrouped(list(range(24)), rows(24), 4, 24, 1, 0)
    heads = [{index % 3 for index in found[start : start + 4]} for start in range(0, 24, 4)]
    assert all(len(head) == 1 for head in heads)
    assert found != sorted(found, key=lambda index: (index % 3, index))  # the steps are shuffled


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 59), unique=True, min_size=1), st.integers(1, 5), st.integers(1, 4))
def test_a_dealt_step_holds_its_examples_once_and_each_rank_has_as_many_batches(
    step: list[int], batch_size: int, ranks: int
) -> None:
    found = dealt(rows(60), Packing(share=True), step, batch_size, ranks)
    assert sorted(index for batch in found for index in batch) == sorted(step)
    in_turn = [step[start : start + batch_size] for start in range(0, len(step), batch_size)]
    assert sorted(map(len, found)) == sorted(map(len, in_turn))
    for rank in range(ranks):
        assert len(found[rank::ranks]) == len(in_turn[rank::ranks])


def test_ranks_have_equally_much_to_compute() -> None:
    lengths = (40, 30, 20, 10, 12, 8)
    rows = [example(*range(100 * number, 100 * number + length)) for number, length in enumerate(lengths)]

    def loads(share: bool, examples: list[TokenizedExample]) -> list[int]:
        batches = dealt(examples, Packing(share), range(len(examples)), 1 if examples is rows else 2, 2)
        packed = [pack_step([[examples[index] for index in batch]], Packing(share)) for batch in batches]
        return [sum(len(batch.input_ids_T) for step in packed[rank::2] for batch in step) for rank in (0, 1)]

    assert [sum(lengths[rank::2]) for rank in (0, 1)] == [72, 48]  # in turn
    assert loads(False, rows) == [60, 60]
    # of four pairs three share 18 of 20 tokens: 22, 22, 22 and 40 laid down, where without sharing all have 40
    pairs = [example(*range(100 * n, 100 * n + 18), 1000 + turn, 2000 + turn) for n in (1, 2, 3) for turn in (0, 1)]
    pairs += [example(*range(start, start + 20)) for start in (500, 600)]
    assert loads(True, pairs) == [62, 44]
    assert sorted(loads(False, pairs)) == [80, 80]


def losses_of(model: Path, data: Path, out: Path, **training: Any) -> list[float]:
    luthier.train(config_for(model, data, out, **{"max_steps": 4, "logging_steps": 1, **training}))
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_the_same_shared_grouped_and_in_bounded_batches(
    tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    step = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    plain = losses_of(tiny_llama, rows, tmp_path / "plain", **step, prefix_sharing="off", grouping="off")
    assert plain == pytest.approx(losses_of(tiny_llama, rows, tmp_path / "shared", **step), rel=1e-5)
    bounded = losses_of(tiny_llama, rows, tmp_path / "bounded", **step, tokens_per_batch=64)
    assert plain == pytest.approx(bounded, rel=1e-5)


def test_sharing_that_the_route_does_not_have_is_refused(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", prefix_sharing="on")
    config["model"] = {"name": config["model"], "attention": "padded"}
    with pytest.raises(ConfigError, match=r"prefix_sharing is on, but this run computes padded rows"):
        luthier.train(config)


def within_buffer(
    model: Path, data: Path, out: Path, dropout: float = 0.0, of_model: Any = None, **training: Any
) -> dict[str, Any]:
    """A run whose steps hold examples that begin alike."""
    config = config_for(model, data, out, grouping="within_buffer", **training)
    return {**config, "model": {"name": str(model), **(of_model or {})}, "method": {"name": "lora", "dropout": dropout}}


PADDED = "this run computes padded rows, each of them whole: model.attention is padded; set it to "
DROPS = "drops out, in each example other units; set it to within_step, or training.prefix_sharing to on"


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"dropout": 0.1}, [DROPS]),
        ({"of_model": {"config_overrides": {"attention_dropout": 0.1}}}, [DROPS]),
        ({"of_model": {"attention": "padded"}}, [PADDED + "within_step"]),
        (
            {"of_model": {"attention": "padded"}, "prefix_sharing": "on"},
            [PADDED + "auto", PADDED + "within_step"],
        ),
    ],
)
def test_steps_that_share_nothing_are_not_filled_for_its_sake(
    changes: dict[str, Any],
    problems: list[str],
    tiny_llama: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused before weights are read."""
    monkeypatch.setattr("luthier.model.loading.weights_at", None)
    with pytest.raises(ConfigError) as caught:
        luthier.train(within_buffer(tiny_llama, rows, tmp_path / "run", **changes))
    assert len(caught.value.problems) == len(problems)
    assert all(told in found for found, told in zip(caught.value.problems, problems, strict=True))


def test_a_routers_loss_keeps_steps_from_being_filled_too() -> None:
    training = TrainingConfig(grouping="within_buffer")
    scorer = Scorer(qwen3_moe(), router_aux_loss_coef=0.1)
    with pytest.raises(ConfigError, match="load-balancing loss counts the tokens of each example; set it to"):
        shares(scorer, training)
    assert shares(scorer, training.model_copy(update={"prefix_sharing": "on"}))
    assert shares(Scorer(qwen3_moe()), training)


def test_dropout_that_is_shared_lets_steps_be_filled(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = load(within_buffer(tiny_llama, rows, tmp_path / "run", dropout=0.1, prefix_sharing="on"))
    said: list[str] = []
    schedule = set_up(config, say=said.append).schedule
    assert isinstance(schedule, IndexedSchedule) and schedule.order is not None
    assert not any("within_buffer" in remark for remark in said)


def test_batches_of_one_example_are_told_to_share_nothing(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    told = {}
    for name, tokens in (("one", []), ("bounded", ["training.tokens_per_batch=64"])):
        config = load(within_buffer(tiny_llama, rows, tmp_path / name, per_device_train_batch_size=1), tokens)
        said: list[str] = []
        set_up(config, say=said.append)
        told[name] = any("within_buffer, but a batch holds one example" in remark for remark in said)
    assert told == {"one": True, "bounded": False}


def test_with_dropout_sharing_waits_to_be_asked_for(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    seen = {}
    for setting in ("off", "auto", "on"):
        config = config_for(tiny_llama, rows, tmp_path / setting, prefix_sharing=setting, max_steps=2, logging_steps=1)
        config["method"] = {"name": "lora", "dropout": 0.5}
        luthier.train(config)
        lines = (tmp_path / setting / "metrics.jsonl").read_text().splitlines()
        seen[setting] = [json.loads(line)["loss"] for line in lines]
    assert seen["auto"] == seen["off"]
    assert seen["on"] != seen["off"]
