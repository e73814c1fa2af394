"""softmax, log_softmax and logsumexp on JAX arrays, under its transforms."""

import contextlib

import numpy as np
import pytest

import xent_array
from xent_array import _kernels

jax = pytest.importorskip("jax")

pytestmark = pytest.mark.library("jax")

EVERY_FUNCTION = pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])


@pytest.mark.parametrize("shape", [(6, 5), (64, 600)], ids=["array code", "kernels"])
@EVERY_FUNCTION
def test_every_derivative(function, shape):
    with jax.enable_x64(True):
        call = getattr(xent_array, function)
        reference = getattr(jax.nn, function)
        z = jax.numpy.asarray(np.random.default_rng(0).standard_normal(shape))
        d = jax.numpy.asarray(np.random.default_rng(1).standard_normal(shape))
        total = lambda f: lambda z: (f(z, -1) ** 2).sum()  # noqa: E731
        for make in (
            lambda f: jax.grad(total(f))(z),
            lambda f: jax.jit(jax.value_and_grad(total(f)))(z),
            lambda f: jax.jvp(lambda z: f(z, -1), (z,), (d,)),
            lambda f: jax.jvp(jax.grad(total(f)), (z,), (d,)),
            lambda f: jax.vmap(lambda z: f(z, -1))(z),
            lambda f: jax.jit(jax.vmap(jax.grad(total(f))))(z),
            lambda f: jax.lax.map(lambda z: f(z, -1), z),
        ):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
                make(call),
                make(reference),
            )


@EVERY_FUNCTION
def test_in_a_loop(function):
    """Of what is taken apart, JAX forgets no rule."""
    with jax.enable_x64(True):
        z = jax.numpy.asarray(np.random.default_rng(0).standard_normal((3, 64, 700)))

        def scanned(f):
            def step(total, z):
                return total + (f(z, -1) ** 2).sum(), None

            return jax.grad(lambda z: jax.lax.scan(jax.checkpoint(step), 0.0, z)[0])(z)

        ours, theirs = (scanned(getattr(m, function)) for m in (xent_array, jax.nn))
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


@EVERY_FUNCTION
def test_half_gradients_are_rounded_once(function):
    z = jax.numpy.asarray(np.random.default_rng(0).standard_normal((200, 500)), "bfloat16")
    call = getattr(xent_array, function)
    d = jax.numpy.ones_like(z).at[:, ::3].set(-2)
    _, found = jax.jvp(call, (z,), (d,))
    _, wide = jax.jvp(call, (z.astype("float32"),), (d.astype("float32"),))
    assert found.dtype == z.dtype
    np.testing.assert_array_equal(found, wide.astype("bfloat16"))


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_confident_rows_have_small_derivatives(function):
    """Where jax.nn has 0: along a direction, and of what is passed on."""
    z = jax.numpy.asarray([[20.0, 0.0, 1.0]], "float32")
    one = jax.numpy.zeros_like(z).at[0, 0].set(1)
    call = getattr(xent_array, function)
    with jax.enable_x64(True):
        wide = z.astype("float64")
        exact = jax.jacobian(lambda z: getattr(jax.nn, function)(z)[0])(wide)[:, 0]
    _, change = jax.jvp(call, (z,), (one,))
    (passed,) = jax.vjp(call, z)[1](one)
    np.testing.assert_allclose(passed[0], exact[0], rtol=1e-6)
    np.testing.assert_allclose(change[0], exact[:, 0], rtol=1e-6)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("classes", [8, 24, 40])
def test_rows_with_nan_have_no_logsumexp(classes, kernels):
    """Nor do those with +inf beside it: a maximum of XLA's for the CPU loses NaNs."""
    x = np.zeros((10_007, classes), np.float32)
    x[:, -1] = np.nan
    x[::2, 3], x[::3, 2] = np.inf, -np.inf
    z = jax.numpy.asarray(x)
    with contextlib.nullcontext() if kernels else _kernels.disabled():
        found = xent_array.logsumexp(z)
        target = jax.numpy.zeros(len(x), jax.numpy.int32)
        stats = xent_array.cross_entropy(z, target, return_stats=True)[1]
    assert np.isnan(np.asarray(found)).all()
    assert np.isnan(np.asarray(stats.lse)).all()
