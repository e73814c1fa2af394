"""The promise: how far a result may be from the truth.

u is the unit of rounding of the dtype that is computed in. With top the greatest logit of a row and
spread = logsumexp(z) - top = log1p(rest), the loss is

    mass·spread + sum q·(top - z)            mass = sum q

and for q >= 0 both of its parts are >= 0: together they are its *natural scale*. A difference
z - top is rounded to u of itself, its exponential thus to |z - top|·u of itself. In `rest` that is
the margin by which the top stands above the others, and it shows in a loss that is all `rest`: that
of a class index or one-hot. What is left, sums and functions good to a few u each, is the 32:

    loss of an index or a one-hot     (32 + margin)·u of itself
    any other loss                    32·u of its natural scale
    derivative by z_j                 (32 + top - z_j)·u of |A·p_j| + |q_j|, A = mass + 2·z_loss·lse
    that of an index or one-hot       (32 + margin)·u of itself (without z_loss)
    logsumexp                         32·u of |top| + spread, and z_loss·lse² of its square

A cap makes errors of softcap·u of the logits, hence of both of a difference: it adds 2·softcap to
each factor. The derivative of the cap at x = logit/softcap falls as exp(-2|x|), and x is rounded
twice: it adds 4·|x|.

Reductions add up the natural scales. A library that takes subnormal numbers for 0 may lose one
`tiny`, the least normal number, for every exponential, and one for the result itself; where it does
not, tiny is the spacing of subnormal numbers.
"""

from __future__ import annotations

from xent_array.testing._exact import ZERO, Real, exact, mp
from xent_array.testing._oracle import Logits, Row, factor, reduction, truth, z_loss
from xent_array.testing._plain import Call, across, compute_dtype

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LEAST_NORMAL = {"float64": 2.0**-1022, "float32": 2.0**-126}
_SPACING = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


class Limits:
    """The bounds of what a call returns, on a library that flushes subnormal numbers or not."""

    def __init__(self, call: Call, *, flushes: bool) -> None:
        self.call = call
        self.computed = compute_dtype(call.dtype)
        self.unit = exact(UNIT[self.computed])
        self.tiny = exact((LEAST_NORMAL if flushes else _SPACING)[self.computed])

    def losses(self) -> list[Real]:
        rows, _, divisor = truth(self.call)
        every = [self._loss(row) for row in rows]
        if reduction(self.call) == "none":
            return every
        return [mp.fsum(every) / (divisor or 1) + self.tiny]

    def gradient(self) -> list[Real]:
        rows, _, divisor = truth(self.call)
        vectors = [self._derivatives(row, divisor) for row in rows]
        return list(across(vectors, self.call.arrays[0].shape, self.call.axis))

    def logsumexps(self) -> list[Real]:
        rows = truth(self.call).rows
        return [self.logsumexp(row.logits) if row.counts else ZERO for row in rows]

    def logsumexp(self, row: Logits) -> Real:
        return self._base() * self.unit * _size(row) + len(row.z) * self.tiny

    def softmax(self, row: Logits, j: int) -> Real:
        below = 32 + _fall(row, j)
        return below * self.unit * row.p[j] + (len(row.z) + 1) * self.tiny

    def log_softmax(self, row: Logits, j: int) -> Real:
        """Its two parts have one sign; at the top it is all spread."""
        size = row.lse - row.z[j]
        return (32 + _margin(row, j)) * self.unit * size + (len(row.z) + 1) * self.tiny

    def stored(self, bound: Real, true: Real, dtype: str) -> Real:
        """Add what rounding a result to a coarser dtype does to it; what is exact stays so."""
        if not bound or UNIT[dtype] <= UNIT[self.computed]:
            return bound
        return bound + UNIT[dtype] * (abs(true) + bound) + _SPACING[dtype]

    def _base(self) -> Real:
        return 32 + 2 * exact(self.call.option("softcap") or 0.0)

    def _loss(self, row: Row) -> Real:
        if not (row.counts and mp.isfinite(row.loss)):
            return ZERO
        mass, natural = mp.fsum(map(abs, row.q)), _natural(row)
        steps = self._base() + (_margin(row.logits, wanted) if (wanted := _hot(row)) >= 0 else 0)
        squares = self._base() * z_loss(self.call) * _size(row.logits) ** 2
        dropped = len(row.q) * mass * self.tiny
        return abs(row.weight) * ((steps * natural + squares) * self.unit + dropped) + self.tiny

    def _derivatives(self, row: Row, divisor: Real) -> list[Real]:
        if not row.counts:
            return [ZERO] * len(row.q)
        mass, hot = mp.fsum(map(abs, row.q)), -1 if z_loss(self.call) else _hot(row)
        mass_and_more = mass + 2 * z_loss(self.call) * _size(row.logits)
        bounds = []
        for j, (p, q) in enumerate(zip(row.logits.p, row.q, strict=True)):
            steps = self._base() + 4 * abs(row.capped[j])
            if j == hot:
                size = (steps + _margin(row.logits, j)) * abs(mass * p - q)
            else:
                size = (steps + _fall(row.logits, j)) * (mass_and_more * p + abs(q))
            dropped = len(row.q) * mass * self.tiny
            scale = abs(factor(row, divisor) * row.slope[j])
            bounds.append(scale * (size * self.unit + dropped) + self.tiny)
        return bounds


def _natural(row: Row) -> Real:
    """mass·spread + sum |q·(z - top)|; a class that is not wanted may be impossible."""
    z, top, lse = row.logits.z, row.logits.top, row.logits.lse
    apart = [abs(q * (value - top)) for q, value in zip(row.q, z, strict=True) if q]
    return abs(mp.fsum(row.q)) * (lse - top) + mp.fsum(apart)


def _size(row: Logits) -> Real:
    return abs(row.top) + (row.lse - row.top)


def _fall(row: Logits, j: int) -> Real:
    """How far an entry is below the top; nothing where its exponential is exactly 0."""
    return row.top - row.z[j] if mp.isfinite(row.z[j]) else ZERO


def _margin(row: Logits, j: int) -> Real:
    """How far an entry stands above the others, if it does."""
    others = max((value for k, value in enumerate(row.z) if k != j), default=row.z[j])
    return max(ZERO, row.z[j] - others) if mp.isfinite(others) else ZERO


def _hot(row: Row) -> int:
    """The one class that a row wants anything of, or -1."""
    wanted = [j for j, q in enumerate(row.q) if q]
    return wanted[0] if len(wanted) == 1 else -1
