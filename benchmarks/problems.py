"""What is measured: the shapes and dtypes of the logits, and the data, all from one seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}

#: Whether the logits' gradient is wanted beside the loss.
FORWARD, GRADIENT = PASSES = "forward", "forward + gradient"


#: Kinds of targets.
INDICES, PROBABILITIES = "indices", "probabilities"


class Problem(NamedTuple):
    """Logits of a shape, classes along axis 1, and for each row a class index or probabilities."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    target: str = INDICES

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}{', probabilities' if self.is_soft else ''}"

    @property
    def is_soft(self) -> bool:
        """Whether its rows have probabilities."""
        return self.target == PROBABILITIES

    @property
    def code(self) -> str:
        """One word for files and command lines."""
        words = "x".join(map(str, self.shape)), self.dtype, *([self.target] if self.is_soft else [])
        return "-".join(words)

    @classmethod
    def of(cls, code: str) -> Problem:
        """Read such a word."""
        shape, *others = code.split("-")
        return cls(tuple(map(int, shape.split("x"))), *others)

    @property
    def drawn(self) -> type[np.floating]:
        """The dtype that numbers are drawn in, before they are rounded to its own."""
        return np.float64 if self.dtype == "float64" else np.float32

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def mib(self) -> float:
        """Mebibytes of the logits, and of their gradient."""
        return self.elements * np.dtype(DTYPES[self.dtype]).itemsize / 2**20

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw standard normal logits and uniform targets, as NumPy arrays."""
        logits = np.random.default_rng(0).standard_normal(self.shape, self.drawn)
        return logits.astype(DTYPES[self.dtype], copy=False), self.wanted()

    def mapped(self, folder: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits, all zero, of a memory-mapped file that takes no room on the disk."""
        path = Path(folder, "logits.npy")
        np.lib.format.open_memmap(path, "w+", DTYPES[self.dtype], self.shape)
        return np.load(path, mmap_mode="r"), self.wanted()

    def wanted(self) -> np.ndarray:
        """Draw a class index for each row, or probabilities."""
        rng, (samples, classes, *places) = np.random.default_rng(1), self.shape
        if not self.is_soft:
            return rng.integers(0, classes, (samples, *places))
        p = rng.random(self.shape, self.drawn)
        p /= p.sum(axis=1, keepdims=True)
        return p.astype(DTYPES[self.dtype], copy=False)


SMALL = Problem((32, 10))
NARROW = Problem((65_536, 10))
LARGE = Problem((2048, 32_000))
HALF = Problem(LARGE.shape, "bfloat16")
WIDE = Problem((512, 128_256))
IMAGES = Problem((8, 21, 512, 512))

SHAPES = [problem.shape for problem in (SMALL, NARROW, Problem((4096, 1000)), LARGE, WIDE, IMAGES)]

#: Those whose rows have probabilities.
SOFT = [Problem(shape, "float32", PROBABILITIES) for shape in SHAPES if shape != WIDE.shape]
SOFT_LARGE, SOFT_IMAGES = SOFT[-2:]
SOFT_HALF = Problem(LARGE.shape, "bfloat16", PROBABILITIES)

#: Where every contestant is timed, forward and with the gradient.
TIMED = [Problem(shape, dtype) for dtype in DTYPES for shape in SHAPES] + [*SOFT, SOFT_HALF]

#: From ten thousand logits to a milliard, more rows and more classes: forward only.
MORE_ROWS = [Problem((10**power, 1000)) for power in range(1, 7)]
MORE_CLASSES = [Problem((8, 125 * 10**power)) for power in range(1, 7)]

#: Where memory is measured, in a fresh process each.
WEIGHED = [*(Problem(shape) for shape in SHAPES), HALF, SOFT_LARGE]

#: 20 GB of logits in a memory-mapped file.
MAPPED = Problem((156_250, 32_000))
