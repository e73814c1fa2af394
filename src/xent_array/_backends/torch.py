"""torch: its own autograd, autocast, devices and the tensors that hold no values yet."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
from torch.autograd import forward_ad

from xent_array import _kernels
from xent_array._backends import _torch_cuda, backend_of
from xent_array._backends._standard import NOTHING, Memory, Standard
from xent_array._kernels import Kernels
from xent_array._memory import advise_huge_pages
from xent_array._namespace import Array

_WORTH_A_LOOK = 1 << 12

#: The logarithm of 1/2.
_HALF_OF_TOP = -math.log(2.0)

CONCRETE = (torch.Tensor, torch.nn.Parameter)
_HALF = (torch.float16, torch.bfloat16)
_INTEGERS = frozenset(
    getattr(torch, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
)


class Backend(Standard):
    #: torch sums by a cascade, along any axis, whose lane with the 1 is off by up to 20 units.
    trusted_sum = 3.0
    multiplies_half = True

    def admit(self, name: str, x: Array) -> Array:
        if type(x) not in CONCRETE and type(x).__module__.startswith("torch.distributed"):
            raise TypeError(
                f"{name} must be a plain tensor, got {type(x).__name__}: "
                "pass x.to_local() where every rank holds whole rows, else x.full_tensor()"
            )
        if x.layout is not torch.strided or x.is_nested:
            kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
            raise TypeError(f"{name} must be a strided tensor, got a {kind} one: make it dense")
        return x

    def signature(self, *arrays: Array) -> Any:
        if torch.compiler.is_compiling() or _is_recorded():
            return None
        if not all(map(_is_plain, arrays)):
            return None
        return (
            torch.is_grad_enabled(),
            torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0,
            self.result_dtype(arrays[0]),
            *map(_told_of, arrays),
        )

    def memory(self, x: Array) -> Memory:
        if not holds_values(x):
            return "opaque"
        return "host" if x.is_cpu else "device"

    def differentiates(self, *arrays: Array) -> bool:
        if torch.is_grad_enabled():
            for x in arrays:
                if isinstance(x, torch.Tensor) and x.requires_grad:
                    return True
        return False

    def kernels(self, x: Array) -> Kernels | None:
        # What counts or records operations, or carries tangents, is to see torch's.
        if not _torch_cuda.holds(x) or self.memory(x) != "device" or x.is_neg():
            return None
        if torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
            return None
        kernels = _kernels.for_cuda(_torch_cuda)
        return kernels if kernels is not None and kernels.serves(x) else None

    def why_no_kernels(self, x: Array) -> str | None:
        if not _torch_cuda.holds(x):  # that is NumPy's to tell
            return None
        if torch.version.cuda is None:
            return "the GPU is not NVIDIA's"
        return _kernels.why_not_for_cuda(_torch_cuda, x.get_device())

    def evaluator(self, x: Array) -> Standard:
        return borrowed(self.memory(x)) or self

    def lent(self, x: Array) -> Array:
        return numpy_view(x)

    def unwritable(self, x: Array) -> str | None:
        if x.requires_grad:
            return "it requires grad"
        if is_compiled():  # which makes a result of what is written, and has torch copy that
            return None
        if x.is_inference() and not torch.is_inference_mode_enabled():
            return "it is an inference tensor, outside inference mode"
        return super().unwritable(x) or self.shared(x.stride(), x.shape, 1)

    def detached(self) -> contextlib.AbstractContextManager[Any]:
        return torch.no_grad()

    def branches(self, x: Array) -> bool:
        # To look at a few values costs more than to do without. Of what has none, the size may be
        # unknown as well.
        return self.memory(x) == "host" and bool(x.numel() >= _WORTH_A_LOOK)

    def quiet(self) -> contextlib.AbstractContextManager[Any]:
        return NOTHING

    def is_floating(self, dtype: Any) -> bool:
        return bool(dtype.is_floating_point) and self.itemsize(dtype) > 1

    def is_integer(self, dtype: Any) -> bool:
        return dtype in _INTEGERS

    def itemsize(self, dtype: Any) -> int:
        return int(dtype.itemsize)

    def compute_dtype(self, dtype: Any) -> Any:
        return torch.float32 if dtype in _HALF else dtype

    def result_dtype(self, logits: Array) -> Any:
        # F.cross_entropy is on autocast's float32 list, which widens the half dtypes alone.
        autocast = logits.dtype in _HALF and _is_autocast(logits)
        return torch.float32 if autocast else logits.dtype

    def index_dtype(self, x: Array) -> Any:
        return torch.int64

    def value(self, x: Array) -> float:
        return float(x.detach())

    def row_sum(self, x: Array) -> Array:
        return torch.sum(x, dim=-1, keepdim=True)

    def row_sums_by_size(self, shifted: Array, exps: Array) -> tuple[Array, Array]:
        apart = shifted.ndim > 2 and shifted.stride(-1) != 1 and torch.compiler.is_compiling()
        if not apart or shifted.device.type != "cpu":
            return super().row_sums_by_size(shifted, exps)
        # Of images a compiler for the CPU stores exponentials that two sums use, which takes
        # longer than to have some of each.
        low = shifted < _HALF_OF_TOP
        high = torch.exp(torch.where(low, -torch.inf, shifted))
        return self.row_sum(high), self.row_sum(torch.exp(torch.where(low, shifted, -torch.inf)))

    def gather(self, x: Array, index: Array) -> Array:
        return torch.gather(x, -1, index)

    def settled(self, x: Array) -> Array:
        # A compiler stores an array before it makes a view of it, unless it may write it as viewed.
        return x.contiguous() if torch.compiler.is_compiling() else x

    def put(self, x: Array, index: Array, value: Array) -> Array:
        if torch.compiler.is_compiling():  # of a choice it makes no pass of its own
            return super().put(x, index, value)
        return x.scatter_(-1, index, value)

    def within(self, index: Array, length: int) -> bool:
        # No index without values comes here. NumPy answers at a fraction of torch's cost of a call.
        numpy = borrowed("host" if index.is_cpu else "device")
        if numpy is None:
            return super().within(index, length)
        return numpy.within(numpy_view(index), length)

    def take(self, x: Array, index: Array) -> Array:
        return x[index]

    def autocast(self, x: Array) -> Array:
        # As F.linear, which autocast hands its arguments in the dtype it chose, float64 apart.
        if x.dtype is torch.float64 or not _is_autocast(x):
            return x
        return x.to(torch.get_autocast_dtype(x.device.type))

    def first_product(self, total: Array, a: Array, b: Array) -> None:
        if a.dtype is total.dtype:
            torch.mm(a, b, out=total)
        elif _sums_half_products(total, a):
            torch.mm(a, b, out_dtype=torch.float32, out=total)
        else:  # a copy casts on the way
            for rows in self.pieces(total, total.dtype):
                total[rows, :].copy_(torch.mm(a[rows, :], b))

    def affine(self, x: Array, weight: Array, bias: Array | None, room: Array | None) -> Array:
        if room is None:
            return torch.nn.functional.linear(x, weight, bias)
        if bias is None:
            return torch.mm(x, weight.T, out=room)
        return torch.addmm(bias, x, weight.T, out=room)

    def add_product(self, total: Array, a: Array, b: Array) -> None:
        if a.dtype is total.dtype:
            total.addmm_(a, b)
        elif _sums_half_products(total, a):
            torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
        else:  # and so does a sum
            for rows in self.pieces(total, total.dtype):
                total[rows, :].add_(torch.mm(a[rows, :], b))

    def room(self, shape: tuple[int, ...], like: Array, dtype: Any = None) -> Array:
        room = torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
        if room.is_cpu:
            advise_huge_pages(room.data_ptr(), room.nbytes)
        return room


def _sums_half_products(total: torch.Tensor, a: torch.Tensor) -> bool:
    """Whether half matrices can be multiplied onto a float32 one: by cuBLAS, not under a tracer."""
    if not total.is_cuda or a.dtype not in _HALF or torch.compiler.is_compiling():
        return False
    capable = torch.version.cuda and torch.cuda.get_device_capability(total.device) >= (8, 0)
    return bool(capable)


@functools.cache
def numpy_backend() -> Standard | None:
    """What answers for NumPy's arrays on torch's memory; None: torch cannot make any."""
    try:
        numpy = backend_of("x", torch.zeros(1, device="cpu").numpy())
    except RuntimeError:  # torch has no NumPy beside it
        return None

    class Borrowed(type(numpy)):  # type: ignore[misc]
        """NumPy's, with no more threads than torch would take."""

        def threads(self) -> int:
            own: int = super().threads()
            return min(own, torch.get_num_threads())

    return Borrowed(numpy.xp)


