"""Host memory whose rows kernels read: all else that the loss does there, in one go with them.

The loss is evaluated once on a ledger (`_kernels.steps`), which makes a program of it. Calls that
are like it run the program.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from xent_array._batch import NUMBERS, Arrays, Batch, arrays_of, laid_out
from xent_array._engines._noting import (
    KEPT,
    Finished,
    Logits,
    Work,
    evaluations,
    own_dtypes,
    planned,
    results_on_columns,
)
from xent_array._evaluate import Kept
from xent_array._kernels.columns import ONE, REAL, ROWS, TRUTH, WHOLE, Column
from xent_array._kernels.host import Kernels
from xent_array._kernels.steps import Program, Steps
from xent_array._namespace import Array, dtype_name
from xent_array._rows import classes_last
from xent_array._wanted import ProbabilityTarget


class _Output(NamedTuple):
    """A result that is an array."""

    place: int  # among those of the program
    dtype: Any
    of_rows: bool
    flat: bool  # without the class axis


class _Written(NamedTuple):
    """A program, the arrays that it reads, and what becomes of what it finds."""

    program: Program
    given: list[tuple[int, str]]  # which of the arrays it reads
    results: list[Any]  # outputs, or a number or None in their place


#: How many programs are kept, at most.
PROGRAMS = 1024

_programs: dict[Any, _Written] = {}


def _run(work: Work, batch: Batch, kept: Kept | None, out: Array | None) -> list[Any]:
    """Do some work on a batch, by the program of the calls that are like it."""
    kernels = batch.kernels
    assert isinstance(kernels, Kernels)
    held = arrays_of(batch)
    if type(held.denominator) is float:  # another one in every call
        held = held._replace(denominator=np.asarray(held.denominator))
    laid = laid_out(batch)
    p = laid.target.array if _is_soft(batch) else None
    arrays: tuple[Any, ...] = held[1:]
    if kept is not None:
        arrays = (*arrays, *kept.seen, np.asarray(kept.divisor))
    written = planned(work, batch, lambda: _found(work, batch, arrays, out))
    into = out if out is None else classes_last(batch.backend, out, batch.axis)
    z = laid.logits
    given = {name: arrays[place] for place, name in written.given}
    given["rows"] = max(math.prod(batch.shape), 1)
    found = kernels.run(written.program, z, z if into is None else into, given, p)
    return [_told(x, found, batch.shape) if type(x) is _Output else x for x in written.results]


def _found(work: Work, batch: Batch, arrays: tuple[Any, ...], out: Array | None) -> _Written:
    signature = _signature(work, batch, arrays)
    written = _programs.get(signature)
    if written is None:
        if len(_programs) >= PROGRAMS:
            _programs.clear()
        written = _programs[signature] = _write(work, batch, arrays, out)
    return written


def _is_soft(batch: Batch) -> bool:
    return type(batch.target) is ProbabilityTarget


value, value_and_grad, probabilities, value_to_differentiate, grad_of_kept = evaluations(_run)


def _signature(work: Work, batch: Batch, arrays: tuple[Any, ...]) -> Any:
    """A hashable key: calls of the same one run the same program, whatever their shape and axis."""
    return (
        work,
        type(batch.target),
        batch.compute_dtype,
        batch.result_dtype,
        batch.reduction,
        batch.on_empty,
        batch.by_rows,
        batch.return_stats,
        batch.classes,
        batch.z_loss,
        0 in batch.shape,
        *batch.target.found,
        *(x if type(x) in NUMBERS else "array" for x in arrays),
    )


def _told(output: _Output, found: list[Array], shape: tuple[int, ...]) -> Array:
    """A result as the caller gets it."""
    place, dtype, of_rows, flat = output
    x = found[place]
    if x.dtype != dtype:
        with np.errstate(all="ignore"):
            x = x.astype(dtype)
    return x.reshape(shape if flat else (*shape, 1)) if of_rows else x


# --- a program, written

#: What a program is given, by its names: what a batch and what was kept hold, in their order.
_NAMES = ("index", *Arrays._fields[2:], *KEPT)


def _write(work: Work, batch: Batch, arrays: tuple[Any, ...], out: Array | None) -> _Written:
    """Evaluate a batch on columns, and write down what that takes."""
    steps, soft = Steps(dtype_name(batch.compute_dtype)), _is_soft(batch)

    def column(name: str, _: Array, extent: str) -> Any:
        if soft and name == "target":
            return logits  # rows as well, which kernels alone look at
        kind = {"target": WHOLE, "where": TRUTH}.get(name, REAL)
        return steps.given("index" if name == "target" else name, kind, extent)

    count = steps.given("rows", REAL, ONE)
    shape = (*batch.shape, batch.classes)
    logits = Logits(dtype_name(batch.logits.dtype), shape, row_count=count)
    into = None if out is None else logits
    found = results_on_columns(
        work, batch, arrays, column=column, logits=logits, into=into, kernels=steps
    )
    columns, results = list[Column](), list[Any]()
    dtypes = own_dtypes(batch)
    for x in found:
        if isinstance(x, Finished):
            output = _Output(len(columns), dtypes[x.dtype], x.column.extent == ROWS, x.flat)
            results.append(output)
            columns.append(x.column)
        else:
            results.append(x)
    given = [
        (place, name)
        for place, name in enumerate(_NAMES[: len(arrays)])
        if type(arrays[place]) not in NUMBERS and not (soft and name == "index")
    ]
    return _Written(steps.program(columns), given, results)
