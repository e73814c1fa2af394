"""Kernels in C++: compiled by NVRTC when a device first needs one, kept on disk, and launched."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cuda.bindings import driver
from cuda.core import Device, ObjectCode, Program, ProgramOptions
from cuda.core.utils import FileStreamProgramCache
from cuda.pathfinder import load_nvidia_dynamic_lib

from xent_array._kernels.cuda import definitions_of
from xent_array._kernels.launches import Launch

#: Of which files a kernel is made, by how its name begins.
FILES = {
    "columns": ("numbers.cu", "columns.cu"),
    "fused": ("numbers.cu", "rows.cu", "columns.cu", "fused.cu"),
    "": ("numbers.cu", "rows.cu", "columns.cu"),
}

#: The least compute capability that has the instructions of `rows.cu`.
LEAST = (8, 0)

#: Bytes of a row that a block of `fused.cu` can keep, from a compute capability on: three such
#: blocks have room in a multiprocessor. Those before have no clusters of blocks.
KEPT = {(9, 0): 1 << 16, (12, 0): 1 << 15}

#: Shared memory that a block may have without being given leave: 48 KiB, less what its code has.
_FREELY = 32 << 10

_NO_CONTEXT = int(driver.CUresult.CUDA_ERROR_INVALID_CONTEXT)

#: A kernel that tells whether there can be others.
_FIRST = ("lane_grad_float32", "GRAD(lane, float32, float, float)\n")


def why_not(device: int) -> str | None:
    """Why the kernels do not run on a device, or None if they do."""
    return _chip(device)[1]


def keeps(device: int) -> int:
    """How many bytes of a row a block of `fused.cu` can keep there; 0: there are no such."""
    capability = _chip(device)[0]
    return next((kept for since, kept in reversed(KEPT.items()) if capability >= since), 0)


def launch(device: int, stream: int, one: Launch, memory: Sequence[int]) -> None:
    """Run a kernel on a stream; by the driver itself: cuda.core's launch takes no structs."""
    name, blocks, threads = one.form
    kernel, parameters = _function(device, name, one.code, one.shared), _memory.parameters
    one.put(_memory.words, memory)
    arguments = (kernel, blocks, 1, 1, threads, 1, 1, one.shared, stream, parameters, None)
    error = _launch_kernel()(*arguments)
    if error == _NO_CONTEXT:  # this thread has used no device yet
        Device(device).set_current()
        error = _launch_kernel()(*arguments)
    if error:
        raise RuntimeError(f"{name} was not launched: {driver.CUresult(error)!r}")


@functools.cache
def _launch_kernel() -> Any:
    """The driver's cuLaunchKernel."""
    found = load_nvidia_dynamic_lib("cuda").abs_path
    function = ctypes.CDLL(found).cuLaunchKernel
    address, number = ctypes.c_void_p, ctypes.c_uint
    function.argtypes = (address, *[number] * 7, address, address, address)
    return function


class _Memory(threading.local):
    """Where the driver finds the parameters of a launch, which it copies: one for each thread."""

    #: Bytes of all parameters of a launch, at most.
    SIZE = 4096

    def __init__(self) -> None:
        memory = (ctypes.c_char * self.SIZE)()
        self.words, start = memoryview(memory).cast("B"), ctypes.addressof(memory)
        # Pointers to parameters of eight bytes each, or to one struct.
        self.pointers = (ctypes.c_void_p * (self.SIZE // 8))(*range(start, start + self.SIZE, 8))
        self.parameters = ctypes.addressof(self.pointers)


_memory = _Memory()


@functools.cache
def _chip(device: int) -> tuple[tuple[int, int], str | None]:
    """The compute capability of a device, and why it has no kernels; None: it has.

    Whatever is missing or wrong: array code does the same. The first kernel tells of the others.
    """
    try:
        major, minor = Device(device).compute_capability
    except Exception as error:
        return (0, 0), f"cuda.core does not find the GPU: {_first_line(error)}"
    capability = (major, minor)
    if capability < LEAST:
        has, least = (".".join(map(str, numbers)) for numbers in (capability, LEAST))
        return capability, f"the GPU has compute capability {has}, and {least} is needed"
    try:
        code = compiled(*_FIRST, _architecture(capability))
    except Exception as error:
        architecture = _architecture(capability)
        return capability, f"NVRTC does not compile for {architecture}: {_first_line(error)}"
    try:
        code.get_kernel(_FIRST[0])
    except Exception as error:  # of a driver older than NVRTC
        reason = f"the driver does not load what NVRTC compiled: {_first_line(error)}"
        return capability, reason
    return capability, None


@functools.cache
def _function(device: int, name: str, code: str, shared: int) -> int:
    """A kernel as the driver launches it, on whatever device is the current one."""
    capability, reason = _chip(device)
    if reason is not None:
        raise RuntimeError(f"no kernel for device {device}: {reason}")
    kernel = compiled(name, code, _architecture(capability)).get_kernel(name)
    if shared > _FREELY:
        most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        given = driver.cuKernelSetAttribute(most, keeps(device), kernel.handle, device)
        if given[0]:
            raise RuntimeError(f"{name} has no room for {shared} bytes of a row: {given[0]!r}")
    return int(kernel.handle)


def _architecture(capability: tuple[int, int]) -> str:
    return "sm_{}{}".format(*capability)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@functools.cache
def compiled(name: str, code: str, architecture: str) -> ObjectCode:
    """A kernel for a GPU of an architecture, which need not be there."""
    program = Program(source(name, code), "c++", ProgramOptions(arch=architecture))
    try:
        return program.compile("cubin", cache=FileStreamProgramCache())
    except OSError:  # a disk that takes nothing
        return program.compile("cubin")


def source(name: str, code: str) -> str:
    """The files that a kernel is made of, and the code that makes it."""
    files = next(files for start, files in FILES.items() if name.startswith(start))
    parts = [Path(__file__).with_name(file).read_text("utf-8") for file in files]
    definitions = definitions_of(code)
    return "".join([definitions, *parts, code.removeprefix(definitions)])
