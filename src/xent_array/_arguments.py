"""Admission of a call's arrays: one library, one device, the right dtype, or a clear error."""

from __future__ import annotations

from typing import Any

from xent_array._backends import Memory, Standard, backend_of
from xent_array._namespace import Array, dtype_name
from xent_array._options import check_range, is_number

#: The range of positive float32 numbers, those with fewer digits left out.
_LEAST32, _MOST32 = 2.0**-126, (2.0 - 2.0**-23) * 2.0**127


class Library:
    """The array library and the device of a call, which its leading argument settles."""

    def __init__(self, name: str, leader: Array) -> None:
        self.name = name
        self.backend: Standard = backend_of(name, leader)
        self.leader = self.backend.admit(name, leader)
        self.device = self.backend.device(self.leader)
        self.memory: Memory = self.backend.memory(self.leader)
        self.floating(name, self.leader)

    def admit(self, name: str, x: Array) -> Array:
        """Return argument `name` as a plain array of this library, on this device."""
        if backend_of(name, x) is not self.backend:
            raise TypeError(
                f"{name} is a {_type_name(x)} but {self.name} is a {_type_name(self.leader)}: "
                "all arrays of a call must come from one library, convert one of them"
            )
        x = self.backend.admit(name, x)
        if self.backend.memory(x) == "opaque":
            self.memory = "opaque"  # nothing may branch on what follows from it
        if (device := self.backend.device(x)) != self.device:
            raise ValueError(
                f"{name} is on device {device} but {self.name} is on {self.device}: "
                "nothing is moved between devices silently, move one of them"
            )
        return x

    def floating(self, name: str, x: Array) -> Array:
        """Return `x` if it is real and floating."""
        if not self.backend.is_floating(x.dtype):
            raise TypeError(f"{name} must have a real floating dtype, got {dtype_name(x.dtype)}")
        return x

    def scalar(self, name: str, value: float | Array, dtype: Any) -> float | Array:
        """Return a scalar option as a Python float, or as a 0-d array of `dtype`."""
        if type(value) is float and value in (0.0, 1.0):
            return value  # what most calls leave an option at, at once
        if is_number(value):
            value = float(value)
            self._check_fits(name, value, dtype)
            return value
        value = self.admit(name, value)
        if not (self.backend.is_floating(value.dtype) or self.backend.is_integer(value.dtype)):
            raise TypeError(f"{name} must have a real dtype, got {dtype_name(value.dtype)}")
        if self.backend.memory(value) == "host":
            concrete = self.backend.value(value)
            check_range(name, value, concrete)
            self._check_fits(name, concrete, dtype)
        return self.backend.cast(value, dtype)

    def _check_fits(self, name: str, value: float, dtype: Any) -> None:
        """Refuse a number that the compute dtype holds as infinite or as 0."""
        if self.backend.itemsize(dtype) == 4 and value and not _LEAST32 <= abs(value) <= _MOST32:
            raise ValueError(f"{name} must be within the range of {dtype_name(dtype)}, got {value}")

    def writable(self, name: str, x: Array) -> Array:
        """Return argument `name` if it can take a gradient of the leading argument."""
        x = self.admit(name, x)
        if x.dtype != self.leader.dtype:
            raise other_dtype(name, x, self.name, self.leader)
        if tuple(x.shape) != tuple(self.leader.shape):
            raise ValueError(
                f"{name} must have the shape of {self.name}, {tuple(self.leader.shape)}; "
                f"got shape {tuple(x.shape)}"
            )
        if (reason := self.backend.unwritable(x)) is not None:
            raise ValueError(f"{name} cannot be written to: {reason}")
        return x

    def result_dtype(self, dtype: Any) -> Any:
        """Return the dtype asked for, None being the library's choice for its logits."""
        if dtype is None:
            return self.backend.result_dtype(self.leader)
        try:
            chosen = self.backend.dtype(dtype)
            floating = self.backend.is_floating(chosen)
        except (AttributeError, TypeError, ValueError):
            floating = False
        if not floating:
            raise TypeError(
                f"dtype must be a real floating dtype of the array library, got {dtype!r}"
            )
        return chosen


def other_dtype(name: str, x: Array, leading: str, leader: Array) -> TypeError:
    """The error of an array whose dtype is not that of a leading argument."""
    ours, theirs = map(dtype_name, (x.dtype, leader.dtype))
    if ours == theirs:  # in another order of bytes, which NumPy shows where it is not the machine's
        ours, theirs = str(x.dtype), str(leader.dtype)
    return TypeError(f"{name} must have the dtype of {leading}, {theirs}; got {ours}")


def _type_name(x: object) -> str:
    return f"{type(x).__module__.partition('.')[0]}.{type(x).__qualname__}"
