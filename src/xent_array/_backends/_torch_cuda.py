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


@contextlib.contextmanager
def current(x: torch.Tensor) -> Iterator[int]:
    with torch.cuda.device(x.device):
        yield torch.cuda.current_stream(x.device).cuda_stream


def address(x: torch.Tensor) -> int:
    return x.data_ptr()


def aligned(x: torch.Tensor) -> bool:
    return x.data_ptr() % x.itemsize == 0


def steps(x: torch.Tensor) -> tuple[int, ...]:
    return x.stride()


def empty(shape: tuple[int, ...], dtype: Any, like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def scratch(size: int, like: torch.Tensor) -> torch.Tensor:
    return empty((size,), torch.uint8, like)


def plain(x: torch.Tensor) -> torch.Tensor:
    return x.detach().resolve_neg() if x.is_neg() else x


def line(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if x.shape == shape and x.is_contiguous() and aligned(x) and not x.is_neg():  # mostly
        return x
    return x.detach().broadcast_to(shape).resolve_neg().clone(memory_format=torch.contiguous_format)
