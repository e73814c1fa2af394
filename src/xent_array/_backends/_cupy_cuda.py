"""CuPy's arrays as kernels see them; see `_kernels.cuda.Producer`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import cupy as cp

from xent_array._namespace import Array

ARRAY = cp.ndarray


def device(x: Array) -> int:
    number: int = x.device.id
    return number


def current(x: Array) -> contextlib.AbstractContextManager[int]:
    if cp.cuda.runtime.getDevice() == x.device.id:  # mostly
        return contextlib.nullcontext(cp.cuda.get_current_stream().ptr)
    return _on(x.device)


@contextlib.contextmanager
def _on(device: Any) -> Iterator[int]:
    with device:
        yield cp.cuda.get_current_stream().ptr


def address(x: Array) -> int:
    start: int = x.data.ptr
    return start


def aligned(x: Array) -> bool:
    return not any(place % x.itemsize for place in (x.data.ptr, *x.strides))


def steps(x: Array) -> tuple[int, ...]:
    return tuple(stride // x.itemsize for stride in x.strides)


def empty(shape: tuple[int, ...], dtype: Any, _: Array) -> Array:
    return cp.empty(shape, dtype)  # on the current device; to `empty_like` a shape of () is none


def scratch(size: int, like: Array) -> Array:
    return empty((size,), "uint8", like)


def plain(x: Array) -> Array:
    return x


def line(x: Array, shape: tuple[int, ...]) -> Array:
    if x.shape == shape and x.flags.c_contiguous and aligned(x):  # mostly
        return x
    return cp.array(cp.broadcast_to(x, shape), order="C", copy=True)
