"""Examples as flat arrays: what comes out is what went in, joined, mapped from files and in another process too."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.examples import ExamplesWith, TokenizedExample, TokenSequence
from luthier.data.records import Origin
from luthier.data.token_arrays import (
    ExamplesPart,
    MemorySet,
    Numbering,
    StoredExamples,
    TokenArrays,
    TokenBlock,
    TokenJoiner,
    array_file,
    token_dtype,
)


def sequence(ids: list[int], weights: list[float]) -> TokenSequence:
    return TokenSequence(tuple(ids), (0.0, *weights[: len(ids) - 1]) if ids else ())


sequences = st.lists(st.integers(0, 2**16 - 1), max_size=6).flatmap(
    lambda ids: st.lists(st.sampled_from([0.0, 1.0, 0.1]), min_size=len(ids), max_size=len(ids)).map(
        lambda weights: sequence(ids, weights)
    )
)
examples = st.builds(
    TokenizedExample,
    sequences=st.lists(sequences, max_size=3).map(tuple),
    origin=st.builds(Origin, st.sampled_from(["a", "b", "ü"]), st.integers(1, 2**40)),
    untruncated_length=st.integers(0, 2**40),
    extras=st.dictionaries(st.sampled_from(["label", "margin"]), st.floats(allow_nan=False)),
)


@given(blocks=st.lists(st.lists(examples, max_size=5), min_size=1, max_size=4))
def test_joined_blocks_give_back_the_examples(blocks) -> None:
    memory = MemorySet(TokenJoiner(Numbering(["b"])), "<u2")
    for block in blocks:
        memory.add(TokenBlock.of(block, "<u2"))
    stored = memory.finish()
    expected = [example for block in blocks for example in block]
    assert list(stored) == expected and len(stored) == len(expected)
    assert stored[1:3] == expected[1:3] and stored[::-1] == expected[::-1]
    assert stored.tokens == sum(example.tokens for example in expected)
    assert stored.targets == sum(example.targets for example in expected)
    lengths = [len(part.input_ids) for example in expected for part in example.sequences]
    assert stored.longest_sequence == max(lengths, default=0)


def test_the_content_hash_is_of_what_a_model_reads() -> None:
    def of(*made: TokenizedExample) -> str:
        memory = MemorySet(TokenJoiner(Numbering()), "<u2")
        memory.add(TokenBlock.of(made, "<u2"))
        return memory.finish().content_hash()

    def one(*parts: TokenSequence, row: int = 1, **extras: float) -> TokenizedExample:
        return TokenizedExample(parts, Origin("a", row), 4, extras)

    long, left, right = sequence([1, 2, 3, 4], [0, 1, 1]), sequence([1, 2], [0]), sequence([3, 4], [0])
    assert of(one(long)) == of(one(long, row=7, label=1.0))
    others = [
        of(one(long)),
        of(one(sequence([1, 2, 3, 5], [0, 1, 1]))),
        of(one(sequence([1, 2, 3, 4], [0, 1, 0.5]))),
        of(one(sequence([1, 2, 3, 4], [1, 1, 1]))),
        of(one(left, right)),
        of(one(left), one(right)),
        of(),
    ]
    assert len(set(others)) == len(others)


def test_a_set_mapped_from_files_travels_by_its_place(tmp_path) -> None:
    made = [
        TokenizedExample((sequence([1, 2, 70_000], [1.0, 0.5]),), Origin("a", row), 3, {"label": 1.0})
        for row in range(1, 500)
    ]
    block = TokenBlock.of(made, token_dtype(100_000))
    for name, array in zip(TokenArrays._fields, block.arrays, strict=True):
        array_file(tmp_path, "train", name).write_bytes(array.tobytes())
    stored = StoredExamples.opened(tmp_path, "train", "<u4", ["a"], ["label"])
    assert stored[-1] == made[-1] and type(stored[0].sequences[0].input_ids[0]) is int
    sent = pickle.dumps(stored)
    assert len(sent) < 1000 and list(pickle.loads(sent)) == made


def test_ids_take_two_bytes_where_they_fit() -> None:
    assert (token_dtype(49_152), token_dtype(65_536), token_dtype(65_537)) == ("<u2", "<u2", "<u4")


def test_sets_are_indexed_as_lists_are() -> None:
    made = [TokenizedExample((sequence([1, row], [1.0]),), Origin("a", row), 2) for row in range(7)]
    kept = MemorySet(TokenJoiner(Numbering()), "<u2")
    kept.add(TokenBlock.of(made, token_dtype(100)))
    whole = kept.finish()
    assert list(whole) == made
    for found, expected in (
        (whole, made),
        (ExamplesPart(whole, range(2, 6)), made[2:6]),
        (ExamplesWith(made, {}), made),
    ):
        assert list(found) == expected
        for index in (0, -1, slice(1, 3), slice(None, None, -2), slice(4, 1)):
            assert found[index] == expected[index]
        for outside in (len(expected), -len(expected) - 1):
            with pytest.raises(IndexError):
                found[outside]
