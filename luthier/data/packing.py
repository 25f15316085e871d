"""Examples to batches: sequences laid end to end, no padding, and what several begin with laid down once.

Shapes: T tokens in the packed row, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.data.batch import Batch, Segment
from luthier.data.examples import TokenizedExample
from luthier.data.sharing import Part, shared, unshared


def pack(examples: Sequence[TokenizedExample], share: bool = False, trunk_starts: Sequence[int] | None = None) -> Batch:
    """One batch of all sequences of the examples.

    Args:
        share: lay down once what several sequences begin with (see `luthier.data.sharing`), instead of each sequence as
            a root of the forest. Targets stay those of each sequence, in the sequences' order, with their own weights.
        trunk_starts: of each example of the set that these are of, by its number, where its tokens begin in the trunk.

    Raises:
        ValueError: no example, or a sequence without tokens.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    sequences = [sequence for example in examples for sequence in example.sequences]
    if any(not sequence.input_ids for sequence in sequences):
        raise ValueError("a sequence without tokens can't be packed")
    ids = [sequence.input_ids for sequence in sequences]
    parts = shared(ids) if share else unshared(ids)
    input_ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    leaf_of = [0] * len(sequences)  # the part that each sequence ends in
    for index, part in enumerate(parts):
        start = len(input_ids)
        input_ids += ids[part.sequence][part.start : part.end]
        positions += range(part.start, part.end)
        segments.append(Segment(start, len(input_ids), part.parent))
        for number in part.ends:
            leaf_of[number] = index
    sources: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    sequence_of_source: list[int] = []
    for number, sequence in enumerate(sequences):
        rows = _rows(parts, segments, leaf_of[number])
        for offset, (token, weight) in enumerate(zip(sequence.input_ids, sequence.weights, strict=True)):
            if weight > 0:
                sources.append(rows[offset - 1])
                targets.append(token)
                weights.append(weight)
                sequence_of_source.append(number)
    return Batch(
        input_ids_T=torch.tensor(input_ids, dtype=torch.long),
        position_ids_T=torch.tensor(positions, dtype=torch.long),
        segments=tuple(segments),
        source_positions_N=torch.tensor(sources, dtype=torch.long),
        targets_N=torch.tensor(targets, dtype=torch.long),
        weights_N=torch.tensor(weights, dtype=torch.float32),
        sequence_of_source_N=torch.tensor(sequence_of_source, dtype=torch.long),
        tokens=sum(example.tokens for example in examples),
        leaves=tuple(leaf_of),
        trunk_rows_T=_trunk_rows(examples, parts, trunk_starts) if trunk_starts is not None else None,
        extras=_extras(examples),
    )


def _extras(examples: Sequence[TokenizedExample]) -> dict[str, torch.Tensor]:
    """The examples' numbers by name, float32 [examples].

    Raises:
        ValueError: a number that only some of the examples have.
    """
    names = examples[0].extras.keys()
    if any(example.extras.keys() != names for example in examples):
        raise ValueError(f"examples of one batch have different extras: {[sorted(item.extras) for item in examples]}")
    return {name: torch.tensor([float(example.extras[name]) for example in examples]) for name in names}


def _trunk_rows(
    examples: Sequence[TokenizedExample], parts: Sequence[Part], trunk_starts: Sequence[int]
) -> torch.Tensor:
    """Where the states of each packed token stand, int64 [T]."""
    starts: list[int] = []
    for example in examples:
        assert example.number is not None
        start = int(trunk_starts[example.number])
        for sequence in example.sequences:
            starts.append(start)
            start += len(sequence.input_ids)
    return torch.cat(
        [torch.arange(starts[part.sequence] + part.start, starts[part.sequence] + part.end) for part in parts]
    )


def _rows(parts: Sequence[Part], segments: Sequence[Segment], leaf: int) -> Sequence[int]:
    """Where each token of a sequence stands in the packed row."""
    chain = []
    index: int | None = leaf
    while index is not None:
        chain.append(range(segments[index].start, segments[index].end))
        index = parts[index].parent
    return chain[0] if len(chain) == 1 else [row for rows in reversed(chain) for row in rows]
