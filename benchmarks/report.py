"""Make the page of the documentation, and its pictures, of what `measure.py` wrote."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import plots
import results
from goals import GOALS, Goal
from peers import ENGINES, ours
from problems import (
    FORWARD,
    GRADIENT,
    MAPPED,
    MORE_CLASSES,
    MORE_ROWS,
    PASSES,
    TIMED,
    WEIGHED,
    Problem,
)
from results import Key, Results
from timing import LEAST_SECONDS, PAUSE_SECONDS, Spread

DOCS = Path(__file__).parent.parent / "docs"

#: The page, with gaps for what was measured.
PAGE = Path(__file__).with_name("page.md")

#: What `gpu.py` measured, maybe on another machine.
GPU = Path(__file__).with_name("gpu.md")

PARTIAL = "This run left problems out or took few rounds: it is a trial, not a measurement.\n\n"

MISSING = "-"

UNITS = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


def page(run: Results) -> str:
    """Fill in the page."""
    return PAGE.read_text().format(
        gpu=GPU.read_text(),
        machine=table(["", ""], run.machine.items()),
        warning="" if run.complete else PARTIAL,
        again=f" ({', '.join(run.again)} measured by themselves, on this machine or one like it)"
        if run.again
        else "",
        rounds=rounds(run),
        pause=PAUSE_SECONDS * 1e3,
        least=LEAST_SECONDS * 1e3,
        goals=goals(run),
        rows_shape=f"(N, {MORE_ROWS[0].shape[1]})",
        rows=sizes(run, MORE_ROWS),
        classes_shape=f"({MORE_CLASSES[0].shape[0]}, C)",
        classes=sizes(run, MORE_CLASSES),
        forward_memory=memory(run, FORWARD, WEIGHED),
        gradient_memory=memory(run, GRADIENT, WEIGHED),
        mapped_size=MAPPED.mib * 2**20 / 1e9,
        mapped=memory(run, FORWARD, [MAPPED]),
        problems="\n\n".join(f"### {problem}\n\n{beside(run, problem)}" for problem in TIMED),
    )


def rounds(run: Results) -> str:
    """How many there were, fewer for large problems."""
    counts = [len(taken) for taken in run.times.values()]
    return f"{min(counts)} to {max(counts)}"


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a table, its first column to the left and all others to the right."""
    headings = list(headings)
    rules = ["---"] + ["---:"] * (len(headings) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rules, *rows))


def goals(run: Results) -> str:
    """What was to be reached, what was, and whether that is enough."""
    headings = ["contest"]
    for engine in ENGINES:
        headings += [engine, "measured", "met"]
    rows = [
        [goal.contest, *(cell for engine in ENGINES for cell in attained(run, goal, engine))]
        for goal in GOALS
    ]
    return table(headings, rows)


def attained(run: Results, goal: Goal, engine: str) -> tuple[str, str, str]:
    """What is asked of an engine, what was measured, and whether that is enough."""
    bound, figures = goal.bound(engine), goal.measured(run, engine)
    measured = ", ".join(with_spread(figure, goal.bounds.unit) for figure in figures)
    if bound is None:
        return MISSING, measured, MISSING
    met = {True: "yes", False: "**no**", None: MISSING}[goal.met(figures, engine)]
    return f"{goal.bounds.sign} {bound:g}{goal.bounds.unit}", measured, met


def with_spread(figure: Spread | None, unit: str = "") -> str:
    """A median, and the least and the greatest where there were rounds."""
    if figure is None:
        return MISSING
    if figure.least == figure.greatest:
        return f"{figure.median:.2f}{unit}"
    return f"{figure.median:.2f}{unit} ({figure.least:.2f}-{figure.greatest:.2f})"


def sizes(run: Results, problems: list[Problem]) -> str:
    """Times of all contestants, a column for each size."""
    headings = ["logits", *(f"{problem.elements:,}" for problem in problems)]
    keys = [(problem, FORWARD) for problem in problems]
    rows = [
        [peer, *(duration(run.time(*key, peer)) for key in keys)]
        for peer in contestants(run.times, keys)
    ]
    return table(headings, rows)


def memory(run: Results, passage: str, problems: list[Problem]) -> str:
    """Growth of memory of all contestants, a column for each problem."""
    headings = ["", *map(str, problems)]
    keys = [(problem, passage) for problem in problems]
    rows = [
        [peer, *(mebibytes(run.growth(*key, peer)) for key in keys)]
        for peer in contestants(run.memory, keys)
    ]
    logits = ["*the logits*", *(mebibytes(problem.mib) for problem in problems)]
    return table(headings, [logits, *rows])


def beside(run: Results, problem: Problem) -> str:
    """Times of all contestants on a problem, and the ratios to ours."""
    headings = [""]
    for passage in PASSES:
        headings += [passage, *(f"÷ {engine}" for engine in ENGINES)]
    keys = [(problem, passage) for passage in PASSES]
    rows = [
        [peer, *(cell for key in keys for cell in against_ours(run, *key, peer))]
        for peer in contestants(run.times, keys)
    ]
    return table(headings, rows)


def against_ours(run: Results, problem: Problem, passage: str, peer: str) -> list[str]:
    """The time of a contestant, and its ratio to ours with each engine."""
    library = peer.partition(":")[0]
    home = library if library in ("torch", "JAX") else "NumPy"
    ratios = [run.ratio(problem, passage, peer, ours(home, engine)) for engine in ENGINES]
    return [duration(run.time(problem, passage, peer)), *map(with_spread, ratios)]


def contestants(figures: Iterable[Key], keys: list[tuple[Problem, str]]) -> list[str]:
    """Who was measured in any of some contests, in the order of the measurement."""
    return list(dict.fromkeys(key.peer for key in figures if (key.problem, key.passage) in keys))


def duration(time: Spread | None) -> str:
    """A median time in three digits."""
    if time is None:
        return MISSING
    unit = next((unit for unit, size in UNITS.items() if time.median >= size), "µs")
    return f"{three_digits(time.median / UNITS[unit])} {unit}"


def mebibytes(mib: float | None) -> str:
    """Mebibytes, in tenths."""
    return MISSING if mib is None else f"{mib:,.1f}"


def three_digits(value: float) -> str:
    """Round to three digits, with no power of ten."""
    return f"{float(f'{value:.3g}'):g}"


def main() -> None:
    """Read the results and write the page."""
    run = results.read()
    plots.draw(run, DOCS / "benchmarks")
    (DOCS / "benchmarks.md").write_text(page(run))


if __name__ == "__main__":
    main()
