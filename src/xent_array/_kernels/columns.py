"""Array code on numbers of rows, written down as it runs, for `columns.cu` to carry out.

On a GPU each operation on an array is a launch, which takes longer than the arithmetic on a few
numbers of each row. So the loss is evaluated once on a `Ledger` instead of arrays: what is asked of
columns is noted, and done in as few launches as the sums among it allow; see `_engines.device`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from xent_array._kernels.launches import Cell, Form, Launch, Spot

#: The operations, as `columns.cu` numbers them.
OPERATIONS = (
    *("load", "take", "total", "store", "sum", "real", "finite", "exp", "log1p", "not"),
    *("add", "subtract", "multiply", "divide", "less", "equal"),
    *("less whole", "equal whole", "subtract whole", "and", "or", "where"),
)
_CODE = {name: code for code, name in enumerate(OPERATIONS)}

#: The dtypes, as `columns.cu` numbers them, and the bytes that each takes.
DTYPES = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1},
    **{"uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1},
}
_DTYPE_CODE = {name: code for code, name in enumerate(DTYPES)}

#: How much a launch has room for, as in `columns.cu`.
SLOTS, STEPS, CONSTANTS, PLACES, TOTALS, SUMS, LANES = 20, 120, 24, 24, 8, 4, 128

#: Where the parts of a launch's parameter begin, and its size, all in bytes.
_PARTS, _SIZES, _TOTAL = 8, 16, 32
_PLACE = _TOTAL + 16 * TOTALS
_CONSTANT = _PLACE + 16 * PLACES
_STEP = _CONSTANT + 8 * CONSTANTS
_SIZE = _STEP + 8 * STEPS

#: Blocks of a launch, at most.
_BLOCKS = 1024

#: What there is one of: each row, each class, all of them.
ROWS, CLASSES, ONE = "rows", "classes", "one"

REAL, WHOLE, TRUTH = "real", "whole", "truth"


class Column:
    """A number of each row, of each class, or one for all: known by how it is computed."""

    __slots__ = ("args", "cell", "extent", "kind", "ledger", "operation", "parts")

    def __init__(
        self, ledger: Ledger, operation: str, args: tuple[Any, ...], kind: str, extent: str
    ) -> None:
        self.ledger, self.operation, self.args = ledger, operation, args
        self.kind, self.extent = kind, extent
        self.cell: Cell | None = None
        self.parts: tuple[Spot, int] | None = None  # of a total, and how many they are

    @property
    def dtype(self) -> str:
        return {REAL: self.ledger.dtype, WHOLE: "int64", TRUTH: "bool"}[self.kind]

    def __getitem__(self, key: Any) -> Any:
        return Flat(self) if key == (..., 0) else self  # else a block, which is all rows

    def __add__(self, other: Any) -> Column:
        return self.ledger.real("add", self, other)

    def __radd__(self, other: Any) -> Column:
        return self.ledger.real("add", other, self)

    def __sub__(self, other: Any) -> Column:
        return self.ledger.real("subtract", self, other)

    def __rsub__(self, other: Any) -> Column:
        return self.ledger.real("subtract", other, self)

    def __mul__(self, other: Any) -> Column:
        return self.ledger.real("multiply", self, other)

    def __rmul__(self, other: Any) -> Column:
        return self.ledger.real("multiply", other, self)

    def __truediv__(self, other: Any) -> Column:
        return self.ledger.real("divide", self, other)

    def __rtruediv__(self, other: Any) -> Column:
        return self.ledger.real("divide", other, self)

    def __lt__(self, other: Any) -> Column:
        return self.ledger.compared("less", self, other)

    def __gt__(self, other: Any) -> Column:
        return self.ledger.compared("less", other, self)

    def __le__(self, other: Any) -> Column:
        return (self < other) | (self == other)

    def __ge__(self, other: Any) -> Column:
        return (self > other) | (self == other)

    def __eq__(self, other: object) -> Column:  # type: ignore[override]
        return self.ledger.compared("equal", self, other)

    def __ne__(self, other: object) -> Column:  # type: ignore[override]
        return ~(self == other)

    def __and__(self, other: Column) -> Column:
        return self.ledger.noted("and", (self, other), TRUTH)

    def __or__(self, other: Column) -> Column:
        return self.ledger.noted("or", (self, other), TRUTH)

    def __invert__(self) -> Column:
        return self.ledger.noted("not", (self,), TRUTH)

    __hash__ = object.__hash__


class Flat(NamedTuple):
    """A column of each row without its class axis."""

    column: Column

    @property
    def dtype(self) -> str:
        return self.column.dtype


class Ledger:
    """What is asked of columns, in `dtype`, and the launches that do it.

    Anything but a sum over all rows waits until its numbers must lie in memory; sums are taken
    along with whatever comes first.
    """

    def __init__(self, dtype: str, counts: dict[str, int]) -> None:
        self.dtype, self.counts = dtype, counts
        self.launches: list[Launch] = []
        self._columns: dict[Any, Column] = {}
        self._unsummed: list[Column] = []
        self._memories, self.scratch = 1, 0  # the first piece of memory is scratch

    # --- memory

    def memory(self) -> Spot:
        """Another piece of memory."""
        self._memories += 1
        return Spot(self._memories - 1)

    def room(self, size: int) -> Spot:
        """Some of the scratch."""
        start, self.scratch = self.scratch, self.scratch + -(-size // 16) * 16
        return Spot(0, start)

    def given(self, spot: Spot, dtype: str, extent: str) -> Column:
        """A column whose numbers lie in memory."""
        kind = REAL if "float" in dtype else TRUTH if dtype == "bool" else WHOLE
        column = self.noted("load", (spot, dtype), kind, extent)
        column.cell = Cell(spot, dtype)
        return column

    def fresh(self, dtype: str) -> Column:
        """A column of each row for others to write."""
        return self.given(self.room(DTYPES[dtype] * self.counts[ROWS]), dtype, ROWS)

    # --- what is asked

    def noted(
        self, operation: str, args: tuple[Any, ...], kind: str, extent: str | None = None
    ) -> Column:
        """The result of an operation; of the same one the same."""
        key = (operation, *(id(x) if isinstance(x, Column) else x for x in args), kind, extent)
        found = self._columns.get(key)
        if found is None:
            if extent is None:
                extents = {x.extent for x in args if isinstance(x, Column)} - {ONE}
                (extent,) = extents or {ONE}
            found = self._columns[key] = Column(self, operation, args, kind, extent)
        return found

    def constant(self, x: float, kind: str) -> Column:
        return self.noted("constant", (repr(x), x), kind, ONE)

    def column(self, x: Any, kind: str) -> Column:
        """A number as a column."""
        return x if isinstance(x, Column) else self.constant(x, kind)

    def real(self, operation: str, *args: Any) -> Column:
        return self.noted(operation, tuple(self.column(x, REAL) for x in args), REAL)

    def compared(self, operation: str, a: Any, b: Any) -> Column:
        kind = next(x.kind for x in (a, b) if isinstance(x, Column))
        args = (self.column(a, kind), self.column(b, kind))
        return self.noted(operation if kind == REAL else f"{operation} whole", args, TRUTH)

    def where(self, condition: Column, a: Any, b: Any) -> Column:
        kind = next((x.kind for x in (a, b) if isinstance(x, Column)), REAL)
        return self.noted("where", (condition, self.column(a, kind), self.column(b, kind)), kind)

    def converted(self, x: Column, dtype: str) -> Column:
        if x.kind != REAL and "float" in dtype:
            return self.noted("real", (x,), REAL)
        if x.kind == TRUTH and dtype != "bool":
            return self.noted("subtract whole", (x, self.constant(0, WHOLE)), WHOLE)
        return x

    def take(self, vector: Column, index: Column) -> Column:
        """The numbers of the classes of an index."""
        self.settle([(vector, CLASSES)])
        return self.noted("take", (vector, index), vector.kind, index.extent)

    def total(self, x: Column) -> Column:
        """The sum of all there is of a column."""
        total = self.noted("total", (x,), REAL if x.kind == REAL else WHOLE, ONE)
        if total.parts is None and not any(total is other for other in self._unsummed):
            self._unsummed.append(total)
        return total

    # --- what is done

    def settle(self, wanted: list[tuple[Column, str]]) -> list[Cell]:
        """Have the numbers of columns in memory, one for each row or class."""
        cells, stores = self._to_settle(wanted)
        for extent, some in stores.items():
            if some:
                self.store(extent, some)
        return cells

    def steps_to_settle(self, wanted: list[tuple[Column, str]]) -> tuple[list[Cell], Launch] | None:
        """The same for another kernel to do, row by row; None where it cannot."""
        cells, stores = self._to_settle(wanted)
        if stores[CLASSES] or any(any(self._missing(column)) for column, _ in stores[ROWS]):
            return None
        form = Form(f"columns_{self.dtype}", 0, 0)
        return cells, _Writer(self, ROWS).launch(form, 0, stores[ROWS], [], Spot(0))

    def _to_settle(
        self, wanted: list[tuple[Column, str]]
    ) -> tuple[list[Cell], dict[str, list[tuple[Column, Cell]]]]:
        """Where columns lie, or will, and which of them are to be stored there."""
        stores: dict[str, list[tuple[Column, Cell]]] = {CLASSES: [], ROWS: []}
        cells = []
        for column, extent in wanted:
            cell, dtype = column.cell, column.dtype
            if cell is None or cell.dtype != dtype or column.extent != extent:
                cell = Cell(self.room(DTYPES[dtype] * self.counts[extent]), dtype)
                stores[extent].append((column, cell))
            cells.append(cell)
        return cells, stores

    def store(self, extent: str, stores: list[tuple[Column, Cell]]) -> None:
        """Write columns down, and add up what can be by then."""
        self._add_up(x for column, _ in stores for x in _totals_of(column))
        ready = [
            total
            for total in self._unsummed
            if total.args[0].extent == extent and not any(self._missing(total.args[0]))
        ][:SUMS]
        self._launch(extent, stores, ready)
        for column, cell in stores:
            if column.extent == extent and cell.dtype == column.dtype:
                column.cell = cell

    def finish(self, results: list[tuple[Column, Cell]]) -> None:
        """Write results down, those of each row along with whatever sums the others need."""
        rows = [(column, cell) for column, cell in results if column.extent == ROWS]
        others = [(column, cell) for column, cell in results if column.extent != ROWS]
        if rows:
            self.store(ROWS, rows)
        if others:
            self.store(ONE, others)

    def _missing(self, column: Column) -> Iterator[Column]:
        return (total for total in _totals_of(column) if total.parts is None)

    def _add_up(self, totals: Iterable[Column]) -> None:
        for total in totals:
            while total.parts is None:
                summed = total.args[0]
                self._add_up(self._missing(summed))
                if total.parts is None:
                    # The one that is needed comes first, should there be too many.
                    self._unsummed.sort(key=lambda other, first=total: other is not first)
                    self.store(summed.extent, [])

    def _launch(
        self, extent: str, stores: list[tuple[Column, Cell]], totals: list[Column]
    ) -> None:
        count = 1 if extent == ONE else self.counts[extent]
        blocks = max(1, min(-(-count // LANES), _BLOCKS))
        parts = self.room(8 * blocks * len(totals)) if totals else Spot(0)
        form = Form(f"columns_{self.dtype}", blocks, LANES)
        self.launches.append(_Writer(self, extent).launch(form, count, stores, totals, parts))
        for k, total in enumerate(totals):
            total.parts = (parts + 8 * blocks * k, blocks)
        done = {id(total) for total in totals}
        self._unsummed = [total for total in self._unsummed if id(total) not in done]


def _totals_of(column: Column) -> Iterator[Column]:
    """The totals that are needed to compute a column."""
    if column.operation == "total":
        yield column
    elif column.cell is None:
        for x in column.args:
            if isinstance(x, Column):
                yield from _totals_of(x)


class _Writer:
    """Writes the steps of one launch."""

    def __init__(self, ledger: Ledger, extent: str) -> None:
        self.ledger, self.extent = ledger, extent
        self.words, self.spots = bytearray(_SIZE), list[tuple[int, Spot]]()
        self.steps = self.places = self.totals = 0
        self.constants: dict[Any, int] = {}
        self.slots: dict[int, int] = {}
        self.free = list(range(SLOTS))[::-1]
        self.uses: dict[int, int] = {}

    def launch(
        self,
        form: Form,
        count: int,
        stores: list[tuple[Column, Cell]],
        totals: list[Column],
        parts: Spot,
    ) -> Launch:
        roots = [column for column, _ in stores] + [total.args[0] for total in totals]
        seen: set[int] = set()
        for root in roots:
            self._count(root, seen)
        for column, cell in stores:
            place = self._place(cell, 0 if self.extent == ONE else 1)
            self._step("store", 0, self._operand(column), place)
            self._used(column)
        reals = 0
        for k, total in enumerate(totals):
            reals |= (total.kind == REAL) << k
            self._step("sum", 0, self._operand(total.args[0]), k)
            self._used(total.args[0])
        room = {"steps": STEPS, "places": PLACES, "totals": TOTALS}
        if any(getattr(self, name) > most for name, most in room.items()):
            raise OverflowError(f"{self.steps} steps are more than a launch has room for")
        self.spots.append((_PARTS, parts))
        sizes = (self.steps, self.totals, len(totals), reals)
        struct.pack_into("<q", self.words, 0, count)
        struct.pack_into("<4i", self.words, _SIZES, *sizes)
        return Launch(form, 1, bytes(self.words), self.spots)

    def _count(self, column: Column, seen: set[int]) -> None:
        """Count how often each column is used, that its slot be free after the last time."""
        self.uses[id(column)] = self.uses.get(id(column), 0) + 1
        if id(column) in seen:
            return
        seen.add(id(column))
        for x in self._operands(column):
            self._count(x, seen)

    def _operands(self, column: Column) -> list[Column]:
        if column.cell is not None or column.operation == "total":
            return []
        args = column.args[1:] if column.operation == "take" else column.args
        return [x for x in args if isinstance(x, Column)]

    def _operand(self, column: Column) -> int:
        """Where a column is found, once the steps that compute it are written."""
        if column.operation == "constant":
            return SLOTS + self._constant(column)
        if id(column) not in self.slots:
            operands = self._operands(column)
            found = [self._operand(x) for x in operands]
            name = column.operation
            if column.cell is not None:
                name, found = "load", [self._place(column.cell, 0 if column.extent == ONE else 1)]
            elif name == "total":
                found = [self._total(column)]
            elif name == "take":
                found = [self._place(column.args[0].cell, 1), *found]
            for x in operands:
                self._used(x)
            self.slots[id(column)] = self.free.pop()
            self._step(name, self.slots[id(column)], *found)
        return self.slots[id(column)]

    def _used(self, column: Column) -> None:
        self.uses[id(column)] -= 1
        if not self.uses[id(column)] and id(column) in self.slots:
            self.free.append(self.slots[id(column)])

    def _step(self, name: str, to: int, *operands: int) -> None:
        a, b, c, *_ = (*operands, 0, 0, 0)
        struct.pack_into("<5B", self.words, _STEP + 8 * self.steps, _CODE[name], to, a, b, c)
        self.steps += 1

    def _place(self, cell: Cell, step: int) -> int:
        at = _PLACE + 16 * self.places
        self.spots.append((at, cell.address))
        struct.pack_into("<2i", self.words, at + 8, _DTYPE_CODE[cell.dtype], step)
        self.places += 1
        return self.places - 1

    def _total(self, column: Column) -> int:
        assert column.parts is not None
        at = _TOTAL + 16 * self.totals
        spot, count = column.parts
        self.spots.append((at, spot))
        struct.pack_into("<2i", self.words, at + 8, count, column.kind == REAL)
        self.totals += 1
        return self.totals - 1

    def _constant(self, column: Column) -> int:
        value, kind = column.args[1], column.kind
        number = self.constants.setdefault((column.args[0], kind), len(self.constants))
        form = "<q" if kind != REAL else "<d" if self.ledger.dtype == "float64" else "<f"
        value = int(value) if kind != REAL else _within(float(value), form)
        struct.pack_into(form, self.words, _CONSTANT + 8 * number, value)
        return number


def _within(x: float, form: str) -> float:
    """A number as its dtype has it: infinite where it is too great."""
    return math.copysign(math.inf, x) if form == "<f" and abs(x) > 3.4028235677973366e38 else x
