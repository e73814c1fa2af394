"""How a library's own machinery evaluates a call: its autograd, its compiler, its graphs.

An engine is a module with the functions `value`, `value_and_grad` and `probabilities`. That of most
libraries is `_evaluate` itself, whose array code they run, and differentiate, operation by
operation.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from xent_array import _evaluate, _gradient
from xent_array._backends import Memory, Standard
from xent_array._batch import Batch
from xent_array._evaluate import Result
from xent_array._namespace import Array


def evaluate(batch: Batch) -> Result:
    """Evaluate the loss, differentiable where the library differentiates."""
    result: Result = _engine(batch).value(batch)
    return result


def evaluate_with_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits, constants to the library."""
    result: Result = _engine(batch).value_and_grad(batch)
    return result


def probabilities(batch: Batch) -> Array:
    """Evaluate the softmax of a batch without a target, or its logarithm, differentiable too."""
    found: Array = _engine(batch).probabilities(batch)
    return found


def _engine(batch: Batch) -> ModuleType:
    """The engine of a batch, imported when its first array is there."""
    library = batch.backend.xp.__name__
    if library == "array_api_compat.torch":
        from xent_array._engines import torch

        return torch
    if library == "jax.numpy":
        from xent_array._engines import jax

        return jax
    if library == "array_api_compat.dask.array":
        from xent_array._engines import dask

        return dask
    return of_memory(batch)


def of_memory(batch: Batch) -> ModuleType:
    """What evaluates a batch that its library does not differentiate: a module like an engine.

    It has `value_to_differentiate` and `grad_of_kept` as well, as `_evaluate` has them.
    """
    return _evaluate if batch.kernels is None else by_kernels(batch.memory)


def times_upstream(backend: Standard, grad: Array, upstream: Array, dtype: Any) -> Array:
    """A gradient times that of its loss, rounded to a dtype: see `_gradient.times_upstream`."""
    kernels = backend.kernels(grad) if backend.memory(grad) == "device" else None
    if kernels is None:
        return backend.cast(_gradient.times_upstream(backend.xp, grad, upstream), dtype)
    return by_kernels("device").times_upstream(kernels, grad, upstream, dtype)


@cache
def by_kernels(memory: Memory) -> ModuleType:
    """The engine of what kernels read in a memory."""
    if memory == "device":
        from xent_array._engines import device

        return device
    from xent_array._engines import host

    return host
