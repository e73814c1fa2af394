"""torch: a rule for plain backward, of plain calls and of compiled ones.

NumPy or a kernel evaluates a plain call; a compiled one is an operator, or array code that the
compiler sees. In every other mode of torch's, torch differentiates the array code of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.autograd import forward_ad

from xent_array import _evaluate
from xent_array._backends import Standard
from xent_array._backends.torch import holds_values, is_compiled
from xent_array._batch import Arrays, Batch, apart, together, with_kernels, with_sizes
from xent_array._engines import (
    _torch_compiled,
    _torch_constant,
    _torch_probabilities,
    times_upstream,
)
from xent_array._engines._torch_constant import (
    derived,
    grad_of_kept,
    is_small,
    owned,
    value_to_differentiate,
)
from xent_array._evaluate import Kept, Result

#: In the place of `Kept.seen`, where the gradient itself is kept.
_UNSEEN: Sequence[Any] = (None,) * 4


def value(batch: Batch) -> Result:
    """Evaluate the loss with a rule for the gradient by the logits, where that is all there is."""
    plain = forward_ad._current_level < 0 and batch.logits_alone and not batch.return_stats
    if batch.memory == "opaque":
        if (plain or not batch.differentiable) and _torch_compiled.serves(batch):
            return _torch_compiled.value(batch)
        plain = plain and is_compiled()
    elif not batch.differentiable:
        return _torch_constant.value(batch)
    if not (plain and batch.differentiable):
        return _evaluate.value(batch)
    loss = _Loss.apply(batch.logits, batch)  # type: ignore[no-untyped-call]
    return Result(loss, None, None)


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits, constants to torch."""
    if batch.memory != "opaque":
        return _torch_constant.value_and_grad(batch)
    if not _torch_compiled.serves(batch):
        return _evaluate.value_and_grad(batch)
    result = _torch_compiled.value_and_grad(batch)
    if batch.out is None:
        return result
    with torch.no_grad():
        return result._replace(grad_logits=batch.out.copy_(result.grad_logits))


probabilities = _torch_probabilities.probabilities


class _Loss(torch.autograd.Function):
    """The loss of a batch, whose tensors are all handed to torch to be kept for backward.

    So torch frees them after it, sees when one is changed in place before, and may keep them where
    its hooks say. With them it keeps a few numbers of each row, from which the gradient is made.
    Where a call is so small that its own cost is what counts, the gradient is computed with the
    loss, and kept instead.

    Only plain backward comes here, so torch need not tell the context from the function, which
    would cost as much as its own loss does. torch.compile traces both functions, as array code.
    In the derivative that torch makes of a loss, each gather would come back as a scatter into an
    array of zeros as large as the logits, which compilers store.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        grad, seen, divisor = None, _UNSEEN, None
        compiled = is_compiled()
        if compiled:  # which brings no sizes from outside to backward
            batch = with_sizes(batch, tuple(logits.shape))
        if batch.reduction != "none" and is_small(batch):
            loss, grad, _ = _torch_constant.value_and_grad(batch)
        else:
            loss, (seen, divisor) = value_to_differentiate(batch)
        ctx.batch, arrays = apart(batch, torch.Tensor)
        ctx.divisor = divisor
        saved = _without_end((*arrays[:2], grad, *seen, *arrays[2:]))
        if compiled:  # which saves what becomes of them, if they are changed in place later
            saved = tuple(None if x is None else x.clone() for x in saved)
        ctx.save_for_backward(*saved)
        return owned(loss)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[Any, ...]:
        logits, target, grad, *others = ctx.saved_tensors
        # What a compiler traces is not differentiated again.
        again = not is_compiled() and (torch.is_grad_enabled() or not holds_values(grad_loss))
        if grad is not None and not again:
            return _times_upstream(ctx.batch.backend, grad, grad_loss), None
        others += [None] * (len(_UNSEEN) + len(Arrays._fields) - 2 - len(others))
        seen, arrays = others[: len(_UNSEEN)], (logits, target, *others[len(_UNSEEN) :])
        batch = with_kernels(together(ctx.batch, Arrays(*arrays)))
        if again:
            return derived(batch, grad_loss), None
        upstream = grad_loss.resolve_neg().expand(batch.shape)[..., None]
        memory = batch.backend.memory(batch.logits)  # which hooks may have put elsewhere
        batch = batch._replace(memory=memory, grad_output=upstream)
        return grad_of_kept(batch, Kept(seen, ctx.divisor)), None


def _times_upstream(backend: Standard, grad: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """A gradient that was computed with its loss, times that of the loss."""
    if upstream.is_cpu and not is_compiled() and math.isfinite(upstream.item()):
        return grad * upstream
    return cast("torch.Tensor", times_upstream(backend, grad, upstream, grad.dtype))


def _without_end(saved: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is to be saved without its last Nones, of which each takes its time."""
    end = len(saved)
    while saved[end - 1] is None:
        end -= 1
    return saved[:end]
