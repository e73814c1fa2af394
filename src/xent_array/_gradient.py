"""Derivatives of the loss by the logits, from the four numbers of each row.

With lse = top + log1p(rest), A = mass + 2·z_loss·lse and p the softmax of a row, a row's loss has

    d loss / d z_j = A·p_j - q_j,        p_j = exp(z_j - top)/(1 + rest)

for logits as the loss sees them; scale and cap follow by the chain rule. It is made from top and
rest and never from lse alone: exp(z - lse) loses the digits that a common offset of the logits
takes from lse. How A·p_j - q_j is formed where it is near to 0 is the target's business.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xent_array._batch import Batch
from xent_array._blocks import slab_of
from xent_array._kernels import SoftKernels
from xent_array._namespace import Array
from xent_array._row_blocks import RowIndex
from xent_array._rowwise import Reading, counted, factor_of, lse_of, scale_below_top, transformed
from xent_array._stats import Glance, Scalar, Spread, times
from xent_array._wanted import ProbabilityRows, Pull


class Demand(NamedTuple):
    """Where a gradient goes, and what it is multiplied by."""

    into: Array | None  # laid out as the rows; None: one block, of whole rows, is handed back
    divisor: Scalar  # of the mean


def gradient(
    batch: Batch, block: RowIndex, slabs: list[slice], reading: Reading, demand: Demand
) -> Array | None:
    """Derivatives by the logits of a block, written where they go or returned."""
    row = reading.slab.numbers
    pull = Pull(
        rest=row.rest,
        mass=row.mass,
        excess=2.0 * batch.z_loss * lse_of(batch, reading) if batch.z_loss else 0.0,
        factor=_factor(batch, block, reading, demand.divisor),
    )
    if demand.into is None:
        (classes,) = slabs
        return _of_slab(batch, block, classes, reading, pull)
    into = demand.into[block]
    if batch.kernels is not None:
        _write_by_kernel(batch, batch.logits[block], reading, pull, into)
        return None
    for classes in slabs:
        slab_of(into, classes)[...] = _of_slab(batch, block, classes, reading, pull)
    return None


def times_upstream(xp: Any, grad: Array, upstream: Array) -> Array:
    """A gradient times that of its loss: rows that do not count stay 0, be the factor infinite."""
    return xp.where(grad == 0.0, grad, grad * upstream)


def _write_by_kernel(batch: Batch, z: Array, reading: Reading, pull: Pull, into: Array) -> None:
    backend, rows, seen = batch.backend, reading.rows, reading.seen
    assert not isinstance(seen, Spread)
    assert batch.kernels is not None
    top = reading.slab.numbers.top
    if isinstance(rows, ProbabilityRows):
        assert isinstance(batch.kernels, SoftKernels)
        batch.kernels.soft_grad(
            z,
            into,
            rows.soft(),
            batch.logit_scale,
            top=top,
            rest=pull.rest,
            total=pull.mass + pull.excess,
            factor=pull.factor,
            kept=rows.kept,
        )
        return
    if seen is None:
        picked = backend.cast(backend.gather(z, rows.index), batch.compute_dtype) - top
        seen = Glance(top, pull.rest, times(batch.logit_scale, picked))
    slope = rows.slope(seen, pull, slice(0, batch.classes))
    batch.kernels.row_grad(
        z,
        into,
        batch.logit_scale,
        top=top,
        pull=slope.pull,
        even=slope.even,
        weight=rows.q.weight,
        index=slope.index,
        chosen=slope.chosen,
        kept=rows.kept,
        logarithm=slope.logarithm,
    )


def _of_slab(batch: Batch, block: RowIndex, classes: slice, reading: Reading, pull: Pull) -> Array:
    backend, softcap = batch.backend, batch.softcap
    xp, seen, z = backend.xp, reading.seen, None
    if not isinstance(seen, Spread) or softcap is not None:
        z = backend.cast(slab_of(batch.logits[block], classes), batch.compute_dtype)
    if not isinstance(seen, Spread):
        row = reading.slab.numbers
        part, scale = transformed(batch, z), scale_below_top(batch)
        shifted = times(scale, part - row.top)
        seen = Spread(row.top, row.rest, shifted, xp.exp(shifted), (part, row.top, scale))
    grad = reading.rows.gradient(seen, pull, classes)
    if softcap is not None:
        grad = grad * _tanh_slope(xp, times(batch.logit_scale, z) / softcap)
    return backend.cast(counted(xp, reading.rows, grad), batch.logits.dtype)


def _factor(batch: Batch, block: RowIndex, reading: Reading, divisor: Scalar) -> Scalar:
    """What a row's derivatives are multiplied by; NaN where its target is bad.

    The scale of the logits is here with its sign, whatever `transformed` made of it.
    """
    factor = batch.logit_scale / divisor
    if batch.sample_weight is not None:
        factor = factor * factor_of(batch, batch.sample_weight, block)
    if batch.grad_output is not None:
        factor = factor * factor_of(batch, batch.grad_output, block)
    if reading.rows.bad is not None:
        xp, rest = batch.backend.xp, reading.slab.numbers.rest
        factor = factor * xp.where(reading.rows.bad, xp.nan, xp.ones_like(rest))
    return factor


def _tanh_slope(xp: Any, x: Array) -> Array:
    """The derivative of tanh, 4t/(1 + t)² with t = exp(-2|x|): 1 - tanh² loses all its digits."""
    t = xp.exp(-2.0 * xp.abs(x))
    return 4.0 * t / ((1.0 + t) * (1.0 + t))
