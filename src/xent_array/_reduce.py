"""From per-row losses to the result: none, sum and mean, once."""

from __future__ import annotations

import math
from typing import NamedTuple

from xent_array._backends import Standard
from xent_array._batch import Batch
from xent_array._namespace import Array
from xent_array._stats import Scalar


class Counts(NamedTuple):
    """What the mean over some rows divides by; None where every row counts, and counts 1."""

    weight: Array | None
    kept: Array | None  # how many rows count


#: Every row counts, and counts 1.
_EVERY = Counts(None, None)


def count_rows(backend: Standard, weight: Array | None, kept: Array | None) -> Counts:
    """Add up the weights of the rows that count."""
    if kept is None:
        return _EVERY if weight is None else Counts(backend.total(weight), None)
    count = backend.count(kept)
    if weight is None:
        return Counts(count, count)
    return Counts(backend.total(backend.xp.where(kept, weight, 0.0)), count)


def divisor(batch: Batch, rows: Counts) -> Scalar:
    """What the mean divides by: a given denominator, or what the rows that count add up to.

    It is 1 where no row counts, which keeps the quotient finite and its gradient 0. Rows whose
    weights sum to 0 have no mean: NaN, as in torch.
    """
    if batch.denominator is not None:
        return batch.denominator
    total = rows.kept if batch.by_rows else rows.weight
    if total is None:
        return batch.backend.row_count(batch.logits, batch.shape)
    xp = batch.backend.xp
    total = batch.backend.cast(total, batch.compute_dtype)
    total = xp.where(total == 0.0, xp.nan, total)
    return total if rows.kept is None else xp.where(rows.kept == 0, 1.0, total)


def mean(batch: Batch, loss: Array, rows: Counts, by: Scalar) -> Array:
    """Divide the sum of the losses; where no row counts, return what `on_empty` says."""
    quotient = loss / by
    if batch.denominator is not None:
        return quotient
    empty = math.nan if batch.on_empty == "nan" else 0.0
    if rows.kept is None:
        return quotient if math.prod(batch.shape) else loss + empty
    return batch.backend.xp.where(rows.kept == 0, empty, quotient)
