"""A call of the loss, whose arguments were checked, and its arrays laid out as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xent_array._backends import Memory, Standard
from xent_array._kernels import Kernels
from xent_array._namespace import Array
from xent_array._options import OnEmpty, Reduction
from xent_array._rows import classes_last, row_shape
from xent_array._stats import Scalar
from xent_array._wanted import ProbabilityTarget, Smoothing, Target


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


#: The places of the first field that is not the library's, and of two others.
_CALL, _OUT, _LOGITS = map(Batch._fields.index, ("logits_alone", "out", "logits"))


def emptied(batch: Batch) -> Batch:
    """A batch without logits and target."""
    target = batch.target.holding(batch.target.q, None)
    return Batch._make((*batch[:_LOGITS], None, target, batch.kernels, None, None))


def filled(batch: Batch, logits: Array, target: Target, lent: Batch | None) -> Batch:
    """A batch with others, and with what is lent of them."""
    return Batch._make((*batch[:_LOGITS], logits, target, batch.kernels, lent, batch.plans))


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
        return emptied(batch), Arrays._make((*held[:2], *_NO_OTHERS))
    arrays = [x if isinstance(x, kind) else None for x in held]
    numbers = [None if isinstance(x, kind) else x for x in held]
    return with_arrays(batch, numbers, batch[:_CALL], batch.kernels), Arrays._make(arrays)


def together(batch: Batch, arrays: Arrays) -> Batch:
    """Give a batch its arrays, or others; for None it keeps what it has."""
    every = [own if x is None else x for x, own in zip(arrays, arrays_of(batch), strict=True)]
    return with_arrays(batch, every, batch[:_CALL], batch.kernels)


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
    return Batch._make((*library, *batch[_CALL:_OUT], *rest))


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
    classes, rows = shape[axis], row_shape(shape, axis)
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
    logits, target = batch.logits, batch.target
    kernels = batch.backend.kernels(logits) if suits_kernels(batch) else None
    p = target.array if isinstance(target, ProbabilityTarget) else None
    if kernels is not None and not kernels.suits(batch.axis, logits, batch.out, p):
        kernels = None
    return batch._replace(kernels=kernels)


def serial(batch: Batch) -> Batch:
    """The same batch, the rows of its kernels shared by no threads."""
    kernels = batch.kernels
    return batch if kernels is None else batch._replace(kernels=kernels.serial())


def suits_kernels(batch: Batch) -> bool:
    """Whether kernels know what a call asks for."""
    scale = batch.logit_scale
    # A positive number is applied below the top.
    return batch.softcap is None and type(scale) is float and scale > 0.0
