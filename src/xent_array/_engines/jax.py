"""JAX: the loss compiled as one expression, and its derivative by the logits in closed form.

Three functions of a call's arrays, each the derivative of the one before: the loss, the gradient by
the logits, and what JAX derives of the array code. The first two are quick and know nothing of
derivatives; the rule of each names the next. Kernels evaluate them where they can: `_jax_buffers`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from xent_array import _evaluate
from xent_array._backends import Memory
from xent_array._backends.jax import are_few
from xent_array._batch import Arrays, Batch, apart, arrays_of, laid_out, together
from xent_array._engines._jax_buffers import evaluate_in_buffers, lent
from xent_array._engines._jax_falls import falls_along, plain_falls
from xent_array._evaluate import Result
from xent_array._namespace import Array
from xent_array._normalized import changed
from xent_array._rows import classes_back, classes_last
from xent_array._rowwise import rows_of
from xent_array._wanted import NoTarget, ProbabilityTarget

#: Array code for the arrays of a call.
Code = Callable[[Batch, Arrays], Result]


def value(batch: Batch) -> Result:
    """Evaluate the loss: one compiled expression, inside another where the caller compiles."""
    result: Result = _compiled_loss(*_call_and_arrays(batch))
    return result


def value_and_grad(batch: Batch) -> Result:
    """Evaluate the loss and its gradient by the logits, constants to whatever differentiates."""
    call, arrays = _call_and_arrays(batch)
    result: Result = _compiled_loss_and_grad(call, jax.tree.map(jax.lax.stop_gradient, arrays))
    return result


def probabilities(batch: Batch) -> Array:
    """Evaluate the softmax of a batch without a target, or its logarithm."""
    found: Array = _compiled_probabilities(*_call_and_arrays(batch))
    return found


def _call_and_arrays(batch: Batch) -> tuple[Batch, Arrays]:
    """What an expression is compiled for, and the arrays it is evaluated on.

    What these hold was looked at when the batch was gathered, and is not looked at again.
    """
    memory, served = _read_as(batch)
    call, arrays = apart(batch._replace(memory=memory), jax.Array)
    return call._replace(lent=lent(batch) if served else None), arrays


def _read_as(batch: Batch) -> tuple[Memory, bool]:
    """By the budget of which memory rows are cut into blocks, and whether kernels may read them.

    "opaque": they are taken whole. So are those whose classes do not lie along the last axis, which
    a loop would have copied.
    """
    plain, last = _is_plain(batch), batch.axis == batch.logits.ndim - 1
    memory = batch.backend.cut_as(batch.logits) if plain and last else "opaque"
    if memory == "host" and are_few(batch.classes):
        return _few_read_as(batch)
    return memory, plain


def _few_read_as(batch: Batch) -> tuple[Memory, bool]:
    """The same of few classes, for which XLA is quicker than kernels, and than loops.

    But what it stores of every class it is to store of a block: what is weighed to be summed, and
    logits that are widened. It widens all of them before a loop, and kernels take those.
    """
    widened = batch.logits.dtype != batch.compute_dtype
    weighed = isinstance(batch.target, ProbabilityTarget) or batch.target.q.is_smooth
    if not (widened or weighed):
        return "opaque", False
    blocks = _evaluate.plan_of(batch._replace(memory="device", differentiable=False))
    return "device", bool(widened) and not blocks.whole


def _is_plain(batch: Batch) -> bool:
    """Whether loops, kernels and primitives may take rows: no mesh, and no symbol for a length."""
    meshes = [jax.typeof(x).sharding.mesh for x in arrays_of(batch) if isinstance(x, jax.Array)]
    on_none = all(mesh.empty for mesh in (jax.sharding.get_abstract_mesh(), *meshes))
    return on_none and isinstance(batch.logits.size, int)


def _evaluated(call: Batch, arrays: Arrays, code: Code, derivable: Code) -> Result:
    """Evaluate array code; where kernels serve, by them, and by other code what JAX derives."""
    if call.lent is None:
        return code(call, arrays)
    codes = (functools.partial(function, call) for function in (code, derivable))
    return evaluate_in_buffers(call.lent, arrays, *codes)


def _constant_value(call: Batch, arrays: Arrays) -> Result:
    return _evaluate.value(_constant(call, arrays))


def _constant_value_and_grad(call: Batch, arrays: Arrays) -> Result:
    return _evaluate.value_and_grad(_constant(call, arrays))


def _constant(call: Batch, arrays: Arrays) -> Batch:
    """The batch for code that nobody differentiates."""
    return together(call, arrays)._replace(differentiable=False)


def _value(call: Batch, arrays: Arrays) -> Result:
    return _evaluate.value(together(call, arrays))


def _wide_value_and_grad(call: Batch, arrays: Arrays) -> Result:
    """Loss and gradient as JAX derives them, in the compute dtype."""

    def total(logits: Array) -> tuple[Array, Array]:
        loss = _value(call, arrays._replace(logits=logits)).loss
        return jnp.sum(loss), loss

    grad, loss = jax.grad(total, has_aux=True)(_wide(call, arrays).logits)
    return Result(loss, grad, None)


def _wide(call: Batch, arrays: Arrays) -> Arrays:
    """The arrays for a gradient in the compute dtype: a half one is rounded after it is scaled."""
    return arrays._replace(logits=jnp.astype(arrays.logits, call.compute_dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(call: Batch, arrays: Arrays) -> Result:
    return _evaluated(call, arrays, _constant_value, _value)


@functools.partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(call: Batch, primals: Any, tangents: Any) -> Any:
    """The loss falls along its gradient; what else is differentiated, JAX derives."""
    (arrays,), (directions,) = primals, tangents
    others = [x for x in directions[1:] if x is not None]
    if call.return_stats or not all(isinstance(x, SymbolicZero) for x in others):
        return derived(functools.partial(_value, call), primals, tangents)
    loss, grad, _ = _loss_and_grad(call, arrays)
    direction = jnp.astype(directions.logits, grad.dtype)
    slope = _slope(together(call, arrays), grad, direction)
    if call.reduction != "none":
        slope = jnp.sum(slope)
    return Result(loss, None, None), Result(jnp.astype(slope, loss.dtype), None, None)


def _slope(batch: Batch, grad: Array, direction: Array) -> Array:
    """How far each row's loss falls; 0 in those that do not count, wherever they are moved to."""
    kept = rows_of(laid_out(batch), (...,)).kept
    if kept is None:
        return jnp.sum(grad * direction, axis=batch.axis)
    falls = falls_along if _is_plain(batch) else plain_falls
    return falls(direction, grad, kept[..., 0], axis=batch.axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss_and_grad(call: Batch, arrays: Arrays) -> Result:
    def code(call: Batch, arrays: Arrays) -> Result:
        return _constant_value_and_grad(call, _wide(call, arrays))

    return _evaluated(call, arrays, code, _wide_value_and_grad)


@_loss_and_grad.defjvp
def _loss_and_grad_jvp(call: Batch, primals: Any, tangents: Any) -> Any:
    return derived(functools.partial(_wide_value_and_grad, call), primals, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _probabilities(call: Batch, arrays: Arrays) -> Array:
    return _evaluated(call, arrays, _constant_value_and_grad, _derivable_probabilities).grad_logits


def _derivable_probabilities(call: Batch, arrays: Arrays) -> Result:
    """With the losses, as `value_and_grad` has them, but no constants."""
    batch = together(call, arrays)
    return Result(_evaluate.value(batch).loss, _evaluate.probabilities(batch), None)


@_probabilities.defjvp
def _probabilities_jvp(call: Batch, primals: Any, tangents: Any) -> Any:
    """How they change follows from their values: see `_normalized`."""
    (arrays,), (directions,) = primals, tangents
    found = _probabilities(call, _wide(call, arrays))
    assert isinstance(call.target, NoTarget)
    logarithm = call.target.logarithm
    p = jnp.exp(found) if logarithm else found
    backend, axis, d = call.backend, call.axis, jnp.astype(directions.logits, p.dtype)
    change = changed(backend, classes_last(backend, p, axis), classes_last(backend, d, axis))
    change = classes_back(backend, change, axis)
    dtype = arrays.logits.dtype
    return jnp.astype(found, dtype), jnp.astype(change if logarithm else p * change, dtype)


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
    return _evaluated(call, arrays, _constant_value_and_grad, _constant_value_and_grad)


@functools.partial(jax.jit, static_argnums=0)
def _compiled_probabilities(call: Batch, arrays: Arrays) -> Array:
    return _probabilities(call, arrays)
