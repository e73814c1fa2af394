"""A call of the loss: every argument checked, and all of them laid out as rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from xent_array._arguments import Library
from xent_array._backends import Memory, Standard
from xent_array._blocks import LOOK, row_blocks
from xent_array._kernels import Kernels
from xent_array._namespace import Array
from xent_array._options import OnEmpty, Options, Reduction
from xent_array._rows import class_axis, classes_last, row_factors, row_mask
from xent_array._stats import Scalar
from xent_array._target import check_target, class_weight
from xent_array._wanted import IndexTarget, ProbabilityTarget, Smoothing, Target


class Batch(NamedTuple):
    """The checked arguments; what is one per row has a class axis of length one, last."""

    backend: Standard
    memory: Memory
    reduction: Reduction
    on_empty: OnEmpty
    by_rows: bool  # the mean divides by how many rows count
    return_stats: bool
    compute_dtype: Any
    result_dtype: Any
    shape: tuple[int, ...]  # of the rows
    classes: int
    axis: int  # of the classes in the caller's logits
    logits: Array  # as the caller has them, until `laid_out`
    target: Target
    where: Array | None
    sample_weight: Array | None
    logit_scale: Scalar
    softcap: float | None
    z_loss: float
    denominator: Scalar | None
    grad_output: Array | None  # one factor per row
    out: Array | None  # where the gradient goes, of the shape of the caller's logits
    differentiable: bool  # the library itself will differentiate what is computed
    logits_alone: bool  # and that by nothing but the logits
    kernels: Kernels | None  # what reads the rows; None: array code


def gather(
    logits: Array,
    target: Array,
    options: Options,
    *,
    grad_output: Array | None = None,
    out: Array | None = None,
) -> Batch:
    """Check a call whole, before any work, and lay it out as rows."""
    library = Library("logits", logits)
    logits, axis = library.leader, class_axis(library, options.axis)
    if out is not None:
        out = library.writable("out", out)
    shape = tuple(logits.shape)
    return gathered(
        library,
        (logits,),
        shape,
        axis=axis,
        target=target,
        options=options,
        grad_output=grad_output,
        logits=logits,
        out=out,
    )


def gathered(
    library: Library,
    sources: Sequence[Array | None],
    logits_shape: tuple[int, ...],
    *,
    axis: int,
    target: Array,
    options: Options,
    grad_output: Array | None,
    logits: Array | None = None,
    out: Array | None = None,
) -> Batch:
    """Check everything but the logits, which were checked, or are to be made of `sources`.

    The library of a call is settled by its leading argument.
    """
    backend = library.backend
    dtype = backend.compute_dtype(library.leader.dtype)
    classes, shape = logits_shape[axis], logits_shape[:axis] + logits_shape[axis + 1 :]
    weight = class_weight(library, options.weight, classes, dtype)
    smoothing = library.scalar("label_smoothing", options.label_smoothing, dtype)
    where = row_mask(library, options.where, shape)
    sample_weight = row_factors(library, "sample_weight", options.sample_weight, shape)
    scale = library.scalar("logit_scale", options.logit_scale, dtype)
    z_loss = library.scalar("z_loss", options.z_loss, dtype)
    softcap: float | None = None
    if options.softcap is not None:
        softcap = library.scalar("softcap", options.softcap, dtype)
    denominator: Scalar | None = None
    by_rows = isinstance(options.denominator, str)
    if options.denominator is not None and not by_rows:
        denominator = library.scalar("denominator", options.denominator, dtype)
    result_dtype = library.result_dtype(options.dtype)
    upstream = _upstream(library, grad_output, options.reduction, shape)
    q = Smoothing(backend, classes, weight, smoothing)
    checked = check_target(
        library, target, options, shape=logits_shape, axis=axis, q=q, where=where
    )
    if options.on_empty == "raise" and options.reduction == "mean":
        _raise_if_empty(library, checked, where, shape)
    others = (
        target,
        options.weight,
        options.sample_weight,
        options.where,
        options.label_smoothing,
        options.logit_scale,
        options.denominator,
    )
    others_differentiable = backend.differentiates(*others)
    return Batch(  # in place: naming twenty fields costs a small call 2 µs
        backend,
        library.memory,
        options.reduction,
        options.on_empty,
        by_rows,
        options.return_stats,
        dtype,
        result_dtype,
        shape,
        classes,
        axis,
        logits,
        checked,
        where,
        sample_weight,
        scale,
        softcap,
        z_loss,
        denominator,
        upstream,
        out,
        others_differentiable or backend.differentiates(*sources),
        not others_differentiable,
        None if logits is None else _kernels_for(backend, logits, checked, softcap, scale),
    )


class Arrays(NamedTuple):
    """Every array of a batch; in its place None, or the number that an option was given as."""

    logits: Array
    target: Array
    weight: Array | None
    smoothing: Scalar
    where: Array | None
    sample_weight: Array | None
    logit_scale: Scalar
    denominator: Scalar | None
    grad_output: Array | None


def apart(batch: Batch, kind: type) -> tuple[Batch, Arrays]:
    """Part a batch from its arrays, which are of a `kind`; `together` undoes it.

    The batch keeps its numbers. It holds nothing of the caller's, and can be hashed.
    """
    held = arrays_of(batch)
    arrays = Arrays(*(x if isinstance(x, kind) else None for x in held))
    numbers = Arrays(*(None if isinstance(x, kind) else x for x in held))
    return _with_arrays(batch, numbers), arrays


def together(batch: Batch, arrays: Arrays) -> Batch:
    """Give a batch its arrays, or others; for None it keeps what it has."""
    pairs = zip(arrays, arrays_of(batch), strict=True)
    return _with_arrays(batch, Arrays(*(own if x is None else x for x, own in pairs)))


def moved(batch: Batch, backend: Standard, arrays: Arrays, dtype: Any) -> Batch:
    """The same batch on the arrays of another library, a result of `dtype` constant to it."""
    target, softcap, scale = batch.target, batch.softcap, arrays.logit_scale
    return _with_arrays(
        batch,
        arrays,
        backend=backend,
        compute_dtype=dtype,
        result_dtype=dtype,
        differentiable=False,
        kernels=_kernels_for(backend, arrays.logits, target, softcap, scale),
    )


def arrays_of(batch: Batch) -> Arrays:
    """Every array of a batch, and the numbers in the place of others."""
    q = batch.target.q
    return Arrays(
        batch.logits,
        batch.target.column,
        q.weight,
        q.smoothing,
        batch.where,
        batch.sample_weight,
        batch.logit_scale,
        batch.denominator,
        batch.grad_output,
    )


def _with_arrays(batch: Batch, arrays: Arrays, **changes: Any) -> Batch:
    logits, target, weight, smoothing, where, sample_weight, scale, denominator, upstream = arrays
    q = Smoothing(changes.get("backend", batch.backend), batch.classes, weight, smoothing)
    return batch._replace(
        logits=logits,
        target=batch.target.renewed(q, target),
        where=where,
        sample_weight=sample_weight,
        logit_scale=scale,
        denominator=denominator,
        grad_output=upstream,
        **changes,
    )


def laid_out(batch: Batch) -> Batch:
    """The same with logits and probabilities as rows: views with the class axis last."""
    if batch.axis == batch.logits.ndim - 1:
        return batch
    backend, axis, target = batch.backend, batch.axis, batch.target
    if isinstance(target, ProbabilityTarget):
        rows = classes_last(backend, target.probabilities, axis)
        target = target._replace(probabilities=rows)
    return batch._replace(logits=classes_last(backend, batch.logits, axis), target=target)


def with_kernels(batch: Batch) -> Batch:
    """The same batch, read by kernels where there are any for it."""
    target, softcap, scale = batch.target, batch.softcap, batch.logit_scale
    return batch._replace(kernels=_kernels_for(batch.backend, batch.logits, target, softcap, scale))


def _kernels_for(
    backend: Standard, logits: Array, target: Target, softcap: float | None, scale: Scalar
) -> Kernels | None:
    """What reads rows of logits: kernels know class indices, and a scale below the top."""
    if softcap is not None or type(scale) is not float or scale <= 0.0:
        return None
    return backend.kernels(logits) if type(target) is IndexTarget else None


def _upstream(
    library: Library, x: Array | None, reduction: str, shape: tuple[int, ...]
) -> Array | None:
    """Check grad_output, which is shaped like the loss or broadcasts to it."""
    given = tuple(getattr(x, "shape", ()))
    if reduction != "none" and given != ():
        raise ValueError(
            f"grad_output must be 0-d, as the loss of reduction={reduction!r}; got shape {given}"
        )
    return row_factors(library, "grad_output", x, shape)


def _raise_if_empty(
    library: Library, target: Target, where: Array | None, shape: tuple[int, ...]
) -> None:
    if library.memory == "opaque":
        raise ValueError("on_empty='raise' must see which rows count, and values cannot be seen")
    for block in row_blocks(shape, LOOK) if math.prod(shape) else ():
        kept = target.rows(block, None if where is None else where[block]).kept
        if kept is None or library.backend.any(kept):
            return
    raise ValueError(f"no row counts, of rows of shape {shape}, and on_empty is 'raise'")
