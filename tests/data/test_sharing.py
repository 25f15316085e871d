"""What sequences begin with is found in their ids, laid down once, and changes nothing that is learnt."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.data.sharing import Part, shared, unshared
from luthier.scoring.attention import Layout


def read_back(parts: list[Part], sequences: list[tuple[int, ...]]) -> list[list[int]]:
    """Each sequence's tokens, by the parts that it ends in."""
    found: dict[int, list[int]] = {}
    for part in parts:
        for number in part.ends:
            chain: list[Part] = [part]
            while chain[0].parent is not None:
                chain.insert(0, parts[chain[0].parent])
            found[number] = [token for one in chain for token in sequences[one.sequence][one.start : one.end]]
    return [found[number] for number in range(len(sequences))]


# few tokens and short sequences, so that much is shared
sequences_of_ids = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=7)


@settings(max_examples=300, deadline=None)
@given(sequences_of_ids, st.integers(1, 9))
def test_every_sequence_can_be_read_back(sequences: list[tuple[int, ...]], least_saved: int) -> None:
    parts = shared(sequences, least_saved)
    assert read_back(parts, sequences) == [list(ids) for ids in sequences]
    assert read_back(unshared(sequences), sequences) == [list(ids) for ids in sequences]
    for part in parts:
        assert part.start < part.end
        parent = parts[part.parent] if part.parent is not None else None
        assert part.start == (parent.end if parent else 0)


@settings(max_examples=300, deadline=None)
@given(sequences_of_ids, st.integers(1, 9))
def test_parts_stand_depth_first_and_each_saves_enough(sequences: list[tuple[int, ...]], least_saved: int) -> None:
    examples = [
        TokenizedExample((TokenSequence(ids, (0.0,) * len(ids)),), Origin("rows", 1), len(ids)) for ids in sequences
    ]
    batch = pack(examples, share=True)
    assert Layout.of(batch.segments).decomposition  # depth first: the forest kernel takes it
    parts = shared(sequences, least_saved)
    through = [0] * len(parts)
    for index, part in enumerate(parts):
        above: int | None = index
        while above is not None:
            through[above] += len(part.ends)
            above = parts[above].parent
    for index, part in enumerate(parts):
        if any(other.parent == index for other in parts):
            assert (through[index] - 1) * (part.end - part.start) >= least_saved
    saved = sum(map(len, sequences)) - sum(part.end - part.start for part in parts)
    assert saved >= 0


def test_with_nothing_too_small_a_token_is_laid_down_once_for_each_context() -> None:
    sequences = [(1, 2, 3, 4), (1, 2, 3, 5, 6), (1, 2, 7), (8,), (1, 2, 3, 4)]
    parts = shared(sequences, least_saved=1)
    assert parts == [
        Part(0, 0, 2, None, ()),
        Part(0, 2, 3, 0, ()),
        Part(0, 3, 4, 1, (0, 4)),
        Part(1, 3, 5, 1, (1,)),
        Part(2, 2, 3, 0, (2,)),
        Part(3, 0, 1, None, (3,)),
    ]


def test_a_short_prefix_is_laid_down_again() -> None:
    sequences = [(1, 2, 3, 4), (1, 2, 5, 6)]
    assert shared(sequences, least_saved=3) == unshared(sequences)
    assert len(shared(sequences, least_saved=2)) == 3


def test_a_sequence_that_is_the_beginning_of_another_keeps_its_end() -> None:
    sequences = [tuple(range(20)), tuple(range(12))]
    parts = shared(sequences)
    assert [(part.start, part.end, part.ends) for part in parts] == [(0, 12, (1,)), (12, 20, (0,))]


def example(ids: list[int], weights: list[float]) -> TokenizedExample:
    return TokenizedExample((TokenSequence(tuple(ids), tuple(weights)),), Origin("rows", 1), len(ids))


def test_targets_keep_their_order_weights_and_sequences() -> None:
    head = list(range(10, 20))
    examples = [
        example([*head, 30, 31], [0.0] * 10 + [1.0, 1.0]),
        example([*head, 40], [0.0] * 9 + [0.5, 2.0]),
        example([*head, 30, 31], [0.0] * 11 + [3.0]),
    ]
    batch, plain = pack(examples, share=True), pack(examples)
    assert batch.input_ids_T.tolist() == [*head, 30, 31, 40]
    assert batch.position_ids_T.tolist() == [*range(12), 10]
    assert batch.source_positions_N.tolist() == [9, 10, 8, 9, 10]
    for name in ("targets_N", "weights_N", "sequence_of_source_N"):
        assert torch.equal(getattr(batch, name), getattr(plain, name)), name
    assert (batch.tokens, batch.leaves) == (plain.tokens, (1, 2, 1)) == (35, (1, 2, 1))
    assert plain.leaves == (0, 1, 2)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_sharing_changes_neither_log_probabilities_nor_gradients(kind: str) -> None:
    from luthier.scoring.scorer import Scorer
    from tests.tiny import tiny_model

    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(3, 300, (count,), generator=generator).tolist()

    system, schema, question = some(12), some(30), some(9)
    rows = [
        [*system, *schema, *question, *some(5)],
        [*system, *schema, *question, *some(9)],
        [*system, *schema, *some(14)],
        [*system, *some(8)],
        some(10),
    ]
    examples = [example(ids, [0.0] + [1.0 + number] * (len(ids) - 1)) for number, ids in enumerate(rows)]
    found = []
    for share in (False, True):
        scorer = Scorer(tiny_model(kind), "segmented")
        batch = pack(examples, share)
        logp_N = scorer(batch).logp_N
        (logp_N * batch.weights_N).sum().backward()
        found.append((logp_N.detach(), [p.grad for p in scorer.parameters()], len(batch.input_ids_T)))
    assert found[1][2] == found[0][2] - 3 * 12 - 2 * 30 - 9
    assert (found[1][0] - found[0][0]).norm() < 1e-5 * found[0][0].norm()
    whole = torch.stack([gradient.norm() for gradient in found[0][1]]).norm()
    for own, reference in zip(found[1][1], found[0][1], strict=True):
        assert (own - reference).norm() < 1e-5 * whole
