"""Memory of one contestant, in a process that does nothing else; `measure.py` starts it.

Prints by how many mebibytes the anonymous memory grew during a call.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile

import numpy as np

from memory import Watch
from peers import Call, Peer, peers_of
from problems import MAPPED, Problem

#: Logits of a first call, for which kernels are compiled and modules imported.
FIRST = 10**6

#: So many logits take long enough for samples to see their peak; of fewer, some calls are watched.
LONG, SHORT_CALLS = 10**7, 5

#: Not ``/tmp``, which may be memory itself.
DISK = "/var/tmp"


def few(logits: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first rows of a problem."""
    rows = max(1, FIRST * len(logits) // logits.size)
    return logits[:rows], target[:rows]


def weigh(peer: Peer, passage: str, arrays: tuple[np.ndarray, np.ndarray]) -> float:
    """Watch calls, after a first on little data, or on all where the shape is compiled in."""
    prepare = peer.prepare(passage)
    with peer.engine():
        call = prepare(*arrays)
        first = call if peer.compiled else prepare(*few(*arrays))
        first()
        calls = 1 if arrays[0].size > LONG else SHORT_CALLS
        return max(grown(call) for _ in range(calls))


def grown(call: Call) -> float:
    """Mebibytes that one call takes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept, would hide what is taken next
    with Watch() as watch:
        _result = call()  # there until the last sample
    return watch.peak - watch.before


def main(library: str, name: str, passage: str, code: str) -> None:
    """Find the contestant and the problem."""
    problem = Problem.of(code)
    peer = next(
        peer for peer in peers_of(library) if peer.name == name and peer.enters(problem, passage)
    )
    with tempfile.TemporaryDirectory(dir=DISK) as folder:
        arrays = problem.mapped(folder) if problem == MAPPED else problem.data()
        print(weigh(peer, passage, arrays))


if __name__ == "__main__":
    main(*sys.argv[1:])
