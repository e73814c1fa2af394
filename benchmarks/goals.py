"""What the loss is to reach, and whether a run shows it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from peers import ENGINES, READ, ours
from problems import (
    FORWARD,
    GRADIENT,
    HALF,
    IMAGES,
    LARGE,
    MAPPED,
    MORE_CLASSES,
    MORE_ROWS,
    NARROW,
    SMALL,
    SOFT_HALF,
    SOFT_IMAGES,
    SOFT_LARGE,
    WEIGHED,
    WIDE,
    Problem,
)
from results import Results
from timing import Spread

BY_HAND = ("NumPy: by hand", "NumPy: by hand, indexed")
SCIPY = ("SciPy: log_softmax",)
EAGER = ("torch: F.cross_entropy",)
COMPILED = ("torch: F.cross_entropy, compiled",)
OPTAX = ("JAX: optax",)

#: The libraries whose arrays the kernels take.
HOMES = ("NumPy", "torch")

#: Figures of an engine in a run; None for what was not measured.
Measured = Callable[[Results, str], list[Spread | None]]


class Bounds(NamedTuple):
    """What is asked with each engine; None where nothing is."""

    sign: str
    portable: float | None
    kernels: float | None
    unit: str


def at_least(portable: float | None, kernels: float, unit: str = "x") -> Bounds:
    """Ask for so much, or more."""
    return Bounds("≥", portable, kernels, unit)


def at_most(portable: float | None, kernels: float, unit: str = "x") -> Bounds:
    """Ask for so much, or less."""
    return Bounds("≤", portable, kernels, unit)


class Goal(NamedTuple):
    """A contest, and what is to come out of it."""

    contest: str
    measured: Measured
    bounds: Bounds

    def bound(self, engine: str) -> float | None:
        """What is asked of an engine."""
        return dict(zip(ENGINES, (self.bounds.portable, self.bounds.kernels), strict=True))[engine]

    def met(self, figures: list[Spread | None], engine: str) -> bool | None:
        """Whether the median of every figure is as asked; None if some were not measured."""
        if None in figures:
            return None
        holds = operator.ge if self.bounds.sign == "≥" else operator.le
        return all(holds(figure.median, self.bound(engine)) for figure in figures)


def theirs_over_ours(
    library: str, peers: tuple[str, ...], passage: str, *problems: Problem
) -> Measured:
    """How many times as long as ours the best of some peers takes, on each problem."""

    def ratio(results: Results, problem: Problem, us: str, peer: str) -> Spread | None:
        return results.ratio(problem, passage, peer, us)

    return contest(library, peers, problems, ratio, min)


def ours_over_theirs(
    library: str, peers: tuple[str, ...], passage: str, *problems: Problem
) -> Measured:
    """How many times as long as the best of some peers ours takes, on each problem."""

    def ratio(results: Results, problem: Problem, us: str, peer: str) -> Spread | None:
        return results.ratio(problem, passage, us, peer)

    return contest(library, peers, problems, ratio, max)


def contest(
    library: str,
    peers: tuple[str, ...],
    problems: tuple[Problem, ...],
    ratio: Callable[[Results, Problem, str, str], Spread | None],
    choose: Callable[..., Spread],
) -> Measured:
    """The ratio to the strongest of some peers, on each problem."""

    def measured(results: Results, engine: str) -> list[Spread | None]:
        us = ours(library, engine)
        return [
            hardest([ratio(results, problem, us, peer) for peer in peers], choose)
            for problem in problems
        ]

    return measured


def hardest(ratios: list[Spread | None], choose: Callable[..., Spread]) -> Spread | None:
    """The ratio to the strongest of some peers, if all of them were measured."""
    return None if None in ratios else choose(ratios)


def extra_memory(passage: str) -> Measured:
    """Mebibytes that a call takes beside the gradient it returns: the most on any problem."""

    def measured(results: Results, engine: str) -> list[Spread | None]:
        beside = [
            (results.growth(problem, passage, ours(library, engine)), problem.mib)
            for problem in WEIGHED
            for library in HOMES
        ]
        if any(growth is None for growth, _ in beside):
            return [None]
        return [single(max(growth - (passage == GRADIENT) * mib for growth, mib in beside))]

    return measured


def memory_of_mapped(results: Results, engine: str) -> list[Spread | None]:
    """Mebibytes that are taken while a file goes through."""
    growth = results.growth(MAPPED, FORWARD, ours("NumPy", engine))
    return [None if growth is None else single(growth)]


def exponent(problems: list[Problem]) -> Measured:
    """The power of the number of logits that the time grows with, on the arrays of each library."""

    def measured(results: Results, engine: str) -> list[Spread | None]:
        return [fitted(results, problems, ours(library, engine)) for library in HOMES]

    return measured


def fitted(results: Results, problems: list[Problem], peer: str) -> Spread | None:
    """The slope of a line through the logarithms."""
    times = [results.time(problem, FORWARD, peer) for problem in problems]
    if None in times:
        return None
    sizes = np.log([problem.elements for problem in problems])
    slope, _ = np.polyfit(sizes, np.log([time.median for time in times]), 1)
    return single(float(slope))


def single(value: float) -> Spread:
    """A figure that was measured once."""
    return Spread(value, value, value)


GIANTS = f"{LARGE.shape} and {WIDE.shape}"
SOFT_PLACES = f"{LARGE.shape} and images {IMAGES.shape}"

GOALS = [
    Goal(
        f"NumPy forward, {LARGE.shape}: SciPy's log_softmax and take ÷ ours",
        theirs_over_ours("NumPy", SCIPY, FORWARD, LARGE),
        at_least(2.5, 8),
    ),
    Goal(
        f"NumPy loss and gradient, {LARGE.shape}: by hand ÷ ours",
        theirs_over_ours("NumPy", BY_HAND, GRADIENT, LARGE),
        at_least(2, 5),
    ),
    Goal(
        f"torch forward, {GIANTS}: F.cross_entropy ÷ ours",
        theirs_over_ours("torch", EAGER, FORWARD, LARGE, WIDE),
        at_least(1.7, 5),
    ),
    Goal(
        f"torch forward and backward, {GIANTS}: F.cross_entropy ÷ ours",
        theirs_over_ours("torch", EAGER, GRADIENT, LARGE, WIDE),
        at_least(1.6, 5),
    ),
    Goal(
        f"torch forward, {GIANTS}: compiled F.cross_entropy ÷ ours",
        theirs_over_ours("torch", COMPILED, FORWARD, LARGE, WIDE),
        at_least(0.9, 2.5),
    ),
    Goal(
        f"torch.compile forward, {GIANTS}: F.cross_entropy ÷ ours, both compiled",
        theirs_over_ours("torch.compile", COMPILED, FORWARD, LARGE, WIDE),
        at_least(None, 1),
    ),
    Goal(
        f"torch.compile forward and backward, {GIANTS}: F.cross_entropy ÷ ours, both compiled",
        theirs_over_ours("torch.compile", COMPILED, GRADIENT, LARGE, WIDE),
        at_least(None, 1),
    ),
    Goal(
        f"forward, {GIANTS}: optax on JAX, jitted ÷ ours on NumPy",
        theirs_over_ours("NumPy", OPTAX, FORWARD, LARGE, WIDE),
        at_least(None, 1.2),
    ),
    Goal(
        f"loss and gradient, {GIANTS}: optax on JAX, jitted ÷ ours on NumPy",
        theirs_over_ours("NumPy", OPTAX, GRADIENT, LARGE, WIDE),
        at_least(None, 2.5),
    ),
    Goal(
        f"JAX forward, {GIANTS}, images {IMAGES.shape}: optax ÷ ours",
        theirs_over_ours("JAX", OPTAX, FORWARD, LARGE, WIDE, IMAGES),
        at_least(None, 1),
    ),
    Goal(
        f"JAX loss and gradient, {GIANTS}, images {IMAGES.shape}: optax ÷ ours",
        theirs_over_ours("JAX", OPTAX, GRADIENT, LARGE, WIDE, IMAGES),
        at_least(None, 1),
    ),
    Goal(
        f"NumPy forward, {NARROW.shape}: by hand ÷ ours",
        theirs_over_ours("NumPy", BY_HAND, FORWARD, NARROW),
        at_least(1.5, 4),
    ),
    Goal(
        f"torch forward, {NARROW.shape}: F.cross_entropy ÷ ours",
        theirs_over_ours("torch", EAGER, FORWARD, NARROW),
        at_least(None, 1),
    ),
    Goal(
        f"torch forward and backward, images {IMAGES.shape}: F.cross_entropy ÷ ours",
        theirs_over_ours("torch", EAGER, GRADIENT, IMAGES),
        at_least(1.3, 3),
    ),
    Goal(
        f"torch forward and backward, bfloat16 {HALF.shape}: F.cross_entropy ÷ ours",
        theirs_over_ours("torch", EAGER, GRADIENT, HALF),
        at_least(1, 3),
    ),
    *(
        Goal(
            f"probabilities, {library} {done}, {SOFT_PLACES}: {name} ÷ ours",
            theirs_over_ours(library, peers, passage, SOFT_LARGE, SOFT_IMAGES),
            at_least(None, 1),
        )
        for library, name, peers in (
            ("NumPy", "by hand", BY_HAND[:1]),
            ("torch", "F.cross_entropy", EAGER),
            ("JAX", "optax", OPTAX),
        )
        for passage, done in ((FORWARD, "forward"), (GRADIENT, "loss and gradient"))
    ),
    Goal(
        f"probabilities, torch loss and gradient, bfloat16 {HALF.shape}: F.cross_entropy ÷ ours",
        theirs_over_ours("torch", EAGER, GRADIENT, SOFT_HALF),
        at_least(None, 1),
    ),
    *(
        Goal(
            f"{library} forward, {GIANTS}: ours ÷ one read of the logits",
            ours_over_theirs(library, (READ,), FORWARD, LARGE, WIDE),
            at_most(None, 4),
        )
        for library in HOMES
    ),
    Goal(
        f"NumPy forward, {SMALL.shape}: ours ÷ by hand",
        ours_over_theirs("NumPy", BY_HAND, FORWARD, SMALL),
        at_most(2, 2),
    ),
    Goal(
        f"NumPy loss and gradient, {SMALL.shape}: ours ÷ by hand",
        ours_over_theirs("NumPy", BY_HAND, GRADIENT, SMALL),
        at_most(2, 2),
    ),
    Goal(
        f"torch forward and backward, {SMALL.shape}: ours ÷ F.cross_entropy",
        ours_over_theirs("torch", EAGER, GRADIENT, SMALL),
        at_most(3, 3),
    ),
    Goal(
        "memory of a forward, the most on any problem",
        extra_memory(FORWARD),
        at_most(32, 32, " MiB"),
    ),
    Goal(
        "memory of loss and gradient beside the gradient, the most on any problem",
        extra_memory(GRADIENT),
        at_most(32, 32, " MiB"),
    ),
    Goal(
        "memory of a forward of 20 GB in a memory-mapped file, NumPy",
        memory_of_mapped,
        at_most(64, 64, " MiB"),
    ),
    Goal(
        "power of N that the time grows with, C = 1000, on NumPy and on torch",
        exponent(MORE_ROWS),
        at_most(None, 1.05, ""),
    ),
    Goal(
        "power of C that the time grows with, N = 8, on NumPy and on torch",
        exponent(MORE_CLASSES),
        at_most(None, 1.05, ""),
    ),
]
