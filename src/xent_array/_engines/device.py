"""A GPU whose rows kernels read: all else that the loss does there, in a few launches as well.

The loss is evaluated once on a ledger (`_kernels.columns`), which notes what is launched and on
what. Calls like it, of other arrays of the same dtypes and layouts, launch the same again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from xent_array import _evaluate
from xent_array._backends import Memory, Standard, dtype_name
from xent_array._batch import Arrays, Batch, apart, arrays_of, laid_out, with_arrays
from xent_array._evaluate import Kept, Result
from xent_array._kernels import RowStats
from xent_array._kernels.columns import CLASSES, ONE, ROWS, Column, Flat, Ledger
from xent_array._kernels.cuda import Kernels, Rows, fused, launches_of
from xent_array._kernels.launches import Cell, Launch
from xent_array._namespace import Array
from xent_array._rows import classes_last
from xent_array._rowwise import Stats


def serves(batch: Batch) -> bool:
    """Whether a batch is read by the kernels of a GPU."""
    return batch.memory == "device" and isinstance(batch.kernels, Kernels)


def value(batch: Batch) -> Result:
    """Evaluate the loss, and statistics where the options ask for them."""
    loss, *stats = _run(_value, batch)
    return Result(loss, None, Stats(*stats) if stats else None)


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits."""
    out = _room(batch)
    loss, *stats = _run(_value_and_grad, batch, out=out)
    return Result(loss, out, Stats(*stats) if stats else None)


def value_to_differentiate(batch: Batch) -> tuple[Result, Kept]:
    """Evaluate the loss, and keep of each row what `grad_of_kept` needs."""
    loss, divisor, *seen = _run(_value_to_differentiate, batch)
    return Result(loss, None, None), Kept(seen, divisor)


def grad_of_kept(batch: Batch, kept: Kept) -> Array:
    """The derivatives by the logits of a loss that was evaluated before."""
    out = _room(batch)
    _run(_grad_of_kept, batch, kept, out=out)
    return out


def _room(batch: Batch) -> Array:
    return batch.backend.room(batch.logits.shape, batch.logits) if batch.out is None else batch.out


# --- what is evaluated on a ledger; the results are one after the other

Results = list[Any]


def _value(batch: Batch, _: Kept | None) -> Results:
    result = _evaluate.value(batch)
    return [result.loss, *(result.stats or ())]


def _value_and_grad(batch: Batch, _: Kept | None) -> Results:
    result = _evaluate.value_and_grad(batch)
    return [result.loss, *(result.stats or ())]


def _value_to_differentiate(batch: Batch, _: Kept | None) -> Results:
    result, kept = _evaluate.value_to_differentiate(batch)
    return [result.loss, kept.divisor, *kept.seen]


def _grad_of_kept(batch: Batch, kept: Kept | None) -> Results:
    assert kept is not None
    _evaluate.grad_of_kept(batch, kept)
    return []


Work = Callable[[Batch, Kept | None], Results]


# --- columns in the place of arrays


class _Words:
    """What the loss says to columns, in the words of the Array API standard."""

    __name__ = "xent_array.columns"
    nan, inf = math.nan, math.inf
    bool, int64, float32, float64 = "bool", "int64", "float32", "float64"

    def where(self, condition: Column, a: Any, b: Any) -> Column:
        return condition.ledger.where(condition, a, b)

    def exp(self, x: Column) -> Column:
        return x.ledger.real("exp", x)

    def log1p(self, x: Column) -> Column:
        return x.ledger.real("log1p", x)

    def isfinite(self, x: Column) -> Column:
        return x.ledger.noted("finite", (x,), "truth")

    def ones_like(self, x: Column) -> float:
        return 1.0

    def zeros_like(self, x: Column) -> float:
        return 0.0

    def broadcast_to(self, x: Column, shape: tuple[int, ...]) -> Column:
        return x


class _Finished(NamedTuple):
    """A result: a column as the caller gets it."""

    column: Column
    dtype: str
    flat: bool  # without the class axis


class _Columns(Standard):
    """The backend of columns."""

    def memory(self, x: Array) -> Memory:
        return "device"

    def index_dtype(self, x: Array) -> Any:
        return "int64"

    def itemsize(self, dtype: Any) -> int:
        return 8

    def cast(self, x: Column, dtype: Any) -> Column:
        return x.ledger.converted(x, dtype)

    def take(self, x: Column, index: Column) -> Column:
        return x.ledger.take(x, index)

    def total(self, x: Column) -> Column:
        return x.ledger.total(x)

    row_sum = count = total

    def finalize(self, x: Column | Flat, dtype: Any) -> Any:
        if isinstance(x, Flat):
            return _Finished(x.column, dtype, flat=True)
        return _Finished(x, dtype, flat=False)


