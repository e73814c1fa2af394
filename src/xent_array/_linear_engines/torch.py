"""torch: gradients formed with the loss, tile by tile, and kept for plain backward.

A sum over rows knows its derivatives but for one factor: three matrix products suffice. Losses per
row have a factor each, so their logits are made again. So they are in torch's other modes, and for
derivatives of derivatives, where torch differentiates the array code of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

import torch
from torch.autograd import forward_ad

from xent_array._backends import Standard
from xent_array._backends.torch import is_compiled, is_transformed
from xent_array._batch import Arrays, apart, together
from xent_array._engines import times_upstream
from xent_array._evaluate import Result
from xent_array._linear_engines import _torch_compiled, _torch_tiles, at_once, in_tiles
from xent_array._linear_engines._torch_recomputed import placed
from xent_array._projected import Parts, Projected
from xent_array._rowwise import Stats
from xent_array._slopes import NOTHING, Wanted
from xent_array._tiles import evaluate_tiles


def value(call: Projected) -> Result:
    """Evaluate the loss with a rule for its gradients, where that is all there is."""
    batch = call.batch
    seen = batch.memory != "opaque"
    if seen and forward_ad._current_level < 0:
        if not batch.differentiable:
            return in_tiles.value(call)
        if batch.logits_alone:
            loss, *stats = _Loss.apply(*call.parts, call)  # type: ignore[no-untyped-call]
            return Result(loss, None, Stats(*stats) if stats else None)
    if seen or is_transformed():
        return _torch_tiles.value(call)
    constant_stats = not (batch.return_stats and batch.differentiable)
    if is_compiled() and batch.logits_alone and constant_stats:
        return _torch_compiled.value(call)
    return at_once.value(call)


def value_and_grads(call: Projected) -> tuple[Result, Parts]:
    """Evaluate the loss and its gradients, constants to torch."""
    if call.batch.memory != "opaque":
        return in_tiles.value_and_grads(call)
    if is_compiled():
        return _torch_compiled.value_and_grads(call)
    return at_once.value_and_grads(call)


class _Loss(torch.autograd.Function):
    """Loss and statistics of a call, whose arguments are handed to torch to be kept for backward.

    The gradients formed with the loss are not: `backward` gives them away, to whoever may write to
    them, and makes them anew if it is asked again.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor, ...]:
        *parts, call = arguments
        features, weight, bias, _ = ctx.needs_input_grad
        per_row = call.batch.reduction == "none"
        wanted = NOTHING if per_row else Wanted(features, weight, bias, wide=True)
        result, grads = evaluate_tiles(call, wanted)
        ctx.grads = list(grads)
        ctx.batch, arrays = apart(call.batch, torch.Tensor)
        ctx.save_for_backward(*parts, *arrays)
        ctx.set_materialize_grads(False)
        stats = result.stats or ()
        ctx.mark_non_differentiable(*stats[1:])
        return (result.loss, *stats)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[:3]
        call = Projected(together(ctx.batch, Arrays(*saved[3:])), Parts(*saved[:3]))
        by_loss, *others = upstream
        more = torch.is_grad_enabled() or any(x is not None for x in others)
        if by_loss is None or more or call.batch.backend.memory(by_loss) == "opaque":
            return (*_derived(call, needed, upstream[:2]), None)
        kept = [_taken(ctx.grads, i) if need else None for i, need in enumerate(needed)]
        missing = [need and grad is None for need, grad in zip(needed, kept, strict=True)]
        made = _made_again(call, missing, by_loss) if any(missing) else kept
        grads = []
        for grad, again, miss, part in zip(kept, made, missing, call.parts, strict=True):
            found = again if miss else _times(call.batch.backend, grad, by_loss, part)
            grads.append(None if found is None else found.to(part.dtype))
        return (*grads, None)


def _taken(grads: list[torch.Tensor | None], place: int) -> torch.Tensor | None:
    grad, grads[place] = grads[place], None
    return grad


def _made_again(call: Projected, missing: list[bool], factor: torch.Tensor) -> Parts:
    """Gradients that were given away, or are those of losses per row, each with its factor."""
    batch = call.batch._replace(return_stats=False)
    if batch.reduction == "none":
        per_row = factor.broadcast_to(batch.shape)[..., None]
        call = call._replace(batch=batch._replace(grad_output=per_row))
    else:
        call = call._replace(batch=batch, upstream=factor)
    return evaluate_tiles(call, Wanted(*missing))[1]


def _times(
    backend: Standard, grad: torch.Tensor | None, factor: torch.Tensor, part: torch.Tensor
) -> torch.Tensor | None:
    """The gradient by a part, which no one else has, times the factor of its loss."""
    if grad is None:
        return None
    if factor.is_cpu and math.isfinite(number := factor.item()):  # in place, as 0 stays 0
        return grad if number == 1.0 else grad.mul_(factor)
    found: torch.Tensor = times_upstream(backend, grad, factor, part.dtype)
    return found


def _derived(
    call: Projected, needed: tuple[bool, ...], upstream: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor | None, ...]:
    """The gradients as torch derives them: to be differentiated again, or of more than the loss."""
    if all(g is None for g in upstream):
        return placed([False] * len(needed), ())
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if x is None else x.view_as(x) for x in call.parts]
        result = _torch_tiles.value(call._replace(parts=Parts(*aliases)))
        outputs = (result.loss, *(result.stats or ())[:1])
        given = [g is not None for g in upstream]
        values, factors = ([*compress(x, given)] for x in (outputs, upstream))
        inputs = [x for x, need in zip(aliases, needed, strict=True) if need and x is not None]
        grads = torch.autograd.grad(values, inputs, factors, create_graph=again)
    return placed(needed, grads)
