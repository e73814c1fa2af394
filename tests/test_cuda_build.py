"""The CUDA kernels as NVRTC compiles them, for GPUs that need not be there."""

import ctypes
import io
import itertools
import re
import types

import numpy as np
import pytest

import xent_array
from xent_array import _kernels

pytest.importorskip("cuda.core", reason="there is no cuda.core here, hence no NVRTC to ask")

from cuda.core import Program, ProgramOptions

from xent_array._kernels import nvrtc
from xent_array._kernels.cuda import PLAIN
from xent_array._kernels.cuda_columns import TYPES
from xent_array._kernels.launches import Form, Launch, launching

from cuda_stand_in import NumpyMemory, Recorder, compute_dtype, on_device
from gpus import DTYPES

pytestmark = [
    pytest.mark.library("numpy"),
    pytest.mark.skipif(_kernels._missing("sys") is not None, reason="kernels are switched off"),
]


#: A launch, of parameters that are no kernel's.
STATS = launching(
    *(Form("wide_stats_float32", 7, 64), "STATS(wide, float32, float, float, Indices)\n"),
    *("<qd", (1 << 40, 0.5)),
)

SHAPE = (200, 1000)


def noted(dtype, **options):
    """The launches of a loss and its gradient, of the program that would run on a GPU."""
    recorder = Recorder(keeps=1 << 16)
    logits, target = np.zeros(SHAPE, DTYPES[dtype]), np.zeros(200, np.int64)
    with on_device(NumpyMemory(), recorder):
        for work in (xent_array.cross_entropy, xent_array.cross_entropy_and_grad):
            work(logits, target, **options)
        for work in (xent_array.softmax, xent_array.log_softmax, xent_array.logsumexp):
            work(logits)
    return recorder.asked


def every_launch(dtype):
    """A launch of each kernel: those by which a row is read and written, fused or not, and all
    that may be asked of columns.
    """
    types = f"{dtype}, {TYPES[dtype]}, {'double' if dtype == 'float64' else 'float'}"
    for kind, work, plain in itertools.product(("wide", "lane"), ("stats", "grad"), (True, False)):
        index = ", Indices" * (work == "stats")
        yield f"{kind}_{work}_{dtype}", f"{PLAIN * plain}{work.upper()}({kind}, {types}{index})\n"
    options = [
        {},
        {"label_smoothing": 0.1, "weight": np.ones(1000, compute_dtype(DTYPES[dtype]))},
        {"z_loss": 1e-3, "sample_weight": np.ones(200, np.float32), "return_stats": True},
        {"where": np.ones(200, bool), "reduction": "none", "label_smoothing": 0.1},
    ]
    for some in options:
        for one in noted(dtype, **some):
            yield one.form.kernel, one.code


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_every_kernel_keeps_to_registers(architecture, dtype):
    """Nothing is spilled, nothing lies in local memory, and a block of 256 threads fits."""
    kernels = dict.fromkeys(every_launch(dtype))
    assert sum(name.startswith("columns") for name, _ in kernels) > 5
    assert any(name.startswith("fused1") for name, _ in kernels) == (dtype != "float64")
    wider = [
        (f"fused8_{dtype}", code.replace("FUSED(1, 2,", f"FUSED(8, {copies},"))
        for name, code in kernels
        if name.startswith("fused1")
        for copies in (2, 4)
    ]
    for name, code in [*kernels, *wider[:4]]:
        if name.startswith("fused") and architecture == "sm_80":  # which has no clusters
            continue
        log = io.StringIO()
        options = ProgramOptions(arch=architecture, ptxas_options=["-v"])
        Program(nvrtc.source(name, code), "c++", options).compile("cubin", logs=log)
        ((found, *memory, registers),) = re.findall(
            r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, "
            r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
            log.getvalue(),
            re.DOTALL,
        )
        assert found == name
        assert memory == ["0", "0", "0"], name
        assert int(registers) <= 65_536 // 256, name


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache on disk of its own, and nothing compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caches = (nvrtc.compiled, nvrtc._chip, nvrtc._function)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_what_was_compiled_is_kept_on_disk(fresh, monkeypatch):
    """Another process finds it there, and compiles nothing."""
    code = nvrtc.compiled(STATS.form.kernel, STATS.code, "sm_90").code
    assert [path for path in fresh.rglob("*") if path.is_file()]
    nvrtc.compiled.cache_clear()
    before = len(list(fresh.rglob("*")))
    assert nvrtc.compiled(STATS.form.kernel, STATS.code, "sm_90").code == code
    assert len(list(fresh.rglob("*"))) == before


def test_a_disk_that_takes_nothing_is_no_obstacle(fresh, monkeypatch):
    def full():
        raise OSError("No space left on device")

    monkeypatch.setattr(nvrtc, "FileStreamProgramCache", full)
    assert nvrtc.compiled(STATS.form.kernel, STATS.code, "sm_80").code
    assert not list(fresh.rglob("*"))


class Device:
    """A GPU of an early or a late kind, or none."""

    def __init__(self, number):
        self.compute_capability = ((7, 5), (8, 0), (9, 0))[number]

    def set_current(self): ...


