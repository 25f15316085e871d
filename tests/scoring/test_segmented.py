"""What no token that is read can see is not computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from luthier.data.batch import Batch, Segment
from luthier.data.packing import pack
from luthier.scoring.readouts import HeadAt, TargetLogp
from luthier.scoring.scorer import Scorer
from luthier.scoring.segmented import computed, hidden_at
from tests.scoring.test_router import mixtral
from tests.scoring.test_routes import example, forests, random_examples, relative
from tests.tiny import tiny_model


def rows_of(model: Any) -> list[int]:
    """How many rows the first layer gets, noted from now on."""
    seen: list[int] = []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    return seen


def test_a_worked_forest() -> None:
    """A root of four, below it one whose first token is read and one that nobody reads, with a child that is read; two more
    roots, of the first the third token is read."""
    segments = (Segment(0, 4), Segment(4, 7, 0), Segment(7, 9, 0), Segment(9, 12, 2), Segment(12, 16), Segment(16, 18))
    batch = replace(pack([example([5] * 18, [0.0] * 17 + [1.0])]), segments=segments)
    shorter, kept = computed(batch, [4, 10, 14])
    assert kept == [range(4), range(4, 5), range(7, 9), range(9, 11), range(12, 15)]
    assert shorter == (Segment(0, 4), Segment(4, 5, 0), Segment(5, 7, 0), Segment(7, 9, 2), Segment(9, 12))
    assert computed(batch, []) == (segments, [range(18)])


@settings(max_examples=50, deadline=None)
@given(forests())
def test_all_that_a_read_token_sees_stays(batch: Batch) -> None:
    read = batch.source_positions_N.unique().tolist()
    shorter, kept = computed(batch, read)
    rows = [row for part in kept for row in part]
    assert [segment.end - segment.start for segment in shorter] == [len(part) for part in kept]
    seen = set()
    for row in read:
        index = next(number for number, segment in enumerate(batch.segments) if segment.start <= row < segment.end)
        seen |= set(range(batch.segments[index].start, row + 1))
        while (parent := batch.segments[index].parent) is not None:
            seen |= set(range(batch.segments[parent].start, batch.segments[parent].end))
            index = parent
    assert rows == sorted(seen)


def test_an_answers_last_token_predicts_nothing() -> None:
    """Nor do those behind the last that is trained; where each sequence's end is read, all are computed."""
    model = tiny_model("llama")
    model.value = torch.nn.Linear(32, 1)
    scorer = Scorer(model, "segmented")
    seen = rows_of(model)
    batch = pack([example([5, 6, 7, 8, 9], [0, 0, 1, 0, 0]), example([5, 6, 9], [0, 1, 1])])
    for wanted in (TargetLogp(), (TargetLogp(), HeadAt("value", "ends"))):
        scorer(batch, wanted)
        assert seen.pop() == scorer.tokens_computed(batch, wanted) == (2 + 2 if isinstance(wanted, TargetLogp) else 8)


def test_a_routers_loss_counts_every_token() -> None:
    batch = pack([example([5, 6, 7, 8, 9], [0, 0, 1, 0, 0])])
    model = mixtral()
    seen = rows_of(model)
    for coefficient, tokens in ((0.5, 5), (None, 2)):
        scorer = Scorer(model, "segmented", router_aux_loss_coef=coefficient).train()
        scorer(batch)
        assert seen.pop() == scorer.tokens_computed(batch) == tokens


def test_with_rotations_that_stretch_a_long_sequence_is_computed_whole() -> None:
    """Its length, the last token included, says how all of the batch are turned."""
    batch = pack(random_examples([30, 14]))
    model = tiny_model("llama")
    seen = rows_of(model)
    found = [
        hidden_at(model, batch, batch.source_positions_N, independent_length=length)[1].shape[0] for length in (29, 30)
    ]
    assert found[0] == found[1] and len(seen) == 2
    assert seen == [44, 42]


@pytest.mark.parametrize("route", ["segmented", "padded"])
def test_a_batch_without_targets_is_computed(route: str) -> None:
    batch = pack([example([5, 6, 7], [0, 0, 0])])
    assert Scorer(tiny_model("llama"), route)(batch).logp_N.shape == (0,)  # type: ignore[arg-type]


def test_dynamic_rotations_beyond_the_original_length_equal_the_padded_route() -> None:
    """transformers' own forward sees the longest row whole; 16 positions are the model's own."""
    batch = pack(random_examples([30, 14, 9]))
    found = []
    for route in ("segmented", "padded"):
        model = tiny_model(
            "llama",
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
            max_position_embeddings=16,
        )
        found.append(Scorer(model, route)(batch).logp_N)  # type: ignore[arg-type]
    assert relative(found[0], found[1]) < 1e-5
