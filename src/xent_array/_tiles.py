"""A projected call evaluated tile by tile: logits are made, read, turned into gradients, dropped.

With g the derivatives by the logits of some rows x, those by what the logits are made of are

    features: g · linear_weight        linear_weight: gᵀ · x        linear_bias: the sum of g

so that a loss and its gradients take three matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from xent_array._backends import Memory, Standard
from xent_array._batch import Batch
from xent_array._blocks import Assembly
from xent_array._engines import evaluate, evaluate_with_grad
from xent_array._evaluate import Outcome, Result, counts_of_block, result_of
from xent_array._namespace import Array
from xent_array._projected import Parts, Projected, flattened, tile
from xent_array._reduce import Counts, divisor
from xent_array._rowwise import rows_of
from xent_array._stats import Scalar

#: Bytes of the logits of a tile, in the compute dtype, per kind of memory: products of few rows are
#: slow, many rows take memory. On a "device" the sum of the projection's gradient, gigabytes of a
#: large vocabulary, is read and written for every tile, so a few of them are best; how large they
#: should be was not measured on one.
TILE_BYTES: dict[Memory, int] = {"host": 1 << 26, "opaque": 1 << 26, "device": 1 << 30}


class Wanted(NamedTuple):
    """Which derivatives are wanted."""

    features: bool
    linear_weight: bool
    linear_bias: bool
    wide: bool = False  # in the compute dtype: they are multiplied before they are rounded


NOTHING = Wanted(False, False, False)


def evaluate_tiles(call: Projected, wanted: Wanted = NOTHING) -> tuple[Result, Parts]:
    """Evaluate the loss, statistics where asked for, and the derivatives that are wanted.

    None of it is differentiable. The derivatives are flattened, as the rows are.
    """
    shape = call.batch.shape
    call = flattened(call)
    batch = call.batch._replace(differentiable=False)
    call, backend = call._replace(batch=batch), batch.backend
    with backend.detached():
        counts = counts_of(batch)
        slopes = Slopes(call, wanted, 1.0 if counts is None else 1.0 / divisor(batch, counts))
        loss, stats = _walk(call, slopes if any(wanted[:3]) else None)
        return assembled(batch, shape, loss, stats, counts), slopes.finished()


def counts_of(batch: Batch) -> Counts | None:
    """What the mean divides by, from the targets alone; None for other reductions."""
    if batch.reduction != "mean":
        return None
    return counts_of_block(batch, (...,), rows_of(batch, (...,)))


def assembled(
    batch: Batch,
    shape: tuple[int, ...],
    loss: Array,
    stats: Sequence[Array],
    counts: Counts | None,
) -> Result:
    """Losses of flattened rows or their sum, and statistics, as the caller gets them."""

    def shaped(x: Array) -> Array:
        return batch.backend.xp.reshape(x, (*shape, 1))

    loss = shaped(loss) if batch.reduction == "none" else loss
    return result_of(batch, Outcome(loss, None, None, list(map(shaped, stats))), counts, None)


def tiles(batch: Batch) -> list[slice]:
    """Cut the rows of a flattened batch by the budget, as equally as can be."""
    (rows,) = batch.shape
    size = TILE_BYTES[batch.memory] // (batch.classes * batch.backend.itemsize(batch.compute_dtype))
    count = max(1, -(-rows // max(1, size)))
    size = max(1, -(-rows // count))
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]


def logits_of(batch: Batch, x: Array, parts: Parts, room: Array | None = None) -> Array:
    """The logits of features `x`, written to `room` where there is any."""
    backend, dtype = batch.backend, batch.compute_dtype
    _, weight, bias = parts
    if _multiplied_as_it_is(batch, weight):
        return backend.affine(x, weight, bias, room)
    if room is None:
        room = backend.room((x.shape[0], batch.classes), x, dtype)
    x = backend.cast(x, dtype)
    for classes, part in _widened(batch, weight):
        some = None if bias is None else backend.cast(bias[classes], dtype)
        room[:, classes] = backend.affine(x, part, some, None)
    return room


def _multiplied_as_it_is(batch: Batch, weight: Array) -> bool:
    """Whether a matrix need not be widened to the compute dtype."""
    return batch.backend.multiplies_half or weight.dtype == batch.compute_dtype


def _widened(batch: Batch, weight: Array) -> Iterator[tuple[slice, Array]]:
    """A matrix in the compute dtype: whole if it is, else piece by piece."""
    backend, dtype = batch.backend, batch.compute_dtype
    if _multiplied_as_it_is(batch, weight):
        yield slice(0, batch.classes), weight
        return
    for piece in backend.pieces(weight, dtype):
        yield piece, backend.cast(weight[piece, :], dtype)


def _walk(call: Projected, slopes: Slopes | None) -> tuple[Array, list[Array]]:
    """Loss and statistics of all tiles; `slopes` take up the derivatives on the way."""
    batch, parts, _ = call
    backend, cut, per_row = batch.backend, tiles(batch), batch.reduction == "none"
    rows, totals = Assembly(backend, batch.shape), Assembly(backend, (len(cut),))
    room: Array | None = None
    for place, here in enumerate(cut):
        x = parts.features[here, :]
        z = logits_of(batch, x, parts, None if room is None else room[: x.shape[0], :])
        room = z if room is None else room
        part = tile(batch, here, z)
        result = evaluate(part) if slopes is None else slopes.take(here, x, part)
        rows.put(here, (*([result.loss] if per_row else []), *(result.stats or ())))
        totals.put(place, () if per_row else (result.loss,))
    if per_row:
        return rows.columns[0], rows.columns[1:]
    return backend.total(totals.columns[0]), rows.columns


class Slopes:
    """The derivatives by what the logits are made of, summed over tiles.

    Those of half arrays are summed in the compute dtype, and multiplied by what is common to all
    rows before they are rounded.
    """

    def __init__(self, call: Projected, wanted: Wanted, factor: Scalar) -> None:
        self.batch, self.parts, upstream = call
        self.backend: Standard = self.batch.backend
        self.wanted = wanted
        if upstream is not None:
            factor = self.backend.cast(upstream, self.batch.compute_dtype) * factor
        self.factor = factor
        self.half = self.backend.itemsize(self.parts.features.dtype) < 4
        dtype = self.batch.compute_dtype
        self.features, self.linear_weight, self.linear_bias = (
            self.backend.room(x.shape, x, dtype) if x is not None and want else None
            for x, want in zip(self.parts, wanted, strict=False)
        )

    def take(self, here: slice, x: Array, part: Batch) -> Result:
        """Evaluate a tile, whose gradient takes the place of its logits, and take that up."""
        backend, dtype = self.backend, self.batch.compute_dtype
        result = evaluate_with_grad(self._scaled(part)._replace(out=part.logits))
        g = result.grad_logits
        x = x if backend.multiplies_half else backend.cast(x, dtype)
        if self.features is not None:
            self._take_features(self.features[here, :], g)
        if self.linear_weight is not None:
            self._sum(self.linear_weight, g.T, x, first=here.start == 0)
        if self.linear_bias is not None:
            total = backend.xp.sum(backend.cast(g, dtype), axis=0)
            self.linear_bias[...] = total if here.start == 0 else self.linear_bias + total
        return result

    def _scaled(self, part: Batch) -> Batch:
        if self.half or self.batch.reduction == "none":  # losses per row have their own factors
            return part
        ones = self.backend.xp.ones(
            (*part.shape, 1), dtype=part.compute_dtype, device=self.backend.device(part.logits)
        )
        return part._replace(grad_output=ones * self.factor)

    def _take_features(self, to: Array, g: Array) -> None:
        for classes, weight in _widened(self.batch, self.parts.linear_weight):
            self._sum(to, g[:, classes], weight, first=classes.start == 0)

    def _sum(self, total: Array, a: Array, b: Array, *, first: bool) -> None:
        """Add a product to a sum, whose memory holds nothing before the `first`."""
        (self.backend.first_product if first else self.backend.add_product)(total, a, b)

    def finished(self) -> Parts:
        """What was summed, in the dtype of what it belongs to unless wanted wide."""
        sums = (self.features, self.linear_weight, self.linear_bias)
        return Parts(*(None if x is None else self._finished(x) for x in sums))

    def _finished(self, x: Array) -> Array:
        if not self.half:
            return x
        x *= self.factor
        return x if self.wanted.wide else self.backend.cast(x, self.parts.features.dtype)
