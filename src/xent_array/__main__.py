"""``python -m xent_array``: what is installed, what serves it, and whether it computes right."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import math
import platform
import sys
from types import ModuleType
from typing import NamedTuple

import xent_array
from xent_array._backends import backend_of
from xent_array._blocks import BLOCK_BYTES

#: Array libraries that the test suite covers: what is imported, and its name as a distribution.
LIBRARIES = {"numpy": "numpy", "torch": "torch", "array_api_strict": "array-api-strict"}

#: The tutorial's four samples of four classes; sample i is of class i.
LOGITS = [
    [0.8, 0.5, 0.2, 0.5],
    [0.2, 0.9, 0.3, 0.2],
    [0.4, 0.3, 0.7, 0.1],
    [0.1, 0.2, 0.4, 0.8],
]


class Report(NamedTuple):
    """One library: a line of the table."""

    library: str
    version: str
    served_by: str
    tutorial: str


def main() -> int:
    """Print the table; return 1 if a library computes wrong numbers."""
    compat = importlib.metadata.version("array-api-compat")
    print(
        f"xent_array {xent_array.__version__}, array-api-compat {compat}, "
        f"Python {platform.python_version()}\n"
    )
    reports = [report(name) for name in LIBRARIES]
    table = [Report("library", "version", "served by", "tutorial"), *reports]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return any(row.tutorial.startswith("WRONG") for row in reports)


def report(library: str) -> Report:
    """Look at one library, if it is installed."""
    if importlib.util.find_spec(library) is None:
        return Report(library, "-", "not installed", "-")
    xp = importlib.import_module(library)
    version = importlib.metadata.version(LIBRARIES[library])
    return Report(library, version, served_by(xp), check_tutorial(xp))


def served_by(xp: ModuleType) -> str:
    """Name the engine that evaluates arrays of a library."""
    sample = xp.zeros((1,))
    memory = backend_of("sample", sample).memory(sample)
    blocks = f"{BLOCK_BYTES[memory] >> 20} MiB" if memory in BLOCK_BYTES else "everything"
    return f"portable array code, blocks of {blocks}"


def check_tutorial(xp: ModuleType) -> str:
    """Compare the tutorial's four losses with Python's own arithmetic."""
    logits = xp.asarray(LOGITS, dtype=xp.float64)
    target = xp.asarray([0, 1, 2, 3])
    losses = xent_array.cross_entropy(logits, target, reduction="none")
    right = [
        math.log(math.fsum(map(math.exp, row))) - row[label] for label, row in enumerate(LOGITS)
    ]
    error = max(abs(float(losses[i]) - loss) for i, loss in enumerate(right))
    return "right" if error < 1e-15 else f"WRONG by {error:.1e}"


if __name__ == "__main__":
    sys.exit(main())
