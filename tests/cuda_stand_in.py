"""The CUDA kernels without a GPU: compiled for a processor, and what stands for a device."""

import contextlib
import ctypes
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from xent_array import _kernels
from xent_array._kernels.cuda import LAYOUTS

BFLOAT16 = ml_dtypes.bfloat16
DTYPES = [np.float32, np.float64, np.float16, BFLOAT16]

SHIM = Path(__file__).parent / "cuda_shim"
SOURCE = Path(_kernels.__file__).with_name("rows.cu")


def library():
    """The kernels as functions of a library; a test is skipped where no compiler makes one."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is there to run the CUDA kernels on the processor")
    made, complaints = compiled(compiler)
    assert made is not None, complaints
    return made


@functools.cache
def compiled(compiler):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.so")
        includes = (f"-I{SHIM}", f"-I{SOURCE.parent}")
        # Some compilers have jumps checked, which those from one fiber to another do not survive.
        own = ("-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas")
        flags = ("-std=c++20", "-O2", "-fPIC", "-shared", *own, *includes)
        command = [compiler, *flags, str(SHIM / "host.cpp"), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (ctypes.CDLL(str(path)) if done.returncode == 0 else None), done.stderr


def compute_dtype(dtype):
    return np.dtype(np.float64 if dtype is np.float64 else np.float32)


class Recorder:
    """A program that remembers what it was asked to run."""

    def __init__(self, *, fuses=False):
        self.launches, self.fused = [], fuses

    def why_not(self, device):
        return None

    def fuses(self, device):
        return self.fused

    def launch(self, device, stream, one, words):
        work = one.form.kernel.split("_")[1]
        arguments = struct.unpack(LAYOUTS[work], words) if work in LAYOUTS else (words,)
        self.launches.append((device, stream, one.form, arguments))


class Processor(Recorder):
    """A program that runs its kernels at once; of those for clusters the ones of a single block."""

    def launch(self, device, stream, one, words):
        super().launch(device, stream, one, words)
        kernel, blocks, threads = one.form
        getattr(library(), f"run_{kernel}")(blocks, threads, words)


class NumpyMemory:
    """NumPy's arrays in the place of a GPU's; fresh memory holds junk."""

    ARRAY = np.ndarray

    def __init__(self, number=0, stream=0):
        self.number, self.stream, self.active = number, stream, False

    def device(self, x):
        return self.number

    @contextlib.contextmanager
    def current(self, x):
        self.active = True
        yield self.stream
        self.active = False

    def address(self, x):
        return x.__array_interface__["data"][0]

    def aligned(self, x):
        return x.flags.aligned

    def steps(self, x):
        return tuple(stride // x.itemsize for stride in x.strides)

    def scratch(self, size, like):
        return self.empty(size, np.uint8, like)

    def empty(self, shape, dtype, like):
        assert self.active
        return np.full(shape, 99, dtype)

    def line(self, x, shape):
        assert self.active
        return np.ascontiguousarray(np.broadcast_to(x, shape))

