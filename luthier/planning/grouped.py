"""Products of a mixture's experts: rows sorted by expert, each expert's with its own matrix, in one operation.

torch counts no arithmetic for them, and on made-up arguments they multiply nothing: where each expert's rows end is said
by a tensor of numbers.

Shapes: S rows of all experts together, E experts, K and N the matrices' sides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# by name: the last two are transformers' own, there once its module of experts was imported
PRODUCT, FALLBACK, FALLBACK_BACKWARD = (
    "aten._grouped_mm", "transformers.grouped_mm_fallback", "transformers.grouped_mm_fallback_backward"
)  # fmt: skip
GROUPED_MM = torch.ops.aten._grouped_mm.default
GROUPED = (PRODUCT, FALLBACK, FALLBACK_BACKWARD)


def is_grouped(function: Any) -> bool:
    """Whether an operator multiplies groups of rows."""
    return str(function._overloadpacket) in GROUPED


def grouped_flops(function: Any, left: Any, right: Any) -> int:
    """Multiplications and additions of one call: 2 S K N, in whichever of its three forms; the fallback's backward makes
    two such products.

    Args:
        left, right: the first two arguments, which have a `shape` or a `size`.
    """
    (*groups, rows, inner), columns = _size(left), _size(right)[-1]
    # the groups share the rows between them, unless both arguments have a matrix for each
    flops = 2 * rows * inner * columns * (groups[0] if groups and len(_size(right)) == 3 else 1)
    return 2 * flops if str(function._overloadpacket) == FALLBACK_BACKWARD else flops


def even_offsets(left: Any, right: Any, groups: int) -> Tensor:
    """Where each expert's rows end, int32 [E], when all have equally many."""
    first, second = _size(left), _size(right)
    rows = first[0] if len(second) == 3 else first[-1] if len(first) == 2 else second[-1]
    return (torch.arange(1, groups + 1) * rows // groups).to(torch.int32)


def grouped_result(left: Tensor, right: Tensor, groups: int) -> Tensor:
    """An empty tensor of the product's shape: torch's own rule for tensors without values knows bfloat16 alone."""
    (*_, rows, _), columns = left.shape, right.shape[-1]
    apart = left.ndim == right.ndim  # a matrix for each expert
    return left.new_empty((groups, rows, columns) if apart else (rows, columns))


def _size(value: Any) -> tuple[int, ...]:
    """Of a tensor, or of a `Shape`."""
    return tuple(value.shape) if isinstance(value, Tensor) else tuple(value.size)
