"""A call whose logits are a linear projection of features: checked, and made tile by tile.

    logits = features · linear_weightᵀ + linear_bias

A *tile* is a run of rows, whose logits are made, read and dropped: a batch of the loss like any.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from xent_array._arguments import Library, other_dtype
from xent_array._batch import Batch, with_columns, with_kernels
from xent_array._gather import gathered
from xent_array._namespace import Array
from xent_array._options import Options


class Parts(NamedTuple):
    """What logits are made of, or the derivatives by it; None: there is none, or none is wanted."""

    features: Array  # (rows, H)
    linear_weight: Array  # (C, H)
    linear_bias: Array | None  # (C,)


class Given(NamedTuple):
    """The other arguments as they came, for a call that is to be made again."""

    target: Array
    options: Options


class Projected(NamedTuple):
    """The checked arguments: a batch that has no logits, and what they are made of."""

    batch: Batch
    parts: Parts
    upstream: Array | None = None  # what the derivatives of a reduced loss are multiplied by
    given: Given | None = None

    @property
    def grad_output(self) -> Array | None:
        """What the derivatives are multiplied by, in the shape of the loss."""
        per_row = self.batch.grad_output
        return self.upstream if per_row is None else per_row[..., 0]


def gather_projected(
    parts: Parts, target: Array, options: Options, *, grad_output: Array | None = None
) -> Projected:
    """Check a call whole, before any work."""
    library = Library("features", parts.features)
    features = library.leader = library.backend.autocast(library.leader)
    shape = tuple(features.shape)
    if not shape:
        raise ValueError("features must have an axis of features, got shape ()")
    weight = _matching(library, "linear_weight", parts.linear_weight)
    if weight.ndim != 2 or weight.shape[1] != shape[-1]:
        raise ValueError(
            f"linear_weight must have shape (classes, {shape[-1]}) for features of shape {shape}; "
            f"got shape {tuple(weight.shape)}"
        )
    classes = weight.shape[0]
    if classes == 0:
        raise ValueError(
            f"linear_weight of shape {tuple(weight.shape)} must have at least one class"
        )
    bias = parts.linear_bias
    if bias is not None:
        bias = _matching(library, "linear_bias", bias)
        if tuple(bias.shape) != (classes,):
            raise ValueError(
                f"linear_bias must have shape ({classes},) for linear_weight of shape "
                f"{tuple(weight.shape)}; got shape {tuple(bias.shape)}"
            )
    sources = Parts(features, weight, bias)
    logits_shape = (*shape[:-1], classes)
    batch = gathered(
        library,
        sources,
        logits_shape,
        axis=len(shape) - 1,
        target=target,
        options=options,
        grad_output=grad_output,
    )
    given = Given(target, options)
    if options.reduction == "none":
        return Projected(batch, sources, None, given)
    return Projected(batch._replace(grad_output=None), sources, grad_output, given)


def _matching(library: Library, name: str, x: Array) -> Array:
    """Return argument `name` if it can be multiplied with the features."""
    x = library.backend.autocast(library.floating(name, library.admit(name, x)))
    if x.dtype != library.leader.dtype:
        raise other_dtype(name, x, "features", library.leader)
    return x


def flattened(call: Projected) -> Projected:
    """The same with its rows along one axis: views, where memory allows it."""
    batch, parts = call.batch, call.parts
    reshape = batch.backend.xp.reshape

    def flat(x: Array | None) -> Array | None:
        if x is None or x.ndim == 2:
            return x
        return reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))

    rows = with_columns(batch, flat, shape=(math.prod(batch.shape),), axis=1)
    return call._replace(batch=rows, parts=parts._replace(features=flat(parts.features)))


def some_rows(batch: Batch, rows: slice) -> Batch:
    """Some rows of a flattened batch, whose losses are added up unless each is asked for."""

    def cut(x: Array | None) -> Array | None:
        return None if x is None else x[rows, :]

    return with_columns(
        batch,
        cut,
        shape=(rows.stop - rows.start,),
        reduction="none" if batch.reduction == "none" else "sum",
        result_dtype=batch.compute_dtype,
    )


def tile(rows: Batch, logits: Array) -> Batch:
    """Rows with the logits made for them."""
    here = rows._replace(logits=logits, memory=rows.backend.memory(logits))
    return here if rows.differentiable else with_kernels(here)
