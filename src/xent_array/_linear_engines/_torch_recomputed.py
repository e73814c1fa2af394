"""torch functions that keep their arguments alone, and are computed again wherever torch derives.

A derivative of such a function is one itself. So derivatives of every order, forward and backward,
batched or not, hold what one function holds while it runs: `torch.utils.checkpoint` for every mode.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any

import torch

#: A function of tensors, None in the place of some, that returns a tuple of tensors.
Function = Callable[..., tuple[torch.Tensor, ...]]


def recomputed(function: Function, *arguments: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Call a function, and keep nothing of what it computes on the way."""
    results: tuple[torch.Tensor, ...] = _Recomputed.apply(function, *arguments)  # type: ignore[no-untyped-call]
    return results


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(function: Function, *arguments: Any) -> tuple[torch.Tensor, ...]:
        return function(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.function, *arguments = inputs
        ctx.differentiable = tuple(x.is_floating_point() for x in output)
        ctx.mark_non_differentiable(*compress(output, map(operator.not_, ctx.differentiable)))
        ctx.results = [(x.shape, x.dtype) for x in compress(output, ctx.differentiable)]
        ctx.save_for_backward(*arguments)
        ctx.save_for_forward(*arguments)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        arguments, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        back = functools.partial(_backward, ctx.function, ctx.differentiable, wanted)
        grads = recomputed(back, *arguments, *compress(upstream, ctx.differentiable))
        return (None, *placed(wanted, grads))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        moving = tuple(x is not None for x in tangents)
        along = functools.partial(_forward, ctx.function, ctx.differentiable, moving, ctx.results)
        slopes = recomputed(along, *ctx.saved_tensors, *compress(tangents, moving))
        return placed(ctx.differentiable, slopes)


def _backward(
    function: Function, differentiable: tuple[bool, ...], wanted: tuple[bool, ...], *given: Any
) -> tuple[torch.Tensor, ...]:
    """The derivatives by `wanted` arguments. Given are those, then derivatives by the results."""
    arguments, upstream = given[: len(wanted)], given[len(wanted) :]

    def of_wanted(*some: torch.Tensor) -> tuple[torch.Tensor, ...]:
        moved = placed(wanted, some)
        every = (a if b is None else b for a, b in zip(arguments, moved, strict=True))
        return tuple(compress(function(*every), differentiable))

    pull: Any = torch.func.vjp(of_wanted, *compress(arguments, wanted))[1]
    grads: tuple[torch.Tensor, ...] = pull(upstream)
    return grads


def _forward(
    function: Function,
    differentiable: tuple[bool, ...],
    moving: tuple[bool, ...],
    results: list[tuple[torch.Size, torch.dtype]],
    *given: Any,
) -> tuple[torch.Tensor, ...]:
    """The derivatives of `results`, of these shapes and dtypes, along tangents of what is `moving`.

    Backward is linear in what it is given, and its transpose is forward. torch.func.jvp would not
    do: it cannot be called within `torch.autograd.forward_ad`.
    """
    arguments, tangents = given[: len(moving)], given[len(moving) :]
    zeros = [tangents[0].new_zeros(shape, dtype=dtype) for shape, dtype in results]
    back = functools.partial(_backward, function, differentiable, moving, *arguments)
    transposed: Any = torch.func.vjp(back, *zeros)[1]
    slopes: tuple[torch.Tensor, ...] = transposed(tangents)
    return slopes


def placed(flags: Iterable[bool], items: Iterable[Any]) -> tuple[Any, ...]:
    """The items where the flags are set, None elsewhere."""
    some = iter(items)
    return tuple(next(some) if flag else None for flag in flags)
