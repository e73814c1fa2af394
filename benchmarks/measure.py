"""Measure xent_array beside its peers: time in this process, memory in fresh ones.

Run ``python -m nox -s bench`` with nothing else running. ``--quick`` takes few rounds and leaves
out the giants; ``--only 2048x32000`` measures what has that in its shape and dtype, and leaves the
others as they were. What was measured is written to ``results.json``, of which `report.py` makes
the page.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

import results
from machine import describe
from peers import LIBRARIES, PACES, Call, Peer, peers_of
from problems import FORWARD, MAPPED, MORE_CLASSES, MORE_ROWS, PASSES, TIMED, WEIGHED, Problem
from results import Key, Memory, Results, Times
from timing import interleaved

FRESH = Path(__file__).with_name("fresh.py")

#: More logits than this are a giant.
GIANT = 10**7

#: Turns of each contestant, at most.
ROUNDS, QUICK_ROUNDS = 9, 3

#: Processes at once whose memory is watched. Nothing is timed meanwhile.
PROCESSES = 2

#: How far the results of two may be apart, relatively: the peers' rounding, not another meaning.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float64": 1e-9}


class Weighing(NamedTuple):
    """A contestant whose memory is measured."""

    library: str
    peer: str
    passage: str
    problem: Problem


def race(problem: Problem, rounds: int) -> Times:
    """Time all contestants on the same data, forward and where it is asked with the gradient."""
    arrays = problem.data()
    times = {}
    for passage in PASSES if problem in TIMED else (FORWARD,):
        calls = {
            peer: prepared(peer, passage, arrays)
            for library in LIBRARIES
            for peer in entrants(library, passage, problem)
        }
        compare(calls, TOLERANCE[problem.dtype])
        for peer, seconds in interleaved(calls, rounds).items():
            times[Key(problem, passage, peer.name)] = seconds
        del calls
        gc.collect()
    return times


def entrants(library: str, passage: str, problem: Problem) -> list[Peer]:
    """Who takes part, on the arrays of a library."""
    return [peer for peer in peers_of(library) if peer.enters(problem, passage)]


def prepared(peer: Peer, passage: str, arrays: tuple[np.ndarray, np.ndarray]) -> Call:
    """What a contestant is to call."""
    with peer.engine():
        return peer.prepare(passage)(*arrays)


def compare(calls: dict[Peer, Call], tolerance: float) -> None:
    """See to it that all have the same result; what is compiled is compiled by that."""
    outcomes = {}
    for peer, call in calls.items():
        with peer.engine():
            result = call()
        if peer.name not in PACES:
            outcomes[peer.name] = outcome(result)
    expected = next(iter(outcomes.values()))
    # An entry of a gradient may be nearly 0, as a difference of what is not.
    apart = tolerance * max(map(abs, expected[1:]), default=0.0)
    for name, values in outcomes.items():
        np.testing.assert_allclose(values, expected, tolerance, apart, err_msg=name)


def outcome(result: Any) -> list[float]:
    """The loss, and some entries of the gradient if there is one, as Python's numbers."""
    if not isinstance(result, tuple):
        return [float(result)]
    loss, grad = result
    return [float(loss), *map(float, grad.reshape(-1)[:100].tolist())]


def weighings() -> list[Weighing]:
    """All whose memory is measured; of the mapped file, ours on NumPy arrays."""
    from_disk = [
        Weighing("numpy", peer.name, FORWARD, MAPPED) for peer in entrants("numpy", FORWARD, MAPPED)
    ]
    drawn = [
        Weighing(library, peer.name, passage, problem)
        for problem in WEIGHED
        for passage in PASSES
        for library in LIBRARIES
        for peer in entrants(library, passage, problem)
        if peer.name not in PACES
    ]
    return from_disk + drawn


def weigh(weighing: Weighing) -> float:
    """Mebibytes that one call takes in a fresh process."""
    library, peer, passage, problem = weighing
    command = [sys.executable, str(FRESH), library, peer, passage, problem.code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def measure(wanted: Callable[[Problem], bool], rounds: int) -> tuple[Times, Memory]:
    """Times and memory of the problems that are wanted, with a progress bar."""
    races = list(filter(wanted, [*TIMED, *MORE_ROWS, *MORE_CLASSES]))
    weighed = [weighing for weighing in weighings() if wanted(weighing.problem)]
    times: Times = {}
    memory: Memory = {}
    with Progress() as progress, ThreadPoolExecutor(PROCESSES) as pool:
        bar = progress.add_task("time", total=len(races) + len(weighed))
        for problem in races:
            progress.update(bar, description=f"time, {problem}")
            times |= race(problem, rounds)
            progress.advance(bar)
        for weighing, mib in zip(weighed, pool.map(weigh, weighed), strict=True):
            memory[Key(weighing.problem, weighing.passage, weighing.peer)] = mib
            progress.update(bar, description=f"memory, {weighing.problem}", advance=1)
    return times, memory


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, and no giants")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="as in 2048x32000-float32")
    options = parser.parse_args()

    def wanted(problem: Problem) -> bool:
        return options.only in problem.code and not (options.quick and problem.elements > GIANT)

    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    times, memory = measure(wanted, rounds)
    complete, again = not options.quick, []
    if options.only:
        before = results.read()
        times, memory = before.times | times, before.memory | memory
        complete = complete and before.complete
        again = sorted({*before.again, options.only})
    results.write(Results(describe(), complete, times, memory, again))


if __name__ == "__main__":
    main()
