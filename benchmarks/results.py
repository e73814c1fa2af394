"""What was measured, as `measure.py` writes it and `report.py` reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from problems import Problem
from timing import Spread, spread

PATH = Path(__file__).with_name("results.json")


class Key(NamedTuple):
    """What figures are of."""

    problem: Problem
    passage: str
    peer: str


Times = dict[Key, list[float]]
Memory = dict[Key, float]


class Results(NamedTuple):
    """Everything of one run, and of problems that were measured again by themselves.

    Attributes
    ----------
    machine
        What it was made on, and with.
    complete
        Whether nothing was left out.
    times
        Seconds of one call, in every round.
    memory
        Mebibytes that a call takes, in a fresh process.
    again
        What of it was measured again: parts of the problems' names.
    """

    machine: dict[str, str]
    complete: bool
    times: Times
    memory: Memory
    again: list[str]

    def time(self, problem: Problem, passage: str, peer: str) -> Spread | None:
        """Seconds of one call; None if it was not measured."""
        taken = self.times.get(Key(problem, passage, peer))
        return spread(taken) if taken else None

    def ratio(self, problem: Problem, passage: str, peer: str, to: str) -> Spread | None:
        """How many times as long as another it takes, round by round; None if not measured."""
        above = self.times.get(Key(problem, passage, peer))
        below = self.times.get(Key(problem, passage, to))
        if not above or not below:
            return None
        return spread([a / b for a, b in zip(above, below, strict=True)])

    def growth(self, problem: Problem, passage: str, peer: str) -> float | None:
        """Mebibytes that a call takes; None if it was not measured."""
        return self.memory.get(Key(problem, passage, peer))


def write(results: Results) -> None:
    """Write a run as JSON, the figures of a contestant in one line."""
    content = results._asdict()
    content["times"] = _nested({key: digits(*taken) for key, taken in results.times.items()})
    content["memory"] = _nested({key: digits(mib) for key, mib in results.memory.items()})
    PATH.write_text(json.dumps(content, indent=1) + "\n")


def read() -> Results:
    """Read the last run."""
    content = json.loads(PATH.read_text())
    times, memory = _flat(content["times"]), _flat(content["memory"])
    content["times"] = {key: list(map(float, taken.split())) for key, taken in times.items()}
    content["memory"] = {key: float(mib) for key, mib in memory.items()}
    return Results(**content)


def digits(*numbers: float) -> str:
    """Write four digits of each number, which is more than are certain."""
    return " ".join(f"{number:.4g}" for number in numbers)


def _nested(figures: dict[Key, str]) -> dict[str, dict[str, str]]:
    """What was done, and under it who did it."""
    nested: dict[str, dict[str, str]] = {}
    for (problem, passage, peer), numbers in figures.items():
        nested.setdefault(f"{problem.code} {passage}", {})[peer] = numbers
    return nested


def _flat(nested: dict[str, dict[str, str]]) -> dict[Key, str]:
    """What `_nested` laid out."""
    flat = {}
    for done, of_all in nested.items():
        code, passage = done.split(" ", 1)
        flat |= {Key(Problem.of(code), passage, peer): text for peer, text in of_all.items()}
    return flat
