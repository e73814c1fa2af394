"""How far losses fall where logits move in a direction: a primitive with its own transpose.

A row's loss falls by the sum of grad·direction over its classes, and rows that do not count have no
loss to fall, wherever they are moved to. Backwards, JAX would have each row of the gradient
multiplied by what comes from above, or by 0 in rows that do not count. But the gradient is 0 there
already, and stays so times whatever is finite: only what is not must be masked. So XLA, which knows
of a factor of 1, has no pass over the gradient left to make.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from xent_array._namespace import Array


def falls_along(direction: Array, grad: Array, kept: Array, *, axis: int) -> Array:
    """How far the loss of each row falls; 0 in rows that are not kept, whose gradient is 0."""
    found: Array = _falls.bind(direction, grad, kept, axis=axis)
    return found


def plain_falls(direction: Array, grad: Array, kept: Array, *, axis: int) -> Array:
    """The same, with the transpose that JAX makes of it."""
    return jnp.where(kept, jnp.sum(grad * direction, axis=axis), 0.0)


def _result(_: Any, grad: Any, kept: Any, **__: Any) -> Any:
    return jax.core.ShapedArray(kept.shape, grad.dtype)


def _derived(given: Sequence[Array], changes: Any, *, axis: int) -> Any:
    (direction, grad, kept), (of_direction, of_grad, _) = given, changes
    found = []
    if type(of_direction) is not ad.Zero:
        found.append(falls_along(of_direction, grad, kept, axis=axis))
    if type(of_grad) is not ad.Zero:
        found.append(plain_falls(direction, of_grad, kept, axis=axis))
    return falls_along(direction, grad, kept, axis=axis), sum(found[1:], found[0])


def _transposed(upstream: Any, _: Any, grad: Array, kept: Array, *, axis: int) -> list[Any]:
    if type(upstream) is ad.Zero:
        return [None, None, None]
    factor = jnp.where(kept | jnp.isfinite(upstream), upstream, 0.0)
    return [grad * jnp.expand_dims(factor, axis), None, None]


def _many(given: Sequence[Array], axes: Any, *, axis: int) -> Any:
    return jax.vmap(functools.partial(plain_falls, axis=axis), in_axes=axes)(*given), 0


_falls = Primitive("xent_array_falls")
_falls.def_impl(plain_falls)
_falls.def_abstract_eval(_result)
mlir.register_lowering(_falls, mlir.lower_fun(plain_falls, multiple_results=False))
ad.primitive_jvps[_falls] = _derived
ad.primitive_transposes[_falls] = _transposed
batching.primitive_batchers[_falls] = _many
