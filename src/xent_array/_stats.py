r"""The mathematics: four numbers per row, and all that follows from them.

A *row* is one sample's logits z[0..C), q[0..C) what the row wants of each class: its target with
label smoothing and class weights folded in. The loss is -sum q·log_softmax(z). Of a row, or of any
slab of its classes, four numbers are needed:

    top  = max z                                        mass = sum q
    rest = sum exp(z - top) over all entries but ONE top    dot  = sum q·(z - top)

because logsumexp(z) = top + log1p(rest), and so

    loss = sum q·(logsumexp(z) - z) = mass·log1p(rest) - dot.

One entry with the greatest logit is held apart from `rest` (ties beyond it count), so nothing is
added to a 1 and lost; for q >= 0 both parts of the loss are >= 0 and never cancel. A loss of 1e-30
keeps all its digits, at any common offset of the logits.

Everything here keeps the class axis, last, with length one. `scale` is a factor of the logits, not
negative, that is applied after `top` is subtracted, where it costs no digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from xent_array._backends import Standard
from xent_array._namespace import Array

Scalar = float | Array
T = TypeVar("T")


class Spread(NamedTuple):
    """A slab of logits relative to the greatest of them, whatever the target."""

    top: Array  # the greatest logit, before scale
    rest: Array
    shifted: Array  # scale·(z - top), every class
    exps: Array  # exp(shifted), every class
    source: tuple[Array, Array, Scalar] | None = None  # z, what is subtracted of it, scale

    def shifted_at(self, backend: Standard, index: Array) -> Array:
        """One entry of each row's `shifted`.

        A compiler would store every entry to pick one: it is given the one logit instead.
        """
        if self.source is None:
            return backend.gather(self.shifted, index)
        z, base, scale = self.source
        return times(scale, backend.gather(z, index) - base)

    def exp_at(self, backend: Standard, index: Array) -> Array:
        """One entry of each row's `exps`; of a top that holds most of its row, exactly 1."""
        if self.source is None:
            return backend.gather(self.exps, index)
        xp, exps = backend.xp, backend.xp.exp(self.shifted_at(backend, index))
        return xp.where(leads(exps, self.rest), 1.0, exps)

    def weighted_sum(self, backend: Standard, share: Scalar, weight: Array | None) -> Array:
        """The sum of share·weight·shifted over the classes."""
        q = share
        if weight is not None:
            q = share * backend.of_classes(weight, self.shifted)
        return backend.row_sum(weighted(backend.xp, q, self.shifted))


class Glance(NamedTuple):
    """What a kernel returns of whole rows: a `Spread`, but of `shifted` the target's entry only."""

    top: Array
    rest: Array
    picked: Array  # scale·(z - top) at the index
    fall: Array | None = None  # the sum of share·weight·scale·(z - top), where it was asked for

    def shifted_at(self, _backend: Standard, _index: Array) -> Array:
        return self.picked

    def exp_at(self, backend: Standard, _index: Array) -> Array:
        return backend.xp.exp(self.picked)

    def weighted_sum(self, _backend: Standard, _share: Scalar, _weight: Array | None) -> Array:
        return self.fall


class FourNumbers(NamedTuple):
    """A slab of classes, or a whole row, as far as the loss is concerned."""

    top: Array
    rest: Array
    mass: Scalar
    dot: Array


