"""The contestants: xent_array, portable and with kernels, and what each library's users write."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from xent_array._kernels import disabled

from problems import FORWARD, Problem

#: Returns the loss, or the loss and the gradient by the logits.
Call = Callable[[], Any]

#: Takes NumPy logits and targets, and returns a call on them, as arrays of the library concerned.
Prepare = Callable[..., Call]

#: The modules of this package; each imports its library, and a fresh process needs only one.
LIBRARIES = ("numpy", "torch", "jax")

PORTABLE, KERNELS = ENGINES = "portable", "kernels"

#: What distance is counted in: one pass over the logits, on all cores.
READ = "torch.amax: one read"

#: What no gradient takes less than: the same, and memory for the result to be taken and written.
COPY = "torch.copy_: one read, one new array"

#: Those that are no loss.
PACES = frozenset({READ, COPY})


def anything(_: Problem) -> bool:
    """Whether a problem is one for a contestant that takes them all."""
    return True


def soft(problem: Problem) -> bool:
    """Whether it is one of probabilities."""
    return problem.is_soft


def hard(problem: Problem) -> bool:
    """Whether it is one of class indices."""
    return not problem.is_soft


class Peer(NamedTuple):
    """A contestant."""

    name: str
    forward: Prepare | None
    gradient: Prepare | None = None
    #: Whether a problem is one for it.
    takes: Callable[[Problem], bool] = anything
    #: Above so many logits it takes too long, or too much memory.
    most: float = 2e8
    #: Whether it is compiled for each shape.
    compiled: bool = False
    #: What it runs in.
    engine: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def prepare(self, passage: str) -> Prepare | None:
        """What it does in a pass, forward or with the gradient; None if it has none."""
        return self.forward if passage == FORWARD else self.gradient

    def enters(self, problem: Problem, passage: str) -> bool:
        """Whether it takes part."""
        able = self.prepare(passage) is not None and problem.elements <= self.most
        return able and self.takes(problem)


def ours(library: str, engine: str) -> str:
    """Name xent_array on the arrays of a library."""
    return f"{library}: xent_array {engine}"


def both_engines(
    library: str, forward: Prepare, gradient: Prepare, *, most: float = 1e10, **more: Any
) -> list[Peer]:
    """xent_array on the arrays of a library: portable, and with kernels."""
    return [
        Peer(ours(library, name), forward, gradient, most=most, engine=engine, **more)
        for name, engine in zip(ENGINES, (disabled, contextlib.nullcontext), strict=True)
    ]


def peers_of(library: str) -> list[Peer]:
    """Import the contestants on the arrays of a library."""
    peers: list[Peer] = importlib.import_module(f"peers.{library}").PEERS
    return peers
