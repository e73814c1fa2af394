"""Gradient rules: how an array library differentiates the loss and holds little for it.

Without a rule the library differentiates the array code of the loss, operation by operation.
"""

from __future__ import annotations

from xent_array._batch import Batch
from xent_array._evaluate import Result, value


def evaluate(batch: Batch) -> Result:
    """Evaluate the loss, differentiable where the library differentiates."""
    if batch.differentiable and batch.backend.xp.__name__ == "array_api_compat.torch":
        from xent_array._autodiff.torch import evaluate_torch

        return evaluate_torch(batch)
    return value(batch)
