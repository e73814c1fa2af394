"""Lanes along the classes of a row, which are adjacent: rows looked at, and gradients written."""

from __future__ import annotations

from xent_array._kernels._arithmetic import add_exactly, narrow, widen
from xent_array._kernels._lanes import (
    LANES,
    agreed,
    argmax_of,
    clear,
    compiled,
    copy,
    differentiate,
    expose,
    fetch_line,
    greatest,
    label_of,
    line,
    multiply,
    scale_to,
    settled,
    soften,
    sum_below,
    sum_wanted,
    sum_weighted,
    want,
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

#: How many classes are added up before their sum is added, exactly, to the total: to 16 lanes,
#: or to some tens where vectors are long. Of the row after the next as many are fetched meanwhile.
STRETCH = 128


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
def wanted_of(z, p, i, soft, top, scale, wanted):
    """Sum what a row wants of its classes, and that times their distances from its top."""
    mass, lost, fall, fall_lost = 0.0, 0.0, 0.0, 0.0
    (times, plus), classes = soft, z.shape[1]
    for start in range(0, classes, STRETCH):
        length = min(STRETCH, classes - start)
        want(wanted, line(p, i, start, length), times[start:], plus[start:])
        part, more = sum_wanted(line(z, i, start, length), wanted, top, scale)
        mass, lost = add_exactly(mass, lost, part)
        fall, fall_lost = add_exactly(fall, fall_lost, more)
    return settled(mass, lost), settled(fall, fall_lost)


@compiled
def look_ahead(z, into, i, k, here, how, argmax, registers, exps):
    """Look at a row whose top was found, and return that of the next.

    What waits for the end of a maximum is summed meanwhile.
    """
    (reals, wholes), (leaves, fetches, scale), (rows, classes) = registers, how, z.shape
    ahead = top_of(z, i + 1, exps) if i + 1 < rows else here
    below = rest_of(z, into, leaves, exps, i, rows if fetches else 0, here, scale)
    top, rest = agreed(here, below)
    reals[TOP, k], reals[REST, k] = top, rest
    if argmax:
        wholes[ARGMAX, k] = argmax_of(line(z, i, 0, classes), top, rest)
    return ahead


@compiled
def look_along(z, into, first, n, ahead, how, weight, argmax, registers, exps):
    """Look at some rows; the top of each is found one row ahead, that of the next is returned."""
    (reals, wholes), scale = registers, how[2]
    for k in range(n):
        i, here = first + k, ahead
        ahead = look_ahead(z, into, i, k, here, how, argmax, registers, exps)
        picked = line(z, i, wholes[INDEX, k], 1)
        reals[PICKED, k] = scale * (widen(picked[0]) - reals[TOP, k])
        if weight.size:
            reals[FALL, k] = fall_of(z, i, weight, here, scale)
    return ahead


@compiled
def look_softly_along(every, first, n, ahead, how, soft, argmax, registers, room):
    """The same of rows that want something of every class."""
    (z, p, into), (reals, wholes), (exps, wanted, _) = every, registers, room
    scale = how[2]
    for k in range(n):
        i, here = first + k, ahead
        ahead = look_ahead(z, into, i, k, here, how, argmax, registers, exps)
        reals[MASS, k], reals[FALL, k] = wanted_of(z, p, i, soft, here, scale, wanted)
        if argmax:
            wholes[LABEL, k] = label_of(line(p, i, 0, p.shape[1]), exps)
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
            clear(grad)
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


@compiled
def write_softly_along(every, first, n, how, soft, keeps, registers, room):
    """The same of rows that want something of every class."""
    (z, p, into), (reals, wholes), (exps, wanted, lanes) = every, registers, room
    (left, _fetches, scale), (times, plus), classes = how, soft, z.shape[1]
    buffer = lanes[0]
    for k in range(n):
        i = first + k
        if keeps and not wholes[KEPT, k]:
            clear(line(into, i, 0, classes))
            continue
        rest, total, factor = reals[REST, k], reals[TOTAL, k], reals[FACTOR, k]
        inverse = reals.dtype.type(1) / (reals.dtype.type(1) + rest)
        for start in range(0, classes, STRETCH):
            length = min(STRETCH, classes - start)
            grad = line(into, i, start, length)
            if left:
                widen_to(exps, grad)
            else:
                expose(exps, line(z, i, start, length), reals[TOP, k], scale)
            want(wanted, line(p, i, start, length), times[start:], plus[start:])
            soften(buffer, exps, wanted, rest, total, inverse, factor)
            copy(grad, buffer)
