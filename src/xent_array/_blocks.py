"""The memory budget: rows and classes are taken in blocks that stay in cache."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from xent_array._backends import Memory, Standard
from xent_array._namespace import Array
from xent_array._row_blocks import RowIndex, row_blocks
from xent_array._threads import for_each

#: Bytes of logits in one block, in the compute dtype, per kind of memory. A loss works on three or
#: four arrays of that size, which should stay in cache; blocks much smaller lose to the cost of a
#: call. "threads" are host memory whose blocks several threads work on at once. "device" is a guess
#: at a GPU's cache, to be measured on one. Of a block that a "kernel" reads only the numbers of its
#: rows take memory.
BLOCK_BYTES: dict[Memory | Literal["threads", "kernel"], int] = {
    "host": 3 << 20,
    "threads": 1 << 20,
    "kernel": 8 << 20,
    "device": 1 << 25,
}

#: How many blocks of array code may be under way at once: each takes a few arrays of a MiB.
ROOM = 8

#: Bytes of a row beside its logits: of few classes, its indices, masks and sums weigh as much.
ROW_BYTES = 64

#: How many entries of a row argument are looked at in one go, a bound on the memory that takes.
LOOK = 1 << 18


def keep_heap(backend: Standard, z: Array) -> None:
    """Have the heap keep what one block of `z` frees for the next.

    glibc gives memory back to the system whenever twice the size of the largest array ever freed
    lies free at the end of the heap. That is after every block, and faulting its pages in again
    costs more than the arithmetic. One larger array, taken and dropped untouched, raises that
    measure (M_TRIM_THRESHOLD in mallopt(3)); other allocators are not concerned.
    """
    if backend.memory(z) == "host":
        size = 8 * BLOCK_BYTES["host"]
        backend.xp.empty((size,), dtype=backend.xp.uint8, device=backend.device(z))


class Assembly:
    """Results of one block after another, written into memory that is taken once.

    A result that one block does not have, no block has: None.

    Kept as they come, small results would lie between the large temporary arrays of the blocks,
    and those could not take each other's place: the heap would grow with the number of blocks.
    """

    def __init__(self, backend: Standard, shape: tuple[int, ...]) -> None:
        self.backend = backend
        self.shape = shape
        self.columns: list[Any] = []
        self._making = threading.Lock()

    def put(self, place: Any, parts: Sequence[Array | None]) -> None:
        """Write the results of a block at its place."""
        with self._making:
            if not self.columns:
                self.columns = [None if part is None else self._empty(part) for part in parts]
        for column, part in zip(self.columns, parts, strict=True):
            if column is not None:
                column[place] = part

    def _empty(self, part: Array) -> Array:
        device = self.backend.device(part)
        return self.backend.xp.empty(self.shape, dtype=part.dtype, device=device)


class Plan(NamedTuple):
    """How to walk through an array of rows."""

    rows: int  # in a block, at most
    blocks: list[RowIndex]
    slabs: list[slice]  # of the classes, for blocks of a single row too wide for the budget

    @property
    def whole(self) -> bool:
        """Whether everything is one block, its rows whole."""
        return len(self.blocks) == len(self.slabs) == 1


def plan(shape: tuple[int, ...], classes: int, itemsize: int, budget: int | None) -> Plan:
    """Cut rows of any `shape` into blocks, and their classes into slabs, of `budget` bytes.

    Without a budget everything is one block.
    """
    every, weight = math.prod(shape), _row_bytes(classes, itemsize)
    if budget is None or every * weight <= budget:
        return Plan(every, [(...,)], [slice(0, classes)])
    rows, width = max(1, budget // weight), budget // itemsize
    slabs = [slice(start, min(start + width, classes)) for start in range(0, classes, width)]
    return Plan(rows, list(row_blocks(shape, rows)), slabs)


def budget_of(backend: Standard, memory: Memory, *, differentiable: bool) -> int | None:
    """The bytes of a block of array code.

    Values that cannot be seen are not looped over, and a library that differentiates keeps every
    block it saw: there everything is one block.
    """
    if memory == "opaque" or differentiable:
        return None
    return BLOCK_BYTES["threads" if memory == "host" and backend.shares_blocks else memory]


def _row_bytes(classes: int, itemsize: int) -> int:
    return classes * itemsize + ROW_BYTES


def for_each_block(
    backend: Standard,
    z: Array,
    work: Callable[[int, RowIndex], object],
    blocks: Sequence[RowIndex],
) -> None:
    """Do some work on every block of rows of `z`."""

    def quietly(item: tuple[int, RowIndex]) -> None:
        with backend.quiet():  # which holds for one thread
            work(*item)

    keep_heap(backend, z)
    threads = min(backend.threads(), len(blocks), ROOM)
    for_each(quietly, enumerate(blocks), threads)


def slab_of(x: Array, classes: slice) -> Array:
    """The classes of a slab; an array that holds no others is taken whole."""
    return x if x.shape[-1] == classes.stop - classes.start else x[..., classes]
