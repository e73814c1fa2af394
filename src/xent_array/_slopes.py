"""The products of a projected call: logits, and derivatives by what the logits are made of.

With g the derivatives by the logits of some rows x, those by what the logits are made of are

    features: g · linear_weight        linear_weight: gᵀ · x        linear_bias: the sum of g

so that a loss and its gradients take three matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from xent_array._backends import Standard
from xent_array._batch import Batch
from xent_array._gradient import times_upstream
from xent_array._namespace import Array, dtype_name
from xent_array._projected import Parts, Projected
from xent_array._stats import Scalar


class Wanted(NamedTuple):
    """Which derivatives are wanted."""

    features: bool
    linear_weight: bool
    linear_bias: bool
    wide: bool = False  # in the compute dtype: they are multiplied before they are rounded


NOTHING = Wanted(False, False, False)


def logits_of(batch: Batch, parts: Parts, room: Array | None = None) -> Array:
    """The logits that are made of some parts, written to `room` where there is any."""
    backend, dtype = batch.backend, batch.compute_dtype
    x, weight, bias = parts
    if _multiplied_as_it_is(batch, weight):
        return backend.affine(x, weight, bias, room)
    if room is None:
        room = backend.room((x.shape[0], weight.shape[0]), x, dtype)
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
        yield slice(0, weight.shape[0]), weight
        return
    for piece in backend.pieces(weight, dtype):
        yield piece, backend.cast(weight[piece, :], dtype)


class Slopes:
    """The derivatives by what the logits are made of, summed over tiles.

    Those of half arrays are summed in the compute dtype. What is common to all rows, such as one
    over their number, multiplies the derivatives by the logits. Those of float16 have no room for
    numbers as small: there it multiplies the sums, before they are rounded.
    """

    def __init__(self, call: Projected, wanted: Wanted, factor: Scalar) -> None:
        self.batch, self.parts, upstream, _ = call
        self.backend: Standard = self.batch.backend
        self.wanted = wanted
        if upstream is not None:
            factor = self.backend.cast(upstream, self.batch.compute_dtype) * factor
        self.factor = factor
        self.late = dtype_name(self.parts.features.dtype) == "float16"
        dtype = self.batch.compute_dtype
        self.features, self.linear_weight, self.linear_bias = (
            self.backend.room(x.shape, x, dtype) if x is not None and want else None
            for x, want in zip(self.parts, wanted, strict=False)
        )

    def scaled(self, rows: Batch) -> Batch:
        """Rows whose derivatives are to be what is added up."""
        if self.late or self.batch.reduction == "none":  # losses per row have their own factors
            return rows
        ones = self.backend.xp.ones(
            (*rows.shape, 1),
            dtype=rows.compute_dtype,
            device=self.backend.device(self.parts.features),
        )
        return rows._replace(grad_output=ones * self.factor)

    def add(self, rows: slice, classes: slice, g: Array) -> None:
        """Take up the derivatives by the logits of some rows and classes."""
        backend, dtype = self.backend, self.batch.compute_dtype
        first = rows.start == 0
        if self.features is not None:
            self._add_to_features(self.features[rows, :], classes, g)
        if self.linear_weight is not None:
            x = self.parts.features[rows, :]
            x = x if backend.multiplies_half else backend.cast(x, dtype)
            self._sum(self.linear_weight[classes, :], g.T, x, first=first)
        if self.linear_bias is not None:
            total, bias = backend.xp.sum(backend.cast(g, dtype), axis=0), self.linear_bias
            bias[classes] = total if first else bias[classes] + total

    def _add_to_features(self, to: Array, classes: slice, g: Array) -> None:
        weight = self.parts.linear_weight[classes, :]
        for piece, part in _widened(self.batch, weight):
            self._sum(to, g[:, piece], part, first=classes.start == piece.start == 0)

    def _sum(self, total: Array, a: Array, b: Array, *, first: bool) -> None:
        """Add a product to a sum, whose memory holds nothing before the `first`."""
        (self.backend.first_product if first else self.backend.add_product)(total, a, b)

    def finished(self) -> Parts:
        """What was summed, in the dtype of what it belongs to unless wanted wide."""
        sums = (self.features, self.linear_weight, self.linear_bias)
        return Parts(*(None if x is None else self._finished(x) for x in sums))

    def _finished(self, x: Array) -> Array:
        backend = self.backend
        dtype = x.dtype if self.wanted.wide else self.parts.features.dtype
        if not self.late:
            return backend.cast(x, dtype)
        to = x if self.wanted.wide else backend.room(x.shape, x, dtype)
        # Piece by piece: `times_upstream` takes memory as large as what it is given.
        for piece in backend.pieces(x, x.dtype) if x.ndim == 2 else [slice(None)]:
            to[piece] = backend.cast(times_upstream(backend.xp, x[piece], self.factor), to.dtype)
        return to
