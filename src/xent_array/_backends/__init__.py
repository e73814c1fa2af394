"""The array libraries: one module each, holding only what the standard cannot say.

No library is imported before an array of it arrives: the module of that name is looked up then.
"""

from __future__ import annotations

import importlib
import threading

from xent_array._backends._standard import Memory, Standard, dtype_name
from xent_array._namespace import namespace_of

__all__ = ["Memory", "Standard", "backend_of", "dtype_name"]

#: Namespaces with a module of their own here; every other library is taken at the standard's word.
_MODULES = {
    "array_api_compat.numpy": "numpy",
    "array_api_compat.torch": "torch",
    "array_api_strict": "array_api_strict",
}

_by_type: dict[type, Standard] = {}
_finding = threading.Lock()


def backend_of(name: str, x: object) -> Standard:
    """Return the backend of argument `name`, or raise TypeError when it is not an array."""
    backend = _by_type.get(type(x))
    if backend is None:
        with _finding:  # one backend per library, by whose identity its arrays are told
            backend = _by_type[type(x)] = _find(name, x)
    return backend


def _find(name: str, x: object) -> Standard:
    xp = namespace_of(x)
    if xp is None:
        raise TypeError(f"{name} must be an array, got {type(x).__name__}: {_advice(x)}")
    for known in _by_type.values():
        if known.xp is xp:
            return known
    module = _MODULES.get(xp.__name__)
    if module is None:
        return Standard(xp)
    backend: Standard = importlib.import_module(f"{__name__}.{module}").Backend(xp)
    return backend


def _advice(x: object) -> str:
    if hasattr(x, "to_numpy"):  # pandas, polars, pyarrow
        return "pass x.to_numpy()"
    return "make one with your array library's asarray()"
