"""The CUDA kernels without a GPU: their source, run on the processor, and how it is launched.

A block's threads take turns here. What only a GPU shows, such as races, is not seen.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

import test_accuracy
import test_gradients
import test_nonfinite
import xent_array
from xent_array import _kernels, _threads
from xent_array._backends.numpy import Backend
from xent_array._kernels.cuda import Kernels

from cuda_stand_in import NumpyMemory, Processor, Recorder, library

pytestmark = [
    pytest.mark.library("numpy"),
    pytest.mark.skipif(_kernels._missing("sys") is not None, reason="kernels are switched off"),
]

BFLOAT16 = ml_dtypes.bfloat16
DTYPES = [np.float32, np.float64, np.float16, BFLOAT16]

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


@pytest.fixture
def on_gpu(kernels, monkeypatch):
    """NumPy's arrays are read by the CUDA kernels, which flush what is less than normal."""

    def chosen(backend, x):
        return None if _kernels._disabled else kernels

    def flushed(xp, dtype):
        return {"float64": 0.0, "float32": 2.0**-126}[dtype]

    monkeypatch.setattr(Backend, "kernels", chosen)
    monkeypatch.setattr(_threads, "available", lambda: 1)
    for module in (test_accuracy, test_gradients):
        monkeypatch.setattr(module, "flushed", flushed)
    return kernels


def compute_dtype(dtype):
    return np.dtype(np.float64 if dtype is np.float64 else np.float32)


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
    found = kernels.row_stats(z, index, weight.astype(compute), 1.0, compute, place=True)
    exact = z.astype(np.longdouble)
    top, place = exact.max(-1, keepdims=True), exact.argmax(-1)[..., None]
    fall = exact - top
    others = np.exp(fall)
    np.put_along_axis(others, place, 0, -1)
    np.testing.assert_array_equal(found.top, top.astype(compute))
    np.testing.assert_array_equal(found.place, place)
    picked = np.take_along_axis(fall, index, -1).astype(compute)
    np.testing.assert_array_equal(found.picked, picked)
    rest = others.sum(-1, keepdims=True)
    even = (fall * weight.astype(compute)).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.rest.astype(np.longdouble), rest, rtol=32 * unit)
    np.testing.assert_allclose(found.even.astype(np.longdouble), even, rtol=32 * unit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [20, 300, 5000])
def test_rows_that_climb_keep_precision(kernels, classes, dtype):
    """Each entry above all before it, in steps small and large: the base of the sums moves."""
    heights = np.asarray([1e-3, 0.3, 20.0, 60.0, 300.0])
    z = (np.linspace(0, 1, classes) * heights[:, None]).astype(dtype)
    compute, index = compute_dtype(dtype), np.full((5, 1), classes - 1)
    found = kernels.row_stats(z, index, None, 1.0, compute, place=True)
    exact = z.astype(np.longdouble)
    fall = exact - exact.max(-1, keepdims=True)
    others = np.exp(fall)
    np.put_along_axis(others, exact.argmax(-1)[:, None], 0, -1)
    np.testing.assert_array_equal(found.place, exact.argmax(-1)[:, None])
    # What is furthest below the top counts least, and may be off by most.
    bound = ((32 - fall) * others).sum(-1, keepdims=True) * np.finfo(compute).eps / 2
    off = np.abs(found.rest.astype(np.longdouble) - others.sum(-1, keepdims=True))
    assert (off <= bound).all()


@pytest.mark.parametrize("classes", [3, 64, 100, 3000])
def test_ties_are_counted_and_the_first_is_the_place(kernels, classes):
    """Equal greatest logits, met by different threads, at any places."""
    rng = np.random.default_rng(0)
    z = np.where(rng.random((8, classes)) < 0.1, 5, -100).astype(np.float32)
    z[:, rng.integers(classes)] = 5
    found = kernels.row_stats(z, np.zeros((8, 1), int), None, 1.0, np.dtype("f4"), place=True)
    np.testing.assert_array_equal(found.place[:, 0], z.argmax(1))
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
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_option_means_what_it_means_to_the_array_code(on_gpu, axis, classes, monkeypatch):
    """As the kernels in host memory are tested."""
    import test_kernels

    test_kernels.test_every_option_means_what_it_means_to_the_array_code(axis, classes, monkeypatch)


