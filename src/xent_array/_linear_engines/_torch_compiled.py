"""torch compiled: one operator for the loss and its gradients, which no compiler looks into.

It goes tile by tile, as a call does that is not compiled: of array code a compiler would see every
tile at once, and keep what it likes. Operators are given tensors, numbers and words, so the options
are taken apart for it, and checked again where it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from xent_array._engines._torch_operands import packed, unpacked
from xent_array._evaluate import Result
from xent_array._gradient import times_upstream
from xent_array._linear_engines._torch_recomputed import placed
from xent_array._options import Options
from xent_array._projected import Given, Parts, Projected, gather_projected
from xent_array._rowwise import Stats
from xent_array._slopes import Wanted
from xent_array._tiles import evaluate_tiles

#: Options that are a number, a tensor or nothing.
_VALUES = (
    "label_smoothing",
    "logit_scale",
    "denominator",
    "softcap",
    "z_loss",
    "weight",
    "sample_weight",
    "where",
)


def value(call: Projected) -> Result:
    """Evaluate the loss with a rule for its gradients by what the logits are made of."""
    wanted = [call.batch.backend.differentiates(x) for x in call.parts]
    if call.batch.reduction == "none":  # each loss has a factor of its own, which is to come
        wanted = [False] * len(wanted)
    return _results(call, Wanted(*wanted)._replace(wide=True), None)[0]


def value_and_grads(call: Projected) -> tuple[Result, Parts]:
    """Evaluate the loss and its gradients, constants to torch."""
    with torch.no_grad():
        return _results(call, Wanted(*(x is not None for x in call.parts)), call.grad_output)


def _results(
    call: Projected, wanted: Wanted, upstream: torch.Tensor | None
) -> tuple[Result, Parts]:
    target, options = cast("Given", call.given)
    values = {name: getattr(options, name) for name in _VALUES}
    arrays, names = packed({**values, "grad_output": upstream})
    loss, *others = _operator(
        *call.parts,
        target,
        arrays,
        names=names,
        by_rows=call.batch.by_rows,
        ignore_index=options.ignore_index,
        reduction=options.reduction,
        on_empty=options.on_empty,
        dtype=call.batch.result_dtype,
        return_stats=options.return_stats,
        wanted=list(wanted),
    )
    found = iter(others)
    grads = Parts(*placed(wanted[:3], found))
    return Result(loss, None, Stats(*found) if options.return_stats else None), grads


@torch.library.custom_op("xent_array::linear_cross_entropy", mutates_args=())
def _operator(
    features: torch.Tensor,
    linear_weight: torch.Tensor,
    linear_bias: torch.Tensor | None,
    target: torch.Tensor,
    arrays: Sequence[torch.Tensor],
    *,
    names: str,
    by_rows: bool,
    ignore_index: int,
    reduction: str,
    on_empty: str,
    dtype: torch.dtype,
    return_stats: bool,
    wanted: Sequence[bool],
) -> list[torch.Tensor]:
    """The loss, the gradients that are wanted, and statistics where asked for."""
    given = unpacked(arrays, names)
    upstream = given.pop("grad_output", None)
    if by_rows:
        given["denominator"] = "rows"
    words: Any = {"reduction": reduction, "on_empty": on_empty}
    options = Options(
        **given,
        **words,
        ignore_index=ignore_index,
        dtype=dtype,
        check=False,  # compiled, a bad target makes its row NaN
        return_stats=return_stats,
    )
    parts = Parts(features, linear_weight, linear_bias)
    with torch.no_grad():
        call = gather_projected(parts, target, options, grad_output=upstream)
        result, grads = evaluate_tiles(call, Wanted(*wanted))
    return [result.loss, *(g for g in grads if g is not None), *(result.stats or ())]


@_operator.register_fake
def _shapes(
    *arguments: Any,
    reduction: str,
    dtype: torch.dtype,
    return_stats: bool,
    wanted: Sequence[bool],
    **_words: Any,
) -> list[torch.Tensor]:
    """Memory for the results."""
    features, (*wants, wide) = arguments[0], wanted
    rows = features.shape[:-1]
    loss = features.new_empty(rows if reduction == "none" else (), dtype=dtype)
    sums = torch.float32 if wide and features.itemsize < 4 else features.dtype
    parts = zip(arguments[:3], wants, strict=True)
    grads = [x.new_empty(x.shape, dtype=sums) for x, want in parts if want]
    dtypes = (dtype, torch.int64, torch.bool) if return_stats else ()
    return [loss, *grads, *(features.new_empty(rows, dtype=x) for x in dtypes)]


def _keep(
    ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: list[Any]
) -> None:
    """Keep the gradients of a reduced loss; of losses per row, what they are made of."""
    arguments, arrays = inputs[:-1], inputs[-1]
    ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
    ctx.keywords, ctx.wanted = keyword_only_inputs, keyword_only_inputs["wanted"][:3]
    ctx.count = len(arrays)
    ctx.save_for_backward(*(output[1:] if any(ctx.wanted) else (*arguments, *arrays)))


def _backward(ctx: Any, upstream: list[torch.Tensor]) -> tuple[Any, ...]:
    saved, wanted, words = ctx.saved_tensors, ctx.wanted, ctx.keywords
    if any(wanted):
        found = [times_upstream(torch, g, upstream[0]) for g in saved]
    else:
        wanted, names = ctx.needs_input_grad[:3], f"{words['names']} grad_output"
        words = {**words, "names": names, "wanted": [*wanted, False]}
        _, *found = _operator(*saved[:4], [*saved[4:], upstream[0]], **words)
    pairs = zip(placed(wanted, found), ctx.dtypes, strict=True)
    grads = (None if g is None else g.to(dtype) for g, dtype in pairs)
    return (*grads, None, [None] * ctx.count)


_operator.register_autograd(_backward, setup_context=_keep)
