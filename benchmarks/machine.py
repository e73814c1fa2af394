"""What the measurements were made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import torch

LIBRARIES = (
    "xent_array",
    "numpy",
    "numba",
    "torch",
    "jax",
    "optax",
    "scipy",
    "scikit-learn",
    "ml_dtypes",
)


def field(path: str, name: str) -> str:
    """Read a field of a file of /proc."""
    lines = Path(path).read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name))


def describe() -> dict[str, str]:
    """Name the processor, its cores and memory, the system, the versions and the threads."""
    gib = int(field("/proc/meminfo", "MemTotal").split()[0]) / 2**20
    versions = (f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    return {
        "processor": field("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{gib:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": platform.python_version(),
        "libraries": ", ".join(versions),
        "threads of torch": str(torch.get_num_threads()),
    }
