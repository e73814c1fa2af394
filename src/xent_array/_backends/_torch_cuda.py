"""torch's tensors in CUDA memory, as kernels see them; see `_kernels.cuda.Producer`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

ARRAY = torch.Tensor


def holds(x: torch.Tensor) -> bool:
    """Whether a tensor lies there."""
    return x.is_cuda


def device(x: torch.Tensor) -> int:
    return x.get_device()


def current(x: torch.Tensor) -> contextlib.AbstractContextManager[int]:
    number = x.get_device()
    # What `torch.cuda.current_stream` makes an object of, at a few times the cost.
    stream: int = torch._C._cuda_getCurrentRawStream(number)
    if torch.cuda.current_device() == number:  # mostly
        return contextlib.nullcontext(stream)
    return _with_device(number, stream)


@contextlib.contextmanager
def _with_device(number: int, stream: int) -> Iterator[int]:
    with torch.cuda.device(number):
        yield stream


def address(x: torch.Tensor) -> int:
    return x.data_ptr()


def aligned(x: torch.Tensor) -> bool:
    return x.data_ptr() % x.itemsize == 0


def steps(x: torch.Tensor) -> tuple[int, ...]:
    return x.stride()


def empty(shape: tuple[int, ...], dtype: Any, like: torch.Tensor) -> torch.Tensor:
    return like.new_empty(shape, dtype=dtype)


def scratch(size: int, like: torch.Tensor) -> torch.Tensor:
    return empty((size,), torch.uint8, like)


def plain(x: torch.Tensor) -> torch.Tensor:
    return x.detach().resolve_neg() if x.is_neg() else x


def line(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if x.shape == shape and x.is_contiguous() and aligned(x) and not x.is_neg():  # mostly
        return x
    return x.detach().broadcast_to(shape).resolve_neg().clone(memory_format=torch.contiguous_format)
