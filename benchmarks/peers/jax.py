"""On JAX arrays, compiled by it: xent_array and optax."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from optax import softmax_cross_entropy_with_integer_labels

import xent_array

from peers import Call, Peer, Prepare


def by_optax(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Average the losses of optax."""
    return softmax_cross_entropy_with_integer_labels(logits, target, axis=1).mean()


def jitted(function: Callable[..., object]) -> Prepare:
    """Call a function compiled, and wait for it."""

    def prepare(logits: np.ndarray, target: np.ndarray) -> Call:
        jax.config.update("jax_enable_x64", logits.dtype == np.float64)
        arrays = jnp.asarray(logits), jnp.asarray(target.astype(np.int32))
        program = jax.jit(function)
        return lambda: jax.block_until_ready(program(*arrays))

    return prepare


def peer(name: str, loss_of: Callable[..., jax.Array]) -> Peer:
    """Name a loss, and have JAX differentiate it."""
    return Peer(name, jitted(loss_of), jitted(jax.value_and_grad(loss_of)), compiled=True)


PEERS = [peer("JAX: xent_array", xent_array.cross_entropy), peer("JAX: optax", by_optax)]
