"""The CUDA kernels without a GPU: their source, run on the processor.

A block's threads take turns here. What only a GPU shows, such as races, is not seen.
"""

import ctypes
import itertools

import ml_dtypes
import mpmath
import numpy as np
import pytest

import test_accuracy
import test_gradients
import test_linear
import test_nonfinite
import test_softmax
import xent_array
from xent_array import _kernels, _tiles
from xent_array._kernels import cuda
from xent_array._kernels.cuda import Kernels

import oracle
from cuda_stand_in import (
    BFLOAT16,
    DTYPES,
    NumpyMemory,
    Processor,
    compute_dtype,
    library,
    on_device,
)

pytestmark = [
    pytest.mark.library("numpy"),
    pytest.mark.skipif(_kernels._missing("sys") is not None, reason="kernels are switched off"),
]


#: Around a vector, a warp's vectors, both kinds of kernel, and the tiles of a gradient.
WIDTHS = [1, 2, 7, 8, 9, 64, 65, 127, 1000, 1025, 4099, 9001]
LAYOUTS = ["rows", "off by one", "padded", "class-major", "apart", "reversed", "three axes"]


@pytest.fixture
def processor():
    library()
    return Processor()


@pytest.fixture
def kernels(processor):
    return Kernels(NumpyMemory(), processor)


@pytest.fixture(params=[0, 1 << 16], ids=["", "fused"])
def on_gpu(request, processor, monkeypatch):
    """NumPy's arrays are read by the CUDA kernels, which flush what is less than normal."""
    processor.kept = request.param
    monkeypatch.setattr(cuda, "FUSED_BLOCKS", (1,))  # there are no others
    monkeypatch.setattr(cuda, "_FEW_ROWS", 1)

    def flushed(xp, dtype):
        return {"float64": 0.0, "float32": 2.0**-126}[dtype]

    for module in (test_accuracy, test_gradients):
        monkeypatch.setattr(module, "flushed", flushed)
    with on_device(NumpyMemory(), processor) as kernels:
        yield kernels


def laid_out(z, layout):
    """The same six rows in other places of memory, with junk around them."""
    rows, classes = z.shape
    if layout == "off by one":
        room = np.full(rows * classes + 1, 77, z.dtype)[1:].reshape(rows, classes)
    elif layout == "padded":
        room = np.full((rows, classes + 3), 77, z.dtype)[:, :classes]
    elif layout == "class-major":
        room = np.full((classes, rows), 77, z.dtype).T
    elif layout == "apart":
        room = np.full((rows, 2 * classes), 77, z.dtype)[:, ::2]
    elif layout == "reversed":
        room = np.full((rows, classes), 77, z.dtype)[:, ::-1]
    elif layout == "three axes":
        room = np.full((4, 5, 2, classes), 77, z.dtype)[:3, ::4, :1].reshape(3, 2, 1, classes)
        room, z = np.moveaxis(room, 0, 1), z.reshape(2, 3, 1, classes)
    else:
        return z
    room[...] = z
    return room


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", WIDTHS)
def test_statistics_against_exact_sums(kernels, classes, dtype, layout):
    """In long double: rest is within 32 units of rounding, wherever the rows lie."""
    rng = np.random.default_rng(classes)
    z = laid_out((4 * rng.standard_normal((6, classes))).astype(dtype), layout)
    index, weight = rng.integers(0, classes, (*z.shape[:-1], 1)), rng.random(classes)
    compute = compute_dtype(dtype)
    unit = np.finfo(compute).eps / 2
    found = kernels.row_stats(z, index, weight.astype(compute), 1.0, compute, argmax=True)
    exact = z.astype(np.longdouble)
    top, place = exact.max(-1, keepdims=True), exact.argmax(-1)[..., None]
    fall = exact - top
    others = np.exp(fall)
    np.put_along_axis(others, place, 0, -1)
    np.testing.assert_array_equal(found.top, top.astype(compute))
    np.testing.assert_array_equal(found.argmax, place)
    picked = np.take_along_axis(fall, index, -1).astype(compute)
    np.testing.assert_array_equal(found.picked, picked)
    rest = others.sum(-1, keepdims=True)
    even = (fall * weight.astype(compute)).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.rest.astype(np.longdouble), rest, rtol=32 * unit)
    np.testing.assert_allclose(found.fall.astype(np.longdouble), even, rtol=32 * unit)


