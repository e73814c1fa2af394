"""torch: of all the loss computes, its backward needs nothing but the arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from xent_array._batch import Batch
from xent_array._evaluate import Result, value, value_and_grad


def evaluate_torch(batch: Batch) -> Result:
    """Evaluate the loss with a rule for the gradient by the logits, where that is all there is.

    Whatever else is differentiated, and whatever torch does but plain backward (compiling,
    tracing, forward mode, its function transforms), sees the array code of the loss.
    """
    plain = (
        batch.memory != "opaque"
        and not batch.return_stats
        and forward_ad._current_level < 0
        and batch.logits_alone
    )
    if not plain:
        return value(batch)
    loss = _Loss.apply(batch.logits, batch)  # type: ignore[no-untyped-call]
    return Result(loss, None, None)


class _Loss(torch.autograd.Function):
    """The loss of a batch, whose tensors are all handed to torch to be kept for backward.

    So torch frees them after it, sees when one is changed in place before, and may keep them where
    its hooks say.
    """

    @staticmethod
    def forward(_logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = value(batch._replace(differentiable=False)).loss
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: torch.Tensor) -> None:
        logits, batch = inputs
        leaves, ctx.form = pytree.tree_flatten(batch._replace(logits=None))
        ctx.leaves = [None if isinstance(x, torch.Tensor) else x for x in leaves]
        ctx.places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
        ctx.save_for_backward(logits, *(leaves[i] for i in ctx.places))

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, *tensors = ctx.saved_tensors
        leaves = list(ctx.leaves)
        for place, tensor in zip(ctx.places, tensors, strict=True):
            leaves[place] = tensor
        batch = pytree.tree_unflatten(leaves, ctx.form)
        if torch.is_grad_enabled() or batch.backend.memory(grad_loss) == "opaque":
            return _derived(batch, logits, grad_loss), None
        upstream = grad_loss.broadcast_to(batch.shape)[..., None]
        batch = batch._replace(logits=logits, grad_output=upstream)
        return value_and_grad(batch).grad_logits, None


def _derived(batch: Batch, logits: torch.Tensor, grad_loss: torch.Tensor) -> torch.Tensor:
    """The gradient as torch derives it: to be differentiated again, or by many vectors at once."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        alias = logits.view_as(logits)  # the hooks of the logits themselves run once, outside
        loss = value(batch._replace(logits=alias)).loss
        (grad,) = torch.autograd.grad(loss, alias, grad_loss, create_graph=again)
    return grad
