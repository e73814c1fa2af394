"""linear_cross_entropy: the loss and the gradients of a projection whose logits are never held."""

import re

import numpy as np
import pytest
import torch

import xent_array
from test_reference import SHARE, compare

from arrays import DTYPES, dtype_of, make, to_numpy

RNG = np.random.default_rng(3)
N, H, C = 7, 5, 11
FEATURES, LINEAR_WEIGHT, LINEAR_BIAS = (RNG.normal(size=size) for size in [(N, H), (C, H), (C,)])
TARGET = np.asarray([0, 3, 10, -100, 2, 2, 7])
PROBABILITIES = RNG.dirichlet(np.ones(C), size=N)
OPTIONS = {
    "plain": {},
    "weights": {"weight": RNG.uniform(0.5, 2, size=C), "label_smoothing": 0.1},
    "rows": {"sample_weight": RNG.uniform(0.5, 2, size=N), "where": np.arange(N) != 1},
    "shape": {"softcap": 3.0, "logit_scale": -0.7, "z_loss": 0.01},
}
TARGETS = pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])


def arrays(xp, options, dtype=None):
    return {
        name: make(xp, value, dtype if value.dtype.kind == "f" else None)
        if isinstance(value, np.ndarray)
        else value
        for name, value in options.items()
    }


def by_hand(target, bias, options, grad_output=None):
    """Loss and gradients of the logits held as a whole, in float64."""
    logits = FEATURES @ LINEAR_WEIGHT.T + (0.0 if bias is None else bias)
    loss, g = xent_array.cross_entropy_and_grad(logits, target, grad_output=grad_output, **options)
    return loss, (g @ LINEAR_WEIGHT, g.T @ FEATURES, None if bias is None else g.sum(axis=0))


@TARGETS
@REDUCTIONS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.usefixtures("tile_rows")
def test_equals_the_loss_of_the_logits(xp, request, target, reduction, options):
    """In value and gradients, with a bias and without, however rows are cut into tiles."""
    biases = (None, LINEAR_BIAS)
    if xp.__name__ in SHARE:  # each call is compiled, or made a graph: one of the two
        biases = biases[sum(map(ord, request.node.name)) % 2 :][:1]
    for bias in biases:
        equals_the_loss_of_the_logits(xp, target, reduction, options, bias)


def equals_the_loss_of_the_logits(xp, target, reduction, options, bias):
    options = {**options, "reduction": reduction}
    expected, slopes = by_hand(target, bias, options)
    given = {**arrays(xp, options), "linear_bias": None if bias is None else make(xp, bias)}
    arguments = make(xp, FEATURES), make(xp, LINEAR_WEIGHT), make(xp, target)
    loss, grads = xent_array.linear_cross_entropy_and_grad(*arguments, **given)
    alone = xent_array.linear_cross_entropy(*arguments, **given)
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=1e-13)
    np.testing.assert_allclose(to_numpy(alone), expected, rtol=1e-13)
    for ours, theirs in zip(grads, slopes, strict=True):
        if theirs is None:
            assert ours is None
        else:
            np.testing.assert_allclose(to_numpy(ours), theirs, rtol=1e-11, atol=1e-14)


@REDUCTIONS
@pytest.mark.usefixtures("tile_rows")
def test_grad_output(xp, reduction):
    upstream = np.arange(1.0, N + 1) if reduction == "none" else np.asarray(3.0)
    _, slopes = by_hand(TARGET, LINEAR_BIAS, {"reduction": reduction}, grad_output=upstream)
    _, grads = xent_array.linear_cross_entropy_and_grad(
        *(make(xp, x) for x in (FEATURES, LINEAR_WEIGHT, TARGET)),
        linear_bias=make(xp, LINEAR_BIAS),
        reduction=reduction,
        grad_output=make(xp, upstream),
    )
    for ours, theirs in zip(grads, slopes, strict=True):
        np.testing.assert_allclose(to_numpy(ours), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(H,), (1, H), (2, 3, H), (0, H)])
@pytest.mark.usefixtures("tile_rows")
def test_any_number_of_axes(xp, shape):
    """The class axis of the logits is the last."""
    features = RNG.normal(size=shape)
    target = RNG.integers(0, C, shape[:-1])
    expected, stats = xent_array.cross_entropy(
        features @ LINEAR_WEIGHT.T, target, axis=-1, reduction="none", return_stats=True
    )
    arguments = make(xp, features), make(xp, LINEAR_WEIGHT), make(xp, target)
    options = {"reduction": "none", "return_stats": True}
    loss, (grad, *_), found = xent_array.linear_cross_entropy_and_grad(*arguments, **options)
    assert tuple(grad.shape) == shape
    np.testing.assert_allclose(to_numpy(loss), expected, rtol=1e-13)
    for ours, theirs in zip(found, stats, strict=True):
        np.testing.assert_allclose(to_numpy(ours), theirs, rtol=1e-13)