@pytest.mark.parametrize("target", [np.int32, np.int64, np.uint8])
def test_targets_of_any_integer_dtype(on_gpu, target):
    z = np.random.default_rng(0).standard_normal((3, 100)).astype(np.float32)
    losses = [
        xent_array.cross_entropy(z, np.asarray([4, 0, 99], dtype)) for dtype in (target, np.int64)
    ]
    assert losses[0] == losses[1]


# --- how they are launched


def launched(z, into=None, *, number=0, stream=0, weight=None, place=False):
    """What is asked for to read rows, or to write their gradient."""
    recorder, memory = Recorder(), NumpyMemory(number, stream)
    kernels, shape = Kernels(memory, recorder), (*z.shape[:-1], 1)
    compute, index = compute_dtype(z.dtype.type), np.zeros(shape, np.int64)
    if into is None:
        kernels.row_stats(z, index, weight, 1.0, compute, place=place)
    else:
        ones, nothing = np.ones(shape, compute), {"even": None, "weight": None, "kept": None}
        numbers = {"top": ones, "pull": ones, "index": index, "chosen": ones}
        kernels.row_grad(z, into, 1.0, **numbers, **nothing)
    assert not memory.active
    return recorder.launches


def address(x):
    return x.__array_interface__["data"][0]


def test_the_arrays_device_and_stream_are_used():
    z = np.zeros((3, 100), np.float32)
    ((device, stream, form, arguments),) = launched(z, number=3, stream=0xABC)
    assert (device, stream) == (3, 0xABC)
    assert form == ("wide_stats_float32", 3, 32)
    #: Memory, the steps of two axes of rows and of classes; the inner axis, rows, classes, scale.
    assert arguments[:8] == (address(z), 0, 100, 1, 3, 3, 100, 1.0)
    assert [bool(x) for x in arguments[8:]] == [False, True, True, True, True, False, False]


def test_what_is_asked_for_has_an_address():
    ((*_, arguments),) = launched(np.zeros((3, 100)), weight=np.ones(100), place=True)
    assert all(arguments[8:])


@pytest.mark.parametrize(
    ("shape", "move", "kernel", "layout"),
    [
        ((4, 6, 100), None, "wide", (0, 100, 1, 24)),
        ((4, 100, 6), 1, "wide", (600, 1, 6, 6)),  # few rows, and many classes
        ((4, 10, 50), 1, "lane", (500, 1, 50, 50)),
        ((2, 70, 40, 30), 1, "lane", (84_000, 1, 1200, 1200)),
        ((100,), None, "wide", (0, 0, 1, 1)),
    ],
)
def test_rows_along_two_axes_are_one_launch(shape, move, kernel, layout):
    """Axes are put together where they can be; images are one launch."""
    z = np.zeros(shape, np.float32)
    z = z if move is None else np.moveaxis(z, move, -1)
    ((_, _, form, arguments),) = launched(z)
    assert form.kernel == f"{kernel}_stats_float32"
    assert arguments[1:5] == layout
    rows = z.size // z.shape[-1]
    assert arguments[5:7] == (rows, z.shape[-1])
    assert form.blocks == (rows if kernel == "wide" else -(-rows // form.threads))


def test_rows_along_three_axes_are_several_launches():
    """Each covers two axes, and goes on where the one before stopped."""
    z = np.zeros((2, 8, 6, 100), np.float32)[:, ::2, ::3]
    z = z.transpose(1, 0, 2, 3)
    launches = [arguments for *_, arguments in launched(z)]
    assert [x[0] - address(z) for x in launches] == [k * 2 * 6 * 100 * 4 for k in range(4)]
    index = [x[9] - launches[0][9] for x in launches]
    top = [x[10] - launches[0][10] for x in launches]
    assert index == [k * 4 * 8 for k in range(4)]
    assert top == [k * 4 * 4 for k in range(4)]
    assert {x[1:7] for x in launches} == {(4800, 300, 1, 2, 4, 100)}


def test_gradients_go_where_they_are_wanted():
    """Both arrays have steps of their own; a row is shared by as many blocks as it takes."""
    z, into = np.zeros((3, 9000), np.float16), np.zeros((3, 18_000), np.float16)[:, ::2]
    ((_, _, form, arguments),) = launched(z, into)
    assert form == ("wide_grad_float16", 3 * 2, 256)
    assert arguments[:8] == (address(z), 0, 9000, 1, address(into), 0, 18_000, 2)
    assert arguments[8:12] == (3, 3, 9000, 1.0)
    assert [bool(x) for x in arguments[12:]] == [False, True, True, False, True, True, False]


def test_more_entries_than_32_bits_count():
    """Steps and lengths are 64 bits wide: of an array that is nowhere, but is not read either."""
    z = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.float32), (3, 3 << 31), (4 * (5 << 32), 4), writeable=False
    )
    ((_, _, form, arguments),) = launched(z)
    assert form == ("wide_stats_float32", 3, 256)
    assert arguments[1:7] == (0, 5 << 32, 1, 3, 3, 3 << 31)


