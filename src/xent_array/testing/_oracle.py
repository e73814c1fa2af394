"""The truth: the textbook formula in 60 digits, which shares only its meaning with the library.

A row's loss is the sum of q·(logsumexp(z) - z) over its classes, z being its logits, scaled and
capped, and q what it wants of each class; `z_loss` adds its multiple of logsumexp(z)².
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from xent_array.testing._exact import INF, NAN, ONE, ZERO, Real, exact, mp
from xent_array.testing._plain import FLOATING, Call, Plain, across, along, spread_over, without


class Given(NamedTuple):
    """What a call says of one row."""

    logits: tuple[float, ...]
    target: Any  # a class index, or the row's probabilities
    kept: bool
    weight: float
    upstream: float


class Logits(NamedTuple):
    """One row of logits as the loss sees them."""

    z: tuple[Real, ...]  # scaled and capped
    top: Real  # the greatest
    lse: Real
    p: tuple[Real, ...]  # softmax


class Row(NamedTuple):
    """One row: what goes in, and its loss."""

    logits: Logits
    capped: tuple[Real, ...]  # what the cap takes the tanh of; zeros without a cap
    slope: tuple[Real, ...]  # derivative of z by the caller's logits
    q: tuple[Real, ...]
    label: int | None  # the class index; None for probabilities
    correct: int  # the class that counts as a correct prediction
    counts: bool
    bad: bool  # the class index is no class
    weight: Real  # the row's own, of sample_weight
    share: Real  # what it adds to the divisor of the mean
    upstream: Real
    loss: Real  # 0 where the row does not count


class Truth(NamedTuple):
    """What a call of the loss must return, but for reduction and rounding."""

    rows: tuple[Row, ...]
    shape: tuple[int, ...]  # of the rows
    divisor: Real  # of the mean, else 1


@cache
def truth(call: Call) -> Truth:
    """Evaluate a call of `cross_entropy` or `cross_entropy_and_grad`."""
    logits, target = call.arrays
    shape = without(logits.shape, call.axis)
    indices = target.dtype not in FLOATING
    parts = zip(
        along(logits, call.axis),
        target.flat if indices else along(target, call.axis),
        spread_over(call.option("where"), shape, True),
        spread_over(call.option("sample_weight"), shape, 1.0),
        spread_over(call.option("grad_output"), shape, 1.0),
        strict=True,
    )
    rows = tuple(_row(call, Given(*part)) for part in parts)
    return Truth(rows, shape, _divisor(call, rows))


def softmax_row(z: tuple[Real, ...]) -> Logits:
    """Logsumexp and softmax of a row; NaN where there is none."""
    if any(mp.isnan(value) for value in z):
        return Logits(z, NAN, NAN, (NAN,) * len(z))
    top = max(z)
    if not mp.isfinite(top):
        return Logits(z, top, top, (NAN,) * len(z))
    exps = [mp.exp(value - top) for value in z]
    total = mp.fsum(exps)
    return Logits(z, top, top + mp.log(total), tuple(e / total for e in exps))


def losses(call: Call) -> list[Real]:
    """The loss as it is returned: of each row, their sum, or their mean."""
    rows, _, divisor = truth(call)
    every = [row.loss for row in rows]
    if reduction(call) == "none":
        return every
    total = mp.fsum(every)
    if reduction(call) == "sum":
        return [total]
    if call.option("denominator") in (None, "rows") and not any(row.counts for row in rows):
        return [ZERO if call.option("on_empty") == "zero" else NAN]
    return [total / divisor if divisor else NAN]


def reduction(call: Call) -> str:
    return str(call.option("reduction", "mean"))


def gradient(call: Call) -> list[Real]:
    """Derivatives of the loss, times `grad_output`, by the logits in row-major order."""
    rows, _, divisor = truth(call)
    vectors = [_row_gradient(call, row, divisor) for row in rows]
    return list(across(vectors, call.arrays[0].shape, call.axis))


def pull(call: Call, row: Row) -> Real:
    """What the softmax is multiplied by in the gradient."""
    return mp.fsum(row.q) + 2 * z_loss(call) * row.logits.lse


def factor(row: Row, divisor: Real) -> Real:
    """What follows a row's own loss."""
    return row.weight * row.upstream / divisor if divisor else NAN