def exponentials(x):
    result = np.empty_like(x)
    library().exponentials(
        *(ctypes.c_void_p(a.__array_interface__["data"][0]) for a in (x, result)),
        ctypes.c_longlong(x.size),
    )
    return result


def test_exp_within_six_units_of_rounding():
    """The instruction's four, and what its argument loses is made good at any depth."""
    x = np.concatenate([np.linspace(-87, 8, 200_001), -np.geomspace(1e-12, 1, 10_000)])
    x = x.astype(np.float32)
    exact = np.exp(x.astype(np.longdouble))
    assert np.max(np.abs(exponentials(x) - exact) / exact) <= 6 * 2.0**-24
    ends = np.asarray([0, -0.0, -100, -1e38, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(exponentials(ends), [1, 1, 0, 0, 0, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [20, 300, 5000])
def test_rows_that_climb_keep_precision(kernels, classes, dtype):
    """Each entry above all before it, in steps small and large: the base of the sums moves."""
    heights = np.asarray([1e-3, 0.3, 20.0, 60.0, 300.0])
    z = (np.linspace(0, 1, classes) * heights[:, None]).astype(dtype)
    compute, index = compute_dtype(dtype), np.full((5, 1), classes - 1)
    found = kernels.row_stats(z, index, None, 1.0, compute, argmax=True)
    exact = z.astype(np.longdouble)
    fall = exact - exact.max(-1, keepdims=True)
    others = np.exp(fall)
    np.put_along_axis(others, exact.argmax(-1)[:, None], 0, -1)
    np.testing.assert_array_equal(found.argmax, exact.argmax(-1)[:, None])
    # What is furthest below the top counts least, and may be off by most.
    bound = ((32 - fall) * others).sum(-1, keepdims=True) * np.finfo(compute).eps / 2
    off = np.abs(found.rest.astype(np.longdouble) - others.sum(-1, keepdims=True))
    assert (off <= bound).all()


@pytest.mark.parametrize("place", [0, 1, 500, -1])
@pytest.mark.parametrize("offset", [0.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rest_is_precise_however_far_below_the_top(kernels, dtype, offset, place):
    """Within (32 + margin) units, wherever the top is met, down to exp(-84)."""
    rng, compute = np.random.default_rng(0), compute_dtype(dtype)
    margins = np.asarray([0, 1, 5, 10, 20, 40, 60, 80])
    z = (rng.uniform(-4, 4, (8, 1003)) + offset).astype(dtype).astype(np.float64)
    z[:, place] = 4 + offset + margins
    z = z.astype(dtype)
    rest = kernels.row_stats(z, np.zeros((8, 1), int), None, 1.0, compute, argmax=False).rest
    fall = z.astype(np.longdouble) - z.astype(np.longdouble)[:, place, None]
    fall[:, place] = -np.inf
    exact = np.exp(fall).sum(-1, keepdims=True)
    off = np.abs(rest.astype(np.longdouble) - exact)
    bound = (32 - fall.max(-1, keepdims=True)) * np.finfo(compute).eps / 2 * exact
    assert (off <= bound + 1003 * 2.0**-126).all()  # what is less than normal may be 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [20, 100])
def test_numbers_that_are_none_are_seen_anywhere(kernels, classes, dtype):
    """NaN or an infinity in any entry, hence on either side of any pair that is compared."""
    index, compute = np.zeros((classes, 1), int), compute_dtype(dtype)
    for junk in (np.nan, np.inf):
        for others in (0, -np.inf):
            z = np.full((classes, classes), others, dtype)
            np.fill_diagonal(z, junk)
            found = kernels.row_stats(z, index, None, 1.0, compute, argmax=True)
            np.testing.assert_array_equal(found.top, np.full((classes, 1), junk))
            assert np.isnan(found.rest).all()
            np.testing.assert_array_equal(found.argmax[:, 0], np.arange(classes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [20, 100, 1000])
def test_logits_that_are_impossible_or_nearly(kernels, classes, dtype):
    """They add nothing to one that is possible, wherever it is, and are as likely as each other."""
    lowest = float(ml_dtypes.finfo(dtype).min)
    index, compute = np.zeros((20, 1), int), compute_dtype(dtype)
    for others in (-np.inf, lowest):
        z = np.full((20, classes), others, dtype)
        rest = kernels.row_stats(z, index, None, 1.0, compute, argmax=False).rest
        expected = classes - 1 if others == lowest else np.nan
        np.testing.assert_array_equal(rest, np.full((20, 1), expected))
        z[np.arange(20), np.arange(20)] = 5
        found = kernels.row_stats(z, index, None, 1.0, compute, argmax=True)
        np.testing.assert_array_equal(found.rest, np.zeros((20, 1)))
        np.testing.assert_array_equal(found.argmax[:, 0], np.arange(20))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_two_entries_tie(kernels, dtype):
    """Of one pair or two, of one thread or two."""
    for classes in (20, 70):
        ties = np.asarray(list(itertools.combinations(range(classes), 2)))
        z = np.full((len(ties), classes), -200, dtype)
        np.put_along_axis(z, ties, 3, 1)
        index, compute = np.zeros((len(ties), 1), int), compute_dtype(dtype)
        found = kernels.row_stats(z, index, None, 1.0, compute, argmax=True)
        np.testing.assert_array_equal(found.rest, np.ones((len(ties), 1)))
        np.testing.assert_array_equal(found.argmax, ties[:, :1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [20, 100, 1100])
def test_one_entry_of_a_gradient_is_given(kernels, classes, dtype):
    """Wherever it is, and nothing else is changed by it."""
    z, compute = np.zeros((classes, classes), dtype), compute_dtype(dtype)
    column, place = np.zeros((classes, 1), compute), np.arange(classes)[:, None]
    numbers = {"top": column, "pull": column + 1, "chosen": column - 2, "index": place}
    for even in (None, 0.0):  # plain, and not
        grad = np.empty((classes, classes), dtype)
        kernels.row_grad(z, grad, 1.0, **numbers, even=even, weight=None, kept=None)
        np.testing.assert_array_equal(grad.astype(float), 1 - 3 * np.eye(classes))


@pytest.mark.parametrize("weight", [0.1 / 50_257, "drawn"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_below_a_top_that_came_late(kernels, dtype, weight):
    """Nearly all of it lies near the top, and what was seen before lay near to another."""
    rng, classes, compute = np.random.default_rng(0), 50_257, compute_dtype(dtype)
    if weight == "drawn":
        weight = rng.random(classes).astype(compute)
    z = np.where(np.arange(classes) >= 2048, 7.5, 0.0).astype(dtype)[None]
    index = np.zeros((1, 1), int)
    even = kernels.row_stats(z, index, weight, 1.0, compute, argmax=False).fall
    exact = ((z.astype(np.longdouble) - 7.5) * compute.type(weight)).sum()
    assert abs(even.item() - exact) <= 32 * abs(exact) * np.finfo(compute).eps / 2


@pytest.mark.parametrize("classes", [3, 64, 100, 3000])
def test_ties_are_counted_and_the_first_is_the_place(kernels, classes):
    """Equal greatest logits, met by different threads, at any places."""
    rng = np.random.default_rng(0)
    z = np.where(rng.random((8, classes)) < 0.1, 5, -100).astype(np.float32)
    z[:, rng.integers(classes)] = 5
    found = kernels.row_stats(z, np.zeros((8, 1), int), None, 1.0, np.dtype("f4"), argmax=True)
    np.testing.assert_array_equal(found.argmax[:, 0], z.argmax(1))
    np.testing.assert_array_equal(found.rest[:, 0], (z == 5).sum(1) - 1)


@pytest.mark.parametrize("into", LAYOUTS)
@pytest.mark.parametrize("layout", ["rows", "off by one", "class-major"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 64, 65, 300, 8201])
def test_gradients_in_place_and_into_other_memory(kernels, classes, dtype, layout, into):
    """Every entry is written, rows that do not count with exact zeros, and nothing beside them."""
    rng = np.random.default_rng(0)
    room = laid_out(np.full((6, classes), 77, dtype), into)
    shape = (*room.shape[:-1], 1)
    z = laid_out(rng.standard_normal((6, classes)).astype(dtype), layout)
    z = z.reshape(room.shape)  # in place where the layout allows it
    compute = compute_dtype(dtype)
    top, pull, even, chosen = rng.random((4, *shape)).astype(compute)
    weight, kept = rng.random(classes).astype(compute), rng.random(shape) < 0.7
    index = rng.integers(0, classes, shape)
    numbers = {"top": top, "pull": pull, "even": even, "weight": weight, "index": index}
    kernels.row_grad(z, room, 0.5, **numbers, chosen=chosen, kept=kept)
    expected = np.exp(0.5 * (z.astype(np.longdouble) - top)) * pull - even * weight
    np.put_along_axis(expected, index, chosen.astype(np.longdouble), -1)
    expected = np.where(kept, expected, 0)
    scale = {np.float32: 2**-21, np.float64: 2**-50, np.float16: 2**-10, BFLOAT16: 2**-7}[dtype]
    np.testing.assert_allclose(room.astype(np.longdouble), expected, rtol=0, atol=8 * scale)
    assert (room.astype(float)[~kept[..., 0]] == 0).all()
    around = room if room.base is None else room.base
    assert (around == np.asarray(77, dtype)).sum() == around.size - room.size
    kernels.row_grad(z, z, 0.5, **numbers, chosen=chosen, kept=kept)
    np.testing.assert_array_equal(z.astype(float), room.astype(float))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [20, 1000])
def test_a_number_for_all_is_as_good_as_memory_full_of_it(kernels, classes, dtype):
    """The weight of every class, and what is owed in every row, to the last bit."""
    rng = np.random.default_rng(0)
    z, compute = (4 * rng.standard_normal((6, classes))).astype(dtype), compute_dtype(dtype)
    index = rng.integers(0, classes, (6, 1))
    sums = [
        kernels.row_stats(z, index, weight, 1.0, compute, argmax=False).fall
        for weight in (0.3, np.full(classes, 0.3, compute))
    ]
    np.testing.assert_array_equal(*sums)
    grads, column = np.empty((2, 6, classes), dtype), rng.random((6, 1)).astype(compute)
    numbers = {"top": column, "pull": column, "chosen": column, "index": index, "kept": None}
    for grad, even, weight in zip(
        grads, (0.3, np.full((6, 1), 0.3, compute)), (None, np.ones(classes, compute)), strict=True
    ):
        kernels.row_grad(z, grad, 1.0, even=even, weight=weight, **numbers)
    np.testing.assert_array_equal(*grads)


def test_any_order_of_axes_reaches_every_row(kernels):
    """Rows along four axes, in all 24 orders of memory."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 3, 2, 2, 70)).astype(np.float32)
    index = np.zeros((2, 3, 2, 2, 1), int)
    for order in itertools.permutations(range(4)):
        view = np.ascontiguousarray(z.transpose(*order, 4)).transpose(*np.argsort(order), 4)
        found = kernels.row_stats(view, index, None, 1.0, np.dtype("f4"), argmax=True)
        np.testing.assert_array_equal(found.argmax[..., 0], z.argmax(-1))


# --- the loss by these kernels


@pytest.mark.parametrize("classes", [2, 10, 1000, 50_257])
@pytest.mark.parametrize("offset", test_accuracy.OFFSETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_promise(on_gpu, classes, offset, dtype):
    """Losses and gradients within (32 + margin) units, for margins up to 80, at any offset."""
    test_accuracy.test_index_loss_keeps_relative_precision(np, classes, offset, dtype)
    if classes <= 1000:
        test_gradients.test_the_promise(np, classes, offset, dtype, "index")
        test_accuracy.test_soft_targets_keep_their_natural_scale(
            np, min(classes, 10), offset, dtype
        )


@pytest.mark.parametrize("classes", [2, 10, 1000, 50_257])
@pytest.mark.parametrize(
    ("dtype", "offset"),
    [*itertools.product([np.float16, BFLOAT16], [0.0, 100.0, 1e4]), (BFLOAT16, 1e8)],
)
def test_the_promise_for_half_logits(on_gpu, classes, offset, dtype):
    """Their losses in float32 have the precision of float32."""
    z, target = test_accuracy.rows(classes, offset, dtype)
    losses, _ = xent_array.cross_entropy_and_grad(
        z.astype(dtype), target, reduction="none", dtype="float32"
    )
    margins = test_accuracy.margins(z, target)
    for row, label, loss, margin in zip(z, target, losses.tolist(), margins, strict=True):
        true = oracle.index_loss(row, label)
        assert abs(mpmath.mpf(loss) - true) <= (32 + margin) * 2.0**-24 * true + classes * 2.0**-126


@pytest.mark.parametrize("rest", [0.4, 0.9, 2.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_just_above_one(on_gpu, rest, dtype):
    """Along rows and across them."""
    test_accuracy.test_sums_just_above_one(np, 1000, rest, dtype)


@pytest.mark.parametrize(("scale", "offset"), [(10.0, 0.0), (0.1, 1e4)])
def test_logit_scale_is_applied_below_the_top(on_gpu, scale, offset):
    test_accuracy.test_logit_scale_is_applied_below_the_top(np, scale, offset)


@pytest.mark.parametrize("margin", [0.0, 20.0])
def test_smoothing_at_the_top_is_formed_from_its_parts(on_gpu, margin):
    test_gradients.test_smoothing_at_the_top_is_formed_from_its_parts(np, 1e-3, margin)


@pytest.mark.parametrize("width", [0, 100])
@pytest.mark.parametrize(("logits", "index", "loss"), test_nonfinite.ROWS)
def test_rows_with_nan_and_infinities(on_gpu, logits, index, loss, width):
    """The same, be the row read by a thread or by a block of them."""
    row = np.concatenate([np.asarray(logits), np.full(width, -np.inf)])
    losses = xent_array.cross_entropy(row[None], np.asarray([index]), reduction="none")
    np.testing.assert_allclose(losses, [loss], rtol=1e-15)
    _, grad = xent_array.cross_entropy_and_grad(row, np.asarray(index))
    assert np.isfinite(grad).all() == np.isfinite(loss) or loss == np.inf
    assert np.isnan(grad).all() == np.isnan(loss)


@pytest.mark.parametrize("classes", [5, 200])
def test_where_a_row_has_its_first_nan(on_gpu, classes):
    z = np.zeros((2, classes), np.float32)
    z[0, 1], z[0, 3:], z[1, 2] = 9, np.nan, np.nan
    _, stats = xent_array.cross_entropy(z, np.zeros(2, int), return_stats=True)
    assert stats.prediction.tolist() == [3, 2]


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("classes", [4, 200])
def test_rows_that_do_not_count_are_exactly_zero(on_gpu, junk, classes):
    z = np.ones((3, classes), np.float32)
    z[1] = junk
    loss, grad = xent_array.cross_entropy_and_grad(z, np.asarray([0, -100, 1]))
    assert loss == pytest.approx(np.log(classes))
    assert (grad[1] == 0).all()
    assert (grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("classes", [5, 200])
@pytest.mark.parametrize("axis", [0, 2])
def test_options_mean_what_they_mean_to_the_array_code(on_gpu, axis, classes, monkeypatch):
    """As the kernels in host memory are tested, if on fewer of all combinations.

    A kernel is compiled for each, which takes longer than all else.
    """
    import test_kernels

    every = list(itertools.product(*test_kernels.OPTIONS.values()))
    test_kernels.means_what_it_means_to_the_array_code(axis, classes, monkeypatch, every[::17])


@pytest.mark.parametrize("options", ["plain", "weights", "rows"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_tiles_of_the_linear_loss(on_gpu, processor, monkeypatch, reduction, options):
    """Each is read once, and its gradient written over its logits."""
    monkeypatch.setitem(_tiles.TILE_BYTES, "device", 8 * test_linear.C * 3)
    test_linear.equals_the_loss_of_the_logits(
        np, test_linear.TARGET, reduction, test_linear.OPTIONS[options], None
    )
    rows = [form.kernel for *_, form, _ in processor.launches if "columns" not in form.kernel]
    assert rows[:2] == ["lane_stats_float64", "lane_grad_float64"]  # of the logits by hand
    _, *tiles = [arguments for _, _, form, arguments in processor.launches if "grad" in form.kernel]
    assert [x[9] for x in tiles[:3]] == [3, 3, 1]  # rows
    assert all(x[0] == x[4] for x in tiles[:3])  # where the logits are


@pytest.mark.parametrize("kept", [1 << 15, 1 << 16])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_as_long_as_a_block_keeps(processor, monkeypatch, dtype, kept):
    """Statistics and gradient are one look at them, from memory that is aligned or not."""
    monkeypatch.setattr(cuda, "FUSED_BLOCKS", (1,))
    monkeypatch.setattr(cuda, "_FEW_ROWS", 1)
    entries, rng = kept // np.dtype(dtype).itemsize, np.random.default_rng(0)
    for classes in (entries // 2 + 8, entries - 1, entries, entries + 1):
        z = laid_out(rng.standard_normal((2, classes)).astype(dtype), "off by one")
        target, found = rng.integers(0, classes, 2), []
        for keeps in (0, kept):
            processor.kept = keeps
            with on_device(NumpyMemory(), processor):
                found.append(xent_array.cross_entropy_and_grad(z, target, reduction="none"))
        fused = [form for *_, form, _ in processor.launches if "fused" in form.kernel]
        assert bool(fused) == (classes <= entries)
        processor.launches.clear()
        unit = np.finfo(dtype).eps / 2
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(one, other, rtol=32 * unit, atol=np.finfo(dtype).tiny)


@pytest.mark.parametrize("target", [np.int32, np.int64, np.uint8])
def test_targets_of_any_integer_dtype(on_gpu, target):
    z = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    losses = [
        xent_array.cross_entropy(z, np.asarray([4, 0, 99], dtype)) for dtype in (target, np.int64)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [5, 64, 65, 1000, 4099])
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_rows_without_a_target(on_gpu, processor, function, classes, dtype):
    """Read by one launch, which writes them as well where it can, and by another where not."""
    z = np.random.default_rng(classes).standard_normal((4, classes)).astype(dtype)
    found = getattr(xent_array, function)(z)
    works = [form.kernel.split("_")[0] for *_, form, _ in processor.launches]
    assert {"wide", "lane", "fused1"}.intersection(works)
    if "fused1" in works:
        assert works == ["fused1"]
    assert found.dtype == dtype
    true = test_softmax.exact(function, z)
    info = ml_dtypes.finfo(dtype)
    bound = test_softmax.bound(function, z.astype(np.longdouble), compute_dtype(dtype).name)
    limit = bound + float(info.eps) * abs(true) + float(info.tiny)
    assert (abs(found.astype(np.longdouble) - true) <= limit).all()


def test_logarithms_of_rows_without_one(on_gpu):
    rows = np.asarray([[0, np.nan], [0, np.inf], [-np.inf, -np.inf], [0, -np.inf]], np.float32)
    found = xent_array.log_softmax(rows)
    np.testing.assert_array_equal(found, [[np.nan] * 2] * 3 + [[0, -np.inf]])
