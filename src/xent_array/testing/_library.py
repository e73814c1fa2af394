"""An array library as the cases use it: to make arrays, to call the loss, to read results."""

from __future__ import annotations

import unittest
import warnings
from collections.abc import Callable
from typing import Any

import xent_array
from xent_array.testing._plain import FLOATING, Call, Dtype, Plain, full, plain
from xent_array.testing._tolerance import LEAST_NORMAL

#: The dtypes of the standard, which may be asked for by name.
_NAMES = (
    *FLOATING,
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    *("complex64", "complex128"),
)


class Skipped(unittest.SkipTest):
    """What a case is about, the library does not have. Test runners skip such a test."""


class Library:
    """An array library, and how to get at its arrays.

    Parameters
    ----------
    xp
        Its namespace, as its users import it.
    asarray
        ``asarray(values, dtype_name)`` makes an array of nested lists (of a number: 0-d). The
        default asks `xp` for ``asarray`` and for the dtype of that name.
    to_list
        ``to_list(x)`` makes nested lists of an array (a number where 0-d). The default is
        ``x.tolist()``, of ``x.compute()`` where arrays are lazy, or reads entry by entry where
        arrays have no such method.
    call
        ``call(function, *arrays, **options)`` makes every call of xent_array, by default plainly.
        A compiler may be put here.
    """

    def __init__(
        self,
        xp: Any,
        *,
        asarray: Callable[[Any, str], Any] | None = None,
        to_list: Callable[[Any], Any] | None = None,
        call: Callable[..., Any] | None = None,
    ) -> None:
        self.xp = xp
        self.name = str(getattr(xp, "__name__", xp))
        self._asarray = asarray or self._standard_array
        self._to_list = to_list or self._standard_list
        self._call = call or _plainly
        self._flushes: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"Library({self.name})"

    def array(self, data: Plain) -> Any:
        """Make an array, or raise `Skipped` where there is none of its dtype."""
        if 0 in data.shape:  # lists in lists do not tell this shape
            some = full(tuple(length or 1 for length in data.shape), 1, data.dtype)
            return self.array(some)[tuple(slice(0, length) for length in data.shape)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a narrower dtype, which is seen right here
            x = self._asarray(data.nested(), data.dtype)
        if (made := self.dtype_name(x.dtype)) != data.dtype:
            raise Skipped(f"asarray makes {made} of {data.dtype}")
        return x

    def data(self, x: Any) -> Plain:
        """Read an array."""
        shape, dtype = tuple(x.shape), self.dtype_name(x.dtype)
        kind = _kind(dtype)
        entries = [self._to_list(x)]
        for length in shape:
            if any(len(row) != length for row in entries):
                raise AssertionError(f"to_list makes no list of shape {shape} of {x!r}")
            entries = [entry for row in entries for entry in row]
        return Plain(tuple(map(kind, entries)), shape, dtype)

    def evaluate(self, call: Call) -> Any:
        """Make a call, and return what it returns."""
        return self.evaluate_with(call, self.given(call))

    def given(self, call: Call) -> list[Any]:
        """The arrays of a call, as the library's."""
        return [self._value(x) for x in call.arrays]

    def evaluate_with(self, call: Call, arrays: list[Any]) -> Any:
        options = {name: self._value(value) for name, value in call.options}
        function = getattr(xent_array, call.function)
        if isinstance(function, type):
            return self._call(function(**options), *arrays)
        return self._call(function, *arrays, **options)

    def dtype(self, name: str) -> Any:
        if not hasattr(self.xp, name):
            raise Skipped(f"{self.name} has no {name}")
        return getattr(self.xp, name)

    def dtype_name(self, dtype: Any) -> str:
        """The standard's name of a dtype, which must equal the namespace's object of that name."""
        for name in _NAMES:
            if hasattr(self.xp, name) and dtype == getattr(self.xp, name):
                return name
        return str(getattr(dtype, "name", dtype)).rpartition(".")[2]

    def flushes(self, dtype: str) -> bool:
        """Whether arithmetic takes subnormal numbers for 0."""
        if dtype not in self._flushes:
            least = self.array(Plain((LEAST_NORMAL[dtype],), (1,), dtype))
            self._flushes[dtype] = self.data(least * 0.5).flat[0] == 0.0
        return self._flushes[dtype]

    def _value(self, value: Any) -> Any:
        if isinstance(value, Plain):
            return self.array(value)
        if not isinstance(value, Dtype):
            return value
        self.array(plain(1.0, value.name))  # there may be the name, and no such arrays
        return self.dtype(value.name)

    def _standard_array(self, values: Any, dtype: str) -> Any:
        return self.xp.asarray(values, dtype=self.dtype(dtype))

    def _standard_list(self, x: Any) -> Any:
        if hasattr(x, "compute"):  # lazy, as dask's: once, not for each of its entries
            x = x.compute()
        if hasattr(x, "tolist"):
            return x.tolist()
        return _entries(x, tuple(x.shape), (), _kind(self.dtype_name(x.dtype)))


def _kind(dtype: str) -> type[complex]:
    """What Python holds an entry in."""
    if dtype.startswith("complex"):
        return complex
    return bool if dtype == "bool" else int if "int" in dtype else float


def _entries(x: Any, shape: tuple[int, ...], place: tuple[int, ...], kind: type) -> Any:
    """Lists of the entries at a place, read one by one as the standard indexes them."""
    if len(place) == len(shape):
        return kind(x[place])
    return [_entries(x, shape, (*place, i), kind) for i in range(shape[len(place)])]


def _plainly(function: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    return function(*arrays, **options)
