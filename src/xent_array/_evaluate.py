"""A batch evaluated block by block: what the reduction needs, the gradient, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xent_array._batch import Batch, laid_out
from xent_array._blocks import Assembly, Plan, RowIndex, keep_heap, plan
from xent_array._gradient import Demand, gradient
from xent_array._namespace import Array
from xent_array._reduce import Counts, count_rows, divisor, mean
from xent_array._rows import classes_back, classes_last
from xent_array._rowwise import Stats, conclude, read, rows_of, weight_of
from xent_array._wanted import TargetRows


class Result(NamedTuple):
    """What the caller gets; None for what was not asked for."""

    loss: Array
    grad_logits: Array
    stats: Stats | None


class Outcome(NamedTuple):
    """What outlives a block, or all blocks: as little as the reduction needs."""

    loss: Array  # per row for reduction "none", else the sum
    counts: Counts | None  # for the mean, where they are not known already
    grad: Array | None  # where it was not written yet
    stats: Sequence[Array]


def value(batch: Batch) -> Result:
    """Evaluate the loss, and statistics where the options ask for them."""
    batch = laid_out(batch)
    with batch.backend.quiet():
        outcome = _of_all(batch, _plan(batch), None)
        return result_of(batch, outcome, outcome.counts, None)


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits, written to the batch's `out` if given.

    One pass: a block's gradient is written while its exponentials are at hand. The divisor of the
    mean must be known by then, and is taken from the targets.
    """
    backend, shape = batch.backend, tuple(batch.logits.shape)
    batch = laid_out(batch._replace(differentiable=False))
    cut = _plan(batch)
    with backend.detached(), backend.quiet():
        counts = _counts(batch, cut) if batch.reduction == "mean" else None
        by = 1.0 if counts is None else divisor(batch, counts)
        out = batch.out
        if out is None and not (cut.whole or backend.maps_rows):
            device = backend.device(batch.logits)
            out = backend.xp.empty(shape, dtype=batch.logits.dtype, device=device)
        into = None if out is None else classes_last(backend, out, batch.axis)
        outcome = _of_all(batch, cut, Demand(into, by))
        if out is None:
            out = classes_back(backend, outcome.grad, batch.axis)
        return result_of(batch, outcome, counts, out)


def _plan(batch: Batch) -> Plan:
    cut = plan(
        batch.memory,
        batch.shape,
        batch.classes,
        batch.backend.itemsize(batch.compute_dtype),
        differentiable=batch.differentiable,
    )
    if batch.backend.maps_rows:  # whole rows: a compiler has no memory of ours to write slabs to
        cut = cut._replace(slabs=[slice(0, batch.classes)])
    return cut


def _of_all(batch: Batch, cut: Plan, demand: Demand | None) -> Outcome:
    """Evaluate block by block, and put together what remains of each."""
    blocks, slabs = cut.blocks, cut.slabs
    if len(blocks) == 1:
        return _of_block(batch, blocks[0], slabs, demand)
    if batch.backend.maps_rows:
        return _mapped(batch, cut, demand)
    backend, per_row = batch.backend, batch.reduction == "none"
    rows, parts = Assembly(backend, (*batch.shape, 1)), Assembly(backend, (len(blocks),))
    keep_heap(backend, batch.logits)
    for place, block in enumerate(blocks):
        loss, counts, _, stats = _of_block(batch, block, slabs, demand)
        rows.put(block, (loss, *stats) if per_row else stats)
        parts.put(place, () if per_row else (loss, *(counts or ())))
    if per_row:
        loss, *stats = rows.columns
        return Outcome(loss, None, None, stats)
    loss, *columns = _totals(batch, parts)
    return Outcome(loss, Counts(*columns) if columns else None, None, rows.columns)


def _mapped(batch: Batch, cut: Plan, demand: Demand | None) -> Outcome:
    """The same by a loop of the library's own, for which rows lie along one axis."""
    backend, shape, per_row = batch.backend, batch.shape, batch.reduction == "none"
    columns = (
        batch.logits,
        batch.target.column,
        batch.where,
        batch.sample_weight,
        batch.grad_output,
    )
    flat = [None if x is None else backend.xp.reshape(x, (-1, x.shape[-1])) for x in columns]

    def of_rows(columns: list[Array]) -> Outcome:
        logits, target, where, sample_weight, grad_output = columns
        rows = batch._replace(
            shape=(cut.rows,),
            reduction="none",
            logits=logits,
            target=batch.target.with_column(target),
            where=where,
            sample_weight=sample_weight,
            grad_output=grad_output,
        )
        return _of_block(rows, (...,), cut.slabs, demand)

    def shaped(x: Array | None) -> Array | None:
        return None if x is None else backend.xp.reshape(x, (*shape, x.shape[-1]))

    loss, _, grad, stats = backend.map_rows(of_rows, flat, cut.rows)
    counts = _counts(batch, cut) if batch.reduction == "mean" and demand is None else None
    loss = shaped(loss) if per_row else backend.total(loss)
    return Outcome(loss, counts, shaped(grad), [shaped(x) for x in stats])


def _of_block(batch: Batch, block: RowIndex, slabs: list[slice], demand: Demand | None) -> Outcome:
    result = conclude(batch, block, read(batch, block, slabs))
    reading, loss, _, stats = result
    grad = None if demand is None else gradient(batch, block, slabs, result, demand)
    if batch.reduction == "none":
        return Outcome(loss, None, grad, stats)
    counts = None
    if batch.reduction == "mean" and demand is None:
        counts = _counts_of_block(batch, block, reading.rows)
    return Outcome(batch.backend.total(loss), counts, grad, stats)


def _counts(batch: Batch, cut: Plan) -> Counts:
    """What the mean divides by, from the targets alone: a gradient must know it before."""
    if len(cut.blocks) == 1 or batch.backend.maps_rows:
        return _counts_of_block(batch, (...,), rows_of(batch, (...,)))
    parts = Assembly(batch.backend, (len(cut.blocks),))
    for place, block in enumerate(cut.blocks):
        parts.put(place, _counts_of_block(batch, block, rows_of(batch, block)))
    return Counts(*_totals(batch, parts))


def _counts_of_block(batch: Batch, block: RowIndex, rows: TargetRows) -> Counts:
    return count_rows(batch.backend, weight_of(batch, block, rows), rows.kept)


def _totals(batch: Batch, parts: Assembly) -> list[Array | None]:
    return [None if part is None else batch.backend.total(part) for part in parts.columns]


def result_of(batch: Batch, outcome: Outcome, counts: Counts | None, grad: Array | None) -> Result:
    """The outcome as the caller gets it: reduced, without the class axis, of the right dtype."""
    finalize, reduction = batch.backend.finalize, batch.reduction
    loss = outcome.loss[..., 0] if reduction == "none" else outcome.loss
    if counts is not None:
        loss = mean(batch, loss, counts)
    stats = None
    if batch.return_stats:
        lse, prediction, correct = (column[..., 0] for column in outcome.stats)
        stats = Stats(
            lse=finalize(lse, batch.result_dtype),
            prediction=finalize(prediction, prediction.dtype),
            correct=finalize(correct, correct.dtype),
        )
    return Result(finalize(loss, batch.result_dtype), grad, stats)
