"""Attention over a forest, forward and backward, tile by tile.

Each tile's scores are made, turned into probabilities and multiplied with values while the core's own cache holds them; what
the causal mask hides is not computed, but for the tile's own keys. Forward keeps the largest score so far, and scales
what was summed up as that grows (Dao et al. 2022, https://arxiv.org/abs/2205.14135, algorithm 1); backward makes the
probabilities again from the log-sum-exps (ibid., algorithm 4), and adds up the gradients of keys and values apart for each
thread (in slots, see `Tiles`), so that none waits.

Shapes: T row length, U rows that attend, H query heads, K key-value heads, D head width, G query heads of one key-value head;
M rows of a tile times G.
"""

from __future__ import annotations

import numpy as np

from luthier.scoring.compiled.compiler import kernel
from luthier.scoring.compiled.kernels.arithmetic import (
    PLAIN,
    PRODUCT_BYTES,
    SUMS,
    TURNED,
    at,
    exponential,
    f32,
    floats,
    largest,
    nb,
    product,
    thread_count,
    thread_number,
    types,
)

# Keys of which scores are made at once. 128 are as fast for rows of 200 tokens, 512 a third slower for long ones.
KEYS_AT_ONCE = 256
SPACE = KEYS_AT_ONCE + 16  # for a row of scores, see `_step`

_TENSORS = ("query", "key", "value", "output", "gradient", "query_gradient")
# Addresses and counts. `<tensor>_row` and `<tensor>_head` are how many numbers it is from a row of a tensor, or a head, to the next.
ARGUMENTS = np.dtype(
    [
        *((name, np.int64) for tensor in _TENSORS for name in (tensor, f"{tensor}_row", f"{tensor}_head")),
        *((name, np.int64) for name in ("sums", "keys_gradient", "values_gradient", "row_length", "asked")),
        *((name, np.int64) for name in ("tiles", "ranges", "range_count", "shares", "share_count", "positions")),
        *((name, np.int64) for name in ("memory", "memory_of_share", "stacked", "heads", "key_heads", "width")),
        ("scale", np.float32),
        ("padding", np.float32),
    ]
)
_pointer = types.CPointer(nb.from_dtype(ARGUMENTS))


def memory_of_share(stacked_M: int, width: int) -> int:
    """Bytes that each share works in: scores and their gradients, and of queries, outputs or gradients three pieces."""
    wanted = PRODUCT_BYTES + 4 * (2 * stacked_M * SPACE + 3 * stacked_M * width + 2 * stacked_M)
    return (wanted + 4095) // 4096 * 4096


@nb.njit(fastmath=True, error_model="numpy")
def _top(scores, count, so_far):
    top = so_far
    for index in range(count):
        top = largest(top, scores[index])
    return top


@nb.njit(fastmath=SUMS, error_model="numpy")
def _exponentiate(scores, count, top):
    """exp(scores - top) in place; returns their sum."""
    total = f32(0.0)
    for index in range(count):
        part = exponential(scores[index] - top)
        scores[index] = part
        total += part
    return total


@nb.njit(fastmath=SUMS, error_model="numpy")
def _differentiate(scores, gradients, count, log_sum, mean):
    """In place: P = exp(S - l), and dS = P (dP - rowsum(do o))."""
    for index in range(count):
        probability = exponential(scores[index] - log_sum)
        scores[index] = probability
        gradients[index] = probability * (gradients[index] - mean)


@nb.njit(fastmath=SUMS, error_model="numpy")
def _dot(one, other, count):
    total = f32(0.0)
    for index in range(count):
        total += one[index] * other[index]
    return total


@nb.njit(error_model="numpy")
def _row(tensor, row_step, head_step, row, head, width):
    return floats(tensor + 4 * (row * row_step + head * head_step), width)


@nb.njit(error_model="numpy")
def _move(stacked, back, tensor, row_step, head_step, first, rows, first_head, groups, width, factor):
    """Rows of a group's heads, one under the other [G, rows, D], from a tensor or back into it, times a factor."""
    for group in range(groups):
        for row in range(rows):
            there = _row(tensor, row_step, head_step, first + row, first_head + group, width)
            here = stacked[(group * rows + row) * width : (group * rows + row + 1) * width]
            source, target = (here, there) if back else (there, here)
            for index in range(width):
                target[index] = source[index] * factor


@nb.njit(error_model="numpy")
def _visible(position, key, count):
    """How many of the keys from one on a row sees."""
    return min(count, max(0, position + 1 - key))


@nb.njit(error_model="numpy")
def _step(count):
    """From a row of scores to the next: whole lines of the cache, and no power of two of them."""
    lines = (count + 15) // 16
    return 16 * (lines + 1 - lines % 2)


