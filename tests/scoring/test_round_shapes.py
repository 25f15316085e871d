"""Rows of 16 bits on a CPU: filled up to round numbers of tokens, so that shapes come again, with nothing changed."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import luthier
from luthier.data.batch import Batch
from luthier.data.packing import pack
from luthier.scoring import segmented
from luthier.scoring.readouts import HeadAt, TargetLogp
from luthier.scoring.scorer import Scorer
from luthier.scoring.segmented import makes_code_for_each_shape, rounded
from tests.scoring.test_routes import forests, gradients, random_examples, relative
from tests.scoring.test_segmented import rows_of
from tests.tiny import config_for, tiny_model


@given(st.integers(1, 100_000))
def test_round_numbers_are_few_and_near(count: int) -> None:
    assert count <= rounded(count) == rounded(rounded(count))
    assert rounded(count) % 16 == 0 and rounded(count) < max(count + 16, count * 9 / 8 + 1)
    octave = 2 ** max(8, count.bit_length() - 1)
    assert len({rounded(n) for n in range(octave + 1, 2 * octave + 1, 7)}) == 8


def read(
    kind: str, batch: Batch, monkeypatch: pytest.MonkeyPatch, fills: bool
) -> tuple[list[int], Tensor, dict[str, Tensor]]:
    """The rows that the layers get, what is read, and gradients."""
    monkeypatch.setattr(segmented, "makes_code_for_each_shape", lambda model: fills)
    model = tiny_model(kind)
    torch.manual_seed(0)
    model.value = nn.Linear(model.config.hidden_size, 1)
    for name, parameter in model.named_parameters():
        if "lm_head" in name or "embed" in name or "wte" in name:
            parameter.requires_grad_(False)
    scorer = Scorer(model, "segmented")
    seen: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    scores = scorer(batch, (TargetLogp(), HeadAt("value", "ends")))
    values = torch.cat([scores.logp_N * batch.weights_N, scores.readings[HeadAt("value", "ends")].flatten()])
    values.square().sum().backward()
    return seen, values.detach(), gradients(scorer)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
@settings(max_examples=15, deadline=None)
@given(batch=forests())
def test_values_and_gradients_stay_as_they_are(kind: str, batch: Batch) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        (filled,), values, found = read(kind, batch, monkeypatch, True)
        (own,), reference, expected = read(kind, batch, monkeypatch, False)
    assert own <= filled == rounded(filled)
    assert relative(values, reference) < 1e-5
    assert found.keys() == expected.keys()
    whole = [torch.cat([part[name].flatten() for name in expected]) for part in (found, expected)]
    assert relative(*whole) < 1e-5


def test_the_rows_that_are_read_are_a_round_number_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last layer's block gets them, and the head."""
    monkeypatch.setattr(segmented, "makes_code_for_each_shape", lambda model: True)
    model = tiny_model("llama")
    batch = pack(random_examples([40, 51, 32]))
    scorer = Scorer(model, "segmented")
    layers, last = rows_of(model), []
    model.model.layers[-1].mlp.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0].shape[1]))
    scorer(batch)
    read_by_loss = len(batch.source_positions_N.unique())
    assert read_by_loss % 16 and last == [rounded(read_by_loss)]
    assert layers == [rounded(layers[0])] and layers[0] >= scorer.tokens_computed(batch) + last[0] - read_by_loss


@pytest.mark.parametrize(
    ("dtype", "autocast", "fills"),
    [
        (torch.float32, None, False),
        (torch.bfloat16, None, True),
        (torch.float32, torch.bfloat16, True),
        (torch.float16, torch.float16, True),
    ],
)
def test_rows_are_filled_up_where_products_have_16_bits(
    dtype: torch.dtype, autocast: torch.dtype | None, fills: bool
) -> None:
    model: Any = tiny_model("llama").to(dtype)
    with torch.autocast("cpu", autocast) if autocast is not None else nullcontext():
        assert makes_code_for_each_shape(model) == fills


def test_a_planners_rows_are_not_filled_up() -> None:
    """They stand for those of any device."""
    with FakeTensorMode():
        assert not makes_code_for_each_shape(nn.Linear(3, 3, dtype=torch.bfloat16))  # type: ignore[arg-type]
    assert not makes_code_for_each_shape(nn.Linear(3, 3, dtype=torch.bfloat16, device="meta"))  # type: ignore[arg-type]


def test_states_from_a_trunk_are_filled_up_too(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for fills in (True, False):
        monkeypatch.setattr(segmented, "makes_code_for_each_shape", lambda model, fills=fills: fills)
        config = config_for(tiny_llama, rows, tmp_path / str(fills), max_steps=-1, num_train_epochs=2, logging_steps=1)
        luthier.train({**config, "method": {"name": "freeze", "trainable_layers": 1}})
        assert "are computed once" in capsys.readouterr().err
        lines = (tmp_path / str(fills) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
