"""What each row wants: q over any slab of classes, for class indices and for probabilities.

With label smoothing e and class weights w, over C classes, torch's formula for both kinds is

    q_j = ((1 - e)·p_j + e/C)·w_j

with p the probabilities, or one at the class index and zero elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xent_array._backends import Standard
from xent_array._blocks import slab_of
from xent_array._kernels import Soft
from xent_array._namespace import Array
from xent_array._row_blocks import RowIndex
from xent_array._stats import Glance, Scalar, Spread, leads, times, weighted


class Smoothing(NamedTuple):
    """Label smoothing and class weights: how a target's p becomes q."""

    backend: Standard
    classes: int
    weight: Array | None  # (C,), compute dtype
    smoothing: Scalar

    @property
    def is_smooth(self) -> bool:
        return type(self.smoothing) is not float or self.smoothing != 0.0

    def weight_of(self, classes: slice) -> Array | None:
        return None if self.weight is None else self.weight[classes]

    def even_share(self) -> Array | float | None:
        """What smoothing gives to each class, or one number for all; None: nothing.

        The share first: what falls by 10^36 times 1000 classes is beyond float32.
        """
        if not self.is_smooth:
            return None
        share = self.smoothing / self.classes
        if self.weight is not None:
            return share * self.weight
        if isinstance(share, float):
            return share
        return self.backend.xp.broadcast_to(share, (self.classes,))

    def even_mass(self, classes: slice) -> Scalar:
        """What smoothing gives to the classes of a slab together."""
        share, weight = self.smoothing / self.classes, self.weight_of(classes)
        if weight is None:
            return share * float(classes.stop - classes.start)
        return self.backend.total(share * weight)


class Pull(NamedTuple):
    """The terms of a row's gradient that hold for all its classes."""

    rest: Array
    mass: Scalar
    excess: Scalar  # of A over the mass: the pull of z-loss, 2·z_loss·lse
    factor: Scalar  # of the row in the result


class Slope(NamedTuple):
    """A slab's derivatives: exps·pull - even·weight, and another number at the index."""

    pull: Array
    even: Scalar | None  # None: no smoothing
    index: Array
    inside: Array | None  # which rows have their index in the slab; None: all
    chosen: Array
    logarithm: bool = False  # of the softmax is to be written: shifted + pull


class IndexTarget(NamedTuple):
    """Class indices of any integer dtype."""

    q: Smoothing
    array: Array  # shaped as the rows: the class axis is not there until it is asked for
    ignore_index: int | None  # None: no row holds it
    trusted: bool  # every index that counts is known to be a class

    @property
    def found(self) -> tuple[Any, ...]:
        """What a look at the indices may have told."""
        return self[2:]

    @property
    def column(self) -> Array:
        """What there is of each row."""
        return self.array[..., None]

    def renewed(self, q: Smoothing, column: Array) -> IndexTarget:
        return self.holding(q, column[..., 0])

    def holding(self, q: Smoothing, array: Array) -> IndexTarget:
        """The same with an array like its own."""
        return IndexTarget(q, array, self.ignore_index, self.trusted)

    def like(self, other: Any, array: Array) -> IndexTarget:
        """The same with another array, and what was found of it."""
        return IndexTarget(self.q, array, other.ignore_index, other.trusted)

    def rows(self, block: RowIndex, where: Array | None) -> IndexRows:
        backend, index = self.q.backend, self.column[block]
        index = backend.cast(index, backend.index_dtype(index))
        kept = where
        if self.ignore_index is not None:
            kept = _both(index != self.ignore_index, kept)
        bad = None
        if not self.trusted:
            bad = _both((index < 0) | (index >= self.q.classes), kept)
        # A gather at an index that is no class is undefined everywhere: look at class 0 instead.
        usable = kept if bad is None else _both(~bad, kept)
        if usable is not None:
            index = backend.xp.where(usable, index, 0)
        return IndexRows(self.q, index, kept, bad)


