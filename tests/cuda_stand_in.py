"""The CUDA kernels without a GPU: compiled for a processor, and what stands for a device."""

import atexit
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

from xent_array import _gather, _kernels, _threads
from xent_array._backends.numpy import Backend
from xent_array._kernels.cuda import LAYOUTS, Kernels, definitions_of

BFLOAT16 = ml_dtypes.bfloat16
DTYPES = [np.float32, np.float64, np.float16, BFLOAT16]

SHIM = Path(__file__).parent / "cuda_shim"
SOURCES = Path(_kernels.__file__).parent


def library(definitions=""):
    """The kernels of rows as functions of a library; a test is skipped where no compiler is."""
    return compiled(f'{definitions}#include "host.cpp"\n')


@functools.cache
def compiled(code):
    """Code that has all kernels' templates at hand, as a library."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler is there to run the CUDA kernels on the processor")
    # Some compilers have jumps checked, which those from one fiber to another do not survive.
    own = ("-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas", f"-I{SHIM}", f"-I{SOURCES}")
    # What is static in a template would be one thing in all libraries, were it to be seen outside.
    own = (*own, "-fvisibility=hidden")
    flags = (compiler, "-std=c++20", "-O1", "-fPIC", *own)
    with tempfile.TemporaryDirectory() as folder:
        path, made = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        definitions = definitions_of(code)
        path.write_text(code.removeprefix(definitions))
        flags += tuple(f"-D{x.split()[1]}={x.split()[2]}" for x in definitions.splitlines())
        command = (*flags, "-shared", "-include", headers(flags), path)
        command = (*command, "-o", made)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(made))


@functools.cache
def headers(flags):
    """What all code includes, compiled once: where the compiler finds it."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder, "kernels.h")
    path.write_text((SHIM / "host.h").read_text())
    subprocess.run((*flags, "-x", "c++-header", path, "-o", f"{path}.gch"), check=True)
    return path


def compute_dtype(dtype):
    return np.dtype(np.float64 if dtype is np.float64 else np.float32)


def bytes_of(one, memory):
    """The parameters of a launch."""
    words = bytearray(len(one.words))
    one.put(words, memory)
    return bytes(words)


def unpacked(layout, words):
    """What is laid out in some way, and addresses after it."""
    more = (len(words) - struct.calcsize(layout)) // 8
    return struct.unpack(f"{layout}{more}q", words)


class Recorder:
    """A program that remembers what it was asked to run."""

    def __init__(self, *, keeps=0):
        self.launches, self.asked, self.kept = [], [], keeps

    def why_not(self, device):
        return None

    def keeps(self, device):
        return self.kept

    def launch(self, device, stream, one, memory):
        self.asked.append(one)
        words = bytes_of(one, memory)
        work = one.form.kernel.split("_")[1]
        arguments = unpacked(LAYOUTS[work], words) if work in LAYOUTS else (words,)
        self.launches.append((device, stream, one.form, arguments))


class Processor(Recorder):
    """A program that runs its kernels at once; of those for clusters the ones of a single block."""

    def launch(self, device, stream, one, memory):
        super().launch(device, stream, one, memory)
        words = bytes_of(one, memory)
        kernel, blocks, threads = one.form
        definitions = definitions_of(one.code)
        if "struct Steps" in one.code:
            made = compiled(f"{one.code}RUN_STRUCT({kernel})\n")
        else:
            made = library(definitions)
        getattr(made, f"run_{kernel}")(blocks, threads, words)


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

    def plain(self, x):
        return x

    def line(self, x, shape):
        assert self.active
        return np.ascontiguousarray(np.broadcast_to(x, shape))


@contextlib.contextmanager
def on_device(memory, program):
    """Have NumPy's arrays be a GPU's, read by the CUDA kernels of a program."""
    kernels = Kernels(memory, program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "kernels", lambda *_: None if _kernels._disabled else kernels)
        patch.setattr(Backend, "memory", lambda *_: "device")
        patch.setattr(_threads, "available", lambda: 1)
        patch.setattr(_gather, "_templates", {})  # which remember what reads calls like them
        yield kernels
