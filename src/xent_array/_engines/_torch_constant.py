"""torch: the loss and its gradients as constants, where NumPy or a kernel evaluates them.

What torch holds on the CPU is memory that NumPy sees as well, without a copy: there its blocks are
shared by threads, and kernels read them where there are any. CUDA memory has kernels of its own.
"""

from __future__ import annotations

from typing import cast

import torch

from xent_array import _evaluate
from xent_array._backends.torch import is_compiled, numpy_view
from xent_array._batch import Batch, lend, with_out
from xent_array._engines import of_memory
from xent_array._evaluate import Kept, Result, room_for_gradient
from xent_array._namespace import Array
from xent_array._rowwise import Stats

#: Bytes of logits below which a call's own cost is more than that of its arithmetic. On a GPU torch
#: has backward run by another thread, for which Python is a few times as slow.
SMALL: dict[str, int] = {"host": 1 << 17, "device": 1 << 24}


def value(batch: Batch) -> Result:
    """Evaluate the loss."""
    host = _in_numpy(batch)
    if host is None:
        return cast("Result", of_memory(batch).value(batch))
    return _in_torch(batch, of_memory(host).value(host), None)


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits."""
    host, out = _in_numpy(batch), batch.out
    if out is not None and out.is_neg():  # no one but torch knows of that
        return _evaluate.value_and_grad(batch)
    if out is not None and (host is not None or batch.kernels is not None):
        _tell_of_writing(out)
    if host is None:
        return cast("Result", of_memory(batch).value_and_grad(batch))
    if out is None and is_small(batch):
        room = host.backend.room(host.logits.shape, host.logits)  # in less time than torch's
        out = torch.from_numpy(room)
    else:
        out = room_for_gradient(batch)
        room = numpy_view(out)
    return _in_torch(batch, of_memory(host).value_and_grad(with_out(host, room)), out)


def probabilities(batch: Batch) -> torch.Tensor:
    """Evaluate the softmax of a batch without a target, or its logarithm."""
    out: torch.Tensor = room_for_gradient(batch)
    host = _in_numpy(batch)
    if host is None:
        of_memory(batch).probabilities(with_out(batch, out))
    else:
        of_memory(host).probabilities(with_out(host, numpy_view(out)))
    return out


def _tell_of_writing(out: torch.Tensor) -> None:
    """Have torch know that a tensor is written to by something else."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def is_small(batch: Batch) -> bool:
    """Whether a call is small, and of a dtype whose gradient can be multiplied by a factor later.

    A half gradient must be scaled before it is rounded.
    """
    logits: torch.Tensor = batch.logits
    limit = SMALL.get(batch.memory)
    return limit is not None and logits.itemsize > 2 and logits.nbytes <= limit


def value_to_differentiate(batch: Batch) -> tuple[Array, Kept]:
    """Evaluate the loss, and keep of each row what `grad_of_kept` needs."""
    host = _in_numpy(batch)
    if host is None:
        result, kept = of_memory(batch).value_to_differentiate(batch)
        return result.loss, kept
    result, kept = of_memory(host).value_to_differentiate(host)
    seen = [None if x is None else torch.from_numpy(x) for x in kept.seen]
    return _in_torch(batch, result, None).loss, Kept(seen, float(kept.divisor))


def grad_of_kept(batch: Batch, kept: Kept) -> torch.Tensor:
    """The derivatives by the logits of a loss that was evaluated before."""
    host = _in_numpy(batch)
    if host is None:
        engine = of_memory(batch) if _suffices(kept) else _evaluate
        derived: torch.Tensor = engine.grad_of_kept(batch, kept)
        return derived
    out: torch.Tensor = room_for_gradient(batch)
    seen = [None if x is None else numpy_view(x) for x in kept.seen]
    if not _suffices(kept):
        host = host._replace(kernels=None)
    # The loss may have been torch's, where something watched it.
    divisor = float(kept.divisor)
    of_memory(host).grad_of_kept(with_out(host, numpy_view(out)), Kept(seen, divisor))
    return out


def _suffices(kept: Kept) -> bool:
    """Whether kernels can go on with what was kept, by one of them or by torch."""
    return any(x is not None for x in kept.seen[2:])


def owned(x: torch.Tensor) -> torch.Tensor:
    """The result of an autograd Function, which may be changed in place, so that it is no view.

    Compilers save what becomes of what is saved; and they see no view to be one.
    """
    return x.clone() if is_compiled() or x._is_view() else x


def derived(batch: Batch, grad_loss: torch.Tensor) -> torch.Tensor:
    """The gradient as torch derives it: to be differentiated again, or by many vectors at once."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        alias = batch.logits.view_as(batch.logits)  # the hooks of the logits run once, outside
        loss = _evaluate.value(batch._replace(logits=alias)).loss
        (grad,) = torch.autograd.grad(loss, alias, grad_loss, create_graph=again)
    found: torch.Tensor = grad
    return found


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
