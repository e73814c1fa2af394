"""The program `rows.cu`: compiled by NVRTC when a device first needs it, kept on disk, launched."""

from __future__ import annotations

import functools
from pathlib import Path

from cuda.core import Device, Kernel, LaunchConfig, ObjectCode, Program, ProgramOptions
from cuda.core import launch as enqueue
from cuda.core.utils import FileStreamProgramCache

from xent_array._kernels.cuda import NAMES, Form

SOURCE = Path(__file__).with_name("rows.cu")

#: The least compute capability that has the instructions of `rows.cu`.
LEAST = (8, 0)


class Borrowed:
    """A stream of another library, by its address; cuda.core's own class takes 20 µs to make."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


def why_not(device: int) -> str | None:
    """Why the program does not run on a device, or None if it does."""
    return _on(device)[1]


def launch(device: int, stream: int, form: Form, arguments: tuple[int | float, ...]) -> None:
    """Have a stream of the device, which is the current one, run a kernel some time later."""
    kernels, reason = _on(device)
    if reason is not None:
        raise RuntimeError(f"no kernel for device {device}: {reason}")
    config = LaunchConfig(grid=form.blocks, block=form.threads)
    enqueue(Borrowed(stream), config, kernels[form.kernel], *arguments)


@functools.cache
def _on(device: int) -> tuple[dict[str, Kernel], str | None]:
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
        return {name: program.get_kernel(name) for name in NAMES}, None
    except Exception as error:  # of a driver older than NVRTC
        return {}, f"the driver does not load what NVRTC compiled: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@functools.cache
def compiled(architecture: str) -> ObjectCode:
    """The program for a GPU of an architecture, which need not be there."""
    program = Program(SOURCE.read_text("utf-8"), "c++", ProgramOptions(arch=architecture))
    try:
        return program.compile("cubin", cache=FileStreamProgramCache())
    except OSError:  # a disk that takes nothing
        return program.compile("cubin")
