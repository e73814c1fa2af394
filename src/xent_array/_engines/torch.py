"""torch: NumPy's evaluation of what lies in host memory, and a rule for plain backward.

What torch holds on the CPU is memory that NumPy sees as well, without a copy: there its blocks are
shared by threads, and kernels read them where there are any. CUDA memory has kernels of its own.
Everywhere else, and in every mode of torch's but plain calls and plain backward, torch runs the
array code of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch.autograd import forward_ad

from xent_array import _evaluate
from xent_array._backends import Standard
from xent_array._backends.torch import holds_values, numpy_view
from xent_array._batch import Arrays, Batch, apart, lend, together, with_kernels, with_out
from xent_array._engines import of_memory, times_upstream
from xent_array._evaluate import Kept, Result, room_for_gradient
from xent_array._namespace import Array
from xent_array._rowwise import Stats

#: Bytes of logits below which a call's own cost is more than that of its arithmetic. On a GPU torch
#: has backward run by another thread, for which Python is a few times as slow.
_SMALL: dict[str, int] = {"host": 1 << 17, "device": 1 << 24}

#: In the place of what a gradient needs of each row, where there is the gradient.
_UNSEEN: Sequence[Any] = (None,) * 4


def value(batch: Batch) -> Result:
    """Evaluate the loss with a rule for the gradient by the logits, where that is all there is."""
    if not batch.differentiable:
        return _constant_value(batch)
    plain = (
        batch.memory != "opaque"
        and batch.logits_alone
        and not batch.return_stats
        and forward_ad._current_level < 0
    )
    if not plain:
        return _evaluate.value(batch)
    loss = _Loss.apply(batch.logits, batch)  # type: ignore[no-untyped-call]
    return Result(loss, None, None)


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits, constants to torch."""
    host, out = _in_numpy(batch), batch.out
    if out is not None and out.is_neg():  # no one but torch knows of that
        return _evaluate.value_and_grad(batch)
    if out is not None and (host is not None or batch.kernels is not None):
        _tell_of_writing(out)
    if host is None:
        return cast("Result", of_memory(batch).value_and_grad(batch))
    if out is None and _small(batch):
        room = host.backend.room(host.logits.shape, host.logits)  # in less time than torch's
        out = torch.from_numpy(room)
    else:
        out = room_for_gradient(batch)
        room = numpy_view(out)
    return _in_torch(batch, of_memory(host).value_and_grad(with_out(host, room)), out)


def _tell_of_writing(out: torch.Tensor) -> None:
    """Have torch know that a tensor is written to by something else."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _constant_value(batch: Batch) -> Result:
    host = _in_numpy(batch)
    if host is None:
        return cast("Result", of_memory(batch).value(batch))
    return _in_torch(batch, of_memory(host).value(host), None)


class _Loss(torch.autograd.Function):
    """The loss of a batch, whose tensors are all handed to torch to be kept for backward.

    So torch frees them after it, sees when one is changed in place before, and may keep them where
    its hooks say. With them it keeps a few numbers of each row, from which the gradient is made.
    Where a call is so small that its own cost is what counts, the gradient is computed with the
    loss, and kept instead.

    Only plain backward comes here, so torch need not tell the context from the function, which
    would cost as much as its own loss does.
    """

    @staticmethod
    def forward(ctx: Any, _logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        grad, seen, divisor = None, _UNSEEN, None
        if batch.reduction != "none" and _small(batch):
            loss, grad, _ = value_and_grad(batch)
        else:
            loss, (seen, divisor) = _value_to_differentiate(batch)
        ctx.batch, arrays = apart(batch, torch.Tensor)
        ctx.divisor = divisor
        ctx.save_for_backward(*_without_end((*arrays[:2], grad, *seen, *arrays[2:])))
        return cast("torch.Tensor", loss)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[Any, ...]:
        logits, target, grad, *others = ctx.saved_tensors
        derived = torch.is_grad_enabled() or not holds_values(grad_loss)
        if grad is not None and not derived:
            return _times_upstream(ctx.batch.backend, grad, grad_loss), None
        others += [None] * (len(_UNSEEN) + len(Arrays._fields) - 2 - len(others))
        seen, arrays = others[: len(_UNSEEN)], (logits, target, *others[len(_UNSEEN) :])
        batch = with_kernels(together(ctx.batch, Arrays(*arrays)))
        if derived:
            return _derived(batch, grad_loss), None
        upstream = grad_loss.resolve_neg().broadcast_to(batch.shape)[..., None]
        memory = batch.backend.memory(batch.logits)  # which hooks may have put elsewhere
        batch = batch._replace(memory=memory, grad_output=upstream)
        return _grad_of_kept(batch, Kept(seen, ctx.divisor)), None


def _times_upstream(backend: Standard, grad: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """A gradient that was computed with its loss, times that of the loss."""
    if upstream.is_cpu and math.isfinite(upstream.item()):
        return grad * upstream
    return cast("torch.Tensor", times_upstream(backend, grad, upstream, grad.dtype))


def _without_end(saved: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is to be saved without its last Nones, of which each takes its time."""
    end = len(saved)
    while saved[end - 1] is None:
        end -= 1
    return saved[:end]


