"""Operations on all lanes of a few vectors, in any dtype: what the kernels are made of."""

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
    fetch,
    greater,
    narrow,
    pointer,
    widen,
)

#: How many numbers are worked on in step: a few vectors, to keep several operations under way.
LANES = 128

#: Bytes that a processor reads at once from memory.
CACHE_LINE = 64

compiled = numba.njit(
    nogil=True, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **EXACT
)


@compiled
def raise_to(top, x):
    for k in range(LANES):
        top[k] = greater(top[k], x[k])


@compiled
def add_below(rest, ties, x, top, scale, leaves):
    """Add the exponentials of what lies below the top; count what equals it.

    The exponentials may take the place of the entries.
    """
    nothing, one = top.dtype.type(0), top.dtype.type(1)
    for k in range(LANES):
        v = x[k]
        e = exp(scale * (v - top[k]))
        if leaves:
            x[k] = e
        rest[k] += nothing if v == top[k] else e
        ties[k] += one if v == top[k] else nothing


@numba.njit(nogil=True, **ANY_ORDER)
def sum_below(exps, x, top, scale):
    """The same of adjacent entries of one row, in lanes that never leave the processor.

    The exponentials are kept, those of entries that equal the top among them.
    """
    nothing, one = exps.dtype.type(0), exps.dtype.type(1)
    rest, ties = nothing, nothing
    for k in range(len(x)):
        v = widen(x[k])
        exps[k] = e = exp(scale * (v - top))
        rest += nothing if v == top else e
        ties += one if v == top else nothing
    return rest, ties


@compiled
def add_weighted(total, x, weight, top, scale):
    """Add up w·s·(z - top), with 0·(-inf) = 0."""
    nothing = top.dtype.type(0)
    for k in range(LANES):
        w, fall = weight[k], scale * (widen(x[k]) - top[k])
        total[k] += nothing if (w == nothing) & (fall == -np.inf) else w * fall


@numba.njit(nogil=True, **ANY_ORDER)
def sum_weighted(x, weight, top, scale):
    """The same of adjacent entries of one row."""
    nothing = total = weight.dtype.type(0)
    for k in range(len(x)):
        w, fall = weight[k], scale * (widen(x[k]) - top)
        total += nothing if (w == nothing) & (fall == -np.inf) else w * fall
    return total


@numba.njit(nogil=True, **ANY_ORDER)
def sum_wanted(x, wanted, top, scale):
    """The sums of q and of q·s·(z - top), of adjacent entries of one row."""
    mass = fall = nothing = wanted.dtype.type(0)
    for k in range(len(x)):
        q, below = wanted[k], scale * (widen(x[k]) - top)
        mass += q
        fall += nothing if (q == nothing) & (below == -np.inf) else q * below
    return mass, fall


@compiled
def want(wanted, p, times, plus):
    """What a row wants of adjacent classes: p·times + plus, or p alone."""
    widen_to(wanted, p)
    if times.size:
        for k in range(len(p)):
            wanted[k] = wanted[k] * times[k] + plus[k]


@compiled
def expose(exps, x, top, scale):
    """The exponentials of adjacent entries of one row."""
    for k in range(len(x)):
        exps[k] = exp(scale * (widen(x[k]) - top))


@compiled
def expose_each(exps, x, top, scale):
    """The exponentials of an entry of each row."""
    for k in range(LANES):
        exps[k] = exp(scale * (x[k] - top[k]))


@compiled
def softly(e, q, rest, total, inverse, factor):
    """A derivative where every class is wanted: `ProbabilityRows.gradient` tells why this."""
    leading = ((total - q) - q * rest) * inverse
    follower = e * (total * inverse) - q
    return (leading if e - rest > type(e)(0.5) else follower) * factor


@compiled
def soften(slope, exps, wanted, rest, total, inverse, factor):
    """The derivatives of some classes of a row."""
    for k in range(LANES):
        slope[k] = softly(exps[k], wanted[k], rest, total, inverse, factor)


@compiled
def soften_each(slope, exps, wanted, rest, total, inverse, factor):
    """The derivative of one class in each row."""
    for k in range(LANES):
        slope[k] = softly(exps[k], wanted[k], rest[k], total[k], inverse[k], factor[k])


@compiled
def differentiate(slope, x, top, scale, pull, share, logarithm):
    """Derivatives, in memory of their own: LLVM makes no vectors of what may overlap."""
    if logarithm:
        for k in range(LANES):
            slope[k] = scale * (widen(x[k]) - top[k]) + pull[k]
    else:
        for k in range(LANES):
            slope[k] = exp(scale * (widen(x[k]) - top[k])) * pull[k] - share[k]


@compiled
def multiply(exps, pull, share):
    """The same of exponentials, in their place."""
    for k in range(len(exps)):
        exps[k] = exps[k] * pull - share[k]


@compiled
def multiply_each(slope, exps, pull, share):
    """The same with a factor for each, in memory of their own."""
    for k in range(LANES):
        slope[k] = exps[k] * pull[k] - share[k]


@compiled
def clear(to):
    for k in range(len(to)):
        to[k] = 0


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
def add_to(total, x):
    for k in range(LANES):
        total[k] += x[k]


@compiled
def settled(total, lost):
    """An exact sum, rounded; where it is infinite, what was lost is not a number."""
    return total + lost if lost == lost else total


@compiled
def greatest(x, like):
    """The greatest entry, in the dtype of the array `like`; of NaNs it need not tell."""
    top = like.dtype.type(-np.inf)
    for k in range(len(x)):
        top = greater(top, widen(x[k]))
    return top


@compiled
def agreed(top, rest):
    """Top and rest, both NaN where a logit is, which no maximum shows; rest if top is infinite."""
    top += rest - rest
    return top, rest + (top - top)


@compiled
def label_of(p, like):
    """Where a row of probabilities has its greatest, or its first NaN."""
    return argmax_of(p, greatest(p, like), like.dtype.type(np.nan))


@compiled
def argmax_of(row, top, rest):
    """Where a row has its top, or its first NaN."""
    argmax = -1
    for j in range(len(row)):
        v = widen(row[j])
        if v != v:
            return j
        if v == top and argmax < 0:
            argmax = j
            if rest == rest:
                break
    return argmax


# --- memory


@compiled
def fetch_line(x, i, j, length):
    """Have entries from ``x[i, j]`` on brought near, which are read soon."""
    start = x.ctypes.data + i * x.strides[0] + j * x.strides[1]
    for address in range(start, start + length * x.itemsize, CACHE_LINE):
        fetch(address)


@compiled
def seen(origin, rows, classes, row_step, class_step):
    """Memory from an entry on as an array of rows."""
    return as_strided(origin, (rows, classes), (row_step, class_step))


@compiled
def bare(x):
    """A contiguous array that owns nothing: handing it on counts no references."""
    return carray(pointer(x.ctypes.data, x), x.shape)


@compiled
def line(x, i, j, length):
    """Adjacent entries from ``x[i, j]`` on.

    A contiguous array that is indexed from 0 is what LLVM makes vectors of.
    """
    address = x.ctypes.data + i * x.strides[0] + j * x.strides[1]
    return carray(pointer(address, x), (length,))
