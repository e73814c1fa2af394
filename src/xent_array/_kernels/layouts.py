"""Rows in host memory, of any layout, as kernels take them: where they lie, or copies of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np

from xent_array._kernels._lanes import LANES
from xent_array._namespace import Array
from xent_array._row_blocks import row_blocks

#: The dtypes that the kernel reads, and as which: numba knows the bits of half dtypes alone.
_READ_AS = {"float64": "f8", "float32": "f4", "float16": "u2", "bfloat16": "i2"}

#: Adjacent classes of a row are read along the row from so many on; of fewer, many rows at once.
_MANY = 65

#: Bytes of a row up to which rows are copied. Longer ones take many times as long without, and so
#: much memory with a copy.
_COPY_BYTES = 1 << 23

#: Where rows begin in what is given and in the results, and which share of all rows they are of.
Places = tuple[int, int, int]

#: Parts of rows and of where their gradients go, and which of all rows is the first of each.
Share = list[tuple[Array, Array, int]]

#: Does some segments of a program with rows, and where their gradients go; both have two axes.
Work = Callable[[Array, Array, Places, Array, Any], None]


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
    """Whether kernels are as fast on arrays of rows as on copies, or copies would be too large."""
    if along_classes(*arrays) or all(map(_in_long_runs, arrays)):
        return True
    return bool(arrays[0].shape[-1] * arrays[0].itemsize > _COPY_BYTES)


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
    enough = length >= LANES // 2 or (few and length == count_rows(x))
    return enough and bool(adjacent or step == x.itemsize)


def count_rows(x: Array) -> int:
    """How many rows there are."""
    return math.prod(x.shape[:-1])


# --- rows in parts


def strided(arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    """Parts of two axes, in C order."""
    try:
        yield tuple(x.reshape((-1, x.shape[-1]), copy=False) for x in arrays)
    except ValueError:  # rows that one stride does not reach
        for part in zip(*arrays, strict=True):
            yield from strided(part)


def pieces(arrays: tuple[Array, ...], most: int) -> Iterator[tuple[Array, ...]]:
    """Parts of at most so many rows, in C order, of any number of axes."""
    for block in row_blocks(arrays[0].shape[:-1], most):
        yield tuple(x[block] for x in arrays)


def dealt(parts: Iterable[tuple[Array, ...]], most: int, *, cut: bool) -> Iterator[Share]:
    """Deal parts of rows out to shares: of so many rows if parts are `cut`, else of some more."""
    share: Share = []
    room, before = most, 0
    for arrays in parts:
        rows, start = count_rows(arrays[0]), 0
        while start < rows:
            stop = min(start + room, rows) if cut else rows
            z, into = (x[start:stop] for x in arrays) if stop - start < rows else arrays
            share.append((z, into, before + start))
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

    def copied(z: Array, into: Array, places: Places, segments: Array, columns: Any) -> None:
        room = room_for(z.shape, z.dtype)
        rows = room.reshape((-1, room.shape[-1]), copy=False)
        looks, writes = segments["looks"].any(), segments["writes"].any()
        if looks or writes:
            _copy(room, z)
        work(rows, rows, places, segments, columns)
        if writes:
            _copy(into, room)

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
