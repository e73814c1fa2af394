"""A batch evaluated block by block: what the reduction needs, the gradient, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from xent_array._batch import Batch, laid_out
from xent_array._blocks import BLOCK_BYTES, Assembly, Plan, budget_of, for_each_block, plan
from xent_array._gradient import Demand, gradient
from xent_array._namespace import Array
from xent_array._reduce import Counts, count_rows, divisor, mean
from xent_array._row_blocks import RowIndex
from xent_array._rows import classes_back, classes_last
from xent_array._rowwise import Reading, Slab, Stats, conclude, read, rows_of, weight_of
from xent_array._stats import FourNumbers, Glance, Scalar
from xent_array._wanted import IndexRows, ProbabilityRows, TargetRows


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
    seen: Sequence[Array | None] = ()  # what `value_to_differentiate` keeps of each row


class Kept(NamedTuple):
    """What a gradient needs of a loss that was evaluated before, beside its arguments."""

    seen: Sequence[Array | None]  # of each row, see `_what_gradients_need`
    divisor: Scalar  # of the mean


def value(batch: Batch) -> Result:
    """Evaluate the loss, and statistics where the options ask for them.

    A library that differentiates must see operations of its own, and no kernel.
    """
    batch = laid_out(batch._replace(kernels=None) if batch.differentiable else batch)
    with batch.backend.quiet():
        outcome = _of_all(batch, plan_of(batch))
        return result_of(batch, outcome.loss, outcome.stats, outcome.counts)


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits, written to the batch's `out` if given.

    One pass: a block's gradient is written while its exponentials are at hand. The divisor of the
    mean must be known by then, and is taken from the targets.
    """
    caller, backend = batch, batch.backend
    batch = laid_out(_constant(batch))
    cut = plan_of(batch)
    with backend.detached():
        counts = _counts(batch, cut) if batch.reduction == "mean" else None
        by = 1.0 if counts is None else divisor(batch, counts)
        out, into = _place_for_gradient(caller, batch, cut)
        outcome = _of_all(batch, cut, Demand(into, by))
        if out is None:
            out = classes_back(backend, outcome.grad, batch.axis)
        return result_of(batch, outcome.loss, outcome.stats, counts, by, grad=out)


def value_to_differentiate(batch: Batch) -> tuple[Result, Kept]:
    """Evaluate the loss, and keep of each row what `grad_of_kept` needs."""
    batch = laid_out(_constant(batch))
    with batch.backend.detached():
        outcome = _of_all(batch, plan_of(batch), keep=True)
        counts = outcome.counts
        by = 1.0 if counts is None else divisor(batch, counts)
        result = result_of(batch, outcome.loss, outcome.stats, counts, by)
        return result, Kept(outcome.seen, by)


def grad_of_kept(batch: Batch, kept: Kept) -> Array:
    """The derivatives by the logits of a loss that was evaluated before."""
    with batch.backend.detached():
        return _gradient_alone(
            _constant(batch), lambda rows, block, _: _reread(rows, block, kept), kept.divisor
        )


def probabilities(batch: Batch) -> Array:
    """The softmax of a batch without a target, or its logarithm.

    Where the library differentiates, it sees operations of its own, and no kernel.
    """
    batch = batch._replace(kernels=None) if batch.differentiable else batch
    with batch.backend.quiet():
        return _gradient_alone(batch, read, 1.0)


def _gradient_alone(
    caller: Batch, reading: Callable[[Batch, RowIndex, list[slice]], Reading], by: Scalar
) -> Array:
    """Derivatives by the logits and nothing else, from the reading of a block of rows."""
    batch = laid_out(caller)
    backend, cut = batch.backend, plan_of(batch)
    out, into = _place_for_gradient(caller, batch, cut)
    demand = Demand(into, by)

    def work(_: int, block: RowIndex) -> Array | None:
        return gradient(batch, block, cut.slabs, reading(batch, block, cut.slabs), demand)

    if out is None:
        return classes_back(backend, work(0, cut.blocks[0]), batch.axis)
    for_each_block(backend, batch.logits, work, cut.blocks)
    return out


