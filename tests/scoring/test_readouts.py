"""Readouts: each alone and all together, against plain transformers and the mathematics written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from luthier.data.packing import pack
from luthier.scoring import head as head_module
from luthier.scoring.readouts import HeadAt, PerChunk, TargetLogp, sequence_ends
from luthier.scoring.scorer import Scorer
from tests.scoring.test_routes import TOLERANCE, example, forest, random_examples, relative
from tests.tiny import KINDS, tiny_model


def entropy(logits_CV: Tensor, rows: slice) -> Tensor:
    logp_CV = torch.log_softmax(logits_CV, dim=1)
    return -(logp_CV.exp() * logp_CV).sum(dim=1, keepdim=True)


def with_head(kind: str, outputs: int = 3) -> nn.Module:
    """A causal language model that has a value head too."""
    model = tiny_model(kind)
    torch.manual_seed(1)
    model.value = nn.Linear(model.config.hidden_size, outputs)
    return model


@pytest.mark.parametrize("route", ["segmented", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_readouts_combine_and_equal_plain_transformers(kind: str, route: str) -> None:
    model, examples = with_head(kind), random_examples([5, 9, 3])
    batch = pack(examples)
    ends, values, entropies = HeadAt("value"), HeadAt("value", "sources"), PerChunk(entropy)
    readouts = (ends, TargetLogp(), entropies, values)
    scores = Scorer(copy.deepcopy(model), route)(batch, readouts)

    expected: dict[object, list[Tensor]] = {readout: [] for readout in readouts}
    for item in examples:
        (sequence,) = item.sequences
        output = model(torch.tensor([sequence.input_ids]), use_cache=False, output_hidden_states=True)
        logits, hidden = output.logits[0].float(), output.hidden_states[-1][0]
        expected[ends].append(model.value(hidden[-1]))
        for position, weight in enumerate(sequence.weights):
            if weight > 0:
                p = torch.softmax(logits[position - 1], dim=0)
                expected[TargetLogp()].append(p[sequence.input_ids[position]].log())
                expected[entropies].append(-(p * p.log()).sum()[None])
                expected[values].append(model.value(hidden[position - 1]))
    for readout in readouts:
        assert relative(scores[readout], torch.stack(expected[readout])) < TOLERANCE, readout
    assert scores.logp_N is scores[TargetLogp()]


def test_readouts_have_the_gradients_of_the_unchunked_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 0)  # 16 targets at a time
    model = with_head("llama")
    batch = pack(random_examples([30, 14, 25]))
    assert len(batch.targets_N) > 32
    scorer = Scorer(model, "padded")
    scores = scorer(batch, (TargetLogp(), PerChunk(entropy), HeadAt("value", "sources")))
    hidden_NH, _, _ = scorer._hidden(batch)
    logits_NV = model.lm_head(hidden_NH)
    logp_N = torch.log_softmax(logits_NV, dim=1).gather(1, batch.targets_N[:, None])[:, 0]
    plain = logp_N.sum() + 0.3 * entropy(logits_NV, slice(0, 0)).square().sum() + model.value(hidden_NH).square().sum()
    combined = scores.logp_N.sum() + 0.3 * scores[PerChunk(entropy)].square().sum()
    combined = combined + scores[HeadAt("value", "sources")].square().sum()
    expected = torch.autograd.grad(plain, list(model.parameters()), retain_graph=True)
    found = torch.autograd.grad(combined, list(model.parameters()))
    for name, own, theirs in zip(dict(model.named_parameters()), found, expected, strict=True):
        assert relative(own, theirs) < TOLERANCE, name


def test_rows_tell_a_function_which_targets_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "CHUNK_BYTES", 0)
    batch = pack(random_examples([40]))
    numbers_N = torch.arange(len(batch.targets_N), dtype=torch.float32)
    readout = PerChunk(lambda logits_CV, rows: numbers_N[rows, None] + 0 * logits_CV[:, :1])
    with torch.no_grad():
        values_N1 = Scorer(tiny_model("llama"))(batch, readout)[readout]
    assert torch.equal(values_N1[:, 0], numbers_N)


def test_ends_are_the_sequences_last_tokens_that_are_no_padding() -> None:
    batch = forest([None, 0, 0, None], [3, 2, 4, 5], vocabulary=300, seed=0)
    batch.input_ids_T[batch.input_ids_T == 7] = 8
    assert sequence_ends(batch, 7).tolist() == [4, 8, 13]
    batch.input_ids_T[7:9] = 7  # the second child ends in padding
    batch.input_ids_T[3:5] = 7  # the first is nothing else: its parent's last token is read
    assert sequence_ends(batch, 7).tolist() == [2, 6, 13]
    batch.input_ids_T[1:3] = 7
    assert sequence_ends(batch, 7).tolist() == [0, 6, 13]
    batch.input_ids_T[0] = 7  # the first sequence is nothing but padding, and so is the last
    batch.input_ids_T[9:] = 7
    assert sequence_ends(batch, 7).tolist() == [0, 6, 9]


def test_ends_lie_any_number_of_segments_above() -> None:
    batch = forest([None, 0, 1, 2, 1], [3, 2, 2, 2, 1], vocabulary=300, seed=0)
    batch.input_ids_T[:] = torch.tensor([5, 6, 7, 7, 7, 7, 7, 7, 7, 8])
    assert sequence_ends(batch, 7).tolist() == [1, 9]


def test_a_batch_without_targets_is_read_by_a_head() -> None:
    batch = pack([example([5, 6, 7], [0.0] * 3), example([8, 9], [0.0] * 2)])
    scorer = Scorer(with_head("llama", outputs=2))
    assert scorer(batch, HeadAt("value"))[HeadAt("value")].shape == (2, 2)
    assert scorer(batch, [TargetLogp(), PerChunk(entropy)])[PerChunk(entropy)].shape == (0, 1)
    with pytest.raises(ValueError, match="no head named 'score'"):
        scorer(batch, HeadAt())
    with pytest.raises(KeyError):
        _ = scorer(batch, HeadAt("value")).logp_N
