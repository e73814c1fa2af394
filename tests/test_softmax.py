"""softmax, log_softmax and logsumexp on every library: rows of any width and layout.

What their small rows are is the conformance kit's to test; axes, infinities and errors are tested
where those of the loss are.
"""

import numpy as np
import pytest

import xent_array

from arrays import DTYPES, flushed, make, to_numpy, unit

FUNCTIONS = ["softmax", "log_softmax", "logsumexp"]
EVERY_FUNCTION = pytest.mark.parametrize("function", FUNCTIONS)
LAYOUTS = {
    "rows": lambda z: z,
    "class-major": np.asfortranarray,
    "apart": lambda z: np.repeat(z, 2, axis=1)[:, ::2],
    "reversed": lambda z: np.ascontiguousarray(z[:, ::-1])[:, ::-1],
}


def exact(function, z, axis=-1):
    """In the widest floating dtype there is."""
    z = z.astype(np.longdouble)
    fall = z - z.max(axis, keepdims=True)
    sums = np.exp(fall).sum(axis, keepdims=True)
    if function == "softmax":
        return np.exp(fall) / sums
    if function == "log_softmax":
        return fall - np.log(sums)
    return (z.max(axis, keepdims=True) + np.log(sums)).squeeze(axis)


def bound(function, z, dtype, axis=-1):
    """32 units of the scale on which a result is known: see `xent_array.testing`."""
    fall = z.max(axis, keepdims=True) - z
    p, log_p = exact("softmax", z, axis), exact("log_softmax", z, axis)
    if function == "softmax":
        return unit(dtype) * (32 + fall) * p
    if function == "log_softmax":
        return 32 * unit(dtype) * -log_p
    return 32 * unit(dtype) * (np.abs(z.max(axis)) - log_p.max(axis))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("classes", [1, 2, 10, 63, 65, 127, 128, 129, 513, 3000])
@EVERY_FUNCTION
def test_rows_of_any_width(xp, function, classes, layout):
    """Where kernels read them they are taken in other steps each time."""
    dtype = "float32"
    rng = np.random.default_rng(classes)
    z = layout((4 * rng.standard_normal((7, classes))).astype(dtype))
    found = to_numpy(getattr(xent_array, function)(make(xp, z)))
    limit = bound(function, z, dtype) + flushed(xp, dtype)
    assert (np.abs(found - exact(function, z)) <= limit).all()


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
@EVERY_FUNCTION
def test_along_any_axis(xp, function, axis):
    z = np.random.default_rng(0).standard_normal((40, 50, 60))
    found = to_numpy(getattr(xent_array, function)(make(xp, z), axis=axis))
    assert found.shape == exact(function, z, axis).shape
    assert (np.abs(found - exact(function, z, axis)) <= bound(function, z, "float64", axis)).all()


@EVERY_FUNCTION
def test_a_loss_without_a_target_is_still_an_error(xp, function):
    """They are evaluated as one, and leave their templates beside those of losses."""
    z = make(xp, np.zeros((2, 3)))
    getattr(xent_array, function)(z)
    for reduction in ("none", "mean"):
        with pytest.raises(TypeError, match="target"):
            xent_array.cross_entropy(z, None, reduction=reduction)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
@EVERY_FUNCTION
def test_no_rows(xp, function, shape):
    found = getattr(xent_array, function)(make(xp, np.zeros(shape)), axis=1)
    assert tuple(found.shape) == (shape[:1] + shape[2:] if function == "logsumexp" else shape)


@EVERY_FUNCTION
def test_arguments_are_as_they_were(xp, function):
    z = np.random.default_rng(0).standard_normal((64, 700)).astype(np.float32)
    x = make(xp, z)
    getattr(xent_array, function)(x)
    np.testing.assert_array_equal(to_numpy(x), z)


@EVERY_FUNCTION
def test_half_dtypes_are_computed_in_float32(xp, function):
    """And rounded once."""
    halves = [name for name in DTYPES[xp.__name__] if name in ("float16", "bfloat16")]
    for dtype in halves:
        z = make(xp, np.random.default_rng(0).standard_normal((8, 300)), dtype)
        found = getattr(xent_array, function)(z)
        assert found.dtype == z.dtype
        wide = getattr(xent_array, function)(make(xp, to_numpy(z), "float32"))
        expected = to_numpy(make(xp, to_numpy(wide), dtype))
        apart = np.abs(to_numpy(found) - expected)
        step = 2.0 ** (-10 if dtype == "float16" else -7)
        assert (apart <= step * np.abs(expected)).all()  # a last digit: the sums differ in theirs
