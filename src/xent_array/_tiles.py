"""A projected call evaluated tile by tile: logits are made, read, turned into gradients, dropped.

A tile is some rows with all their classes, a batch of the loss like any. Rows wider than a tile
are cut along their classes as well; what is known of the slabs is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from xent_array._backends import Memory
from xent_array._batch import Batch
from xent_array._blocks import Assembly
from xent_array._engines import evaluate, evaluate_with_grad
from xent_array._evaluate import Result, counts_of_block, result_of
from xent_array._gradient import Demand, gradient
from xent_array._namespace import Array
from xent_array._projected import Parts, Projected, flattened, some_rows, tile
from xent_array._reduce import Counts, divisor
from xent_array._rowwise import Reading, Slab, conclude, merge_slabs, read_slab, rows_of, whole_rows
from xent_array._slopes import NOTHING, Slopes, Wanted, logits_of
from xent_array._stats import fold

#: Bytes of the logits of a tile, in the compute dtype, per kind of memory: products of few rows are
#: slow, many rows take memory. On the "host" more than the 32 MiB up to which glibc puts arrays in
#: its heap, between whatever else lies there. On a "device" the sum of the projection's gradient,
#: gigabytes of a large vocabulary, is read and written for every tile, so a few of them are best;
#: how large they should be was not measured on one.
TILE_BYTES: dict[Memory, int] = {"host": 1 << 26, "opaque": 1 << 26, "device": 1 << 30}

#: Rows wider than a tile are cut into slabs of their classes, of so many rows and bytes: the whole
#: weight is read for each run of rows, and array code holds a few arrays as large as a slab.
SLAB_ROWS, SLAB_BYTES = 256, 1 << 24


def evaluate_tiles(call: Projected, wanted: Wanted = NOTHING) -> tuple[Result, Parts]:
    """Evaluate the loss, statistics where asked for, and the derivatives that are wanted.

    None of it is differentiable.
    """
    shape, features = call.batch.shape, call.parts.features
    call = flattened(call)
    batch = call.batch._replace(differentiable=False)
    call, backend = call._replace(batch=batch), batch.backend
    with backend.detached():
        counts = counts_of(batch)
        slopes = Slopes(call, wanted, 1.0 if counts is None else 1.0 / divisor(batch, counts))
        loss, stats = _walk(call, slopes if any(wanted[:3]) else None)
        grads = slopes.finished()
        if grads.features is not None:
            grads = grads._replace(features=backend.xp.reshape(grads.features, features.shape))
        return assembled(batch, shape, loss, stats, counts), grads


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
    return result_of(batch, loss, list(map(shaped, stats)), counts)


#: Takes up the derivatives by the logits of some classes.
Taken = Callable[[slice, Array], None]


class Columns(NamedTuple):
    """All that there is of each row, to be cut into tiles."""

    features: Array
    target: Array
    where: Array | None
    sample_weight: Array | None


def columns_of(batch: Batch, parts: Parts) -> Columns:
    """What is cut of a flattened batch that has no `grad_output`."""
    return Columns(parts.features, batch.target.column, batch.where, batch.sample_weight)


def evaluate_columns(batch: Batch, parts: Parts, columns: Columns) -> Result:
    """Evaluate the rows of some columns, their losses added up unless each is asked for."""
    return evaluate(tile_of_columns(batch, parts, columns))


def tile_of_columns(batch: Batch, parts: Parts, columns: Columns) -> Batch:
    """The rows of some columns, with logits made for them."""
    features, target, where, sample_weight = columns
    here = batch._replace(
        target=batch.target.renewed(batch.target.q, target),
        where=where,
        sample_weight=sample_weight,
    )
    logits = batch.backend.affine(features, parts.linear_weight, parts.linear_bias, None)
    return tile(some_rows(here, slice(0, features.shape[0])), logits)


def tiles(batch: Batch) -> list[slice]:
    """Cut the rows of a flattened batch by the budget."""
    return _runs(batch.shape[0], TILE_BYTES[batch.memory] // _row_bytes(batch))


def tiles_and_slabs(batch: Batch) -> tuple[list[slice], list[slice]]:
    """The same, and into which slabs the classes are cut."""
    (rows,), row_bytes = batch.shape, _row_bytes(batch)
    if row_bytes <= TILE_BYTES[batch.memory] or rows == 0:
        return tiles(batch), [slice(0, batch.classes)]
    width = SLAB_BYTES * batch.classes // (row_bytes * min(rows, SLAB_ROWS))
    return _runs(rows, SLAB_ROWS), _runs(batch.classes, width)


def _row_bytes(batch: Batch) -> int:
    return batch.classes * batch.backend.itemsize(batch.compute_dtype)


def _runs(length: int, most: int) -> list[slice]:
    """Cut a length into runs of at most so many, as equally as can be; one at least."""
    count = max(1, -(-length // max(1, most)))
    size = max(1, -(-length // count))
    return [slice(start, min(start + size, length)) for start in range(0, max(length, 1), size)]


def _walk(call: Projected, slopes: Slopes | None) -> tuple[Array, list[Array]]:
    """Loss and statistics of all tiles; `slopes` take up the derivatives on the way."""
    batch, per_row = call.batch, call.batch.reduction == "none"
    cut, slabs = tiles_and_slabs(batch)
    rows, totals = Assembly(batch.backend, batch.shape), Assembly(batch.backend, (len(cut),))
    evaluate_rows = _evaluate_whole if len(slabs) == 1 else partial(_evaluate_slabs, slabs=slabs)
    makes = _Makes(call)
    for place, here in enumerate(cut):
        part = some_rows(batch, here)
        part = part if slopes is None else slopes.scaled(part)
        taken = None if slopes is None else partial(slopes.add, here)
        result = evaluate_rows(part, partial(makes, here), taken)
        rows.put(here, (*([result.loss] if per_row else []), *(result.stats or ())))
        totals.put(place, () if per_row else (result.loss,))
    if per_row:
        return rows.columns[0], rows.columns[1:]
    return batch.backend.total(totals.columns[0]), rows.columns


class _Makes:
    """Makes the logits of some rows and classes, in memory that is taken once."""

    def __init__(self, call: Projected) -> None:
        self.call = call
        self.memory: Array | None = None

    def __call__(self, rows: slice, classes: slice) -> Array:
        batch, (features, weight, bias), *_ = self.call
        reshape, room = batch.backend.xp.reshape, None
        if self.memory is not None:
            shape = (rows.stop - rows.start, classes.stop - classes.start)
            room = reshape(self.memory[: shape[0] * shape[1]], shape)
        bias = None if bias is None else bias[classes]
        parts = Parts(features[rows, :], weight[classes, :], bias)
        logits = logits_of(batch, parts, room)
        if self.memory is None:
            self.memory = reshape(logits, (-1,))
        return logits


def _evaluate_whole(rows: Batch, made: Callable[[slice], Array], taken: Taken | None) -> Result:
    """Evaluate rows with all their classes; gradients take the place of the logits."""
    classes = slice(0, rows.classes)
    part = tile(rows, made(classes))
    if taken is None:
        return evaluate(part)
    result = evaluate_with_grad(part._replace(out=part.logits))
    taken(classes, result.grad_logits)
    return result


def _evaluate_slabs(
    rows: Batch, made: Callable[[slice], Array], taken: Taken | None, slabs: list[slice]
) -> Result:
    """Evaluate rows slab by slab of their classes; for gradients the logits are made again."""
    block, targets = (...,), rows_of(rows, (...,))
    merge = partial(merge_slabs, rows)

    def read(classes: slice) -> Slab:
        part = rows._replace(logits=made(classes))
        return read_slab(part, block, targets, classes, slab=True)[0]

    reading = Reading(targets, whole_rows(fold([*map(read, slabs)], merge)), None)
    loss, stats = conclude(rows, block, reading)
    if taken is not None:
        for classes in slabs:
            part = rows._replace(logits=made(classes))
            gradient(part, block, [classes], reading, Demand(part.logits, 1.0))
            taken(classes, part.logits)
    loss = loss if rows.reduction == "none" else rows.backend.total(loss)
    return result_of(rows, loss, stats, None)
