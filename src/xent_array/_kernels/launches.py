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


#: What a kernel is given: numbers in eight bytes each, or the bytes of one struct.
Arguments = tuple[int | float | bytes, ...]


class Launch(NamedTuple):
    """A launch whose addresses will be known later."""

    form: Form
    arguments: tuple[float | Address, ...] | bytes
    spots: Sequence[tuple[int, Spot]]  # and which argument, or which bytes, they belong to

    def at(self, memory: Sequence[int]) -> Arguments:
        """The arguments, when the pieces of memory are there."""
        if isinstance(self.arguments, bytes):
            words = bytearray(self.arguments)
            for place, (piece, offset) in self.spots:
                _pack_address(words, place, memory[piece] + offset)
            return (bytes(words),)
        arguments = list(self.arguments)
        for place, (piece, offset) in self.spots:
            arguments[place] = memory[piece] + offset
        return tuple(arguments)  # type: ignore[arg-type]


_pack_address = struct.Struct("<Q").pack_into


def launching(form: Form, arguments: tuple[float | Address, ...]) -> Launch:
    """A launch with some of its arguments spots."""
    spots = [(k, x) for k, x in enumerate(arguments) if isinstance(x, Spot)]
    return Launch(form, arguments, spots)
