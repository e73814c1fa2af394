"""Per-row loss and statistics of given logits, one block of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from xent_array._batch import Batch
from xent_array._blocks import slab_of
from xent_array._kernels import SoftKernels
from xent_array._namespace import Array
from xent_array._row_blocks import RowIndex
from xent_array._stats import (
    FourNumbers,
    Glance,
    Scalar,
    Spread,
    finish,
    fold,
    logsumexp,
    merge,
    spread,
    times,
    whole,
)
from xent_array._wanted import IndexRows, NoRows, ProbabilityRows, TargetRows


class Stats(NamedTuple):
    """What is known of each row beside its loss; shaped like the loss of reduction "none"."""

    lse: Array  #: logsumexp of the row's logits, scaled and capped; 0 in rows that do not count
    prediction: Array  #: the class of the greatest logit, the lowest among ties
    correct: Array  #: whether that is the target; False in rows that do not count


class Greatest(NamedTuple):
    """The greatest entry of a slab; the first NaN is the greatest, as it is to argmax."""

    value: Array
    argmax: Array  # its class, the lowest among ties


class Slab(NamedTuple):
    """What is known of a slab of classes, or of whole rows; class axes have length one."""

    numbers: FourNumbers
    prediction: Greatest | None  # among the logits; None where no statistics are asked for
    label: Greatest | None  # among probabilities, likewise


class Reading(NamedTuple):
    """A block of rows, read once."""

    rows: TargetRows
    slab: Slab  # of whole rows
    seen: Spread | Glance | None  # of whole rows; None: read in slabs, or by an earlier call


def read(batch: Batch, block: RowIndex, slabs: list[slice]) -> Reading:
    """Read one block of rows, slab by slab of their classes."""
    rows = rows_of(batch, block)
    if len(slabs) == 1:
        return Reading(rows, *read_slab(batch, block, rows, slabs[0], slab=False))
    parts = [read_slab(batch, block, rows, classes, slab=True)[0] for classes in slabs]
    return Reading(rows, whole_rows(fold(parts, partial(merge_slabs, batch))), None)


def read_slab(
    batch: Batch, block: RowIndex, rows: TargetRows, classes: slice, *, slab: bool
) -> tuple[Slab, Spread | Glance | None]:
    """Read a `slab` of the classes of a block, or all of them."""
    if batch.kernels is not None:
        return _read_by_kernel(batch, batch.logits[block], rows, classes)
    backend, xp = batch.backend, batch.backend.xp
    given = backend.cast(slab_of(batch.logits[block], classes), batch.compute_dtype)
    given = backend.arranged(given)
    # The gradient of a row that does not count is 0 only if nothing in it is NaN.
    counts = counted(xp, rows, given) if batch.differentiable else given
    part, scale = transformed(batch, counts), scale_below_top(batch)
    seen = spread(backend, part, scale, slab=slab, differentiable=batch.differentiable)
    top = seen.top
    if batch.return_stats or isinstance(rows, NoRows):  # a loss is NaN whatever the top is
        top = backend.row_max_with_nan(top, part)
    numbers = FourNumbers(top, seen.rest, *rows.weigh(seen, classes))
    if not batch.return_stats:
        return Slab(numbers, None, None), seen
    if counts is not given:
        part = transformed(batch, given)
    prediction = Greatest(top, backend.row_argmax(part) + classes.start)
    label = None
    if isinstance(rows, ProbabilityRows):
        p = slab_of(rows.probabilities, classes)
        label = Greatest(backend.row_max(p), backend.row_argmax(p) + classes.start)
    return Slab(numbers, prediction, label), seen


def _read_by_kernel(
    batch: Batch, z: Array, rows: TargetRows, classes: slice
) -> tuple[Slab, Glance | None]:
    """Read whole rows by a kernel."""
    kernels, scale, dtype = batch.kernels, batch.logit_scale, batch.compute_dtype
    assert kernels is not None
    if isinstance(rows, ProbabilityRows):
        assert isinstance(kernels, SoftKernels)
        top, rest, mass, fall, argmax, label = kernels.soft_stats(
            z, rows.soft(), scale, dtype, argmax=batch.return_stats
        )
        # Of whole rows the class matters, not what the greatest is.
        greatest = [None if x is None else Greatest(top, x) for x in (argmax, label)]
        return Slab(FourNumbers(top, rest, mass, fall), *greatest), None
    top, rest, picked, share, argmax = kernels.row_stats(
        z, rows.index, rows.q.even_share(), scale, dtype, argmax=batch.return_stats
    )
    seen = Glance(top, rest, picked, share)
    numbers = FourNumbers(top, rest, *rows.weigh(seen, classes))
    return Slab(numbers, None if argmax is None else Greatest(top, argmax), None), seen


def merge_slabs(batch: Batch, a: Slab, b: Slab) -> Slab:
    """Put two slabs of the same rows together, the one of the lower classes first."""
    xp = batch.backend.xp
    return Slab(
        merge(xp, a.numbers, b.numbers, scale_below_top(batch)),
        _greater(xp, a.prediction, b.prediction),
        _greater(xp, a.label, b.label),
    )


def whole_rows(slab: Slab) -> Slab:
    """What was merged of all classes."""
    return slab._replace(numbers=whole(slab.numbers))


def _greater(xp: Any, a: Greatest | None, b: Greatest | None) -> Greatest | None:
    if a is None or b is None:
        return None
    higher = (b.value > a.value) | (xp.isnan(b.value) & ~xp.isnan(a.value))
    return Greatest(xp.where(higher, b.value, a.value), xp.where(higher, b.argmax, a.argmax))


def conclude(batch: Batch, block: RowIndex, reading: Reading) -> tuple[Array, Sequence[Array]]:
    """Loss, and `Stats` or nothing, of a block of rows that was read.

    The class axis is kept with length one.
    """
    xp, rows, slab = batch.backend.xp, reading.rows, reading.slab
    if isinstance(rows, NoRows):
        return lse_of(batch, reading), ()
    loss, lse = finish(xp, slab.numbers), None
    if batch.z_loss or batch.return_stats:
        lse = lse_of(batch, reading)
        loss = loss + batch.z_loss * (lse * lse) if batch.z_loss else loss
    stats: Sequence[Array] = ()
    if slab.prediction is not None:
        prediction = slab.prediction.argmax
        stats = Stats(lse, prediction, _correct(rows, prediction == _label(rows, slab)))
    if batch.sample_weight is not None:
        loss = loss * counted(xp, rows, factor_of(batch, batch.sample_weight, block))
    if rows.bad is not None:  # by a product, so that the gradient is NaN under autodiff too
        loss = loss * xp.where(rows.bad, xp.nan, xp.ones_like(loss))
    return counted(xp, rows, loss), stats


def lse_of(batch: Batch, reading: Reading) -> Array:
    """Each row's logsumexp; 0 in rows that do not count."""
    xp, row = batch.backend.xp, reading.slab.numbers
    lse = logsumexp(xp, row.top, row.rest, scale_below_top(batch))
    return counted(xp, reading.rows, lse)


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


