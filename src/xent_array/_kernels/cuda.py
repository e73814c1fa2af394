"""The two row primitives in CUDA memory: which kernel of `rows.cu` reads an array, and how.

Nothing here waits for the device: memory is taken from the array's own library, and kernels are put
on the stream that is the library's current one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from xent_array._kernels import RowStats
from xent_array._kernels.cuda_columns import DTYPES, TYPES
from xent_array._kernels.launches import Address, Cell, Form, Launch, launching
from xent_array._namespace import Array, dtype_name

T = TypeVar("T")

#: The dtypes that kernels read, and how many entries of each a vector of 16 bytes holds.
_ENTRIES = {"float64": 2, "float32": 4, "float16": 8, "bfloat16": 8}

#: By how many blocks a row may be shared in `fused.cu`, and the dtypes there.
FUSED_BLOCKS, FUSED_DTYPES = (1, 2, 4, 8), ("float32", "float16", "bfloat16")

#: What the code of a kernel begins with that is compiled for plain losses, or to write logarithms:
#: see `rows.cu`.
PLAIN, LOGARITHM = "#define PLAIN 1\n", "#define LOGARITHM 1\n"

#: The parameters of the kernels that read rows, of those that write gradients, and of those that do
#: both: addresses and steps of the arrays, the numbers of rows and classes, factors, addresses.
#: What finds a row's index comes after those.
LAYOUTS = {"stats": "<7q2d6q", "grad": "<11q2d7q", "fused": "<11q3d7q"}

#: Bytes of a row that a block keeps when statistics and gradient are one look at it: five such
#: blocks have room in a multiprocessor. Of longer rows, a block of the most keeps twice as many.
_KEPT = 1 << 15

#: Of fewer rows the multiprocessors would be idle if a row of more bytes than a block writes were
#: not parted among more blocks.
_FEW_ROWS, _WRITTEN = 128, 1 << 14

#: How many vectors of a thread are on their way at once, as in `rows.cu`.
_FLIGHT = 4

#: Rows are read by a block each from so many classes on; of fewer, by a thread each.
_MANY = 65

#: Threads of a block: at most, where they share a row, and where they have a row each.
_SHARING, _LANES = {"stats": 128, "grad": 256}, 128

#: Threads of a block of `fused.cu`.
_SHARERS = 256


class Program(Protocol):
    """The kernels themselves."""

    def why_not(self, device: int) -> str | None:
        """Why they do not run on a device, or None if they do."""

    def keeps(self, device: int) -> int:
        """How many bytes of a row a block of `fused.cu` can keep there; 0: there are no such."""

    def launch(self, device: int, stream: int, one: Launch, memory: Sequence[int]) -> None:
        """Have a stream of the device, which is the current one, run a kernel some time later.

        The addresses are those of the pieces of memory that its spots are in.
        """


class Producer(Protocol):
    """What an array library tells of its arrays in CUDA memory."""

    @property
    def ARRAY(self) -> type:  # noqa: N802
        """The type of the arrays."""

    def __hash__(self) -> int: ...

    def device(self, x: Array) -> int:
        """The number of the device."""

    def current(self, x: Array) -> AbstractContextManager[int]:
        """Make the device of `x` the current one; the address of its current stream."""

    def address(self, x: Array) -> int: ...

    def aligned(self, x: Array) -> bool:
        """Whether every entry is at a multiple of its size; a GPU reads no others."""

    def steps(self, x: Array) -> tuple[int, ...]:
        """Strides, counted in entries."""

    def empty(self, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
        """Memory on the device of another array."""

    def scratch(self, size: int, like: Array) -> Array:
        """So much memory for whatever, on the device of another array."""

    def plain(self, x: Array) -> Array:
        """`x` as its memory has it."""

    def line(self, x: Array, shape: tuple[int, ...]) -> Array:
        """`x` in a `shape` that it broadcasts to, its entries adjacent, aligned and in order."""


class Kernels:
    """The kernels as they serve the arrays of one library."""

    compiler = "NVRTC"

    def __init__(self, producer: Producer, program: Program) -> None:
        self.producer = producer
        self._program = program

    def serves(self, x: Array) -> bool:
        """Whether the kernels can read an array."""
        producer = self.producer
        if not self.reads(x.dtype) or not producer.aligned(x):
            return False
        return self.why_not(producer.device(x)) is None

    def reads(self, dtype: Any) -> bool:
        """Whether the kernels read logits of a dtype."""
        return dtype_name(dtype) in _ENTRIES

    def why_not(self, device: int) -> str | None:
        """Why they do not run on a device, or None if they do."""
        return self._program.why_not(device)

    def suits(self, _axis: int, _z: Array, _into: Array | None, p: Array | None) -> bool:
        """Whether the target is no rows of probabilities."""
        return p is None

    def serial(self) -> Kernels:
        """The same: a GPU shares rows by itself."""
        return self

    def row_stats(
        self,
        z: Array,
        index: Array,
        weight: Array | float | None,
        scale: float,
        dtype: Any,
        *,
        argmax: bool,
    ) -> RowStats:
        """Read rows of logits; see `_kernels.Kernels`."""
        shape, producer = index.shape, self.producer
        with producer.current(z) as stream:
            top, rest, picked = (producer.empty(shape, dtype, z) for _ in range(3))
            fall = None if weight is None else producer.empty(shape, dtype, z)
            where = producer.empty(shape, index.dtype, z) if argmax else None
            columns = (top, rest, picked, fall, where, self._line(index, shape))
            share, weight = number_apart(weight)
            self._launch("stats", stream, (z,), Given((scale, share), (weight,), columns))
        return RowStats(top, rest, picked, fall, where)

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
        index: Array,
        chosen: Array,
        kept: Array | None,
        logarithm: bool = False,
    ) -> None:
        """Write the gradients of rows; see `_kernels.Kernels`."""
        shape = top.shape
        with self.producer.current(z) as stream:
            weight = None if even is None else weight
            common, even = number_apart(even)
            numbers = (top, pull, even, index, chosen, kept)
            columns = tuple(self._line(x, shape) for x in numbers)
            given = Given((scale, common), (weight,), columns, logarithm)
            self._launch("grad", stream, (z, into), given)

    def _launch(
        self, work: str, stream: int, arrays: tuple[Array, ...], given: Given[Array]
    ) -> None:
        z = arrays[0]
        vectors = [self._line(x, z.shape[-1:]) for x in given.vectors]
        rows = [Rows(self._cell(x), self.producer.steps(x)) for x in arrays]
        columns = self._cells(given.columns)
        cells = Given(given.factors, self._cells(vectors), columns, given.logarithm)
        self.launch(z, stream, launches_of(work, z.shape, rows, cells), ())

    def _cells(self, arrays: Sequence[Array | None]) -> list[Cell | None]:
        return [None if x is None else self._cell(x) for x in arrays]

    def _cell(self, x: Array) -> Cell:
        return Cell(self.producer.address(x), dtype_name(x.dtype))

    def keeps(self, z: Array) -> int:
        """How many bytes of a row a block can keep on the device of an array, see `fused.cu`."""
        return self._program.keeps(self.producer.device(z))

    def launch(
        self, z: Array, stream: int, launches: Iterable[Launch], memory: Sequence[int]
    ) -> None:
        """Have a stream do launches, whose spots are in some pieces of memory, one by one."""
        device, run = self.producer.device(z), self._program.launch
        for one in launches:
            run(device, stream, one, memory)

    def _line(self, x: Array | None, shape: tuple[int, ...]) -> Array | None:
        return None if x is None else self.producer.line(x, shape)


class Rows(NamedTuple):
    """Where rows of logits lie, or go; steps count entries."""

    start: Cell
    steps: tuple[int, ...]


class Given(NamedTuple, Generic[T]):
    """What a kernel is given beside rows: numbers, those of classes, and those of rows."""

    factors: Sequence[float]
    vectors: Sequence[T | None]
    columns: Sequence[T | None]
    logarithm: bool = False  # is written, not the gradient


def launches_of(
    work: str,
    shape: tuple[int, ...],
    arrays: Sequence[Rows],
    given: Given[Cell],
    steps: Launch | None = None,
) -> Iterator[Launch]:
    """Launch a kernel on all rows of a shape, or on parts of them that two axes reach.

    The `steps` by which statistics find a row's index go with one launch; without them the indices
    are the last of what is given.
    """
    (z, *_), classes = arrays, shape[-1]
    walk = _walk(shape[:-1], [x.steps[:-1] for x in arrays])
    if walk.rows == 0:
        return
    form = _form(work, z.start.dtype, walk, classes, z.steps[-1])
    types = [form.kernel.partition("_")[0], _types(z.start.dtype)]
    if work == "stats":
        types.append("Indices" if steps is None else "Steps")
    plain = PLAIN * _is_plain(work, given)
    code = f"{LOGARITHM * given.logarithm}{plain}{steps.code if steps else ''}"
    code = f"{code}{work.upper()}({', '.join(types)})\n"
    layout = LAYOUTS[work] if steps or work != "stats" else f"{LAYOUTS[work]}q"
    for row, offsets in walk.parts():
        starts = [_moved(x.start, n) for x, n in zip(arrays, offsets, strict=True)]
        places = [Rows(start, x.steps) for start, x in zip(starts, arrays, strict=True)]
        columns = [None if x is None else _moved(x, row) for x in given.columns]
        parameters = _parameters(walk, classes, places, given._replace(columns=columns))
        yield _with_steps(launching(form, code, layout, parameters), steps)


def is_one_launch(shape: tuple[int, ...], z: Rows) -> bool:
    """Whether one launch reaches all rows."""
    return not _walk(shape[:-1], [z.steps[:-1]]).lead


def _with_steps(one: Launch, steps: Launch | None) -> Launch:
    """A launch whose struct ends with one of steps."""
    if steps is None:
        return one
    spots = [*one.spots, *((len(one.words) + place, spot) for place, spot in steps.spots)]
    return one._replace(words=one.words + steps.words, spots=spots)


def _parameters(
    walk: _Walk, classes: int, arrays: Sequence[Rows], given: Given[Cell]
) -> list[float | Address]:
    """The parameters of a launch, in the order of `LAYOUTS`."""
    layout: list[float | Address] = []
    for k, x in enumerate(arrays, 1):
        layout += [x.start.address, walk.outer[k], walk.inner[k], x.steps[-1]]
    layout += [walk.inner[0], walk.rows, classes, *map(float, given.factors)]
    return layout + [0 if x is None else x.address for x in (*given.vectors, *given.columns)]


def _moved(cell: Cell, entries: int) -> Cell:
    return cell._replace(address=cell.address + entries * DTYPES[cell.dtype])


def _is_plain(work: str, given: Given[Cell]) -> bool:
    """Whether the scale is 1, and there is none of what only some losses have."""
    (scale, *others), columns = given.factors, given.columns
    if work == "grad":  # an even share, of all rows or of each
        return scale == 1.0 and others == [0.0] and columns[2] is None
    # The sum of w·(z - top), and the argmax; an even share of all rows.
    return scale == 1.0 and [*columns[3:5]] == [None, None] and others[1:] in ([], [0.0])


def _types(dtype: str) -> str:
    """The name of a dtype, and in C++ the types of logits and of numbers of rows."""
    return f"{dtype}, {TYPES[dtype]}, {'double' if dtype == 'float64' else 'float'}"


def definitions_of(code: str) -> str:
    """What the code of a kernel begins with that is to come before the files it is made of."""
    lines = code.splitlines(keepends=True)
    return "".join(itertools.takewhile(lambda line: line.startswith("#define "), lines))


def fused(
    shape: tuple[int, ...],
    arrays: Sequence[Rows],
    given: Given[Cell],
    steps: Launch,
    keeps: int,
) -> Launch | None:
    """Launch statistics and gradient as one; `steps` make what the second needs of the first.

    A block `keeps` so many bytes at most. None where that cannot be, or is slower.
    """
    z, into = arrays
    walk, classes = _walk(shape[:-1], [x.steps[:-1] for x in arrays]), shape[-1]
    row_bytes = classes * DTYPES[z.start.dtype]
    blocks = 1 << max(0, (-(-row_bytes // _KEPT) - 1).bit_length())
    blocks = min(blocks, FUSED_BLOCKS[-1])
    part, dtype = -(-row_bytes // blocks), z.start.dtype
    adjacent = z.steps[-1] == into.steps[-1] == 1 and classes >= _MANY
    idle = walk.rows < _FEW_ROWS and row_bytes > _WRITTEN
    unfit = part > keeps or dtype not in FUSED_DTYPES or not adjacent
    if walk.lead or walk.rows == 0 or idle or unfit:
        return None
    copies, most = (2, _KEPT) if part <= _KEPT else (4, 2 * _KEPT)
    kept = min(part + 16, most) // 16 * 16
    form = Form(f"fused{blocks}_{dtype}", walk.rows * blocks, _SHARERS)
    plain = _is_plain("fused", given) and "slope.even" not in steps.code
    code = f"{LOGARITHM * given.logarithm}{PLAIN * plain}{steps.code}"
    code = f"{code}FUSED({blocks}, {copies}, {dtype}, {TYPES[dtype]})\n"
    one = launching(form, code, LAYOUTS["fused"], _parameters(walk, classes, arrays, given))
    return _with_steps(one, steps)._replace(shared=kept)


class _Walk(NamedTuple):
    """Rows as kernels go through them: along two axes, and as often as there are leading ones.

    An axis is its length and the step of each array.
    """

    lead: list[tuple[int, ...]]
    outer: tuple[int, ...]
    inner: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many a launch covers."""
        return self.outer[0] * self.inner[0]

    def parts(self) -> Iterator[tuple[int, list[int]]]:
        """The first row of each launch, and which entry of each array that begins with."""
        places = itertools.product(*(range(axis[0]) for axis in self.lead))
        for number, place in enumerate(places):
            offsets = [
                sum(i * axis[k] for i, axis in zip(place, self.lead, strict=True))
                for k in range(1, len(self.inner))
            ]
            yield number * self.rows, offsets


