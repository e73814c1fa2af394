"""What the Array API standard itself can say: the backend of any conforming library."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

from xent_array._kernels import Kernels
from xent_array._namespace import Array, dtype_name

#: Where the values of an array lie: "host" and "device" are looped over in blocks sized for that
#: memory; "opaque" ones, traced, lazy or of a library not known here, are one expression.
Memory = Literal["host", "device", "opaque"]

#: Dtypes too coarse to compute in: their rows are computed in float32.
HALF = ("float16", "bfloat16")

#: A context that changes nothing, for any number of threads.
NOTHING = contextlib.nullcontext()

#: Bytes of a matrix that is made to be used at once, per kind of memory: few enough to stay in a
#: processor's cache. A "device" needs more to be busy; how much was not measured on one.
PIECE_BYTES: dict[Memory, int] = {"host": 1 << 23, "opaque": 1 << 23, "device": 1 << 28}


class Standard:
    """Answers about the arrays of one library, each in the words of the standard.

    A library that deviates, or knows a shorter way, overrides the one method concerned in the
    module of its name. `xp` is its Array API namespace.
    """

    #: A sum of exponentials, the greatest of them 1, from which the 1 can be taken again: the sum's
    #: own error, multiplied by 1 + 1/rest, is that of `rest`, and of what gradients of a row add up
    #: to.
    trusted_sum = 1.5

    #: Whether blocks are a loop of the library's own, `map_rows`, and not of Python.
    maps_rows = False

    #: Whether blocks are shared by threads: the library has none of its own.
    shares_blocks = False

    #: What evaluates the loss, in the words of ``python -m xent_array``.
    engine = "portable array code"

    #: Whether arrays are graphs of chunks, to be evaluated later.
    chunked = False

    #: Whether half matrices are multiplied as they are, their products summed in float32.
    multiplies_half = False

    def __init__(self, xp: Any) -> None:
        self.xp = xp

    # --- what kind of array is it?

    def admit(self, name: str, x: Array) -> Array:
        """Return argument `name` as a plain array of the library, or raise TypeError."""
        return x

    def signature(self, *arrays: Array) -> Any:
        """A hashable key, of dtypes, layouts, devices and modes of this thread; None: not known.

        All questions below have the same answers for arrays of equal keys, but for their values.
        It holds nothing of the arrays.
        """
        return None

    def device(self, x: Array) -> Any:
        return x.device

    def memory(self, x: Array) -> Memory:
        return "opaque"

    def cut_as(self, x: Array) -> Memory:
        """The memory by whose budget `x` is cut into blocks; "opaque": it is taken whole."""
        return self.memory(x)

    def differentiates(self, *arrays: Array) -> bool:
        """Whether the library itself will differentiate what is computed from `arrays`."""
        return False

    def branches(self, x: Array) -> bool:
        """Whether Python may look at values in passing: host memory, data-dependent indexing."""
        return False

    def kernels(self, x: Array) -> Kernels | None:
        """What reads rows of `x` in the place of array code, if any."""
        return None

    def why_no_kernels(self, x: Array) -> str | None:
        """Why array code reads rows of `x` that kernels could; None: they do, or there are none."""
        return None

    def evaluator(self, x: Array) -> Standard:
        """What evaluates `x` where nothing is differentiated: another library, on its memory."""
        return self

    def lent(self, x: Array) -> Array:
        """An array of the evaluator's on the memory of `x`; LookupError if it has no such dtype."""
        return x

    def threads(self) -> int:
        """How many threads may take blocks."""
        return 1

    def unwritable(self, x: Array) -> str | None:
        """Why `x` cannot be written to, or None if it can."""
        seen = self.memory(x) != "opaque"
        return None if seen else "it is traced, lazy or of a library that may not allow it"

    def shared(self, strides: tuple[int, ...], shape: tuple[int, ...], size: int) -> str | None:
        """Why an array cannot be written to whose entries, of a `size`, may overlap.

        Each axis must step over all that the axes of smaller steps reach. So it is for whatever is
        sliced, reversed or permuted of an array without overlaps.
        """
        if 0 in shape:
            return None  # there are no entries
        reach = size
        for step, n in sorted((abs(step), n) for step, n in zip(strides, shape, strict=True)):
            if n > 1 and step < reach:
                return "its entries may share memory"
            reach += step * (n - 1)
        return None

    def map_rows(self, function: Callable[[Any], Any], rows: Any, size: int) -> Any:
        """``function`` of each row of the arrays in `rows`, so many at once; results stacked."""
        raise NotImplementedError

    def detached(self) -> contextlib.AbstractContextManager[Any]:
        """Have the library neither differentiate what is computed nor warn of it."""
        return self.quiet()

    def quiet(self) -> contextlib.AbstractContextManager[Any]:
        """Silence floating-point warnings: a NaN row is an answer here, not an accident.

        NumPy is what warns, under whatever library is built on it.
        """
        numpy = sys.modules.get("numpy")
        return numpy.errstate(all="ignore") if numpy else NOTHING

    # --- dtypes

    def is_floating(self, dtype: Any) -> bool:
        return bool(self.xp.isdtype(dtype, "real floating"))

    def is_integer(self, dtype: Any) -> bool:
        return bool(self.xp.isdtype(dtype, "integral"))

    def is_boolean(self, dtype: Any) -> bool:
        return bool(self.xp.isdtype(dtype, "bool"))

    def integer_range(self, dtype: Any) -> tuple[int, int]:
        info = self.xp.iinfo(dtype)
        return int(info.min), int(info.max)

    def dtype(self, dtype: Any) -> Any:
        """Return the library's own object for a dtype that the caller named."""
        return dtype

    def compute_dtype(self, dtype: Any) -> Any:
        return self.xp.float32 if dtype_name(dtype) in HALF else dtype

    def itemsize(self, dtype: Any) -> int:
        """Bytes of one entry of a real floating dtype."""
        return int(self.xp.finfo(dtype).bits) // 8

    def result_dtype(self, logits: Array) -> Any:
        """The dtype of a loss whose caller did not choose one."""
        return logits.dtype

    def index_dtype(self, x: Array) -> Any:
        info = self.xp.__array_namespace_info__()
        return info.default_dtypes(device=self.device(x))["indexing"]

    def cast(self, x: Array, dtype: Any) -> Array:
        return x if x.dtype == dtype else self.xp.astype(x, dtype)

    # --- along the class axis, which is last; results keep it with length one

    def arranged(self, x: Array) -> Array:
        """The same rows, in memory as they are best read."""
        return x

    def row_max(self, x: Array) -> Array:
        return self.xp.max(x, axis=-1, keepdims=True)

    def row_max_with_nan(self, top: Array, x: Array) -> Array:
        """The maximum of each row of `x`, NaN where there is one, from what `row_max` found."""
        return top

    def row_argmax(self, x: Array) -> Array:
        """Index of the greatest entry, the lowest among ties."""
        return self.xp.argmax(x, axis=-1, keepdims=True)

    def row_sum(self, x: Array) -> Array:
        """Sum the classes pairwise, in any memory layout.

        The standard says nothing of the order of a sum, and NumPy adds along an axis that is not
        innermost in memory one by one, which over 128,000 classes loses 4,700 units of rounding.
        Halves are folded onto each other until few classes are left for the library's own sum.
        """
        odd: Array | None = None
        while (width := x.shape[-1]) > 16:
            half = width // 2
            if width % 2:
                last = x[..., 2 * half :]
                odd = last if odd is None else odd + last
            x = x[..., :half] + x[..., half : 2 * half]
        total = self.xp.sum(x, axis=-1, keepdims=True)
        return total if odd is None else total + odd

    def row_sums_by_size(self, shifted: Array, exps: Array) -> tuple[Array, Array]:
        """Sum the exponentials of `shifted` above 1/2, and the others."""
        high = exps > 0.5
        sums = self.xp.where(high, exps, 0.0), self.xp.where(high, 0.0, exps)
        return self.row_sum(sums[0]), self.row_sum(sums[1])

    def gather(self, x: Array, index: Array) -> Array:
        """``x[..., index]`` row by row; `index` is within bounds and keeps the class axis."""
        return self.xp.take_along_axis(x, index, axis=-1)

    def broadcast_rows(self, x: Array, shape: tuple[int, ...]) -> Array:
        """`x`, which is 0-d or has the rows' number of axes, in the shape of the rows."""
        return self.xp.broadcast_to(x, shape)

    def put(self, x: Array, index: Array, value: Array) -> Array:
        """`x`, an array of our own, with `value` at ``x[..., index]`` row by row."""
        return self.xp.where(self.class_range(x) == index, value, x)

    def settled(self, x: Array) -> Array:
        """A view of an array of our own, as a caller is given it."""
        return x

    def of_classes(self, x: Array, like: Array) -> Array:
        """`x`, which has one entry for each class, to be combined with `like`."""
        return x

    def class_range(self, x: Array) -> Array:
        """The class numbers ``0 .. C-1`` beside `x`."""
        return self.xp.arange(x.shape[-1], dtype=self.index_dtype(x), device=self.device(x))

    # --- whole arrays

    def value(self, x: Array) -> float:
        """The value of a 0-d array."""
        return float(x)

    def total(self, x: Array) -> Array:
        return self.xp.sum(x)

    def count(self, mask: Array) -> Array:
        """How many entries are True, in the index dtype."""
        dtype = self.index_dtype(mask)
        return self.xp.sum(self.xp.astype(mask, dtype), dtype=dtype)

    def row_count(self, _logits: Array, shape: tuple[int, ...]) -> float:
        """How many rows of a shape there are; 1 where there are none, for a mean to divide by."""
        return float(max(math.prod(shape), 1))

    def least(self, x: Array) -> float:
        """The least entry, infinite where there is none."""
        return float(self.xp.min(x)) if math.prod(x.shape) else math.inf

    def any(self, x: Array) -> bool:
        return bool(self.xp.any(x))

    def within(self, index: Array, length: int) -> bool:
        """Whether every index, of which there are some, is in [0, length)."""
        index = self.cast(index, self.index_dtype(index))
        return bool(self.xp.min(index) >= 0) and bool(self.xp.max(index) < length)

    def take(self, x: Array, index: Array) -> Array:
        """Entries of the vector `x` at an `index` of any shape."""
        return self.xp.reshape(self.xp.take(x, self.xp.reshape(index, (-1,))), index.shape)

    def room(self, shape: tuple[int, ...], like: Array, dtype: Any = None) -> Array:
        """Memory for a large result, on the device of `like` and, if not told, of its dtype."""
        dtype = like.dtype if dtype is None else dtype
        return self.xp.empty(tuple(shape), dtype=dtype, device=self.device(like))

    # --- matrices

    def pieces(self, matrix: Array, dtype: Any) -> Iterator[slice]:
        """Runs of the rows of a matrix that are small in a dtype."""
        count, width = matrix.shape
        step = max(1, PIECE_BYTES[self.memory(matrix)] // max(1, width * self.itemsize(dtype)))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def autocast(self, x: Array) -> Array:
        """`x` in the dtype that the library would multiply it in, where it has such a mode."""
        return x

    def affine(self, x: Array, weight: Array, bias: Array | None, room: Array | None) -> Array:
        """``x · weightᵀ + bias``, written to `room` where there is any."""
        if room is None:
            product = self.xp.matmul(x, weight.T)
            return product if bias is None else product + bias
        self.first_product(room, x, weight.T)
        if bias is not None:
            room += bias
        return room

    def first_product(self, total: Array, a: Array, b: Array) -> None:
        """Write ``a · b`` to `total`."""
        total[...] = self.cast(self.xp.matmul(a, b), total.dtype)

    def add_product(self, total: Array, a: Array, b: Array) -> None:
        """Add ``a · b`` to `total`, piece by piece: the product takes as much memory as a piece."""
        for rows in self.pieces(total, total.dtype):
            total[rows, :] += self.cast(self.xp.matmul(a[rows, :], b), total.dtype)

    def finalize(self, x: Array, dtype: Any) -> Array:
        """Hand a result to the caller: an array, never a scalar, of `dtype`."""
        return self.xp.astype(x, dtype, copy=False)