def spread(
    backend: Standard, z: Array, scale: Scalar, *, slab: bool, differentiable: bool
) -> Spread:
    """Find top and rest of whole rows, or of a `slab` of their classes.

    Where the library differentiates this code, the entry held apart is singled out by argmax, a
    constant, and *gathered*: a maximum passes wrong gradients at ties, a mask over all the greatest
    entries wrong second derivatives. Elsewhere a maximum does, at half the cost.
    """
    xp = backend.xp
    if differentiable:
        index = backend.row_argmax(z)
        apart = backend.class_range(z) == index
        top = backend.gather(z, index)
    else:
        top = backend.row_max(z)
    # A slab of nothing but -inf is an empty one: its exps are 0, its rest is 0. A row is NaN.
    base = xp.where(top == -xp.inf, 0.0, top) if slab else top
    shifted = _fallen(xp, scale, z - base) if differentiable else times(scale, z - base)
    if differentiable and not slab:
        # Constant, lest derivatives of +1 and -1 cancel at the top.
        shifted = xp.where(apart, 0.0, shifted)
    exps = xp.exp(shifted)
    if not differentiable and backend.branches(z):
        return Spread(top, _sum_less_one(backend, exps), shifted, exps)
    if differentiable:
        rest, source = backend.row_sum(xp.where(apart, 0.0, exps)), None
    else:
        rest, source = _sum_below(backend, shifted, exps), (z, base, scale)
    return Spread(top, rest if slab else _whole(top, rest), shifted, exps, source)


def _sum_less_one(backend: Standard, exps: Array) -> Array:
    """Sum all but one of the entries that are 1.

    Subtracting the 1 again is exact, but an error of the sum is one of `rest` 1 + 1/rest times as
    great. Below a sum that the library says it can be trusted from, the entries that are 1 are
    counted and the others summed by themselves.
    """
    xp = backend.xp
    total = backend.row_sum(exps)
    rest = total - 1.0
    if not backend.least(total) >= backend.trusted_sum:  # NaN hides the least: look closer
        rows = (total < backend.trusted_sum)[..., 0]
        few = exps[rows, :]
        ones = few == 1.0
        count = backend.row_sum(xp.astype(ones, few.dtype))
        further = xp.maximum(count - 1.0, xp.zeros_like(count))  # none in a slab of -inf
        rest[rows, :] = backend.row_sum(xp.where(ones, 0.0, few)) + further
    return rest


def _sum_below(backend: Standard, shifted: Array, exps: Array) -> Array:
    """Sum all but one of the entries that are 1, the high entries apart from the others.

    No entry is asked whether it is exactly 1: a compiler may evaluate the logits twice, for the
    maximum and for the difference from it, and not to the same last digit. If the sum of those
    above 1/2 is about 1 there is only one of them, and it is the top.
    """
    xp = backend.xp
    high, others = backend.row_sums_by_size(shifted, exps)
    further = high - 1.0
    return others + xp.where(further < 0.25, 0.0, further)


def leads(exps: Array, rest: Array) -> Array:
    """Which entry, if any, has most of its row's probability.

    Every other entry is part of `rest`. An exp is not compared with 1: see `_sum_below`.
    """
    return exps > 0.5 + rest


def logsumexp(xp: Any, top: Array, rest: Array, scale: Scalar = 1.0) -> Array:
    """Of whole rows; an infinite top is its own."""
    top = times(scale, top)
    return xp.where(xp.isfinite(top), top + xp.log1p(rest), top)


def finish(xp: Any, row: FourNumbers) -> Array:
    """The loss of whole rows."""
    return times(row.mass, xp.log1p(row.rest)) - row.dot


def _whole(top: Array, rest: Array) -> Array:
    """`rest` of whole rows: NaN, gradient included, where the greatest logit is not finite."""
    return rest + (top - top)


def merge(xp: Any, a: FourNumbers, b: FourNumbers, scale: Scalar = 1.0) -> FourNumbers:
    """The four numbers of two slabs together, whichever order; `identity` changes nothing.

    The higher top stays. The other slab, its own top entry included, is seen from there:

        rest = rest_hi + (1 + rest_lo)·f    with f = exp(top_lo - top_hi), 0 for an empty slab.

    The product is formed even where f is 0, so a NaN in either slab survives.
    """
    hi, lo = xp.maximum(a.top, b.top), xp.minimum(a.top, b.top)
    a_leads = a.top >= b.top
    rest_hi, rest_lo = xp.where(a_leads, a.rest, b.rest), xp.where(a_leads, b.rest, a.rest)
    factor = _fall(xp, lo, hi, scale)
    return FourNumbers(
        top=hi,
        rest=rest_hi + (1.0 + rest_lo) * factor,
        mass=a.mass + b.mass,
        dot=_seen_from(xp, a, hi, scale) + _seen_from(xp, b, hi, scale),
    )


