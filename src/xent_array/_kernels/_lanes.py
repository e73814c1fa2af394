"""Operations on all lanes of a few vectors, in any dtype: what the kernels are made of.

Numba keeps a kernel on disk as long as the kernel's own file does not change: whoever changes this
one deletes ``__pycache__``.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import carray
from numpy.lib.stride_tricks import as_strided

from xent_array._kernels._arithmetic import (
    ANY_ORDER,
    EXACT,
    add_exactly,
    exp,
    narrow,
    pointer,
    widen,
)

#: How many numbers are worked on in step: a few vectors, to keep several operations under way.
LANES = 128

compiled = numba.njit(nogil=True, **EXACT)


@compiled
def raise_to(top, x):
    for k in range(LANES):
        v = widen(x[k])
        top[k] = max(top[k], v)


@compiled
def part_of(v, top, scale, nothing, one):
    """What an entry adds to the exponentials below the top, and to how many equal it."""
    e = exp(scale * (v - top))
    return (nothing, one) if v == top else (e, nothing)


@compiled
def add_below(rest, ties, x, top, scale):
    """Add the exponentials of what lies below the top; count what equals it."""
    nothing, one = top.dtype.type(0), top.dtype.type(1)
    for k in range(LANES):
        e, tie = part_of(widen(x[k]), top[k], scale, nothing, one)
        rest[k] += e
        ties[k] += tie


@numba.njit(nogil=True, **ANY_ORDER)
def sum_below(x, top, scale):
    """The same of adjacent entries of one row, in lanes that never leave the processor."""
    nothing, one = top.dtype.type(0), top.dtype.type(1)
    rest, ties, high = nothing, nothing, top[0]
    for k in range(len(x)):
        e, tie = part_of(widen(x[k]), high, scale, nothing, one)
        rest += e
        ties += tie
    return rest, ties


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
def widen_to(to, x):
    for k in range(len(x)):
        to[k] = widen(x[k])


@compiled
def scale_to(to, factor, x):
    for k in range(len(x)):
        to[k] = factor * x[k]


@compiled
def settle(total, lost, x):
    for k in range(LANES):
        total[k], lost[k] = add_exactly(total[k], lost[k], x[k])


@compiled
def settled(total, lost):
    """An exact sum, rounded; where it is infinite, what was lost is not a number."""
    return total + lost if lost == lost else total


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
    """Top and rest, both NaN where a logit is, which no maximum shows; rest if top is infinite."""
    top += rest - rest
    return top, rest + (top - top)


@compiled
def place_of(row, top, rest):
    """Where a row has its top, or its first NaN."""
    place = -1
    for j in range(len(row)):
        v = widen(row[j])
        if v != v:
            return j
        if v == top and place < 0:
            place = j
            if rest == rest:
                break
    return place


# --- memory


@compiled
def seen(origin, rows, classes, row_step, class_step):
    """Memory from an entry on as an array of rows."""
    return as_strided(origin, (rows, classes), (row_step, class_step))


@compiled
def line(x, i, j, length):
    """Adjacent entries from ``x[i, j]`` on.

    A contiguous array that is indexed from 0 is what LLVM makes vectors of.
    """
    address = x.ctypes.data + i * x.strides[0] + j * x.strides[1]
    return carray(pointer(address, x), (length,))