_COLUMNS = _Columns(_Words())


class _Logits(NamedTuple):
    """Logits, or their gradient: rows that kernels alone look at."""

    rows: Rows
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.rows.start.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, block: Any) -> _Logits:  # type: ignore[override]
        return self


class _Looked(NamedTuple):
    """A look at rows that was noted: its parameters, and what was launched until then."""

    z: _Logits
    factors: tuple[float, float]
    weights: Cell | None
    columns: tuple[Cell | None, ...]
    seen: tuple[Column | None, ...]  # what the kernel knows of a row, in this order
    launches: int


class _Noted:
    """Kernels whose launches are noted in a ledger."""

    compiler = Kernels.compiler

    def __init__(self, ledger: Ledger, *, fuses: bool) -> None:
        self._ledger, self._fuses = ledger, fuses
        self._looked: _Looked | None = None

    def row_stats(
        self,
        z: _Logits,
        index: Column,
        weight: Column | float | None,
        scale: float,
        dtype: str,
        *,
        place: bool,
    ) -> RowStats:
        ledger = self._ledger
        vectors = [(weight, CLASSES)] if isinstance(weight, Column) else []
        where, *weights = ledger.settle([(index, ROWS), *vectors])
        top, rest, picked = (ledger.fresh(dtype) for _ in range(3))
        even = None if weight is None else ledger.fresh(dtype)
        at = ledger.fresh("int64") if place else None
        columns = (where, *(None if x is None else x.cell for x in (top, rest, picked, even, at)))
        factors = (scale, weight if isinstance(weight, float) else 0.0)
        vector = weights[0] if weights else None
        seen = (top, rest, picked, even)
        self._looked = _Looked(z, factors, vector, columns, seen, len(ledger.launches))
        ledger.launches += launches_of("stats", z.shape, (z.rows,), factors, (vector,), columns)
        return RowStats(top, rest, picked, even, at)

    def row_grad(
        self,
        z: _Logits,
        into: _Logits,
        scale: float,
        *,
        top: Column,
        pull: Column,
        even: Column | float | None,
        weight: Column | None,
        index: Column,
        chosen: Column,
        kept: Column | None,
    ) -> None:
        ledger, vector = self._ledger, None
        if weight is not None and even is not None:
            (vector,) = ledger.settle([(weight, CLASSES)])
        owed = even if isinstance(even, float) else 0.0
        named = {"pull": pull, "owed": even, "chosen": chosen, "kept": kept}
        numbers = {name: x for name, x in named.items() if isinstance(x, Column)}
        if self._fused(z, into, owed, vector, numbers):
            return
        numbers |= {"top": top, "index": index}
        settled = ledger.settle([(x, ROWS) for x in numbers.values()])
        cells = dict(zip(numbers, settled, strict=True))
        columns = [cells.get(name) for name in ("top", "pull", "owed", "index", "chosen", "kept")]
        ledger.launches += launches_of(
            "grad", z.shape, (z.rows, into.rows), (scale, owed), (vector,), columns
        )

    def _fused(
        self,
        z: _Logits,
        into: _Logits,
        owed: float,
        vector: Cell | None,
        numbers: dict[str, Column],
    ) -> bool:
        """Have the look at the rows write their gradient as well, if it was the last launch."""
        ledger, looked = self._ledger, self._looked
        if not self._fuses or looked is None or looked.launches != len(ledger.launches) - 1:
            return False
        given = {f"seen[{k}]": x for k, x in enumerate(looked.seen) if x is not None}
        steps = ledger.steps(numbers, given)
        if steps is None:
            return False
        factors, vectors = (*looked.factors, owed), (looked.weights, vector)
        rows = (z.rows, into.rows)
        one = fused(z.shape, rows, factors, vectors, looked.columns, steps)
        if one is not None:
            ledger.launches[-1] = one
        return one is not None


# --- what was noted, launched


class _Output(NamedTuple):
    """A result that is an array: of which shape and dtype."""

    shape: tuple[int, ...]
    dtype: Any


class _Program(NamedTuple):
    """The launches of a call, and what they read and write.

    Pieces of memory are the scratch, the logits, their gradient, then each array that is read and
    each that is a result.
    """

    launches: list[Launch]
    scratch: int
    shapes: list[tuple[int, ...] | None]  # those that arrays are given; None: left as they are
    results: list[Any]  # outputs, or a number or None in their place


class _Signature(NamedTuple):
    """All that a program follows from."""

    work: Work
    batch: Batch  # without its arrays
    arrays: tuple[Any, ...]  # their dtypes, or what is in their place
    logits: tuple[Any, ...]  # dtype and steps
    into: tuple[int, ...] | None
    one_upstream: bool  # for all rows
    fuses: bool  # whether the device can read rows and write their gradients at once


