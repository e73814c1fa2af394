"""The kernels in host memory beside the array code that they stand for, and the truth."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

import xent_array
from xent_array import _kernels

from arrays import set_budget

numba = pytest.importorskip("numba")
ml_dtypes = pytest.importorskip("ml_dtypes")

from xent_array._kernels import _arithmetic, _rows, host, layouts  # noqa: E402

KERNELS = host.Kernels(lambda: 2)

pytestmark = pytest.mark.skipif(
    _kernels.why_not_for_host() is not None, reason="kernels are switched off"
)

BFLOAT16 = ml_dtypes.bfloat16
DTYPES = [np.float32, np.float64, np.float16, BFLOAT16]

#: Around a block of lanes, a tile, a stretch, a run of additions, and both kinds of kernel.
WIDTHS = [1, 2, 7, 9, 31, 33, 63, 64, 65, 127, 128, 129, 191, 256, 257, 511, 513, 4096, 4097, 4225]


def unit_of(dtype):
    return 2.0**-53 if dtype is np.float64 else 2.0**-24


def compute_dtype(dtype):
    return np.dtype(np.float64 if dtype is np.float64 else np.float32)


def laid_out(z, layout):
    """The same rows in other places of memory."""
    if layout == "apart":
        wide = np.zeros((*z.shape[:-1], 2 * z.shape[-1]), z.dtype)
        wide[..., ::2] = z
        return wide[..., ::2]
    if layout == "reversed":
        return np.ascontiguousarray(z[..., ::-1])[..., ::-1]
    return np.asfortranarray(z) if layout == "class-major" else z


LAYOUTS = ["rows", "class-major", "apart", "reversed"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", WIDTHS)
def test_statistics_against_exact_sums(classes, dtype, layout):
    """In long double: rest is within 32 units of rounding, whichever kernel reads the rows."""
    rng = np.random.default_rng(classes)
    z = laid_out((4 * rng.standard_normal((5, classes))).astype(dtype), layout)
    index, weight = rng.integers(0, classes, (5, 1)), rng.random(classes)
    compute, unit = compute_dtype(dtype), unit_of(dtype)
    found = KERNELS.row_stats(z, index, weight.astype(compute), 1.0, compute, argmax=True)
    exact = z.astype(np.longdouble)
    top, place = exact.max(-1, keepdims=True), exact.argmax(-1)[:, None]
    fall = exact - top
    others = np.exp(fall)
    np.put_along_axis(others, place, 0, -1)
    np.testing.assert_array_equal(found.top, top.astype(compute))
    np.testing.assert_array_equal(found.argmax, place)
    np.testing.assert_array_equal(found.picked, np.take_along_axis(fall, index, -1).astype(compute))
    rest, even = others.sum(-1, keepdims=True), (fall * weight.astype(compute)).sum(-1)[:, None]
    np.testing.assert_allclose(found.rest.astype(np.longdouble), rest, rtol=32 * unit)
    np.testing.assert_allclose(found.fall.astype(np.longdouble), even, rtol=32 * unit)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 64, 65, 129, 300])
@pytest.mark.parametrize("rows", [3, 128, 131])
def test_gradients_in_place_and_into_other_memory(rows, classes, dtype, layout):
    rng = np.random.default_rng(0)
    z = laid_out(rng.standard_normal((rows, classes)).astype(dtype), layout)
    compute = compute_dtype(dtype)
    top, pull, even, chosen = rng.random((4, rows, 1)).astype(compute)
    weight, kept = rng.random(classes).astype(compute), rng.random((rows, 1)) < 0.7
    index = rng.integers(0, classes, (rows, 1))
    numbers = {"top": top, "pull": pull, "even": even, "weight": weight, "index": index}
    into = np.full((rows, classes), 7, dtype)
    KERNELS.row_grad(z, into, 0.5, **numbers, chosen=chosen, kept=kept)
    wide = z.astype(np.longdouble)
    expected = np.exp(0.5 * (wide - top)) * pull - even * weight
    np.put_along_axis(expected, index, chosen.astype(np.longdouble), -1)
    expected = np.where(kept, expected, 0)
    scale = {np.float32: 2**-21, np.float64: 2**-50, np.float16: 2**-10, BFLOAT16: 2**-7}[dtype]
    np.testing.assert_allclose(into.astype(np.longdouble), expected, rtol=0, atol=8 * scale)
    KERNELS.row_grad(z, z, 0.5, **numbers, chosen=chosen, kept=kept)
    np.testing.assert_array_equal(z.astype(float), into.astype(float))


#: Views of class-last arrays that kernels read from copies: what they are views of, and how.
SCATTERED = {
    "every other class": ((40, 2 * 300), lambda x: x[:, ::2]),
    "every other of few classes": ((500, 2 * 7), lambda x: x[:, ::2]),
    "long rows": ((3, 20_000, 2), lambda x: x[..., 1]),
    "one row": ((5000, 3), lambda x: x[:, 0]),
    "few pixels": ((70, 300, 4), lambda x: np.moveaxis(x, 1, -1)),
    "few pixels of few classes": ((700, 10, 4), lambda x: np.moveaxis(x, 1, -1)),
    "pixels left out": ((3, 21, 40, 30), lambda x: np.moveaxis(x[:, :, ::2, ::3], 1, -1)),
    "transposed images": ((3, 21, 40, 30), lambda x: np.moveaxis(x.swapaxes(2, 3), 1, -1)),
    "in cubes": ((2, 9, 5, 6, 7), lambda x: np.moveaxis(x[..., ::-1, :], 1, -1)),
    "one for all": ((1, 300, 1), lambda x: np.broadcast_to(x[..., 0], (6, 300))[:, ::-1]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("view", SCATTERED)
def test_scattered_rows_are_read_from_copies(view, dtype, monkeypatch):
    """To the last bit they give what their contiguous copy gives."""
    monkeypatch.setattr(host, "_STEP_BYTES", 1 << 14)  # a few rows at once
    shape, look = SCATTERED[view]
    rng = np.random.default_rng(1)
    z = look(rng.standard_normal(shape).astype(dtype))
    assert not layouts.lie_well(z)
    target = np.asarray(rng.integers(0, z.shape[-1], z.shape[:-1]))
    target.reshape(-1)[::7] = -100
    options = {"axis": -1, "reduction": "none", "label_smoothing": 0.1, "return_stats": True}
    dense = np.ascontiguousarray(z)
    expected = xent_array.cross_entropy_and_grad(dense, target, **options)
    out = look(np.full(shape, np.nan, dtype)) if view != "one for all" else np.empty_like(dense)
    found = xent_array.cross_entropy_and_grad(z, target, **options, out=out)
    for ours, theirs in zip((*found[:2], *found[2]), (*expected[:2], *expected[2]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    mean = xent_array.cross_entropy(z, target, axis=-1)
    same = xent_array.cross_entropy(dense, target, axis=-1)
    assert mean == pytest.approx(same, rel=1e-6, nan_ok=True)


def test_rows_too_long_to_be_copied_are_read_by_array_code(monkeypatch):
    """Logits, probabilities and memory for the gradient."""
    z, target = np.random.default_rng(0).standard_normal((3, 4000))[:, ::2], np.asarray([0, 5, 9])
    dense = np.ascontiguousarray(z)
    assert KERNELS.suits(1, z, z, z)
    monkeypatch.setattr(layouts, "_COPY_BYTES", 1 << 12)
    assert KERNELS.suits(1, dense, dense, dense)
    assert KERNELS.suits(0, dense.T, None, None)
    for arrays in ((z, None, None), (dense, z, None), (dense, None, z)):
        assert not KERNELS.suits(1, *arrays)
    found = xent_array.cross_entropy_and_grad(z, target)
    expected = xent_array.cross_entropy_and_grad(np.ascontiguousarray(z), target)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14, atol=1e-18)


@pytest.mark.parametrize("step", [1, 2])
def test_sums_over_millions_of_classes(step):
    """Of a row whose classes are apart, too: equal logits, and a target far above all others."""
    classes = (1 << 24) + 4
    z = np.zeros((1, step * classes), np.float32)[:, ::step]
    assert not layouts.along_classes(z) or step == 1
    loss = xent_array.cross_entropy(z, np.asarray([7]))
    assert loss == pytest.approx(np.log(classes), rel=2.0**-23)
    for low in np.float32([-18.0, -17.2, -19.9]):
        z[0, 1:] = low
        truth = np.log1p((classes - 1) * np.exp(np.longdouble(low)))
        loss = xent_array.cross_entropy(z, np.asarray([0]))
        assert abs(np.longdouble(loss) - truth) <= 4 * 2.0**-24 * truth


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [65, 128, 129, 512, 1000, 4097])
def test_exponentials_that_are_left_make_the_same_gradient(classes, dtype, smoothing):
    """In place none are left, into other memory they are: to the last bit it is the same."""
    rng = np.random.default_rng(0)
    z = 3 * rng.standard_normal((7, classes)).astype(dtype)
    target, weight = rng.integers(0, classes, 7), rng.random(classes).astype(dtype)
    target[2], z[3, 1], z[4, 2], z[5, 5] = -100, np.nan, np.inf, -np.inf
    options = {"label_smoothing": smoothing, "weight": weight, "z_loss": 0.1}
    loss, grad = xent_array.cross_entropy_and_grad(z, target, **options)
    same, there = xent_array.cross_entropy_and_grad(z, target, **options, out=z)
    np.testing.assert_array_equal(loss, same)
    np.testing.assert_array_equal(grad, there)


OPTIONS = {
    "weight": [None, "weights"],
    "label_smoothing": [0.0, 0.1, 1.0],
    "ignore_index": [-100, 1],
    "where": [None, "mask"],
    "sample_weight": [None, "weights of rows"],
    "z_loss": [0.0, 0.1],
    "logit_scale": [1.0, 0.3],
    "reduction": ["none", "mean", "sum"],
}


@pytest.mark.parametrize("classes", [5, 200])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_option_means_what_it_means_to_the_array_code(axis, classes, monkeypatch):
    """Loss, statistics and gradient, with rows that hold NaN and infinities."""
    means_what_it_means_to_the_array_code(
        axis, classes, monkeypatch, itertools.product(*OPTIONS.values())
    )


def means_what_it_means_to_the_array_code(axis, classes, monkeypatch, every):
    """The same of some options."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((6, 4, classes))
    z[0, 0, 1], z[0, 1, 2], z[0, 2, 3], z[1, 0], z[1, 1, :-1] = np.nan, np.inf, -np.inf, -np.inf, 2
    logits = np.moveaxis(z, 2, axis)
    target = rng.integers(0, classes, (6, 4))
    target[0, :2] = 1
    arrays = {
        "weights": rng.random(classes),
        "mask": rng.random((6, 4)) < 0.8,
        "weights of rows": rng.random((6, 4)),
    }
    arrays["weights"][3] = 0.0
    set_budget(monkeypatch, 8 * classes * 5)
    agrees_with_the_array_code(logits, target, axis, arrays, every)


