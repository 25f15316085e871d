"""Passes over memory that torch's own operations make several of.

Shapes: T rows, H width, F feed-forward width, N heads, D head width, V columns of logits.
"""

from __future__ import annotations

import numpy as np

from luthier.scoring.compiled.compiler import kernel
from luthier.scoring.compiled.kernels.arithmetic import (
    SMALLEST,
    SUMS,
    exponential,
    f32,
    floats,
    largest,
    nb,
    thread_count,
    thread_number,
    types,
)

# Addresses of up to five tensors, how many rows they have and how wide they are; what each kernel takes for which stands with it.
ARGUMENTS = np.dtype(
    [
        *((name, np.int64) for name in ("first", "second", "third", "fourth", "fifth")),
        *((name, np.int64) for name in ("rows", "width", "heads", "row_step", "head_step")),
        ("number", np.float32),
        ("padding", np.float32),
    ]
)
# Sums of sums round less than one sum of all.
SUMMED_AT_ONCE = 512
_pointer = types.CPointer(nb.from_dtype(ARGUMENTS))


@nb.njit(error_model="numpy")
def _own(rows):
    """The first and last + 1 of a thread's rows."""
    number, count = thread_number(), thread_count()
    return rows * number // count, rows * (number + 1) // count


@nb.njit(fastmath=SUMS, error_model="numpy")
def _sigmoid(x):
    """1 / (1 + e^-x), to 9e-27 where x is below -60."""
    away = -x
    away = -SMALLEST if away > -SMALLEST else away
    return f32(1.0) / (f32(1.0) + exponential(away))


@nb.njit(fastmath=SUMS, error_model="numpy")
def _gated(gate, up, inner):
    for index in range(len(gate)):
        inner[index] = gate[index] * _sigmoid(gate[index]) * up[index]


@nb.njit(fastmath=SUMS, error_model="numpy")
def _gated_backward(gate, up, gradient, inner, gate_gradient):
    for index in range(len(gate)):
        x, y, g = gate[index], up[index], gradient[index]
        sigmoid = _sigmoid(x)
        silu = x * sigmoid
        inner[index] = silu * y
        gate_gradient[index] = g * y * (sigmoid + silu * (f32(1.0) - sigmoid))
        gradient[index] = g * silu


@kernel(_pointer)
def gated(arguments):
    """third = silu(first) * second."""
    a = nb.carray(arguments, (1,))[0]
    start, end = _own(a.rows * a.width)
    _gated(
        floats(a.first + 4 * start, end - start),
        floats(a.second + 4 * start, end - start),
        floats(a.third + 4 * start, end - start),
    )


@kernel(_pointer)
def gated_backward(arguments):
    """Of third = silu(first) * second with the gradient fourth: third, the gradient of first (fifth), and that of second in
    fourth's place."""
    a = nb.carray(arguments, (1,))[0]
    start, end = _own(a.rows * a.width)
    _gated_backward(
        floats(a.first + 4 * start, end - start),
        floats(a.second + 4 * start, end - start),
        floats(a.fourth + 4 * start, end - start),
        floats(a.third + 4 * start, end - start),
        floats(a.fifth + 4 * start, end - start),
    )


@nb.njit(fastmath=SUMS, error_model="numpy")
def _norm(x, weight, y, epsilon):
    squares = f32(0.0)
    for index in range(len(x)):
        squares += x[index] * x[index]
    inverse = f32(1.0) / np.sqrt(squares / f32(len(x)) + epsilon)
    for index in range(len(x)):
        y[index] = x[index] * inverse * weight[index]
    return inverse


@nb.njit(fastmath=SUMS, error_model="numpy")
def _norm_backward(gradient, x, weight, inverse, into):
    mean = f32(0.0)
    for index in range(len(x)):
        mean += gradient[index] * weight[index] * x[index]
    mean = mean / f32(len(x)) * inverse * inverse * inverse
    for index in range(len(x)):
        into[index] = gradient[index] * weight[index] * inverse - x[index] * mean


