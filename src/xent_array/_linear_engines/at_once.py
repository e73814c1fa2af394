"""All logits at once, as one expression: what is traced or lazy, and what lies on a mesh."""

from __future__ import annotations

from typing import Any

from xent_array import _engines
from xent_array._batch import Batch
from xent_array._evaluate import Result
from xent_array._namespace import Array
from xent_array._projected import Parts, Projected


def value(call: Projected) -> Result:
    """Evaluate the loss, in array code that may be differentiated."""
    return _engines.evaluate(_with_logits(call))


def value_and_grads(call: Projected) -> tuple[Result, Parts]:
    """Evaluate the loss and its derivatives, constants to autograd."""
    backend, (features, weight, bias) = call.batch.backend, call.parts
    xp = backend.xp
    with backend.detached():
        result = _engines.evaluate_with_grad(_with_logits(call))
        g: Array = result.grad_logits
        rows: Any = tuple(range(g.ndim - 1))
        grads = Parts(
            xp.matmul(g, weight),
            xp.tensordot(g, features, axes=(rows, rows)),
            None if bias is None else xp.sum(g, axis=rows, dtype=bias.dtype),
        )
    return result, grads


def _with_logits(call: Projected) -> Batch:
    batch, parts, upstream, _ = call
    if upstream is None:
        upstream = batch.grad_output
    else:
        upstream = batch.backend.broadcast_rows(upstream, batch.shape)[..., None]
    return batch._replace(logits=batch.backend.affine(*parts, None), grad_output=upstream)
