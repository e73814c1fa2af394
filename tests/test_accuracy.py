"""The promise: full relative precision at any confidence, offset, layout and slabbing."""

import functools
import itertools

import mpmath
import numpy as np
import pytest

import xent_array
from xent_array._backends import backend_of
from xent_array._stats import FourNumbers, finish, identity, merge, merge_ranks, merge_tree, spread

import oracle
from arrays import DTYPES, flushed, make, set_budget, to_numpy, unit

OFFSETS = [0.0, 100.0, 1e4, 1e8]
MARGINS = [0.0, 0.5, 1.0, 5.0, 17.0, 40.0, 80.0]


@functools.cache
def rows(classes, offset, dtype):
    """A row per margin, its target standing that far above the others; rounded to `dtype`.

    The other logits take a few hundred values, so that the oracle can count them.
    """
    rng = np.random.default_rng(classes)
    values = rng.normal(size=min(classes, 200)) * 2
    z = rng.choice(values, size=(len(MARGINS), classes))
    target = rng.integers(0, classes, len(MARGINS))
    z[np.arange(len(MARGINS)), target] = -np.inf
    z[np.arange(len(MARGINS)), target] = z.max(axis=1) + MARGINS if classes > 1 else 0.0
    return (z + offset).astype(dtype).astype(np.float64), target


@functools.cache
def true_losses(classes, offset, dtype):
    z, target = rows(classes, offset, dtype)
    return [oracle.index_loss(row, label) for row, label in zip(z, target, strict=True)]


def margins(z, target):
    """How far each target stands above the other logits, as rounded."""
    others = z.copy()
    others[np.arange(len(z)), target] = -np.inf
    return np.maximum(0.0, z[np.arange(len(z)), target] - others.max(axis=1))


def assert_promised(xp, losses, classes, offset, dtype):
    """Within (32 + margin) units of rounding, relative, and what a flushing library drops."""
    z, target = rows(classes, offset, dtype)
    truth, dropped = true_losses(classes, offset, dtype), classes * flushed(xp, dtype)
    for loss, true, margin in zip(losses.tolist(), truth, margins(z, target), strict=True):
        assert abs(mpmath.mpf(loss) - true) <= (32 + margin) * unit(dtype) * true + dropped


@pytest.mark.parametrize("classes", [2, 10, 1000, 50_257, 128_256])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_index_loss_keeps_relative_precision(xp, classes, offset, dtype):
    """Losses from 12 down to 1e-35 have all their digits, at any offset of the logits."""
    z, target = rows(classes, offset, dtype)
    loss = xent_array.cross_entropy(make(xp, z, dtype), make(xp, target), reduction="none")
    assert_promised(xp, to_numpy(loss), classes, offset, dtype)


@pytest.mark.parametrize("classes", [10, 1000, 128_256])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_one_hot_loss_keeps_relative_precision(xp, classes, offset):
    """One-hot probabilities mean what the index means, as precisely."""
    z, target = rows(classes, offset, "float32")
    one_hot = np.zeros_like(z)
    one_hot[np.arange(len(z)), target] = 1.0
    loss = xent_array.cross_entropy(
        make(xp, z, "float32"), make(xp, one_hot, "float32"), reduction="none"
    )
    assert_promised(xp, to_numpy(loss), classes, offset, "float32")


@pytest.mark.parametrize("classes", [1000, 128_256])
def test_any_layout_keeps_precision(xp, classes):
    """A class axis that is first, hence far from innermost in memory, is summed pairwise too."""
    z, target = rows(classes, 0.0, "float32")
    transposed = make(xp, np.ascontiguousarray(z.T), "float32")
    loss = xent_array.cross_entropy(transposed, make(xp, target), axis=0, reduction="none")
    assert_promised(xp, to_numpy(loss), classes, 0.0, "float32")


