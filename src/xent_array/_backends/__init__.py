"""The array libraries: one module each, holding only what the standard cannot say.

No library is imported before an array of it arrives: the module of that name is imported then.
"""

from __future__ import annotations

import sys

from xent_array._backends._standard import Memory, Standard
from xent_array._namespace import namespace_of

__all__ = ["Memory", "Standard", "backend_of"]

#: By the type's name: torch.compile guards what it reads, and knows no types of NumPy's as keys.
_by_type: dict[str, tuple[type, Standard]] = {}
_by_library: dict[str, Standard] = {}


def backend_of(name: str, x: object) -> Standard:
    """Return the backend of argument `name`, or raise TypeError when it is not an array.

    There is one for each library, by whose identity the arrays of two libraries are told apart.
    """
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    seen = _by_type.get(kind)
    if seen is None or seen[0] is not type(x):
        seen = _by_type[kind] = type(x), _find(name, x)
    return seen[1]


def _find(name: str, x: object) -> Standard:
    xp = namespace_of(x)
    if xp is None:
        raise TypeError(f"{name} must be an array, got {type(x).__name__}: {_advice(x)}")
    library = xp.__name__
    if library not in _by_library:
        # Of several threads that come here first, one wins; torch.compile knows no locks.
        _by_library.setdefault(library, _kind(library)(xp))
    return _by_library[library]


def _kind(library: str) -> type[Standard]:
    """What answers for a library; one not named here is taken at the standard's word."""
    if library == "array_api_compat.numpy":
        from xent_array._backends.numpy import Backend
    elif library == "array_api_compat.torch":
        from xent_array._backends.torch import Backend  # type: ignore[assignment]
    elif library == "array_api_strict":
        from xent_array._backends.array_api_strict import Backend  # type: ignore[assignment]
    elif library == "array_api_compat.cupy":
        from xent_array._backends.cupy import Backend  # type: ignore[assignment]
    elif library == "jax.numpy":
        from xent_array._backends.jax import Backend  # type: ignore[assignment]
    elif library == "array_api_compat.dask.array":
        from xent_array._backends.dask import Backend  # type: ignore[assignment]
    else:
        return Standard
    return Backend


def _advice(x: object) -> str:
    if hasattr(x, "to_numpy"):  # pandas, polars, pyarrow
        return "pass x.to_numpy()"
    return "make one with your array library's asarray()"


def _meet_torch() -> None:
    """Have torch's tensors be known, if it is imported already.

    A compiled call that met the first of them would be compiled again: torch guards what it has not
    found in a table.
    """
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "nn"):  # all of it is there
        for kind in (torch.Tensor, torch.nn.Parameter):
            backend_of("logits", kind(torch.empty(0)))


_meet_torch()
