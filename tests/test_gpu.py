"""CUDA kernels on a GPU, and what no GPU is needed for on the processor.

``python -m nox -s gpu`` runs this, under compute-sanitizer as well where that is installed.
"""

import itertools
import threading

import numpy as np
import pytest

import xent_array
from xent_array import _kernels
from xent_array.__main__ import served_by

from cuda_stand_in import compute_dtype
from gpus import DTYPES, GPUS

pytestmark = pytest.mark.skipif(
    _kernels._missing("sys") is not None, reason="kernels are switched off"
)

#: Around a vector and a warp's vectors, vocabularies, and what no vector divides.
WIDTHS = [1, 3, 63, 64, 65, 127, 1000, 4099, 50_257]

ROWS = 9


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.library(name)) for name in GPUS])
def gpu(request):
    found = GPUS[request.param]()
    if found.kernels is None:
        pytest.skip(f"no kernels: {_kernels.why_not_for_cuda(found.producer, 0)}")
    return found


@pytest.fixture
def real(gpu, monkeypatch):
    """A GPU, whose fresh memory holds NaN."""
    if not gpu.real:
        pytest.skip("the processor stands for a GPU")
    empty = gpu.producer.empty

    def poisoned(shape, dtype, like):
        x = empty(shape, dtype, like)
        fill = x.fill if hasattr(x, "fill") else x.fill_
        fill(-77 if "int" in str(dtype) else float("nan"))
        return x

    monkeypatch.setattr(gpu.producer, "empty", poisoned)
    return gpu


def scattered(gpu, z, fill):
    """Rows in memory one of which begins an entry further than the one before; what is around."""
    rows, classes = z.shape
    around = gpu.make(np.full((rows, classes + 17), fill, z.dtype))
    inside = around[:, 3 : classes + 3]
    inside[...] = gpu.make(z)
    return inside, around


def problem(dtype, classes, rows=ROWS):
    rng = np.random.default_rng(classes)
    z = (4 * rng.standard_normal((rows, classes))).astype(DTYPES[dtype])
    return z, rng.integers(0, classes, rows)


def exact(z, target):
    """Losses and softmax in the widest floating dtype there is."""
    z = z.astype(np.longdouble)
    fall = z - z.max(1, keepdims=True)
    sums = np.exp(fall).sum(1, keepdims=True)
    picked = np.take_along_axis(fall, target[:, None], 1)
    return (np.log(sums) - picked)[:, 0], np.exp(fall) / sums


