"""Arrays as plain Python data, and calls that are given them: what every case is made of."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

#: Floating dtypes by the format that the struct module packs them with; bfloat16 it does not know.
_PACKED = {"float64": "d", "float32": "f", "float16": "e"}
HALF = ("float16", "bfloat16")
FLOATING = (*_PACKED, "bfloat16")


class Plain(NamedTuple):
    """A dense array: its entries in row-major order, its shape, the name of its dtype."""

    flat: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: str

    def nested(self) -> Any:
        """The entries as lists in lists, or as the number itself where 0-d."""
        entries: list[Any] = list(self.flat)
        for length in self.shape[:0:-1]:
            entries = [entries[i : i + length] for i in range(0, len(entries), length)]
        return entries if self.shape else entries[0]


class Dtype(NamedTuple):
    """A dtype as an option: the library's own object of that name."""

    name: str


def plain(values: Any, dtype: str) -> Plain:
    """Make an array of nested lists, each entry rounded to the dtype."""
    shape, entries = [], [values]
    while entries and isinstance(entries[0], (list, tuple)):
        shape.append(len(entries[0]))
        entries = [entry for row in entries for entry in row]
    return shaped(entries, tuple(shape), dtype)


def shaped(entries: Iterable[Any], shape: tuple[int, ...], dtype: str) -> Plain:
    """Make an array of entries in row-major order, each rounded to the dtype."""
    flat = tuple(rounded(entry, dtype) for entry in entries)
    assert len(flat) == math.prod(shape), (len(flat), shape)
    return Plain(flat, shape, dtype)


def full(shape: tuple[int, ...], value: Any, dtype: str) -> Plain:
    return shaped([value] * math.prod(shape), shape, dtype)


def rounded(value: Any, dtype: str) -> Any:
    """Return the entry that an array of this dtype holds for a number."""
    if dtype == "bfloat16":
        (bits,) = struct.unpack("I", struct.pack("f", value))
        if math.isfinite(value):  # to the nearest of its upper half, ties to even
            bits += 0x7FFF + (bits >> 16 & 1)
        (value,) = struct.unpack("f", struct.pack("I", bits & 0xFFFF0000))
    elif dtype in _PACKED:
        code = _PACKED[dtype]
        (value,) = struct.unpack(code, struct.pack(code, value))
    return value


def compute_dtype(dtype: str) -> str:
    """Half dtypes are computed in float32."""
    return "float32" if dtype in HALF else dtype


def along(x: Plain, axis: int) -> list[tuple[Any, ...]]:
    """The vectors along an axis, in row-major order of the other axes."""
    before, n, after = _cut(x.shape, axis)
    return [
        tuple(x.flat[(b * n + j) * after + a] for j in range(n))
        for b in range(before)
        for a in range(after)
    ]


def across(vectors: Sequence[Sequence[Any]], shape: tuple[int, ...], axis: int) -> Iterator[Any]:
    """The entries in row-major order of an array of that shape with these vectors along `axis`."""
    before, n, after = _cut(shape, axis)
    for b in range(before):
        for j in range(n):
            for a in range(after):
                yield vectors[b * after + a][j]


def spread_over(x: Plain | None, shape: tuple[int, ...], default: Any) -> list[Any]:
    """The entries of `x` broadcast to a shape, in row-major order; of None the default."""
    if x is None:
        return [default] * math.prod(shape)
    lengths = x.shape or (1,) * len(shape)
    places = [0]
    for full_length, length in zip(shape, lengths, strict=True):
        steps = [0] * full_length if length == 1 else range(length)
        places = [place * length + step for place in places for step in steps]
    return [x.flat[place] for place in places]


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def _cut(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


class Call(NamedTuple):
    """One call of the library: the name of its function, its arrays, its keywords."""

    function: str
    arrays: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)

    @property
    def dtype(self) -> str:
        """Floating dtype of what is read: the logits, or x."""
        return str(self.arrays[0].dtype)

    @property
    def axis(self) -> int:
        """The class axis, not negative."""
        ndim = len(self.arrays[0].shape)
        default = -1 if len(self.arrays) == 1 else min(1, ndim - 1)
        axis = self.option("axis")
        return int(default if axis is None else axis) % ndim

    def __str__(self) -> str:
        given = [*map(_brief, self.arrays), *(f"{k}={_brief(v)}" for k, v in self.options)]
        return f"{self.function}({', '.join(given)})"


def call(function: str, *arrays: Any, **options: Any) -> Call:
    """Make a call, its numbers rounded to the dtype that is computed in."""
    dtype = compute_dtype(arrays[0].dtype)
    return Call(
        function,
        arrays,
        tuple(
            (name, rounded(value, dtype) if isinstance(value, float) else value)
            for name, value in options.items()
        ),
    )


def _brief(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if isinstance(x, Plain) else repr(x)
