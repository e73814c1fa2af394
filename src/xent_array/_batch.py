"""A call of the loss: every argument checked, and all of them laid out as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xent_array._arguments import Library
from xent_array._backends import Memory, Standard, backend_of
from xent_array._blocks import LOOK
from xent_array._kernels import Kernels, are_disabled
from xent_array._namespace import Array
from xent_array._options import DEFAULTS, OnEmpty, Options, Reduction, holds_arrays
from xent_array._row_blocks import row_blocks
from xent_array._rows import class_axis, classes_last, row_factors, row_mask
from xent_array._stats import Scalar
from xent_array._target import check_target, checked_indices, class_weight, looks_at_indices
from xent_array._wanted import IndexTarget, ProbabilityTarget, Smoothing, Target


class Batch(NamedTuple):
    """The checked arguments; what is one per row has a class axis of length one, last.

    Four fields tell of the library and eleven of the call, then come the arrays: batches are made
    of parts of others, at half the cost of a small call's `_replace`.
    """

    backend: Standard
    compute_dtype: Any
    result_dtype: Any
    differentiable: bool  # the library itself will differentiate what is computed
    logits_alone: bool  # and that by nothing but the logits
    memory: Memory
    reduction: Reduction
    on_empty: OnEmpty
    by_rows: bool  # the mean divides by how many rows count
    return_stats: bool
    shape: tuple[int, ...]  # of the rows
    classes: int
    axis: int  # of the classes in the caller's logits
    softcap: float | None
    z_loss: float
    out: Array | None  # where the gradient goes, of the shape of the caller's logits
    where: Array | None
    sample_weight: Array | None
    logit_scale: Scalar
    denominator: Scalar | None
    grad_output: Array | None  # one factor per row
    logits: Array  # as the caller has them, until `laid_out`
    target: Target
    kernels: Kernels | None  # what reads the rows; None: array code
    lent: Batch | None = None  # the same for the evaluator, if that is at hand: see `lend`
    plans: dict[Any, Any] | None = None  # what engines made of calls like this one, see `gather`


def gather(
    logits: Array,
    target: Array,
    options: Options,
    *,
    grad_output: Array | None = None,
    out: Array | None = None,
) -> Batch:
    """Check a call whole, before any work, and lay it out as rows.

    Nearly all that is checked are types, dtypes and layouts. The first call of a signature leaves a
    template; of the calls that are like it, only the values are looked at. What else is done with
    them follows from the signature as well: engines leave their plans with the template.
    """
    signature = None
    if grad_output is None and out is None:
        signature = _signature(logits, target, options)
        if signature is not None and (template := _templates.get(signature)) is not None:
            return _renewed(template, logits, target, options)
    batch = _gather(logits, target, options, grad_output, out)
    if signature is None or signature[-1] != are_disabled():  # or kernels came or went meanwhile
        return batch
    if len(_templates) >= TEMPLATES:
        _templates.clear()
    template = _templates[signature] = _template(batch)
    if looks_at_indices(batch.memory, options):  # which is not to be done twice
        return batch
    return _renewed(template, logits, target, options)  # as in the calls to come


#: The places of two fields of a batch.
_OUT, _LOGITS = map(Batch._fields.index, ("out", "logits"))

#: How many templates are kept, at most.
TEMPLATES = 256

#: Batches by the signature of their call, without the caller's arrays.
_templates: dict[Any, Batch] = {}


def _signature(logits: Array, target: Array, options: Options) -> Any:
    """A hashable key of all that a batch depends on but values.

    None: the backend has none for such arrays, or an option is an array too.
    """
    backend = backend_of("logits", logits)
    arrays = backend.signature(logits, target)
    if arrays is None or holds_arrays(options) or options.on_empty == "raise":
        return None
    return backend, arrays, None if options is DEFAULTS else options, are_disabled()


def _template(batch: Batch) -> Batch:
    lent = lend(batch)
    return _emptied(batch)._replace(lent=None if lent is None else _template(lent), plans={})


def _emptied(batch: Batch) -> Batch:
    """A batch without logits and target."""
    target = batch.target.holding(batch.target.q, None)
    return Batch._make((*batch[:_LOGITS], None, target, batch.kernels, None, None))


def _renewed(template: Batch, logits: Array, target: Array, options: Options) -> Batch:
    """The batch of a call like an earlier one, by its values."""
    checked, kernels, lent = template.target, template.kernels, template.lent
    if lent is not None:
        backend = template.backend
        lent = _renewed(lent, backend.lent(logits), backend.lent(target), options)
    if type(checked) is not IndexTarget:
        checked = checked.renewed(checked.q, target)
    elif lent is not None:  # its values were looked at
        checked = checked.like(lent.target, target)
    elif looks_at_indices(template.memory, options):
        checked = checked_indices(template.memory, target, checked.q, None, options)
    else:
        checked = checked.like(checked, target)
    return Batch._make((*template[:_LOGITS], logits, checked, kernels, lent, template.plans))


def lend(batch: Batch) -> Batch | None:
    """The same batch on the evaluator's arrays, like NumPy's views of tensors on the CPU.

    Its library does not differentiate that. None: the library evaluates it itself, or there is no
    such view of an array.
    """
    if batch.lent is not None or batch.plans is not None:  # then it is known whether there is one
        return batch.lent
    backend = batch.backend
    evaluator = backend.evaluator(batch.logits)
    if evaluator is backend:
        return None
    try:
        arrays = [x if type(x) in NUMBERS else backend.lent(x) for x in arrays_of(batch)]
    except LookupError:
        return None
    logits: Array = arrays[0]
    dtype = evaluator.compute_dtype(logits.dtype)
    return with_kernels(with_arrays(batch, arrays, (evaluator, dtype, dtype, False), None))


def _gather(
    logits: Array, target: Array, options: Options, grad_output: Array | None, out: Array | None
) -> Batch:
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
    batch = Batch(  # in place: naming twenty fields costs a small call 2 µs
        backend,
        dtype,
        result_dtype,
        others_differentiable or backend.differentiates(*sources),
        not others_differentiable,
        library.memory,
        options.reduction,
        options.on_empty,
        by_rows,
        options.return_stats,
        shape,
        classes,
        axis,
        softcap,
        z_loss,
        out,
        where,
        sample_weight,
        scale,
        denominator,
        upstream,
        logits,
        checked,
        None,
    )
    # Kernels write where they can read.
    reads = logits is not None and (out is None or backend.kernels(out) is not None)
    return with_kernels(batch) if reads else batch


#: The types of what may be in the place of an array.
NUMBERS = frozenset((float, type(None)))


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


#: In the place of all arrays but logits and target.
_NO_OTHERS = (None,) * (len(Arrays._fields) - 2)


def apart(batch: Batch, kind: type) -> tuple[Batch, Arrays]:
    """Split a batch into one without arrays, which can be hashed, and its arrays, of a `kind`.

    What an option gives as a number stays in the batch. `together` is the inverse.
    """
    held = arrays_of(batch)
    if NUMBERS.issuperset(map(type, held[2:])):
        return _emptied(batch), Arrays._make((*held[:2], *_NO_OTHERS))
    arrays = [x if isinstance(x, kind) else None for x in held]
    numbers = [None if isinstance(x, kind) else x for x in held]
    return with_arrays(batch, numbers, batch[:4], batch.kernels), Arrays._make(arrays)


def together(batch: Batch, arrays: Arrays) -> Batch:
    """Give a batch its arrays, or others; for None it keeps what it has."""
    every = [own if x is None else x for x, own in zip(arrays, arrays_of(batch), strict=True)]
    return with_arrays(batch, every, batch[:4], batch.kernels)


def arrays_of(batch: Batch) -> Arrays:
    """Every array of a batch, and the numbers in the place of others."""
    q = batch.target.q
    return Arrays(
        batch.logits,
        batch.target.array,
        q.weight,
        q.smoothing,
        batch.where,
        batch.sample_weight,
        batch.logit_scale,
        batch.denominator,
        batch.grad_output,
    )


def with_arrays(
    batch: Batch, arrays: Sequence[Any], library: tuple[Any, ...], kernels: Kernels | None
) -> Batch:
    """The same call on other `Arrays`, of a library as the first fields of a batch tell it."""
    logits, own, weight, smoothing, *others = arrays
    q = Smoothing(library[0], batch.classes, weight, smoothing)
    target = batch.target.holding(q, own)
    rest = (batch.out, *others, logits, target, kernels, None, None)
    return Batch._make((*library, *batch[4:15], *rest))


def with_out(batch: Batch, out: Array) -> Batch:
    """The same with memory for the gradient."""
    return Batch._make((*batch[:_OUT], out, *batch[_OUT + 1 :]))


def with_columns(
    batch: Batch, function: Callable[[Array | None], Array | None], **changes: Any
) -> Batch:
    """The same with a function of all that there is of each row, the logits aside."""
    target = batch.target
    return batch._replace(
        target=target.renewed(target.q, function(target.column)),
        where=function(batch.where),
        sample_weight=function(batch.sample_weight),
        grad_output=function(batch.grad_output),
        **changes,
    )


def with_sizes(batch: Batch, shape: tuple[int, ...]) -> Batch:
    """The same with sizes told anew, which the shape of the caller's logits has."""
    axis, target = batch.axis, batch.target
    classes, rows = shape[axis], shape[:axis] + shape[axis + 1 :]
    q = target.q._replace(classes=classes)
    return batch._replace(shape=rows, classes=classes, target=target.renewed(q, target.column))


def laid_out(batch: Batch) -> Batch:
    """The same with logits and probabilities as rows: views with the class axis last."""
    if batch.axis == batch.logits.ndim - 1:
        return batch
    backend, axis, target = batch.backend, batch.axis, batch.target
    if isinstance(target, ProbabilityTarget):
        target = target._replace(array=classes_last(backend, target.array, axis))
    return batch._replace(logits=classes_last(backend, batch.logits, axis), target=target)


def with_kernels(batch: Batch) -> Batch:
    """The same batch, read by kernels where there are any for it."""
    reads = suits_kernels(batch)
    return batch._replace(kernels=batch.backend.kernels(batch.logits) if reads else None)


def serial(batch: Batch) -> Batch:
    """The same batch, the rows of its kernels shared by no threads."""
    kernels = batch.kernels
    return batch if kernels is None else batch._replace(kernels=kernels.serial())


def suits_kernels(batch: Batch) -> bool:
    """Whether kernels know what a call asks for: class indices, and a scale below the top."""
    scale = batch.logit_scale
    if type(batch.target) is not IndexTarget or batch.softcap is not None:
        return False
    return type(scale) is float and scale > 0.0


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
