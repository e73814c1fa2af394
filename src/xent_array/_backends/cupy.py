"""CuPy: NumPy's interface in a GPU's memory, never waited for."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

from xent_array import _kernels
from xent_array._backends import _cupy_cuda
from xent_array._backends._numpy_dtypes import NumpyDtypes
from xent_array._backends._standard import Memory
from xent_array._kernels import Kernels
from xent_array._namespace import Array


class Backend(NumpyDtypes):
    def admit(self, name: str, x: Array) -> Array:
        if type(x) is not cp.ndarray:
            raise TypeError(
                f"{name} must be a plain array, got {type(x).__name__}: pass cupy.asarray(x)"
            )
        return x

    def signature(self, *arrays: Array) -> Any:
        if {*map(type, arrays)} == {cp.ndarray}:
            return tuple(map(_layout_of, arrays))
        return None

    def memory(self, x: Array) -> Memory:
        return "device"

    def kernels(self, x: Array) -> Kernels | None:
        kernels = _kernels.for_cuda(_cupy_cuda)
        return kernels if kernels is not None and kernels.serves(x) else None

    def why_no_kernels(self, x: Array) -> str | None:
        return _kernels.why_not_for_cuda(_cupy_cuda, x.device.id)

    def unwritable(self, x: Array) -> str | None:
        return self.shared(x.strides, x.shape, x.itemsize)

    def index_dtype(self, x: Array) -> Any:
        return np.dtype(np.int64)

    def cast(self, x: Array, dtype: Any) -> Array:
        return x.astype(dtype, copy=False)

    def row_sum(self, x: Array) -> Array:
        return cp.sum(x, axis=-1, keepdims=True)  # in parallel, hence as a tree

    def take(self, x: Array, index: Array) -> Array:
        return x[index]


def _layout_of(x: Array) -> tuple[Any, ...]:
    """All that there is to say of an array but its values."""
    return x.dtype, x.shape, x.strides, x.data.ptr % x.itemsize, x.device.id