@kernel(_pointer)
def norm(arguments):
    """third = second * first / sqrt(mean(first^2) + number), and the inverse root of each row in fourth."""
    a = nb.carray(arguments, (1,))[0]
    start, end = _own(a.rows)
    weight, inverses = floats(a.second, a.width), floats(a.fourth, a.rows)
    for row in range(start, end):
        place = 4 * row * a.width
        inverses[row] = _norm(floats(a.first + place, a.width), weight, floats(a.third + place, a.width), a.number)


@kernel(_pointer)
def norm_backward(arguments):
    """The gradient of a norm's input in fifth: first its output's, second its weight, third its input, fourth the inverses."""
    a = nb.carray(arguments, (1,))[0]
    start, end = _own(a.rows)
    weight, inverses = floats(a.second, a.width), floats(a.fourth, a.rows)
    for row in range(start, end):
        place = 4 * row * a.width
        gradient, x = floats(a.first + place, a.width), floats(a.third + place, a.width)
        _norm_backward(gradient, x, weight, inverses[row], floats(a.fifth + place, a.width))


@nb.njit(fastmath=SUMS, error_model="numpy")
def _turn(x, cos, sin, turned):
    half = len(x) // 2
    for index in range(half):
        one, other = x[index], x[half + index]
        turned[index] = one * cos[index] - other * sin[index]
        turned[half + index] = other * cos[half + index] + one * sin[half + index]


@nb.njit(fastmath=SUMS, error_model="numpy")
def _turn_back(x, cos, sin, turned):
    half = len(x) // 2
    for index in range(half):
        one, other = x[index], x[half + index]
        turned[index] = one * cos[index] + other * sin[half + index]
        turned[half + index] = other * cos[half + index] - one * sin[index]


@nb.njit(error_model="numpy")
def _turn_rows(a, back):
    start, end = _own(a.rows)
    for row in range(start, end):
        cos, sin = floats(a.second + 4 * row * a.width, a.width), floats(a.third + 4 * row * a.width, a.width)
        for head in range(a.heads):
            x = floats(a.first + 4 * (row * a.row_step + head * a.head_step), a.width)
            turned = floats(a.fourth + 4 * (row * a.heads + head) * a.width, a.width)
            if back:
                _turn_back(x, cos, sin, turned)
            else:
                _turn(x, cos, sin, turned)


@kernel(_pointer)
def turn(arguments):
    """fourth = first, heads of rows, turned by the angles whose cosines are second and sines third."""
    _turn_rows(nb.carray(arguments, (1,))[0], False)


@kernel(_pointer)
def turn_back(arguments):
    """The transpose of `turn`."""
    _turn_rows(nb.carray(arguments, (1,))[0], True)


@nb.njit(fastmath=True, error_model="numpy")
def _top(scores, before):
    top = before
    for index in range(len(scores)):
        top = largest(top, scores[index])
    return top


@nb.njit(fastmath=SUMS, error_model="numpy")
def _exponentiate(scores, top):
    """exp(scores - top) in place; returns their sum."""
    total = f32(0.0)
    for index in range(len(scores)):
        part = exponential(scores[index] - top)
        scores[index] = part
        total += part
    return total


@kernel(_pointer)
def exponentiate(arguments):
    """Rows of first, beside the largest number of each so far (second); its largest in third, its sum in fourth."""
    a = nb.carray(arguments, (1,))[0]
    start, end = _own(a.rows)
    before, tops, sums = floats(a.second, a.rows), floats(a.third, a.rows), floats(a.fourth, a.rows)
    for row in range(start, end):
        scores = floats(a.first + 4 * row * a.width, a.width)
        tops[row] = _top(scores, before[row])
        sums[row] = f32(0.0)
        for column in range(0, a.width, SUMMED_AT_ONCE):
            sums[row] += _exponentiate(scores[column : column + SUMMED_AT_ONCE], tops[row])
