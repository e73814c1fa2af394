"""The program `rows.cu`: compiled by NVRTC when a device first needs it, kept on disk, launched."""

from __future__ import annotations

import functools
from pathlib import Path

from cuda.core import Device, Kernel, LaunchConfig, ObjectCode, Program, ProgramOptions, Stream
from cuda.core import launch as enqueue
from cuda.core.utils import FileStreamProgramCache

from xent_array._kernels.cuda import Form

SOURCE = Path(__file__).with_name("rows.cu")

#: The least compute capability that has the instructions of `rows.cu`.
LEAST = (8, 0)


def why_not(device: int) -> str | None:
    """Why the program does not run on a device, or None if it does."""
    return _on(device)[1]


def launch(device: int, stream: int, form: Form, arguments: tuple[int | float, ...]) -> None:
    """Have a stream of the device, which is the current one, run a kernel some time later."""
    config = LaunchConfig(grid=form.blocks, block=form.threads)
    enqueue(Stream.from_handle(stream), config, _kernel(device, form.kernel), *arguments)


@functools.cache
def _kernel(device: int, name: str) -> Kernel:
    program, reason = _on(device)
    if program is None:
        raise RuntimeError(f"no kernel for device {device}: {reason}")
    return program.get_kernel(name)


@functools.cache
def _on(device: int) -> tuple[ObjectCode | None, str | None]:
    capability = tuple(Device(device).compute_capability)
    if capability < LEAST:
        has, least = (".".join(map(str, numbers)) for numbers in (capability, LEAST))
        return None, f"the GPU has compute capability {has}, and {least} is needed"
    architecture = "sm_{}{}".format(*capability)
    try:
        return compiled(architecture), None
    except Exception as error:  # whatever is missing or wrong, array code does the same
        reason = str(error).strip().partition("\n")[0]
        return None, f"NVRTC does not compile for {architecture}: {reason}"


@functools.cache
def compiled(architecture: str) -> ObjectCode:
    """The program for a GPU of an architecture, which need not be there."""
    program = Program(SOURCE.read_text("utf-8"), "c++", ProgramOptions(arch=architecture))
    try:
        return program.compile("cubin", cache=FileStreamProgramCache())
    except OSError:  # a disk that takes nothing
        return program.compile("cubin")
