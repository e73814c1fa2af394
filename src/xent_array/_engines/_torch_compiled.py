"""torch compiled: the loss and its gradient as operators, where kernels read the rows.

Of array code a compiler makes several passes over the logits; a kernel needs one for the loss and
one for the gradient. What an operator is given must be tensors, numbers and words: a batch is taken
apart for it, and put together again where it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch.autograd import forward_ad

from xent_array import _kernels
from xent_array._backends import _torch_cuda, backend_of
from xent_array._backends.torch import is_compiled, is_wrapped, numpy_backend, numpy_view
from xent_array._batch import Arrays, Batch, arrays_of, laid_out, suits_kernels, with_kernels
from xent_array._engines import _torch_constant
from xent_array._engines._torch_operands import packed, unpacked
from xent_array._evaluate import Kept, Result
from xent_array._rows import row_shape
from xent_array._rowwise import Stats
from xent_array._wanted import IndexRows, IndexTarget, Smoothing

#: Bytes of logits from which on an operator is faster than array code as a compiler makes it, which
#: may be one with what comes before it. A guess for GPUs.
WORTH_A_CALL = {"cpu": 1 << 25, "cuda": 1 << 24}

#: What an operator gives beside loss and statistics: what gradients need of each row, or one.
_NOTHING, _KEPT, _GRADIENT = "nothing", "kept", "gradient"

#: What a batch has beside logits and target that is a tensor, a number or nothing; and those that
#: change nothing.
_VALUES = (*Arrays._fields[2:], "z_loss")
_NEUTRAL = {"smoothing": 0.0, "logit_scale": 1.0, "z_loss": 0.0}


def serves(batch: Batch) -> bool:
    """Whether torch.compile traces a call whose rows kernels will read.

    Should they be gone when the code runs, or the memory not be aligned, the operator runs array
    code.
    """
    if not is_compiled() or forward_ad._current_level >= 0 or not suits_kernels(batch):
        return False
    if not isinstance(batch.target, IndexTarget):  # what comes next is one loop with softmax
        return False
    logits, device = batch.logits, batch.logits.device.type
    if device not in WORTH_A_CALL or logits.numel() * logits.itemsize < WORTH_A_CALL[device]:
        return False
    there: bool = _are_there(device, logits.device.index, logits.dtype)
    return there


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _are_there(device: str, number: int | None, dtype: torch.dtype) -> bool:
    """Whether there are kernels for such tensors. No compiler looks into this."""
    if device == "cpu":
        numpy = numpy_backend()
        try:
            rows = numpy_view(torch.empty(0, dtype=dtype))
        except LookupError:
            return False
        return numpy is not None and numpy.kernels(rows) is not None
    if torch.version.cuda is None:
        return False
    kernels = _kernels.for_cuda(_torch_cuda)
    return kernels is not None and kernels.reads(dtype) and kernels.why_not(number or 0) is None


def value(batch: Batch) -> Result:
    """Evaluate the loss with a rule for the gradient by the logits."""
    gives = _KEPT if batch.differentiable else _NOTHING
    loss, *others = _loss(*_taken_apart(batch), gives=gives, **_words_of(batch))
    return Result(loss, None, Stats(*others) if batch.return_stats else None)


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its derivatives by the logits, constants to torch."""
    with torch.no_grad():
        loss, *stats, grad = _loss(*_taken_apart(batch), gives=_GRADIENT, **_words_of(batch))
    return Result(loss, grad, Stats(*stats) if stats else None)


# --- a batch, taken apart and put together


def _taken_apart(batch: Batch) -> tuple[Any, ...]:
    """Logits, target, and all else that changes the loss, as an operator is given them."""
    given = zip(_VALUES, (*arrays_of(batch)[2:], batch.z_loss), strict=True)
    arrays, names = packed({name: x for name, x in given if not _changes_nothing(name, x)})
    return batch.logits, batch.target.column, arrays, names


def _changes_nothing(name: str, x: Any) -> bool:
    return isinstance(x, float) and name in _NEUTRAL and x == _NEUTRAL[name]


class _Words(NamedTuple):
    """What a batch has that is a number or a word, and seldom another one; see `_SCHEMA`."""

    axis: int
    ignore_index: int | None
    reduction: Any
    on_empty: Any
    by_rows: bool
    return_stats: bool
    dtype: torch.dtype  # of the result


def _words_of(batch: Batch) -> dict[str, Any]:
    assert isinstance(batch.target, IndexTarget)
    words = _Words(
        batch.axis,
        batch.target.ignore_index,
        batch.reduction,
        batch.on_empty,
        batch.by_rows,
        batch.return_stats,
        batch.result_dtype,
    )
    return words._asdict()


def _together(
    logits: torch.Tensor,
    target: torch.Tensor,
    arrays: Sequence[torch.Tensor],
    names: str,
    words: _Words,
    *,
    upstream: torch.Tensor | None = None,
) -> Batch:
    """The batch that was taken apart; its options were checked."""
    backend = backend_of("logits", logits)
    given: dict[str, Any] = dict.fromkeys(_VALUES) | _NEUTRAL | unpacked(arrays, names)
    axis, shape = words.axis, tuple(logits.shape)
    classes, rows = shape[axis], row_shape(shape, axis)
    if upstream is not None:
        given["grad_output"] = upstream.resolve_neg().expand(rows)[..., None]
    q = Smoothing(backend, classes, given["weight"], given["smoothing"])
    batch = Batch(
        backend,
        backend.compute_dtype(logits.dtype),
        words.dtype,
        differentiable=False,
        logits_alone=True,
        memory=backend.memory(logits),
        reduction=words.reduction,
        on_empty=words.on_empty,
        by_rows=words.by_rows,
        return_stats=words.return_stats,
        shape=rows,
        classes=classes,
        axis=axis,
        softcap=None,
        z_loss=given["z_loss"],
        out=None,
        where=given["where"],
        sample_weight=given["sample_weight"],
        logit_scale=given["logit_scale"],
        denominator=given["denominator"],
        grad_output=given["grad_output"],
        logits=logits,
        target=IndexTarget(q, target[..., 0], words.ignore_index, trusted=False),
        kernels=None,
    )
    return with_kernels(batch)