def _reread(batch: Batch, block: RowIndex, kept: Kept) -> Reading:
    """A block as it was read when the loss was evaluated."""
    top, rest, mass, picked = (None if x is None else x[block] for x in kept.seen)
    rows = rows_of(batch, block)
    if not isinstance(rows, ProbabilityRows):
        mass = rows.mass()
    numbers = FourNumbers(top, rest, mass, 0.0)  # no gradient needs dot
    glance = None if picked is None else Glance(top, rest, picked)
    return Reading(rows, Slab(numbers, None, None), glance)


def _constant(batch: Batch) -> Batch:
    """The batch for code that the library does not differentiate."""
    return batch._replace(differentiable=False) if batch.differentiable else batch


def _place_for_gradient(
    caller: Batch, batch: Batch, cut: Plan
) -> tuple[Array | None, Array | None]:
    """Where the gradient goes, and that laid out as rows; None: one block is handed back."""
    whole = batch.backend.maps_rows or (batch.kernels is None and cut.whole)
    if batch.out is None and whole:
        return None, None
    out = room_for_gradient(caller)
    return out, classes_last(batch.backend, out, batch.axis)


def room_for_gradient(batch: Batch) -> Array:
    """Where the gradient by the caller's logits goes: memory of the caller's, or new."""
    return batch.backend.room(batch.logits.shape, batch.logits) if batch.out is None else batch.out


def plan_of(batch: Batch) -> Plan:
    """How to walk through rows."""
    backend, width = batch.backend, batch.logits.shape[-1]
    if batch.kernels is None:
        budget = budget_of(backend, batch.memory, differentiable=batch.differentiable)
    else:  # columns stand for all rows
        budget = None if batch.memory == "device" else BLOCK_BYTES["kernel"]
    cut = plan(batch.shape, width, backend.itemsize(batch.compute_dtype), budget)
    if len(cut.slabs) > 1 and (backend.maps_rows or batch.kernels is not None):
        # Whole rows: a compiler has no memory of ours to write slabs to, a kernel needs none.
        cut = cut._replace(slabs=[slice(0, width)])
    return cut


def _of_all(
    batch: Batch, cut: Plan, demand: Demand | None = None, *, keep: bool = False
) -> Outcome:
    """Evaluate block by block, and put together what remains of each.

    Beside the loss a gradient may be demanded, or that what it needs later is kept.
    """
    blocks, slabs = cut.blocks, cut.slabs
    if len(blocks) == 1:
        return _of_block(batch, blocks[0], slabs, demand, keep=keep)
    if batch.backend.maps_rows:
        return _mapped(batch, cut, demand)
    backend, per_row = batch.backend, batch.reduction == "none"
    rows, parts = Assembly(backend, (*batch.shape, 1)), Assembly(backend, (len(blocks),))

    def work(place: int, block: RowIndex) -> None:
        loss, counts, _, stats, seen = _of_block(batch, block, slabs, demand, keep=keep)
        rows.put(block, (*([loss] if per_row else []), *stats, *seen))
        parts.put(place, () if per_row else (loss, *(counts or ())))

    for_each_block(backend, batch.logits, work, cut.blocks)
    columns = rows.columns[1:] if per_row else rows.columns
    count = len(Stats._fields) if batch.return_stats else 0
    stats, seen = columns[:count], columns[count:]
    totals = _totals(batch, parts)
    counts = Counts(*totals[1:]) if totals[1:] else None
    return Outcome(rows.columns[0] if per_row else totals[0], counts, None, stats, seen)


