"""Gradient rules: how an array library differentiates the loss and holds little for it.

Without a rule the library differentiates the array code of the loss, operation by operation.
"""

from __future__ import annotations

from xent_array._batch import Batch
from xent_array._evaluate import Result, value, value_and_grad


def evaluate(batch: Batch) -> Result:
    """Evaluate the loss, differentiable where the library differentiates."""
    if batch.differentiable:
        library = batch.backend.xp.__name__
        if library == "array_api_compat.torch":
            from xent_array._engines.torch import evaluate_torch

            return evaluate_torch(batch)
        if library == "jax.numpy":
            from xent_array._engines.jax import evaluate_jax

            return evaluate_jax(batch)
    if batch.backend.xp.__name__ == "array_api_compat.dask.array":
        from xent_array._engines.dask import evaluate_dask

        return evaluate_dask(batch, grad=False)
    return value(batch)


def evaluate_with_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits, constants to the library."""
    if batch.backend.xp.__name__ == "jax.numpy":
        from xent_array._engines.jax import evaluate_jax_with_grad

        return evaluate_jax_with_grad(batch)
    if batch.backend.xp.__name__ == "array_api_compat.dask.array":
        from xent_array._engines.dask import evaluate_dask

        return evaluate_dask(batch, grad=True)
    return value_and_grad(batch)
