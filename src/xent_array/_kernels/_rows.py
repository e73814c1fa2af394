"""Statistics and gradients of rows, compiled by numba.

A vector of the processor holds several numbers, its lanes. Where the classes of a row are adjacent
and many, lanes run along them (`wide_stats`, `wide_grad`); where they are few, or lie apart as in
images, lanes are rows (`lane_stats`, `lane_grad`). Both read a row twice: for its greatest logit,
then for the sum below it, when it lies in cache already. While a long row is summed, which takes
longer than to read it, another is fetched from memory.

A kernel knows logits z, an index per row, weights of classes, and numbers per row. With s the
scale, the statistics of a row are

    top, rest, s·(z_index - top), and sum_j w_j·s·(z_j - top) where it is asked for,

and its gradient is

    exp(s·(z_j - top))·pull - even·w_j, and at the index a number that is given.

Statistics may leave the exponentials in the memory of the gradient, which then are not taken twice.
The numbers of rows are all of a call's, those of these rows begin `at` a place in them.
What these mean is the business of the callers. An array of length 0 is one that is not asked for.
Every row is summed in the same order by itself, however rows are dealt to threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from xent_array._kernels._arithmetic import EXACT, add_exactly, narrow, widen
from xent_array._kernels._lanes import (
    LANES,
    add_below,
    add_weighted,
    agreed,
    compiled,
    copy,
    differentiate,
    fetch_line,
    greatest,
    line,
    multiply,
    place_of,
    raise_to,
    raise_to_four,
    scale_to,
    seen,
    settle,
    settled,
    sum_below,
    sum_weighted,
    widen_to,
)

#: How many numbers a lane adds up before the lanes are added, exactly, to the total.
RUN = 8

#: How many classes are added up before their sum is added, exactly, to the total: to some tens of
#: lanes, whatever vectors there are. Of the row after the next as many are fetched meanwhile.
STRETCH = 512

#: How many classes are worked on at once where lanes are rows: what fits the first cache.
TILE = 64


def kernel(function: Callable[..., None]) -> Any:
    """Compile a function that is called from Python, and keep it on disk where there is a place."""
    try:
        return numba.njit(nogil=True, cache=True, **EXACT)(function)
    except RuntimeError:  # no folder of numba's can be written to
        return compiled(function)


# --- lanes along the classes of a row


@compiled
def top_of(high, last, z, i, whole, classes):
    """Find a row's greatest entry, and widen to `last` the classes after the `whole` blocks."""
    widen_to(last, line(z, i, whole, classes - whole))
    high[:] = -np.inf
    fours = whole - whole % (4 * LANES)
    for start in range(0, fours, 4 * LANES):
        raise_to_four(high, line(z, i, start, 4 * LANES))
    for start in range(fours, whole, LANES):
        raise_to(high, line(z, i, start, LANES))
    raise_to(high, last)
    return greatest(high)


@compiled
def rest_of(z, into, leaves, exps, i, far, whole, classes, last, top, scale):
    """Sum a row's exponentials below its top, and leave them `into` memory or nowhere."""
    total, lost, ties = 0.0, 0.0, exps.dtype.type(0)
    if whole < classes:
        total, ties = sum_below(exps, last, top, scale)
        if leaves:
            copy(line(into, i, whole, classes - whole), exps)
    for start in range(0, whole, STRETCH):
        length = min(STRETCH, whole - start)
        if i + 2 < far:
            fetch_line(z, i + 2, start, length)
        part = line(z, i, start, length)
        if leaves:
            below, more = sum_below(line(into, i, start, length), part, top, scale)
        else:
            below, more = sum_below(exps, part, top, scale)
        total, lost = add_exactly(total, lost, below)
        ties += more
    return settled(total, lost) + (ties - 1)


