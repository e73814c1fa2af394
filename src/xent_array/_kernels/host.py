"""Host memory: programs that read rows and write their gradients, among them the two primitives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from xent_array._kernels import RowStats, _rows, in_few_parts
from xent_array._kernels._lanes import LANES
from xent_array._kernels._machine import ROWS as OF_ROWS
from xent_array._kernels.columns import CLASSES, REAL, ROWS, TRUTH, WHOLE
from xent_array._kernels.steps import Program, Steps
from xent_array._namespace import Array
from xent_array._threads import for_each

#: The dtypes that the kernel reads, and as which: numba knows the bits of half dtypes alone.
_READ_AS = {"float64": "f8", "float32": "f4", "float16": "u2", "bfloat16": "i2"}

#: Adjacent classes of a row are read along the row from so many on; of fewer, many rows at once.
_MANY = 65

#: Bytes of a share of the rows at least, and how many rows it has at most. There are no more shares
#: than that if rows are not too many: some for each thread, lest one that is slow be waited for.
_SHARE_BYTES, _SHARE_ROWS, _SHARES = 1 << 20, 1 << 15, 16

#: Bytes of a row beside its logits: of few classes, the numbers of a row weigh as much.
_ROW_BYTES = 64

#: Bytes of logits that are looked at before their gradients are written: they lie in the second
#: cache then, and what was left of them as well.
_STEP_BYTES = 1 << 18

#: Bytes of logits from which on rows are fetched ahead; fewer lie in the second cache, it may be.
_FAR_BYTES = 1 << 20

#: In the place of an array that is not there.
_NONE = {dtype: np.empty(0, dtype) for dtype in map(np.dtype, ("f4", "f8", "i8", "?"))}
_INDEX, _MASK = np.dtype("i8"), np.dtype("?")
_NO_ROWS = {dtype: x.reshape(0, 0) for dtype, x in _NONE.items()}

#: Where rows begin in what is given and in the results, and which share of all rows they are of.
_Places = tuple[int, int, int]
_Columns = tuple[Array, Array, Array]

#: What a program is given by name: numbers of rows or classes, or what is the same for all.
Given = Mapping[str, Any]


@cache
def _read_as(dtype: Any) -> Any:
    """The dtype that the kernel reads a dtype as; None: it cannot."""
    name = _READ_AS.get(dtype.name) if dtype.isnative else None
    return None if name is None else np.dtype(name)


class Kernels(NamedTuple):
    """The kernel as it serves host memory."""

    threads: Callable[[], int]  # how many may share the rows of a call

    @property
    def compiler(self) -> str:
        """What compiled it."""
        return "numba"

    def serves(self, x: Array, axis: int = -1) -> bool:
        """Whether the kernel can read an array, of classes along an axis, in not too many parts."""
        if _read_as(x.dtype) is None or not x.flags.aligned:
            return False
        return in_few_parts(x.shape, axis)

    def within(self, index: Array, length: int) -> bool:
        """Whether every index is in [0, length)."""
        return bool(_call(_rows.within, _line(index, _INDEX), length))

    def serial(self) -> Kernels:
        """The same on the thread that calls."""
        return _SERIAL

    def row_stats(
        self,
        z: Array,
        index: Array,
        weight: Array | float | None,
        scale: float,
        dtype: Any,
        *,
        argmax: bool,
    ) -> RowStats:
        """Read rows of logits; see `_kernels.Kernels`."""
        if isinstance(weight, float):
            weight = np.full(z.shape[-1], weight, dtype)
        program = _stats_program(dtype.name, scale, falls=weight is not None, argmax=argmax)
        found = self.run(program, z, z, {"index": index, "weight": weight})
        top, rest, picked, *more = (x.reshape(index.shape) for x in found)
        fall = None if weight is None else more.pop(0)
        return RowStats(top, rest, picked, fall, more.pop() if argmax else None)

    def row_grad(
        self,
        z: Array,
        into: Array,
        scale: float,
        *,
        top: Array,
        pull: Array,
        even: Array | float | None,
        weight: Array | None,
        index: Array,
        chosen: Array,
        kept: Array | None,
    ) -> None:
        """Write the gradients of rows; see `_kernels.Kernels`."""
        given = {"top": top, "pull": pull, "chosen": chosen, "index": index}
        if kept is not None:
            given["where"] = np.broadcast_to(kept, top.shape)
        if even is not None:
            given["even"] = np.broadcast_to(np.asarray(even, top.dtype), top.shape)
            if weight is not None:
                given["weight"] = weight
        self.run(_grad_program(top.dtype.name, scale, frozenset(given)), z, into, given)

    def run(self, program: Program, z: Array, into: Array, given: Given) -> list[Array]:
        """Run a program on rows, their gradients going `into` memory.

        Its results have one axis, of all rows, or none.
        """
        rows, classes = math.prod(z.shape[:-1]), z.shape[-1]
        most = _rows_of_a_share(rows, classes * z.itemsize)
        kernel, *how = _how(program, z, into)
        memory = _memory(program, rows, classes, most, given)

        def work(part: Array, to: Array, places: _Places, one: Array, columns: _Columns) -> None:
            _call(kernel, *_seen(part), *_seen(to), *how, *places, one, *columns, *memory)

        if rows <= most and z.ndim == 2:  # small calls come here
            work(z, into, (0, 0, 0), program.segments, _columns(program, given))
        else:
            self._run_shares(program, (z, into), given, most, work)
        made = memory[-3:]
        found = [made[kind][place, ...] for kind, place in program.results]
        # What is dropped is not to be kept by what is not.
        return found if len(found) < 2 else [x.copy() if x.ndim else x for x in found]

    def _run_shares(
        self,
        program: Program,
        arrays: tuple[Array, Array],
        given: Given,
        most: int,
        work: Callable[..., None],
    ) -> None:
        """Run a program segment by segment, threads taking shares of the rows."""
        names = ("index", "where", *program.reals)
        z, flat = arrays[0], {name: given[name].reshape(-1) for name in names if name in given}

        def do(one: Array, dealt: tuple[int, list[tuple[Array, Array, int]]]) -> None:
            share, parts = dealt
            start, stop = parts[0][-1], parts[-1][-1] + len(parts[-1][0])
            columns = _columns(program, {name: x[start:stop] for name, x in flat.items()})
            for part, to, at in parts:
                work(part, to, (at - start, at, share), one, columns)

        nothing = np.empty((0, z.shape[-1]), z.dtype)
        for segment in range(len(program.segments)):
            one = program.segments[segment : segment + 1]
            if one["extent"][0] != OF_ROWS:
                do(one, (0, [(nothing, nothing, 0)]))
            elif z.size:
                shares = enumerate(_dealt(_runs(arrays), most))
                for_each(partial(do, one), shares, self.threads())


_SERIAL = Kernels(lambda: 1)


# --- what the kernel takes, in this order: rows, how to read them, a segment, columns, memory


def _rows_of_a_share(rows: int, row_bytes: int) -> int:
    """How many rows are worth a thread's while; not depending on how many threads there are."""
    size = rows * (row_bytes + _ROW_BYTES)
    if size < 2 * _SHARE_BYTES:
        return max(1, min(rows, _SHARE_ROWS))
    shares = min(size // _SHARE_BYTES, _SHARES + size // (_SHARES * _SHARE_BYTES))
    return min(-(-rows // shares), _SHARE_ROWS)


def _how(program: Program, z: Array, into: Array) -> tuple[Any, ...]:
    """Which kernel reads rows, and how: how many at a time, whether it leaves exponentials."""
    if not _along_classes(z, into):
        return _rows.across, LANES, False, False, program.scale
    some = max(1, min(LANES, _STEP_BYTES // (z.shape[-1] * z.itemsize)))
    leaves = program.writes and program.looks and _leaves(z, into, program.numbers.dtype)
    return _rows.along, some, leaves, z.nbytes > _FAR_BYTES, program.scale


def _columns(program: Program, given: Given) -> _Columns:
    """The numbers of rows that a program is given: indices, a mask, and all real ones."""
    dtype, reals = program.numbers.dtype, program.reals
    index = _line(given["index"], _INDEX) if "index" in given else _NONE[_INDEX]
    mask = _line(given["where"], _MASK) if program.masked else _NONE[_MASK]
    if not reals:
        return index, mask, _NO_ROWS[dtype]
    every = np.empty((len(reals), given[reals[0]].size), dtype)
    with np.errstate(all="ignore"):
        for to, name in zip(every, reals, strict=True):
            to[:] = given[name].reshape(-1)
    return index, mask, every


def _memory(program: Program, rows: int, classes: int, most: int, given: Given) -> tuple[Any, ...]:
    """What all shares of the rows have in common; the results are last."""
    dtype, numbers, weight = program.numbers.dtype, program.numbers, given.get("weight")
    if program.ones:
        numbers = numbers.copy()
        for name, place in program.ones:
            numbers[place] = given[name]
    reals, wholes, finals = program.counts
    return (
        program.code,
        numbers,
        program.whole_numbers,
        program.registers,
        _NONE[dtype] if weight is None else _line(weight, dtype),
        np.empty((program.vectors, classes), dtype) if program.vectors else _NO_ROWS[dtype],
        np.zeros((-(-rows // most) or 1, 2 * program.sums)),
        np.empty((reals, rows), dtype) if reals else _NO_ROWS[dtype],
        np.empty((wholes, rows), _INDEX) if wholes else _NO_ROWS[_INDEX],
        np.empty(finals, dtype),
    )


# --- the primitives as programs


@cache
def _stats_program(dtype: str, scale: float, *, falls: bool, argmax: bool) -> Program:
    steps = Steps(dtype)
    index = steps.given("index", WHOLE, ROWS)
    weight = steps.given("weight", REAL, CLASSES) if falls else None
    found = steps.row_stats(None, index, weight, scale, dtype, argmax=argmax)
    return steps.program([x for x in found if x is not None])


@cache
def _grad_program(dtype: str, scale: float, names: frozenset[str]) -> Program:
    steps = Steps(dtype)
    steps.row_grad(
        None,
        None,
        scale,
        top=steps.given("top", REAL, ROWS),
        pull=steps.given("pull", REAL, ROWS),
        even=steps.given("even", REAL, ROWS) if "even" in names else None,
        weight=steps.given("weight", REAL, CLASSES) if "weight" in names else None,
        index=steps.given("index", WHOLE, ROWS),
        chosen=steps.given("chosen", REAL, ROWS),
        kept=steps.given("where", TRUTH, ROWS) if "where" in names else None,
    )
    return steps.program([])


def _leaves(z: Array, into: Array, dtype: Any) -> bool:
    """Whether exponentials along rows can be left, as they are, where the gradient goes."""
    return bool(into.dtype == dtype) and not np.may_share_memory(z, into)


def _call(kernel: Any, *args: Any) -> Any:
    try:
        return kernel(*args)
    except OSError:  # it was compiled, and could not be kept on disk
        return kernel(*args)


def _seen(x: Array) -> tuple[Any, ...]:
    """Memory as kernels take it: one compilation serves every layout, read-only or not."""
    origin = x[:1, 0]
    if not origin.flags.writeable:
        origin = np.asarray(_Alias(origin))
    if x.itemsize == 2:
        origin = origin.view(_read_as(x.dtype))
    return origin, *x.shape, *x.strides


class _Alias:
    """Memory that NumPy is told may be written to: what is compiled for it serves all."""

    def __init__(self, x: Array) -> None:
        whole = x.__array_interface__
        self.x = x
        self.__array_interface__ = {**whole, "data": (whole["data"][0], False)}


def _line(x: Array, dtype: Any) -> Array:
    """Numbers in a row, writable: for a read-only array the kernel would be compiled anew."""
    x = x.reshape(-1)
    if x.dtype != dtype:
        with np.errstate(all="ignore"):
            return x.astype(dtype)
    flags = x.flags
    return x if flags.c_contiguous and flags.writeable else x.copy()


def _along_classes(*arrays: Array) -> bool:
    if arrays[0].shape[-1] < _MANY:
        return False
    return all(x.strides[-1] == x.itemsize for x in arrays)


def _runs(arrays: tuple[Array, ...]) -> Iterator[tuple[Any, ...]]:
    """Rows of any shape as views of two axes, and which of all rows is the first of these."""
    before = 0
    for part in _flat(arrays):
        yield *part, before
        before += part[0].shape[0]


def _dealt(parts: Iterable[tuple[Any, ...]], most: int) -> Iterator[list[tuple[Any, ...]]]:
    """Parts of arrays of rows in shares of so many rows, cut where they have more."""
    share, room = [], most
    for *arrays, before in parts:
        length, start = arrays[0].shape[0], 0
        while start < length:
            end = min(start + room, length)
            share.append((*(x[start:end] for x in arrays), before + start))
            start, room = end, room - (end - start)
            if room == 0:
                yield share
                share, room = [], most
    if share:
        yield share


def _flat(arrays: tuple[Array, ...]) -> Iterator[tuple[Array, ...]]:
    try:
        yield tuple(x.reshape((-1, x.shape[-1]), copy=False) for x in arrays)
    except ValueError:  # rows that one stride does not reach
        for part in zip(*arrays, strict=True):
            yield from _flat(part)
