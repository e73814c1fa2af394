"""From per-row losses to the result: none, sum and mean, once."""

from __future__ import annotations

import math
from typing import NamedTuple

from xent_array._backends import Standard
from xent_array._namespace import Array
from xent_array._options import Options
from xent_array._stats import Scalar


class Sums(NamedTuple):
    """What some rows add to a mean; None where it is the number of rows, all of which count."""

    loss: Array
    weight: Array | None
    kept: Array | None


def sum_rows(backend: Standard, loss: Array, weight: Array | None, kept: Array | None) -> Sums:
    """Sum over rows; `loss` is 0 already in rows that do not count."""
    if kept is None:
        return Sums(backend.total(loss), None if weight is None else backend.total(weight), None)
    count = backend.count(kept)
    if weight is None:
        return Sums(backend.total(loss), count, count)
    return Sums(backend.total(loss), backend.total(backend.xp.where(kept, weight, 0.0)), count)


def add(backend: Standard, parts: Sums) -> Sums:
    """The sums of all rows together, of vectors of the sums of some."""
    return Sums(*(None if part is None else backend.total(part) for part in parts))


def mean(
    backend: Standard, rows: Sums, count: int, options: Options, denominator: Scalar | None
) -> Array:
    """Divide by a given denominator, or by what the `count` rows, or those that count, add up to.

    Where no row counts there is nothing to divide by: the quotient is kept finite, so that its
    gradient is 0, and then replaced by what `on_empty` says. Rows whose weights sum to 0 have no
    mean either: NaN, as in torch.
    """
    if denominator is not None:
        return rows.loss / denominator
    xp, empty = backend.xp, (math.nan if options.on_empty == "nan" else 0.0)
    if rows.kept is None and count == 0:
        return rows.loss + empty
    divisor = rows.kept if options.denominator == "rows" else rows.weight
    if divisor is None:
        return rows.loss / count
    divisor = backend.cast(divisor, rows.loss.dtype)
    divisor = xp.where(divisor == 0.0, xp.nan, divisor)
    if rows.kept is None:
        return rows.loss / divisor
    none = rows.kept == 0
    return xp.where(none, empty, rows.loss / xp.where(none, 1.0, divisor))
