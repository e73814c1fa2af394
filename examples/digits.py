"""Learn to read handwritten digits, with one training function for NumPy and torch.

Run ``python examples/digits.py``: a softmax classifier is trained by gradient descent on the 1797
scanned digits that come with scikit-learn, first on NumPy arrays and then on torch tensors. A table
compares the two, and their loss curves are drawn in ``digits.png``, in the current folder.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from array_api_compat import array_namespace
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import xent_array

Array = Any  # of any array library

CLASSES = 10
STEPS = 1000
LEARNING_RATE = 1.0
PICTURE = Path("digits.png")


class Split(NamedTuple):
    """Images, one a row with pixels in [0, 1], and the digits they show."""

    images: Array
    labels: Array


class Model(NamedTuple):
    """A linear classifier: pixels in, a logit for each digit out."""

    weights: Array
    bias: Array

    def logits(self, images: Array) -> Array:
        return images @ self.weights + self.bias


class Run(NamedTuple):
    """What came of training on one array library."""

    backend: str
    version: str
    accuracy: float
    losses: list[float]
    seconds: float


def load_splits() -> tuple[Split, Split]:
    """Read the digits and keep a quarter of them for testing.

    Returns
    -------
    training, testing : Split
        As NumPy arrays: images float64, labels int64.
    """
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    training_images, testing_images, training_labels, testing_labels = parts
    return Split(training_images, training_labels), Split(testing_images, testing_labels)


def train(data: Split, steps: Iterable[int]) -> tuple[Model, list[float]]:
    """Fit a linear classifier by full-batch gradient descent, on any array library.

    Parameters
    ----------
    data
        What to learn from, as arrays of any one library.
    steps
        Iterated over, one step of gradient descent each.

    Returns
    -------
    model : Model
        As arrays of that library.
    losses : list of float
        The mean cross-entropy before each step.
    """
    xp = array_namespace(data.images)
    pixels = data.images.shape[1]
    like = {"dtype": data.images.dtype, "device": data.images.device}
    model = Model(xp.zeros((pixels, CLASSES), **like), xp.zeros(CLASSES, **like))
    losses = []
    for _ in steps:
        logits = model.logits(data.images)
        loss, slope = xent_array.cross_entropy_and_grad(logits, data.labels)
        losses.append(float(loss))
        model = Model(
            model.weights - LEARNING_RATE * (data.images.T @ slope),
            model.bias - LEARNING_RATE * xp.sum(slope, axis=0),
        )
    return model, losses


def accuracy(model: Model, data: Split) -> float:
    """Return the share of images whose digit has the greatest logit."""
    logits = model.logits(data.images)
    _, stats = xent_array.cross_entropy(logits, data.labels, return_stats=True)
    return float(stats.correct.sum()) / len(data.labels)


def run(library: ModuleType, training: Split, testing: Split, console: Console) -> Run:
    """Train and test on the arrays of one library, with a progress bar.

    Parameters
    ----------
    library
        The array library, as imported.
    training, testing
        The digits, as NumPy arrays.
    console
        Where the progress bar is drawn.
    """
    training, testing = (Split(*map(library.asarray, split)) for split in (training, testing))
    name = library.__name__
    start = time.perf_counter()
    model, losses = train(training, track(range(STEPS), f"Training on {name}", console=console))
    seconds = time.perf_counter() - start
    return Run(name, library.__version__, accuracy(model, testing), losses, seconds)


def table(runs: Iterable[Run]) -> Table:
    """Lay the runs out as a table, a line each."""
    lines = Table(title="A softmax classifier of handwritten digits")
    lines.add_column("backend")
    lines.add_column("version")
    for heading in ("test accuracy", "last training loss", "seconds"):
        lines.add_column(heading, justify="right")
    for one in runs:
        numbers = f"{one.accuracy:.2%}", f"{one.losses[-1]:.12f}", f"{one.seconds:.2f}"
        lines.add_row(one.backend, one.version, *numbers)
    return lines


def draw(runs: Iterable[Run], path: Path) -> None:
    """Draw the loss curves, each narrower than the one below it so that both are seen."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    styles = ({"linewidth": 7, "color": "#9ecae1"}, {"linewidth": 1.5, "color": "#08306b"})
    for one, style in zip(runs, styles, strict=True):
        axes.loglog(range(1, STEPS + 1), one.losses, label=f"{one.backend} {one.version}", **style)
    axes.set_title("Learning handwritten digits: one function, two array libraries")
    axes.set_xlabel("step of gradient descent")
    axes.set_ylabel("mean cross-entropy of the training set")
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train on both libraries, compare them, and draw the picture."""
    torch.set_num_threads(1)  # threads gain nothing on arrays this small, and stall a busy machine
    console = Console()
    training, testing = load_splits()
    runs = [run(library, training, testing, console) for library in (np, torch)]
    console.print(table(runs))
    pairs = zip(*(one.losses for one in runs), strict=True)
    difference = max(abs(ours - theirs) for ours, theirs in pairs)
    console.print(f"The two loss curves differ by {difference:.1e} at most.")
    assert difference < 1e-12, "the backends disagree"
    draw(runs, PICTURE)
    console.print(f"Their picture is in {PICTURE.resolve()}", soft_wrap=True)


if __name__ == "__main__":
    main()
