"""torch: softmax and log_softmax with a rule for plain backward, which needs their values alone."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd import forward_ad

from xent_array import _evaluate
from xent_array._backends.torch import holds_values, is_compiled, numpy_view
from xent_array._batch import Batch
from xent_array._engines import _torch_constant
from xent_array._normalized import at_once, by_blocks, log_passed_on, passed_on
from xent_array._wanted import NoTarget

#: Bytes from which on what backward passes on is computed block by block.
WORTH_BLOCKS = 1 << 22


def probabilities(batch: Batch) -> torch.Tensor:
    """Evaluate the softmax of a batch without a target, or its logarithm."""
    ruled = forward_ad._current_level < 0 and (batch.memory != "opaque" or is_compiled())
    if not ruled:
        return cast("torch.Tensor", _evaluate.probabilities(batch))
    if not batch.differentiable:
        return _constant(batch)
    return cast("torch.Tensor", _Probabilities.apply(batch.logits, batch))  # type: ignore[no-untyped-call]


def _constant(batch: Batch) -> torch.Tensor:
    engine = _evaluate if batch.memory == "opaque" else _torch_constant
    return cast("torch.Tensor", engine.probabilities(batch._replace(differentiable=False)))


class _Probabilities(torch.autograd.Function):
    """The softmax of a batch, or its logarithm, whose values are all that backward needs."""

    @staticmethod
    def forward(ctx: Any, _logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        found = _constant(batch)
        assert isinstance(batch.target, NoTarget)
        ctx.formula = log_passed_on if batch.target.logarithm else passed_on
        ctx.backend, ctx.axis = batch.backend, batch.axis
        ctx.save_for_backward(found)
        return _torch_constant.owned(found)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        (found,) = ctx.saved_tensors
        arrays, formula, backend = (found, upstream), ctx.formula, ctx.backend
        # Someone may differentiate this again, or ask for many at once.
        again = torch.is_grad_enabled() or not holds_values(upstream)
        if again or found.nbytes < WORTH_BLOCKS:
            return at_once(backend, formula, arrays, ctx.axis), None
        out = backend.room(found.shape, found)
        evaluator = backend.evaluator(found)
        if evaluator is backend or found.itemsize <= 2:  # NumPy computes in no half dtype
            by_blocks(backend, formula, arrays, ctx.axis, out)
        else:
            views = numpy_view(found), numpy_view(upstream)
            by_blocks(evaluator, formula, views, ctx.axis, numpy_view(out))
        return out, None
