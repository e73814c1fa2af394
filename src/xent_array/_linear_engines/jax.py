"""JAX: loops of XLA's own over tiles, and the derivatives of a sum over rows in closed form.

Where a summed loss is differentiated by what its logits are made of, its gradients are formed in
the loop that makes the logits: three matrix products. For whatever else JAX derives,
`jax.checkpoint` has a tile's logits made again. Either way there is one tile at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from xent_array import _engines
from xent_array._batch import Arrays, Batch, apart, together
from xent_array._engines.jax import derived
from xent_array._evaluate import Result
from xent_array._gradient import times_upstream
from xent_array._linear_engines import at_once
from xent_array._namespace import Array
from xent_array._projected import Parts, Projected, flattened
from xent_array._tiles import (
    Columns,
    assembled,
    columns_of,
    counts_of,
    evaluate_columns,
    tile_of_columns,
    tiles,
)


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
    call = jax.tree.map(
        lambda x: jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x,
        call,
        is_leaf=lambda x: not isinstance(x, tuple) or isinstance(x, jax.Array),
    )
    upstream = call.grad_output

    def loss_of(parts: Parts) -> tuple[Array, Result]:
        result = value(Projected(call.batch, parts))
        return result.loss, result

    loss, pull, result = jax.vjp(loss_of, call.parts, has_aux=True)
    factor = jnp.ones_like(loss) if upstream is None else jnp.astype(upstream, loss.dtype)
    (grads,) = pull(jnp.broadcast_to(factor, loss.shape))
    return result, grads


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(bare: Batch, shape: tuple[int, ...], arrays: Arrays, parts: Parts) -> Result:
    batch = together(bare, arrays)
    if batch.reduction == "none" or batch.return_stats:
        loss, _, stats = _of_all_tiles(batch, parts)
        loss = loss if batch.reduction == "none" else jnp.sum(loss)
    else:
        loss, stats = _total(bare, arrays, parts), None
    return assembled(batch, shape, loss, stats or (), counts_of(batch))


def _of_all_tiles(batch: Batch, parts: Parts) -> Result:
    """The losses of all rows, or of each tile, and statistics where asked for."""

    def step(_: None, columns: Columns) -> tuple[None, Result]:
        return None, jax.tree.map(jnp.atleast_1d, evaluate_columns(batch, parts, columns))

    results: Result = _over_tiles(step, None, batch, parts)[1]
    return results


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _total(bare: Batch, arrays: Arrays, parts: Parts) -> Array:
    """The losses of all rows, added up."""
    return _sum(together(bare, arrays), parts)


def _sum(batch: Batch, parts: Parts) -> Array:
    return jnp.sum(_of_all_tiles(batch, parts).loss)


@functools.partial(_total.defjvp, symbolic_zeros=True)
def _total_jvp(bare: Batch, primals: Any, tangents: Any) -> Any:
    """The sum falls along its gradients; what else is differentiated, JAX derives."""
    (arrays, parts), (others, directions) = primals, tangents
    if not all(isinstance(x, SymbolicZero) for x in jax.tree.leaves(others)):
        return derived(lambda x, parts: _sum(together(bare, x), parts), primals, tangents)
    wanted = Parts(*(x is not None and not isinstance(x, SymbolicZero) for x in directions))
    total, grads = _total_and_grads(together(bare, arrays), parts, wanted)
    along = (
        jnp.sum(times_upstream(jnp, grad, jnp.astype(direction, grad.dtype)))
        for grad, direction, want in zip(grads, directions, wanted, strict=True)
        if want
    )
    return total, sum(along, jnp.zeros_like(total))


def _total_and_grads(batch: Batch, parts: Parts, wanted: Parts) -> tuple[Array, Parts]:
    """The sum over rows and its gradients that are wanted, in the compute dtype."""
    dtype = batch.compute_dtype
    product = functools.partial(jnp.matmul, preferred_element_type=dtype)

    def step(sums: Parts, columns: Columns) -> tuple[Parts, tuple[Array, Array | None]]:
        here = tile_of_columns(batch, parts, columns)

        def loss_of(logits: Array) -> Array:
            return _engines.evaluate(here._replace(logits=logits)).loss

        loss, pull = jax.vjp(loss_of, here.logits)
        (g,) = pull(jnp.ones_like(loss))
        _, by_weight, by_bias = sums
        if by_weight is not None:
            by_weight = by_weight + product(g.T, columns.features)
        if by_bias is not None:
            by_bias = by_bias + jnp.sum(g, axis=0, dtype=dtype)
        by_features = product(g, parts.linear_weight) if wanted.features else None
        return Parts(None, by_weight, by_bias), (jnp.atleast_1d(loss), by_features)

    zeros = (
        jnp.zeros(x.shape, dtype) if want else None
        for x, want in zip(parts[1:], wanted[1:], strict=True)
    )
    sums, (losses, by_features) = _over_tiles(step, Parts(None, *zeros), batch, parts)
    return jnp.sum(losses), sums._replace(features=by_features)


def _over_tiles(step: Callable[[Any, Columns], Any], start: Any, batch: Batch, parts: Parts) -> Any:
    """Take a step over each tile: those of one size by a loop of XLA's, then what is left over.

    A step hands a state on, and returns arrays whose rows come together.
    """
    columns, (first, *others), (rows,) = columns_of(batch, parts), tiles(batch), batch.shape
    if not others:
        return step(start, columns)
    size, count = first.stop, rows // first.stop

    def equal(x: Array) -> Array:
        return jnp.reshape(x[: count * size], (count, size, *x.shape[1:]))

    state, results = jax.lax.scan(jax.checkpoint(step), start, jax.tree.map(equal, columns))
    results = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), results)
    if count * size == rows:
        return state, results
    state, last = step(state, jax.tree.map(lambda x: x[count * size :], columns))
    return state, jax.tree.map(lambda a, b: jnp.concat([a, b]), results, last)
