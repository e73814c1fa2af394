"""What runs when dask's graph does: on the arrays of a chunk, block by block.

A chunk holds some rows, and a slab of their classes. Functions of one chunk return named tuples of
arrays, which dask hands on as it would an array.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

from xent_array._backends import backend_of
from xent_array._batch import Arrays, Batch, serial, together, with_kernels
from xent_array._blocks import Assembly, keep_heap
from xent_array._engines import evaluate, probabilities
from xent_array._evaluate import plan_of
from xent_array._gather import gather_rows
from xent_array._gradient import Demand, gradient
from xent_array._namespace import Array
from xent_array._row_blocks import RowIndex
from xent_array._rowwise import (
    Greatest,
    Reading,
    Slab,
    conclude,
    merge_slabs,
    read_slab,
    rows_of,
    weight_of,
    whole_rows,
)
from xent_array._stats import FourNumbers, fold
from xent_array._wanted import IndexTarget


class Rows(NamedTuple):
    """The arrays of a batch that are cut where its rows are; the class axis last."""

    target: Array | None  # class indices or probabilities
    where: Array | None
    sample_weight: Array | None
    grad_output: Array | None


class Concluded(NamedTuple):
    """What is left of the rows of a chunk; each of them an array."""

    loss: Array
    lse: Array | None
    prediction: Array | None
    correct: Array | None
    weight: Array  # in the divisor of the mean
    kept: Array  # whether a row counts


def _chunk(template: Batch, logits: Array, rows: Rows, whole: dict[str, Any]) -> Batch:
    """The batch of a chunk, its arrays as large as its rows."""
    backend, shape = backend_of("logits", logits), logits.shape[:-1]
    xp = backend.xp
    target = xp.empty((*shape, 0), dtype=logits.dtype) if rows.target is None else rows.target
    if isinstance(template.target, IndexTarget):
        target = target[..., 0]
    others = [None if x is None else xp.broadcast_to(x, (*shape, 1)) for x in rows[1:]]
    where, sample_weight, grad_output = others
    here = template._replace(
        backend=backend,
        memory=backend.memory(logits),
        shape=shape,
        axis=logits.ndim - 1,
    )
    batch = together(
        here,
        Arrays(
            logits,
            target,
            whole["weight"],
            whole["smoothing"],
            where,
            sample_weight,
            whole["scale"],
            None,  # what divides the mean is put together from all chunks
            grad_output,
        ),
    )
    if logits.shape[-1] < batch.classes:
        return batch  # kernels read whole rows
    return serial(with_kernels(batch))  # chunks are on dask's threads already


def _blocks_of(batch: Batch) -> list[RowIndex]:
    keep_heap(batch.backend, batch.logits)
    return plan_of(batch).blocks


def _slice_of(classes: Array) -> slice:
    return slice(int(classes.flat[0]), int(classes.flat[0]) + classes.size)


def read_chunk(
    logits: Array,
    classes: Array,
    target: Array,
    where: Array | None,
    *,
    template: Batch,
    slab: bool,
    **whole: Any,
) -> Slab:
    rows = Rows(target, where, None, None)
    batch = _chunk(template, logits, rows, whole)
    columns = Assembly(batch.backend, (*batch.shape, 1))
    with batch.backend.quiet():
        for block in _blocks_of(batch):
            part = read_slab(batch, block, rows_of(batch, block), _slice_of(classes), slab=slab)[0]
            columns.put(block, _flat(batch, part))
    return _slab(columns.columns)


def _flat(batch: Batch, slab: Slab) -> list[Array | None]:
    nothing = (None, None)
    top, rest, mass, dot = slab.numbers
    mass = mass + batch.backend.xp.zeros_like(rest)
    return [top, rest, mass, dot, *(slab.prediction or nothing), *(slab.label or nothing)]


def _slab(columns: Iterable[Array | None]) -> Slab:
    top, rest, mass, dot, value, argmax, probability, label = columns
    return Slab(
        FourNumbers(top, rest, mass, dot),
        None if value is None else Greatest(value, argmax),
        None if probability is None else Greatest(probability, label),
    )


def merge_chunks(slabs: Any, *, scale: Any, template: Batch) -> Slab:
    slabs = slabs if isinstance(slabs, list) else [slabs]
    if len(slabs) == 1:
        whole: Slab = slabs[0]
        return whole
    backend = backend_of("logits", slabs[0].numbers.top)
    batch = template._replace(backend=backend, logit_scale=scale)
    with backend.quiet():
        return whole_rows(fold(slabs, functools.partial(merge_slabs, batch)))


def conclude_chunk(slab: Slab, *rows: Array | None, template: Batch, **whole: Any) -> Concluded:
    top = slab.numbers.top
    batch = _chunk(template, top, Rows(*rows), whole)
    xp, block = batch.backend.xp, (...,)
    here = rows_of(batch, block)
    with batch.backend.quiet():
        loss, stats = conclude(batch, block, Reading(here, slab, None))
        weight = weight_of(batch, block, here)
    kept = xp.ones_like(top, dtype=xp.bool) if here.kept is None else here.kept
    weight = xp.ones_like(top) if weight is None else weight
    lse, prediction, correct = stats or (None, None, None)
    weight = xp.where(kept, weight, 0.0)
    return Concluded(loss, lse, prediction, correct, weight, kept)


def grad_chunk(
    logits: Array,
    slab: Slab,
    classes: Array,
    *rows: Array | None,
    template: Batch,
    divisor: Any,
    **whole: Any,
) -> Array:
    batch = _chunk(template, logits, Rows(*rows), whole)
    xp, numbers = batch.backend.xp, _flat(batch, slab)
    grad = xp.empty(logits.shape, dtype=logits.dtype)
    with batch.backend.quiet():
        for block in _blocks_of(batch):
            part = _slab(None if x is None else x[block] for x in numbers)
            reading = Reading(rows_of(batch, block), part, None)
            gradient(batch, block, [_slice_of(classes)], reading, Demand(grad, divisor))
    return grad


def logsumexp_of_chunk(x: Array, *, axis: int) -> Array:
    return evaluate(_of_rows(x, axis, logarithm=False)).loss


def probabilities_of_chunk(x: Array, *, axis: int, logarithm: bool) -> Array:
    """The softmax of a chunk that holds all classes, or its logarithm."""
    return probabilities(_of_rows(x, axis, logarithm=logarithm))


def _of_rows(x: Array, axis: int, *, logarithm: bool) -> Batch:
    """A batch without a target; chunks are on dask's threads already."""
    return serial(gather_rows("x", x, axis, logarithm=logarithm))
