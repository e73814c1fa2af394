"""Data of the cases, drawn from seeds, as every library's author can draw them again."""

from __future__ import annotations

import math
import random

from xent_array.testing._plain import Plain, across, full, shaped, without

#: How far the targets of confident rows stand above the other logits.
MARGINS = (0.0, 0.5, 1.0, 5.0, 17.0, 40.0, 80.0)


def offsets(dtype: str, *wanted: float) -> list[float]:
    """Those common offsets of the logits that the dtype can hold."""
    return [offset for offset in wanted if dtype != "float16" or offset < 6e4]


class Draw:
    """Arrays of one floating dtype from one seed."""

    def __init__(self, seed: int, dtype: str) -> None:
        self.random = random.Random(seed)
        self.dtype = dtype

    def normal(self, *shape: int, spread: float = 2.0) -> Plain:
        entries = [self.random.gauss(0.0, spread) for _ in range(math.prod(shape))]
        return shaped(entries, shape, self.dtype)

    def positive(self, *shape: int) -> Plain:
        """Numbers between 1/4 and 2."""
        entries = [self.random.uniform(0.25, 2.0) for _ in range(math.prod(shape))]
        return shaped(entries, shape, self.dtype)

    def indices(self, shape: tuple[int, ...], classes: int, dtype: str = "int32") -> Plain:
        entries = [self.random.randrange(classes) for _ in range(math.prod(shape))]
        return shaped(entries, shape, dtype)

    def probabilities(self, shape: tuple[int, ...], axis: int) -> Plain:
        """Numbers that sum to 1 along an axis, but for rounding."""
        vectors = []
        for _ in range(math.prod(without(shape, axis))):
            shares = [self.random.random() for _ in range(shape[axis])]
            vectors.append([share / math.fsum(shares) for share in shares])
        return shaped(across(vectors, shape, axis), shape, self.dtype)

    def target(self, kind: str, shape: tuple[int, ...], axis: int = 1) -> Plain:
        """Class indices or probabilities for logits of a shape."""
        if kind == "index":
            return self.indices(without(shape, axis), shape[axis])
        return self.probabilities(shape, axis)

    def confident(
        self, classes: int, offset: float = 0.0, margins: tuple[float, ...] = MARGINS
    ) -> tuple[Plain, Plain]:
        """Rows whose targets stand that far above the others, all with a common offset."""
        vectors, labels = [], []
        for margin in margins:
            z = [self.random.gauss(0.0, 2.0) for _ in range(classes)]
            label = self.random.randrange(classes)
            z[label] = -math.inf
            z[label] = max(z) + margin
            vectors += [value + offset for value in z]
            labels.append(label)
        rows = len(margins)
        return shaped(vectors, (rows, classes), self.dtype), shaped(labels, (rows,), "int32")


def one_hot(labels: Plain, classes: int, dtype: str) -> Plain:
    """The probabilities that class indices stand for."""
    entries = [float(j == label) for label in labels.flat for j in range(classes)]
    return shaped(entries, (*labels.shape, classes), dtype)


def transposed(x: Plain) -> Plain:
    rows, columns = x.shape
    entries = [x.flat[i * columns + j] for j in range(columns) for i in range(rows)]
    return Plain(tuple(entries), (columns, rows), x.dtype)


def ignored(rows: int) -> Plain:
    """Class indices of rows none of which counts."""
    return full((rows,), -100, "int32")
