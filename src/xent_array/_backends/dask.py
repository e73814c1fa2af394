"""dask: lazy arrays in chunks, whose sizes along the rows may not be known yet."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np

from xent_array._backends._numpy_dtypes import NumpyDtypes
from xent_array._namespace import Array


class Backend(NumpyDtypes):
    engine = "chunk by chunk, each as NumPy's or CuPy's arrays are"
    chunked = True

    def admit(self, name: str, x: Array) -> Array:
        kind = type(x._meta)
        if kind is not np.ndarray and not hasattr(x._meta, "__cuda_array_interface__"):
            raise TypeError(
                f"{name} must have chunks of NumPy or CuPy arrays, got chunks of "
                f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}: map them to arrays"
            )
        return x

    def device(self, x: Array) -> Any:
        return None  # that of the chunks, once there are some

    def index_dtype(self, x: Array) -> Any:
        return np.dtype(np.int64)

    def broadcast_rows(self, x: Array, shape: tuple[int, ...]) -> Array:
        # Chunk by chunk: how many rows there are may not be known.
        return da.reshape(x, (1,) * len(shape)) if x.ndim == 0 else x