def transformed(batch: Batch, z: Array) -> Array:
    """Logits as the loss sees them, but for a scale >= 0 left to be applied below their top.

    A negative scale turns the order of the logits round: its sign is applied at once.
    """
    scale, softcap = batch.logit_scale, batch.softcap
    if softcap is not None:
        return softcap * batch.backend.xp.tanh(times(scale, z) / softcap)
    if isinstance(scale, float):
        return scale * z if scale == 0.0 else z if scale > 0.0 else -z
    return z * _sign(batch.backend.xp, scale)


def scale_below_top(batch: Batch) -> Scalar:
    """What `transformed` left to be applied."""
    scale = batch.logit_scale
    if batch.softcap is not None or (isinstance(scale, float) and scale == 0.0):
        return 1.0
    if isinstance(scale, float):
        return abs(scale)
    return scale * _sign(batch.backend.xp, scale)


def _sign(xp: Any, scale: Array) -> Array:
    return xp.where(scale < 0.0, -xp.ones_like(scale), xp.ones_like(scale))


def counted(xp: Any, rows: TargetRows, x: Array) -> Array:
    """`x`, 0 in the rows that do not count."""
    return x if rows.kept is None else xp.where(rows.kept, x, 0.0)


def _label(rows: TargetRows, slab: Slab) -> Array:
    """The class that counts as correct."""
    if slab.label is not None:
        return slab.label.argmax
    assert isinstance(rows, IndexRows)
    return rows.index


def _correct(rows: TargetRows, correct: Array) -> Array:
    if rows.kept is not None:
        correct = correct & rows.kept
    return correct if rows.bad is None else correct & ~rows.bad
