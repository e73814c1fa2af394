"""Rows with NaN and infinities, whole and in every slabbing of their classes."""

import numpy as np
import pytest

import xent_array

from arrays import make, set_budget, to_numpy

NAN, INF = np.nan, np.inf

#: Logits, class index, loss.
ROWS = [
    pytest.param([0.0, NAN, 1.0, 2.0], 0, NAN, id="NaN"),
    pytest.param([0.0, NAN, 1.0, 2.0], 1, NAN, id="NaN at the target"),
    pytest.param([NAN, INF, -INF, 0.0], 3, NAN, id="NaN and infinities"),
    pytest.param([0.0, INF, 1.0, 2.0], 0, NAN, id="+inf"),
    pytest.param([0.0, INF, 1.0, 2.0], 1, NAN, id="+inf at the target"),
    pytest.param([INF, INF, INF, INF], 1, NAN, id="all +inf"),
    pytest.param([-INF, -INF, -INF, -INF], 1, NAN, id="all -inf"),
    pytest.param([0.0, -INF, 0.0, 0.0], 1, INF, id="-inf at the target"),
    pytest.param([-INF, -INF, -INF, 5.0], 0, INF, id="-inf but for another class"),
    pytest.param([0.0, -INF, 0.0, -INF], 0, np.log(2.0), id="-inf elsewhere"),
    pytest.param([-INF, -INF, 3.0, -INF], 2, 0.0, id="-inf everywhere else"),
]
SLABS = [1, 2, 3, 4]


@pytest.fixture(params=SLABS)
def slab(request, monkeypatch):
    """Make every block so many classes wide, float64."""
    set_budget(monkeypatch, 8 * request.param)


def one_hot(index):
    return np.eye(4)[index]


@pytest.mark.parametrize(("logits", "index", "loss"), ROWS)
def test_index_targets(xp, logits, index, loss, slab):
    """NaN, +inf and nothing but -inf have no loss; with -inf at the target it is infinite."""
    logits = make(xp, [[0.0, 1.0, 2.0, 3.0], logits, [3.0, 2.0, 1.0, 0.0]])
    losses = to_numpy(xent_array.cross_entropy(logits, make(xp, [3, index, 0]), reduction="none"))
    np.testing.assert_allclose(losses[1], loss, rtol=1e-15)
    assert np.isfinite(losses[[0, 2]]).all()


@pytest.mark.parametrize(("logits", "index", "loss"), ROWS)
def test_one_hot_targets(xp, logits, index, loss, slab):
    """A zero probability of a -inf logit costs nothing: 0·log 0 = 0, where torch has NaN."""
    losses = xent_array.cross_entropy(make(xp, logits), make(xp, one_hot(index)), reduction="none")
    np.testing.assert_allclose(to_numpy(losses), loss, rtol=1e-15)


@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_a_zero_weight_makes_an_impossible_class_free(xp, kind, slab):
    """A class of weight 0 and logit -inf, at the target or smoothed onto, costs nothing."""
    logits, weight = make(xp, [0.0, -INF, 0.0, 0.0]), make(xp, [1.0, 0.0, 1.0, 1.0])
    target = make(xp, 1) if kind == "index" else make(xp, one_hot(1))
    loss = xent_array.cross_entropy(logits, target, weight=weight, reduction="sum")
    assert float(loss) == 0.0
    loss = xent_array.cross_entropy(
        logits, target, weight=weight, reduction="sum", label_smoothing=0.4
    )
    assert float(loss) == pytest.approx(0.3 * np.log(3.0))


def test_smoothing_onto_an_impossible_class_is_infinite(xp, slab):
    """As in torch, unless its weight is 0."""
    loss = xent_array.cross_entropy(
        make(xp, [0.0, -INF, 0.0, 0.0]), make(xp, 0), label_smoothing=0.1
    )
    assert float(loss) == INF


def test_full_smoothing_leaves_the_target_out(xp, slab):
    """With smoothing 1 nothing is left to the target itself."""
    logits = make(xp, [[1.0, 2.0, 3.0, 4.0]] * 2)
    losses = xent_array.cross_entropy(
        logits, make(xp, [0, 3]), label_smoothing=1.0, reduction="none"
    )
    assert float(losses[0]) == float(losses[1])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_rows_that_do_not_count_are_inert(xp, bad, reduction, slab):
    """Whatever an ignored or masked row holds, its loss is exactly 0 and the mean is of others."""
    logits = np.asarray([[1.0, 2.0, 3.0, 4.0], [bad] * 4, [4.0, 3.0, 2.0, 1.0]])
    good = make(xp, logits[[0, 2]])
    ignored = xent_array.cross_entropy(
        make(xp, logits), make(xp, [0, -100, 1]), reduction=reduction
    )
    masked = xent_array.cross_entropy(
        make(xp, logits),
        make(xp, [0, 999, 1]),
        where=make(xp, [True, False, True]),
        reduction=reduction,
    )
    expected = to_numpy(xent_array.cross_entropy(good, make(xp, [0, 1]), reduction=reduction))
    if reduction == "none":
        expected = np.insert(expected, 1, 0.0)
    np.testing.assert_array_equal(to_numpy(ignored), expected)
    np.testing.assert_array_equal(to_numpy(masked), expected)


