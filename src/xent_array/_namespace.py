"""From an array to its Array API namespace: the only importer of array-api-compat."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat

#: An array of any library: the static type system has no name for "same library as the argument".
Array = Any


def namespace_of(x: object) -> Any | None:
    """Return the Array API namespace that `x` belongs to, or None when `x` is not an array.

    The three libraries that need array-api-compat's wrapper are asked for first and by name: its
    general look-up is cached in a way that ``torch.compile`` warns about.
    """
    if isinstance(x, type):
        return None  # compat would take the class of an array for an array
    if compat.is_torch_array(x):
        import array_api_compat.torch as xp
    elif compat.is_numpy_array(x):
        import array_api_compat.numpy as xp  # type: ignore[no-redef]
    elif compat.is_array_api_obj(x):
        return compat.array_namespace(x)
    else:
        return None
    return xp