def test_without_rows_nothing_is_launched():
    for shape in ((0, 5), (0, 3, 100), (3, 0, 100), (2, 0, 3, 100)):
        assert launched(np.zeros(shape)) == []


@pytest.mark.parametrize("work", ["stats", "grad"])
@pytest.mark.parametrize("classes", [65, 128, 129, 1000, 32_000, 128_256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_are_whole_warps_that_cover_a_row(classes, dtype, work):
    z = np.zeros((2, classes), dtype)
    ((_, _, form, _),) = launched(z, z if work == "grad" else None)
    assert form.threads in {32, 64, 128, 256}
    per_block = 4 * form.threads * 16 // z.itemsize
    if work == "grad":
        assert (form.blocks // 2 - 1) * per_block < classes <= form.blocks // 2 * per_block
    else:
        assert form.blocks == 2


def test_a_dtype_that_no_kernel_reads():
    kernels = Kernels(NumpyMemory(), Recorder())
    assert all(kernels.serves(np.zeros(3, dtype)) for dtype in DTYPES)
    assert not kernels.serves(np.zeros(3, np.longdouble))


def test_any_order_of_axes_reaches_every_row(kernels):
    """Rows along four axes, in all 24 orders of memory."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 3, 2, 2, 70)).astype(np.float32)
    index = np.zeros((2, 3, 2, 2, 1), int)
    for order in itertools.permutations(range(4)):
        view = np.ascontiguousarray(z.transpose(*order, 4)).transpose(*np.argsort(order), 4)
        found = kernels.row_stats(view, index, None, 1.0, np.dtype("f4"), place=True)
        np.testing.assert_array_equal(found.place[..., 0], z.argmax(-1))


# --- why there are none


def test_why_there_are_no_kernels(monkeypatch):
    memory, reason = NumpyMemory(), _kernels.why_not_for_cuda
    with _kernels.disabled():
        assert _kernels.for_cuda(memory) is None
        assert reason(memory, 0) == "switched off"
    monkeypatch.setenv("XENT_ARRAY_KERNELS", "off")
    assert reason(NumpyMemory(), 0) == "XENT_ARRAY_KERNELS=off"
    monkeypatch.setenv("XENT_ARRAY_KERNELS", "")

    def nowhere(name):
        raise ModuleNotFoundError("No module named 'cuda'")

    monkeypatch.setattr(_kernels.importlib.util, "find_spec", nowhere)
    assert reason(NumpyMemory(), 0) == "cuda.core is not installed"
    assert _kernels.for_cuda(memory := NumpyMemory()) is None
    assert reason(memory, 0) == "cuda.core is not installed"
