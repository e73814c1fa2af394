"""JAX: the loss compiled as one expression, and its derivative by the logits in closed form.

Three functions of a call's arrays, each the derivative of the one before: the loss, the gradient by
the logits, and what JAX derives of the array code. The first two are quick and know nothing of
derivatives; the rule of each names the next.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from xent_array import _evaluate
from xent_array._batch import Arrays, Batch, apart, laid_out, together
from xent_array._evaluate import Result
from xent_array._namespace import Array
from xent_array._rows import classes_back
from xent_array._rowwise import rows_of


def value(batch: Batch) -> Result:
    """Evaluate the loss: one compiled expression, inside another where the caller compiles."""
    result: Result = _compiled_loss(*_call_and_arrays(batch))
    return result


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its gradient by the logits, constants to whatever differentiates."""
    call, arrays = _call_and_arrays(batch)
    result: Result = _compiled_loss_and_grad(call, jax.tree.map(jax.lax.stop_gradient, arrays))
    return result


def _call_and_arrays(batch: Batch) -> tuple[Batch, Arrays]:
    """What an expression is compiled for, and the arrays it is evaluated on.

    What these hold was looked at when the batch was gathered, and is not looked at again.
    """
    rows = batch.axis == batch.logits.ndim - 1  # others would be copied, to lie along one axis
    memory = batch.backend.cut_as(batch.logits) if rows else "opaque"
    return apart(batch._replace(memory=memory), jax.Array)


def _constant(call: Batch, arrays: Arrays) -> Batch:
    """The batch for code that nobody differentiates."""
    return together(call, arrays)._replace(differentiable=False)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(call: Batch, arrays: Arrays) -> Result:
    return _evaluate.value(_constant(call, arrays))


@functools.partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(call: Batch, primals: Any, tangents: Any) -> Any:
    """The loss falls along its gradient; what else is differentiated, JAX derives."""
    (arrays,), (directions,) = primals, tangents
    others = [x for x in directions[1:] if x is not None]
    if call.return_stats or not all(isinstance(x, SymbolicZero) for x in others):
        return derived(lambda x: _evaluate.value(together(call, x)), primals, tangents)
    # In the compute dtype: what scales a half gradient must come before it is rounded.
    dtype = call.compute_dtype
    loss, grad = _loss_and_grad(call, arrays._replace(logits=jnp.astype(arrays.logits, dtype)))
    direction = jnp.astype(directions.logits, dtype)
    along = grad * _counted(together(call, arrays), direction)
    slope = jnp.sum(along, axis=call.axis if call.reduction == "none" else None)
    return Result(loss, None, None), Result(jnp.astype(slope, loss.dtype), None, None)


def _counted(batch: Batch, direction: Array) -> Array:
    """A direction of the logits, 0 in the rows that do not count, whatever it holds there."""
    kept = rows_of(laid_out(batch), (...,)).kept
    if kept is None:
        return direction
    kept = jnp.broadcast_to(classes_back(batch.backend, kept, batch.axis), direction.shape)
    return jnp.where(kept, direction, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss_and_grad(call: Batch, arrays: Arrays) -> tuple[Array, Array]:
    result = _evaluate.value_and_grad(_constant(call, arrays))
    return result.loss, result.grad_logits


@_loss_and_grad.defjvp
def _loss_and_grad_jvp(call: Batch, primals: Any, tangents: Any) -> Any:
    def loss_and_grad(arrays: Arrays) -> tuple[Array, Array]:
        def total(logits: Array) -> tuple[Array, Array]:
            loss = _evaluate.value(together(call, arrays._replace(logits=logits))).loss
            return jnp.sum(loss), loss

        grad, loss = jax.grad(total, has_aux=True)(arrays.logits)
        return loss, grad

    return derived(loss_and_grad, primals, tangents)


def derived(function: Any, primals: Any, tangents: Any) -> Any:
    """A function's value and its derivative along tangents, as JAX makes it of array code."""
    return jax.jvp(function, primals, jax.tree.map(_instantiated, primals, tangents))


def _instantiated(x: Array, direction: Any) -> Any:
    if not isinstance(direction, SymbolicZero):
        return direction
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_loss(call: Batch, arrays: Arrays) -> Result:
    return _loss(call, arrays)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_loss_and_grad(call: Batch, arrays: Arrays) -> Result:
    return _evaluate.value_and_grad(_constant(call, arrays))