@pytest.mark.parametrize("classes", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(gpu, dtype, classes):
    z, target = problem(dtype, classes)
    compute = compute_dtype(DTYPES[dtype])
    inside, _ = scattered(gpu, z, 77)
    index = gpu.make(target[:, None])
    found = gpu.kernels.row_stats(inside, index, 0.5, 1.0, gpu.dtype(compute.name), argmax=True)
    top, rest, picked, weighted, argmax = (
        gpu.numpy(x)[:, 0].astype(np.longdouble) for x in found[:5]
    )
    wide = z.astype(np.longdouble)
    fall = wide - wide.max(1, keepdims=True)
    others = np.exp(fall)
    others[np.arange(ROWS), z.argmax(1)] = 0
    unit = 32 * np.finfo(compute).eps / 2
    np.testing.assert_array_equal(top, wide.max(1))
    np.testing.assert_array_equal(argmax, z.argmax(1))
    np.testing.assert_allclose(rest, others.sum(1), rtol=unit)
    np.testing.assert_allclose(picked, fall[np.arange(ROWS), target], rtol=unit)
    np.testing.assert_allclose(weighted, 0.5 * fall.sum(1), rtol=unit)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("classes", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(gpu, dtype, classes, in_place):
    """All of a row is written, rows that do not count with zeros, and nothing beside it."""
    z, target = problem(dtype, classes)
    compute = compute_dtype(DTYPES[dtype])
    inside, around = scattered(gpu, z, 77)
    into, outside = (inside, around) if in_place else scattered(gpu, np.full_like(z, np.nan), 77)
    _, p = exact(z, target)
    kept = np.arange(ROWS)[:, None] != 4
    gpu.kernels.row_grad(
        inside,
        into,
        1.0,
        top=gpu.make(z.max(1, keepdims=True).astype(compute)),
        pull=gpu.make(p.max(1, keepdims=True).astype(compute)),
        even=0.25,
        weight=None,
        index=gpu.make(target[:, None]),
        chosen=gpu.make(np.full((ROWS, 1), 7, compute)),
        kept=gpu.make(kept),
    )
    expected = p - 0.25
    expected[np.arange(ROWS), target] = 7
    expected[4] = 0
    unit = max(64 * np.finfo(compute).eps, 2.0 ** -{2: 8, 4: 20, 8: 48}[z.itemsize])
    found = gpu.numpy(into).astype(np.longdouble)
    np.testing.assert_allclose(found, expected, rtol=unit, atol=unit)
    assert (found[4] == 0).all()
    edges = gpu.numpy(outside).astype(float)
    assert (np.delete(edges, np.s_[3 : classes + 3], 1) == 77).all()


def checked(gpu, z, target, loss, grad):
    """Losses and gradients of each row are right, in float32."""
    losses, p = exact(z, target)
    p[np.arange(len(p)), target] -= 1
    np.testing.assert_allclose(gpu.numpy(loss), losses.astype(float), rtol=1e-5)
    np.testing.assert_allclose(gpu.numpy(grad), p.astype(float), rtol=1e-4, atol=1e-7)


def both(z, target):
    return xent_array.cross_entropy_and_grad(z, target, reduction="none")


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("classes", [100, 4099, 32_000, 50_257, 98_000, 128_256, 196_000])
@pytest.mark.parametrize("dtype", [x for x in DTYPES if x != "float64"])
def test_one_look(real, dtype, classes, in_place):
    """So many rows are kept in shared memory between their statistics and their gradient."""
    z, target = problem(dtype, classes, 140)
    target[5] = -100
    inside, around = scattered(real, z, 77)
    out, outside = (inside, around) if in_place else scattered(real, np.full_like(z, np.nan), 77)
    loss, grad = xent_array.cross_entropy_and_grad(
        inside, real.make(target), reduction="none", out=out, dtype=real.dtype("float64")
    )
    assert grad is out
    some = [0, 5, 71, 139]
    losses, p = exact(z[some], np.maximum(target[some], 0))
    p[np.arange(4), target[some]] -= 1
    losses[1], p[1] = 0, 0
    unit = 2.0 ** -{2: 8, 4: 19}[z.itemsize]
    np.testing.assert_allclose(real.numpy(loss)[some], losses.astype(float), rtol=2**-20)
    found = real.numpy(out).astype(np.longdouble)
    np.testing.assert_allclose(found[some], p, rtol=unit, atol=unit / classes)
    assert np.isfinite(found).all()
    edges = real.numpy(outside).astype(float)
    assert (np.delete(edges, np.s_[3 : classes + 3], 1) == 77).all()


@pytest.mark.parametrize("classes", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_a_target(real, dtype, classes):
    z, _ = problem(dtype, classes)
    inside, _ = scattered(real, z, 77)
    _, p = exact(z, np.zeros(len(z), int))
    half = z.itemsize == 2
    unit, tiny = 2.0 ** -{2: 8, 4: 18, 8: 47}[z.itemsize], float(np.finfo(np.float32).tiny)
    found = real.numpy(xent_array.softmax(inside)).astype(np.longdouble)
    np.testing.assert_allclose(found, p, rtol=unit, atol=2.0**-24 if half else tiny)
    found = real.numpy(xent_array.log_softmax(inside)).astype(np.longdouble)
    np.testing.assert_allclose(found, np.log(p), rtol=unit, atol=unit)


def test_what_serves_says_so(real):
    xp = real.torch if hasattr(real, "torch") else real.cupy
    device = {"device": "cuda"} if xp.__name__ == "torch" else {}
    assert served_by(xp, **device) == "kernels compiled by NVRTC"


@pytest.mark.parametrize("classes", [10, 50_257])
def test_a_side_stream(real, classes):
    """What is read has been written on the same stream, long after the call on the host."""
    z, target = problem("float32", classes)
    logits, labels, late = real.make(np.full_like(z, np.nan)), real.make(target), real.make(z)
    busy = real.make(np.zeros((4096, 4096), np.float32))
    real.wait()
    with real.side_stream():
        for _ in range(20):
            busy = busy @ busy
        logits[...] = late
        results = both(logits, labels)
    checked(real, z, target, *results)


def test_memory_that_is_used_again(real):
    """What a call took and gave back is taken by the next; no call sees another's numbers."""
    problems = [problem("float32", classes) for classes in (999, 1000, 1001) * 20]
    arrays = [(real.make(z), real.make(target)) for z, target in problems]
    with real.side_stream():
        found = [both(*pair) for pair in arrays]
    for one, results in zip(problems, found, strict=True):
        checked(real, *one, *results)


@pytest.mark.parametrize("classes", [10, 50_257])
def test_a_graph(real, classes):
    """What was captured is computed anew from whatever lies in the same memory."""
    z, target = problem("float32", classes)
    logits, labels = real.make(z), real.make(target)
    launch, results = real.captured(lambda: both(logits, labels))
    for values in (z, -z):
        logits[...] = real.make(values)
        real.wait()
        launch()
        real.wait()
        checked(real, values, target, *results)


def test_nothing_waits(real):
    z, target = problem("float32", 1000)
    logits, labels = real.make(z), real.make(target)
    both(logits, labels)
    with real.never_waiting():
        both(logits, labels)
        xent_array.cross_entropy(logits, labels, label_smoothing=0.1, z_loss=1e-3)


def test_threads(real):
    """Each calls on a stream of its own, the first one before anything else there."""
    z, target = problem("float32", 3000)
    logits, labels = real.make(z), real.make(target)
    real.wait()
    found = []

    def work():
        with real.side_stream():
            found.extend(both(logits, labels) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    for results in found:
        checked(real, z, target, *results)


def test_a_thread_whose_first_use_of_the_device_this_is(real):
    """All that it needs of the library was taken before, and given back."""
    z, target = problem("float32", 3000)
    logits, labels = real.make(z), real.make(target)
    both(logits, labels)
    real.wait()
    found = []
    thread = threading.Thread(target=lambda: found.append(both(logits, labels)))
    thread.start()
    thread.join()
    checked(real, z, target, *found[0])


def test_the_same_bits_again(real):
    z, target = problem("bfloat16", 50_257)
    logits, labels = real.make(z), real.make(target)
    for one, other in itertools.pairwise(both(logits, labels) for _ in range(5)):
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(real.numpy(x), real.numpy(y))


def test_another_device(real):
    """Its kernels are loaded and launched there."""
    if real.devices() < 2:
        pytest.skip("one GPU")
    z, target = problem("float32", 1000)
    with real.on(1):
        logits, labels = real.make(z), real.make(target)
        results = both(logits, labels)
        real.wait()
    checked(real, z, target, *results)


def test_more_entries_than_32_bits_count(real):
    """The last rows are as they are alone."""
    classes, rows = 128_256, 17_000
    if real.room() < 3 * 2 * classes * rows:
        pytest.skip("too little memory")
    z, target = problem("float16", classes, 4)
    logits = real.zeros((rows, classes))
    labels = real.make(np.zeros(rows, np.int64))
    logits[-4:], labels[-4:] = real.make(z), real.make(target)
    alone = both(real.make(z), real.make(target))
    for whole, part in zip(both(logits, labels), alone, strict=True):
        np.testing.assert_array_equal(real.numpy(whole[-4:]), real.numpy(part))
