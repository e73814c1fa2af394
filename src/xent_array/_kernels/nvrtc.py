"""`rows.cu` and `columns.cu`: compiled by NVRTC when a device needs them, kept on disk, launched."""

from __future__ import annotations

import ctypes
import functools
import threading
from pathlib import Path
from typing import Any

from cuda.bindings import driver
from cuda.core import Device, Kernel, ObjectCode, Program, ProgramOptions
from cuda.core.utils import FileStreamProgramCache

from xent_array._kernels.cuda import NAMES
from xent_array._kernels.launches import Launch

SOURCES = [Path(__file__).with_name(name) for name in ("rows.cu", "columns.cu")]

#: The least compute capability that has the instructions of `rows.cu`.
LEAST = (8, 0)


def why_not(device: int) -> str | None:
    """Why the program does not run on a device, or None if it does."""
    return _on(device)[1]


def launch(device: int, stream: int, one: Launch, words: bytes) -> None:
    """Have a stream of the device, which is the current one, run a kernel some time later.

    By the driver's own function: cuda.core's takes no structs, and several times as long.
    """
    kernels, reason = _on(device)
    if reason is not None:
        raise RuntimeError(f"no kernel for device {device}: {reason}")
    (name, blocks, threads), kernel = one.form, kernels[one.form.kernel]
    parameters = _memory.given(words, one.parameters)
    (error,) = driver.cuLaunchKernel(
        kernel, blocks, 1, 1, threads, 1, 1, 0, stream, parameters, 0
    )
    if error:
        raise RuntimeError(f"{name} was not launched: {error!r}")


class _Memory(threading.local):
    """Where the driver finds the parameters of a launch, which it copies: one for each thread."""

    #: Bytes of all parameters of a launch, at most.
    SIZE = 4096

    def __init__(self) -> None:
        self.words = (ctypes.c_char * self.SIZE)()
        self.pointers: dict[tuple[int, int], Any] = {}

    def given(self, words: bytes, count: int) -> int:
        """The address of the pointers to so many parameters, of such bytes."""
        size = len(words)
        self.words[:size] = words
        pointers = self.pointers.get((size, count))
        if pointers is None:
            start = ctypes.addressof(self.words)
            every = range(start, start + size, size // count)
            pointers = self.pointers[size, count] = (ctypes.c_void_p * count)(*every)
        return ctypes.addressof(pointers)


_memory = _Memory()


@functools.cache
def _on(device: int) -> tuple[dict[str, driver.CUfunction], str | None]:
    """The kernels for a device, all of them loaded, or why there are none.

    Whatever is missing or wrong: array code does the same.
    """
    try:
        capability = tuple(Device(device).compute_capability)
    except Exception as error:
        return {}, f"cuda.core does not find the GPU: {_first_line(error)}"
    if capability < LEAST:
        has, least = (".".join(map(str, numbers)) for numbers in (capability, LEAST))
        return {}, f"the GPU has compute capability {has}, and {least} is needed"
    architecture = "sm_{}{}".format(*capability)
    try:
        program = compiled(architecture)
    except Exception as error:
        return {}, f"NVRTC does not compile for {architecture}: {_first_line(error)}"
    try:
        return {name: _function(program.get_kernel(name)) for name in NAMES}, None
    except Exception as error:  # of a driver older than NVRTC
        return {}, f"the driver does not load what NVRTC compiled: {_first_line(error)}"


def _function(kernel: Kernel) -> driver.CUfunction:
    """A kernel as the driver launches it, on whatever device is the current one."""
    return driver.CUfunction(int(kernel.handle))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@functools.cache
def compiled(architecture: str) -> ObjectCode:
    """The program for a GPU of an architecture, which need not be there."""
    source = "".join(path.read_text("utf-8") for path in SOURCES)
    program = Program(source, "c++", ProgramOptions(arch=architecture))
    try:
        return program.compile("cubin", cache=FileStreamProgramCache())
    except OSError:  # a disk that takes nothing
        return program.compile("cubin")
