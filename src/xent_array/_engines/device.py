"""A GPU whose rows kernels read: all else that the loss does there, in a few launches as well.

The loss is evaluated once on a ledger (`_kernels.columns`), which notes what is launched and on
what. Calls like it, of other arrays of the same dtypes and layouts, launch the same again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from xent_array import _gradient
from xent_array._batch import Batch, apart, laid_out
from xent_array._engines._noting import (
    COLUMNS,
    Finished,
    Logits,
    Results,
    Work,
    evaluations,
    own_dtypes,
    planned,
    results_on_columns,
)
from xent_array._evaluate import Kept
from xent_array._kernels import RowStats
from xent_array._kernels.columns import CLASSES, ONE, ROWS, WHOLE, Column
from xent_array._kernels.cuda import (
    Given,
    Kernels,
    Rows,
    fused,
    is_one_launch,
    launches_of,
    number_apart,
)
from xent_array._kernels.cuda_columns import Launches
from xent_array._kernels.launches import Cell, Launch
from xent_array._namespace import Array, dtype_name
from xent_array._rows import classes_last

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
    shapes: list[tuple[int, ...] | None]  # those that arrays are given; None: one number for all
    results: list[Any]  # outputs, or a number or None in their place


class _Signature(NamedTuple):
    """All that a program follows from."""

    work: Work
    batch: Batch  # without its arrays
    arrays: tuple[Any, ...]  # their dtypes, or what is in their place
    logits: tuple[Any, ...]  # dtype and steps
    into: tuple[int, ...] | None  # steps
    one_upstream: bool  # for all rows
    keeps: int  # bytes of a row that a block can keep there


#: How many programs are kept, at most.
PROGRAMS = 256


def _run(work: Work, batch: Batch, kept: Kept | None, out: Array | None) -> Results:
    """Do some work on a batch, by the program of the calls that are like it."""
    kernels, rows = batch.kernels, (batch.logits, out)
    assert isinstance(kernels, Kernels)
    if batch.plans is None:
        return _launched(*_found(work, batch, kept, out), kernels, rows)
    program = planned(work, batch, lambda: _found(work, batch, kept, out)[0])
    given = [] if batch.target.array is None else [batch.target.array]
    return _launched(program, given, kernels, rows)


def _found(
    work: Work, batch: Batch, kept: Kept | None, out: Array | None
) -> tuple[_Program, list[Array]]:
    """The program of a call, and the arrays that it reads."""
    into = None if out is None else classes_last(batch.backend, out, batch.axis)
    signature, arrays = _signature(work, laid_out(batch), kept, into)
    return _written(signature), arrays


value, value_and_grad, probabilities, value_to_differentiate, grad_of_kept = evaluations(_run)


def _signature(
    work: Work, batch: Batch, kept: Kept | None, into: Array | None
) -> tuple[_Signature, list[Array]]:
    """What the program of a call follows from, and the arrays that it reads."""
    kernels, logits, upstream = batch.kernels, batch.logits, batch.grad_output
    assert isinstance(kernels, Kernels)
    steps = kernels.producer.steps
    kind: Any = kernels.producer.ARRAY
    alike = batch._replace(axis=logits.ndim - 1, out=None, kernels=None, plans=None)
    template, (_, *arrays) = apart(alike, kind)
    if kept is not None:
        arrays += (*kept.seen, kept.divisor)
    signature = _Signature(
        work,
        template,
        tuple([x.dtype if isinstance(x, kind) else x for x in arrays]),
        (logits.dtype, steps(logits)),
        None if into is None else steps(into),
        upstream is not None and _is_one(upstream.shape, steps(upstream)),
        kernels.keeps(logits),
    )
    return signature, [x for x in arrays if isinstance(x, kind)]


def _is_one(shape: tuple[int, ...], steps: tuple[int, ...]) -> bool:
    """Whether all entries of an array are the same one."""
    return not any(step for length, step in zip(shape, steps, strict=True) if length > 1)


def _launched(
    program: _Program, arrays: list[Array], kernels: Kernels, rows: tuple[Array, Array | None]
) -> Results:
    """Have the device run a program on arrays, and on logits and their gradient."""
    producer, (logits, into) = kernels.producer, rows
    with producer.current(logits) as stream:
        scratch = producer.scratch(program.scratch, logits) if program.scratch else logits
        held = [scratch, logits, logits if into is None else into]
        for x, shape in zip(arrays, program.shapes, strict=True):
            held.append(producer.plain(x) if shape is None else producer.line(x, shape))
        results = []
        for result in program.results:
            if type(result) is _Output:
                x = producer.empty(*result, logits)
                held.append(x)
                results.append(x)
            else:
                results.append(result)
        kernels.launch(logits, stream, program.launches, [producer.address(x) for x in held])
    return results


def times_upstream(kernels: Kernels, grad: Array, upstream: Array, dtype: Any) -> Array:
    """`_gradient.times_upstream`, rounded to a dtype, as one launch."""
    program = _times_upstream(tuple(grad.shape), dtype, grad.dtype, upstream.dtype)
    (product,) = _launched(program, [grad, upstream], kernels, (grad, None))
    return product


@functools.lru_cache(PROGRAMS)
def _times_upstream(shape: tuple[int, ...], dtype: Any, *given: Any) -> _Program:
    name, of_grad, of_upstream = map(dtype_name, (dtype, *given))
    ledger = Launches(of_grad, {ROWS: math.prod(shape)})
    for _ in range(2):  # logits and their gradient, which are not looked at
        ledger.memory()
    grad = ledger.given(ledger.memory(), of_grad, ROWS)
    upstream = ledger.given(ledger.memory(), of_upstream, ONE)
    product = _gradient.times_upstream(COLUMNS.xp, grad, upstream)
    ledger.finish([(product, Cell(ledger.memory(), name))])
    return _Program(ledger.launches, ledger.scratch, [shape, None], [_Output(shape, dtype)])


# --- a program, written


@functools.lru_cache(PROGRAMS)
def _written(signature: _Signature) -> _Program:
    """Evaluate a batch of columns, and write down what that takes."""
    batch = signature.batch
    rows, shape = math.prod(batch.shape), (*batch.shape, batch.classes)
    ledger = Launches(dtype_name(batch.compute_dtype), {ROWS: rows, CLASSES: batch.classes})
    shapes: list[tuple[int, ...] | None] = []

    def column(name: str, dtype: Any, extent: str) -> Column:
        if name == "grad_output" and signature.one_upstream:
            extent = ONE
        of_rows = batch.shape if name == "target" else (*batch.shape, 1)
        shapes.append({ROWS: of_rows, CLASSES: shape[-1:], ONE: None}[extent])
        return ledger.given(ledger.memory(), dtype_name(dtype), extent)

    dtype = dtype_name(signature.logits[0])
    logits, into = (
        Logits(dtype, shape, Rows(Cell(ledger.memory(), dtype), steps))
        for steps in (signature.logits[1], signature.into or ())
    )
    found = results_on_columns(
        signature.work,
        batch,
        signature.arrays,
        column=column,
        logits=logits,
        into=None if signature.into is None else into,
        kernels=Noted(ledger, keeps=signature.keeps),
    )
    results, cells, dtypes = [], [], own_dtypes(batch)
    for x in found:
        if isinstance(x, Finished):
            cells.append((x.column, Cell(ledger.memory(), x.dtype)))
            results.append(_Output(_shape(batch, x), dtypes[x.dtype]))
        else:
            results.append(x)
    ledger.finish(cells)
    return _Program(ledger.launches, ledger.scratch, shapes, results)


def _shape(batch: Batch, x: Finished) -> tuple[int, ...]:
    if x.column.extent != ROWS:
        return ()
    return batch.shape if x.flat else (*batch.shape, 1)


# --- kernels that note what they are asked for


class _Looked(NamedTuple):
    """A look at rows that was noted."""

    at: Column  # the index
    given: Given[Cell]
    seen: tuple[Column | None, ...]  # what the kernel knows of a row, in this order
    launches: int  # how many there were before


class Noted:
    """Kernels whose launches are noted in a ledger."""

    compiler = Kernels.compiler

    def __init__(self, ledger: Launches, *, keeps: int) -> None:
        self._ledger, self._keeps = ledger, keeps
        self._looked: _Looked | None = None

    def suits(self, _axis: int, _z: Any, _into: Any, _p: Any) -> bool:
        """Nothing is read while it is noted."""
        return True

    def serial(self) -> Noted:
        """The same: a GPU shares rows by itself."""
        return self

    def row_stats(
        self,
        z: Logits,
        index: Column | int,
        weight: Column | float | None,
        scale: float,
        dtype: str,
        *,
        argmax: bool,
    ) -> RowStats:
        ledger = self._ledger
        index = ledger.column(index, WHOLE)
        weights: Sequence[Cell | None] = (None,)
        if isinstance(weight, Column):
            if weight.extent == CLASSES:
                ledger.total(weight)  # is a part of every row's mass, and taken along here
            weights = ledger.settle([(weight, CLASSES)])
        ledger.add_up()  # what the gradient may have to know, if it is to be one look with this
        top, rest, picked = (ledger.fresh(dtype) for _ in range(3))
        fall = None if weight is None else ledger.fresh(dtype)
        at = ledger.fresh("int64") if argmax else None
        columns = [None if x is None else x.cell for x in (top, rest, picked, fall, at)]
        share, _ = number_apart(weight)
        given = Given((scale, share), weights, columns)
        steps = ledger.index_steps(index) if is_one_launch(z.shape, z.rows) else None
        if steps is None:
            columns += ledger.settle([(index, ROWS)])
        self._looked = _Looked(index, given, (top, rest, picked, fall), len(ledger.launches))
        ledger.launches += launches_of("stats", z.shape, (z.rows,), given, steps)
        return RowStats(top, rest, picked, fall, at)

    def row_grad(
        self,
        z: Logits,
        into: Logits,
        scale: float,
        *,
        top: Column,
        pull: Column,
        even: Column | float | None,
        weight: Column | None,
        index: Column | int,
        chosen: Column,
        kept: Column | None,
        logarithm: bool = False,
    ) -> None:
        ledger, vector = self._ledger, None
        if weight is not None and even is not None:
            (vector,) = ledger.settle([(weight, CLASSES)])
        common, even = number_apart(even)
        named = {"pull": pull, "even": even, "chosen": chosen, "kept": kept}
        numbers = {name: x for name, x in named.items() if isinstance(x, Column)}
        if self._fused(z, into, common, vector, numbers, logarithm=logarithm):
            return
        numbers |= {"top": top, "index": ledger.column(index, WHOLE)}
        settled = ledger.settle([(x, ROWS) for x in numbers.values()])
        cells = dict(zip(numbers, settled, strict=True))
        columns = [cells.get(name) for name in ("top", "pull", "even", "index", "chosen", "kept")]
        given = Given((scale, common), (vector,), columns, logarithm)
        ledger.launches += launches_of("grad", z.shape, (z.rows, into.rows), given)

    def _fused(
        self,
        z: Logits,
        into: Logits,
        common: float,
        vector: Cell | None,
        numbers: dict[str, Column],
        *,
        logarithm: bool,
    ) -> bool:
        """Have the look at the rows write their gradient as well, if it was the last launch."""
        ledger, looked = self._ledger, self._looked
        if looked is None or looked.launches != len(ledger.launches) - 1:
            return False
        given = {f"seen[{k}]": x for k, x in enumerate(looked.seen) if x is not None}
        steps = ledger.steps(looked.at, numbers, given)
        if steps is None:
            return False
        factors, weights, columns, _ = looked.given
        both = Given((*factors, common), (*weights, vector), columns[:5], logarithm)
        one = fused(z.shape, (z.rows, into.rows), both, steps, self._keeps)
        if one is not None:
            ledger.launches[-1] = one
        return one is not None
