"""Kernels: compiled bodies of the two row primitives, where there is a compiler for them.

Without one, or where a dtype has none, the array code of `_stats` and `_wanted` does the same.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from xent_array._namespace import Array

if TYPE_CHECKING:
    from xent_array._kernels import cuda, host

#: The setting that switches kernels off.
SETTING = "XENT_ARRAY_KERNELS"

_disabled = 0


class RowStats(NamedTuple):
    """What a kernel finds in rows; class axes have length one."""

    top: Array
    rest: Array
    picked: Array  # scale·(z - top) at the index
    fall: Array | None  # the sum of weight·scale·(z - top)
    argmax: Array | None  # the class of the greatest logit, the lowest among ties


class Soft(NamedTuple):
    """A target of rows of probabilities, and what is wanted by them: p·times + plus.

    Both are of each class, or of all; None: p itself is wanted.
    """

    p: Array
    times: Array | float | None
    plus: Array | float | None


class SoftStats(NamedTuple):
    """What a kernel finds in rows with such a target; class axes have length one."""

    top: Array
    rest: Array
    mass: Array  # the sum of q, what is wanted
    fall: Array  # the sum of q·scale·(z - top)
    argmax: Array | None  # the class of the greatest logit, the lowest among ties
    label: Array | None  # and that of the greatest probability


class Kernels(Protocol):
    """The two row primitives on the arrays of a library, in one kind of memory."""

    @property
    def compiler(self) -> str:
        """What compiled them, in the words of ``python -m xent_array``."""

    def suits(self, axis: int, z: Array, into: Array | None, p: Array | None) -> bool:
        """Whether rows of logits with such a class axis are read well.

        Their gradients go `into` memory of the caller's, and `p` are probabilities, if there are.
        """

    def serial(self) -> Kernels:
        """The same on no thread but the caller's, where threads would share their work."""

    def row_stats(
        self,
        z: Array,
        index: Array | int,
        weight: Array | float | None,
        scale: float,
        dtype: Any,
        *,
        argmax: bool,
    ) -> RowStats:
        """Read rows of logits; `weight`, of each class or of all, and `argmax` if asked for.

        Where it is noted what is to be done, `index` may be one number for all rows.
        """

    def row_grad(
        self,
        z: Array,
        into: Array,
        scale: float,
        *,
        top: Array,
        pull: Array,
        even: Array | float | None,
        weight: Array | None,
        index: Array | int,
        chosen: Array,
        kept: Array | None,
        logarithm: bool = False,
    ) -> None:
        """Write ``exp(scale·(z - top))·pull - even·weight``, and what is `chosen` at the index.

        If a `logarithm` is asked for it is ``scale·(z - top) + pull``.

        `even` may be one number for all rows, and `index` as above; without a `weight` that of each
        class is 1. Rows that are not kept become 0. `into` may be `z`; numbers of rows have a class
        axis of length one.
        """


@runtime_checkable
class SoftKernels(Kernels, Protocol):
    """The same for targets of rows of probabilities too."""

    def soft_stats(
        self, z: Array, soft: Soft, scale: float, dtype: Any, *, argmax: bool
    ) -> SoftStats:
        """Read rows of logits and of probabilities; the classes if `argmax` is asked for."""

    def soft_grad(
        self,
        z: Array,
        into: Array,
        soft: Soft,
        scale: float,
        *,
        top: Array,
        rest: Array,
        total: Array,
        factor: Array | float,
        kept: Array | None,
    ) -> None:
        """Write what `ProbabilityRows.gradient` says, `total` being mass and excess.

        Rows that are not kept become 0. `into` may be `z`, but not the probabilities.
        """


def for_host(threads: Callable[[], int]) -> host.Kernels | None:
    """The kernels for host memory, on so many threads, or None; see `why_not_for_host`."""
    return None if _disabled else _host_on(threads)


def why_not_for_host() -> str | None:
    """Why no kernel serves host memory, or None if one does."""
    return "switched off" if _disabled else _host()[1]


def for_cuda(producer: cuda.Producer) -> cuda.Kernels | None:
    """The kernels for CUDA memory of a library, or None; `why_not_for_cuda` tells the reason."""
    return None if _disabled else _cuda(producer)[0]


def why_not_for_cuda(producer: cuda.Producer, device: int) -> str | None:
    """Why no kernel serves the memory of a device, or None if one does."""
    if _disabled:
        return "switched off"
    kernels, reason = _cuda(producer)
    return reason if kernels is None else kernels.why_not(device)


@functools.cache
def _host_on(threads: Callable[[], int]) -> host.Kernels | None:
    kernels = _host()[0]
    return None if kernels is None else kernels(threads)


@functools.cache
def _host() -> tuple[type[host.Kernels] | None, str | None]:
    reason = _missing("numba")
    if reason is not None:
        return None, reason
    try:
        import numba

        if getattr(numba.config, "DISABLE_JIT", False):
            return None, "NUMBA_DISABLE_JIT has numba compile nothing"
        from xent_array._kernels import host
    except ImportError as error:  # a numba that does not go with this Python or NumPy
        return None, f"numba cannot be imported: {error}"
    return host.Kernels, None


@functools.cache
def _cuda(producer: cuda.Producer) -> tuple[cuda.Kernels | None, str | None]:
    reason = _missing("cuda.core")
    if reason is not None:
        return None, reason
    try:
        from xent_array._kernels import cuda, nvrtc
    except ImportError as error:  # there are no bindings of a CUDA release beside it
        return None, f"cuda.core cannot be imported: {error}"
    return cuda.Kernels(producer, nvrtc), None


def are_disabled() -> bool:
    """Whether `disabled` is at work."""
    return _disabled > 0


def _missing(compiler: str) -> str | None:
    setting = os.environ.get(SETTING, "").strip() or "on"
    if setting.lower() not in ("on", "off"):
        raise ValueError(f"{SETTING} must be on or off, got {setting!r}")
    if setting.lower() == "off":
        return f"{SETTING}={setting}"
    try:
        found = importlib.util.find_spec(compiler) is not None
    except ModuleNotFoundError:  # nor the package that it is a part of
        found = False
    return None if found else f"{compiler} is not installed"


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Have no kernel serve anything, in all threads."""
    global _disabled  # noqa: PLW0603
    _disabled += 1
    try:
        yield
    finally:
        _disabled -= 1
