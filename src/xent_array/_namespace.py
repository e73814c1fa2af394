"""From an array to its Array API namespace: the only importer of array-api-compat."""

from __future__ import annotations

import sys
from typing import Any

import array_api_compat as compat

#: An array of any library: the static type system has no name for "same library as the argument".
Array = Any


def namespace_of(x: object) -> Any | None:
    """Return the Array API namespace that `x` belongs to, or None when `x` is not an array."""
    # torch is asked for first, and here: torch.compile warns of compat's cached questions.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        import array_api_compat.torch as xp

        return xp
    # compat would take the class of an array for an array.
    if isinstance(x, type) or not compat.is_array_api_obj(x):
        return None
    return compat.array_namespace(x)


def dtype_name(dtype: Any) -> str:
    """The standard's name of a dtype, the same for every library: ``float32``."""
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]