class Loaded:
    """What a driver makes of the program."""

    def get_kernel(self, name):
        return types.SimpleNamespace(handle=len(name))


class Refused:
    def get_kernel(self, name):
        raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU: nothing\nof the kind")


def test_why_a_device_has_no_kernels(fresh, monkeypatch):
    monkeypatch.setattr(nvrtc, "Device", Device)
    monkeypatch.setattr(nvrtc, "_FIRST", ("wrong", "this is no C++"))
    assert nvrtc.why_not(0) == "the GPU has compute capability 7.5, and 8.0 is needed"
    assert nvrtc.why_not(1).startswith("NVRTC does not compile for sm_80: ")
    monkeypatch.setattr(nvrtc, "compiled", lambda *_: Refused())
    assert nvrtc.why_not(2) == (
        "the driver does not load what NVRTC compiled: CUDA_ERROR_NO_BINARY_FOR_GPU: nothing"
    )
    assert nvrtc.why_not(3).startswith("cuda.core does not find the GPU: ")
    with pytest.raises(RuntimeError, match="no kernel for device 2"):
        nvrtc.launch(2, 0, STATS, [])


@pytest.fixture
def driver(fresh, monkeypatch):
    """What the driver is asked to launch; it has a function of the name."""
    asked = []

    def launch(*args):
        asked.append(args)
        return 0

    monkeypatch.setattr(nvrtc, "_launch_kernel", lambda: launch)
    monkeypatch.setattr(nvrtc, "Device", Device)
    monkeypatch.setattr(nvrtc, "compiled", lambda *_: Loaded())
    return asked


def test_a_launch_goes_to_the_stream_it_was_given(driver, monkeypatch):
    """Its arguments are of eight bytes each, and are where the pointers say."""
    found = []

    def launch(*args):
        pointers = (ctypes.c_void_p * 2).from_address(args[-2])
        found.append(ctypes.c_int64.from_address(pointers[0]).value)
        found.append(ctypes.c_double.from_address(pointers[1]).value)
        driver.append(args)
        return 0

    monkeypatch.setattr(nvrtc, "_launch_kernel", lambda: launch)
    nvrtc.launch(1, 0xABC, STATS, [])
    ((kernel, *form, stream, _, extra),) = driver
    assert kernel == len("wide_stats_float32")
    assert (form, stream, extra) == ([7, 1, 1, 64, 1, 1, 0], 0xABC, None)
    assert found == [1 << 40, 0.5]


def test_a_struct_is_one_argument(driver):
    one = Launch(Form("columns_of", 1, 128), "", b"12345678" * 200, ())
    nvrtc.launch(1, 0, one, [])
    ((*_, pointers, _),) = driver
    (at,) = (ctypes.c_void_p * 1).from_address(pointers)
    assert ctypes.string_at(at, 1600) == one.words


def test_a_thread_that_has_used_no_device(driver, monkeypatch):
    """The context that the device's library uses is made this thread's."""
    current = []

    def set_current(device):
        current.append(device)

    monkeypatch.setattr(Device, "set_current", set_current)

    def launch(*args):
        driver.append(args)
        return 0 if current else 201

    monkeypatch.setattr(nvrtc, "_launch_kernel", lambda: launch)
    nvrtc.launch(1, 0xABC, STATS, [])
    assert len(current) == 1
    assert len(driver) == 2
    assert driver[0] == driver[1]


@pytest.mark.parametrize("shared", [0, 32 << 10, 33 << 10, 48 << 10, 64 << 10])
def test_a_block_is_given_leave_for_much_shared_memory(driver, monkeypatch, shared):
    """Of the kernel, on the device; and without it nothing is launched."""
    asked = []

    def allow(attribute, most, kernel, device):
        asked.append((attribute.name, most, kernel, device))
        return (0,)

    monkeypatch.setattr(nvrtc.driver, "cuKernelSetAttribute", allow)
    one = STATS._replace(shared=shared)
    nvrtc.launch(2, 0, one, [])
    attribute, kernel = "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", len(one.form.kernel)
    assert asked == [(attribute, 64 << 10, kernel, 2)] * (shared > 32 << 10)
    assert driver[-1][7] == shared
    monkeypatch.setattr(nvrtc.driver, "cuKernelSetAttribute", lambda *_: (1,))
    if shared > 32 << 10:
        with pytest.raises(RuntimeError, match="wide_stats_float32 has no room for"):
            nvrtc.launch(2, 0, one._replace(shared=shared + 16), [])


@pytest.mark.parametrize(("device", "kept"), [(0, 0), (1, 0), (2, 1 << 16), (3, 0)])
def test_how_much_of_a_row_a_block_keeps(driver, device, kept):
    """Only where there are clusters of blocks."""
    assert nvrtc.keeps(device) == kept


def test_what_the_driver_refuses(driver, monkeypatch):
    monkeypatch.setattr(nvrtc, "_launch_kernel", lambda: lambda *args: 700)
    with pytest.raises(RuntimeError, match=r"wide_stats_float32 was not launched: .*ILLEGAL_ADDR"):
        nvrtc.launch(1, 0, STATS, [])
