"""Projection and loss beside their matrix products alone, and beside torch's own ways.

Run ``python benchmarks/linear.py`` with nothing else running: 2048 rows of 512 features, 32,000
classes, float32. Prints the medians of interleaved rounds, their ratios, and the anonymous memory
that a call of ours takes at its most, in a fresh process each; that of other sizes as well, to see
what it grows with.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

import xent_array

from memory import Watch

ROWS, FEATURES, CLASSES, ROUNDS = 2048, 512, 32_000, 7

#: Whose time is divided by whose, and what is asked of the quotient.
RATIOS = {
    ("torch, loss + gradients", "torch, 3 products"): "at most 1.15 (1.10 with kernels)",
    ("torch, logits held", "torch, loss + gradients"): "at least 1.2",
    ("F.linear_cross_entropy", "torch, loss + gradients"): "at least 1.5",
    ("torch, loss alone", "torch, 1 product"): "at most 1.10",
    ("NumPy, loss + gradients", "NumPy, 3 products"): "at most 1.25",
}

BACKWARD, ALONE, NUMPY = "torch, loss + gradients", "torch, loss alone", "NumPy, loss + gradients"


class Size(NamedTuple):
    """How large a problem is."""

    rows: int = ROWS
    classes: int = CLASSES
    features: int = FEATURES


#: Whose memory is measured: at the size that is timed, at 16 times the rows and the classes of a
#: small one, and of an evaluation whose logits are 31 GiB.
FEW = 64
WEIGHED = [
    *((name, Size()) for name in (BACKWARD, ALONE, NUMPY)),
    *((BACKWARD, Size(*size, FEW)) for size in ((2048, 8000), (32_768, 8000), (2048, 128_000))),
    (ALONE, Size(65_536, 128_256, FEW)),
]


def calls(size: Size) -> dict[str, Callable[[], Any]]:
    """Everything that is measured, on the same data."""
    rows, classes, features = size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator)
    w = torch.randn(classes, features, generator=generator) * 0.05
    t = torch.randint(0, classes, (rows,), generator=generator)
    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
    chunked = LinearCrossEntropyOptions()

    def backward(loss: Callable[..., torch.Tensor]) -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(*leaves, t).backward()

    def products(a: Any, b: Any) -> None:
        z = a @ b.T
        z @ b
        z.T @ a

    arrays = x.numpy(), w.numpy(), t.numpy()
    return {
        "torch, 3 products": lambda: products(x, w),
        "torch, loss + gradients": lambda: backward(xent_array.linear_cross_entropy),
        "torch, logits held": lambda: backward(
            lambda x, w, t: functional.cross_entropy(functional.linear(x, w), t)
        ),
        "F.linear_cross_entropy": lambda: backward(
            lambda x, w, t: functional.linear_cross_entropy(x, w, t, options=chunked)
        ),
        "torch, 1 product": lambda: x @ w.T,
        "torch, loss alone": lambda: xent_array.linear_cross_entropy(x, w, t),
        "NumPy, 3 products": lambda: products(*arrays[:2]),
        "NumPy, loss + gradients": lambda: xent_array.linear_cross_entropy_and_grad(*arrays),
    }


def timed() -> dict[str, float]:
    """Median seconds of each, after a first call that is not counted."""
    every = calls(Size())
    taken: dict[str, list[float]] = {name: [] for name in every}
    for played in range(ROUNDS + 1):
        for name, call in every.items():
            start = time.perf_counter()
            call()
            if played:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def weighed(name: str, *size: int) -> float:
    """Mebibytes that a call takes, after a small one that loads what is loaded once."""
    calls(Size(64, 1000))[name]()
    call = calls(Size(*size))[name]
    with Watch() as watch:
        call()
    return watch.peak - watch.before


def main() -> None:
    """Measure and print."""
    seconds = timed()
    table = Table("seconds", "median")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}")
    ratios = Table("ratio", "measured", "asked")
    for (ours, theirs), asked in RATIOS.items():
        ratios.add_row(f"{ours} / {theirs}", f"{seconds[ours] / seconds[theirs]:.2f}", asked)
    memory = Table("anonymous memory, MiB", "rows", "classes", "features", "beyond gradients")
    for name, size in WEIGHED:
        numbers = [*map(str, size)]
        command = [sys.executable, __file__, name, *numbers]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        gradients = 0 if name == ALONE else (size.rows + size.classes) * size.features * 4 / 2**20
        memory.add_row(name, *numbers, f"{float(done.stdout) - gradients:.1f}")
    console = Console()
    for part in (table, ratios, memory):
        console.print(part)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(weighed(sys.argv[1], *map(int, sys.argv[2:])))
    else:
        main()
