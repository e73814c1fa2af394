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
from xent_array import _kernels, _threads
from xent_array._backends import backend_of
from xent_array._blocks import budget_of
from xent_array._capabilities import LIBRARIES, Library
from xent_array._namespace import dtype_name

#: The tutorial's four samples of four classes; sample i is of class i.
LOGITS = [
    [0.8, 0.5, 0.2, 0.5],
    [0.2, 0.9, 0.3, 0.2],
    [0.4, 0.3, 0.7, 0.1],
    [0.1, 0.2, 0.4, 0.8],
]

#: The libraries have a line for each kind of memory; where their arrays are traced is not one.
MEMORY = ("CPU", "CUDA", "lazy")

#: The spacing of numbers above 1, by the dtype that a library makes of Python's floats.
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23}


class Report(NamedTuple):
    """One library: a line of the table."""

    library: str
    version: str
    served_by: str
    tutorial: str


def main() -> int:
    """Print the table; return 1 if a library computes wrong numbers, 2 if a setting is wrong."""
    try:
        _threads.available()
        _kernels.why_not_for_host()
    except ValueError as error:  # a setting
        print(error, file=sys.stderr)
        return 2
    compat = importlib.metadata.version("array-api-compat")
    print(
        f"xent_array {xent_array.__version__}, array-api-compat {compat}, "
        f"Python {platform.python_version()}\n"
    )
    reports = [report(library) for library in LIBRARIES if library.arrays in MEMORY]
    table = [Report("library", "version", "served by", "tutorial"), *reports]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return any(row.tutorial.startswith("WRONG") for row in reports)


def report(library: Library) -> Report:
    """Look at one library, if it is installed."""
    on_gpu = library.arrays == "CUDA"
    device = {"device": "cuda"} if on_gpu and library.name == "torch" else {}
    name = f"{library.name}, CUDA" if device else library.name
    if importlib.util.find_spec(library.namespace.partition(".")[0]) is None:
        return Report(name, "-", "not installed", "-")
    xp = importlib.import_module(library.namespace)
    version = importlib.import_module(library.name).__version__
    if on_gpu and not xp.cuda.is_available():
        return Report(name, version, "no GPU", "-")
    return Report(name, version, served_by(xp, **device), check_tutorial(xp, **device))


def served_by(xp: ModuleType, **device: str) -> str:
    """Name what evaluates arrays of a library, and why nothing faster does."""
    sample = xp.zeros((1,), **device)
    backend = backend_of("sample", sample)
    evaluator = backend.evaluator(sample)
    seen = sample if evaluator is backend else evaluator.xp.zeros((1,))
    threads = f", {evaluator.threads()} threads" if evaluator.threads() > 1 else ""
    why_not, kernels = evaluator.why_no_kernels(seen), evaluator.kernels(seen)
    if kernels is not None:
        return f"kernels compiled by {kernels.compiler}{threads}"
    budget = budget_of(evaluator, backend.cut_as(sample), differentiable=False)
    blocks = f", blocks of {budget >> 20} MiB" if budget and not backend.chunked else ""
    return f"{evaluator.engine}{blocks}{threads}" + (f" (no kernels: {why_not})" if why_not else "")


def check_tutorial(xp: ModuleType, **device: str) -> str:
    """Compare the tutorial's four losses with Python's own arithmetic."""
    logits, target = xp.asarray(LOGITS, **device), xp.asarray([0, 1, 2, 3], **device)
    losses = xent_array.cross_entropy(logits, target, reduction="none")
    exact = [
        math.log(math.fsum(map(math.exp, row))) - row[label] for label, row in enumerate(LOGITS)
    ]
    error = max(abs(float(losses[i]) - loss) for i, loss in enumerate(exact))
    return "right" if error < 8 * EPSILON[dtype_name(losses.dtype)] else f"WRONG by {error:.1e}"


if __name__ == "__main__":
    sys.exit(main())
