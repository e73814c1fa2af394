"""What is launched on a GPU: which kernel, and its arguments, also before addresses are known."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple


class Form(NamedTuple):
    """A kernel as it is launched: with how many blocks, of how many threads."""

    kernel: str
    blocks: int
    threads: int


class Spot(NamedTuple):
    """An address that is not known yet: so far into one of several pieces of memory."""

    memory: int
    offset: int = 0

    def __add__(self, more: int) -> Spot:  # type: ignore[override]
        return Spot(self.memory, self.offset + more)


#: An address, or what it will be.
Address = int | Spot


class Cell(NamedTuple):
    """Where numbers lie, and of what dtype they are."""

    address: Address
    dtype: str


class Launch(NamedTuple):
    """A launch: the bytes of its parameters, one after the other, and where addresses belong."""

    form: Form
    code: str  # what makes the kernel of the templates in C++
    words: bytes
    spots: Sequence[tuple[int, Spot]]
    shared: int = 0  # bytes of shared memory of each block

    def put(self, into: bytearray | memoryview, memory: Sequence[int]) -> None:
        """Write the bytes somewhere, when the pieces of memory are there."""
        into[: len(self.words)] = self.words
        for place, (piece, offset) in self.spots:
            _pack_address(into, place, memory[piece] + offset)


_pack_address = struct.Struct("<Q").pack_into


def launching(form: Form, code: str, layout: str, arguments: Sequence[float | Address]) -> Launch:
    """A launch of parameters of eight bytes each, laid out as `struct` tells it."""
    spots = [(8 * k, x) for k, x in enumerate(arguments) if isinstance(x, Spot)]
    known = (0 if isinstance(x, Spot) else x for x in arguments)
    return Launch(form, code, struct.pack(layout, *known), spots)
