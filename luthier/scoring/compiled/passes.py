"""Passes over memory by compiled kernels, as operations of torch.

Shapes: T rows, H width, F feed-forward width, N heads, D head width, C rows of logits, V their columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.scoring.compiled.compiler import launch, missing


def takes(*parts: Tensor) -> bool:
    """Whether the kernels compute with these tensors, row by row as they lie."""
    return all(_fits(part) and part.is_contiguous() for part in parts) and missing() is None


def takes_heads(x: Tensor, *angles: Tensor) -> bool:
    """The same for heads [1, N, T, D], whose rows and heads may lie in any order."""
    whole = x.dim() == 4 and len(x) == 1 and all(part.shape == (1, *x.shape[2:]) for part in angles)
    return whole and _fits(x) and x.stride(-1) == 1 and takes(*angles)


def _fits(part: Tensor) -> bool:
    return part.dtype == torch.float32 and part.device.type == "cpu"


def _run(kernel: str, *tensors: Tensor, rows: int, width: int, **numbers: Any) -> None:
    from luthier.scoring.compiled.kernels import passes as kernels

    arguments = np.zeros(1, kernels.ARGUMENTS)
    for name, tensor in zip(kernels.ARGUMENTS.names or (), tensors, strict=False):
        arguments[name] = tensor.data_ptr()
    for name, number in {"rows": rows, "width": width, **numbers}.items():
        arguments[name] = number
    launch(getattr(kernels, kernel), arguments)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    inner = torch.empty_like(gate)
    _run("gated", gate, up, inner, rows=len(gate), width=gate.shape[1])
    return inner


def _gated_backward(gate: Tensor, up: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    inner, of_gate = torch.empty_like(gate), torch.empty_like(gate)
    _run("gated_backward", gate, up, inner, gradient, of_gate, rows=len(gate), width=gate.shape[1])
    return inner, of_gate


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    y, inverse = torch.empty_like(x), x.new_empty((len(x), 1))
    _run("norm", x, weight, y, inverse, rows=len(x), width=x.shape[1], number=epsilon)
    return y, inverse


def _norm_backward(gradient: Tensor, weight: Tensor, x: Tensor, inverse: Tensor) -> Tensor:
    into = torch.empty_like(x)
    _run("norm_backward", gradient, weight, x, inverse, into, rows=len(x), width=x.shape[1])
    return into


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    _, heads, length, width = x.shape
    turned = x.new_empty((1, length, heads, width))
    _run(
        "turn_back" if back else "turn", x, cos, sin, turned,
        rows=length, width=width, heads=heads, row_step=x.stride(2), head_step=x.stride(1),
    )  # fmt: skip
    return turned


def _exponentiate(scores: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    top, total = torch.empty_like(before), torch.empty_like(before)
    _run("exponentiate", scores, before, top, total, rows=len(scores), width=scores.shape[1])
    return top, total


_library = torch.library.Library("luthier", "FRAGMENT")
for _schema, _computes, _shapes in (
    ("gated(Tensor gate, Tensor up) -> Tensor", _gated, lambda gate, up: torch.empty_like(gate)),
    (
        "gated_backward(Tensor gate, Tensor up, Tensor(a!) gradient) -> (Tensor, Tensor)",
        _gated_backward,
        lambda gate, up, gradient: (torch.empty_like(gate), torch.empty_like(gate)),
    ),
    (
        "norm(Tensor x, Tensor weight, float epsilon) -> (Tensor, Tensor)",
        _norm,
        lambda x, weight, epsilon: (torch.empty_like(x), x.new_empty((len(x), 1))),
    ),
    (
        "norm_backward(Tensor gradient, Tensor weight, Tensor x, Tensor inverse) -> Tensor",
        _norm_backward,
        lambda gradient, weight, x, inverse: torch.empty_like(x),
    ),
    (
        "turn(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor",
        _turn,
        lambda x, cos, sin, back: x.new_empty((1, x.shape[2], x.shape[1], x.shape[3])),
    ),
    (
        "exponentiate(Tensor(a!) scores, Tensor before) -> (Tensor, Tensor)",
        _exponentiate,
        lambda scores, before: (torch.empty_like(before), torch.empty_like(before)),
    ),
):
    _library.define(_schema)
    _library.impl(_schema.split("(")[0], _computes, "CPU")
    _library.impl(_schema.split("(")[0], _shapes, "Meta")

_operations = torch.ops.luthier


def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up."""
    inner_TF: Tensor = _operations.gated.default(gate_TF, up_TF)
    return inner_TF


def gated_backward(gate_TF: Tensor, up_TF: Tensor, gradient_TF: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) * up again and the gradient of gate, from the product's gradient, which becomes that of up, in place."""
    inner_TF, gate_gradient_TF = _operations.gated_backward.default(gate_TF, up_TF, gradient_TF)
    return inner_TF, gate_gradient_TF


def norm(x_TH: Tensor, weight_H: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """w * x / sqrt(mean(x^2) + eps), and the inverse roots [T, 1]."""
    y_TH, inverse_T1 = _operations.norm.default(x_TH, weight_H, epsilon)
    return y_TH, inverse_T1


def norm_backward(gradient_TH: Tensor, weight_H: Tensor, x_TH: Tensor, inverse_T1: Tensor) -> Tensor:
    """The gradient of x."""
    into_TH: Tensor = _operations.norm_backward.default(gradient_TH, weight_H, x_TH, inverse_T1)
    return into_TH


def turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """Heads [1, N, T, D] turned by angles [1, T, D], or by the transpose of that: as they lie in memory, [1, T, N, D]."""
    turned: Tensor = _operations.turn.default(x, cos, sin, back)
    return turned


def exponentiate(scores_CV: Tensor, before_C1: Tensor) -> tuple[Tensor, Tensor]:
    """exp(scores - the largest of a row, of `before` too) in place; those largest, and the sums of the exponentials, [C, 1]."""
    top_C1, sum_C1 = _operations.exponentiate.default(scores_CV, before_C1)
    return top_C1, sum_C1
