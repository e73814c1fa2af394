"""Dtypes of the libraries whose dtypes are NumPy's, bfloat16 of ml_dtypes among them."""

from __future__ import annotations

from typing import Any

import numpy as np

from xent_array._backends._standard import Standard
from xent_array._namespace import dtype_name


class NumpyDtypes(Standard):
    """ml_dtypes' bfloat16 is of kind "V" to NumPy, and np.isdtype refuses it."""

    def is_floating(self, dtype: Any) -> bool:
        return dtype.kind == "f" or dtype_name(dtype) == "bfloat16"

    def is_integer(self, dtype: Any) -> bool:
        return dtype.kind in "iu"

    def is_boolean(self, dtype: Any) -> bool:
        return bool(dtype.kind == "b")

    def dtype(self, dtype: Any) -> Any:
        return np.dtype(dtype)

    def compute_dtype(self, dtype: Any) -> Any:
        return dtype if dtype.itemsize > 2 else np.dtype(np.float32)

    def itemsize(self, dtype: Any) -> int:
        return int(dtype.itemsize)

    def integer_range(self, dtype: Any) -> tuple[int, int]:
        info = np.iinfo(dtype)
        return int(info.min), int(info.max)
