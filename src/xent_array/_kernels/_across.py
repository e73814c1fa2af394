"""A lane is a row: of few classes, or of classes that lie apart, as in images."""

from __future__ import annotations

import numpy as np

from xent_array._kernels._arithmetic import narrow, widen
from xent_array._kernels._lanes import (
    LANES,
    add_below,
    add_to,
    add_weighted,
    agreed,
    argmax_of,
    compiled,
    copy,
    differentiate,
    expose_each,
    label_of,
    line,
    multiply_each,
    raise_to,
    scale_to,
    settle,
    settled,
    soften_each,
    widen_to,
)
from xent_array._kernels._machine import (
    ARGMAX,
    CHOSEN,
    EVEN,
    FACTOR,
    FALL,
    INDEX,
    KEPT,
    LABEL,
    MASS,
    PICKED,
    PULL,
    REST,
    TOP,
    TOTAL,
)

#: How many numbers a lane adds up before the lanes are added, exactly, to the total.
TERMS = 8

#: How many classes are worked on at once: what fits the first cache.
TILE = 64


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
def find_tops(tile, z, row, here, high):
    """Find the greatest entry of some rows; the tile holds the last classes then."""
    classes = z.shape[1]
    high[:] = -np.inf
    for start in range(0, classes, TILE):
        width = min(TILE, classes - start)
        load_tile(tile, z, row, here, start, width)
        for c in range(width):
            raise_to(high, tile[c])


@compiled
def add_exps(tile, run, stop, high, scale, leaves, lanes, sums):
    """Add up the exponentials of some classes below the tops, and how many equal those."""
    below, tied = lanes[0], lanes[1]
    below[:] = 0
    tied[:] = 0
    for c in range(run, stop):
        add_below(below, tied, tile[c], high, scale, leaves)
    settle(sums[0], sums[1], below)
    add_to(sums[2], tied)


@compiled
def keep_top_and_rest(k, high, sums, z, i, argmax, registers):
    """Write down what was found of a row, whatever it wants."""
    (reals, wholes), (total, lost, ties) = registers, (sums[0], sums[1], sums[2])
    top, rest = agreed(high[k], settled(total[k], lost[k]) + (ties[k] - 1))
    reals[TOP, k], reals[REST, k] = top, rest
    if argmax:
        wholes[ARGMAX, k] = argmax_of(z[i], high[k], rest)


@compiled
def look_across(z, row, here, scale, weight, leaves, argmax, registers, tile):
    """Look at some rows, as many as there are lanes at most.

    Of all classes the exponentials may be left in the tile, if they fit.
    """
    (reals, wholes), classes = registers, z.shape[1]
    # Memory of its own, of which LLVM knows that nothing else overlaps it.
    lanes, sums = np.empty((4, LANES), reals.dtype), np.zeros((5, LANES))
    high, heavy, below = lanes[2], lanes[3], lanes[0]
    fall, fall_lost = sums[3], sums[4]
    find_tops(tile, z, row, here, high)
    for start in range(0, classes, TILE):
        width = min(TILE, classes - start)
        if classes > TILE:
            load_tile(tile, z, row, here, start, width)
        for run in range(0, width, TERMS):
            stop = min(run + TERMS, width)
            if weight.size:
                below[:] = 0
                for c in range(run, stop):
                    heavy[:] = weight[start + c]
                    add_weighted(below, tile[c], heavy, high, scale)
                settle(fall, fall_lost, below)
            add_exps(tile, run, stop, high, scale, leaves, lanes, sums)
    for k in range(here):
        keep_top_and_rest(k, high, sums, z, row + k, argmax, registers)
        reals[PICKED, k] = scale * (widen(z[row + k, wholes[INDEX, k]]) - high[k])
        if weight.size:
            reals[FALL, k] = settled(fall[k], fall_lost[k])


@compiled
def look_softly_across(every, row, here, scale, soft, leaves, argmax, registers, tiles):
    """The same of rows that want something of every class, which may be left in a tile too."""
    (z, p, _), (reals, wholes), (tile, wants) = every, registers, tiles
    (times, plus), classes = soft, z.shape[1]
    lanes, sums = np.empty((3, LANES), reals.dtype), np.zeros((7, LANES))
    high, below = lanes[2], lanes[0]
    mass, mass_lost, fall, fall_lost = sums[3], sums[4], sums[5], sums[6]
    find_tops(tile, z, row, here, high)
    for start in range(0, classes, TILE):
        width = min(TILE, classes - start)
        if classes > TILE:
            load_tile(tile, z, row, here, start, width)
        load_wants(wants, p, row, here, start, width, times, plus)
        for run in range(0, width, TERMS):
            stop = min(run + TERMS, width)
            below[:] = 0
            for c in range(run, stop):
                add_to(below, wants[c])
            settle(mass, mass_lost, below)
            below[:] = 0
            for c in range(run, stop):
                add_weighted(below, tile[c], wants[c], high, scale)
            settle(fall, fall_lost, below)
            add_exps(tile, run, stop, high, scale, leaves, lanes, sums)
    for k in range(here):
        keep_top_and_rest(k, high, sums, z, row + k, argmax, registers)
        reals[MASS, k] = settled(mass[k], mass_lost[k])
        reals[FALL, k] = settled(fall[k], fall_lost[k])
        if argmax:
            wholes[LABEL, k] = label_of(p[row + k], below)


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


@compiled
def load_wants(wants, p, row, rows, start, width, times, plus):
    """Bring what rows want of some classes into a tile: p·times + plus, or p alone."""
    load_tile(wants, p, row, rows, start, width)
    if times.size:
        for c in range(width):
            wanted, factor, more = wants[c], times[start + c], plus[start + c]
            for k in range(LANES):
                wanted[k] = wanted[k] * factor + more


@compiled
def write_softly_across(every, row, here, scale, soft, left, keeps, registers, tiles):
    """The same of rows that want something of every class; that may be left in a tile too."""
    (z, p, into), (reals, wholes), (tile, wants) = every, registers, tiles
    (times, plus), classes = soft, z.shape[1]
    lanes = np.empty((3, LANES), reals.dtype)
    exps, buffer, inverse = lanes[0], lanes[1], lanes[2]
    nothing, one = reals.dtype.type(0), reals.dtype.type(1)
    rest, total, factor = reals[REST], reals[TOTAL], reals[FACTOR]
    for k in range(LANES):
        inverse[k] = one / (one + rest[k])
    for start in range(0, classes, TILE):
        width = min(TILE, classes - start)
        if not left:
            load_tile(tile, z, row, here, start, width)
            load_wants(wants, p, row, here, start, width, times, plus)
        for c in range(width):
            if left:
                widen_to(exps, tile[c])
            else:
                expose_each(exps, tile[c], reals[TOP], scale)
            soften_each(buffer, exps, wants[c], rest, total, inverse, factor)
            if keeps:
                for k in range(here):
                    buffer[k] = buffer[k] if wholes[KEPT, k] else nothing
            copy(tile[c], buffer)
        store_tile(tile, into, row, here, start, width)