@nb.njit(error_model="numpy")
def _blocks(tile):
    """How many ranges of keys a tile has, its own keys among them."""
    return tile[4] - tile[3] + 1


@nb.njit(error_model="numpy")
def _block(tile, ranges, positions, number):
    """The first and last + 1 of a tile's keys, and whether all its rows see them: first its ranges, then its own keys."""
    place = tile[3] + number
    if place < tile[4]:
        return ranges[place, 0], ranges[place, 1], True
    return tile[5], positions[tile[1] + tile[2] - 1] + 1, False


@nb.njit(error_model="numpy")
def _forward(a, memory, tile, ranges, positions):
    width, groups, most = a.width, a.heads // a.key_heads, a.stacked * (a.heads // a.key_heads)
    head, first, rows = tile[0], tile[1], tile[2]
    stacked, of_group = groups * rows, head * groups
    scores = memory + PRODUCT_BYTES
    queries = floats(scores + 4 * most * SPACE, stacked * width)
    outputs = floats(scores + 4 * most * (SPACE + width), stacked * width)
    tops = floats(scores + 4 * most * (SPACE + 2 * width), stacked)
    totals = floats(scores + 4 * most * (SPACE + 2 * width + 1), stacked)
    _move(queries, False, a.query, a.query_row, a.query_head, first, rows, of_group, groups, width, a.scale)
    tops[:] = f32(-np.inf)
    totals[:] = f32(0.0)
    outputs[:] = f32(0.0)
    for block in range(_blocks(tile)):
        start, end, whole = _block(tile, ranges, positions, block)
        for key in range(start, end, KEYS_AT_ONCE):
            count = min(KEYS_AT_ONCE, end - key)
            step = _step(count)
            keys = a.key + 4 * (key * a.key_row + head * a.key_head)
            values = a.value + 4 * (key * a.value_row + head * a.value_head)
            product(
                memory, TURNED, PLAIN, count, stacked, width, f32(0.0),
                keys, a.key_row, queries.ctypes.data, width, scores, step,
            )  # fmt: skip
            _add_up(tile, key, count, whole, positions, floats(scores, stacked * step), outputs, width, tops, totals)
            product(
                memory, PLAIN, PLAIN, width, stacked, count, f32(1.0),
                values, a.value_row, scores, step, outputs.ctypes.data, width,
            )  # fmt: skip
    sums = floats(a.sums, (first + rows) * a.heads)
    for row in range(stacked):
        own = outputs[row * width : (row + 1) * width]
        inverse = f32(1.0) / totals[row]
        for index in range(width):
            own[index] *= inverse
        sums[(first + row % rows) * a.heads + of_group + row // rows] = tops[row] + f32(np.log(totals[row]))
    _move(outputs, True, a.output, a.output_row, a.output_head, first, rows, of_group, groups, width, f32(1.0))


@nb.njit(error_model="numpy")
def _add_up(tile, key, count, whole, positions, scores, outputs, width, tops, totals):
    """Scores to probabilities beside each row's largest one so far; what was summed up before is scaled as that grows."""
    for stacked in range(len(tops)):
        own = scores[stacked * _step(count) : stacked * _step(count) + count]
        seen = count if whole else _visible(positions[tile[1] + stacked % tile[2]], key, count)
        own[seen:] = f32(0.0)
        if seen == 0:
            continue
        before = tops[stacked]
        top = _top(own, seen, before)
        total = _exponentiate(own, seen, top)
        if totals[stacked] > f32(0.0) and top > before:
            factor = exponential(before - top)
            totals[stacked] *= factor
            sums = outputs[stacked * width : (stacked + 1) * width]
            for index in range(width):
                sums[index] *= factor
        totals[stacked] += total
        tops[stacked] = top


@nb.njit(error_model="numpy")
def _backward(a, memory, tile, ranges, positions):
    width, groups, most = a.width, a.heads // a.key_heads, a.stacked * (a.heads // a.key_heads)
    head, first, rows = tile[0], tile[1], tile[2]
    stacked, of_group = groups * rows, head * groups
    slot = 4 * tile[6] * a.row_length * width
    scores = memory + PRODUCT_BYTES
    slopes = scores + 4 * most * SPACE
    queries = floats(slopes + 4 * most * SPACE, stacked * width)
    gradients = floats(slopes + 4 * most * (SPACE + width), stacked * width)
    into = floats(slopes + 4 * most * (SPACE + 2 * width), stacked * width)
    means = floats(slopes + 4 * most * (SPACE + 3 * width), stacked)
    log_sums = floats(slopes + 4 * most * (SPACE + 3 * width + 1), stacked)
    _move(queries, False, a.query, a.query_row, a.query_head, first, rows, of_group, groups, width, a.scale)
    _move(gradients, False, a.gradient, a.gradient_row, a.gradient_head, first, rows, of_group, groups, width, f32(1.0))
    _read_sums(a, tile, gradients, means, log_sums)
    into[:] = f32(0.0)
    for block in range(_blocks(tile)):
        start, end, whole = _block(tile, ranges, positions, block)
        for key in range(start, end, KEYS_AT_ONCE):
            count = min(KEYS_AT_ONCE, end - key)
            step = _step(count)
            keys = a.key + 4 * (key * a.key_row + head * a.key_head)
            values = a.value + 4 * (key * a.value_row + head * a.value_head)
            here = slot + 4 * key * width
            product(
                memory, TURNED, PLAIN, count, stacked, width, f32(0.0),
                keys, a.key_row, queries.ctypes.data, width, scores, step,
            )  # fmt: skip
            product(
                memory, TURNED, PLAIN, count, stacked, width, f32(0.0),
                values, a.value_row, gradients.ctypes.data, width, slopes, step,
            )  # fmt: skip
            _slope(tile, key, count, whole, positions, scores, slopes, log_sums, means)
            product(
                memory, PLAIN, TURNED, width, count, stacked, f32(1.0),
                gradients.ctypes.data, width, scores, step, a.values_gradient + here, width,
            )  # fmt: skip
            product(
                memory, PLAIN, TURNED, width, count, stacked, f32(1.0),
                queries.ctypes.data, width, slopes, step, a.keys_gradient + here, width,
            )  # fmt: skip
            product(
                memory, PLAIN, PLAIN, width, stacked, count, f32(1.0),
                keys, a.key_row, slopes, step, into.ctypes.data, width,
            )  # fmt: skip
    _move(
        into, True, a.query_gradient, a.query_gradient_row, a.query_gradient_head,
        first, rows, of_group, groups, width, a.scale,
    )  # fmt: skip


@nb.njit(error_model="numpy")
def _read_sums(a, tile, gradients, means, log_sums):
    """Of each row of a tile, rowsum(do o) and the log-sum-exp."""
    head, first, rows = tile[0], tile[1], tile[2]
    groups, width = a.heads // a.key_heads, a.width
    sums = floats(a.sums, (first + rows) * a.heads)
    for stacked in range(rows * groups):
        row, of_all = first + stacked % rows, head * groups + stacked // rows
        output = _row(a.output, a.output_row, a.output_head, row, of_all, width)
        means[stacked] = _dot(gradients[stacked * width : (stacked + 1) * width], output, width)
        log_sums[stacked] = sums[row * a.heads + of_all]


@nb.njit(error_model="numpy")
def _slope(tile, key, count, whole, positions, scores, slopes, log_sums, means):
    """Scores to probabilities, and their gradients to those of the scores."""
    for row in range(len(means)):
        place = 4 * row * _step(count)
        own, own_slopes = floats(scores + place, count), floats(slopes + place, count)
        seen = count if whole else _visible(positions[tile[1] + row % tile[2]], key, count)
        _differentiate(own, own_slopes, seen, log_sums[row], means[row])
        own[seen:] = f32(0.0)
        own_slopes[seen:] = f32(0.0)


@nb.njit(error_model="numpy")
def _lists(a):
    """The shares, tiles, ranges of keys, and positions of rows (see `Tiles`)."""
    shares = nb.carray(at(a.shares), (a.share_count + 1,), np.int64)
    tiles = nb.carray(at(a.tiles), (shares[a.share_count], 7), np.int64)
    ranges = nb.carray(at(a.ranges), (a.range_count, 2), np.int64)
    return shares, tiles, ranges, nb.carray(at(a.positions), (a.asked,), np.int64)


@kernel(_pointer)
def forward(arguments):
    """Outputs and log-sum-exps."""
    a = nb.carray(arguments, (1,))[0]
    shares, tiles, ranges, positions = _lists(a)
    for share in range(thread_number(), a.share_count, thread_count()):
        for number in range(shares[share], shares[share + 1]):
            _forward(a, a.memory + share * a.memory_of_share, tiles[number], ranges, positions)


@kernel(_pointer)
def backward(arguments):
    """Gradients of queries, and in slots those of keys and values."""
    a = nb.carray(arguments, (1,))[0]
    shares, tiles, ranges, positions = _lists(a)
    slot = a.row_length * a.width
    for share in range(thread_number(), a.share_count, thread_count()):
        if shares[share] == shares[share + 1]:
            continue
        first, last = tiles[shares[share], 6], tiles[shares[share + 1] - 1, 6]
        for gradients in (a.keys_gradient, a.values_gradient):
            floats(gradients + 4 * first * slot, (last + 1 - first) * slot)[:] = f32(0.0)
        for number in range(shares[share], shares[share + 1]):
            _backward(a, a.memory + share * a.memory_of_share, tiles[number], ranges, positions)
