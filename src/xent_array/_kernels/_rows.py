"""Rows read, worked on and differentiated by one kernel, compiled by numba.

A vector of the processor holds several numbers, its lanes. Where the classes of a row are adjacent
and many, lanes run along them; where they are few, or lie apart as in images, lanes are rows. Both
ways a row is read twice: for its greatest logit, then for the sum below it, when it lies in cache
already. While a long row is summed, which takes longer than to read it, another is fetched from
memory.

The kernel does the segments of a program (see `steps`). One that goes through the rows takes some
at a time, and does steps with their numbers (`_machine`). In between it may look at their logits z:
with s the scale, an index per row, and w a vector of the classes it finds

    top, rest, s·(z_index - top), sum_j w_j·s·(z_j - top) and the argmax,

the last two where asked for. Then it may write their gradients, with v another vector

    exp(s·(z_j - top))·pull - even·v_j, and at the index a number that was chosen,

or s·(z_j - top) + pull, where that is asked for.
What these mean is the business of whoever wrote the program. A look may leave the exponentials in
the memory of the gradient, or those of few classes in its own, which then are not taken twice.
Other segments go through the classes, or are done once. Every row is summed in the same order by
itself, and numbers of rows are summed exactly, however rows are dealt to threads.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import resources
from typing import Any

import numba
import numpy as np

from xent_array._kernels._arithmetic import EXACT, add_exactly, narrow, widen
from xent_array._kernels._lanes import (
    LANES,
    add_below,
    add_to,
    add_weighted,
    agreed,
    argmax_of,
    bare,
    compiled,
    copy,
    differentiate,
    fetch_line,
    greatest,
    line,
    multiply,
    multiply_each,
    raise_to,
    scale_to,
    seen,
    settle,
    settled,
    sum_below,
    sum_weighted,
    widen_to,
)
from xent_array._kernels._machine import (
    ARGMAX,
    CHOSEN,
    CLASSES,
    EVEN,
    FALL,
    INDEX,
    KEPT,
    PICKED,
    PULL,
    REST,
    ROWS,
    TOP,
    carry_out,
    keep_sums,
    registers,
)

#: How many numbers a lane adds up before the lanes are added, exactly, to the total.
TERMS = 8

#: How many classes are added up before their sum is added, exactly, to the total: to 16 lanes,
#: or to some tens where vectors are long. Of the row after the next as many are fetched meanwhile.
STRETCH = 128

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
def top_of(z, i, like):
    """Find a row's greatest entry."""
    return greatest(line(z, i, 0, z.shape[1]), like)


@compiled
def rest_of(z, into, leaves, exps, i, far, top, scale):
    """Sum a row's exponentials below its top, and leave them `into` memory or nowhere."""
    total, lost, ties, classes = 0.0, 0.0, 0.0, z.shape[1]
    for start in range(0, classes, STRETCH):
        length = min(STRETCH, classes - start)
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
def fall_of(z, i, weight, top, scale):
    """Sum a row's weighted distances from its top."""
    total, lost, classes = 0.0, 0.0, z.shape[1]
    for start in range(0, classes, STRETCH):
        length = min(STRETCH, classes - start)
        heavy = weight[start : start + length]
        part = sum_weighted(line(z, i, start, length), heavy, top, scale)
        total, lost = add_exactly(total, lost, part)
    return settled(total, lost)


@compiled
def look_along(z, into, first, n, ahead, how, weight, argmax, registers, exps):
    """Look at some rows; the top of each is found one row ahead, that of the next is returned.

    What waits for the end of a maximum is summed meanwhile.
    """
    (reals, wholes), (leaves, fetches, scale) = registers, how
    rows, classes = z.shape
    far = rows if fetches else 0
    for k in range(n):
        i, here = first + k, ahead
        if i + 1 < rows:
            ahead = top_of(z, i + 1, exps)
        below = rest_of(z, into, leaves, exps, i, far, here, scale)
        row = line(z, i, 0, classes)
        top, rest = agreed(here, below)
        reals[TOP, k], reals[REST, k] = top, rest
        reals[PICKED, k] = scale * (widen(row[wholes[INDEX, k]]) - top)
        if weight.size:
            reals[FALL, k] = fall_of(z, i, weight, here, scale)
        if argmax:
            wholes[ARGMAX, k] = argmax_of(row, top, rest)
    return ahead


