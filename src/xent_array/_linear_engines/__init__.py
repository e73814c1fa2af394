"""How a library's own machinery evaluates a projected call: tile by tile, or at once.

An engine is a module with the functions `value` and `value_and_grads`. Those of most libraries are
a walk over tiles where values can be seen, else one expression of all logits.
"""

from __future__ import annotations

from types import ModuleType

from xent_array._evaluate import Result
from xent_array._linear_engines import at_once, in_tiles
from xent_array._projected import Parts, Projected


def evaluate(call: Projected) -> Result:
    """Evaluate the loss, differentiable where the library differentiates."""
    result: Result = _engine(call).value(call)
    return result


def evaluate_with_grads(call: Projected) -> tuple[Result, Parts]:
    """Evaluate the loss and its derivatives by features, weight and bias, constants to autograd."""
    results: tuple[Result, Parts] = _engine(call).value_and_grads(call)
    return results


def _engine(call: Projected) -> ModuleType:
    library = call.batch.backend.xp.__name__
    if library == "array_api_compat.torch":
        from xent_array._linear_engines import torch

        return torch
    if library == "jax.numpy":
        from xent_array._linear_engines import jax

        return jax
    return at_once if call.batch.memory == "opaque" else in_tiles
