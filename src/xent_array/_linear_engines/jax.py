"""JAX: a loop of XLA's own over tiles, which keeps their features and makes their logits again.

Whatever JAX derives of a loss holds one tile of logits at a time: `jax.checkpoint` has each tile
computed anew where a derivative wants it, for one matrix product more.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from xent_array._batch import Arrays, Batch, apart, together
from xent_array._evaluate import Result
from xent_array._linear_engines import at_once
from xent_array._namespace import Array
from xent_array._projected import Parts, Projected, flattened
from xent_array._tiles import assembled, columns_of, counts_of, evaluate_columns, tiles


def value(call: Projected) -> Result:
    """Evaluate the loss: one compiled expression, inside another where the caller compiles."""
    if not jax.typeof(call.parts.features).sharding.mesh.empty:
        return at_once.value(call)  # rows laid along one axis would be resharded
    shape, (batch, parts, *_) = call.batch.shape, flattened(call)
    # What the targets hold was looked at when the call was gathered, and is not looked at again.
    bare, arrays = apart(batch._replace(memory="opaque", grad_output=None), jax.Array)
    result: Result = _compiled(bare, shape, arrays, parts)
    return result


def value_and_grads(call: Projected) -> tuple[Result, Parts]:
    """Evaluate the loss and its gradients, constants to whatever differentiates."""
    batch, parts, upstream, _ = jax.tree.map(
        lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x,
        call,
        is_leaf=lambda x: not isinstance(x, tuple) or isinstance(x, jax.Array),
    )
    if batch.grad_output is not None:
        upstream = batch.grad_output[..., 0]

    def loss_of(parts: Parts) -> tuple[Array, Result]:
        result = value(Projected(batch, parts))
        return result.loss, result

    loss, pull, result = jax.vjp(loss_of, parts, has_aux=True)
    factor = jnp.ones_like(loss) if upstream is None else jnp.astype(upstream, loss.dtype)
    (grads,) = pull(jnp.broadcast_to(factor, loss.shape))
    return result, grads


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(bare: Batch, shape: tuple[int, ...], arrays: Arrays, parts: Parts) -> Result:
    batch = together(bare, arrays)
    loss, _, stats = _of_all_tiles(batch, parts)
    loss = loss if batch.reduction == "none" else jnp.sum(loss)
    return assembled(batch, shape, loss, stats or (), counts_of(batch))


def _of_all_tiles(batch: Batch, parts: Parts) -> Any:
    """The results of all rows: of tiles of one size by a loop, and of what is left over."""
    columns = columns_of(batch, parts)
    (first, *others), (rows,) = tiles(batch), batch.shape
    size = first.stop
    of_tile = functools.partial(evaluate_columns, batch, parts)
    if not others:
        return jax.tree.map(jnp.atleast_1d, of_tile(columns))
    count = rows // size

    def equal(x: Array) -> Array:
        return jnp.reshape(x[: count * size], (count, size, *x.shape[1:]))

    results = jax.lax.map(jax.checkpoint(of_tile), jax.tree.map(equal, columns))
    results = jax.tree.map(lambda x: jnp.reshape(x, (-1,)), results)
    if count * size == rows:
        return results
    last = of_tile(jax.tree.map(lambda x: x[count * size :], columns))
    return jax.tree.map(lambda a, b: jnp.concat([a, jnp.atleast_1d(b)]), results, last)