@compiled
def write_along(z, into, first, n, how, weight, asked, registers, room):
    """Write the gradients of some rows."""
    (reals, wholes), (shares, lanes), (left, _fetches, scale) = registers, room, how
    (keeps, logarithm), classes = asked, z.shape[1]
    whole = classes - classes % LANES
    high, slope, buffer, share, last = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    share[:] = 0
    if not weight.size:
        shares[:] = 0
    for k in range(n):
        grad = line(into, first + k, 0, classes)
        if keeps and not wholes[KEPT, k]:
            for j in range(classes):
                grad[j] = 0
            continue
        pull, even, index = reals[PULL, k], reals[EVEN, k], wholes[INDEX, k]
        if left:  # in the dtype that is computed in: none are left in a half one
            for start in range(0, classes, STRETCH):
                length = min(STRETCH, classes - start)
                if weight.size:
                    scale_to(shares, even, weight[start : start + length])
                multiply(line(into, first + k, start, length), pull, shares)
            grad[index] = reals[CHOSEN, k]
            continue
        high[:] = reals[TOP, k]
        slope[:] = pull
        for start in range(0, whole, LANES):
            if weight.size:
                scale_to(share, even, weight[start : start + LANES])
            part = line(z, first + k, start, LANES)
            differentiate(buffer, part, high, scale, slope, share, logarithm)
            copy(line(into, first + k, start, LANES), buffer)
        widen_to(last, line(z, first + k, whole, classes - whole))
        if weight.size:
            scale_to(share, even, weight[whole:])
        differentiate(buffer, last, high, scale, slope, share, logarithm)
        copy(grad[whole:], buffer)
        grad[index] = narrow(reals[CHOSEN, k], grad[0])


# --- lanes are rows


@compiled
def load_tile(tile, z, row, rows, start, width):
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
def store_tile(tile, into, row, rows, start, width):
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


@compiled
def look_across(z, row, here, scale, weight, leaves, argmax, registers, tile):
    """Look at some rows, as many as there are lanes at most.

    Of all classes the exponentials may be left in the tile, if they fit.
    """
    reals, wholes = registers
    classes = z.shape[1]
    # Memory of its own, of which LLVM knows that nothing else overlaps it.
    lanes, sums = np.empty((4, LANES), reals.dtype), np.zeros((5, LANES))
    high, below, tied, heavy = lanes[0], lanes[1], lanes[2], lanes[3]
    total, lost, ties, fall, fall_lost = sums[0], sums[1], sums[2], sums[3], sums[4]
    high[:] = -np.inf
    for start in range(0, classes, TILE):
        width = min(TILE, classes - start)
        load_tile(tile, z, row, here, start, width)
        for c in range(width):
            raise_to(high, tile[c])
    for start in range(0, classes, TILE):
        width = min(TILE, classes - start)
        if classes > TILE:
            load_tile(tile, z, row, here, start, width)
        for run in range(0, width, TERMS):
            if weight.size:
                below[:] = 0
                for c in range(run, min(run + TERMS, width)):
                    heavy[:] = weight[start + c]
                    add_weighted(below, tile[c], heavy, high, scale)
                settle(fall, fall_lost, below)
            below[:] = 0
            tied[:] = 0
            for c in range(run, min(run + TERMS, width)):
                add_below(below, tied, tile[c], high, scale, leaves)
            settle(total, lost, below)
            add_to(ties, tied)
    for k in range(here):
        top, rest = agreed(high[k], settled(total[k], lost[k]) + (ties[k] - 1))
        reals[TOP, k], reals[REST, k] = top, rest
        reals[PICKED, k] = scale * (widen(z[row + k, wholes[INDEX, k]]) - high[k])
        if weight.size:
            reals[FALL, k] = settled(fall[k], fall_lost[k])
        if argmax:
            wholes[ARGMAX, k] = argmax_of(z[row + k], high[k], rest)


@compiled
def write_across(z, into, row, here, scale, weight, left, asked, registers, tile):
    """Write the gradients of some rows, as many as there are lanes at most.

    Of all classes the exponentials may be left in the tile.
    """
    (reals, wholes), (keeps, logarithm), classes = registers, asked, z.shape[1]
    lanes = np.empty((2, LANES), reals.dtype)
    share, buffer, nothing = lanes[0], lanes[1], reals.dtype.type(0)
    high, slope, even = reals[TOP], reals[PULL], reals[EVEN]
    # Adjacent rows need no tile: nothing of them is read twice.
    direct = here == LANES and z.strides[0] == z.itemsize and into.strides[0] == z.itemsize
    share[:] = 0
    for start in range(0, classes, TILE):
        width = min(TILE, classes - start)
        if not (direct or left):
            load_tile(tile, z, row, here, start, width)
        for c in range(width):
            if weight.size:
                scale_to(share, weight[start + c], even)
            if left:
                multiply_each(buffer, tile[c], slope, share)
            elif direct:
                part = line(z, row, start + c, LANES)
                differentiate(buffer, part, high, scale, slope, share, logarithm)
            else:
                differentiate(buffer, tile[c], high, scale, slope, share, logarithm)
            if keeps:
                for k in range(here):
                    buffer[k] = buffer[k] if wholes[KEPT, k] else nothing
            if direct:
                copy(line(into, row, start + c, LANES), buffer)
            else:
                copy(tile[c], buffer)
        if not direct:
            store_tile(tile, into, row, here, start, width)
    for k in range(here):
        if not keeps or wholes[KEPT, k]:
            i, j = row + k, wholes[INDEX, k]
            into[i, j] = narrow(reals[CHOSEN, k], into[i, j])


