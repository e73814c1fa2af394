"""The two row primitives in host memory: which kernel reads an array, and how."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from xent_array._kernels import RowStats, _rows
from xent_array._namespace import Array

#: What compiles the kernels.
compiler = "numba"

#: The dtypes that kernels read, and as which: numba knows the bits of half dtypes alone.
_READ_AS = {"float64": "f8", "float32": "f4", "float16": "u2", "bfloat16": "i2"}

#: Adjacent classes of a row are read along the row from so many on; of fewer, many rows at once.
_MANY = 65

#: In the place of an array that is not asked for.
_NONE = {dtype: np.empty(0, dtype) for dtype in map(np.dtype, ("f4", "f8", "i8", "?"))}
_INDEX, _MASK = np.dtype("i8"), np.dtype("?")


def serves(x: Array) -> bool:
    """Whether the kernels can read an array."""
    return _sample(x.dtype) is not None and x.flags.aligned


@functools.cache
def _sample(dtype: Any) -> Array | None:
    """An array of the dtype that kernels read a dtype as; None: they cannot."""
    read_as = _READ_AS.get(dtype.name) if dtype.isnative else None
    return None if read_as is None else np.empty(0, read_as)


def row_stats(
    z: Array, index: Array, weight: Array | None, scale: float, dtype: Any, *, place: bool
) -> RowStats:
    """Read rows of logits; `weight`, a number for each class, and `place` if asked for."""
    shape, rows, none = index.shape, index.size, _NONE[dtype]
    places = np.empty(rows, _INDEX) if place else _NONE[_INDEX]
    even = none if weight is None else np.empty(rows, dtype)
    columns = (_line(index), *np.empty((3, rows), dtype), even, places)
    factors = (dtype.type(scale), none if weight is None else _line(weight))
    for part, here in _parts(z):
        read = _rows.wide_stats if _along_classes(part) else _rows.lane_stats
        _call(read, *_seen(part), *factors, *_of_rows(columns, here))
    _, *found = columns
    top, rest, picked, even, places = (x.reshape(shape) if x.size == rows else x for x in found)
    return RowStats(top, rest, picked, None if weight is None else even, places if place else None)


def row_grad(
    z: Array,
    into: Array,
    scale: float,
    *,
    top: Array,
    pull: Array,
    even: Array | float | None,
    weight: Array | None,
    index: Array,
    chosen: Array,
    kept: Array | None,
) -> None:
    """Write ``exp(scale·(z - top))·pull - even·weight``, and what is `chosen` at the index.

    Rows that are not kept become 0. `into` may be `z`; numbers of rows have a class axis of length
    one.
    """
    dtype, shape = top.dtype, top.shape
    evens = weights = _NONE[dtype]
    if even is not None:
        evens = _line(np.broadcast_to(np.asarray(even, dtype), shape))
        weights = np.ones(z.shape[-1], dtype) if weight is None else _line(weight)
    mask = _NONE[_MASK] if kept is None else _line(np.broadcast_to(kept, shape))
    columns = (_line(top), _line(pull), evens, _line(index), _line(chosen), mask)
    factors = (dtype.type(scale), weights)
    for part, to, here in _parts(z, into):
        write = _rows.wide_grad if _along_classes(part, to) else _rows.lane_grad
        _call(write, *_seen(part), *_seen(to)[1:], *factors, *_of_rows(columns, here))


def _of_rows(columns: tuple[Array, ...], here: slice | None) -> tuple[Array, ...]:
    return columns if here is None else tuple(x[here] for x in columns)


def _call(kernel: Any, *args: Any) -> None:
    try:
        kernel(*args)
    except OSError:  # it was compiled, and could not be kept on disk
        kernel(*args)


def _seen(x: Array) -> tuple[Any, ...]:
    """Memory as kernels take it: one compilation serves every layout, read-only or not."""
    address: int = x.__array_interface__["data"][0]
    return _sample(x.dtype), address, *x.shape, *x.strides


def _line(x: Array) -> Array:
    """Numbers in a row, writable: a read-only array would be compiled for anew."""
    x = x.reshape(-1)
    return x if x.flags.c_contiguous and x.flags.writeable else x.copy()


def _along_classes(*arrays: Array) -> bool:
    return all(x.shape[1] >= _MANY and x.strides[1] == x.itemsize for x in arrays)


def _parts(*arrays: Array) -> Iterator[tuple[Any, ...]]:
    """Rows of any shape as views of two axes, and which of all rows these are; None: all."""
    if arrays[0].ndim == 2:
        yield *arrays, None
        return
    before = 0
    for part in _flat(arrays):
        yield *part, slice(before, before + part[0].shape[0])
        before += part[0].shape[0]


def _flat(arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    try:
        yield tuple(x.reshape((-1, x.shape[-1]), copy=False) for x in arrays)
    except ValueError:  # rows that one stride does not reach
        for part in zip(*arrays, strict=True):
            yield from _flat(part)
