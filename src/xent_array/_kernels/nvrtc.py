"""The program `rows.cu` and `columns.cu`: compiled by NVRTC when a device first needs it, kept on disk, launched."""

from __future__ import annotations

import ctypes
import functools
import struct
from pathlib import Path

from cuda.bindings import driver
from cuda.core import Device, Kernel, ObjectCode, Program, ProgramOptions
from cuda.core.utils import FileStreamProgramCache

from xent_array._kernels.cuda import NAMES
from xent_array._kernels.launches import Arguments, Form

SOURCES = [Path(__file__).with_name(name) for name in ("rows.cu", "columns.cu")]

#: The least compute capability that has the instructions of `rows.cu`.
LEAST = (8, 0)


def why_not(device: int) -> str | None:
    """Why the program does not run on a device, or None if it does."""
    return _on(device)[1]


def launch(device: int, stream: int, form: Form, arguments: Arguments) -> None:
    """Have a stream of the device, which is the current one, run a kernel some time later.

    By the driver's own function: cuda.core's takes no structs, and several times as long.
    """
    kernels, reason = _on(device)
    if reason is not None:
        raise RuntimeError(f"no kernel for device {device}: {reason}")
    first, *_ = arguments
    words = first if isinstance(first, bytes) else struct.pack(_format(arguments), *arguments)
    memory = ctypes.create_string_buffer(words, len(words))
    start = ctypes.addressof(memory)
    count = 1 if words is first else len(arguments)
    pointers = (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))
    kernel, grid, block = kernels[form.kernel], form.blocks, form.threads
    at = ctypes.addressof(pointers)
    (error,) = driver.cuLaunchKernel(kernel, grid, 1, 1, block, 1, 1, 0, stream, at, 0)
    if error:
        raise RuntimeError(f"{form} was not launched: {error!r}")


def _format(arguments: Arguments) -> str:
    return "".join("d" if isinstance(x, float) else "q" for x in arguments)


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
