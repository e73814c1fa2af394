"""Per-row loss and statistics of given logits, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xent_array._batch import Batch
from xent_array._blocks import RowIndex
from xent_array._namespace import Array
from xent_array._stats import (
    FourNumbers,
    Scalar,
    finish,
    logsumexp,
    merge_tree,
    spread,
    times,
)
from xent_array._wanted import TargetRows


class Stats(NamedTuple):
    """What is known of each row beside its loss; shaped like the loss of reduction "none"."""

    lse: Array  #: logsumexp of the row's logits, scaled and capped; 0 in rows that do not count
    prediction: Array  #: the class of the greatest logit, the lowest among ties
    correct: Array  #: whether that is the target; False in rows that do not count


class Reading(NamedTuple):
    """A block of rows, read once."""

    rows: TargetRows
    row: FourNumbers
    lse: Array  # 0 in rows that do not count; None where neither z-loss nor statistics ask
    prediction: Array | None
    exps: Array | None  # of whole rows, below the top


class RowResult(NamedTuple):
    """A block of rows, evaluated; the class axis is kept with length one."""

    loss: Array  # 0 in rows that do not count
    stats: Sequence[Array]  # `Stats`, or nothing where not asked for
    reading: Reading  # what the gradient and the divisor of the mean are made of


def evaluate_rows(batch: Batch, block: RowIndex, slabs: list[slice]) -> RowResult:
    """Loss, and statistics where asked for, of one block of rows."""
    backend, options = batch.backend, batch.options
    xp = backend.xp
    reading = _read(batch, block, slabs)
    rows, loss = reading.rows, finish(xp, reading.row)
    if batch.z_loss:
        loss = loss + batch.z_loss * (reading.lse * reading.lse)
    stats: Sequence[Array] = ()
    if options.return_stats:
        stats = Stats(reading.lse, reading.prediction, _correct(rows, reading.prediction))
    if batch.sample_weight is not None:
        loss = loss * counted(xp, rows, factor_of(batch, batch.sample_weight, block))
    if rows.bad is not None:  # by a product, so that the gradient is NaN under autodiff too
        loss = loss * xp.where(rows.bad, xp.nan, xp.ones_like(loss))
    return RowResult(counted(xp, rows, loss), stats, reading)


def rows_of(batch: Batch, block: RowIndex) -> TargetRows:
    """The target of a block, and which of its rows count."""
    return batch.target.rows(block, None if batch.where is None else batch.where[block])


def weight_of(batch: Batch, block: RowIndex, rows: TargetRows) -> Array | None:
    """What each row adds to the divisor of the mean; None: 1."""
    weight = rows.row_weight()
    if batch.sample_weight is None:
        return weight
    sample_weight = factor_of(batch, batch.sample_weight, block)
    sample_weight = counted(batch.backend.xp, rows, sample_weight)
    return sample_weight if weight is None else weight * sample_weight


def factor_of(batch: Batch, x: Array, block: RowIndex) -> Array:
    """Factors of the rows of a block, in the compute dtype."""
    return batch.backend.cast(x[block], batch.compute_dtype)


def _read(batch: Batch, block: RowIndex, slabs: list[slice]) -> Reading:
    backend, xp = batch.backend, batch.backend.xp
    rows, z = rows_of(batch, block), batch.logits[block]
    parts, prediction, best, lse = [], None, None, None
    several = len(slabs) > 1
    for classes in slabs:
        given = backend.cast(z[..., classes] if several else z, batch.compute_dtype)
        # The gradient of a row that does not count is 0 only if nothing in it is NaN.
        counts = counted(xp, rows, given) if batch.differentiable else given
        part, scale = transformed(xp, counts, batch.logit_scale, batch.softcap)
        seen = spread(backend, part, scale, slab=several, differentiable=batch.differentiable)
        parts.append(FourNumbers(seen.top, seen.rest, *rows.weigh(seen.shifted, classes)))
        if batch.options.return_stats:
            if counts is not given:
                part, _ = transformed(xp, given, batch.logit_scale, batch.softcap)
            argtop = backend.row_argmax(part) + classes.start
            if best is None:
                prediction, best = argtop, seen.top
            else:  # the first NaN is the greatest, as it is to argmax
                higher = (seen.top > best) | (xp.isnan(seen.top) & ~xp.isnan(best))
                prediction = xp.where(higher, argtop, prediction)
                best = xp.maximum(best, seen.top)
    row = merge_tree(xp, parts, scale)
    if batch.z_loss or batch.options.return_stats:
        lse = counted(xp, rows, logsumexp(xp, row.top, row.rest, scale))
    return Reading(rows, row, lse, prediction, None if several else seen.exps)


def transformed(xp: Any, z: Array, scale: Scalar, softcap: float | None) -> tuple[Array, Scalar]:
    """Logits as the loss sees them, but for a scale >= 0 left to be applied below their top.

    A negative scale turns the order of the logits round: its sign is applied at once.
    """
    if softcap is not None:
        return softcap * xp.tanh(times(scale, z) / softcap), 1.0
    if isinstance(scale, float):
        if scale == 0.0:
            return scale * z, 1.0
        return (z, scale) if scale > 0.0 else (-z, -scale)
    sign = xp.where(scale < 0.0, -xp.ones_like(scale), xp.ones_like(scale))
    return z * sign, scale * sign


def counted(xp: Any, rows: TargetRows, x: Array) -> Array:
    """`x`, 0 in the rows that do not count."""
    return x if rows.kept is None else xp.where(rows.kept, x, 0.0)


def _correct(rows: TargetRows, prediction: Array) -> Array:
    correct = prediction == rows.label()
    if rows.kept is not None:
        correct = correct & rows.kept
    return correct if rows.bad is None else correct & ~rows.bad
