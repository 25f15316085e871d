"""Packing lays sequences end to end: none is split, none sees or predicts a token of another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin

SEQUENCES = st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12)
EXAMPLES = st.lists(st.lists(SEQUENCES, min_size=1, max_size=3), min_size=1, max_size=6)


def sequence_of(tokens: list[tuple[int, float]]) -> TokenSequence:
    ids, weights = zip(*tokens, strict=True)
    return TokenSequence(ids, (0.0, *weights[1:]))


@given(EXAMPLES)
def test_every_sequence_stands_whole_and_apart(drawn) -> None:
    examples = [
        TokenizedExample(tuple(map(sequence_of, sequences)), Origin("f", row), 0) for row, sequences in enumerate(drawn)
    ]
    batch = pack(examples)
    sequences = [sequence for example in examples for sequence in example.sequences]
    assert batch.tokens == len(batch.input_ids_T) == sum(len(sequence.input_ids) for sequence in sequences)
    assert len(batch.segments) == len(sequences)
    end = 0
    for segment, sequence in zip(batch.segments, sequences, strict=True):
        assert segment.start == end and segment.parent is None
        end = segment.end
        assert tuple(batch.input_ids_T[segment.start : end].tolist()) == sequence.input_ids
        assert batch.position_ids_T[segment.start : end].tolist() == list(range(len(sequence.input_ids)))
    targets = zip(
        batch.source_positions_N.tolist(),
        batch.targets_N.tolist(),
        batch.weights_N.tolist(),
        batch.sequence_of_source_N.tolist(),
        strict=True,
    )
    expected = []
    for number, (segment, sequence) in enumerate(zip(batch.segments, sequences, strict=True)):
        for offset, (token, weight) in enumerate(zip(sequence.input_ids, sequence.weights, strict=True)):
            if weight:
                # read where the token before it stands, in the same sequence
                expected.append((segment.start + offset - 1, token, weight, number))
    assert list(targets) == expected


def test_nothing_to_pack() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        pack([])
    with pytest.raises(ValueError, match="without tokens"):
        pack([TokenizedExample((TokenSequence((), ()),), Origin("f", 1), 0)])


def test_the_examples_numbers_come_along() -> None:
    sequence = TokenSequence((1, 2), (0.0, 1.0))
    first, second = (TokenizedExample((sequence,), Origin("f", 1), 2, {"label": number}) for number in (1.0, 0.0))
    assert pack([first, second]).extras["label"].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="different extras"):
        pack([first, TokenizedExample((sequence,), Origin("f", 2), 2)])
