"""torch: of all the loss computes, its backward needs nothing but the arguments."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd import forward_ad

from xent_array import _evaluate
from xent_array._batch import Arrays, Batch, apart, together
from xent_array._evaluate import Result, value_and_grad

__all__ = ["value", "value_and_grad"]


def value(batch: Batch) -> Result:
    """Evaluate the loss with a rule for the gradient by the logits, where that is all there is.

    Whatever else is differentiated, and whatever torch does but plain backward (compiling,
    tracing, forward mode, its function transforms), sees the array code of the loss.
    """
    plain = (
        batch.differentiable
        and batch.memory != "opaque"
        and not batch.return_stats
        and forward_ad._current_level < 0
        and batch.logits_alone
    )
    if not plain:
        return _evaluate.value(batch)
    loss = _Loss.apply(batch.logits, batch)  # type: ignore[no-untyped-call]
    return Result(loss, None, None)


class _Loss(torch.autograd.Function):
    """The loss of a batch, whose tensors are all handed to torch to be kept for backward.

    So torch frees them after it, sees when one is changed in place before, and may keep them where
    its hooks say. Where a call is so small that its own cost is what counts, the gradient is
    computed with the loss, and kept as well.

    Only plain backward comes here, so torch need not tell the context from the function, which
    would cost as much as its own loss does.
    """

    @staticmethod
    def forward(ctx: Any, _logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        constant, grad = batch._replace(differentiable=False), None
        if _small(batch):
            loss, grad, _ = value_and_grad(constant)
        else:
            loss = _evaluate.value(constant).loss
        ctx.batch, arrays = apart(batch, torch.Tensor)
        ctx.save_for_backward(*arrays, grad)
        return cast("torch.Tensor", loss)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[Any, ...]:
        *arrays, grad = ctx.saved_tensors
        batch = together(ctx.batch, Arrays(*arrays))
        if torch.is_grad_enabled() or batch.backend.memory(grad_loss) == "opaque":
            return _derived(batch, grad_loss), None
        if grad is not None:
            # Rows that do not count stay 0, be the factor infinite.
            return torch.where(grad == 0.0, grad, grad * grad_loss), None
        upstream = grad_loss.broadcast_to(batch.shape)[..., None]
        return value_and_grad(batch._replace(grad_output=upstream)).grad_logits, None


#: Bytes of logits below which a call's own cost is more than that of its arithmetic.
_SMALL = 1 << 17


def _small(batch: Batch) -> bool:
    """Whether a call is small, and its gradient can be multiplied by one factor later.

    Losses per row have a factor each, and a half gradient must be scaled before it is rounded.
    """
    itemsize = batch.backend.itemsize(batch.logits.dtype)
    size = batch.logits.numel() * itemsize
    return batch.reduction != "none" and itemsize > 2 and size <= _SMALL


def _derived(batch: Batch, grad_loss: torch.Tensor) -> torch.Tensor:
    """The gradient as torch derives it: to be differentiated again, or by many vectors at once."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        alias = batch.logits.view_as(batch.logits)  # the hooks of the logits run once, outside
        loss = _evaluate.value(batch._replace(logits=alias)).loss
        (grad,) = torch.autograd.grad(loss, alias, grad_loss, create_graph=again)
    derived: torch.Tensor = grad
    return derived