def merge_tree(xp: Any, slabs: Sequence[FourNumbers], scale: Scalar = 1.0) -> FourNumbers:
    """Merge the slabs of whole rows."""
    return whole(fold(slabs, lambda a, b: merge(xp, a, b, scale)))


def fold(parts: Sequence[T], join: Callable[[T, T], T]) -> T:
    """Join neighbours, then their neighbours, as a tree.

    Errors grow with its depth, not with the number of parts.
    """
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [*(join(a, b) for a, b in pairs), *odd]
    return parts[0]


def whole(row: FourNumbers) -> FourNumbers:
    """The numbers of all classes together: no row without a finite top has a loss."""
    return row._replace(rest=_whole(row.top, row.rest))


def merge_ranks(
    xp: Any,
    mine: FourNumbers,
    maximum: Callable[[Array], Array],
    total: Callable[[Array], Array],
    scale: Scalar = 1.0,
) -> FourNumbers:
    """Merge slabs held by different ranks in two collectives, with no owner of the top.

    `maximum` and `total` reduce over the ranks. Each rank that holds the top counts its own entry
    out; all but one of those are put back.
    """
    hi = maximum(mine.top)
    holds_top = (mine.top == hi) & (mine.top > -xp.inf)
    own_top = _fall(xp, mine.top, hi, scale)
    parts = xp.stack(
        [
            mine.rest * own_top + xp.where(holds_top, 0.0, own_top),
            xp.astype(holds_top, mine.rest.dtype),
            _seen_from(xp, mine, hi, scale),
            mine.mass + xp.zeros_like(mine.rest),
        ]
    )
    rest, holders, dot, mass = xp.unstack(total(parts))
    rest = rest + xp.maximum(holders - 1.0, xp.zeros_like(holders))
    return FourNumbers(hi, _whole(hi, rest), mass, dot)


def identity(xp: Any, like: Array) -> FourNumbers:
    """The four numbers of no classes at all."""
    nothing = xp.zeros_like(like)
    return FourNumbers(xp.full_like(like, -xp.inf), nothing, nothing, nothing)


def _fall(xp: Any, lower: Array, upper: Array, scale: Scalar) -> Array:
    """exp(scale·(lower - upper)), 0 for an empty slab's lower top, NaN for NaN."""
    empty = lower == -xp.inf
    return xp.where(empty, 0.0, xp.exp(times(scale, xp.where(empty, 0.0, lower - upper))))


def _seen_from(xp: Any, slab: FourNumbers, top: Array, scale: Scalar) -> Array:
    """`dot` of a slab below a higher top; nothing is owed for no mass, nor for no fall."""
    same = (slab.top == top) | (slab.mass == 0.0)
    fall = xp.where(same, 0.0, slab.top - top)
    return slab.dot + times(scale, slab.mass * fall)


def weighted(xp: Any, q: Scalar, shifted: Array) -> Array:
    """q·shifted with 0·log 0 = 0: no share of a class that is impossible costs nothing.

    Nothing but a -inf is masked: with every q == 0 masked, probabilities would get no gradient. By
    such a share itself the derivative is that of a class at the top, and not -inf, which a chain
    rule would make NaN of.
    """
    if isinstance(q, float):
        if q != 0.0:
            return times(q, shifted)
        void = shifted == -xp.inf
    else:
        void = (q == 0.0) & (shifted == -xp.inf)
    return q * xp.where(void, 0.0, shifted)


def _fallen(xp: Any, scale: Scalar, fall: Array) -> Array:
    """scale·fall; an impossible class stays so at any scale, and has no part in its derivative.

    But at 0, which makes NaN of it.
    """
    if isinstance(scale, float):
        return times(scale, fall)
    void = (fall == -xp.inf) & (scale > 0.0)
    return xp.where(void, fall, scale * xp.where(void, 0.0, fall))


def times(factor: Scalar, x: Array) -> Array:
    """factor·x, sparing the pass for a 1."""
    return x if isinstance(factor, float) and factor == 1.0 else factor * x
