"""The two row primitives in host memory: which kernel reads an array, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from xent_array._kernels import RowStats, _rows
from xent_array._namespace import Array
from xent_array._threads import for_each

#: The dtypes that kernels read, and as which: numba knows the bits of half dtypes alone.
_READ_AS = {"float64": "f8", "float32": "f4", "float16": "u2", "bfloat16": "i2"}

#: Adjacent classes of a row are read along the row from so many on; of fewer, many rows at once.
_MANY = 65

#: Bytes of logits that are worth a thread's while, and how many shares there are for each thread at
#: most: several, lest one that is slow be waited for.
_SHARE_BYTES, _SHARES_EACH = 1 << 20, 8

#: Bytes of logits from which on rows are fetched ahead; fewer lie in the second cache, it may be.
_FAR_BYTES = 1 << 20

#: In the place of an array that is not asked for.
_NONE = {dtype: np.empty(0, dtype) for dtype in map(np.dtype, ("f4", "f8", "i8", "?"))}
_INDEX, _MASK = np.dtype("i8"), np.dtype("?")


@cache
def _read_as(dtype: Any) -> Any:
    """The dtype that kernels read a dtype as; None: they cannot."""
    name = _READ_AS.get(dtype.name) if dtype.isnative else None
    return None if name is None else np.dtype(name)


class Kernels(NamedTuple):
    """The kernels as they serve host memory."""

    threads: Callable[[], int]  # how many may share the rows of a call

    @property
    def compiler(self) -> str:
        """What compiled them."""
        return "numba"

    def serves(self, x: Array) -> bool:
        """Whether the kernels can read an array."""
        return _read_as(x.dtype) is not None and x.flags.aligned

    def serial(self) -> Kernels:
        """The same on the thread that calls."""
        return _SERIAL

    def row_stats(
        self,
        z: Array,
        index: Array,
        weight: Array | float | None,
        scale: float,
        dtype: Any,
        *,
        place: bool,
        into: Array | None = None,
    ) -> RowStats:
        """Read rows of logits; see `_kernels.Kernels`."""
        shape, rows, none = index.shape, index.size, _NONE[dtype]
        if isinstance(weight, float):
            weight = np.full(z.shape[-1], weight, dtype)
        found = np.empty((3, rows), dtype)
        even = none if weight is None else np.empty(rows, dtype)
        places = np.empty(rows, _INDEX) if place else _NONE[_INDEX]
        factors = (dtype.type(scale), none if weight is None else _line(weight))
        columns = (_line(index), found, even, places)
        leaves = into is not None and _leaves(z, into, dtype)
        fetches = z.nbytes > _FAR_BYTES

        def read(part: Array, to: Array, first: int) -> None:
            if _along_classes(part):
                how = (leaves, fetches, *factors, first)
                _call(_rows.wide_stats, *_seen(part), *_seen(to), *how, *columns)
            else:
                _call(_rows.lane_stats, *_seen(part), *factors, first, *columns)

        self._share(read, rows, z, into if leaves else z)
        top, rest, picked = found.reshape((3, *shape))
        return RowStats(
            top,
            rest,
            picked,
            None if weight is None else even.reshape(shape),
            places.reshape(shape) if place else None,
            leaves,
        )

    def row_grad(
        self,
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
        left: bool = False,
    ) -> None:
        """Write the gradients of rows; see `_kernels.Kernels`."""
        dtype, shape = top.dtype, top.shape
        evens = weights = _NONE[dtype]
        if even is not None:
            evens = _line(np.broadcast_to(np.asarray(even, dtype), shape))
            weights = np.ones(z.shape[-1], dtype) if weight is None else _line(weight)
        mask = _NONE[_MASK] if kept is None else _line(np.broadcast_to(kept, shape))
        columns = (_line(top), _line(pull), evens, _line(index), _line(chosen), mask)
        factors = (dtype.type(scale), weights)

        def write(part: Array, to: Array, first: int) -> None:
            if _along_classes(part, to):
                _call(_rows.wide_grad, *_seen(part), *_seen(to), left, *factors, first, *columns)
            else:
                _call(_rows.lane_grad, *_seen(part), *_seen(to), *factors, first, *columns)

        self._share(write, top.size, z, into)

    def _share(self, work: Callable[..., None], rows: int, *arrays: Array) -> None:
        """Do some work on arrays of rows, several threads at once where there is enough of it."""
        z = arrays[0]
        shares = z.nbytes // _SHARE_BYTES
        if z.ndim == 2 and shares < 2 and rows:  # small calls come here
            work(*arrays, 0)
            return
        parts = _runs(arrays) if rows else ()
        threads = self.threads() if shares > 1 else 1
        if threads > 1:
            shares = min(shares, _SHARES_EACH * threads)
            for_each(partial(_work_on, work), _dealt(parts, -(-rows // shares)), threads)
        else:
            _work_on(work, parts)


def _work_on(work: Callable[..., None], parts: Iterable[tuple[Any, ...]]) -> None:
    for part in parts:
        work(*part)


_SERIAL = Kernels(lambda: 1)


def _leaves(z: Array, into: Array, dtype: Any) -> bool:
    """Whether exponentials of rows can be left, as they are, where the gradient goes."""
    kept = _along_classes(z, into) and into.dtype == dtype
    return kept and not np.may_share_memory(z, into)


def _call(kernel: Any, *args: Any) -> None:
    try:
        kernel(*args)
    except OSError:  # it was compiled, and could not be kept on disk
        kernel(*args)


def _seen(x: Array) -> tuple[Any, ...]:
    """Memory as kernels take it: one compilation serves every layout, read-only or not."""
    origin = x[:1, 0]
    if not origin.flags.writeable:
        origin = np.asarray(_Alias(origin))
    if x.itemsize == 2:
        origin = origin.view(_read_as(x.dtype))
    return origin, *x.shape, *x.strides


class _Alias:
    """Memory that NumPy is told may be written to: what is compiled for it serves all."""

    def __init__(self, x: Array) -> None:
        whole = x.__array_interface__
        self.x = x
        self.__array_interface__ = {**whole, "data": (whole["data"][0], False)}


def _line(x: Array) -> Array:
    """Numbers in a row, writable: a read-only array would be compiled for anew."""
    x = x.reshape(-1)
    flags = x.flags
    return x if flags.c_contiguous and flags.writeable else x.copy()


def _along_classes(*arrays: Array) -> bool:
    if arrays[0].shape[-1] < _MANY:
        return False
    return all(x.strides[-1] == x.itemsize for x in arrays)


def _runs(arrays: tuple[Array, ...]) -> Iterator[tuple[Any, ...]]:
    """Rows of any shape as views of two axes, and which of all rows is the first of these."""
    before = 0
    for part in _flat(arrays):
        yield *part, before
        before += part[0].shape[0]


def _dealt(parts: Iterable[tuple[Any, ...]], most: int) -> Iterator[list[tuple[Any, ...]]]:
    """Parts of arrays of rows in shares of so many rows, cut where they have more."""
    share, room = [], most
    for *arrays, before in parts:
        length, start = arrays[0].shape[0], 0
        while start < length:
            end = min(start + room, length)
            share.append((*(x[start:end] for x in arrays), before + start))
            start, room = end, room - (end - start)
            if room == 0:
                yield share
                share, room = [], most
    if share:
        yield share


def _flat(arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    try:
        yield tuple(x.reshape((-1, x.shape[-1]), copy=False) for x in arrays)
    except ValueError:  # rows that one stride does not reach
        for part in zip(*arrays, strict=True):
            yield from _flat(part)
