"""A GPU whose rows kernels read: all else that the loss does there, in a few launches as well.

The loss is evaluated once on a ledger (`_kernels.columns`), which notes what is launched and on
what. Calls like it, of other arrays of the same dtypes and layouts, launch the same again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from xent_array import _evaluate
from xent_array._backends import dtype_name
from xent_array._batch import Arrays, Batch, apart, arrays_of, laid_out, with_arrays
from xent_array._engines._noting import COLUMNS, Finished, Logits, Noted
from xent_array._evaluate import Kept, Result, room_for_gradient
from xent_array._kernels.columns import CLASSES, ONE, ROWS, Column, Ledger
from xent_array._kernels.cuda import Kernels, Rows
from xent_array._kernels.launches import Cell, Launch
from xent_array._namespace import Array
from xent_array._rows import classes_last
from xent_array._rowwise import Stats


def value(batch: Batch) -> Result:
    """Evaluate the loss, and statistics where the options ask for them."""
    return _result(_run(_value, batch), None)


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits."""
    out = room_for_gradient(batch)
    return _result(_run(_value_and_grad, batch, out=out), out)


def _result(results: Results, grad: Array | None) -> Result:
    loss, *stats = results
    return Result(loss, grad, Stats(*stats) if stats else None)


def value_to_differentiate(batch: Batch) -> tuple[Result, Kept]:
    """Evaluate the loss, and keep of each row what `grad_of_kept` needs."""
    loss, divisor, *seen = _run(_value_to_differentiate, batch)
    return Result(loss, None, None), Kept(seen, divisor)


def grad_of_kept(batch: Batch, kept: Kept) -> Array:
    """The derivatives by the logits of a loss that was evaluated before."""
    out = room_for_gradient(batch)
    _run(_grad_of_kept, batch, kept, out=out)
    return out


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
    fuses: bool  # whether the device can read rows and write their gradients at once


#: How many programs are kept, at most.
PROGRAMS = 256

_programs: dict[_Signature, _Program] = {}


def _run(work: Work, batch: Batch, kept: Kept | None = None, out: Array | None = None) -> Results:
    """Do some work on a batch, by the program of the calls that are like it."""
    kernels, into = batch.kernels, out
    assert isinstance(kernels, Kernels)
    if out is not None:
        into = classes_last(batch.backend, out, batch.axis)
    batch = laid_out(batch)
    signature, arrays = _signature(work, batch, kept, into)
    program = _programs.get(signature)
    if program is None:
        if len(_programs) >= PROGRAMS:
            _programs.clear()
        program = _programs[signature] = _written(signature)
    return _launched(
        program, kernels, (batch.logits, batch.logits if into is None else into), arrays
    )


def _signature(
    work: Work, batch: Batch, kept: Kept | None, into: Array | None
) -> tuple[_Signature, list[Array]]:
    """What the program of a call follows from, and the arrays that it reads."""
    kernels, logits, upstream = batch.kernels, batch.logits, batch.grad_output
    assert isinstance(kernels, Kernels)
    steps = kernels.producer.steps
    kind: Any = kernels.producer.ARRAY
    alike = batch._replace(axis=logits.ndim - 1, out=None, kernels=None)
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
        kernels.fuses(logits),
    )
    return signature, [x for x in arrays if isinstance(x, kind)]


def _is_one(shape: tuple[int, ...], steps: tuple[int, ...]) -> bool:
    """Whether all entries of an array are the same one."""
    return not any(step for length, step in zip(shape, steps, strict=True) if length > 1)


def _launched(
    program: _Program, kernels: Kernels, rows: tuple[Array, Array], arrays: list[Array]
) -> list[Any]:
    """Have the device run a program on logits, their gradient and other arrays."""
    producer, like = kernels.producer, rows[0]
    with producer.current(like) as stream:
        read = [
            producer.plain(x) if shape is None else producer.line(x, shape)
            for x, shape in zip(arrays, program.shapes, strict=True)
        ]
        results = [
            producer.empty(*x, like) if isinstance(x, _Output) else x for x in program.results
        ]
        made = [x for x in results if isinstance(x, producer.ARRAY)]
        scratch = producer.scratch(program.scratch, like)
        memory = [producer.address(x) for x in (scratch, *rows, *read, *made)]
        kernels.launch(like, stream, program.launches, memory)
    return results


# --- a program, written


#: What a batch and what was kept have one number of; rows are the others.
_EXTENTS = {"weight": CLASSES, "smoothing": ONE, "denominator": ONE, "divisor": ONE}

_KEPT = ("top", "rest", "mass", "picked", "divisor")


def _written(signature: _Signature) -> _Program:
    """Evaluate a batch of columns, and write down what that takes."""
    batch = signature.batch
    rows = math.prod(batch.shape)
    ledger = Ledger(dtype_name(batch.compute_dtype), {ROWS: rows, CLASSES: batch.classes})
    noted, kept, shapes = _noted(signature, ledger)
    results, cells, dtypes = [], [], _dtypes(batch)
    for x in signature.work(noted, kept):
        found = Finished(x, x.dtype, flat=False) if isinstance(x, Column) else x
        if isinstance(found, Finished):
            cells.append((found.column, Cell(ledger.memory(), found.dtype)))
            results.append(_Output(_shape(batch, found), dtypes[found.dtype]))
        else:
            results.append(found)
    ledger.finish(cells)
    return _Program(ledger.launches, max(ledger.scratch, 16), shapes, results)


def _noted(
    signature: _Signature, ledger: Ledger
) -> tuple[Batch, Kept | None, list[tuple[int, ...] | None]]:
    """The batch with columns for its arrays, what was kept likewise, and the arrays' shapes."""
    batch, places = signature.batch, len(Arrays._fields) - 1
    shape = (*batch.shape, batch.classes)
    logits, into = (
        Logits(Rows(Cell(ledger.memory(), dtype_name(signature.logits[0])), steps), shape)
        for steps in (signature.logits[1], signature.into or ())
    )
    columns: list[Any] = []
    shapes: list[tuple[int, ...] | None] = []
    for name, given in zip((*Arrays._fields[1:], *_KEPT), signature.arrays, strict=False):
        extent = _EXTENTS.get(name, ROWS)
        if name == "grad_output" and signature.one_upstream:
            extent = ONE
        if given is None or isinstance(given, float):
            columns.append(given)
        else:
            columns.append(ledger.given(ledger.memory(), dtype_name(given), extent))
            shapes.append({ROWS: (*batch.shape, 1), CLASSES: shape[-1:], ONE: None}[extent])
    numbers = arrays_of(batch)[1:]  # in the place of arrays
    own = [b if a is None else a for a, b in zip(columns[:places], numbers, strict=True)]
    library = (COLUMNS, ledger.dtype, dtype_name(batch.result_dtype), False)
    kernels = Noted(ledger, fuses=signature.fuses)
    noted = with_arrays(batch, Arrays(logits, *own), library, kernels)
    noted = noted._replace(out=None if signature.into is None else into)
    kept = Kept(columns[places:-1], columns[-1]) if len(columns) > places else None
    return noted, kept, shapes


def _shape(batch: Batch, x: Finished) -> tuple[int, ...]:
    if x.column.extent != ROWS:
        return ()
    return batch.shape if x.flat else (*batch.shape, 1)


def _dtypes(batch: Batch) -> dict[str, Any]:
    """The library's own dtypes by their names, as far as results have them."""
    xp, own = batch.backend.xp, (batch.compute_dtype, batch.result_dtype)
    return {"int64": xp.int64, "bool": xp.bool, **{dtype_name(dtype): dtype for dtype in own}}
