"""dask: chunks of rows and classes are read, slabs of classes merged, whole rows concluded.

Nothing is computed while the graph is built. A chunk is evaluated by the backend of its own arrays,
NumPy's or CuPy's, in blocks as any array is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import dask.array as da

from xent_array._batch import Batch, apart, laid_out
from xent_array._engines.chunks import (
    Rows,
    conclude_chunk,
    grad_chunk,
    logsumexp_of_chunk,
    merge_chunks,
    probabilities_of_chunk,
    read_chunk,
)
from xent_array._evaluate import Result, result_of
from xent_array._namespace import Array
from xent_array._reduce import Counts, divisor
from xent_array._rows import classes_back
from xent_array._wanted import IndexTarget, NoTarget


class _Graph(NamedTuple):
    """A batch as dask sees it: what is cut into chunks, and what every chunk needs whole."""

    logits: Array
    rows: Rows
    classes: Array  # the class numbers, cut as the logits are
    whole: dict[str, Any]


def value(batch: Batch) -> Result:
    """Build the graph of the loss."""
    if isinstance(batch.target, NoTarget):
        return Result(_of_whole_rows(batch, logsumexp_of_chunk, keep=False), None, None)
    return _evaluated(batch, grad=False)


def value_and_grad(batch: Batch) -> Result:
    """Build the graph of the loss and of its derivatives by the logits."""
    return _evaluated(batch, grad=True)


def probabilities(batch: Batch) -> Array:
    """Build the graph of the softmax of a batch without a target, or of its logarithm."""
    assert isinstance(batch.target, NoTarget)
    work = partial(probabilities_of_chunk, logarithm=batch.target.logarithm)
    return _of_whole_rows(batch, work, keep=True)


def _of_whole_rows(batch: Batch, work: Callable[..., Array], *, keep: bool) -> Array:
    """Some work on chunks that hold all classes, whose axis is gone after it unless kept."""
    x, axis = batch.logits, batch.axis
    whole, dropped = x.rechunk({axis: -1}), None if keep else axis
    work = partial(work, axis=axis)
    return da.map_blocks(work, whole, drop_axis=dropped, dtype=x.dtype, meta=x._meta)


def _evaluated(batch: Batch, *, grad: bool) -> Result:
    batch = laid_out(batch)
    graph = _graph(batch)
    slabs = _merged(batch, graph)
    concluded = _concluded(batch, graph, slabs)

    def column(name: str, dtype: Any) -> Array:
        meta = graph.logits._meta.astype(dtype)
        return concluded.map_blocks(getattr, name, dtype=dtype, meta=meta)

    backend, dtype = batch.backend, batch.compute_dtype
    loss, counts, stats = column("loss", dtype), None, []
    if batch.reduction != "none":
        loss = backend.total(loss)
    if batch.reduction == "mean":
        weight, kept = column("weight", dtype), column("kept", bool)
        counts = Counts(backend.total(weight), backend.count(kept))
    if batch.return_stats:
        index_dtype = backend.index_dtype(graph.logits)
        dtypes = {"lse": dtype, "prediction": index_dtype, "correct": bool}
        stats = [column(name, dtype) for name, dtype in dtypes.items()]
    slope = _gradient(batch, graph, slabs, counts) if grad else None
    return result_of(batch, loss, stats, counts, grad=slope)


def _graph(batch: Batch) -> _Graph:
    """Cut everything alike."""
    z, target = _without_empty(batch.logits), _without_empty(batch.target.column)
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
    columns = Rows(target, *(None if x is None else next(left) for x in others))
    numbers = da.arange(batch.classes, chunks=(z.chunks[-1],), dtype="int64")
    q = batch.target.q
    whole = {
        "weight": q.weight,
        "smoothing": q.smoothing,
        "scale": batch.logit_scale,
        "template": _template(batch),
    }
    return _Graph(z, columns, numbers[(None,) * (z.ndim - 1)], whole)


def _without_empty(x: Array) -> Array:
    """Drop chunks of no classes."""
    widths = x.chunks[-1]
    return x if all(widths) else x.rechunk({x.ndim - 1: tuple(filter(None, widths))})


def _template(batch: Batch) -> Batch:
    """A batch without arrays and without its library, which may be sent to a worker."""
    nothing: Any = None
    bare, _ = apart(batch, da.Array)
    target = bare.target
    target = target.holding(target.q._replace(backend=nothing), nothing)
    return bare._replace(backend=nothing, target=target)


def _merged(batch: Batch, graph: _Graph) -> Array:
    """The slab of all classes of each chunk of rows, as chunks that hold no array but a `Slab`."""
    cut = graph.logits.numblocks[-1] > 1
    whole = {**graph.whole, "slab": cut}
    args = (graph.classes, graph.rows.target, graph.rows.where)
    slabs = da.map_blocks(
        read_chunk,
        graph.logits,
        *args,
        **whole,
        meta=graph.logits._meta,
        dtype=batch.compute_dtype,
    )
    axes = tuple(range(slabs.ndim))
    return da.blockwise(
        merge_chunks,
        (*axes[:-1], slabs.ndim),
        slabs,
        axes,
        **{key: graph.whole[key] for key in ("scale", "template")},
        new_axes={slabs.ndim: 1},
        concatenate=False,
        dtype=batch.compute_dtype,
        meta=graph.logits._meta,
    )


def _concluded(batch: Batch, graph: _Graph, slabs: Array) -> Array:
    """What is left of the rows of each chunk, as chunks that hold a `Concluded`."""
    rows = graph.rows._replace(grad_output=None)
    if not isinstance(batch.target, IndexTarget):
        rows = rows._replace(target=None)  # every class of it was read already
    meta, dtype = slabs._meta, batch.compute_dtype
    return da.map_blocks(conclude_chunk, slabs, *rows, **graph.whole, dtype=dtype, meta=meta)


def _gradient(batch: Batch, graph: _Graph, slabs: Array, counts: Counts | None) -> Array:
    by = 1.0 if counts is None else divisor(batch, counts)
    grad = da.map_blocks(
        grad_chunk,
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
