"""NumPy: reductions that return scalars, sums in memory order, bfloat16 from ml_dtypes."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from xent_array import _kernels, _threads
from xent_array._backends._numpy_dtypes import NumpyDtypes
from xent_array._backends._standard import Memory
from xent_array._kernels import Kernels
from xent_array._namespace import Array

_PLAIN = frozenset((np.ndarray, np.memmap))
#: Rows of so many classes, and so many entries in all, are copied to be read class by class.
_FEW, _WORTH_A_COPY = 64, 1 << 12

#: The numbers of few rows, made once.
_FIRST_ROWS = np.arange(1024)[:, None]

_INDEX = np.dtype(np.intp)
_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


class Backend(NumpyDtypes):
    shares_blocks = True

    def admit(self, name: str, x: Array) -> Array:
        if type(x) is np.ndarray:
            return x
        if type(x) in _PLAIN or isinstance(x, np.generic):
            return np.asarray(x)
        if isinstance(x, np.ma.MaskedArray):
            advice = "pass x.filled(...) and the rows to keep as where="
        else:
            advice = "pass numpy.asarray(x)"
        raise TypeError(f"{name} must be a plain array, got {type(x).__name__}: {advice}")

    def signature(self, *arrays: Array) -> Any:
        if {*map(type, arrays)} == {np.ndarray}:
            return tuple(map(_layout_of, arrays))
        return None

    def device(self, x: Array) -> Any:
        return "cpu"

    def memory(self, x: Array) -> Memory:
        return "host"

    def kernels(self, x: Array) -> Kernels | None:
        kernels = _kernels.for_host(self.threads)
        return kernels if kernels is not None and kernels.serves(x) else None

    def why_no_kernels(self, x: Array) -> str | None:
        return _kernels.why_not_for_host()

    def threads(self) -> int:
        return _threads.available()

    def unwritable(self, x: Array) -> str | None:
        if not x.flags.writeable:
            return "it is read-only"
        return self.shared(x.strides, x.shape, x.itemsize)

    def branches(self, x: Array) -> bool:
        return True

    def quiet(self) -> contextlib.AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def index_dtype(self, x: Array) -> Any:
        return _INDEX

    def cast(self, x: Array, dtype: Any) -> Array:
        return x if x.dtype == dtype else x.astype(dtype)

    def arranged(self, x: Array) -> Array:
        # Along a short axis a reduction takes one number at a time, across it whole vectors.
        if x.shape[-1] > _FEW or x.size < _WORTH_A_COPY or x.strides[-1] != x.itemsize:
            return x
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1)

    # The ufuncs' own reductions: the same sums as np.max and np.sum at half the call's cost.

    def row_max(self, x: Array) -> Array:
        return np.maximum.reduce(x, axis=-1, keepdims=True)

    def row_sum(self, x: Array) -> Array:
        if x.flags.c_contiguous or _innermost(x):
            return np.add.reduce(x, axis=-1, keepdims=True)
        return super().row_sum(x)

    def gather(self, x: Array, index: Array) -> Array:
        if x.ndim == 2:
            return x[_row_numbers(x.shape[0]), index]
        return np.take_along_axis(x, index, axis=-1)

    def put(self, x: Array, index: Array, value: Array) -> Array:
        if x.ndim == 2:
            x[_row_numbers(x.shape[0]), index] = value
        else:
            np.put_along_axis(x, index, value, axis=-1)
        return x

    def total(self, x: Array) -> Array:
        return np.add.reduce(x, axis=None)

    def least(self, x: Array) -> float:
        return float(np.minimum.reduce(x, axis=None, initial=np.inf))

    def within(self, index: Array, length: int) -> bool:
        if index.dtype == _INDEX and (kernels := _kernels.for_host(self.threads)) is not None:
            return kernels.within(index, length)
        if not index.dtype.isnative:
            return super().within(index, length)
        # Read as unsigned, negative numbers lie above every length: one reduction sees both ends.
        unsigned = index.view(_UNSIGNED[index.dtype.itemsize])
        return int(np.maximum.reduce(unsigned, axis=None)) < length

    def take(self, x: Array, index: Array) -> Array:
        return x[index]

    def room(self, shape: tuple[int, ...], like: Array, dtype: Any = None) -> Array:
        return np.empty(shape, like.dtype if dtype is None else dtype)

    def first_product(self, total: Array, a: Array, b: Array) -> None:
        np.matmul(a, b, out=total)

    def finalize(self, x: Array, dtype: Any) -> Array:
        return np.asarray(x, dtype=dtype)


def _layout_of(x: Array) -> tuple[Any, ...]:
    """All that there is to say of an array but its values."""
    return x.dtype, x.shape, x.strides, x.flags.aligned


def _row_numbers(rows: int) -> Array:
    """The row numbers ``0 .. rows-1``, in a column."""
    return _FIRST_ROWS[:rows] if rows <= len(_FIRST_ROWS) else np.arange(rows)[:, None]


def _innermost(x: Array) -> bool:
    """Whether the last axis is the densest in memory, which NumPy sums pairwise."""
    return all(
        abs(step) >= abs(x.strides[-1]) or length <= 1
        for step, length in zip(x.strides, x.shape, strict=True)
    )
