"""torch: its own autograd, autocast, devices and the tensors that hold no values yet."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from typing import Any

import torch

from xent_array._backends._standard import HALF, Memory, Standard, dtype_name
from xent_array._namespace import Array

_WORTH_A_LOOK = 1 << 12

#: Bytes of a result from which on it is given huge pages, as in NumPy.
_WORTH_HUGE_PAGES = 1 << 22

_CONCRETE = (torch.Tensor, torch.nn.Parameter)


class Backend(Standard):
    #: torch sums by a cascade, along any axis, whose lane with the 1 is off by up to 20 units.
    trusted_sum = 3.0

    def admit(self, name: str, x: Array) -> Array:
        if type(x).__module__.startswith("torch.distributed"):
            raise TypeError(
                f"{name} must be a plain tensor, got {type(x).__name__}: "
                "pass x.to_local() where every rank holds whole rows, else x.full_tensor()"
            )
        if x.layout is not torch.strided or x.is_nested:
            kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
            raise TypeError(f"{name} must be a strided tensor, got a {kind} one: make it dense")
        return x

    def memory(self, x: Array) -> Memory:
        if torch.compiler.is_compiling() or torch._C._is_tracing() or _holds_no_values(x):
            return "opaque"
        return "host" if x.device.type == "cpu" else "device"

    def differentiates(self, *arrays: Array) -> bool:
        return torch.is_grad_enabled() and any(
            isinstance(x, torch.Tensor) and x.requires_grad for x in arrays
        )

    def unwritable(self, x: Array) -> str | None:
        if x.requires_grad:
            return "it requires grad"
        return super().unwritable(x) or self.shared(x.stride(), x.shape)

    def detached(self) -> contextlib.AbstractContextManager[Any]:
        return torch.no_grad()

    def branches(self, x: Array) -> bool:
        # To look at a few values costs more than to do without.
        return x.numel() >= _WORTH_A_LOOK and self.memory(x) == "host"

    def quiet(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def is_floating(self, dtype: Any) -> bool:
        return bool(dtype.is_floating_point) and self.itemsize(dtype) > 1

    def itemsize(self, dtype: Any) -> int:
        return int(dtype.itemsize)

    def result_dtype(self, logits: Array) -> Any:
        # F.cross_entropy is on autocast's float32 list, which widens the half dtypes alone.
        half = dtype_name(logits.dtype) in HALF
        autocast = half and torch.is_autocast_enabled(logits.device.type)
        return torch.float32 if autocast else logits.dtype

    def index_dtype(self, x: Array) -> Any:
        return torch.int64

    def value(self, x: Array) -> float:
        return float(x.detach())

    def row_sum(self, x: Array) -> Array:
        return torch.sum(x, dim=-1, keepdim=True)

    def gather(self, x: Array, index: Array) -> Array:
        return torch.gather(x, -1, index)

    def put(self, x: Array, index: Array, value: Array) -> Array:
        return x.scatter_(-1, index, value)

    def take(self, x: Array, index: Array) -> Array:
        return x[index]

    def room(self, shape: tuple[int, ...], like: Array) -> Array:
        room = torch.empty(shape, dtype=like.dtype, device=like.device)
        if room.is_cpu and room.nbytes >= _WORTH_HUGE_PAGES:
            _advise_huge_pages(room)
        return room


def _advise_huge_pages(x: Array) -> None:
    """Have Linux take huge pages for fresh memory, as NumPy does for its own.

    Of pages of 4 KiB, taking and clearing one after the other costs more than the gradient does.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if madvise is not None:
        start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = x.data_ptr() + x.nbytes - start
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)


def _holds_no_values(x: Array) -> bool:
    """A meta or fake tensor, or one wrapped by a torch.func transform or by batched backward."""
    functorch = torch._C._functorch
    return (
        type(x) not in _CONCRETE
        or x.is_meta
        or functorch.is_functorch_wrapped_tensor(x)
        or functorch.is_legacy_batchedtensor(x)
    )
