"""Statistics and gradients of rows, compiled by numba.

A vector of the processor holds several numbers, its lanes. Where the classes of a row are adjacent
and many, lanes run along them (`wide_stats`, `wide_grad`); where they are few, or lie apart as in
images, lanes are rows (`lane_stats`, `lane_grad`). Both read a row twice: for its greatest logit,
then for the sum below it, when it lies in cache already.

A kernel knows logits z, an index per row, weights of classes, and numbers per row. With s the scale,
the statistics of a row are

    top, rest, s·(z_index - top), and sum_j w_j·s·(z_j - top) where it is asked for,

and its gradient is

    exp(s·(z_j - top))·pull - even·w_j, and at the index a number that is given.

What these mean is the business of the callers. An array of length 0 is one that is not asked for.
Every row is summed in the same order by itself, however rows are dealt to threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import carray
from numpy.lib.stride_tricks import as_strided

from xent_array._kernels._arithmetic import EXACT, add_exactly, exp, narrow, pointer, widen

#: How many numbers are worked on in step: a few vectors, to keep several operations under way.
LANES = 128

#: How many numbers a lane adds up before the lanes are added, exactly, to the total.
RUN = 32

#: How many classes are worked on at once where lanes are rows: what fits the first cache.
TILE = 64

compiled = numba.njit(nogil=True, **EXACT)


def kernel(function: Callable[..., None]) -> Any:
    """Compile a function that is called from Python, and keep it on disk where there is a place."""
    try:
        return numba.njit(nogil=True, cache=True, **EXACT)(function)
    except RuntimeError:  # no folder of numba's can be written to
        return compiled(function)


# --- one operation on all lanes


@compiled
def raise_to(top, x):
    for k in range(LANES):
        v = widen(x[k])
        top[k] = v if v > top[k] else top[k]


@compiled
def add_below(rest, ties, x, top, scale):
    """Add the exponentials of what lies below the top; count what equals it."""
    nothing, one = top.dtype.type(0), top.dtype.type(1)
    for k in range(LANES):
        v = widen(x[k])
        e = exp(scale * (v - top[k]))
        rest[k] += nothing if v == top[k] else e
        ties[k] += one if v == top[k] else nothing


@compiled
def add_weighted(total, x, weight, top, scale):
    """Add up w·s·(z - top), with 0·(-inf) = 0."""
    nothing = top.dtype.type(0)
    for k in range(LANES):
        w, fall = weight[k], scale * (widen(x[k]) - top[k])
        total[k] += nothing if (w == nothing) & (fall == -np.inf) else w * fall


@compiled
def differentiate(slope, x, top, scale, pull, share):
    """Derivatives, in memory of their own: LLVM makes no vectors of what may overlap."""
    for k in range(LANES):
        slope[k] = exp(scale * (widen(x[k]) - top[k])) * pull[k] - share[k]


@compiled
def copy(to, x):
    for k in range(len(to)):
        to[k] = narrow(x[k], to[k])


@compiled
def settle(total, lost, x):
    for k in range(LANES):
        total[k], lost[k] = add_exactly(total[k], lost[k], x[k])


@compiled
def settled(total, lost):
    """An exact sum, rounded; where it is infinite, what was lost is not a number."""
    return total + lost if lost == lost else total  # noqa: PLR0124


@compiled
def greatest(x):
    for k in range(LANES // 2):
        x[k] = max(x[k], x[LANES // 2 + k])
    for k in range(LANES // 4):
        x[k] = max(x[k], x[LANES // 4 + k])
    for k in range(LANES // 8):
        x[k] = max(x[k], x[LANES // 8 + k])
    top = x[0]
    for k in range(LANES // 8):
        top = max(top, x[k])
    return top


@compiled
def sum_of(x):
    """The sum of all lanes, by halves while vectors are full."""
    for k in range(LANES // 2):
        x[k] += x[LANES // 2 + k]
    for k in range(LANES // 4):
        x[k] += x[LANES // 4 + k]
    for k in range(LANES // 8):
        x[k] += x[LANES // 8 + k]
    total = 0.0
    for k in range(LANES // 8):
        total += x[k]
    return total


@compiled
def agreed(top, rest):
    """Top and rest: NaN both where a logit is, which no maximum shows; rest where top is infinite."""
    top += rest - rest
    return top, rest + (top - top)


@compiled
def place_of(row, top, rest):
    """Where a row has its top, or its first NaN."""
    place = -1
    for j in range(len(row)):
        v = widen(row[j])
        if v != v:  # noqa: PLR0124
            return j
        if v == top and place < 0:
            place = j
            if rest == rest:  # noqa: PLR0124
                break
    return place


# --- lanes along the classes of a row


@compiled
def seen(like, address, rows, classes, row_step, class_step):
    """Memory at an address as an array, of the dtype of another."""
    return as_strided(
        carray(pointer(address, like), (1,)), (rows, classes), (row_step, class_step)
    )


@compiled
def line(x, i, j, length):
    """Adjacent entries from ``x[i, j]`` on.

    A contiguous array that is indexed from 0 is what LLVM makes vectors of.
    """
    address = x.ctypes.data + i * x.strides[0] + j * x.strides[1]
    return carray(pointer(address, x), (length,))


@kernel
def wide_stats(
    like, address, rows, classes, row_step, class_step,
    scale, weight, index, top, rest, picked, even, first,
):
    z = seen(like, address, rows, classes, row_step, class_step)
    whole = classes - classes % LANES
    high, below, ties = np.empty(LANES, top.dtype), np.empty(LANES, top.dtype), np.empty(LANES, top.dtype)
    last = np.full(LANES, -np.inf, top.dtype)
    last_weight = np.zeros(LANES, top.dtype)
    if even.size:
        last_weight[: classes - whole] = weight[whole:]
    for i in range(rows):
        row = line(z, i, 0, classes)
        for k in range(classes - whole):
            last[k] = widen(row[whole + k])
        high[:] = -np.inf
        for start in range(0, whole, LANES):
            raise_to(high, line(z, i, start, LANES))
        raise_to(high, last)
        top[i] = greatest(high)
        high[:] = top[i]
        ties[:] = 0
        total, lost = 0.0, 0.0
        for begin in range(0, whole, RUN * LANES):
            below[:] = 0
            for start in range(begin, min(begin + RUN * LANES, whole), LANES):
                add_below(below, ties, line(z, i, start, LANES), high, scale)
            total, lost = add_exactly(total, lost, sum_of(below))
        below[:] = 0
        add_below(below, ties, last, high, scale)
        total, lost = add_exactly(total, lost, sum_of(below))
        top[i], rest[i] = agreed(top[i], settled(total, lost) + (sum_of(ties) - 1))
        picked[i] = scale * (widen(row[index[i]]) - top[i])
        if even.size:
            total, lost = 0.0, 0.0
            for begin in range(0, whole, RUN * LANES):
                below[:] = 0
                for start in range(begin, min(begin + RUN * LANES, whole), LANES):
                    add_weighted(below, line(z, i, start, LANES), weight[start : start + LANES], high, scale)
                total, lost = add_exactly(total, lost, sum_of(below))
            below[:] = 0
            add_weighted(below, last, last_weight, high, scale)
            total, lost = add_exactly(total, lost, sum_of(below))
            even[i] = settled(total, lost)
        if first.size:
            first[i] = place_of(row, top[i], rest[i])


@kernel
def wide_grad(
    like, address, rows, classes, row_step, class_step,
    to_address, _rows, _classes, to_row_step, to_class_step,
    scale, weight, top, pull, even, index, chosen, kept,
):
    z = seen(like, address, rows, classes, row_step, class_step)
    into = seen(like, to_address, rows, classes, to_row_step, to_class_step)
    whole = classes - classes % LANES
    high, slope, buffer = np.empty(LANES, top.dtype), np.empty(LANES, top.dtype), np.empty(LANES, top.dtype)
    share, last = np.zeros(LANES, top.dtype), np.zeros(LANES, top.dtype)
    for i in range(rows):
        row, grad = line(z, i, 0, classes), line(into, i, 0, classes)
        if kept.size and not kept[i]:
            for j in range(classes):
                grad[j] = 0
            continue
        high[:] = top[i]
        slope[:] = pull[i]
        for start in range(0, whole, LANES):
            if even.size:
                for k in range(LANES):
                    share[k] = even[i] * weight[start + k]
            differentiate(buffer, line(z, i, start, LANES), high, scale, slope, share)
            copy(line(into, i, start, LANES), buffer)
        for k in range(classes - whole):
            last[k] = widen(row[whole + k])
            if even.size:
                share[k] = even[i] * weight[whole + k]
        differentiate(buffer, last, high, scale, slope, share)
        copy(grad[whole:], buffer)
        grad[index[i]] = narrow(chosen[i], grad[0])


# --- lanes are rows


@compiled
def load(tile, z, row, rows, start, width):
    """Bring some classes of some rows into a tile, transposed unless rows are adjacent."""
    if z.strides[0] == z.itemsize:
        for c in range(width):
            x, to = line(z, row, start + c, rows), tile[c]
            for k in range(rows):
                to[k] = widen(x[k])
    else:
        for k in range(rows):
            for c in range(width):
                tile[c, k] = widen(z[row + k, start + c])


@compiled
def store(tile, into, row, rows, start, width):
    if into.strides[0] == into.itemsize:
        for c in range(width):
            x, to = tile[c], line(into, row, start + c, rows)
            for k in range(rows):
                to[k] = narrow(x[k], to[k])
    else:
        for k in range(rows):
            for c in range(width):
                into[row + k, start + c] = narrow(tile[c, k], into[row + k, start + c])


@kernel
def lane_stats(
    like, address, rows, classes, row_step, class_step,
    scale, weight, index, top, rest, picked, even, first,
):
    z = seen(like, address, rows, classes, row_step, class_step)
    tile = np.zeros((TILE, LANES), top.dtype)
    lanes = np.empty((7, LANES), top.dtype)
    high, below, ties, total, lost, sums, heavy = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5], lanes[6]
    drift = np.empty(LANES, top.dtype)
    for row in range(0, rows, LANES):
        here = min(LANES, rows - row)
        high[:] = -np.inf
        for start in range(0, classes, TILE):
            width = min(TILE, classes - start)
            load(tile, z, row, here, start, width)
            for c in range(width):
                raise_to(high, tile[c])
        ties[:] = 0
        total[:] = 0
        lost[:] = 0
        sums[:] = 0
        drift[:] = 0
        for start in range(0, classes, TILE):
            width = min(TILE, classes - start)
            if classes > TILE:
                load(tile, z, row, here, start, width)
            for run in range(0, width, RUN):
                below[:] = 0
                for c in range(run, min(run + RUN, width)):
                    add_below(below, ties, tile[c], high, scale)
                settle(total, lost, below)
                if even.size:
                    below[:] = 0
                    for c in range(run, min(run + RUN, width)):
                        heavy[:] = weight[start + c]
                        add_weighted(below, tile[c], heavy, high, scale)
                    settle(sums, drift, below)
        for k in range(here):
            i = row + k
            top[i], rest[i] = agreed(high[k], settled(total[k], lost[k]) + (ties[k] - 1))
            picked[i] = scale * (widen(z[i, index[i]]) - high[k])
            if even.size:
                even[i] = settled(sums[k], drift[k])
            if first.size:
                first[i] = place_of(z[i], high[k], rest[i])


@kernel
def lane_grad(
    like, address, rows, classes, row_step, class_step,
    to_address, _rows, _classes, to_row_step, to_class_step,
    scale, weight, top, pull, even, index, chosen, kept,
):
    z = seen(like, address, rows, classes, row_step, class_step)
    into = seen(like, to_address, rows, classes, to_row_step, to_class_step)
    tile = np.zeros((TILE, LANES), top.dtype)
    lanes = np.zeros((5, LANES), top.dtype)
    high, slope, share, owed, buffer = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    for row in range(0, rows, LANES):
        here = min(LANES, rows - row)
        for k in range(here):
            high[k] = top[row + k]
            slope[k] = pull[row + k]
            if even.size:
                owed[k] = even[row + k]
        for start in range(0, classes, TILE):
            width = min(TILE, classes - start)
            load(tile, z, row, here, start, width)
            for c in range(width):
                if even.size:
                    for k in range(LANES):
                        share[k] = owed[k] * weight[start + c]
                differentiate(buffer, tile[c], high, scale, slope, share)
                tile[c] = buffer
            if kept.size:
                for k in range(here):
                    if not kept[row + k]:
                        tile[:width, k] = 0
            store(tile, into, row, here, start, width)
        for i in range(row, row + here):
            if not kept.size or kept[i]:
                into[i, index[i]] = narrow(chosen[i], into[i, index[i]])
