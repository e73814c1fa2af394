"""What works on which array library: the one table that tests and documentation are made from.

`tests/test_capabilities.py` proves each entry, yes or no, on the libraries it can run.
"""

from __future__ import annotations

from typing import NamedTuple

#: What may depend on the array library; everything else works on all of them.
FEATURES = {
    "eager": "results are values as soon as a call returns",
    "values": "bad class indices and options raise at once (elsewhere NaN)",
    "out": "the gradient may be written into memory of yours (`out=`)",
    "blocks": "memory beside the logits is bounded (JAX: where one CPU is all it has)",
    "half": "float16 and bfloat16 logits",
    "differentiable": "the library differentiates through the loss",
}


class Library(NamedTuple):
    """An array library, in one of the kinds of memory or states that its arrays come in."""

    name: str
    namespace: str  # the module that its users import
    arrays: str  # which of its arrays are meant
    features: frozenset[str]
    tested: bool  # by every run of the tests, or only where there is such a device


def _all_but(*missing: str) -> frozenset[str]:
    return frozenset(FEATURES) - set(missing)


LIBRARIES = (
    Library("numpy", "numpy", "CPU", _all_but("differentiable"), True),
    Library("torch", "torch", "CPU", _all_but(), True),
    Library("torch", "torch", "CUDA", _all_but("values"), False),
    Library("cupy", "cupy", "CUDA", _all_but("values", "differentiable"), False),
    Library("jax", "jax.numpy", "CPU", _all_but("out"), True),
    Library("jax", "jax.numpy", "traced", frozenset({"blocks", "half", "differentiable"}), True),
    Library("dask", "dask.array", "lazy", frozenset({"blocks", "half"}), True),
    Library(
        "array_api_strict",
        "array_api_strict",
        "CPU",
        _all_but("half", "differentiable"),
        True,
    ),
)
