"""Host memory: programs that read rows and write their gradients, among them the two primitives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from xent_array._kernels import RowStats, Soft, SoftStats, _rows
from xent_array._kernels._lanes import LANES
from xent_array._kernels._machine import ROWS as OF_ROWS
from xent_array._kernels.columns import CLASSES, REAL, ROWS, TRUTH, WHOLE
from xent_array._kernels.layouts import (
    Places,
    Rows,
    Share,
    Work,
    along_classes,
    can_be_copied,
    count_rows,
    dealt,
    lie_well,
    memory_of,
    on_copies,
    pieces,
    read_as,
    room_for,
    strided,
)
from xent_array._kernels.steps import Program, Steps
from xent_array._namespace import Array
from xent_array._threads import for_each

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

_Columns = tuple[Array, Array, Array]

#: What a program is given by name: numbers of rows or classes, or what is the same for all.
Given = Mapping[str, Any]


class Kernels(NamedTuple):
    """The kernel as it serves host memory."""

    threads: Callable[[], int]  # how many may share the rows of a call

    @property
    def compiler(self) -> str:
        """What compiled it."""
        return "numba"

    def serves(self, x: Array) -> bool:
        """Whether the kernel can read an array."""
        return read_as(x.dtype) is not None and bool(x.flags.aligned)

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
        logarithm: bool = False,
    ) -> None:
        """Write the gradients of rows; see `_kernels.Kernels`."""
        given = {"top": top, "pull": pull, "chosen": chosen, "index": index}
        if kept is not None:
            given["where"] = np.broadcast_to(kept, top.shape)
        if even is not None:
            given["even"] = np.broadcast_to(np.asarray(even, top.dtype), top.shape)
            if weight is not None:
                given["weight"] = weight
        program = _grad_program(top.dtype.name, scale, frozenset(given), logarithm=logarithm)
        self.run(program, z, into, given)

    def suits(self, axis: int, z: Array, into: Array | None, p: Array | None) -> bool:
        """Whether rows of such arrays are read well; see `_kernels.Kernels`."""
        if p is not None and not (
            self.serves(p) and (p.dtype.itemsize > 4) == (z.dtype.itemsize > 4)
        ):
            return False
        if can_be_copied(z, axis):
            return True
        return lie_well(*(np.moveaxis(x, axis, -1) for x in (z, into, p) if x is not None))

    def soft_stats(
        self, z: Array, soft: Soft, scale: float, dtype: Any, *, argmax: bool
    ) -> SoftStats:
        """Read rows of logits and of probabilities; see `_kernels.Kernels`."""
        given = _of_classes(soft, z.shape[-1], dtype)
        program = _soft_stats_program(dtype.name, scale, scaled=bool(given), argmax=argmax)
        found = [x.reshape((*z.shape[:-1], 1)) for x in self.run(program, z, z, given, soft.p)]
        return SoftStats(*found, *([] if argmax else [None, None]))

    def soft_grad(
        self,
        z: Array,
        into: Array,
        soft: Soft,
        scale: float,
        *,
        top: Array,
        rest: Array,
        total: Array,
        factor: Array | float,
        kept: Array | None,
    ) -> None:
        """Write the gradients of rows; see `_kernels.Kernels`."""
        of_classes = _of_classes(soft, z.shape[-1], top.dtype)
        given = {"top": top, "rest": rest, "total": np.broadcast_to(total, top.shape)}
        given["factor"] = np.broadcast_to(np.asarray(factor, top.dtype), top.shape)
        if kept is not None:
            given["where"] = np.broadcast_to(kept, top.shape)
        scaled, keeps = bool(of_classes), kept is not None
        program = _soft_grad_program(top.dtype.name, scale, scaled=scaled, kept=keeps)
        self.run(program, z, into, {**given, **of_classes}, soft.p)

    def run(
        self, program: Program, z: Array, into: Array, given: Given, p: Array | None = None
    ) -> list[Array]:
        """Run a program on rows, their gradients going `into` memory; `p`, if it is a soft one.

        Its results have one axis, of all rows, or none.
        """
        arrays = z, into, z if p is None else p
        rows, classes = count_rows(z), z.shape[-1]
        most = _rows_of_a_share(rows, classes * z.itemsize)
        copied = not lie_well(*arrays)
        like = (room_for((1, classes), z.dtype),) * 3 if copied else arrays
        kernel, *how = _how(program, *like)
        memory = _memory(program, rows, classes, most, given)

        def work(part: Rows, places: Places, some: Array, columns: _Columns) -> None:
            _call(kernel, *_memory_of(part), *how, *places, some, *columns, *memory)

        on_rows, at_once = (on_copies(work), _rows_of_a_step(z)) if copied else (work, most)
        if z.ndim == 2 and rows <= min(most, at_once):  # small calls come here
            on_rows(arrays, (0, 0, 0), program.segments, _columns(program, given))
        else:
            parts = pieces(arrays, min(most, at_once)) if copied else strided(arrays)
            shares = [*dealt(parts, most, cut=not copied)]
            nothing = (np.empty((0, classes), z.dtype),) * 3
            once = partial(work, nothing, (0, 0, 0))
            self._run_shares(program, shares, given, on_rows, once)
        made = memory[-3:]
        found = [made[kind][place, ...] for kind, place in program.results]
        # What is dropped is not to be kept by what is not.
        return found if len(found) < 2 else [x.copy() if x.ndim else x for x in found]

    def _run_shares(
        self,
        program: Program,
        shares: list[Share],
        given: Given,
        on_rows: Work,
        once: Callable[[Array, _Columns], None],
    ) -> None:
        """Run a program segment by segment, threads taking shares of the rows."""
        names = ("index", "where", *program.reals)
        flat = {name: given[name].reshape(-1) for name in names if name in given}

        def do(one: Array, dealt: tuple[int, Share]) -> None:
            share, parts = dealt
            start, stop = parts[0][-1], parts[-1][-1] + count_rows(parts[-1][0][0])
            columns = _columns(program, {name: x[start:stop] for name, x in flat.items()})
            for part, at in parts:
                on_rows(part, (at - start, at, share), one, columns)

        for segment in range(len(program.segments)):
            one = program.segments[segment : segment + 1]
            if one["extent"][0] == OF_ROWS:
                for_each(partial(do, one), enumerate(shares), self.threads())
            else:
                columns = _columns(program, {name: x[:0] for name, x in flat.items()})
                once(one, columns)


_SERIAL = Kernels(lambda: 1)


# --- what the kernel takes, in this order: rows, how to read them, a segment, columns, memory


def _rows_of_a_share(rows: int, row_bytes: int) -> int:
    """How many rows are worth a thread's while; not depending on how many threads there are."""
    size = rows * (row_bytes + _ROW_BYTES)
    if size < 2 * _SHARE_BYTES:
        return max(1, min(rows, _SHARE_ROWS))
    shares = min(size // _SHARE_BYTES, _SHARES + size // (_SHARES * _SHARE_BYTES))
    return min(-(-rows // shares), _SHARE_ROWS)


def _rows_of_a_step(z: Array) -> int:
    """How many rows are worked on before their gradients are written."""
    return max(1, int(_STEP_BYTES // (z.shape[-1] * z.itemsize)))


def _how(program: Program, z: Array, into: Array, p: Array) -> tuple[Any, ...]:
    """Which kernel reads rows, and how: how many at a time, whether it leaves exponentials."""
    along = along_classes(z, into, p)
    kernel = _rows.RUN[along, program.soft]
    if not along:
        return kernel, LANES, False, False, program.scale
    some = min(LANES, _rows_of_a_step(z))
    leaves = program.leaves and _leaves(z, into, program.numbers.dtype)
    return kernel, some, leaves, z.nbytes > _FAR_BYTES, program.scale


def _memory_of(rows: Rows) -> tuple[Any, ...]:
    """Rows as kernels take them."""
    z, into, p = rows
    memory = memory_of(z)
    return (
        *memory,
        *(memory if into is z else memory_of(into)),
        *(memory if p is z else memory_of(p)),
    )


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
    dtype, numbers = program.numbers.dtype, program.numbers
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
        _of_names(program.weights, given, dtype),
        np.empty((program.vectors, classes), dtype) if program.vectors else _NO_ROWS[dtype],
        np.zeros((-(-rows // most) or 1, 2 * program.sums)),
        np.empty((reals, rows), dtype) if reals else _NO_ROWS[dtype],
        np.empty((wholes, rows), _INDEX) if wholes else _NO_ROWS[_INDEX],
        np.empty(finals, dtype),
    )


def _of_names(names: list[str], given: Given, dtype: Any) -> Array:
    """What there is of classes, by name."""
    if not names:
        return _NO_ROWS[dtype]
    lines = [_line(given[name], dtype)[None, :] for name in names]
    return lines[0] if len(lines) == 1 else np.concatenate(lines)


# --- the primitives as programs


@cache
def _stats_program(dtype: str, scale: float, *, falls: bool, argmax: bool) -> Program:
    steps = Steps(dtype)
    index = steps.given("index", WHOLE, ROWS)
    weight = steps.given("weight", REAL, CLASSES) if falls else None
    found = steps.row_stats(None, index, weight, scale, dtype, argmax=argmax)
    return steps.program([x for x in found if x is not None])


@cache
def _grad_program(dtype: str, scale: float, names: frozenset[str], *, logarithm: bool) -> Program:
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
        logarithm=logarithm,
    )
    return steps.program([])


def _of_classes(soft: Soft, classes: int, dtype: Any) -> dict[str, Array]:
    """What a program is given of each class."""
    if soft.times is None:
        return {}
    pairs = zip(("times", "plus"), soft[1:], strict=True)
    return {name: np.broadcast_to(np.asarray(x, dtype), (classes,)) for name, x in pairs}


def _soft_columns(steps: Steps, *, scaled: bool) -> Soft:
    names = ("times", "plus")
    vectors = [steps.given(name, REAL, CLASSES) if scaled else None for name in names]
    return Soft(None, *vectors)


@cache
def _soft_stats_program(dtype: str, scale: float, *, scaled: bool, argmax: bool) -> Program:
    steps = Steps(dtype)
    soft = _soft_columns(steps, scaled=scaled)
    found = steps.soft_stats(None, soft, scale, dtype, argmax=argmax)
    return steps.program([x for x in found if x is not None])


@cache
def _soft_grad_program(dtype: str, scale: float, *, scaled: bool, kept: bool) -> Program:
    steps = Steps(dtype)
    columns = {name: steps.given(name, REAL, ROWS) for name in ("top", "rest", "total", "factor")}
    where = steps.given("where", TRUTH, ROWS) if kept else None
    soft = _soft_columns(steps, scaled=scaled)
    steps.soft_grad(None, None, soft, scale, **columns, kept=where)
    return steps.program([])


def _leaves(z: Array, into: Array, dtype: Any) -> bool:
    """Whether exponentials along rows can be left, as they are, where the gradient goes."""
    return bool(into.dtype == dtype) and not np.may_share_memory(z, into)


def _call(kernel: Any, *args: Any) -> Any:
    try:
        return kernel(*args)
    except OSError:  # it was compiled, and could not be kept on disk
        return kernel(*args)


def _line(x: Array, dtype: Any) -> Array:
    """Numbers in a row, writable: for a read-only array the kernel would be compiled anew."""
    x = x.reshape(-1)
    if x.dtype != dtype:
        with np.errstate(all="ignore"):
            return x.astype(dtype)
    flags = x.flags
    return x if flags.c_contiguous and flags.writeable else x.copy()