@compiled
def fall_of(z, i, whole, classes, last, weight, last_weight, top, scale):
    """Sum a row's weighted distances from its top."""
    total, lost = 0.0, 0.0
    for start in range(0, whole, STRETCH):
        length = min(STRETCH, whole - start)
        heavy = weight[start : start + length]
        part = sum_weighted(line(z, i, start, length), heavy, top, scale)
        total, lost = add_exactly(total, lost, part)
    if whole < classes:
        part = sum_weighted(last, last_weight, top, scale)
        total, lost = add_exactly(total, lost, part)
    return settled(total, lost)


@kernel
def wide_stats(
    origin,
    rows,
    classes,
    row_step,
    class_step,
    to_origin,
    _rows,
    _classes,
    to_row_step,
    to_class_step,
    leaves,
    fetches,
    scale,
    weight,
    at,
    index,
    found,
    even,
    place,
):
    index, even, place = index[at:], even[at:], place[at:]
    top, rest, picked = found[0, at:], found[1, at:], found[2, at:]
    z = seen(origin, rows, classes, row_step, class_step)
    into = seen(to_origin, rows, classes, to_row_step, to_class_step)
    whole = classes - classes % LANES
    exps = np.empty(STRETCH, top.dtype)
    lanes = np.zeros((4, LANES), top.dtype)
    lanes[:2] = -np.inf  # a class that is not there has no part in any sum
    high, last_weight = lanes[2], lanes[3]
    if even.size:
        last_weight[: classes - whole] = weight[whole:]
    far = rows if fetches else 0
    ahead = top_of(high, lanes[0], z, 0, whole, classes)
    for i in range(rows):
        # One row ahead: what waits for the end of a maximum is summed meanwhile.
        here, last = ahead, line(lanes, i & 1, 0, LANES)
        if i + 1 < rows:
            ahead = top_of(high, line(lanes, ~i & 1, 0, LANES), z, i + 1, whole, classes)
        below = rest_of(z, into, leaves, exps, i, far, whole, classes, last, here, scale)
        row = line(z, i, 0, classes)
        top[i], rest[i] = agreed(here, below)
        picked[i] = scale * (widen(row[index[i]]) - top[i])
        if even.size:
            even[i] = fall_of(z, i, whole, classes, last, weight, last_weight, here, scale)
        if place.size:
            place[i] = place_of(row, top[i], rest[i])


@kernel
def wide_grad(
    origin,
    rows,
    classes,
    row_step,
    class_step,
    to_origin,
    _rows,
    _classes,
    to_row_step,
    to_class_step,
    left,
    scale,
    weight,
    at,
    top,
    pull,
    even,
    index,
    chosen,
    kept,
):
    top, pull, even = top[at:], pull[at:], even[at:]
    index, chosen, kept = index[at:], chosen[at:], kept[at:]
    z = seen(origin, rows, classes, row_step, class_step)
    into = seen(to_origin, rows, classes, to_row_step, to_class_step)
    shares = np.zeros(STRETCH, top.dtype)
    whole = classes - classes % LANES
    lanes = np.zeros((5, LANES), top.dtype)
    high, slope, buffer, share, last = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    for i in range(rows):
        grad = line(into, i, 0, classes)
        if kept.size and not kept[i]:
            for j in range(classes):
                grad[j] = 0
            continue
        if left:  # in the dtype that is computed in: none are left in a half one
            for start in range(0, classes, STRETCH):
                length = min(STRETCH, classes - start)
                if even.size:
                    scale_to(shares, even[i], weight[start : start + length])
                multiply(line(into, i, start, length), pull[i], shares)
            grad[index[i]] = chosen[i]
            continue
        high[:] = top[i]
        slope[:] = pull[i]
        for start in range(0, whole, LANES):
            if even.size:
                scale_to(share, even[i], weight[start : start + LANES])
            differentiate(buffer, line(z, i, start, LANES), high, scale, slope, share)
            copy(line(into, i, start, LANES), buffer)
        widen_to(last, line(z, i, whole, classes - whole))
        if even.size:
            scale_to(share, even[i], weight[whole:])
        differentiate(buffer, last, high, scale, slope, share)
        copy(grad[whole:], buffer)
        grad[index[i]] = narrow(chosen[i], grad[0])


# --- lanes are rows


