"""Memory of the loss of dask logits that would not fit: made, read and dropped chunk by chunk.

Run ``python benchmarks/lazy_memory.py 40 256x32000 threads``: gigabytes of float32 logits of 32,000
classes, the shape of a chunk, and the scheduler, ``threads`` or ``cluster`` (dask.distributed's
LocalCluster, in this process). Prints the mean loss, the time and the greatest anonymous memory.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any

import dask.array as da
import numpy as np

import xent_array

from memory import Watch

CLASSES = 32_000


def some_logits(block_info: Any = None) -> np.ndarray:
    """Make the logits of one chunk."""
    seed = block_info[None]["chunk-location"]
    shape = block_info[None]["chunk-shape"]
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def problem(gigabytes: float, chunk: tuple[int, ...]) -> tuple[da.Array, da.Array]:
    """Lazy logits of that size, and a class index for each row."""
    rows = int(gigabytes * 1e9 / 4 / CLASSES)
    chunks = da.core.normalize_chunks(chunk, (rows, CLASSES), dtype=np.float32)
    meta = np.empty((0, 0), np.float32)
    logits = da.map_blocks(some_logits, chunks=chunks, dtype=np.float32, meta=meta)
    return logits, da.random.default_rng(0).integers(0, CLASSES, rows, chunks=(chunks[0],))


def cluster() -> contextlib.AbstractContextManager[Any]:
    """A client of a cluster in this process, whose memory can be watched from here."""
    from distributed import Client

    return Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None)


def main(gigabytes: str, chunk: str, scheduler: str) -> None:
    """Measure and print."""
    logits, target = problem(float(gigabytes), tuple(map(int, chunk.split("x"))))
    with cluster() if scheduler == "cluster" else contextlib.nullcontext():
        start = time.perf_counter()
        with Watch() as watch:
            loss = float(xent_array.cross_entropy(logits, target).compute())
    seconds = time.perf_counter() - start
    print(f"{logits.nbytes / 1e9:.1f} GB in chunks of {chunk}, {scheduler}: loss {loss:.6f}")
    print(f"peak {watch.peak:.0f} MiB of anonymous memory, {seconds:.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
