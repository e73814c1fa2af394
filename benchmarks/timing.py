"""Times of calls beside each other: rounds in which each takes its turn, in changing order.

A machine whose speed drifts slows all that run in a round, so that their ratios stay.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping
from typing import NamedTuple

from peers import Call, Peer

#: A call shorter than this is repeated until it is not.
LEAST_SECONDS = 0.01

#: Between two contestants: threads of OpenMP spin on for a while after their work.
PAUSE_SECONDS = 0.02

#: After so many rounds, no other begins once they have taken so long.
LEAST_ROUNDS, ENOUGH_SECONDS = 3, 8.0


class Spread(NamedTuple):
    """Median, least and greatest."""

    median: float
    least: float
    greatest: float


def spread(values: list[float]) -> Spread:
    """Sum up what the rounds gave."""
    return Spread(statistics.median(values), min(values), max(values))


def seconds(call: Call, repeats: int) -> float:
    """Time of one call, averaged over some, undisturbed by the collector of garbage."""
    gc.disable()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    elapsed = time.perf_counter() - start
    gc.enable()
    return elapsed / repeats


def repeats_of(call: Call) -> int:
    """How often a call is repeated, to be timed."""
    repeats = 1
    while (once := seconds(call, repeats)) * repeats < LEAST_SECONDS / 2:
        repeats *= 2
    return max(1, round(LEAST_SECONDS / once))


def interleaved(calls: Mapping[Peer, Call], most: int) -> dict[Peer, list[float]]:
    """Seconds of each call, all of which were called before, in every round, `most` at most."""
    repeats = {}
    for peer, call in calls.items():
        with peer.engine():
            repeats[peer] = repeats_of(call)
    taken: dict[Peer, list[float]] = {peer: [] for peer in calls}
    turns = list(calls)
    begun = time.perf_counter()
    for played in range(most):
        if played >= LEAST_ROUNDS and time.perf_counter() - begun > ENOUGH_SECONDS:
            break
        for peer in turns:
            time.sleep(PAUSE_SECONDS)
            with peer.engine():
                calls[peer]()  # as after another one: awake, and its memory at hand
                taken[peer].append(seconds(calls[peer], repeats[peer]))
        turns = turns[1:] + turns[:1]
    return taken
