"""On JAX arrays, compiled by it: xent_array and optax."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from optax import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels

import xent_array

from peers import Call, Peer, Prepare, both_engines, hard, soft


def by_optax(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Average the losses of optax."""
    return softmax_cross_entropy_with_integer_labels(logits, target, axis=1).mean()


def softly_by_optax(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The same of probabilities."""
    return softmax_cross_entropy(logits, target, axis=1).mean()


def jitted(function: Callable[..., object]) -> Prepare:
    """Call a function compiled, and wait for it."""

    def prepare(logits: np.ndarray, target: np.ndarray) -> Call:
        jax.config.update("jax_enable_x64", logits.dtype == np.float64)
        narrow = target.astype(np.int32) if target.dtype == np.int64 else target
        arrays = jnp.asarray(logits), jnp.asarray(narrow)
        # A function of its own: JAX keeps what it traced of one, whatever the engine was then.
        program = jax.jit(functools.partial(function))
        return lambda: jax.block_until_ready(program(*arrays))

    return prepare


def both_passes(loss_of: Callable[..., jax.Array]) -> tuple[Prepare, Prepare]:
    """A loss, and what JAX makes of it for the gradient."""
    return jitted(loss_of), jitted(jax.value_and_grad(loss_of))


PEERS = [
    *both_engines("JAX", *both_passes(xent_array.cross_entropy), most=2e8, compiled=True),
    Peer("JAX: optax", *both_passes(by_optax), hard, compiled=True),
    Peer("JAX: optax", *both_passes(softly_by_optax), soft, compiled=True),
]
