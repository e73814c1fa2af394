"""Kernels: compiled bodies of the two row primitives, where there is a compiler for them.

Without one, or where a dtype has none, the array code of `_stats` and `_wanted` does the same.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

#: The setting that switches kernels off.
SETTING = "XENT_ARRAY_KERNELS"

_disabled = 0


def for_host() -> ModuleType | None:
    """The kernels for host memory, or None; `why_not_for_host` tells the reason."""
    return None if _disabled else _host()[0]


def why_not_for_host() -> str | None:
    """Why no kernel serves host memory, or None if one does."""
    return "switched off" if _disabled else _host()[1]


@functools.cache
def _host() -> tuple[ModuleType | None, str | None]:
    if os.environ.get(SETTING, "").lower() in ("0", "off", "false", "no"):
        return None, f"{SETTING}={os.environ[SETTING]}"
    if importlib.util.find_spec("numba") is None:
        return None, "numba is not installed"
    try:
        from xent_array._kernels import host as kernels
    except ImportError as error:  # a numba that does not go with this Python or NumPy
        return None, f"numba cannot be imported: {error}"
    return kernels, None


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Have no kernel serve anything, in all threads."""
    global _disabled  # noqa: PLW0603
    _disabled += 1
    try:
        yield
    finally:
        _disabled -= 1