class IndexRows(NamedTuple):
    q: Smoothing
    index: Array  # within [0, C) in every row
    kept: Array | None
    bad: Array | None

    def weigh(self, slab: Spread | Glance, classes: slice) -> tuple[Scalar, Array]:
        """Mass and dot of a slab of logits below their top."""
        backend, q = self.q.backend, self.q
        xp = backend.xp
        share = self._share()
        index, inside = self._local(classes)
        picked = slab.shifted_at(backend, index)
        if inside is not None:
            picked = xp.where(inside, picked, 0.0)
            share = share * xp.astype(inside, picked.dtype)
        dot = weighted(xp, share, picked)
        if not q.is_smooth:
            return share, dot
        even = slab.weighted_sum(backend, q.smoothing / q.classes, q.weight_of(classes))
        return share + q.even_mass(classes), dot + even

    def mass(self) -> Scalar:
        """Mass of whole rows, which their logits do not enter."""
        share, q = self._share(), self.q
        return share + q.even_mass(slice(0, q.classes)) if q.is_smooth else share

    def slope(self, slab: Spread | Glance, row: Pull, classes: slice) -> Slope:
        r"""Derivatives of `row.factor` times the loss by a slab of logits below their top.

        A·p_j - q_j with p_j = exps_j/(1 + rest), A = mass + excess and q_j = c_j + b·[j = target],
        c the even share of smoothing and b the target's own. Of the target's class, with p_t near
        to 1, A - q_t is formed from its parts, (sum c + excess) - c_t, and 1 - p_t from `rest`:

            A·p_t - q_t = (A - q_t)·p_t - q_t·(1 - p_t).

        What all classes are multiplied by is rounded once, so that they sum to 0.
        """
        backend, q = self.q.backend, self.q
        wanted, excess, even = self._share(), row.excess, None
        if q.is_smooth:
            even = q.smoothing / q.classes
            mine = even if q.weight is None else even * backend.take(q.weight, self.index)
            excess = excess + (q.even_mass(slice(0, q.classes)) - mine)
            wanted, even = wanted + mine, even * row.factor
        index, inside = self._local(classes)
        picked, inverse = slab.exp_at(backend, index), 1.0 / (1.0 + row.rest)
        # The factor comes last: numbers and arrays of the same value then give the same digits.
        pull = times(wanted, inverse) * row.factor
        chosen = pull * ((picked - 1.0) - row.rest)
        if not (isinstance(excess, float) and excess == 0.0):
            more = excess * inverse * row.factor
            pull, chosen = pull + more, chosen + more * picked
        return Slope(pull, even, index, inside, chosen)

    def gradient(self, slab: Spread, row: Pull, classes: slice) -> Array:
        """The derivatives of `slope`, as an array."""
        backend, q = self.q.backend, self.q
        slope = self.slope(slab, row, classes)
        grad = slab.exps * slope.pull
        if slope.even is not None:
            weight, even = q.weight_of(classes), slope.even
            if weight is not None:
                even = even * backend.of_classes(weight, grad)
            grad = grad - even
        if slope.inside is None:
            return backend.put(grad, slope.index, slope.chosen)
        here = backend.class_range(grad) == self.index - classes.start
        return backend.xp.where(here, slope.chosen, grad)

    def _share(self) -> Scalar:
        """What smoothing leaves to the target's own class, times its weight."""
        share = 1.0 - self.q.smoothing
        return share if self.q.weight is None else times(share, self.row_weight())

    def _local(self, classes: slice) -> tuple[Array, Array | None]:
        """The target's place in a slab, and in which rows it has one (None: in all)."""
        width = classes.stop - classes.start
        if width == self.q.classes:
            return self.index, None
        local = self.index - classes.start
        inside = (local >= 0) & (local < width)
        return self.q.backend.xp.where(inside, local, 0), inside

    def row_weight(self) -> Array | None:
        """What a row adds to the divisor of the mean; None: 1."""
        return None if self.q.weight is None else self.q.backend.take(self.q.weight, self.index)


class ProbabilityTarget(NamedTuple):
    """A probability for every class, shaped as the logits."""

    q: Smoothing
    array: Array

    @property
    def found(self) -> tuple[Any, ...]:
        """Nothing: no look is taken at probabilities."""
        return ()

    @property
    def column(self) -> Array:
        """What there is of each row."""
        return self.array

    def renewed(self, q: Smoothing, column: Array) -> ProbabilityTarget:
        return ProbabilityTarget(q, column)

    def holding(self, q: Smoothing, array: Array) -> ProbabilityTarget:
        """The same with an array like its own."""
        return ProbabilityTarget(q, array)

    def rows(self, block: RowIndex, where: Array | None) -> ProbabilityRows:
        return ProbabilityRows(self.q, self.array[block], where)


