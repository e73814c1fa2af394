"""How the CUDA kernels are launched, and why they are not: nothing runs here."""

import functools
import importlib
import sys
import types

import numpy as np
import pytest

from xent_array import _kernels, cross_entropy, cross_entropy_and_grad
from xent_array._kernels.cuda import Kernels

from cuda_stand_in import DTYPES, NumpyMemory, Recorder, compute_dtype, on_device

pytestmark = [
    pytest.mark.library("numpy"),
    pytest.mark.skipif(_kernels._missing("sys") is not None, reason="kernels are switched off"),
]


def launched(z, into=None, *, number=0, stream=0, weight=None, argmax=False):
    """What is asked for to read rows, or to write their gradient."""
    recorder, memory = Recorder(), NumpyMemory(number, stream)
    kernels, shape = Kernels(memory, recorder), (*z.shape[:-1], 1)
    compute, index = compute_dtype(z.dtype.type), np.zeros(shape, np.int64)
    if into is None:
        kernels.row_stats(z, index, weight, 1.0, compute, argmax=argmax)
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
    #: Memory, the steps of two axes of rows and of classes; the inner axis, rows, classes, scale
    #: and the weight of all classes.
    assert arguments[:9] == (address(z), 0, 100, 1, 3, 3, 100, 1.0, 0.0)
    assert [bool(x) for x in arguments[9:]] == [False, True, True, True, False, False, True]


def test_what_is_asked_for_has_an_address():
    ((*_, arguments),) = launched(np.zeros((3, 100)), weight=np.ones(100), argmax=True)
    assert all(arguments[9:])


def test_a_weight_of_all_classes_needs_no_memory():
    ((*_, arguments),) = launched(np.zeros((3, 100)), weight=0.25)
    assert arguments[8:10] == (0.25, 0)
    assert arguments[13]  # their sum is asked for


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
    top = [x[10] - launches[0][10] for x in launches]
    index = [x[15] - launches[0][15] for x in launches]
    assert index == [k * 4 * 8 for k in range(4)]
    assert top == [k * 4 * 4 for k in range(4)]
    assert {x[1:7] for x in launches} == {(4800, 300, 1, 2, 4, 100)}


def test_gradients_go_where_they_are_wanted():
    """Both arrays have steps of their own; a row is shared by as many blocks as it takes."""
    z, into = np.zeros((3, 9000), np.float16), np.zeros((3, 18_000), np.float16)[:, ::2]
    ((_, _, form, arguments),) = launched(z, into)
    assert form == ("wide_grad_float16", 3 * 2, 256)
    assert arguments[:8] == (address(z), 0, 9000, 1, address(into), 0, 18_000, 2)
    assert arguments[8:13] == (3, 3, 9000, 1.0, 0.0)
    assert [bool(x) for x in arguments[13:]] == [False, True, True, False, True, True, False]


def test_more_entries_than_32_bits_count():
    """Steps and lengths are 64 bits wide: of an array that is nowhere, but is not read either."""
    z = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.float32), (3, 3 << 31), (4 * (5 << 32), 4), writeable=False
    )
    ((_, _, form, arguments),) = launched(z)
    assert form == ("wide_stats_float32", 3, 128)
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


def test_memory_that_is_not_aligned_is_left_to_array_code():
    odd = np.zeros(13, np.uint8)[1:].view(np.float32)
    assert not Kernels(NumpyMemory(), Recorder()).serves(odd)


class CupysArray(np.ndarray):
    """As CuPy's: its memory has an address, and its device can be entered."""

    @property
    def data(self):
        return types.SimpleNamespace(ptr=address(self))


class CupysDevice:
    id, depth, entered = 2, 0, 0

    def __enter__(self):
        self.depth, self.entered = self.depth + 1, self.entered + 1

    def __exit__(self, *_):
        self.depth -= 1


def test_cupys_arrays(monkeypatch):
    """Strides are counted in bytes there; a stream is current on a device."""
    CupysArray.device = device = CupysDevice()

    def stream():
        return types.SimpleNamespace(ptr=0xABC if device.depth else 0)

    cupy = types.ModuleType("cupy")
    cupy.ndarray = CupysArray
    runtime = types.SimpleNamespace(getDevice=lambda: device.id if device.depth else 0)
    cupy.cuda = types.SimpleNamespace(get_current_stream=stream, runtime=runtime)
    cupy.empty = lambda shape, dtype: np.empty(shape, dtype).view(CupysArray)
    cupy.broadcast_to = functools.partial(np.broadcast_to, subok=1)
    cupy.ascontiguousarray = np.asanyarray
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    name = "xent_array._backends._cupy_cuda"
    monkeypatch.delitem(sys.modules, name, raising=False)
    recorder = Recorder()
    kernels = Kernels(importlib.import_module(name), recorder)
    del sys.modules[name]
    z = np.zeros((3, 400), np.float32).view(CupysArray)[:, ::2]
    index = np.zeros((3, 1), np.int64).view(CupysArray)
    assert kernels.serves(z)
    raw = np.zeros(45, np.uint8).view(CupysArray)
    assert not kernels.serves(raw[1:].view(np.float32))
    assert not kernels.serves(np.ndarray.__new__(CupysArray, (3, 2), "f4", raw, 0, (10, 4)))
    kernels.row_stats(z, index, None, 1.0, np.dtype("f4"), argmax=True)
    ((number, stream, form, arguments),) = recorder.launches
    assert (number, stream, form.kernel) == (2, 0xABC, "wide_stats_float32")
    assert arguments[:10] == (address(z), 0, 400, 2, 3, 3, 200, 1.0, 0.0, 0)
    assert arguments[15] == address(index)
    assert device.depth == 0 < device.entered


@pytest.mark.parametrize("rows", [20, 2048, 2049])
@pytest.mark.parametrize(
    ("options", "loss", "at_once"),
    [
        ({}, "stats columns", "columns fused columns"),
        ({"reduction": "none"}, "stats columns", "fused columns"),
        ({"label_smoothing": 0.1}, "stats columns", "columns fused columns"),
        ({"weight": np.ones(100, "f4")}, "stats columns", "columns fused columns"),
        (
            {"weight": np.ones(100, "f4"), "label_smoothing": 0.1, "z_loss": 1e-3},
            "columns stats columns",
            "columns columns fused columns",
        ),
    ],
)
def test_a_call_is_few_launches(options, loss, at_once, rows):
    """Statistics and gradient are one where they can be; more rows are added up in two steps."""
    recorder = Recorder(keeps=1 << 16)
    logits, target = np.zeros((rows, 100), np.float32), np.zeros(rows, np.int64)
    more = " columns" * (rows > 2048 and options.get("reduction") != "none")
    with on_device(NumpyMemory(), recorder):
        for work, expected in ((cross_entropy, loss), (cross_entropy_and_grad, at_once)):
            for _ in range(2):  # as it is noted, and again
                work(logits, target, **options)
                kernels = [form.kernel for *_, form, _ in recorder.launches]
                names = [kernel.removeprefix("wide_").split("_")[0] for kernel in kernels]
                assert " ".join(names).replace("fused1", "fused") == expected + more
                recorder.launches.clear()


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