def _mapped(batch: Batch, cut: Plan, demand: Demand | None) -> Outcome:
    """The same by a loop of the library's own, for which rows lie along one axis."""
    backend, shape, per_row = batch.backend, batch.shape, batch.reduction == "none"
    every = math.prod(shape)
    size = -(-every // -(-every // cut.rows))  # all have one size, so as equal as can be
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
            shape=(size,),
            reduction="none",
            logits=logits,
            target=batch.target.renewed(batch.target.q, target),
            where=where,
            sample_weight=sample_weight,
            grad_output=grad_output,
        )
        return _of_block(rows, (...,), cut.slabs, demand, keep=False)

    def shaped(x: Array | None) -> Array | None:
        return None if x is None else backend.xp.reshape(x, (*shape, x.shape[-1]))

    loss, _, grad, stats, _ = backend.map_rows(of_rows, flat, size)
    counts = None
    if batch.reduction == "mean" and demand is None:
        counts = _counts(batch, cut)
    loss = shaped(loss) if per_row else backend.total(loss)
    return Outcome(loss, counts, shaped(grad), [shaped(x) for x in stats])


def _of_block(
    batch: Batch, block: RowIndex, slabs: list[slice], demand: Demand | None, *, keep: bool
) -> Outcome:
    reading = read(batch, block, slabs)
    loss, stats = conclude(batch, block, reading)
    grad = counts = None
    if batch.reduction != "none":
        loss = batch.backend.total(loss)
    if batch.reduction == "mean" and demand is None:
        counts = counts_of_block(batch, block, reading.rows)
    if demand is not None:
        grad = gradient(batch, block, slabs, reading, demand)
    seen = _what_gradients_need(batch, reading) if keep else ()
    return Outcome(loss, counts, grad, stats, seen)


def _what_gradients_need(batch: Batch, reading: Reading) -> list[Array | None]:
    """Of each row top and rest; the mass of probabilities, or a target's place below the top."""
    (top, rest, mass, _), rows = reading.slab.numbers, reading.rows
    if isinstance(rows, ProbabilityRows):
        return [top, rest, mass, None]
    seen, picked = reading.seen, None
    if isinstance(seen, Glance) or (isinstance(rows, IndexRows) and seen is not None):
        picked = seen.shifted_at(batch.backend, rows.index)
    return [top, rest, None, picked]


def _counts(batch: Batch, cut: Plan) -> Counts:
    """What the mean divides by, from the targets alone: a gradient must know it before."""
    if len(cut.blocks) == 1 or batch.backend.maps_rows:
        return counts_of_block(batch, (...,), rows_of(batch, (...,)))
    parts = Assembly(batch.backend, (len(cut.blocks),))
    for place, block in enumerate(cut.blocks):
        parts.put(place, counts_of_block(batch, block, rows_of(batch, block)))
    return Counts(*_totals(batch, parts))


def counts_of_block(batch: Batch, block: RowIndex, rows: TargetRows) -> Counts:
    """What the mean over some rows divides by."""
    return count_rows(batch.backend, weight_of(batch, block, rows), rows.kept)


def _totals(batch: Batch, parts: Assembly) -> list[Array | None]:
    return [None if part is None else batch.backend.total(part) for part in parts.columns]


def result_of(
    batch: Batch,
    loss: Array,
    stats: Sequence[Array],
    counts: Counts | None,
    by: Scalar | None = None,
    *,
    grad: Array | None = None,
) -> Result:
    """Losses or their sum as the caller gets them: of the mean, without the class axis, rounded.

    The divisor of the mean is passed where it is known already.
    """
    finalize = batch.backend.finalize
    loss = loss[..., 0] if batch.reduction == "none" else loss
    if counts is not None:
        loss = mean(batch, loss, counts, divisor(batch, counts) if by is None else by)
    returned = None
    if batch.return_stats:
        lse, prediction, correct = (column[..., 0] for column in stats)
        returned = Stats(
            lse=finalize(lse, batch.result_dtype),
            prediction=finalize(prediction, prediction.dtype),
            correct=finalize(correct, correct.dtype),
        )
    return Result(finalize(loss, batch.result_dtype), grad, returned)
