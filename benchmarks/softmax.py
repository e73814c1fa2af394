"""softmax, log_softmax and logsumexp beside each library's own.

Run ``python benchmarks/softmax.py`` with nothing else running: float32, along the classes. Prints
how many times as long the library's own function takes as ours, portable and with kernels, by
medians of interleaved rounds; on torch and JAX with what is passed on of an upstream gradient too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special
import torch
from rich.console import Console
from rich.table import Table

import xent_array

from peers import Call, Peer, both_engines
from timing import interleaved

SHAPES = ((32, 10), (4096, 1000), (512, 32_000), (8, 21, 256, 256))
FUNCTIONS = ("softmax", "log_softmax", "logsumexp")
ROUNDS = 9

#: Along which axis: the classes of images are second.
AXES = {2: -1, 4: 1}

#: A function of an array and an axis.
Function = Callable[[Any, int], Any]


class Contest(NamedTuple):
    """What is called on the arrays of a library, and what its own function is."""

    library: str
    prepare: Callable[[Function, np.ndarray], Call]
    own: Any  # has the functions by their names


def in_numpy(function: Function, x: np.ndarray) -> Call:
    """Call on the array itself."""
    return lambda: function(x, AXES[x.ndim])


def in_torch(function: Function, x: np.ndarray) -> Call:
    """Call on a tensor."""
    tensor = torch.from_numpy(x)
    return lambda: function(tensor, AXES[x.ndim])


def backward(function: Function, x: np.ndarray) -> Call:
    """Call, and pass back what an upstream gradient of 1.5 makes of it."""
    leaf = torch.from_numpy(x).clone().requires_grad_()
    upstream = torch.ones_like(function(leaf, AXES[x.ndim])).add_(0.5)

    def call() -> torch.Tensor:
        leaf.grad = None
        function(leaf, AXES[x.ndim]).backward(upstream)
        return leaf.grad

    return call


def in_jax(function: Function, x: np.ndarray) -> Call:
    """Call under `jax.jit`."""
    array, compiled = jax.numpy.asarray(x), jax.jit(lambda x: function(x, AXES[x.ndim]))
    return lambda: jax.block_until_ready(compiled(array))


def grad_in_jax(function: Function, x: np.ndarray) -> Call:
    """The same as `backward`, under `jax.jit`."""
    array = jax.numpy.asarray(x)

    def passed_on(x: jax.Array) -> jax.Array:
        found, transposed = jax.vjp(lambda x: function(x, AXES[x.ndim]), x)
        return transposed(jax.numpy.full_like(found, 1.5))[0]

    compiled = jax.jit(passed_on)
    return lambda: jax.block_until_ready(compiled(array))


CONTESTS = (
    Contest("NumPy / SciPy", in_numpy, scipy.special),
    Contest("torch", in_torch, torch),
    Contest("torch, with backward", backward, torch),
    Contest("JAX", in_jax, jax.nn),
    Contest("JAX, with its vjp", grad_in_jax, jax.nn),
)


def ratios(contest: Contest, name: str, x: np.ndarray) -> list[float]:
    """The library's own time divided by ours, portable and with kernels."""
    ours, own = (getattr(module, name) for module in (xent_array, contest.own))
    peers = [Peer("own", None), *both_engines("", None, None)]
    calls = {}
    for peer in peers:
        with peer.engine():  # by which functions are compiled, too
            calls[peer] = contest.prepare(own if peer.name == "own" else ours, x)
            calls[peer]()
    seconds = interleaved(calls, ROUNDS)
    theirs, *mine = (seconds[peer] for peer in peers)
    return [statistics.median(a / b for a, b in zip(theirs, some, strict=True)) for some in mine]


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    table = Table("shape", "function", *(contest.library for contest in CONTESTS))
    for shape in SHAPES:
        x = rng.standard_normal(shape).astype(np.float32)
        for name in FUNCTIONS:
            cells = [ratios(contest, name, x) for contest in CONTESTS]
            texts = [" ".join(f"{ratio:.2f}" for ratio in some) for some in cells]
            table.add_row(str(shape), name, *texts)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