# --- both


@kernel
def within(index, length):
    """Whether every index is in [0, length)."""
    outside = 0
    for i in range(len(index)):
        outside |= (index[i] < 0) | (index[i] >= length)
    return not outside


@compiled
def phase_of(segment, phase):
    """Which steps come before the look at rows, between that and their gradients, and after."""
    if phase == 0:
        return segment.start, segment.look
    if phase == 1:
        return segment.look, segment.write
    return segment.write, segment.stop


def running(along, helpers):
    """Make a kernel that does some segments of a program with rows of logits.

    `along`: a lane is a class, and `some` rows are taken at a time; else a lane is a row.
    `at` and `to_at` are where these rows begin in what is given of each row, and in the results.
    What is summed goes to the sums of a `share`, one for each thread.

    Numba keeps a kernel on disk as long as this file and what the kernel encloses are the same:
    `helpers` tells of the files of what it calls.
    """

    @kernel
    def run(
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
        some,
        leaves,
        fetches,
        scale,
        at,
        to_at,
        share,
        segments,
        index,
        mask,
        given,
        code,
        numbers,
        whole_numbers,
        register_count,
        weight,
        vectors,
        sums,
        results,
        whole_results,
        finals,
    ):
        helpers  # noqa: B018
        z = seen(origin, rows, classes, row_step, class_step)
        into = seen(to_origin, rows, classes, to_row_step, to_class_step)
        both = registers(numbers, whole_numbers, register_count)
        memory = (
            bare(index),
            bare(mask),
            bare(given),
            bare(weight),
            bare(vectors),
            bare(sums),
            bare(results),
            bare(whole_results),
            bare(finals),
        )
        added = np.empty((sums.shape[1], LANES), np.float64)
        room = np.zeros(STRETCH, numbers.dtype), np.zeros((5, LANES), numbers.dtype)
        none, how, ahead = numbers[:0], (leaves, fetches, scale), numbers.dtype.type(0)
        tile = np.empty((0 if along else min(TILE, classes), LANES), numbers.dtype)
        for segment in segments:
            of_rows, argmax, keeps = segment.extent == ROWS, segment.argmax, segment.keeps
            logarithm = segment.logarithm
            count = rows if of_rows else classes if segment.extent == CLASSES else 1
            most = some if of_rows else LANES
            heavy = vectors[segment.fall] if segment.fall >= 0 else none
            shares_of = vectors[segment.even] if segment.even >= 0 else none
            left = classes <= TILE and segment.looks and segment.writes and not logarithm
            added[:] = 0
            if along:  # noqa: SIM102 a branch that numba does not compile
                if segment.looks and rows:
                    ahead = top_of(z, 0, room[0])
            for first in range(0, count, most):
                here = min(most, count - first)
                places = (at + first, to_at + first) if of_rows else (first, first)
                for phase in range(3):  # one loop, lest its steps be compiled three times
                    start, stop = phase_of(segment, phase)
                    if start < stop:
                        carry_out(code, start, stop, here, places, both, added, memory)
                    if along:
                        if phase == 0 and segment.looks:
                            ahead = look_along(
                                z, into, first, here, ahead, how, heavy, argmax, both, room[0]
                            )
                        elif phase == 1 and segment.writes:
                            asked = keeps, logarithm
                            write_along(z, into, first, here, how, shares_of, asked, both, room)
                    elif phase == 0 and segment.looks:
                        look_across(z, first, here, scale, heavy, left, argmax, both, tile)
                    elif phase == 1 and segment.writes:
                        asked = keeps, logarithm
                        write_across(
                            z, into, first, here, scale, shares_of, left, asked, both, tile
                        )
            keep_sums(sums, share, segment.adds, min(most, count), added)

    return run


def digest():
    """A number that tells whether the kernels' helpers are the same."""
    here = resources.files("xent_array._kernels")
    names = ("_arithmetic.py", "_lanes.py", "_machine.py")
    return zlib.crc32(b"".join(here.joinpath(name).read_bytes() for name in names))


HELPERS = digest()

along, across = running(True, HELPERS), running(False, HELPERS)
