"""Examples to batches: sequences laid end to end, no padding.

Shapes: T tokens in the packed row, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.data.batch import Batch, Segment
from luthier.data.examples import TokenizedExample


def pack(examples: Sequence[TokenizedExample]) -> Batch:
    """One batch of all sequences of the examples, each a root of the forest.

    Raises:
        ValueError: no example, or an example without tokens.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    input_ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    sources: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    sequence_of_source: list[int] = []
    for sequence in (sequence for example in examples for sequence in example.sequences):
        start = len(input_ids)
        if not sequence.input_ids:
            raise ValueError("a sequence without tokens can't be packed")
        for offset, (token, weight) in enumerate(zip(sequence.input_ids, sequence.weights, strict=True)):
            if weight > 0:
                sources.append(start + offset - 1)
                targets.append(token)
                weights.append(weight)
                sequence_of_source.append(len(segments))
        input_ids += sequence.input_ids
        positions += range(len(sequence.input_ids))
        segments.append(Segment(start, len(input_ids)))
    return Batch(
        input_ids_T=torch.tensor(input_ids, dtype=torch.long),
        position_ids_T=torch.tensor(positions, dtype=torch.long),
        segments=tuple(segments),
        source_positions_N=torch.tensor(sources, dtype=torch.long),
        targets_N=torch.tensor(targets, dtype=torch.long),
        weights_N=torch.tensor(weights, dtype=torch.float32),
        sequence_of_source_N=torch.tensor(sequence_of_source, dtype=torch.long),
        tokens=sum(example.tokens for example in examples),
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