def _walk(shape: tuple[int, ...], steps: list[tuple[int, ...]]) -> _Walk:
    """Put axes together where one goes on where the other ends, in every array."""
    one = (1, *(0 for _ in steps))
    axes = [one, one]
    for axis in zip(shape, *steps, strict=True):
        outer = axes[-1]
        if outer[0] == 1:
            axes[-1] = axis
        elif outer[1:] == tuple(axis[0] * step for step in axis[1:]):
            axes[-1] = (outer[0] * axis[0], *axis[1:])
        elif axis[0] != 1:
            axes.append(axis)
    *lead, outer, inner = axes
    return _Walk([axis for axis in lead if axis[0] != 1], outer, inner)


def _form(work: str, dtype: str, walk: _Walk, classes: int, step: int) -> Form:
    """Which kernel does some work, and how it is launched."""
    along_classes = abs(step) <= abs(walk.inner[1]) or walk.rows < classes
    if classes < _MANY or not along_classes:
        return Form(f"lane_{work}_{dtype}", -(-walk.rows // _LANES), _LANES)
    of_thread = _FLIGHT * _ENTRIES[dtype]
    warps = 1 << max(0, (-(-classes // (32 * of_thread)) - 1).bit_length())
    threads = min(32 * warps, _SHARING[work])
    tiles = 1 if work == "stats" else -(-classes // (threads * of_thread))
    return Form(f"wide_{work}_{dtype}", walk.rows * tiles, threads)


def number_apart(x: Array | float | None) -> tuple[float, Array | None]:
    """A number that holds for all, or an array of what holds for each."""
    return (x, None) if isinstance(x, float) else (0.0, x)
