"""What holds for every input, found out by hypothesis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xent_array
from xent_array._backends import backend_of
from xent_array._stats import FourNumbers, merge

from arrays import make, set_budget, to_numpy

settings.register_profile("suite", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("suite")

#: For examples of many shapes, each of which a compiler takes long for.
FEW = settings(max_examples=12)

#: Quarters: sums and differences of them are exact.
QUARTERS = st.integers(-200, 200).map(lambda n: n / 4)


@st.composite
def batches(draw):
    """Rows of logits, a class index for each."""
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    logits = draw(hnp.arrays(np.float64, (rows, classes), elements=QUARTERS))
    target = draw(hnp.arrays(np.int64, (rows,), elements=st.integers(0, classes - 1)))
    return logits, target


def losses(xp, logits, target, **options):
    options = {"reduction": "none"} | options
    return to_numpy(xent_array.cross_entropy(make(xp, logits), make(xp, target), **options))


@given(batch=batches(), shift=st.sampled_from([0.25, 100.0, -1e4, 1e8]))
def test_a_common_shift_changes_nothing(xp, batch, shift):
    """Exactly: the logits and the shift are quarters, and only differences enter."""
    logits, target = batch
    np.testing.assert_array_equal(losses(xp, logits + shift, target), losses(xp, logits, target))


@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_permuted_rows_have_permuted_losses(xp, batch, seed):
    logits, target = batch
    order = np.random.default_rng(seed).permutation(len(target))
    np.testing.assert_array_equal(
        losses(xp, logits[order], target[order]), losses(xp, logits, target)[order]
    )


@given(batch=batches(), seed=st.integers(0, 2**32 - 1))
def test_permuted_classes_have_the_same_loss(xp, batch, seed):
    logits, target = batch
    order = np.random.default_rng(seed).permutation(logits.shape[1])
    np.testing.assert_allclose(
        losses(xp, logits[:, order], np.argsort(order)[target]),
        losses(xp, logits, target),
        rtol=1e-14,
    )


@given(batch=batches(), smoothing=st.sampled_from([0.0, 0.1, 1.0]))
def test_an_index_is_a_one_hot(xp, batch, smoothing):
    """Per row, smoothing and weights included; only torch's divisors of the mean differ."""
    logits, target = batch
    classes = logits.shape[1]
    options = {"label_smoothing": smoothing, "weight": make(xp, np.linspace(0.5, 2.0, classes))}
    np.testing.assert_allclose(
        losses(xp, logits, np.eye(classes)[target], **options),
        losses(xp, logits, target, **options),
        rtol=1e-14,
        atol=1e-300,
    )


@given(batch=batches())
def test_losses_are_not_negative_and_one_class_costs_nothing(xp, batch):
    logits, target = batch
    assert (losses(xp, logits, target) >= 0).all()
    assert (losses(xp, logits[:, :1], target * 0) == 0).all()


@given(batch=batches(), junk=st.floats(), seed=st.integers(0, 2**32 - 1))
def test_ignored_rows_are_inert(xp, batch, junk, seed):
    """An ignored row holds anything; the mean is that of the other rows."""
    logits, target = batch
    ignored = np.random.default_rng(seed).random(len(target)) < 0.5
    expected = np.where(ignored, 0.0, losses(xp, logits, target))
    spoilt = np.where(ignored[:, None], junk, logits)
    target = np.where(ignored, -100, target)
    np.testing.assert_array_equal(losses(xp, spoilt, target), expected)
    mean = losses(xp, spoilt, target, reduction="mean")
    if ignored.all():
        assert np.isnan(mean)
    else:
        np.testing.assert_allclose(mean, expected[~ignored].mean(), rtol=1e-14)


