"""The forward pass against what each library's users write themselves.

Run it with nothing else running: ``python -m nox -s bench``. Times are medians of interleaved runs
in one process, so that a machine whose speed drifts slows all of them; memory is the growth of
anonymous memory (Linux) during one call in a fresh process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import log_softmax

import xent_array

from memory import Watch

SMALL, LARGE = (32, 10), (2048, 32_000)


class Contest(NamedTuple):
    """One call of ours against one of theirs on the same data."""

    name: str
    shape: tuple[int, int]
    theirs: Callable[[], object]
    ours: Callable[[], object]


def log_softmax_by_hand(logits: np.ndarray) -> np.ndarray:
    """What NumPy users write."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def by_hand(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """Pick the log-softmax at the targets by take_along_axis."""
    return -np.take_along_axis(log_softmax_by_hand(logits), target[:, None], axis=1).mean()


def by_index(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """Pick it by integer indices, which NumPy does sooner."""
    return -log_softmax_by_hand(logits)[np.arange(len(target)), target].mean()


def by_scipy(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """SciPy's log_softmax, picked at the targets."""
    return -np.take_along_axis(log_softmax(logits, axis=1), target[:, None], axis=1).mean()


def data(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Random float32 logits and class indices."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape, dtype=np.float32), rng.integers(0, shape[1], shape[0])


def contests() -> list[Contest]:
    """Everything that is compared."""
    small, large = data(SMALL), data(LARGE)
    tensors = [torch.from_numpy(x) for x in large]
    ours = xent_array.cross_entropy
    return [
        Contest("NumPy / by hand", SMALL, lambda: by_hand(*small), lambda: ours(*small)),
        Contest("NumPy / by index", SMALL, lambda: by_index(*small), lambda: ours(*small)),
        Contest("NumPy / SciPy", LARGE, lambda: by_scipy(*large), lambda: ours(*large)),
        Contest(
            "torch / F.cross_entropy",
            LARGE,
            lambda: torch.nn.functional.cross_entropy(*tensors),
            lambda: ours(*tensors),
        ),
    ]


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Time of one call, averaged over some."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def run(contest: Contest, rounds: int = 15) -> tuple[float, float, list[float]]:
    """Median time of theirs and of ours, and the ratio theirs/ours of every round."""
    repeats = 2000 if contest.shape == SMALL else 1
    theirs, ours = [], []
    for _ in range(rounds + 1):
        theirs.append(seconds(contest.theirs, repeats))
        ours.append(seconds(contest.ours, repeats))
    ratios = [a / b for a, b in zip(theirs[1:], ours[1:], strict=True)]
    return statistics.median(theirs[1:]), statistics.median(ours[1:]), ratios


def measure_memory(library: str) -> float:
    """Growth of anonymous memory during one large forward, sampled every half millisecond."""
    arrays: list[object] = list(data(LARGE))
    if library == "torch":
        arrays = [torch.from_numpy(x) for x in arrays]
    xent_array.cross_entropy(arrays[0][:1], arrays[1][:1])
    with Watch() as watch:
        xent_array.cross_entropy(*arrays)
    return watch.peak - watch.before


def main() -> None:
    """Print both tables."""
    table = Table("ours / theirs", "shape", "theirs", "ours", "theirs ÷ ours (min-max)")
    for contest in contests():
        theirs, ours, ratios = run(contest)
        unit, factor = ("µs", 1e6) if contest.shape == SMALL else ("ms", 1e3)
        table.add_row(
            contest.name,
            str(contest.shape),
            f"{theirs * factor:.1f} {unit}",
            f"{ours * factor:.1f} {unit}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
        )
    Console().print(table)
    for library in ("numpy", "torch"):
        grown = subprocess.run(
            [sys.executable, __file__, library], check=True, capture_output=True, text=True
        ).stdout
        print(f"anonymous memory, forward of {LARGE} float32 on {library}: +{float(grown):.1f} MiB")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(measure_memory(sys.argv[1]))
    else:
        main()