@pytest.mark.parametrize("classes", [1000, 8000, 20_000])
@pytest.mark.parametrize("rest", [0.4, 0.5, 0.9, 1.9, 2.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_just_above_one(xp, classes, rest, dtype):
    """Many equal logits below one top: the sum's error is not multiplied when its 1 is taken."""
    share = rest / (classes - 1) * (1 + np.random.default_rng(0).random(20) * 0.02)
    z = np.repeat(np.log(share).astype(dtype)[:, None], classes, 1)
    z[:, 0] = 0.0
    truth = [
        mpmath.log1p((classes - 1) * mpmath.exp(mpmath.mpf(float(below)))) for below in z[:, 1]
    ]
    first = make(xp, np.zeros(20, dtype=int))
    margin = -z[:, 1].max()
    for logits, axis in ((z, 1), (np.ascontiguousarray(z.T), 0)):
        loss = xent_array.cross_entropy(make(xp, logits, dtype), first, axis=axis, reduction="none")
        for ours, true in zip(to_numpy(loss).tolist(), truth, strict=True):
            assert abs(mpmath.mpf(ours) / true - 1) <= (32 + margin) * unit(dtype)


@pytest.mark.parametrize("offset", OFFSETS)
def test_where_others_return_zero_the_loss_is_returned(xp, offset):
    """Two logits 80 apart: the loss is exp(-80), not 0."""
    z = make(xp, [offset + 80.0, offset], "float64")
    loss = float(xent_array.cross_entropy(z, make(xp, 0)))
    apart = mpmath.mpf(offset + 80.0) - mpmath.mpf(offset)
    assert abs(loss / float(mpmath.log1p(mpmath.exp(-apart))) - 1) <= 112 * 2.0**-53


def soft_cases(z, dtype):
    """Targets that are no single class: what the loss is asked, and what each row wants."""
    rng = np.random.default_rng(1)
    p = rng.random(z.shape).astype(dtype).astype(np.float64)
    weight = rng.random(z.shape[1]).astype(dtype).astype(np.float64)
    target = z.argmax(axis=1)
    yield target, None, 0.1
    yield target, weight, 0.1
    yield target, weight, 1.0
    yield p, None, 0.0
    yield p, weight, 0.1


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_soft_targets_keep_their_natural_scale(xp, classes, offset, dtype):
    """Within 32 units of mass·log1p(rest) + sum q·|z - top|, both of which are positive parts."""
    z, _ = rows(classes, offset, dtype)
    for target, weight, smoothing in soft_cases(z, dtype):
        loss = xent_array.cross_entropy(
            make(xp, z, dtype),
            make(xp, target) if target.ndim == 1 else make(xp, target, dtype),
            weight=None if weight is None else make(xp, weight, dtype),
            label_smoothing=smoothing,
            reduction="none",
        )
        for ours, row, wants in zip(to_numpy(loss).tolist(), z, target, strict=True):
            q = oracle.wanted(classes, wants, weight, smoothing)
            true = oracle.row_loss(row, q)
            assert abs(mpmath.mpf(ours) - true) <= 32 * unit(dtype) * true


@pytest.mark.parametrize("scale", [10.0, 0.1, -3.0])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_logit_scale_is_applied_below_the_top(xp, scale, offset):
    """A scaled offset costs no digits: the scale follows the subtraction."""
    z, _ = rows(10, offset, "float32")
    z = (z - z.min(axis=1, keepdims=True)) / 16 + offset
    z = z.astype(np.float32).astype(np.float64)
    target = (scale * z).argmax(axis=1)
    factor = float(np.float32(scale))
    for option in (factor, make(xp, factor, "float32")):
        loss = xent_array.cross_entropy(
            make(xp, z, "float32"), make(xp, target), logit_scale=option, reduction="none"
        )
        for ours, row, label in zip(to_numpy(loss).tolist(), z, target, strict=True):
            scaled = [mpmath.mpf(factor) * value for value in oracle.exact(row)]
            true = oracle.logsumexp(scaled) - scaled[label]
            others = [value for j, value in enumerate(scaled) if j != label]
            margin = max(0, scaled[label] - max(others))
            assert abs(mpmath.mpf(ours) / true - 1) <= (32 + margin) * unit("float32")


@pytest.mark.parametrize("softcap", [5.0, 30.0])
def test_softcap(xp, softcap):
    """Softcap adds 2·softcap to the factor of the promise."""
    z, target = rows(10, 0.0, "float32")
    loss = xent_array.cross_entropy(
        make(xp, z, "float32"), make(xp, target), softcap=softcap, reduction="none"
    )
    for ours, row, label in zip(to_numpy(loss).tolist(), z, target, strict=True):
        capped = [softcap * mpmath.tanh(value / softcap) for value in oracle.exact(row)]
        true = oracle.logsumexp(capped) - capped[label]
        margin = max(0, capped[label] - max(v for j, v in enumerate(capped) if j != label))
        assert abs(mpmath.mpf(ours) / true - 1) <= (32 + margin + 2 * softcap) * unit("float32")


@pytest.mark.needs("half")
def test_losses_of_half_logits_are_computed_in_float32(xp):
    """70,000 classes overflow a float16 sum; the loss is right to the last bit of float32."""
    for dtype in set(DTYPES[xp.__name__]) - {"float32", "float64"}:
        z = make(xp, np.zeros((2, 70_000)), dtype)
        loss = xent_array.cross_entropy(z, make(xp, [0, 69_999]), dtype=xp.float32)
        assert float(loss) == pytest.approx(np.log(70_000.0), rel=2.0**-24)


# --- slabs and ranks


def slabs_of(xp, z, target, cuts, dtype):
    """The four numbers of the slabs of classes between `cuts`, for index targets."""
    backend = backend_of("z", make(xp, z, dtype))
    slabs = []
    for start, stop in itertools.pairwise(cuts):
        part = make(xp, z[:, start:stop], dtype)
        seen = spread(backend, part, 1.0, slab=True, differentiable=False)
        inside = (target >= start) & (target < stop)
        local = make(xp, np.where(inside, target - start, 0)[:, None])
        mass = make(xp, inside[:, None].astype(np.float64), dtype)
        dot = backend.gather(seen.shifted, local) * mass
        slabs.append(FourNumbers(seen.top, seen.rest, mass, dot))
    return backend, slabs


@pytest.mark.parametrize("count", [2, 7, 40])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
@pytest.mark.needs("eager")
def test_slabs_merge_in_any_order(xp, count, offset, order):
    """A row cut in slabs, merged as a tree in any order, keeps the promise."""
    z, target = rows(1000, offset, "float32")
    rng = np.random.default_rng(count)
    cuts = [0, *sorted(rng.choice(np.arange(1, 1000), count - 1, replace=False).tolist()), 1000]
    backend, slabs = slabs_of(xp, z, target, cuts, "float32")
    places = {"forward": range(count), "backward": range(count)[::-1]}.get(
        order, rng.permutation(count)
    )
    row = merge_tree(backend.xp, [slabs[i] for i in places])
    assert_promised(xp, to_numpy(finish(backend.xp, row))[:, 0], 1000, offset, "float32")


def test_a_tree_of_4000_slabs_keeps_precision():
    """Merged one by one they lose 700 units of rounding, as a tree 2.7."""
    xp = np
    z, target = rows(50_257, 0.0, "float32")
    cuts = [*range(0, 50_257, 13), 50_257]
    backend, slabs = slabs_of(xp, z, target, cuts, "float32")
    loss = finish(backend.xp, merge_tree(backend.xp, slabs))
    assert_promised(xp, to_numpy(loss)[:, 0], 50_257, 0.0, "float32")


@pytest.mark.needs("eager")
def test_merge_has_an_identity(xp):
    """The four numbers of no classes change nothing, from either side."""
    z, target = rows(10, 0.0, "float32")
    backend, (row,) = slabs_of(xp, z, target, [0, 10], "float32")
    none = identity(backend.xp, row.top)
    for merged in (merge(backend.xp, row, none), merge(backend.xp, none, row)):
        for ours, theirs in zip(merged, row, strict=True):
            np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


@pytest.mark.parametrize("ranks", [1, 3, 8])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.needs("eager")
def test_ranks_merge_in_two_collectives(xp, ranks, offset):
    """The rank formula keeps the promise; here the ranks are an axis, reduced over by max, sum."""
    z, target = rows(1000, offset, "float32")
    cuts = np.linspace(0, 1000, ranks + 1).astype(int).tolist()
    backend, slabs = slabs_of(xp, z, target, cuts, "float32")
    ns = backend.xp
    mine = FourNumbers(*(ns.stack(column) for column in zip(*slabs, strict=True)))
    row = merge_ranks(
        ns,
        mine,
        maximum=lambda x: ns.max(x, axis=0, keepdims=True),
        total=lambda x: ns.sum(x, axis=1, keepdims=True),
    )
    assert_promised(xp, to_numpy(finish(ns, row))[0, :, 0], 1000, offset, "float32")


@pytest.mark.needs("eager")
def test_equal_tops_on_several_ranks_are_counted(xp):
    """Ties across ranks: each holds its top apart, all but one are put back."""
    backend = backend_of("z", make(xp, [0.0]))
    ns = backend.xp
    one = make(xp, np.ones((4, 1, 1)))
    mine = FourNumbers(one * 3.0, one * 0.0, one * 0.25, one * 0.0)
    row = merge_ranks(
        ns,
        mine,
        maximum=lambda x: ns.max(x, axis=0, keepdims=True),
        total=lambda x: ns.sum(x, axis=1, keepdims=True),
    )
    assert float(finish(ns, row)[0, 0, 0]) == pytest.approx(np.log(4.0), rel=1e-15)


@pytest.mark.parametrize("offset", OFFSETS)
def test_class_slabs_of_the_loss_itself(xp, offset, monkeypatch):
    """Rows too wide for the memory budget are read slab by slab, within the promise."""
    set_budget(monkeypatch, 4 * 100)
    z, target = rows(1000, offset, "float32")
    loss = xent_array.cross_entropy(make(xp, z, "float32"), make(xp, target), reduction="none")
    assert_promised(xp, to_numpy(loss), 1000, offset, "float32")