@given(batch=batches(), size=st.integers(1, 60))
def test_blocks_and_slabs_of_any_size_agree(xp, batch, size):
    """The memory budget is not part of the meaning."""
    logits, target = batch
    whole = losses(xp, logits, target), losses(xp, logits, target, reduction="mean")
    with pytest.MonkeyPatch.context() as patch:
        set_budget(patch, 8 * size)
        cut = losses(xp, logits, target), losses(xp, logits, target, reduction="mean")
    for ours, theirs in zip(cut, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def four_numbers(xp):
    """Four numbers of some rows, infinite tops included."""
    tops = st.one_of(QUARTERS, st.just(-np.inf))
    return st.tuples(
        hnp.arrays(np.float64, (3, 1), elements=tops),
        hnp.arrays(np.float64, (3, 1), elements=st.floats(0, 1e6)),
        hnp.arrays(np.float64, (3, 1), elements=st.sampled_from([0.0, 0.5, 1.0])),
    )


@given(data=st.data())
@pytest.mark.needs("eager")
def test_merge_is_associative_and_commutative(xp, data):
    """Within rounding; an empty slab (top -inf) has rest 0 and dot 0 where it has no mass."""
    slabs = []
    for _ in range(3):
        top, rest, mass = data.draw(four_numbers(xp))
        rest = np.where(np.isinf(top), 0.0, rest)
        mass = np.where(np.isinf(top), 0.0, mass)
        slabs.append(FourNumbers(*(make(xp, x) for x in (top, rest, mass, -rest * mass))))
    backend = backend_of("top", slabs[0].top)
    ns, (a, b, c) = backend.xp, slabs
    with backend.quiet():
        left = merge(ns, merge(ns, a, b), c)
        others = merge(ns, a, merge(ns, b, c)), merge(ns, merge(ns, c, a), b)
    for other in others:
        for x, y in zip(left, other, strict=True):
            np.testing.assert_allclose(to_numpy(x), to_numpy(y), rtol=1e-13, atol=1e-300)


@FEW
@given(
    logits=hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=4), elements=QUARTERS),
    data=st.data(),
)
def test_softmax_and_its_logarithms_agree_on_any_axis(xp, logits, data):
    axis = data.draw(st.integers(-logits.ndim, logits.ndim - 1))
    x = make(xp, logits)
    softmax, log_softmax, lse = (
        to_numpy(function(x, axis=axis))
        for function in (xent_array.softmax, xent_array.log_softmax, xent_array.logsumexp)
    )
    np.testing.assert_allclose(softmax.sum(axis=axis), 1.0, rtol=1e-14)
    np.testing.assert_allclose(np.exp(log_softmax), softmax, rtol=1e-13)
    np.testing.assert_allclose(
        np.expand_dims(lse, axis) + log_softmax, logits, rtol=1e-14, atol=1e-13
    )


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0)])
def test_an_empty_batch(xp, shape):
    """As torch: no losses, a sum of 0, a mean of NaN."""
    rows = (shape[0], *shape[2:])
    logits, target = np.zeros(shape), np.zeros(rows, dtype=np.int64)
    assert losses(xp, logits, target).shape == rows
    assert losses(xp, logits, target, reduction="sum") == 0.0
    assert np.isnan(losses(xp, logits, target, reduction="mean"))
    assert losses(xp, logits, target, reduction="mean", on_empty="zero") == 0.0
    ones = make(xp, np.ones(rows))
    for options in ({"sample_weight": ones}, {"weight": make(xp, np.ones(3))}):
        given = {"reduction": "mean", "on_empty": "zero", **options}
        assert losses(xp, logits, target, **given) == 0.0
    assert losses(xp, logits, logits).shape == rows
    assert np.isnan(losses(xp, logits, logits, reduction="mean"))


def test_results_are_arrays_of_the_library(xp):
    """Never scalars: 0-d arrays of the logits' own type, also of a single sample."""
    one, batch = make(xp, [1.0, 2.0]), make(xp, [[1.0, 2.0]])
    label, labels = make(xp, 0), make(xp, [0])
    for reduction in ("none", "mean", "sum"):
        for logits, target in ((one, label), (batch, labels)):
            result, stats = xent_array.cross_entropy(
                logits, target, reduction=reduction, return_stats=True
            )
            for x in (result, *stats):
                assert type(x) is type(logits)
            assert result.ndim == (logits.ndim - 1 if reduction == "none" else 0)
    assert type(xent_array.logsumexp(one)) is type(one)
