"""Rows read, worked on and differentiated by one kernel, compiled by numba.

A vector of the processor holds several numbers, its lanes. Where the classes of a row are adjacent
and many, lanes run along them (`_along`); where they are few, or lie apart as in images, lanes are
rows (`_across`). Both ways a row is read twice: for its greatest logit, then for the sum below it,
when it lies in cache already. While a long row is summed, which takes longer than to read it,
another is fetched from memory.

The kernel does the segments of a program (see `steps`). One that goes through the rows takes some
at a time, and does steps with their numbers (`_machine`). In between it may look at their logits z:
with s the scale, an index per row, and w a vector of the classes it finds

    top, rest, s·(z_index - top), sum_j w_j·s·(z_j - top) and the argmax,

the last two where asked for. Then it may write their gradients, with v another vector

    exp(s·(z_j - top))·pull - even·v_j, and at the index a number that was chosen,

or s·(z_j - top) + pull, where that is asked for.
Other kernels are for targets that are soft: rows p of probabilities, of which q_j = p_j·t_j + u_j
is wanted, t and u vectors. They find sum_j q_j and sum_j q_j·s·(z_j - top) in the place of what is
at an index, and write what `ProbabilityRows.gradient` says.
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

from xent_array._kernels._across import (
    TILE,
    look_across,
    look_softly_across,
    write_across,
    write_softly_across,
)
from xent_array._kernels._along import (
    STRETCH,
    look_along,
    look_softly_along,
    top_of,
    write_along,
    write_softly_along,
)
from xent_array._kernels._arithmetic import EXACT
from xent_array._kernels._lanes import LANES, bare, compiled, seen
from xent_array._kernels._machine import CLASSES, ROWS, carry_out, keep_sums, registers


def kernel(function: Callable[..., None]) -> Any:
    """Compile a function that is called from Python, and keep it on disk where there is a place."""
    try:
        return numba.njit(nogil=True, cache=True, **EXACT)(function)
    except RuntimeError:  # no folder of numba's can be written to
        return compiled(function)


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


def running(along, soft, helpers):
    """Make a kernel that does some segments of a program with rows of logits.

    `along`: a lane is a class, and `some` rows are taken at a time; else a lane is a row.
    `soft`: with rows of probabilities as well.
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
        soft_origin,
        _soft_rows,
        _soft_classes,
        soft_row_step,
        soft_class_step,
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
        weights,
        vectors,
        sums,
        results,
        whole_results,
        finals,
    ):
        helpers  # noqa: B018
        z = seen(origin, rows, classes, row_step, class_step)
        into = seen(to_origin, rows, classes, to_row_step, to_class_step)
        p = seen(soft_origin, rows, classes, soft_row_step, soft_class_step)
        every = z, p, into
        both = registers(numbers, whole_numbers, register_count)
        memory = (
            bare(index),
            bare(mask),
            bare(given),
            bare(weights),
            bare(vectors),
            bare(sums),
            bare(results),
            bare(whole_results),
            bare(finals),
        )
        added = np.empty((sums.shape[1], LANES), np.float64)
        line, lanes = np.zeros(STRETCH, numbers.dtype), np.zeros((5, LANES), numbers.dtype)
        room = line, lanes
        softly = line, np.zeros(STRETCH if soft else 0, numbers.dtype), lanes
        tile = np.empty((0 if along else min(TILE, classes), LANES), numbers.dtype)
        tiles = tile, np.empty((len(tile) if soft else 0, LANES), numbers.dtype)
        none, how, ahead = numbers[:0], (leaves, fetches, scale), numbers.dtype.type(0)
        for segment in segments:
            of_rows, argmax, keeps = segment.extent == ROWS, segment.argmax, segment.keeps
            logarithm = segment.logarithm
            count = rows if of_rows else classes if segment.extent == CLASSES else 1
            most = some if of_rows else LANES
            heavy = vectors[segment.fall] if segment.fall >= 0 else none
            shares_of = vectors[segment.even] if segment.even >= 0 else none
            times = vectors[segment.times] if segment.times >= 0 else none
            wanted = times, vectors[segment.plus] if segment.plus >= 0 else none
            left = classes <= TILE and segment.looks and segment.writes and not logarithm
            added[:] = 0
            if along:  # noqa: SIM102 a branch that numba does not compile
                if segment.looks and rows:
                    ahead = top_of(z, 0, line)
            for first in range(0, count, most):
                here = min(most, count - first)
                places = (at + first, to_at + first) if of_rows else (first, first)
                for phase in range(3):  # one loop, lest its steps be compiled three times
                    start, stop = phase_of(segment, phase)
                    if start < stop:
                        carry_out(code, start, stop, here, places, both, added, memory)
                    looks, writes = phase == 0 and segment.looks, phase == 1 and segment.writes
                    asked = keeps, logarithm
                    if along:
                        if soft:
                            if looks:
                                ahead = look_softly_along(
                                    every, first, here, ahead, how, wanted, argmax, both, softly
                                )
                            elif writes:
                                write_softly_along(
                                    every, first, here, how, wanted, keeps, both, softly
                                )
                        elif looks:
                            ahead = look_along(
                                z, into, first, here, ahead, how, heavy, argmax, both, line
                            )
                        elif writes:
                            write_along(z, into, first, here, how, shares_of, asked, both, room)
                    elif soft:
                        if looks:
                            look_softly_across(
                                every, first, here, scale, wanted, left, argmax, both, tiles
                            )
                        elif writes:
                            write_softly_across(
                                every, first, here, scale, wanted, left, keeps, both, tiles
                            )
                    elif looks:
                        look_across(z, first, here, scale, heavy, left, argmax, both, tile)
                    elif writes:
                        write_across(
                            z, into, first, here, scale, shares_of, left, asked, both, tile
                        )
            keep_sums(sums, share, segment.adds, min(most, count), added)

    return run


def digest():
    """A number that tells whether the kernels' helpers are the same."""
    here = resources.files("xent_array._kernels")
    names = ("_across.py", "_along.py", "_arithmetic.py", "_lanes.py", "_machine.py")
    return zlib.crc32(b"".join(here.joinpath(name).read_bytes() for name in names))


HELPERS = digest()

#: The kernels, by `along` and `soft`.
RUN = {
    (True, False): running(True, False, HELPERS),
    (True, True): running(True, True, HELPERS),
    (False, False): running(False, False, HELPERS),
    (False, True): running(False, True, HELPERS),
}