@pytest.mark.usefixtures("tile_rows")
def test_a_mean_of_nothing(xp):
    arguments = [make(xp, x) for x in (FEATURES, LINEAR_WEIGHT, np.full(N, -100))]
    loss, grads = xent_array.linear_cross_entropy_and_grad(*arguments)
    assert np.isnan(to_numpy(loss))
    assert all((to_numpy(grad) == 0).all() for grad in grads[:2])
    assert float(xent_array.linear_cross_entropy(*arguments, on_empty="zero")) == 0.0


ERRORS = [
    ({"linear_weight": np.ones((C, H + 1))}, ValueError,
     "linear_weight must have shape (classes, 5) for features of shape (7, 5); got shape (11, 6)"),
    ({"linear_weight": np.ones(H)}, ValueError,
     "linear_weight must have shape (classes, 5) for features of shape (7, 5); got shape (5,)"),
    ({"linear_weight": np.ones((0, H))}, ValueError,
     "linear_weight of shape (0, 5) must have at least one class"),
    ({"linear_weight": np.ones((C, H), "float32")}, TypeError,
     "linear_weight must have the dtype of features, float64; got float32"),
    ({"linear_weight": [[1.0] * H]}, TypeError, "linear_weight must be an array, got list"),
    ({"linear_bias": np.ones(H)}, ValueError,
     "linear_bias must have shape (11,) for linear_weight of shape (11, 5); got shape (5,)"),
    ({"linear_bias": np.ones(C, int)}, TypeError,
     "linear_bias must have a real floating dtype, got int64"),
    ({"features": np.asarray(1.0)}, ValueError, "features must have an axis of features"),
    ({"features": np.ones((N, H), int)}, TypeError, "features must have a real floating dtype"),
    ({"target": np.zeros(N + 1, int)}, ValueError, "target of dtype int64 holds class indices"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "text"), ERRORS)
def test_bad_input_is_refused(xp, changed, error, text):
    call = {"features": FEATURES, "linear_weight": LINEAR_WEIGHT, "target": TARGET, **changed}
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        xent_array.linear_cross_entropy(**arrays(xp, call))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@TARGETS
@REDUCTIONS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.usefixtures("tile_rows")
def test_error_is_at_most_that_of_logits_held(request, xp, dtype, target, reduction, options):
    """Of value and gradients, over the product of options, within 4 ulp of the greatest entry.

    torch holds the logits; the truth is float64's of what all were given, rounded to the dtype.
    """
    if dtype not in DTYPES[xp.__name__]:
        pytest.skip(f"{xp.__name__} has no {dtype}")
    if sum(map(ord, request.node.name)) % SHARE.get(xp.__name__, 1):
        pytest.skip("one case in so many, where each is compiled")
    call = {"features": FEATURES, "linear_weight": LINEAR_WEIGHT, "linear_bias": LINEAR_BIAS}
    call |= {"target": target, **options}
    given = {
        name: to_numpy(make(torch, value, dtype)) if np.asarray(value).dtype.kind == "f" else value
        for name, value in call.items()
        if isinstance(value, np.ndarray)
    }
    numbers = {name: value for name, value in call.items() if name not in given}
    numbers["reduction"] = reduction
    truth = held(np, given, numbers, "float64")
    theirs = held(torch, given, numbers, dtype)
    loss, grads = xent_array.linear_cross_entropy_and_grad(**arrays(xp, given, dtype), **numbers)
    for ours, reference, true in zip((loss, *grads), theirs, truth, strict=True):
        assert dtype_of(ours) == dtype
        compare(to_numpy(ours), to_numpy(reference), true, dtype)


def held(xp, given, numbers, dtype):
    """Loss and gradients of the logits held as a whole, by a library's matrix products."""
    given = arrays(xp, given, dtype)
    features, weight, bias = (given.pop(f) for f in ("features", "linear_weight", "linear_bias"))
    logits = features @ weight.T + bias
    loss, g = xent_array.cross_entropy_and_grad(logits, **given, **numbers)
    return loss, g @ weight, g.T @ features, g.sum(axis=0)


@pytest.mark.needs("half")
@pytest.mark.parametrize("case", ["no rows", "no weight", "infinite factor"])
def test_nothing_that_does_not_count_has_a_gradient(xp, case):
    """In half dtypes, whose sums are multiplied by what is common to all rows at the end."""
    features, target, more = np.ones((3, H)), np.asarray([0, -100, 2]), {}
    if case == "no rows":
        features, target, more = features[:0], target[:0], {"weight": np.ones(C)}
    elif case == "no weight":
        more = {"weight": np.zeros(C)}
    else:
        target, more = np.full(3, -100), {"grad_output": np.asarray(np.inf)}
    call = {"features": features, "linear_weight": LINEAR_WEIGHT, "target": target, **more}
    _, grads = xent_array.linear_cross_entropy_and_grad(**arrays(xp, call, "float16"))
    by_features, by_weight = map(to_numpy, grads[:2])
    assert (by_features[target == -100] == 0.0).all()
    if case != "no weight":
        assert (by_weight == 0.0).all()
