"""Rows of any shape, cut into runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from types import EllipsisType

RowIndex = tuple[int | slice | EllipsisType, ...]


def row_blocks(shape: tuple[int, ...], size: int) -> Iterator[RowIndex]:
    """Cut rows of any `shape` into consecutive runs, in C order, of at most `size` rows each.

    >>> for block in row_blocks((2, 4, 4), 8):
    ...     print(block)
    (0, slice(0, 2, None), Ellipsis)
    (0, slice(2, 4, None), Ellipsis)
    (1, slice(0, 2, None), Ellipsis)
    (1, slice(2, 4, None), Ellipsis)
    """
    if math.prod(shape) <= size:
        yield (...,)
        return
    cut = next(i for i in range(len(shape)) if math.prod(shape[i + 1 :]) <= size)
    step = size // math.prod(shape[cut + 1 :])
    for lead in itertools.product(*map(range, shape[:cut])):
        for start in range(0, shape[cut], step):
            yield (*lead, slice(start, min(start + step, shape[cut])), ...)