def _small(batch: Batch) -> bool:
    """Whether a call is small, and of a dtype whose gradient can be multiplied by a factor later.

    A half gradient must be scaled before it is rounded.
    """
    logits: torch.Tensor = batch.logits
    return logits.itemsize > 2 and logits.nbytes <= _SMALL.get(batch.memory, 0)


def _derived(batch: Batch, grad_loss: torch.Tensor) -> torch.Tensor:
    """The gradient as torch derives it: to be differentiated again, or by many vectors at once."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        alias = batch.logits.view_as(batch.logits)  # the hooks of the logits run once, outside
        loss = _evaluate.value(batch._replace(logits=alias)).loss
        (grad,) = torch.autograd.grad(loss, alias, grad_loss, create_graph=again)
    derived: torch.Tensor = grad
    return derived


def _value_to_differentiate(batch: Batch) -> tuple[Array, Kept]:
    host = _in_numpy(batch)
    if host is None:
        result, kept = of_memory(batch).value_to_differentiate(batch)
        return result.loss, kept
    result, kept = of_memory(host).value_to_differentiate(host)
    seen = [None if x is None else torch.from_numpy(x) for x in kept.seen]
    return _in_torch(batch, result, None).loss, Kept(seen, float(kept.divisor))


def _grad_of_kept(batch: Batch, kept: Kept) -> torch.Tensor:
    host = _in_numpy(batch)
    if host is None:
        by_kernels = kept.seen[3] is not None  # else the loss was torch's, and all that it kept
        engine = of_memory(batch) if by_kernels else _evaluate
        derived: torch.Tensor = engine.grad_of_kept(batch, kept)
        return derived
    out: torch.Tensor = room_for_gradient(batch)
    seen = [None if x is None else numpy_view(x) for x in kept.seen]
    if seen[3] is None:  # no kernel read the rows, and none can go on
        host = host._replace(kernels=None)
    # The loss may have been torch's, where something watched it.
    divisor = float(kept.divisor)
    of_memory(host).grad_of_kept(with_out(host, numpy_view(out)), Kept(seen, divisor))
    return out


# --- tensors as NumPy sees them


def _in_numpy(batch: Batch) -> Batch | None:
    """The same batch on NumPy's views of its tensors, or None if torch is to evaluate it.

    Half logits are worth it only for a kernel: NumPy's own arithmetic would first widen them.
    """
    host = lend(batch)
    if host is None or (host.kernels is None and batch.logits.itemsize <= 2):
        return None
    return host


def _in_torch(batch: Batch, result: Result, grad: torch.Tensor | None) -> Result:
    """What NumPy computed, as tensors on its memory, of the dtype asked for; beside a gradient."""
    dtype, stats = batch.result_dtype, result.stats
    loss = torch.from_numpy(result.loss)
    if loss.dtype is not dtype:
        loss = loss.to(dtype)
    if stats is not None:
        lse, prediction, correct = map(torch.from_numpy, stats)
        stats = Stats(lse.to(dtype), prediction, correct)
    return Result(loss, grad, stats)
