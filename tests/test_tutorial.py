"""The four-class example of the tutorial, and the same by hand."""

import numpy as np
import pytest

import xent_array

from arrays import make, to_numpy

LOGITS = [
    [0.8, 0.5, 0.2, 0.5],
    [0.2, 0.9, 0.3, 0.2],
    [0.4, 0.3, 0.7, 0.1],
    [0.1, 0.2, 0.4, 0.8],
]


def by_hand():
    """Softmax, log, multiply by the one-hot targets, sum."""
    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    return -(np.eye(4) * np.log(softmax)).sum(axis=1)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("target", [[0, 1, 2, 3], np.eye(4)], ids=["index", "one-hot"])
def test_four_classes(xp, reduction, target):
    loss = xent_array.cross_entropy(make(xp, LOGITS), make(xp, target), reduction=reduction)
    expected = {"none": by_hand(), "mean": by_hand().mean(), "sum": by_hand().sum()}
    np.testing.assert_allclose(to_numpy(loss), expected[reduction], rtol=1e-15)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("target", [2, [0.0, 0.0, 1.0, 0.0]], ids=["index", "one-hot"])
def test_a_single_sample(xp, reduction, target):
    loss = xent_array.cross_entropy(make(xp, LOGITS[2]), make(xp, target), reduction=reduction)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(by_hand()[2], rel=1e-15)


def test_the_losses_are_these(xp):
    loss = xent_array.cross_entropy(make(xp, LOGITS), make(xp, [0, 1, 2, 3]), reduction="none")
    np.testing.assert_allclose(to_numpy(loss), [1.108710, 0.932944, 1.085172, 0.999056], atol=5e-7)