def agrees_with_the_array_code(logits, target, axis, arrays, every):
    """Loss, statistics and gradient, with some options, which may name arrays."""
    for values in every:
        options = dict(zip(OPTIONS, values, strict=True), axis=axis, return_stats=True)
        options = {k: arrays.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
        ours = xent_array.cross_entropy_and_grad(logits, target, **options)
        with _kernels.disabled():
            plain = xent_array.cross_entropy_and_grad(logits, target, **options)
        for one, other in zip((*ours[:2], *ours[2]), (*plain[:2], *plain[2]), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14, err_msg=str(options))


GUARDED = """
import ctypes, mmap
import numpy as np
from xent_array import cross_entropy, cross_entropy_and_grad

PAGES = 64
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

def guarded(rows, classes, dtype, at_end):
    # Memory between two pages that nobody may read or write.
    memory = mmap.mmap(-1, (PAGES + 2) * mmap.PAGESIZE)
    x = np.frombuffer(memory, np.uint8)
    for page in (0, PAGES + 1):
        assert protect(x.ctypes.data + page * mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
    size = rows * classes * np.dtype(dtype).itemsize
    offset = (PAGES + 1) * mmap.PAGESIZE - size if at_end else mmap.PAGESIZE
    return np.ndarray((rows, classes), dtype, x, offset)

for dtype in (np.float32, np.float64, np.float16):
    for rows in (0, 1, 2, 129):
        for classes in (10, 65, 128, 200):
            for at_end in (False, True):
                z, out = (guarded(rows, classes, dtype, at_end) for _ in range(2))
                target = np.zeros(rows, int)
                cross_entropy(z, target, reduction="sum", label_smoothing=0.1, return_stats=True)
                cross_entropy_and_grad(z, target, reduction="sum", out=out)
                p = guarded(rows, classes, dtype, at_end)
                cross_entropy(z, p, reduction="sum", label_smoothing=0.1, return_stats=True)
                cross_entropy_and_grad(z, p, reduction="sum", out=out)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
def test_nothing_outside_is_read_or_written():
    """No rows among them: the first row is looked at before the others."""
    subprocess.run([sys.executable, "-W", "error", "-c", GUARDED], check=True)


def each(function, x, result):
    @numba.njit
    def run(x, result):
        for i in range(len(x)):
            result[i] = function(x[i])

    run(x, result)
    return result


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, np.uint16), (BFLOAT16, np.int16)])
def test_every_half_number_is_widened_exactly(dtype, bits):
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = each(_arithmetic.widen, every.view(bits), np.empty(1 << 16, np.float32))
    np.testing.assert_array_equal(wide, every.view(dtype).astype(np.float32))


def test_subnormal_float16_is_widened_by_threads_that_flush_subnormals():
    """Threads of JAX's do, and others where torch is told to: for those it is normal in float32."""
    torch = pytest.importorskip("torch")
    every = np.arange(1 << 16, dtype=np.uint16)
    expected = every.view(np.float16).astype(np.float32)
    if not torch.set_flush_denormal(True):
        pytest.skip("no flushing of subnormals on this processor")
    try:
        wide = each(_arithmetic.widen, every, np.empty(1 << 16, np.float32))
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, np.uint16), (BFLOAT16, np.int16)])
def test_numbers_are_narrowed_to_the_nearest_half(dtype, bits):
    """Ties to even; subnormals, infinities and NaN among them."""
    rng = np.random.default_rng(0)
    halves = np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.concatenate(
            [
                halves,
                np.nextafter(halves, np.float32(np.inf)),
                (halves + np.roll(halves, 1)) / 2,
                rng.standard_normal(100_000).astype(np.float32)
                * np.float32(10.0) ** rng.integers(-40, 38, 100_000),
            ]
        ).astype(np.float32)
        expected = x.astype(dtype)

    @numba.njit
    def narrow(x, result):
        for i in range(len(x)):
            result[i] = _arithmetic.narrow(x[i], result[i])

    result = np.empty(len(x), bits)
    narrow(x, result)
    np.testing.assert_array_equal(
        result.view(dtype).astype(np.float32), expected.astype(np.float32)
    )


