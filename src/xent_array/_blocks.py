"""The memory budget: rows and classes are taken in blocks that stay in cache."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from types import EllipsisType

from xent_array._backends import Memory

RowIndex = tuple[int | slice | EllipsisType, ...]

#: Bytes of logits in one block, in the compute dtype, per kind of memory. A loss works on three or
#: four arrays of that size, which should fit the cache that one core has; blocks much smaller lose
#: to the cost of a call. "device" is a guess at a GPU's cache, to be measured on one.
BLOCK_BYTES: dict[Memory, int] = {"host": 1 << 20, "device": 1 << 25}


def block_size(
    memory: Memory, classes: int, itemsize: int, differentiable: bool
) -> tuple[int, int]:
    """How many rows, and how many of their classes, make a block.

    Values that do not exist yet are not looped over, and a library that differentiates keeps every
    block it saw: there everything is one block.
    """
    if memory == "traced" or differentiable:
        return sys.maxsize, classes
    entries = BLOCK_BYTES[memory] // itemsize
    return max(1, entries // classes), min(classes, entries)


def row_blocks(shape: tuple[int, ...], size: int) -> list[RowIndex]:
    """Cut rows of any `shape` into consecutive runs, in C order, of at most `size` rows each.

    >>> row_blocks((2, 3, 4), 8)
    [(0, slice(0, 2, None), Ellipsis), (0, slice(2, 4, None), Ellipsis), \
(1, slice(0, 2, None), Ellipsis), (1, slice(2, 4, None), Ellipsis)]
    """
    return [(...,)] if math.prod(shape) <= size else list(_row_blocks(shape, size))


def _row_blocks(shape: tuple[int, ...], size: int) -> Iterator[RowIndex]:
    cut = next(i for i in range(len(shape)) if math.prod(shape[i + 1 :]) <= size)
    step = size // math.prod(shape[cut + 1 :])
    for lead in itertools.product(*map(range, shape[:cut])):
        for start in range(0, shape[cut], step):
            yield (*lead, slice(start, min(start + step, shape[cut])), ...)


def class_slabs(classes: int, size: int) -> list[slice]:
    """Cut the class axis into slabs of at most `size` classes."""
    return [slice(start, min(start + size, classes)) for start in range(0, classes, size)]
