"""The truth: the textbook formula in 60 digits, which shares only its meaning with the library."""

import mpmath
import numpy as np

mpmath.mp.dps = 60


def exact(values):
    """Floats as multi-precision numbers, exactly."""
    return [mpmath.mpf(float(value)) for value in values]


def logsumexp(z, counts=None):
    top = max(z)
    counts = counts or [1] * len(z)
    return top + mpmath.log(
        mpmath.fsum(n * mpmath.exp(v - top) for v, n in zip(z, counts, strict=True))
    )


def index_loss(z, label):
    """Minus the log of the label's softmax; equal logits are counted, not repeated."""
    values, counts = np.unique(z, return_counts=True)
    return logsumexp(exact(values), counts.tolist()) - mpmath.mpf(float(z[label]))


def wanted(classes, target, weight, smoothing):
    """What a row wants of each class, for a class index or for probabilities."""
    smoothing = mpmath.mpf(smoothing)
    if isinstance(target, (int, np.integer)):
        target = [1.0 if j == target else 0.0 for j in range(classes)]
    weight = exact(weight) if weight is not None else [mpmath.mpf(1)] * classes
    return [
        ((1 - smoothing) * p + smoothing / classes) * w
        for p, w in zip(exact(target), weight, strict=True)
    ]


def row_loss(z, q):
    """Sum of q·(logsumexp(z) - z)."""
    z = exact(z)
    lse = logsumexp(z)
    return mpmath.fsum(share * (lse - value) for share, value in zip(q, z, strict=True) if share)


def reduce(losses, divisors, reduction):
    """None, sum or mean of losses of the rows that count."""
    if reduction == "none":
        return losses
    total = mpmath.fsum(losses)
    if reduction == "sum":
        return total
    divisor = mpmath.fsum(divisors)
    return total / divisor if divisor else mpmath.nan


def cross_entropy(z, target, *, weight=None, smoothing=0.0, ignore_index=-100, reduction="mean"):
    """Loss of rows `z` (N, C) with `target` (N,) of indices or (N, C) of probabilities."""
    index = np.asarray(target).dtype.kind in "iu"
    losses, divisors = [], []
    for row, wants in zip(z, target, strict=True):
        if index and wants == ignore_index:
            losses.append(mpmath.mpf(0))
            continue
        losses.append(row_loss(row, wanted(len(row), wants, weight, smoothing)))
        divisors.append(mpmath.mpf(float(weight[wants])) if index and weight is not None else 1)
    return reduce(losses, divisors, reduction)


def row_gradient(z, q):
    """Derivatives of `row_loss` by the logits: softmax times the sum of q, less q."""
    z = exact(z)
    lse, mass = logsumexp(z), mpmath.fsum(q)
    return [mass * mpmath.exp(value - lse) - share for value, share in zip(z, q, strict=True)]


def gradient(z, target, *, weight, smoothing, ignore_index, mean):
    """Derivatives of the sum or mean of rows `z` (N, C) by the logits; zero in ignored rows."""
    index = np.asarray(target).dtype.kind in "iu"
    divisor = mpmath.mpf(0)
    grad = np.full(z.shape, mpmath.mpf(0), dtype=object)
    for i, (row, wants) in enumerate(zip(z, target, strict=True)):
        if index and wants == ignore_index:
            continue
        grad[i] = row_gradient(row, wanted(len(row), wants, weight, smoothing))
        divisor += mpmath.mpf(float(weight[wants])) if index and weight is not None else 1
    if not mean:
        return grad
    return grad / divisor if divisor else np.full(z.shape, mpmath.nan, dtype=object)
