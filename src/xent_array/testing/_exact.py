"""Arithmetic in 60 digits, in a context of its own: the caller's ``mpmath.mp`` stays as it is."""

from __future__ import annotations

from typing import Any

try:
    import mpmath  # type: ignore[import-untyped]
except ImportError as error:
    raise ImportError(
        "xent_array.testing needs mpmath: pip install 'xent_array[testing]'"
    ) from error

#: A number of 60 digits.
Real = Any

mp: Any = mpmath.MPContext()
mp.dps = 60

ZERO: Real = mp.mpf(0)
ONE: Real = mp.mpf(1)
NAN: Real = mp.nan
INF: Real = mp.inf


def exact(value: float) -> Real:
    """A number of Python, exactly."""
    return mp.mpf(value)