def _picked(batch: Batch, top: torch.Tensor) -> torch.Tensor:
    """The logits at the indices below their tops, where no kernel was to be had after all."""
    (batch, rows) = laid_out(batch), batch.target.rows((...,), batch.where)
    assert isinstance(rows, IndexRows)
    chosen = batch.backend.gather(batch.logits, rows.index).to(top.dtype)
    picked: torch.Tensor = (chosen - top) * batch.logit_scale
    return picked


# --- the operators
#
# Compiled code that lies on disk calls them by their names: with other arguments, or of another
# meaning, an operator must have another name.

#: A batch that is taken apart, as an operator is given it beside what is its own.
_SCHEMA = (
    "(Tensor logits, Tensor target, Tensor[] arrays, str names{}, *{}, "
    "SymInt axis, SymInt? ignore_index, str reduction, str on_empty, bool by_rows, "
    "bool return_stats, ScalarType dtype) -> {}"
)


@torch.library.custom_op(
    "xent_array::cross_entropy",
    mutates_args=(),
    schema=_SCHEMA.format("", ", str gives", "Tensor[]"),
)
def _loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    arrays: Sequence[torch.Tensor],
    names: str,
    *,
    gives: str,
    **words: Any,
) -> list[torch.Tensor]:
    """The loss, statistics where asked for, and what it gives beside them."""
    batch = _together(logits, target, arrays, names, _Words(**words))
    if gives == _KEPT:
        loss, (seen, divisor) = _torch_constant.value_to_differentiate(batch)
        top, rest, _, picked = (cast("torch.Tensor", x) for x in seen)
        if not isinstance(divisor, torch.Tensor):
            divisor = torch.full((), divisor, dtype=top.dtype, device=top.device)
        divided = [divisor] * (batch.reduction == "mean")
        return [loss, top, rest, _picked(batch, top) if picked is None else picked, *divided]
    engine = _torch_constant.value if gives == _NOTHING else _torch_constant.value_and_grad
    loss, grad, stats = engine(batch)
    return [loss, *(stats or ()), *(() if grad is None else (grad.contiguous(),))]


@_loss.register_fake
def _results(
    logits: torch.Tensor,
    *_others: Any,
    gives: str,
    axis: int,
    reduction: str,
    return_stats: bool,
    dtype: torch.dtype,
    **_words: Any,
) -> list[torch.Tensor]:
    """Memory for the results."""
    rows = row_shape(tuple(logits.shape), axis)
    made = [logits.new_empty(rows if reduction == "none" else (), dtype=dtype)]
    if return_stats:
        made += [logits.new_empty(rows, dtype=x) for x in (dtype, torch.int64, torch.bool)]
    if gives == _GRADIENT:
        made.append(logits.new_empty(logits.shape))
    if gives == _KEPT:
        compute = backend_of("logits", logits).compute_dtype(logits.dtype)
        shapes = [(*rows, 1)] * 3 + [()] * (reduction == "mean")
        made += [logits.new_empty(shape, dtype=compute) for shape in shapes]
    return made


@torch.library.custom_op(
    "xent_array::cross_entropy_backward",
    mutates_args=(),
    schema=_SCHEMA.format(", Tensor[] kept", "", "Tensor"),
)
def _gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    arrays: Sequence[torch.Tensor],
    names: str,
    kept: Sequence[torch.Tensor],
    **words: Any,
) -> torch.Tensor:
    """The derivatives by the logits, of what was kept of a loss and what comes from above."""
    top, rest, picked, *divided, upstream = kept
    batch = _together(logits, target, arrays, names, _Words(**words), upstream=upstream)
    divisor = divided[0] if divided else 1.0
    grad = _torch_constant.grad_of_kept(batch, Kept([top, rest, None, picked], divisor))
    return grad.contiguous()


@_gradient.register_fake
def _derivatives(logits: torch.Tensor, *_others: Any, **_words: Any) -> torch.Tensor:
    """Memory for the result."""
    return logits.new_empty(logits.shape)


def _keep(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: list[Any]
) -> None:
    logits, target, arrays, ctx.names = inputs
    ctx.words = {name: x for name, x in keyword_only_inputs.items() if name != "gives"}
    ctx.count = len(arrays)
    ctx.save_for_backward(logits, target, *arrays, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: list[torch.Tensor | None]) -> tuple[Any, ...]:
    logits, target, *others = ctx.saved_tensors
    arrays, kept, by_loss = others[: ctx.count], others[ctx.count :], upstream[0]
    grad = None
    if by_loss is not None and (torch.is_grad_enabled() or is_wrapped(by_loss)):
        batch = _together(logits, target, arrays, ctx.names, _Words(**ctx.words))
        grad = _torch_constant.derived(batch._replace(differentiable=True), by_loss)
    elif by_loss is not None:
        kept = [*kept, by_loss]
        grad = _gradient(logits, target, arrays, ctx.names, kept, **ctx.words)
    return grad, None, [None] * ctx.count, None


_loss.register_autograd(_backward, setup_context=_keep)
