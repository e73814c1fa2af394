"""torch: gradients formed with the loss, tile by tile, and kept for plain backward.

A sum over rows knows its derivatives but for one factor: three matrix products suffice. Losses per
row have a factor each, so their logits are made again. So they are in torch's other modes, and for
derivatives of derivatives, where torch differentiates the array code of a tile.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd import forward_ad

from xent_array._backends.torch import is_transformed
from xent_array._batch import Arrays, apart, together
from xent_array._evaluate import Result
from xent_array._gradient import times_upstream
from xent_array._linear_engines import _torch_compiled, _torch_tiles, at_once, in_tiles
from xent_array._projected import Parts, Projected
from xent_array._slopes import NOTHING, Wanted
from xent_array._tiles import evaluate_tiles


def value(call: Projected) -> Result:
    """Evaluate the loss with a rule for its gradients, where that is all there is."""
    batch = call.batch
    seen = batch.memory != "opaque"
    if seen and forward_ad._current_level < 0:
        if not batch.differentiable:
            return in_tiles.value(call)
        if batch.logits_alone and not batch.return_stats:
            loss = _Loss.apply(*call.parts, call)  # type: ignore[no-untyped-call]
            return Result(loss, None, None)
    if seen or is_transformed():
        return _torch_tiles.value(call)
    constant_stats = not (batch.return_stats and batch.differentiable)
    if _is_compiled() and batch.logits_alone and constant_stats:
        return _torch_compiled.value(call)
    return at_once.value(call)


def value_and_grads(call: Projected) -> tuple[Result, Parts]:
    """Evaluate the loss and its gradients, constants to torch."""
    if call.batch.memory != "opaque":
        return in_tiles.value_and_grads(call)
    if _is_compiled():
        return _torch_compiled.value_and_grads(call)
    return at_once.value_and_grads(call)


def _is_compiled() -> bool:
    """Whether a compiler, and nothing else, sees the call."""
    return torch.compiler.is_dynamo_compiling() and not (
        torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
    )


class _Loss(torch.autograd.Function):
    """The loss of a call, all of whose tensors are handed to torch to be kept for backward."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        *parts, call = arguments
        features, weight, bias, _ = ctx.needs_input_grad
        per_row = call.batch.reduction == "none"
        wanted = NOTHING if per_row else Wanted(features, weight, bias, wide=True)
        result, grads = evaluate_tiles(call, wanted)
        ctx.batch, arrays = apart(call.batch, torch.Tensor)
        ctx.save_for_backward(*grads, *parts, *arrays)
        return cast("torch.Tensor", result.loss)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        grads, parts = Parts(*saved[:3]), Parts(*saved[3:6])
        batch = together(ctx.batch, Arrays(*saved[6:]))
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or batch.backend.memory(grad_loss) == "opaque":
            return (*_derived(Projected(batch, parts), needed, grad_loss), None)
        if batch.reduction == "none":
            upstream = grad_loss.broadcast_to(batch.shape)[..., None]
            call = Projected(batch._replace(grad_output=upstream), parts)
            _, grads = evaluate_tiles(call, Wanted(*needed))
            return (*map(_shaped, grads, parts), None)
        return (*(_scaled(g, x, grad_loss) for g, x in zip(grads, parts, strict=True)), None)


def _scaled(
    grad: torch.Tensor | None, like: torch.Tensor, factor: torch.Tensor
) -> torch.Tensor | None:
    """A kept gradient times the factor of its loss, in the dtype and shape of its argument."""
    if grad is not None and not (factor.is_cpu and float(factor) == 1.0):
        grad = times_upstream(torch, grad, factor)
    return _shaped(grad, like)


def _shaped(grad: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if grad is None else grad.to(like.dtype).reshape(like.shape)


def _derived(
    call: Projected, needed: tuple[bool, ...], grad_loss: torch.Tensor
) -> list[torch.Tensor | None]:
    """The gradients as torch derives them: to be differentiated again, or by many vectors."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if x is None else x.view_as(x) for x in call.parts]
        loss = _torch_tiles.value(call._replace(parts=Parts(*aliases))).loss
        inputs = [x for x, need in zip(aliases, needed, strict=True) if need and x is not None]
        grads = iter(torch.autograd.grad(loss, inputs, grad_loss, create_graph=again))
    return [next(grads) if need else None for need in needed]