@compiled
def load(tile, z, row, rows, start, width):
    """Bring some classes of some rows into a tile, transposed unless rows are adjacent.

    To index by whatever strides takes twice the time.
    """
    if z.strides[0] == z.itemsize:
        for c in range(width):
            widen_to(tile[c], line(z, row, start + c, rows))
    elif z.strides[1] == z.itemsize:
        for k in range(rows):
            x = line(z, row + k, start, width)
            for c in range(width):
                tile[c, k] = widen(x[c])
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
    elif into.strides[1] == into.itemsize:
        for k in range(rows):
            to = line(into, row + k, start, width)
            for c in range(width):
                to[c] = narrow(tile[c, k], to[c])
    else:
        for k in range(rows):
            for c in range(width):
                into[row + k, start + c] = narrow(tile[c, k], into[row + k, start + c])


@kernel
def lane_stats(
    origin,
    rows,
    classes,
    row_step,
    class_step,
    scale,
    weight,
    at,
    index,
    found,
    even,
    place,
):
    index, even, place = index[at:], even[at:], place[at:]
    top, rest, picked = found[0, at:], found[1, at:], found[2, at:]
    z = seen(origin, rows, classes, row_step, class_step)
    tile = np.zeros((TILE, LANES), top.dtype)
    lanes = np.empty((5, LANES), top.dtype)
    high, below, ties, total, lost = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    lanes = np.empty((3, LANES), top.dtype)
    fall, fall_lost, heavy = lanes[0], lanes[1], lanes[2]
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
        fall[:] = 0
        fall_lost[:] = 0
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
                    settle(fall, fall_lost, below)
        for k in range(here):
            i = row + k
            top[i], rest[i] = agreed(high[k], settled(total[k], lost[k]) + (ties[k] - 1))
            picked[i] = scale * (widen(z[i, index[i]]) - high[k])
            if even.size:
                even[i] = settled(fall[k], fall_lost[k])
            if place.size:
                place[i] = place_of(z[i], high[k], rest[i])


@kernel
def lane_grad(
    origin,
    rows,
    classes,
    row_step,
    class_step,
    to_origin,
    _rows,
    _classes,
    to_row_step,
    to_class_step,
    scale,
    weight,
    at,
    top,
    pull,
    even,
    index,
    chosen,
    kept,
):
    top, pull, even = top[at:], pull[at:], even[at:]
    index, chosen, kept = index[at:], chosen[at:], kept[at:]
    z = seen(origin, rows, classes, row_step, class_step)
    into = seen(to_origin, rows, classes, to_row_step, to_class_step)
    tile = np.zeros((TILE, LANES), top.dtype)
    lanes = np.zeros((5, LANES), top.dtype)
    high, slope, share, owed, buffer = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    nothing = top.dtype.type(0)
    for row in range(0, rows, LANES):
        here = min(LANES, rows - row)
        for k in range(here):
            high[k] = top[row + k]
            slope[k] = pull[row + k]
            if even.size:
                owed[k] = even[row + k]
        # Adjacent rows need no tile: nothing of them is read twice.
        direct = here == LANES and z.strides[0] == z.itemsize and into.strides[0] == z.itemsize
        for start in range(0, classes, TILE):
            width = min(TILE, classes - start)
            if not direct:
                load(tile, z, row, here, start, width)
            for c in range(width):
                if even.size:
                    scale_to(share, weight[start + c], owed)
                if direct:
                    differentiate(buffer, line(z, row, start + c, LANES), high, scale, slope, share)
                else:
                    differentiate(buffer, tile[c], high, scale, slope, share)
                if kept.size:
                    for k in range(here):
                        buffer[k] = buffer[k] if kept[row + k] else nothing
                if direct:
                    copy(line(into, row, start + c, LANES), buffer)
                else:
                    tile[c] = buffer
            if not direct:
                store(tile, into, row, here, start, width)
        for i in range(row, row + here):
            if not kept.size or kept[i]:
                into[i, index[i]] = narrow(chosen[i], into[i, index[i]])