@pytest.mark.parametrize(("dtype", "least"), [(np.float32, -87.0), (np.float64, -708.0)])
def test_exp_within_two_units_of_rounding(dtype, least):
    x = np.concatenate([np.linspace(least, 0, 200_001), -np.geomspace(1e-12, 1, 10_000)])
    x = x.astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    result = each(_arithmetic.exp, x, np.empty_like(x))
    assert np.max(np.abs(result - exact) / exact) <= 2 * unit_of(dtype)


def test_exp_where_it_ends():
    """Subnormal numbers come gradually, -inf is 0, NaN stays."""
    for dtype, x in ((np.float32, [-88, -100, -103, -105]), (np.float64, [-709, -740, -745, -747])):
        result = each(_arithmetic.exp, np.asarray(x, dtype), np.empty(4, dtype))
        exact, spacing = np.exp(np.asarray(x, np.longdouble)), np.finfo(dtype).smallest_subnormal
        np.testing.assert_allclose(result.astype(np.longdouble), exact, rtol=1e-6, atol=spacing)
        ends = each(_arithmetic.exp, np.asarray([0, -np.inf, np.nan], dtype), np.empty(3, dtype))
        np.testing.assert_array_equal(ends, [1, 0, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log1p_within_two_units_of_rounding(dtype):
    x = np.concatenate([np.geomspace(1e-37, 1e6, 200_001), np.linspace(0, 4, 100_001)])
    x = x.astype(dtype)
    exact = np.log1p(x.astype(np.longdouble))
    result = each(_arithmetic.log1p, x, np.empty_like(x))
    assert np.all(np.abs(result - exact) <= 2 * unit_of(dtype) * exact)
    ends = each(_arithmetic.log1p, np.asarray([0, np.nan], dtype), np.empty(2, dtype))
    np.testing.assert_array_equal(ends, [0, np.nan])


def test_memory_that_kernels_cannot_read_is_read_by_array_code():
    """Of another byte order, or not aligned: the result is the same."""
    z = np.random.default_rng(0).standard_normal((4, 100))
    expected = xent_array.cross_entropy(z, np.arange(4))
    swapped = z.astype(z.dtype.newbyteorder())
    packed = np.zeros(4, dtype=[("byte", "i1"), ("z", "f8", 100)])
    packed["z"] = z
    assert not packed["z"].flags.aligned
    for other in (swapped, packed["z"]):
        assert not KERNELS.serves(other)
        np.testing.assert_allclose(xent_array.cross_entropy(other, np.arange(4)), expected, 1e-14)


def test_one_compilation_serves_every_layout():
    """Read-only arrays and views too: nobody waits for the compiler again."""
    z = np.random.default_rng(0).standard_normal((200, 100)).astype(np.float32)
    target = np.zeros(200, int)
    xent_array.cross_entropy_and_grad(z, target)
    xent_array.cross_entropy_and_grad(z.T[:64].T, target)
    compiled = sum(len(run.signatures) for run in _rows.RUN.values())
    z.flags.writeable = target.flags.writeable = False
    for view in (z, z[::2], z[:, ::2], np.asfortranarray(z), z[:, :20], z[None]):
        rows = np.zeros(view.shape[:-1], int)
        rows.flags.writeable = False
        xent_array.cross_entropy_and_grad(view, rows, axis=-1)
    assert sum(len(run.signatures) for run in _rows.RUN.values()) == compiled


def test_a_disk_that_takes_nothing_is_no_obstacle(monkeypatch):
    """Neither where numba finds no folder, nor where it cannot write the file."""
    njit = numba.njit

    def no_folder(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(*args, **options)

    monkeypatch.setattr(numba, "njit", no_folder)
    assert callable(_rows.kernel(lambda: None))
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) == 1:
            raise OSError("No space left on device")

    host._call(full, 1)
    assert calls == [(1,), (1,)]


def test_why_there_are_no_kernels(monkeypatch):
    assert _kernels.why_not_for_host() is None
    with _kernels.disabled():
        assert _kernels.for_host(lambda: 1) is None
        assert _kernels.why_not_for_host() == "switched off"
    for setting, reason in (("off", "XENT_ARRAY_KERNELS=off"), ("", "numba is not installed")):
        _kernels._host.cache_clear()
        monkeypatch.setenv("XENT_ARRAY_KERNELS", setting)
        monkeypatch.setattr(_kernels.importlib.util, "find_spec", lambda name: None)
        assert _kernels.why_not_for_host() == reason
    _kernels._host.cache_clear()
    monkeypatch.setenv("XENT_ARRAY_KERNELS", "nope")
    with pytest.raises(ValueError, match="XENT_ARRAY_KERNELS must be on or off, got 'nope'"):
        _kernels.why_not_for_host()
    monkeypatch.undo()
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    _kernels._host.cache_clear()
    assert _kernels.why_not_for_host() == "NUMBA_DISABLE_JIT has numba compile nothing"
    monkeypatch.undo()
    _kernels._host.cache_clear()


def test_the_report_names_what_serves():
    done = subprocess.run(
        [sys.executable, "-m", "xent_array"], capture_output=True, text=True, check=True
    )
    assert "kernels compiled by numba" in done.stdout


@pytest.mark.library("torch")
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_are_read_by_the_kernels(name):
    """The same numbers as NumPy's, to the last bit, for they are computed by the same code."""
    torch = pytest.importorskip("torch")
    logits = torch.randn(300, 70).to(getattr(torch, name)).requires_grad_()
    target = torch.randint(0, 70, (300,))
    loss = xent_array.cross_entropy(logits, target, label_smoothing=0.1)
    loss.backward()
    flat = logits.detach()
    view = flat.view(torch.int16).numpy().view(BFLOAT16) if name == "bfloat16" else flat.numpy()
    ours, grad = xent_array.cross_entropy_and_grad(view, target.numpy(), label_smoothing=0.1)
    assert loss.item() == float(ours)
    theirs = logits.grad.double().numpy()
    np.testing.assert_allclose(theirs, grad.astype(float), rtol=2e-2 if "16" in name else 1e-5)


@pytest.mark.parametrize("classes", [40, 1000])
def test_smoothing_beside_distant_classes_stays_finite(classes):
    """What is far below the top, times how many classes, is beyond float32; the loss is not."""
    logits = np.full((1, classes), -1e36, np.float32)
    logits[0, 0] = 0
    loss = float(xent_array.cross_entropy(logits, np.asarray([0]), label_smoothing=0.1))
    assert loss == pytest.approx(0.1 * (classes - 1) / classes * 1e36, rel=1e-6)
