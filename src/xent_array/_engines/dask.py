"""dask: chunks of rows and classes are read, slabs of classes merged, whole rows concluded.

Nothing is computed while the graph is built. A chunk is evaluated by the backend of its own arrays,
NumPy's or CuPy's, in blocks as any array is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import dask.array as da

from xent_array._backends import backend_of
from xent_array._batch import Batch, laid_out
from xent_array._blocks import Assembly, RowIndex, keep_heap, plan
from xent_array._evaluate import Outcome, Result, result_of
from xent_array._gradient import Demand, gradient
from xent_array._namespace import Array
from xent_array._reduce import Counts, divisor
from xent_array._rows import classes_back
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
from xent_array._wanted import IndexTarget, Smoothing


class _Rows(NamedTuple):
    """The arrays of a batch that are cut where its rows are; the class axis last."""

    target: Array | None  # class indices or probabilities
    where: Array | None
    sample_weight: Array | None
    grad_output: Array | None


class _Graph(NamedTuple):
    """A batch as dask sees it: what is cut into chunks, and what every chunk needs whole."""

    logits: Array
    rows: _Rows
    classes: Array  # the class numbers, cut as the logits are
    whole: dict[str, Any]


class _Concluded(NamedTuple):
    """What is left of the rows of a chunk; each of them an array."""

    loss: Array
    lse: Array | None
    prediction: Array | None
    correct: Array | None
    weight: Array  # in the divisor of the mean
    kept: Array  # whether a row counts


def evaluate_dask(batch: Batch, *, grad: bool) -> Result:
    """Build the graph of the loss, and of its derivatives by the logits where these are asked."""
    batch = laid_out(batch)
    graph = _graph(batch)
    slabs = _merged(batch, graph)
    per_row = graph.rows._replace(grad_output=None)
    if not isinstance(batch.target, IndexTarget):
        per_row = per_row._replace(target=None)
    concluded = _by_chunk(_conclude_chunk, slabs, per_row, graph.whole, dtype=batch.compute_dtype)
    index_dtype = batch.backend.index_dtype(graph.logits)

    def column(name: str, dtype: Any) -> Array:
        return concluded.map_blocks(
            getattr, name, dtype=dtype, meta=graph.logits._meta.astype(dtype)
        )

    loss, counts, stats = column("loss", batch.compute_dtype), None, []
    if batch.reduction != "none":
        loss = batch.backend.total(loss)
    if batch.reduction == "mean":
        weight, kept = column("weight", batch.compute_dtype), column("kept", bool)
        counts = Counts(batch.backend.total(weight), batch.backend.count(kept))
    if batch.return_stats:
        dtypes = {"lse": batch.compute_dtype, "prediction": index_dtype, "correct": bool}
        stats = [column(name, dtype) for name, dtype in dtypes.items()]
    slope = _gradient(batch, graph, slabs, counts) if grad else None
    return result_of(batch, Outcome(loss, counts, None, stats), counts, slope)


def _graph(batch: Batch) -> _Graph:
    """Cut everything alike."""
    z, target = batch.logits, batch.target.column
    rows, classes = tuple(range(z.ndim - 1)), z.ndim - 1
    of_rows = [x for x in (batch.where, batch.sample_weight, batch.grad_output) if x is not None]
    own = classes + 1  # of the arrays without classes, whose last axis has length one
    pairs = [z, (*rows, classes)]
    pairs += [target, (*rows, own if isinstance(batch.target, IndexTarget) else classes)]
    for x in of_rows:
        pairs += [x, (*rows, own)]
    _, (z, target, *cut) = da.core.unify_chunks(*pairs)
    left = iter(cut)
    others = (batch.where, batch.sample_weight, batch.grad_output)
    columns = _Rows(target, *(None if x is None else next(left) for x in others))
    numbers = da.arange(batch.classes, chunks=(z.chunks[-1],), dtype="int64")
    q = batch.target.q
    whole = {
        "weight": q.weight,
        "smoothing": q.smoothing,
        "scale": batch.logit_scale,
        "template": _template(batch),
    }
    return _Graph(z, columns, numbers[(None,) * (z.ndim - 1)], whole)


def _template(batch: Batch) -> Batch:
    """A batch without arrays and without its library, which may be sent to a worker."""
    target = batch.target._replace(q=None).with_column(None)
    return batch._replace(
        backend=None,
        logits=None,
        target=target,
        where=None,
        sample_weight=None,
        grad_output=None,
        denominator=None,
        logit_scale=None,
    )


def _merged(batch: Batch, graph: _Graph) -> Array:
    """The slab of all classes of each chunk of rows, as chunks that hold no array but a `Slab`."""
    cut = graph.logits.numblocks[-1] > 1
    whole = {**graph.whole, "slab": cut}
    args = (graph.classes, graph.rows.target, graph.rows.where)
    slabs = da.map_blocks(
        _read_chunk,
        graph.logits,
        *args,
        **whole,
        meta=graph.logits._meta,
        dtype=batch.compute_dtype,
    )
    axes = tuple(range(slabs.ndim))
    return da.blockwise(
        _merge_chunks,
        (*axes[:-1], slabs.ndim),
        slabs,
        axes,
        **{key: graph.whole[key] for key in ("scale", "template")},
        new_axes={slabs.ndim: 1},
        concatenate=False,
        dtype=batch.compute_dtype,
        meta=graph.logits._meta,
    )


def _by_chunk(
    function: Any, first: Array, rows: _Rows, whole: dict[str, Any], *, dtype: Any
) -> Array:
    """Map a function over chunks that lie beside each other."""
    return da.map_blocks(function, first, *rows, **whole, dtype=dtype, meta=first._meta)


def _gradient(batch: Batch, graph: _Graph, slabs: Array, counts: Counts | None) -> Array:
    by = 1.0 if counts is None else divisor(batch, counts)
    grad = da.map_blocks(
        _grad_chunk,
        graph.logits,
        slabs,
        graph.classes,
        *graph.rows,
        **graph.whole,
        divisor=by,
        dtype=graph.logits.dtype,
        meta=graph.logits._meta,
    )
    return classes_back(batch.backend, grad, batch.axis)


# --- what runs when the graph does, on the arrays of a chunk


def _chunk(
    template: Batch, like: Array, shape: tuple[int, ...], rows: _Rows, whole: dict[str, Any]
) -> Batch:
    """The batch of a chunk, its arrays as large as its rows."""
    backend = backend_of("logits", like)
    xp = backend.xp
    q = Smoothing(backend, template.classes, whole["weight"], whole["smoothing"])
    target = xp.empty((*shape, 0), dtype=like.dtype) if rows.target is None else rows.target
    others = [None if x is None else xp.broadcast_to(x, (*shape, 1)) for x in rows[1:]]
    where, sample_weight, grad_output = others
    return template._replace(
        backend=backend,
        memory=backend.memory(like),
        shape=shape,
        target=template.target._replace(q=q).with_column(target),
        where=where,
        sample_weight=sample_weight,
        grad_output=grad_output,
        logit_scale=whole["scale"],
    )


def _blocks_of(batch: Batch) -> list[RowIndex]:
    width, itemsize = batch.logits.shape[-1], batch.backend.itemsize(batch.compute_dtype)
    keep_heap(batch.backend, batch.logits)
    return plan(batch.memory, batch.shape, width, itemsize, differentiable=False).blocks


def _slice_of(classes: Array) -> slice:
    return slice(int(classes.flat[0]), int(classes.flat[0]) + classes.size)


def _read_chunk(
    logits: Array,
    classes: Array,
    target: Array,
    where: Array | None,
    *,
    template: Batch,
    slab: bool,
    **whole: Any,
) -> Slab:
    rows = _Rows(target, where, None, None)
    batch = _chunk(template, logits, logits.shape[:-1], rows, whole)._replace(logits=logits)
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
    top, rest, mass, dot, value, place, probability, label = columns
    return Slab(
        FourNumbers(top, rest, mass, dot),
        None if value is None else Greatest(value, place),
        None if probability is None else Greatest(probability, label),
    )


def _merge_chunks(slabs: Any, *, scale: Any, template: Batch) -> Slab:
    slabs = slabs if isinstance(slabs, list) else [slabs]
    if len(slabs) == 1:
        return slabs[0]
    backend = backend_of("logits", slabs[0].numbers.top)
    batch = template._replace(backend=backend, logit_scale=scale)
    with backend.quiet():
        return whole_rows(fold(slabs, functools.partial(merge_slabs, batch)))


def _conclude_chunk(slab: Slab, *rows: Array | None, template: Batch, **whole: Any) -> _Concluded:
    top = slab.numbers.top
    batch = _chunk(template, top, top.shape[:-1], _Rows(*rows), whole)
    xp, block = batch.backend.xp, (...,)
    here = rows_of(batch, block)
    with batch.backend.quiet():
        result = conclude(batch, block, Reading(here, slab, None))
        weight = weight_of(batch, block, here)
    kept = xp.ones_like(top, dtype=xp.bool) if here.kept is None else here.kept
    weight = xp.ones_like(top) if weight is None else weight
    stats = result.stats or (result.lse, None, None)
    return _Concluded(result.loss, *stats, xp.where(kept, weight, 0.0), kept)


def _grad_chunk(
    logits: Array,
    slab: Slab,
    classes: Array,
    *rows: Array | None,
    template: Batch,
    divisor: Any,
    **whole: Any,
) -> Array:
    batch = _chunk(template, logits, logits.shape[:-1], _Rows(*rows), whole)._replace(logits=logits)
    xp, numbers = batch.backend.xp, _flat(batch, slab)
    grad = xp.empty(logits.shape, dtype=logits.dtype)
    with batch.backend.quiet():
        for block in _blocks_of(batch):
            part = _slab(None if x is None else x[block] for x in numbers)
            result = conclude(batch, block, Reading(rows_of(batch, block), part, None))
            demand = Demand(grad, batch.grad_output, divisor)
            gradient(batch, block, [_slice_of(classes)], result, demand)
    return grad