def test_masked_rows_of_probabilities_are_inert(xp, slab):
    """NaN logits, NaN probabilities and NaN sample weights of a masked row do not matter."""
    loss = xent_array.cross_entropy(
        make(xp, [[0.0, 0.0, 0.0, 0.0], [NAN] * 4]),
        make(xp, [[0.25] * 4, [NAN] * 4]),
        where=make(xp, [True, False]),
        sample_weight=make(xp, [2.0, NAN]),
    )
    assert float(loss) == pytest.approx(np.log(4.0))


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@pytest.mark.parametrize("row", [[0.0, NAN], [0.0, INF], [-INF, -INF], [INF, INF]])
def test_softmax_of_rows_without_one_is_nan(xp, function, row):
    """NaN, +inf and nothing but -inf have no softmax, as in torch."""
    result = getattr(xent_array, function)(make(xp, [[0.0, 1.0], row]))
    assert np.isfinite(to_numpy(result)[0]).all()
    assert np.isnan(to_numpy(result)[1]).all()


@pytest.mark.parametrize(
    ("row", "lse"),
    [
        ([0.0, NAN, 0.0, 0.0], NAN),
        ([0.0, INF, -INF, INF], INF),
        ([-INF, -INF, -INF, -INF], -INF),
        ([-INF, 2.0, -INF, -INF], 2.0),
    ],
)
def test_logsumexp_of_infinities(xp, row, lse, slab):
    """An infinite greatest entry is its own logsumexp."""
    np.testing.assert_equal(float(xent_array.logsumexp(make(xp, row))), lse)


#: Libraries that derive what we have no formula for.
DERIVING = [pytest.param(name, marks=pytest.mark.library(name)) for name in ("torch", "jax")]


def derivatives(library, loss, *arguments):
    """Those of a loss by all its arguments, as a library derives them."""
    if library == "jax":
        jax = pytest.importorskip("jax")
        places = tuple(range(len(arguments)))
        return jax.grad(loss, places)(*map(jax.numpy.asarray, arguments))
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(x, requires_grad=True) for x in arguments]
    return [x.numpy() for x in torch.autograd.grad(loss(*leaves), leaves)]


def indices(library, target):
    if library == "jax":
        return pytest.importorskip("jax.numpy").asarray(target)
    return pytest.importorskip("torch").tensor(target)


@pytest.mark.parametrize("library", DERIVING)
def test_no_scale_brings_an_impossible_class_back(library):
    """It has no part in the derivative by the scale, as of the loss without it."""
    scale, target = np.float32(1.5), indices(library, [0])

    def loss(z, s):
        return xent_array.cross_entropy(z, target, logit_scale=s)

    by_z, by_scale = derivatives(library, loss, np.float32([[1, -INF, 0]]), scale)
    expected_z, expected = derivatives(library, loss, np.float32([[1, 0]]), scale)
    np.testing.assert_allclose(by_scale, expected, rtol=1e-6)
    np.testing.assert_allclose(np.delete(by_z, 1, axis=1), expected_z, rtol=1e-6)
    assert by_z[0, 1] == 0


@pytest.mark.parametrize("library", DERIVING)
def test_impossible_classes_that_nothing_is_wanted_of_make_no_nan(library):
    """A policy that is masked has an entropy; a row of weight 0 has no gradient."""
    z = np.float32([[1, 2, -INF]])

    def entropy(z):
        p = xent_array.softmax(z)
        return xent_array.cross_entropy(z, p)

    (by_z,) = derivatives(library, entropy, z)
    assert np.isfinite(by_z).all()
    np.testing.assert_allclose(by_z, [[0.196612, -0.196612, 0.0]], rtol=1e-5)

    def of_nothing(z, p):
        return 0.0 * xent_array.cross_entropy(z, p)

    by_z, by_p = derivatives(library, of_nothing, z, np.float32([[0.25, 0.75, 0]]))
    np.testing.assert_array_equal(by_z, 0.0)
    np.testing.assert_array_equal(by_p, 0.0)