def numpy_view(x: torch.Tensor) -> Array:
    """NumPy's array on the memory of a tensor; LookupError if NumPy has no such dtype."""
    if x.dtype is torch.bfloat16:
        return x.detach().resolve_neg().view(torch.int16).numpy().view(_numpy_bfloat16())
    return x.numpy(force=True)  # without what torch knows beside the values


@functools.cache
def _numpy_bfloat16() -> Any:
    try:
        from ml_dtypes import bfloat16
    except ImportError as error:
        raise LookupError("bfloat16") from error
    return bfloat16


def borrowed(memory: Memory) -> Standard | None:
    """NumPy's backend, for what lies in host memory; None where nothing but torch will do.

    What counts or records operations, or carries tangents, is to see torch's.
    """
    if memory != "host" or torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return None
    return numpy_backend()


def _is_autocast(x: Array) -> bool:
    """Whether autocast is at work on the device of a tensor; torch refuses to say so of "meta"."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work, and nothing records what it does."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_compiled() -> bool:
    """Whether a compiler, and nothing else, sees what is computed now."""
    return torch.compiler.is_dynamo_compiling() and not (
        torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
    )


def _is_plain(x: Array) -> bool:
    return type(x) in CONCRETE and x.layout is torch.strided and not x.is_nested


def _told_of(x: torch.Tensor) -> tuple[Any, ...]:
    """What matters of a plain tensor; whether it has values is among its keys."""
    keys = torch._C._dispatch_keys(x).raw_repr()
    layout = x.shape, x.stride(), x.data_ptr() % x.itemsize
    return x.dtype, *layout, x.device, x.requires_grad, keys


def holds_values(x: Array) -> bool:
    """Whether there are values to be looked at, which stand for no others."""
    return not (torch.compiler.is_compiling() or _is_recorded() or _holds_no_values(x))


def _is_recorded() -> bool:
    """Whether what is computed now stands for other values: traced, faked, or transformed."""
    if torch._C._is_tracing() or torch._C._are_functorch_transforms_active():
        return True
    if not torch._C._len_torch_dispatch_stack():
        return False
    modes = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(mode) for mode in (modes.FAKE, modes.PROXY))


def _holds_no_values(x: Array) -> bool:
    """A meta or fake tensor, or one wrapped by a torch.func transform or by batched backward."""
    return type(x) not in CONCRETE or x.is_meta or is_wrapped(x)


def is_wrapped(x: Array) -> bool:
    """Whether a tensor stands for many, or for another, in a transform or in batched backward."""
    functorch = torch._C._functorch
    return bool(functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x))