#: How many programs are kept, at most.
PROGRAMS = 256

_programs: dict[_Signature, _Program] = {}

#: What a batch and what was kept have one number of; rows are the others.
_EXTENTS = {"weight": CLASSES, "smoothing": ONE, "denominator": ONE, "divisor": ONE}

_NAMES = (*Arrays._fields[1:], "top", "rest", "mass", "picked", "divisor")


def _run(work: Work, batch: Batch, kept: Kept | None = None, out: Array | None = None) -> list[Any]:
    """Do some work on a batch, by the program of the calls that are like it."""
    kernels = batch.kernels
    assert isinstance(kernels, Kernels)
    producer = kernels.producer
    into = None if out is None else classes_last(batch.backend, out, batch.axis)
    batch = laid_out(batch)
    logits, kind = batch.logits, producer.ARRAY
    alike = batch._replace(axis=logits.ndim - 1, out=None, kernels=None)
    template, (_, *arrays) = apart(alike, kind)
    if kept is not None:
        arrays += (*kept.seen, kept.divisor)
    upstream = batch.grad_output
    signature = _Signature(
        work,
        template,
        tuple([x.dtype if isinstance(x, kind) else x for x in arrays]),
        (logits.dtype, producer.steps(logits)),
        None if into is None else producer.steps(into),
        upstream is not None and not any(producer.steps(upstream)),
        kernels.fuses(logits),
    )
    program = _programs.get(signature)
    if program is None:
        if len(_programs) >= PROGRAMS:
            _programs.clear()
        program = _programs[signature] = _written(signature)
    read = [x for x in arrays if isinstance(x, kind)]
    with producer.current(logits) as stream:
        for k, shape in enumerate(program.shapes):
            if shape is not None:
                read[k] = producer.line(read[k], shape)
        scratch = producer.scratch(program.scratch, logits)
        results = [
            producer.empty(x.shape, x.dtype, logits) if isinstance(x, _Output) else x
            for x in program.results
        ]
        made = [x for x in results if isinstance(x, kind)]
        pieces = (scratch, logits, logits if into is None else into, *read, *made)
        memory = [producer.address(x) for x in pieces]
        kernels.launch(logits, stream, program.launches, memory)
    return results


def _written(signature: _Signature) -> _Program:
    """Evaluate a batch of columns, and write down what that takes."""
    batch, shape = signature.batch, signature.batch.shape
    dtype, result_dtype = dtype_name(batch.compute_dtype), dtype_name(batch.result_dtype)
    ledger = Ledger(dtype, {ROWS: math.prod(shape), CLASSES: batch.classes})
    rows = [
        _Logits(
            Rows(Cell(ledger.memory(), dtype_name(signature.logits[0])), steps),
            (*shape, batch.classes),
        )
        for steps in (signature.logits[1], signature.into or ())
    ]
    shapes: list[tuple[int, ...] | None] = []
    columns: list[Any] = []
    for name, given in zip(_NAMES, signature.arrays, strict=False):
        extent = _EXTENTS.get(name, ROWS)
        if name == "grad_output" and signature.one_upstream:
            extent = ONE
        if given is None or isinstance(given, float):
            columns.append(given)
            continue
        columns.append(ledger.given(ledger.memory(), dtype_name(given), extent))
        shapes.append({ROWS: (*shape, 1), CLASSES: (batch.classes,), ONE: None}[extent])
    kept = None
    if len(columns) > len(Arrays._fields) - 1:
        *columns, top, rest, mass, picked, divisor = columns
        kept = Kept((top, rest, mass, picked), divisor)
    numbers = arrays_of(batch)
    given_arrays = Arrays(
        rows[0],
        *[own if x is None else x for x, own in zip(columns, numbers[1:], strict=True)],
    )
    library = (_COLUMNS, dtype, result_dtype, False)
    noted = with_arrays(batch, given_arrays, library, _Noted(ledger, fuses=signature.fuses))
    noted = noted._replace(out=None if signature.into is None else rows[1])
    dtypes = {dtype: batch.compute_dtype, result_dtype: batch.result_dtype}
    dtypes |= {"int64": batch.backend.xp.int64, "bool": batch.backend.xp.bool}
    results, cells = [], []
    for x in signature.work(noted, kept):
        if isinstance(x, _Finished | Column):
            column, name, flat = x if isinstance(x, _Finished) else (x, x.dtype, False)
            cells.append((column, Cell(ledger.memory(), name)))
            ending = () if flat else (1,)
            of_rows = (*shape, *ending) if column.extent == ROWS else ()
            results.append(_Output(of_rows, dtypes[name]))
        else:
            results.append(x)
    ledger.finish(cells)
    return _Program(ledger.launches, max(ledger.scratch, 16), shapes, results)
