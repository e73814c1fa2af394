"""linear_cross_entropy in JAX: every transform, and no more memory than a tile takes."""

import functools

import numpy as np
import pytest

import xent_array
from test_linear import FEATURES, LINEAR_BIAS, LINEAR_WEIGHT, OPTIONS, TARGET, C

jax = pytest.importorskip("jax")
jnp = jax.numpy
check_grads = pytest.importorskip("jax.test_util").check_grads

pytestmark = pytest.mark.library("jax")

PARTS = (FEATURES, LINEAR_WEIGHT, LINEAR_BIAS)
WEIGHT = OPTIONS["weights"]["weight"]


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def held(features, linear_weight, bias, class_weight, smoothing, **options):
    logits = features @ linear_weight.T + bias
    return xent_array.cross_entropy(
        logits, jnp.asarray(TARGET), weight=class_weight, label_smoothing=smoothing, **options
    )


def ours(features, linear_weight, bias, class_weight, smoothing, **options):
    return xent_array.linear_cross_entropy(
        features,
        linear_weight,
        jnp.asarray(TARGET),
        linear_bias=bias,
        weight=class_weight,
        label_smoothing=smoothing,
        **options,
    )


@pytest.mark.parametrize(("reduction", "rows"), [("none", 3), ("mean", 1), ("sum", 7)])
def test_every_transform(reduction, rows, set_tile_bytes):
    """Of everything that is an array, class weights and label smoothing among it."""
    set_tile_bytes(8 * C * rows)
    arguments = (*map(jnp.asarray, PARTS), jnp.asarray(WEIGHT), jnp.asarray(0.1))
    every = tuple(range(5))
    pairs = []
    for loss in (ours, held):
        total = functools.partial(lambda f, *x: jnp.sum(f(*x, reduction=reduction) ** 2), loss)
        directions = tuple(map(jnp.cos, arguments))
        pairs.append(
            (
                jax.grad(total, argnums=every)(*arguments),
                jax.jit(jax.grad(total, argnums=every))(*arguments),
                jax.jvp(total, arguments, directions),
                jax.hessian(total, argnums=1)(*arguments),
                jax.vmap(jax.grad(total), (0, None, None, None, None))(
                    jnp.stack([arguments[0]] * 2), *arguments[1:]
                ),
            )
        )
    for mine, theirs in zip(*map(jax.tree.leaves, pairs), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_numerical_derivatives(set_tile_bytes):
    set_tile_bytes(8 * C * 3)

    def loss(*parts):  # checks are made with NumPy's arrays
        return ours(*map(jnp.asarray, parts), jnp.asarray(WEIGHT), 0.1)

    check_grads(loss, tuple(map(jnp.asarray, PARTS)), 2)


@pytest.mark.parametrize("transform", [jax.value_and_grad, jax.grad])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_three_products(set_tile_bytes, transform, reduction):
    """Logits and two gradients, within one loop: nothing is made again."""
    set_tile_bytes(8 * C * 3)
    loss = functools.partial(xent_array.linear_cross_entropy, reduction=reduction)
    step = transform(loss, argnums=(0, 1))
    arguments = jnp.zeros((6, 4)), jnp.zeros((C, 4)), jnp.zeros(6, jnp.int64)
    assert str(jax.make_jaxpr(step)(*arguments)).count("dot_general") == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_weights_are_summed_in_float32(set_tile_bytes, dtype):
    """Of many tiles; a half sum would stand still long before the end."""
    rows = 4096
    set_tile_bytes(4 * 2)
    features, weight = jnp.ones((rows, 1), dtype), jnp.zeros((2, 1), dtype)
    loss = functools.partial(xent_array.linear_cross_entropy, reduction="sum")
    grad = jax.grad(loss, argnums=1)(features, weight, jnp.zeros(rows, jnp.int64))
    np.testing.assert_array_equal(grad.astype("float64"), [[-rows / 2], [rows / 2]])


def test_memory_is_a_tiles(set_tile_bytes):
    """Of loss and gradient by all parts: sixteen times the rows take a few tiles, no more."""
    set_tile_bytes(1 << 20)

    def temporaries(rows):
        x, w = jnp.zeros((rows, 8), jnp.float32), jnp.zeros((1000, 8), jnp.float32)
        target = jnp.zeros(rows, jnp.int32)
        step = jax.jit(jax.value_and_grad(xent_array.linear_cross_entropy, argnums=(0, 1)))
        return step.lower(x, w, target).compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(1024), temporaries(16384)
    rows = (16384 - 1024) * 64  # features, their gradient, and what there is of each row
    assert many - few < 2 * rows
    assert many < 16 << 20  # the logits are 62 MiB