class ProbabilityRows(NamedTuple):
    q: Smoothing
    probabilities: Array
    kept: Array | None
    bad: None = None

    def weigh(self, slab: Spread, classes: slice) -> tuple[Scalar, Array]:
        """Mass and dot of a slab of logits below their top."""
        backend, wanted = self.q.backend, self._wanted(slab.shifted.dtype, classes)
        return backend.row_sum(wanted), backend.row_sum(weighted(backend.xp, wanted, slab.shifted))

    def gradient(self, slab: Spread, row: Pull, classes: slice) -> Array:
        """Derivatives of `row.factor` times the loss by a slab of logits below their top.

        A·p_j - q_j with p_j = exps_j/(1 + rest) and A = mass + excess; at a leading top, where both
        may be equal, ((A - q_j) - q_j·rest)/(1 + rest).
        """
        xp, exps = self.q.backend.xp, slab.exps
        wanted = self._wanted(exps.dtype, classes)
        inverse, total = 1.0 / (1.0 + row.rest), row.mass + row.excess
        apart = ((total - wanted) - wanted * row.rest) * inverse
        is_leading = leads(exps, row.rest)
        return xp.where(is_leading, apart, exps * (total * inverse) - wanted) * row.factor

    def soft(self) -> Soft:
        """What a kernel is to read of them."""
        q = self.q
        if not q.is_smooth and q.weight is None:
            return Soft(self.probabilities, None, None)
        times, plus = 1.0 - q.smoothing, q.smoothing / q.classes
        if q.weight is None:
            return Soft(self.probabilities, times, plus)
        return Soft(self.probabilities, times * q.weight, plus * q.weight)

    def _wanted(self, dtype: Any, classes: slice) -> Array:
        q = self.q
        wanted = q.backend.cast(slab_of(self.probabilities, classes), dtype)
        if self.kept is not None:
            wanted = q.backend.xp.where(self.kept, wanted, 0.0)
        if q.is_smooth:
            wanted = (1.0 - q.smoothing) * wanted + q.smoothing / q.classes
        if q.weight is None:
            return wanted
        return wanted * q.backend.of_classes(q.weight[classes], wanted)

    def row_weight(self) -> None:
        """None: every row of probabilities adds 1 to the divisor of the mean."""


class NoTarget(NamedTuple):
    """None: a row costs all of its logsumexp.

    In the place of its gradient, the softmax, that one's logarithm may be asked for.
    """

    q: Smoothing
    logarithm: bool
    array: None = None

    @property
    def found(self) -> tuple[Any, ...]:
        """What else calls may differ in."""
        return (self.logarithm,)

    @property
    def column(self) -> None:
        """There is nothing of each row."""

    def renewed(self, q: Smoothing, _column: None) -> NoTarget:
        return NoTarget(q, self.logarithm)

    def holding(self, q: Smoothing, _array: None) -> NoTarget:
        return NoTarget(q, self.logarithm)

    def rows(self, _block: RowIndex, _where: None) -> NoRows:
        return NoRows(self.q, self.logarithm)


class NoRows(NamedTuple):
    q: Smoothing
    logarithm: bool
    index: Any = 0  # for kernels, which pick an entry of every row
    kept: None = None
    bad: None = None

    def weigh(self, _slab: Spread | Glance, _classes: slice) -> tuple[float, float]:
        """Mass and dot of what wants no class."""
        return 0.0, 0.0

    def mass(self) -> float:
        return 0.0

    def slope(self, slab: Spread | Glance, row: Pull, _classes: slice) -> Slope:
        """The softmax exps_j/(1 + rest), times `row.factor`, or shifted_j - log1p(rest)."""
        backend, pull = self.q.backend, self._pull(row)
        if self.logarithm:
            chosen = slab.shifted_at(backend, self.index) + pull
        else:
            chosen = slab.exp_at(backend, self.index) * pull
        return Slope(pull, None, self.index, None, chosen, self.logarithm)

    def gradient(self, slab: Spread, row: Pull, _classes: slice) -> Array:
        """The same, as an array."""
        pull = self._pull(row)
        return slab.shifted + pull if self.logarithm else slab.exps * pull

    def _pull(self, row: Pull) -> Array:
        if self.logarithm:
            return 0.0 - self.q.backend.xp.log1p(row.rest)
        return 1.0 / (1.0 + row.rest) * row.factor

    def row_weight(self) -> None:
        """None: every row would add 1 to the divisor of a mean."""


#: The target of a call, and of a block of its rows, whose common fields are `kept` (False in rows
#: that do not count; None: all do) and `bad` (True in rows whose index is no class; None: none).
Target = IndexTarget | ProbabilityTarget | NoTarget
TargetRows = IndexRows | ProbabilityRows | NoRows


def _both(a: Array, b: Array | None) -> Array:
    return a if b is None else a & b
