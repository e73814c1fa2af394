"""The two row primitives in host memory: which kernel reads an array, and how."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from xent_array._kernels import _rows
from xent_array._namespace import Array

#: The dtypes that kernels read, and as which: numba knows the bits of half dtypes alone.
_READ_AS = {"float64": "f8", "float32": "f4", "float16": "u2", "bfloat16": "i2"}
_SAMPLES = {name: np.empty(0, kind) for name, kind in _READ_AS.items()}

#: Adjacent classes of a row are read along the row from so many on; of fewer, many rows at once.
_MANY = 65

#: In the place of an array that is not asked for.
_NONE = {dtype: np.empty(0, dtype) for dtype in map(np.dtype, ("f4", "f8", "i8", "?"))}
_INDEX, _MASK = np.dtype("i8"), np.dtype("?")


class RowStats(NamedTuple):
    """What a kernel finds in rows; class axes have length one."""

    top: Array
    rest: Array
    picked: Array  # scale·(z - top) at the index
    even: Array | None  # the sum of weight·scale·(z - top)
    place: Array | None  # of the greatest logit, the lowest among ties


def serves(x: Array) -> bool:
    """Whether the kernels can read an array."""
    dtype = x.dtype
    return dtype.name in _READ_AS and dtype.isnative and x.flags.aligned


def row_stats(
    z: Array, index: Array, weight: Array | None, scale: float, dtype: Any, *, place: bool
) -> RowStats:
    """Read rows of logits; `weight`, a number for each class, and `place` if asked for."""
    shape, rows, none = index.shape, index.size, _NONE[dtype]
    found = np.empty((3 if weight is None else 4, rows), dtype)
    places = np.empty(rows, _INDEX) if place else _NONE[_INDEX]
    index, weights = _line(index), none if weight is None else _line(weight)
    for part, here in _parts(z):
        top, rest, picked = found[0, here], found[1, here], found[2, here]
        even = none if weight is None else found[3, here]
        read = _rows.wide_stats if _along_classes(part) else _rows.lane_stats
        _call(
            read,
            *_seen(part),
            dtype.type(scale),
            index[here],
            weights,
            top,
            rest,
            picked,
            even,
            places[here],
        )
    top, rest, picked, *even = found.reshape((len(found), *shape))
    return RowStats(
        top, rest, picked, even[0] if even else None, places.reshape(shape) if place else None
    )


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
    tops, pulls, indices, choices = _line(top), _line(pull), _line(index), _line(chosen)
    mask = _NONE[_MASK] if kept is None else _line(np.broadcast_to(kept, shape))
    for part, to, here in _parts(z, into):
        write = _rows.wide_grad if _along_classes(part, to) else _rows.lane_grad
        _call(
            write,
            *_seen(part),
            dtype.type(scale),
            tops[here],
            pulls[here],
            evens[here],
            weights,
            indices[here],
            choices[here],
            mask[here],
            *_seen(to)[1:],
        )


def _call(kernel: Any, *args: Any) -> None:
    try:
        kernel(*args)
    except OSError:  # it was compiled, and could not be kept on disk
        kernel(*args)


def _seen(x: Array) -> tuple[Any, ...]:
    """Memory as kernels take it: one compilation serves every layout, read-only or not."""
    address: int = x.__array_interface__["data"][0]
    return _SAMPLES[x.dtype.name], address, *x.shape, *x.strides


def _line(x: Array) -> Array:
    """Numbers in a row, writable: a read-only array would be compiled for anew."""
    x = x.reshape(-1)
    return x if x.flags.c_contiguous and x.flags.writeable else x.copy()


def _along_classes(*arrays: Array) -> bool:
    return all(x.shape[1] >= _MANY and x.strides[1] == x.itemsize for x in arrays)


def _parts(*arrays: Array, before: int = 0) -> Iterator[tuple[Any, ...]]:
    """Rows of any shape as views of two axes, and which of all rows these are."""
    shape = arrays[0].shape
    if len(shape) > 2:
        try:
            arrays = tuple(x.reshape((-1, shape[-1]), copy=False) for x in arrays)
        except ValueError:  # rows that one stride does not reach
            step = math.prod(shape[1:-1])
            for i in range(shape[0]):
                yield from _parts(*(x[i] for x in arrays), before=before + i * step)
            return
    elif len(shape) == 1:
        arrays = tuple(x[None] for x in arrays)
    yield *arrays, slice(before, before + arrays[0].shape[0])
