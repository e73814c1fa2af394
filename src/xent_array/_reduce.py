"""From per-row losses to the result: none, sum and mean, once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from xent_array._backends import Standard
from xent_array._namespace import Array
from xent_array._options import Options
from xent_array._stats import Scalar


class Sums(NamedTuple):
    """What some rows add to a mean; sums of different rows add up."""

    loss: Array
    weight: Array | int  # of the rows that count
    kept: Array | int  # how many count


def sums(backend: Standard, loss: Array, weight: Array | None, kept: Array | None) -> Sums:
    """Sum over rows; `loss` is 0 already in rows that do not count."""
    xp = backend.xp
    count: Array | int = math.prod(loss.shape)
    if kept is not None:
        count = backend.total(xp.astype(kept, backend.index_dtype(kept)))
        weight = None if weight is None else xp.where(kept, weight, 0.0)
    return Sums(backend.total(loss), count if weight is None else backend.total(weight), count)


def add(backend: Standard, parts: Sequence[Sums]) -> Sums:
    """The sums of all rows together."""
    if len(parts) == 1:
        return parts[0]
    return Sums(*(_add(backend, column) for column in zip(*parts, strict=True)))


def _add(backend: Standard, parts: Sequence[Array | int]) -> Array | int:
    if isinstance(parts[0], int):
        return sum(parts)
    return backend.total(backend.xp.stack(parts))


def mean(backend: Standard, rows: Sums, options: Options, denominator: Scalar | None) -> Array:
    """Divide by a given denominator, or by what the rows that count add up to.

    Where no row counts there is nothing to divide by: the quotient is kept finite, so that its
    gradient is 0, and then replaced by what `on_empty` says. Rows whose weights sum to 0 have no
    mean either: NaN, as in torch.
    """
    if denominator is not None:
        return rows.loss / denominator
    xp, empty = backend.xp, (math.nan if options.on_empty == "nan" else 0.0)
    divisor = rows.kept if options.denominator == "rows" else rows.weight
    if not isinstance(divisor, int):
        divisor = backend.cast(divisor, rows.loss.dtype)
        divisor = xp.where(divisor == 0.0, xp.nan, divisor)
    if isinstance(rows.kept, int):
        return rows.loss / divisor if rows.kept else rows.loss + empty
    none = rows.kept == 0
    return xp.where(none, empty, rows.loss / xp.where(none, 1.0, divisor))
