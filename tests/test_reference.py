"""torch.nn.functional.cross_entropy is the meaning; its own rounding error is the tolerance."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch

import xent_array

import oracle
from arrays import DTYPES, dtype_of, make, spacing, to_numpy

CLASSES = 5

#: Shape of the logits as torch takes them, and the class axis that we are given them with.
LAYOUTS = [
    pytest.param((CLASSES,), None, id="C"),
    pytest.param((6, CLASSES), None, id="NC"),
    pytest.param((3, CLASSES, 4), None, id="NCd"),
    pytest.param((3, CLASSES, 4), -1, id="NdC"),
    pytest.param((2, CLASSES, 3, 2), 1, id="NCHW"),
    pytest.param((2, CLASSES, 3, 2), 0, id="CNHW"),
]
WEIGHTS = [None, [0.5, 1.0, 2.0, 0.0, 1.5]]
SMOOTHINGS = [0.0, 0.3, 1.0]
#: Where each call is compiled, or made a graph, one call in so many; others in the next case.
SHARE = {"jax.numpy": 13, "dask.array": 6}
REDUCTIONS = ["none", "mean", "sum"]
IGNORED = {"none": -100, "some": -100, "class": 2, "most": -100}


CASES = [*(("index", ignored) for ignored in IGNORED), ("probabilities", "none")]


def draw(shape, kind, ignored, seed=0):
    """Logits, and a target that some of which is ignored, as float64 and int64."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * 3
    if kind == "probabilities":
        p = rng.random(shape)
        return logits, p / p.sum(axis=min(1, len(shape) - 1), keepdims=True)
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = rng.integers(0, CLASSES, rows)
    if ignored == "some" and rows:
        target = np.where(rng.random(rows) < 0.4, -100, target)
    if ignored == "most" and rows:
        target = np.full(rows, -100)
        target[(0,) * len(rows)] = 1
    return logits, np.asarray(target)


def our_layout(x, axis):
    return x if axis is None or x.ndim == 1 else np.moveaxis(x, 1, axis)


class Call(NamedTuple):
    """One call of the product: as torch is asked, on NumPy arrays, and as we are."""

    logits: np.ndarray
    target: np.ndarray
    weight: list[float] | None
    options: dict
    arguments: tuple
    keywords: dict


def over_the_product(test):
    """Run a test over everything that torch's own function can be asked."""
    for names, values in {
        ("kind", "ignored"): CASES,
        ("shape", "axis"): LAYOUTS,
        "dtype": ["float64", "float32", "float16", "bfloat16"],
    }.items():
        test = pytest.mark.parametrize(names, values)(test)
    return test


def calls(xp, dtype, shape, axis, kind, ignored):
    """Every combination of class weights, smoothing and reduction."""
    if dtype not in DTYPES[xp.__name__]:
        pytest.skip(f"{xp.__name__} has no {dtype}")
    logits, target = draw(shape, kind, ignored)
    rounded = to_numpy(make(torch, logits, dtype))
    kept = to_numpy(make(torch, target, dtype)) if kind == "probabilities" else target
    combinations = itertools.product(*map(enumerate, (WEIGHTS, SMOOTHINGS, REDUCTIONS)))
    turn = sum(map(ord, f"{dtype}{shape}{axis}{kind}{ignored}"))
    for (i, weight), (j, smoothing), (k, reduction) in combinations:
        if (turn + i + j + k) % SHARE.get(xp.__name__, 1):
            continue
        options = {"label_smoothing": smoothing, "reduction": reduction}
        if kind == "index":
            options["ignore_index"] = IGNORED[ignored]
        arguments = (
            make(xp, our_layout(rounded, axis), dtype),
            make(xp, our_layout(kept, axis), dtype) if kind == "probabilities" else make(xp, kept),
        )
        weights = None if weight is None else make(xp, weight, dtype)
        keywords = {"weight": weights, "axis": axis, **options}
        yield Call(rounded, kept, weight, options, arguments, keywords)


def by_torch(logits, target, weight, dtype, options):
    """torch's own loss of a tensor, the rest of the call being NumPy's."""
    soft = target.dtype.kind == "f"
    return torch.nn.functional.cross_entropy(
        logits,
        make(torch, target, dtype if soft else None).cpu(),
        weight=None if weight is None else make(torch, weight, dtype).cpu(),
        **options,
    )


@over_the_product
def test_error_is_at_most_torchs(xp, dtype, shape, axis, kind, ignored):
    """Over the product of options, our greatest error is at most torch's and 4 ulp."""
    for call in calls(xp, dtype, shape, axis, kind, ignored):
        logits, target, weight, options, arguments, keywords = call
        ours = xent_array.cross_entropy(*arguments, **keywords)
        theirs = by_torch(make(torch, logits, dtype).cpu(), target, weight, dtype, options)
        truth = true_loss(logits, target, weight, dtype, options)
        assert dtype_of(ours) == dtype
        assert tuple(ours.shape) == tuple(theirs.shape)
        compare(to_numpy(ours), to_numpy(theirs), truth, dtype)


def true_loss(logits, target, weight, dtype, options):
    """Our form in float64 for narrower dtypes, multi-precision for float64."""
    if dtype != "float64":
        weight = None if weight is None else np.asarray(weight)
        return xent_array.cross_entropy(logits, target, weight=weight, **options)
    loss = oracle.cross_entropy(
        as_rows(logits),
        as_rows(target) if target.dtype.kind == "f" else target.reshape(-1),
        weight=weight,
        smoothing=options["label_smoothing"],
        ignore_index=options.get("ignore_index", -100),
        reduction=options["reduction"],
    )
    return np.asarray(loss, dtype=object)


def as_rows(x):
    return (x if x.ndim == 1 else np.moveaxis(x, 1, -1)).reshape(-1, CLASSES)


def compare(ours, theirs, truth, dtype):
    truth = truth.reshape(ours.shape)
    if truth.ndim == 0 and not np.isfinite(float(truth)):  # the weights of the rows sum to 0
        np.testing.assert_equal([float(ours), float(theirs)], [float(truth)] * 2)
        return
    largest = float(np.max(np.abs(truth)))
    our_error = float(np.max(np.abs(ours - truth)))
    their_error = float(np.max(np.abs(theirs - truth)))
    assert our_error <= their_error + 4 * spacing(largest, dtype)
