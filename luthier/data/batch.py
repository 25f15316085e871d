"""The one data structure: a batch is a forest of token segments, end to end, without padding.

Shapes: T tokens in the packed row, N targets (a target is a token that some position predicts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """A half-open range of the packed row; its tokens attend to its ancestors and, causally, to itself.

    Args:
        start, end: range in the packed row.
        parent: index of the segment whose tokens (and whose ancestors' tokens) come before it, or None for a root.
    """

    start: int
    end: int
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A packed batch of any stage.

    Args:
        input_ids_T: int64 [T], all segments end to end.
        position_ids_T: int64 [T], position of each token in its own sequence.
        segments: ranges that cover [0, T) in order; parents come before their children.
        source_positions_N: int64 [N], row index of the hidden state that predicts a target, or that a head reads.
        targets_N: int64 [N], the token to predict.
        weights_N: float32 [N], loss weight, above 0.
        sequence_of_source_N: int64 [N], which sequence of the batch (answers counted through its examples) it is of.
        tokens: real tokens of the examples; a shared token counts once for each example.
        trunk_rows_T: int64 [T], where each token's states stand in the trunk (`luthier.scoring.trunk`); None: nowhere.
        leaves: of each sequence, the index of the segment whose last token is its last.
        extras: what else the stage needs.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    segments: tuple[Segment, ...]
    source_positions_N: Tensor
    targets_N: Tensor
    weights_N: Tensor
    sequence_of_source_N: Tensor
    tokens: int
    leaves: tuple[int, ...]
    trunk_rows_T: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on a device."""
        names = (
            "input_ids_T",
            "position_ids_T",
            "source_positions_N",
            "targets_N",
            "weights_N",
            "sequence_of_source_N",
        )
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved, extras={key: value.to(device) for key, value in self.extras.items()})
