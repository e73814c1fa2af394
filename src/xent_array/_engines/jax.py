"""JAX: the loss compiled as one expression, and its derivative by the logits in closed form.

Three functions of a call's arrays, each the derivative of the one before: the loss, the gradient by
the logits, and what JAX derives of the array code. The first two are quick and know nothing of
derivatives; the rule of each names the next.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from xent_array._batch import Batch, laid_out
from xent_array._evaluate import Result, value, value_and_grad
from xent_array._namespace import Array
from xent_array._rows import classes_back
from xent_array._rowwise import rows_of

#: Takes the place of an array among what is fixed when an expression is compiled.
_ARRAY = object()


class _Call(NamedTuple):
    """A batch without its arrays: what an expression is compiled for. It can be hashed."""

    form: Any
    leaves: tuple[Any, ...]

    def batch(self, arrays: list[Array], *, differentiable: bool) -> Batch:
        """Put the arrays into their places."""
        logits, *others = arrays
        given = iter(others)
        leaves = [next(given) if leaf is _ARRAY else leaf for leaf in self.leaves]
        batch: Batch = jax.tree.unflatten(self.form, leaves)
        return batch._replace(logits=logits, differentiable=differentiable)


def evaluate_jax(batch: Batch) -> Result:
    """Evaluate the loss: one compiled expression, inside another where the caller compiles."""
    result: Result = _compiled_loss(*_taken_apart(batch))
    return result


def evaluate_jax_with_grad(batch: Batch) -> Result:
    """Evaluate the loss and its gradient by the logits, constants to whatever differentiates."""
    call, arrays = _taken_apart(batch)
    constants = [jax.lax.stop_gradient(x) for x in arrays]
    result: Result = _compiled_loss_and_grad(call, constants)
    return result


def _taken_apart(batch: Batch) -> tuple[_Call, list[Array]]:
    """The arrays of a batch, the logits first, and all the rest.

    What they hold was looked at when the batch was gathered, and is not looked at again.
    """
    logits = batch.logits
    # XLA for the CPU stores every step on the way to a sum, unless few rows are taken at a time.
    # Elsewhere it does not, and rows may lie on several devices.
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    unsharded = jax.typeof(logits).sharding.mesh.empty
    cut = alone and unsharded and batch.axis == logits.ndim - 1
    leaves, form = jax.tree.flatten(batch._replace(memory="host" if cut else "opaque", logits=None))
    fixed = tuple(_ARRAY if isinstance(x, jax.Array) else x for x in leaves)
    return _Call(form, fixed), [logits, *(x for x in leaves if isinstance(x, jax.Array))]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(call: _Call, arrays: list[Array]) -> Result:
    return value(call.batch(arrays, differentiable=False))


@functools.partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(call: _Call, primals: Any, tangents: Any) -> Any:
    """The loss falls along its gradient; what else is differentiated, JAX derives."""
    (arrays,), ((direction, *others),) = primals, tangents
    closed = all(isinstance(x, SymbolicZero) for x in others)
    if not closed or call.batch(arrays, differentiable=True).return_stats:
        return _derived(lambda x: value(call.batch(x, differentiable=True)), primals, tangents)
    # In the compute dtype: what scales a half gradient must come before it is rounded.
    batch = call.batch(arrays, differentiable=True)
    logits = jnp.astype(arrays[0], batch.compute_dtype)
    loss, grad = _loss_and_grad(call, [logits, *arrays[1:]])
    along = grad * _counted(batch, jnp.astype(direction, batch.compute_dtype))
    slope = jnp.sum(along, axis=batch.axis if batch.reduction == "none" else None)
    return Result(loss, None, None), Result(jnp.astype(slope, loss.dtype), None, None)


def _counted(batch: Batch, direction: Array) -> Array:
    """A direction of the logits, 0 in the rows that do not count, whatever it holds there."""
    kept = rows_of(laid_out(batch), (...,)).kept
    if kept is None:
        return direction
    kept = jnp.broadcast_to(classes_back(batch.backend, kept, batch.axis), direction.shape)
    return jnp.where(kept, direction, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss_and_grad(call: _Call, arrays: list[Array]) -> tuple[Array, Array]:
    result = value_and_grad(call.batch(arrays, differentiable=False))
    return result.loss, result.grad_logits


@_loss_and_grad.defjvp
def _loss_and_grad_jvp(call: _Call, primals: Any, tangents: Any) -> Any:
    def derived(arrays: list[Array]) -> tuple[Array, Array]:
        def total(logits: Array) -> tuple[Array, Array]:
            loss = value(call.batch([logits, *arrays[1:]], differentiable=True)).loss
            return jnp.sum(loss), loss

        grad, loss = jax.grad(total, has_aux=True)(arrays[0])
        return loss, grad

    return _derived(derived, primals, tangents)


def _derived(function: Any, primals: Any, tangents: Any) -> Any:
    """The derivative along `tangents`, as JAX makes it of the array code."""
    (arrays,), (directions,) = primals, tangents
    return jax.jvp(function, (arrays,), (list(map(_instantiated, arrays, directions)),))


def _instantiated(x: Array, direction: Any) -> Any:
    if not isinstance(direction, SymbolicZero):
        return direction
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_loss(call: _Call, arrays: list[Array]) -> Result:
    return _loss(call, arrays)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_loss_and_grad(call: _Call, arrays: list[Array]) -> Result:
    return value_and_grad(call.batch(arrays, differentiable=False))