def z_loss(call: Call) -> Real:
    return exact(call.option("z_loss", 0.0))


def prediction(row: Row) -> int | None:
    """The class of the greatest logit, the lowest among ties; None where there is a NaN."""
    return None if mp.isnan(row.logits.top) else row.logits.z.index(row.logits.top)


def _row_gradient(call: Call, row: Row, divisor: Real) -> list[Real]:
    if not row.counts:
        return [ZERO] * len(row.q)
    if row.bad or mp.isnan(row.loss):
        return [NAN] * len(row.q)
    scale, mass = factor(row, divisor), pull(call, row)
    parts = zip(row.logits.p, row.q, row.slope, strict=True)
    return [(mass * p - q) * scale * slope for p, q, slope in parts]


def _row(call: Call, given: Given) -> Row:
    seen, capped, slope = _transformed(call, given.logits)
    target, weight, classes = given.target, exact(given.weight), len(given.logits)
    label = target if isinstance(target, int) else None
    counts = given.kept and (label is None or label != call.option("ignore_index", -100))
    bad = counts and label is not None and not 0 <= label < classes
    usable = counts and not bad
    q = _wanted(call, classes, target) if usable else (ZERO,) * classes
    loss = _row_loss(call, seen, q) * weight if usable else NAN if bad else ZERO
    return Row(
        logits=seen,
        capped=capped,
        slope=slope,
        q=q,
        label=label,
        correct=target.index(max(target)) if label is None else label,
        counts=counts,
        bad=bad,
        weight=weight if counts else ZERO,
        share=weight * _class_weight(call, label) if usable else ZERO,
        upstream=exact(given.upstream),
        loss=loss,
    )


def _transformed(
    call: Call, logits: tuple[float, ...]
) -> tuple[Logits, tuple[Real, ...], tuple[Real, ...]]:
    scale, cap = exact(_scalar(call.option("logit_scale", 1.0))), call.option("softcap")
    scaled = tuple(scale * exact(value) for value in logits)
    if cap is None:
        return softmax_row(scaled), (ZERO,) * len(scaled), (scale,) * len(scaled)
    inner = tuple(value / exact(cap) for value in scaled)
    seen = tuple(exact(cap) * mp.tanh(x) for x in inner)
    return softmax_row(seen), inner, tuple(scale * mp.sech(x) ** 2 for x in inner)


def _wanted(call: Call, classes: int, target: Any) -> tuple[Real, ...]:
    """Q = ((1 - smoothing)·p + smoothing/C)·weight."""
    smoothing = exact(_scalar(call.option("label_smoothing", 0.0)))
    p = [float(j == target) for j in range(classes)] if isinstance(target, int) else target
    weight = call.option("weight")
    weights = [1.0] * classes if weight is None else weight.flat
    return tuple(
        ((1 - smoothing) * exact(share) + smoothing / classes) * exact(w)
        for share, w in zip(p, weights, strict=True)
    )


def _row_loss(call: Call, seen: Logits, q: tuple[Real, ...]) -> Real:
    """0·log 0 is 0: what is not wanted costs nothing."""
    if not mp.isfinite(seen.lse):
        return NAN
    if any(share and value == -INF for share, value in zip(q, seen.z, strict=True)):
        return INF
    parts = [s * (seen.lse - value) for s, value in zip(q, seen.z, strict=True) if s]
    return mp.fsum(parts) + z_loss(call) * seen.lse**2


def _class_weight(call: Call, label: int | None) -> Real:
    """What a row of class indices adds to the divisor of the mean; one of probabilities adds 1."""
    weight = call.option("weight")
    return ONE if weight is None or label is None else exact(weight.flat[label])


def _divisor(call: Call, rows: tuple[Row, ...]) -> Real:
    given, counted = call.option("denominator"), sum(row.counts for row in rows)
    if reduction(call) != "mean":
        return ONE
    if given is None:
        return mp.fsum(row.share for row in rows) if counted else ONE
    return exact(max(counted, 1) if given == "rows" else _scalar(given))


def _scalar(value: Any) -> Any:
    return value.flat[0] if isinstance(value, Plain) else value
