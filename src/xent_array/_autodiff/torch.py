"""torch: of all the loss computes, its backward needs nothing but the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from xent_array._batch import Batch
from xent_array._evaluate import Result, value, value_and_grad
from xent_array._rows import classes_last


def evaluate_torch(batch: Batch) -> Result:
    """Evaluate the loss with a rule for the gradient by the logits, where that is all there is.

    Whatever else is differentiated, and whatever torch does but plain backward (compiling,
    forward mode, its function transforms), sees the array code of the loss.
    """
    options = batch.options
    others = (options.label_smoothing, options.logit_scale, options.denominator)
    tensors = [x for x in (*batch.inputs, *others) if isinstance(x, torch.Tensor)]
    plain = (
        batch.memory != "opaque"
        and not options.return_stats
        and forward_ad._current_level < 0
        and not any(x.requires_grad for x in tensors)
    )
    if not plain:
        return value(batch)
    loss = _Loss.apply(batch.caller_logits, batch, *tensors)  # type: ignore[no-untyped-call]
    return Result(loss, None, None)


class _Loss(torch.autograd.Function):
    """The loss of a batch; its other arrays are named to be watched for changes in place."""

    @staticmethod
    def forward(_logits: torch.Tensor, batch: Batch, *_others: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = value(batch._replace(differentiable=False)).loss
        return loss

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: torch.Tensor) -> None:
        logits, batch, *others = inputs
        ctx.save_for_backward(logits, *others)
        ctx.batch = batch._replace(logits=None, caller_logits=None)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, *others = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.batch.backend.memory(grad_loss) == "opaque":
            grad = _derived(ctx.batch, logits, grad_loss)
        else:
            upstream = grad_loss.broadcast_to(ctx.batch.shape)[..., None]
            batch = _with_logits(ctx.batch, logits)._replace(grad_output=upstream)
            grad = value_and_grad(batch).grad_logits
        return (grad, None, *(None for _ in others))


def _derived(batch: Batch, logits: torch.Tensor, grad_loss: torch.Tensor) -> torch.Tensor:
    """The gradient as torch derives it: to be differentiated again, or by many vectors at once."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        loss = value(_with_logits(batch, logits)).loss
        (grad,) = torch.autograd.grad(loss, logits, grad_loss, create_graph=again)
    return grad


def _with_logits(batch: Batch, logits: torch.Tensor) -> Batch:
    rows = classes_last(batch.backend, logits, batch.axis)
    return batch._replace(caller_logits=logits, logits=rows)
