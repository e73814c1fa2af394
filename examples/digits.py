"""Learn to read handwritten digits, with one training function for every array library.

Run ``python examples/digits.py``: a softmax classifier is trained by gradient descent on the 1797
scanned digits that come with scikit-learn, on the arrays of each library that is installed. torch
and JAX differentiate the loss themselves, the others get its gradient from us. A table compares
them, and their loss curves are drawn in ``digits.png``, in the current folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import xent_array

Array = Any  # of any array library

#: The array libraries by name, and where their functions are.
NAMESPACES = {
    "numpy": "numpy",
    "torch": "torch",
    "jax": "jax.numpy",
    "dask": "dask.array",
    "array_api_strict": "array_api_strict",
}

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
    gradient: str
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


def by_us(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Loss and gradient by the logits, on any array library."""
    return xent_array.cross_entropy_and_grad(logits, labels)


def by_torch(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The same by torch's autograd through the loss."""
    logits = logits.detach().requires_grad_()
    loss = xent_array.cross_entropy(logits, labels)
    loss.backward()
    return loss.detach(), logits.grad


def by_jax(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The same by JAX's transformation of the loss."""
    import jax

    return jax.value_and_grad(xent_array.cross_entropy)(logits, labels)


def train(
    data: Split, slope_of: Callable[[Array, Array], tuple[Array, Array]], steps: Iterable[int]
) -> tuple[Model, list[float]]:
    """Fit a linear classifier by full-batch gradient descent, on any array library.

    Parameters
    ----------
    data
        What to learn from, as arrays of any one library.
    slope_of
        Returns the loss of logits and labels, and its gradient by the logits.
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
    like = {"dtype": data.images.dtype, "device": device(data.images)}
    model = Model(xp.zeros((pixels, CLASSES), **like), xp.zeros(CLASSES, **like))
    losses = []
    for _ in steps:
        logits = model.logits(data.images)
        loss, slope = slope_of(logits, data.labels)
        weights = model.weights - LEARNING_RATE * (data.images.T @ slope)
        bias = model.bias - LEARNING_RATE * xp.sum(slope, axis=0)
        loss, weights, bias = settled(loss, weights, bias)
        losses.append(float(loss))
        model = Model(weights, bias)
    return model, losses


def settled(*arrays: Array) -> tuple[Array, ...]:
    """Have lazy arrays computed, lest a step be a graph of all steps before it."""
    if not hasattr(arrays[0], "persist"):
        return arrays
    import dask

    return dask.persist(*arrays)


def accuracy(model: Model, data: Split) -> float:
    """Return the share of images whose digit has the greatest logit."""
    logits = model.logits(data.images)
    _, stats = xent_array.cross_entropy(logits, data.labels, return_stats=True)
    xp = array_namespace(logits)
    return float(xp.sum(xp.astype(stats.correct, xp.int64))) / data.labels.shape[0]


def run(name: str, training: Split, testing: Split, console: Console) -> Run:
    """Train and test on the arrays of one library, with a progress bar.

    Parameters
    ----------
    name
        The array library.
    training, testing
        The digits, as NumPy arrays.
    console
        Where the progress bar is drawn.
    """
    prepare(name)
    xp = importlib.import_module(NAMESPACES[name])
    training, testing = (Split(*map(xp.asarray, split)) for split in (training, testing))
    slope_of = {"torch": by_torch, "jax": by_jax}.get(name, by_us)
    steps = track(range(STEPS), f"Training on {name}", console=console)
    start = time.perf_counter()
    model, losses = train(training, slope_of, steps)
    seconds = time.perf_counter() - start
    version = importlib.import_module(name).__version__
    gradient = slope_of.__name__.replace("_", " ")
    return Run(name, version, gradient, accuracy(model, testing), losses, seconds)


def prepare(name: str) -> None:
    """Have a library compute in float64, and without threads that arrays so small don't need."""
    library = importlib.import_module(name)
    if name == "torch":
        library.set_num_threads(1)
    elif name == "jax":
        library.config.update("jax_enable_x64", True)
    elif name == "dask":
        library.config.set(scheduler="synchronous")


def table(runs: Iterable[Run]) -> Table:
    """Lay the runs out as a table, a line each."""
    lines = Table(title="A softmax classifier of handwritten digits")
    lines.add_column("backend")
    lines.add_column("version")
    lines.add_column("gradient")
    for heading in ("test accuracy", "last training loss", "seconds"):
        lines.add_column(heading, justify="right")
    for one in runs:
        numbers = f"{one.accuracy:.2%}", f"{one.losses[-1]:.6f}", f"{one.seconds:.2f}"
        lines.add_row(one.backend, one.version, one.gradient, *numbers)
    return lines


def draw(runs: Iterable[Run], path: Path) -> None:
    """Draw the loss curves, each narrower than those below it so that all are seen."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    runs = list(runs)
    for place, one in enumerate(runs):
        width, shade = 2.5 * (len(runs) - place) - 1.5, (place + 1) / len(runs)
        label = f"{one.backend} {one.version}"
        steps = range(1, STEPS + 1)
        axes.loglog(
            steps, one.losses, label=label, linewidth=width, color=colormaps["Blues"](shade)
        )
    axes.set_title("Learning handwritten digits: one function, every array library")
    axes.set_xlabel("step of gradient descent")
    axes.set_ylabel("mean cross-entropy of the training set")
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train on every library that is installed, compare them, and draw the picture."""
    console = Console()
    training, testing = load_splits()
    runs = [
        run(name, training, testing, console)
        for name in NAMESPACES
        if importlib.util.find_spec(name) is not None
    ]
    console.print(table(runs))
    steps = zip(*(one.losses for one in runs), strict=True)
    difference = max(max(losses) - min(losses) for losses in steps)
    console.print(f"The loss curves differ by {difference:.1e} at most.")
    assert difference < 1e-12, "the backends disagree"
    draw(runs, PICTURE)
    console.print(f"Their picture is in {PICTURE.resolve()}", soft_wrap=True)


if __name__ == "__main__":
    main()
