"""The pictures of the page: time, distance to one read of the logits, and memory, by size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peers import KERNELS, PORTABLE, READ, ours
from problems import FORWARD, MORE_CLASSES, MORE_ROWS, PASSES, SHAPES, Problem
from results import Results

#: Colour and line of the contestants that are drawn.
STYLES = {
    ours("NumPy", KERNELS): ("tab:blue", "-o"),
    ours("NumPy", PORTABLE): ("tab:blue", "--o"),
    ours("torch", KERNELS): ("tab:red", "-s"),
    ours("torch", PORTABLE): ("tab:red", "--s"),
    "NumPy: by hand": ("tab:cyan", "-"),
    "SciPy: log_softmax": ("tab:purple", "-"),
    "torch: F.cross_entropy": ("tab:orange", "-"),
    ours("JAX", KERNELS): ("tab:green", "-^"),
    ours("JAX", PORTABLE): ("tab:green", "--^"),
    "JAX: optax": ("tab:olive", "-"),
    READ: ("black", ":"),
}

#: Less memory than this, in MiB, is drawn as this.
LEAST_MIB = 0.01

Height = Callable[[Problem, str], float | None]


def draw(results: Results, folder: Path) -> None:
    """Draw all pictures into a folder, the same bytes from the same results."""
    mpl.rcParams.update({"svg.hashsalt": "xent_array", "svg.fonttype": "none", "font.size": 9})
    folder.mkdir(exist_ok=True)
    pictures = {"time": times(results), "reads": reads(results), "memory": memory(results)}
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def times(results: Results) -> Figure:
    """Time of a forward against the number of logits."""

    def height(problem: Problem, peer: str) -> float | None:
        time = results.time(problem, FORWARD, peer)
        return time and time.median

    return growing(height, "seconds")


def reads(results: Results) -> Figure:
    """The same in reads of the logits."""

    def height(problem: Problem, peer: str) -> float | None:
        ratio = results.ratio(problem, FORWARD, peer, READ)
        return ratio and ratio.median

    return growing(height, "time ÷ one read of the logits")


def growing(height: Height, label: str) -> Figure:
    """Two panels: more rows, and more classes."""
    figure, panels = two_panels()
    series = {"(N, 1000)": MORE_ROWS, "(8, C)": MORE_CLASSES}
    for axes, (title, problems) in zip(panels, series.items(), strict=True):
        axes.set(title=f"forward, {title} float32", xlabel="logits")
        curves(axes, problems, lambda problem: problem.elements, height)
    panels[0].set_ylabel(label)
    return finished(figure, panels)


def memory(results: Results) -> Figure:
    """Growth of memory during a call against the size of the logits."""
    figure, panels = two_panels()
    problems = sorted((Problem(shape) for shape in SHAPES), key=lambda problem: problem.mib)
    for axes, passage in zip(panels, PASSES, strict=True):

        def height(problem: Problem, peer: str, passage: str = passage) -> float | None:
            growth = results.growth(problem, passage, peer)
            return growth and max(growth, LEAST_MIB)

        axes.set(title=f"{passage}, float32", xlabel="MiB of logits")
        curves(axes, problems, lambda problem: problem.mib, height)
    panels[0].set_ylabel("MiB taken during a call")
    return finished(figure, panels)


def two_panels() -> tuple[Figure, list[Axes]]:
    """A figure of two panels with one scale."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    return figure, list(figure.subplots(1, 2, sharey=True))


def curves(
    axes: Axes, problems: list[Problem], width: Callable[[Problem], float], height: Height
) -> None:
    """A line for each contestant, through what was measured of it."""
    for peer, (colour, line) in STYLES.items():
        points = [(width(problem), height(problem, peer)) for problem in problems]
        there = [point for point in points if point[1] is not None]
        if there:
            axes.loglog(*zip(*there, strict=True), line, color=colour, label=peer, markersize=4)


def finished(figure: Figure, panels: list[Axes]) -> Figure:
    """Add a grid, and one legend below the panels."""
    for axes in panels:
        axes.grid(which="major", alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
