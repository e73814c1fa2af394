"""JAX: one compiled expression, traced and sharded arrays, memory that is never written to."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.core import trace_state_clean  # no public name; a test pins what it does
from jax.sharding import NamedSharding, PartitionSpec

from xent_array._backends import backend_of
from xent_array._backends._standard import Memory, Standard
from xent_array._namespace import Array

_FEW = 24


class Backend(Standard):
    engine = "portable array code, compiled by XLA"
    maps_rows = True

    def device(self, x: Array) -> Any:
        return None  # arrays are made where what they meet lies

    def memory(self, x: Array) -> Memory:
        # Where something is traced, so is whatever is computed of concrete arrays.
        traced = isinstance(x, jax.core.Tracer) or not trace_state_clean()
        if traced or len(x.devices()) > 1:
            return "opaque"
        return "host" if next(iter(x.devices())).platform == "cpu" else "device"

    def cut_as(self, x: Array) -> Memory:
        # XLA for the CPU stores every step on the way to a sum, unless few rows are taken at a
        # time. Elsewhere it does not, and rows may lie on several devices.
        alone = jax.default_backend() == "cpu" and jax.device_count() == 1
        return "host" if alone else "opaque"

    def evaluator(self, x: Array) -> Standard:
        # NumPy's arithmetic is no quicker than XLA's; the kernels that read its arrays are.
        numpy = _numpy()
        reads = _calls_back() and self.cut_as(x) == "host"
        return numpy if reads and numpy.kernels(numpy.xp.empty(0)) is not None else self

    def lent(self, x: Array) -> Array:
        """An array that stands for XLA's buffer, whose memory is there when the call is run."""
        return np.broadcast_to(np.zeros((), x.dtype), x.shape)

    def why_no_kernels(self, x: Array) -> str | None:
        if self.cut_as(x) != "host":
            return None
        missing = None if _calls_back() else "this JAX has no buffer_callback"
        return missing or _numpy().why_no_kernels(x)

    def differentiates(self, *arrays: Array) -> bool:
        return True  # any trace may be, now or later

    def is_floating(self, dtype: Any) -> bool:
        return _is_a_number(dtype) and super().is_floating(dtype) and self.itemsize(dtype) > 1

    def is_integer(self, dtype: Any) -> bool:
        return _is_a_number(dtype) and super().is_integer(dtype)

    def is_boolean(self, dtype: Any) -> bool:
        return _is_a_number(dtype) and super().is_boolean(dtype)

    def unwritable(self, x: Array) -> str | None:
        return "JAX arrays are immutable"

    def map_rows(self, function: Callable[[Any], Any], rows: Any, size: int) -> Any:
        length = rows[0].shape[0]

        def cut(start: Array) -> Any:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), rows)

        def step(i: Array, results: Any) -> Any:
            # The last block takes some rows once more: all have one size.
            start = jnp.minimum(i * size, length - size)
            parts = function(cut(start))
            return jax.tree.map(
                lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, start, 0),
                results,
                parts,
            )

        parts = jax.eval_shape(lambda: function(cut(0)))
        room = jax.tree.map(lambda x: jax.lax.empty((length, *x.shape[1:]), x.dtype), parts)
        return jax.lax.fori_loop(0, -(-length // size), step, room)

    def affine(self, x: Array, weight: Array, bias: Array | None, room: Array | None) -> Array:
        dtype = self.compute_dtype(x.dtype)  # halves are multiplied as they are, and summed in it
        product = jnp.matmul(x, weight.T, preferred_element_type=dtype)
        return product if bias is None else product + jnp.astype(bias, product.dtype)[None, :]

    def dtype(self, dtype: Any) -> Any:
        chosen = jnp.dtype(dtype)
        if jax.dtypes.canonicalize_dtype(chosen) != chosen:
            raise TypeError(f"{chosen} needs 64-bit numbers, which jax_enable_x64 switches on")
        return chosen

    def row_max_with_nan(self, top: Array, x: Array) -> Array:
        # XLA for the CPU loses NaNs of a maximum that it takes in vectors.
        return jnp.where(jnp.any(jnp.isnan(x), axis=-1, keepdims=True), jnp.nan, top)

    def row_sum(self, x: Array) -> Array:
        total = jnp.sum(x, axis=-1, keepdims=True)  # XLA sums as a tree
        return _kept_apart(total) if are_few(x.shape[-1]) else total

    def row_sums_by_size(self, shifted: Array, exps: Array) -> tuple[Array, Array]:
        if not are_few(shifted.shape[-1]) or self.cut_as(shifted) != "host":
            return super().row_sums_by_size(shifted, exps)
        high, nothing = exps > 0.5, np.zeros((), exps.dtype)
        pairs = jnp.where(high, exps, nothing), jnp.where(high, nothing, exps)
        sums = jax.lax.reduce(pairs, (nothing, nothing), _added, (exps.ndim - 1,))
        return sums[0][..., None], sums[1][..., None]

    def total(self, x: Array) -> Array:
        return jnp.sum(_kept_apart(x))

    def gather(self, x: Array, index: Array) -> Array:
        if not _explicit(x):
            return super().gather(x, index)
        found = self.class_range(x) == index
        return jnp.sum(jnp.where(found, x, jnp.zeros_like(x)), axis=-1, keepdims=True)

    def of_classes(self, x: Array, like: Array) -> Array:
        # JAX may be told to promote no ranks.
        return jnp.expand_dims(x, tuple(range(like.ndim - 1)))

    def class_range(self, x: Array) -> Array:
        if not _explicit(x):
            return self.of_classes(super().class_range(x), x)
        sharding = jax.typeof(x).sharding
        place = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[-1]))
        numbers = jnp.arange(x.shape[-1], dtype=self.index_dtype(x), out_sharding=place)
        return self.of_classes(numbers, x)

    def within(self, index: Array, length: int) -> bool:
        host = np.asarray(index)  # a view: only host memory is looked at in passing
        return bool(host.min() >= 0) and bool(host.max() < length)

    def take(self, x: Array, index: Array) -> Array:
        if not _explicit(index):
            return x[index]
        return x.at[index].get(out_sharding=jax.typeof(index).sharding)


def are_few(classes: int) -> bool:
    """Whether XLA for the CPU sums classes as pairs without storing them; of a symbol it is not."""
    return isinstance(classes, int) and classes <= _FEW


def _kept_apart(x: Array) -> Array:
    """The same numbers, by a choice that XLA for the CPU does not take into a sum.

    It has a library do its sums, and with them the logarithms before and after, which that takes
    one by one on one thread.
    """
    if jax.default_backend() != "cpu":
        return x
    always = jax.lax.optimization_barrier(np.True_)  # to XLA it might be False
    return jax.lax.select(always, x, jnp.full_like(x, jnp.nan))


def _added(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    return a[0] + b[0], a[1] + b[1]


@functools.cache
def _calls_back() -> bool:
    """Whether compiled programs can call back: an experiment of JAX's, which may end."""
    return importlib.util.find_spec("jax.experimental.buffer_callback") is not None


@functools.cache
def _numpy() -> Standard:
    """What answers for NumPy's arrays."""
    return backend_of("x", np.empty(0))


def _is_a_number(dtype: Any) -> bool:
    """Whether a dtype is one of the standard's, and not that of random keys."""
    return not jnp.issubdtype(dtype, jax.dtypes.extended)


def _explicit(x: Array) -> bool:
    """Whether the type of an array says how it is sharded, which a gather cannot follow."""
    mesh = jax.typeof(x).sharding.mesh
    return not mesh.empty and mesh._any_axis_explicit
