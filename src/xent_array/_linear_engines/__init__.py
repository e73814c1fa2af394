"""How a library's own machinery evaluates a projected call.

Values that can be seen are taken tile by tile. What is traced or lazy is one expression, whose
logits a compiler may store, and dask makes chunk by chunk.
"""

from __future__ import annotations

from typing import Any

from xent_array import _engines
from xent_array._batch import Batch
from xent_array._evaluate import Result
from xent_array._namespace import Array
from xent_array._projected import Parts, Projected
from xent_array._tiles import Wanted, evaluate_tiles


def evaluate(call: Projected) -> Result:
    """Evaluate the loss, differentiable where the library differentiates."""
    if call.batch.backend.xp.__name__ == "array_api_compat.torch":
        from xent_array._linear_engines import torch

        result: Result = torch.value(call)
        return result
    return evaluate_tiles(call)[0] if _seen(call.batch) else whole(call)


def evaluate_with_grads(call: Projected) -> tuple[Result, Parts]:
    """Evaluate the loss and its derivatives by features, weight and bias, constants to autograd."""
    if not _seen(call.batch):
        return _whole_with_grads(call)
    features = call.parts.features
    wanted = Wanted(True, True, call.parts.linear_bias is not None)
    result, grads = evaluate_tiles(call, wanted)
    assert grads is not None
    xp = call.batch.backend.xp
    return result, grads._replace(features=xp.reshape(grads.features, features.shape))


def _seen(batch: Batch) -> bool:
    """Whether tiles can be taken one after the other, and written to."""
    return batch.memory != "opaque" and not batch.backend.maps_rows


def whole(call: Projected) -> Result:
    """The loss of all logits at once, in array code that may be differentiated."""
    return _engines.evaluate(_with_logits(call))


def _with_logits(call: Projected) -> Batch:
    batch, parts, upstream = call
    backend = batch.backend
    logits = backend.affine(*parts, None)
    if upstream is not None:
        upstream = backend.broadcast_rows(upstream, batch.shape)[..., None]
    else:
        upstream = batch.grad_output
    return batch._replace(logits=logits, grad_output=upstream)


def _whole_with_grads(call: Projected) -> tuple[Result, Parts]:
    batch = call.batch
    xp, (features, weight, bias) = batch.backend.xp, call.parts
    result = _engines.evaluate_with_grad(_with_logits(call))
    g: Array = result.grad_logits
    rows: Any = tuple(range(g.ndim - 1))
    grads = Parts(
        xp.matmul(g, weight),
        xp.tensordot(g, features, axes=(rows, rows)),
        None if bias is None else xp.sum(g, axis=rows, dtype=bias.dtype),
    )
    return result._replace(grad_logits=None), grads
