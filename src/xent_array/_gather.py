"""Every argument of a call checked before any work, and made a batch of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from xent_array._arguments import Library
from xent_array._backends import backend_of
from xent_array._batch import Batch, emptied, filled, lend, with_kernels
from xent_array._blocks import LOOK
from xent_array._kernels import are_disabled
from xent_array._namespace import Array
from xent_array._options import DEFAULTS, Options, check_integer, holds_arrays
from xent_array._row_blocks import row_blocks
from xent_array._rows import class_axis, row_factors, row_mask, row_shape
from xent_array._stats import Scalar
from xent_array._target import check_target, checked_indices, class_weight, looks_at_indices
from xent_array._wanted import IndexTarget, NoTarget, Smoothing, Target

#: How many templates are kept, at most.
TEMPLATES = 256

#: Batches by the signature of their call, without the caller's arrays.
_templates: dict[Any, Batch] = {}


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
    template = _remembered(signature, batch)
    if template is None or looks_at_indices(batch.memory, options):  # which is not to be done twice
        return batch
    return _renewed(template, logits, target, options)  # as in the calls to come


def gather_rows(name: str, x: Array, axis: int, *, logarithm: bool = False) -> Batch:
    """Check rows that have no target, and lay them out: see `NoTarget`."""
    check_integer("axis", axis)
    backend = backend_of(name, x)
    arrays = backend.signature(x)
    signature = None if arrays is None else (backend, arrays, int(axis), logarithm, are_disabled())
    template = None if signature is None else _templates.get(signature)
    if template is None:
        batch = _gather_rows(Library(name, x), axis, logarithm=logarithm)
        template = _remembered(signature, batch)
        if template is None:
            return batch
    return _renewed(template, x, None, DEFAULTS)


def _signature(logits: Array, target: Array, options: Options) -> Any:
    """A hashable key of all that a batch depends on but values.

    None: the backend has none for such arrays, or an option is an array too.
    """
    backend = backend_of("logits", logits)
    arrays = backend.signature(logits, target)
    if arrays is None or holds_arrays(options) or options.on_empty == "raise":
        return None
    return backend, arrays, None if options is DEFAULTS else options, are_disabled()


def _remembered(signature: Any, batch: Batch) -> Batch | None:
    """Leave a template for calls like that of a batch, if they can be told."""
    if signature is None or signature[-1] != are_disabled():  # or kernels came or went meanwhile
        return None
    if len(_templates) >= TEMPLATES:
        _templates.clear()
    template = _templates[signature] = _template(batch)
    return template


def _template(batch: Batch) -> Batch:
    lent = lend(batch)
    return emptied(batch)._replace(lent=None if lent is None else _template(lent), plans={})


def _renewed(template: Batch, logits: Array, target: Array | None, options: Options) -> Batch:
    """The batch of a call like an earlier one, by its values."""
    checked, lent = template.target, template.lent
    if lent is not None:
        backend = template.backend
        own = None if target is None else backend.lent(target)
        lent = _renewed(lent, backend.lent(logits), own, options)
    if type(checked) is not IndexTarget:
        checked = checked.renewed(checked.q, target)
    elif lent is not None:  # its values were looked at
        checked = checked.like(lent.target, target)
    elif looks_at_indices(template.memory, options):
        checked = checked_indices(template.memory, target, checked.q, None, options)
    else:
        checked = checked.like(checked, target)
    return filled(template, logits, checked, lent)


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


def _gather_rows(library: Library, axis: int, *, logarithm: bool) -> Batch:
    backend, x, axis = library.backend, library.leader, class_axis(library, axis)
    shape = tuple(x.shape)
    q = Smoothing(backend, shape[axis], None, 0.0)
    batch = Batch(
        backend=backend,
        compute_dtype=backend.compute_dtype(x.dtype),
        result_dtype=x.dtype,
        differentiable=backend.differentiates(x),
        logits_alone=True,
        memory=library.memory,
        reduction="none",
        on_empty="nan",
        by_rows=False,
        return_stats=False,
        shape=row_shape(shape, axis),
        classes=shape[axis],
        axis=axis,
        softcap=None,
        z_loss=0.0,
        out=None,
        where=None,
        sample_weight=None,
        logit_scale=1.0,
        denominator=None,
        grad_output=None,
        logits=x,
        target=NoTarget(q, logarithm),
        kernels=None,
    )
    return with_kernels(batch)


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
    classes, shape = logits_shape[axis], row_shape(logits_shape, axis)
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
