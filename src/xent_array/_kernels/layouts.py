"""Rows in host memory, of any layout, as kernels take them: where they lie, or copies of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from operator import itemgetter
from typing import Any

import numpy as np

from xent_array._kernels._lanes import LANES
from xent_array._namespace import Array
from xent_array._row_blocks import row_blocks

#: The dtypes that the kernel reads, and as which: numba knows the bits of half dtypes alone.
_READ_AS = {"float64": "f8", "float32": "f4", "float16": "u2", "bfloat16": "i2"}

#: Adjacent classes of a row are read along the row from so many on; of fewer, many rows at once.
_MANY = 65

#: Bytes of a row up to which rows are copied. Longer ones would take that much memory, and without
#: a copy many times as long as array code.
_COPY_BYTES = 1 << 23

#: Logits in rows that one stride reaches, from which on a call for them costs less than a copy.
_RUN = 1 << 12

#: Where rows begin in what is given and in the results, and which share of all rows they are of.
Places = tuple[int, int, int]

#: Rows of logits, where their gradients go, and rows of probabilities; in the place of what there
#: is not, the logits.
Rows = tuple[Array, Array, Array]

#: Parts of rows, and which of all rows is the first of each.
Share = list[tuple[Rows, int]]

#: Does some segments of a program with rows, which have two axes.
Work = Callable[[Rows, Places, Array, Any], None]


@cache
def read_as(dtype: Any) -> Any:
    """The dtype that the kernel reads a dtype as; None: it cannot."""
    name = _READ_AS.get(dtype.name) if dtype.isnative else None
    return None if name is None else np.dtype(name)


def along_classes(*arrays: Array) -> bool:
    """Whether kernels read along the classes, and not many rows at once."""
    if arrays[0].shape[-1] < _MANY:
        return False
    return all(x.strides[-1] == x.itemsize for x in arrays)


def lie_well(*arrays: Array) -> bool:
    """Whether kernels are as fast on arrays of rows as on copies."""
    return along_classes(*arrays) or all(map(_in_long_runs, arrays))


def can_be_copied(x: Array, axis: int) -> bool:
    """Whether rows are short enough for a copy, if they do not lie well."""
    return bool(x.shape[axis] * x.itemsize <= _COPY_BYTES)


def _in_long_runs(x: Array) -> bool:
    """Whether one stride reaches rows for most lanes, and classes or rows are adjacent."""
    few = x.shape[-1] < _MANY
    if few and x.flags.c_contiguous:
        return True
    adjacent = x.strides[-1] == x.itemsize
    length, step = 1, None
    for axis in range(x.ndim - 2, -1, -1):
        if x.shape[axis] == 1:
            continue
        if step is None:
            step = x.strides[axis]
        elif x.strides[axis] != step * length:
            break
        length *= x.shape[axis]
    whole = length == count_rows(x)
    long = length >= LANES // 2 and (whole or length * x.shape[-1] >= _RUN)
    return (long or (few and whole)) and bool(adjacent or step == x.itemsize)


def count_rows(x: Array) -> int:
    """How many rows there are."""
    return math.prod(x.shape[:-1])


# --- rows in parts


def strided(rows: Rows) -> Iterator[Rows]:
    """Parts of two axes, in C order."""
    try:
        yield _each(rows, lambda x: x.reshape((-1, x.shape[-1]), copy=False))
    except ValueError:  # rows that one stride does not reach
        for part in zip(*rows, strict=True):
            yield from strided(part)


def pieces(rows: Rows, most: int) -> Iterator[Rows]:
    """Parts of at most so many rows, in C order, of any number of axes."""
    for block in row_blocks(rows[0].shape[:-1], most):
        yield _each(rows, itemgetter(block))


def _each(rows: Rows, function: Callable[[Array], Array]) -> Rows:
    """A function of rows; those that stand for what there is not still do."""
    z, into, p = rows
    part = function(z)
    return part, part if into is z else function(into), part if p is z else function(p)


def dealt(parts: Iterable[Rows], most: int, *, cut: bool) -> Iterator[Share]:
    """Deal parts of rows out to shares: of so many rows if parts are `cut`, else of some more."""
    share: Share = []
    room, before = most, 0
    for part in parts:
        rows, start = count_rows(part[0]), 0
        while start < rows:
            stop = min(start + room, rows) if cut else rows
            some = _each(part, itemgetter(slice(start, stop))) if stop - start < rows else part
            share.append((some, before + start))
            start, room = stop, room - (stop - start)
            if room <= 0:
                yield share
                share, room = [], most
        before += rows
    if share:
        yield share


# --- copies


def room_for(shape: tuple[int, ...], dtype: Any) -> Array:
    """Memory for a copy of rows, as kernels read them best: along the classes, or many at once."""
    *lead, classes = shape
    if classes >= _MANY:
        return np.empty(shape, dtype)
    return np.moveaxis(np.empty((classes, *lead), dtype), 0, -1)


def on_copies(work: Work) -> Work:
    """Have some work done on copies of rows, and their gradients copied back."""

    def copied(arrays: Rows, places: Places, segments: Array, columns: Any) -> None:
        z, into, p = arrays
        looks, writes = segments["looks"].any(), segments["writes"].any()
        rows = room_for(z.shape, z.dtype)
        probabilities = rows if p is z else room_for(p.shape, p.dtype)
        if looks or writes:
            _copy(rows, z)
            if p is not z:
                _copy(probabilities, p)
        (flat,) = strided((rows, rows, probabilities))
        work(flat, places, segments, columns)
        if writes:
            _copy(into, rows)

    return copied


def _copy(to: Array, x: Array) -> None:
    """Copy what kernels read: NumPy is slow with the half numbers of others."""
    dtype = read_as(x.dtype)
    np.copyto(to.view(dtype), x.view(dtype))


# --- memory


def memory_of(x: Array) -> tuple[Any, ...]:
    """Memory as kernels take it: one compilation serves every layout, read-only or not."""
    origin = x[:1, 0]
    if not origin.flags.writeable:
        origin = np.asarray(_Alias(origin))
    if x.itemsize == 2:
        origin = origin.view(read_as(x.dtype))
    return origin, *x.shape, *x.strides


class _Alias:
    """Memory that NumPy is told may be written to: what is compiled for it serves all."""

    def __init__(self, x: Array) -> None:
        whole = x.__array_interface__
        self.x = x
        self.__array_interface__ = {**whole, "data": (whole["data"][0], False)}
