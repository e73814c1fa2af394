"""What is asked of columns, turned into C++.

It is done in as few launches as the sums among it allow, each a kernel made for it; see
`columns.cu` and `_engines.device`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from xent_array._kernels.columns import (
    CLASSES,
    ONE,
    REAL,
    ROWS,
    TRUTH,
    WHOLE,
    Column,
    Ledger,
)
from xent_array._kernels.launches import Cell, Form, Launch, Spot, launching

#: The dtypes that numbers of rows may have, by their types in `numbers.cu`.
TYPES = {
    "float64": "double",
    "float32": "float",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int64": "i64",
    "int32": "int",
    "int16": "short",
    "int8": "signed char",
    "uint64": "i64",
    "uint32": "u32",
    "uint16": "u16",
    "uint8": "unsigned char",
    "bool": "bool",
}

#: The bytes that each of them takes.
DTYPES = {name: int("".join(filter(str.isdigit, name)) or 8) // 8 for name in TYPES}

#: What operations are in C++.
_WRITTEN = {
    "real": "R({})",
    "finite": "{0} - {0} == 0",
    "exp": "exp({})",
    "log1p": "log1p({})",
    "not": "!{}",
    "add": "plus({}, {})",
    "subtract": "minus({}, {})",
    "multiply": "times({}, {})",
    "divide": "{} / {}",
    "less": "{} < {}",
    "equal": "{} == {}",
    "subtract whole": "{} - {}",
    "and": "{} & {}",
    "or": "{} | {}",
    "where": "{} ? {} : {}",
}

#: Threads of a block, and at most, as in `columns.cu`.
LANES, _MOST_LANES = 128, 512

#: Blocks of a launch, at most.
_BLOCKS = 1024

#: So many rows are gone through by one block, where that can also do what follows from all of them:
#: another launch would take as long.
_ONE_BLOCK = 2048

#: For so many rows a thread has the numbers on their way at once, if there are as many for each.
_AT_ONCE = 4

#: A column to be written down, and where.
Store = tuple[Column, Cell]


class Launches(Ledger):
    """What is asked of columns, in `dtype`, and the launches that do it.

    Anything but a sum over all rows waits until its numbers must lie in memory; sums are taken
    along with whatever comes first.
    """

    def __init__(self, dtype: str, counts: dict[str, int]) -> None:
        super().__init__(dtype)
        self.counts = counts
        self.launches: list[Launch] = []
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

    def take(self, vector: Column, index: Column) -> Column:
        """The numbers of the classes of an index."""
        self.settle([(vector, CLASSES)])
        return super().take(vector, index)

    # --- what is done

    def settle(self, wanted: list[tuple[Column, str]]) -> list[Cell]:
        """Have the numbers of columns in memory, one for each row or class."""
        stores: dict[str, list[tuple[Column, Cell]]] = {CLASSES: [], ROWS: []}
        cells = []
        for column, extent in wanted:
            cell, dtype = column.cell, column.dtype
            if cell is None or cell.dtype != dtype or column.extent != extent:
                cell = Cell(self.room(DTYPES[dtype] * self.counts[extent]), dtype)
                stores[extent].append((column, cell))
            cells.append(cell)
        for extent, some in stores.items():
            if some:
                self.store(extent, some)
        return cells

    def add_up(self) -> None:
        """Take all sums that were asked for."""
        self._add_up([x for x in self._columns.values() if x.operation == "total"])

    def index_steps(self, index: Column) -> Launch | None:
        """Steps by which another kernel finds a row's index, before it looks at the row.

        None where that follows from a sum.
        """
        if any(_totals_of(index)):
            return None
        struct = _Struct(self.dtype)
        _add_index(struct, index)
        return struct.launch(Form("", 0, 0))

    def steps(
        self, index: Column, results: dict[str, Column], given: dict[str, Column]
    ) -> Launch | None:
        """`index_steps`, and code that makes the named `results` of the numbers of a row.

        None where one of them must know a sum first.
        """
        if any(_totals_of(index)) or any(any(self._missing(x)) for x in results.values()):
            return None
        struct = _Struct(self.dtype)
        _add_index(struct, index)
        given = {"index": index, **given}
        others = "i64 index, const R* seen, Slope<R>& slope"
        method = struct.method(f"void carry_out(i64 row, const Part* totals, {others})", ROWS)
        method.names |= {id(column): name for name, column in given.items()}
        for name, column in results.items():
            method.write(f"slope.{name}", column.dtype, column)
        return struct.launch(Form("", 0, 0))

    def store(self, extent: str, stores: list[Store], last: Sequence[Store] = ()) -> None:
        """Write columns down, and add up what can be by then; `last` what follows from that."""
        self._add_up(x for column, _ in stores for x in _totals_of(column))
        ready = [
            total
            for total in self._columns.values()
            if total.operation == "total" and total.parts is None and self._goes_with(extent, total)
        ]
        self._launch(extent, stores, ready, last)
        for column, cell in stores:
            if column.extent == extent and cell.dtype == column.dtype:
                column.cell = cell

    def finish(self, results: list[Store]) -> None:
        """Write results down, those of each row along with whatever sums the others need."""
        rows = [(column, cell) for column, cell in results if column.extent == ROWS]
        others = [(column, cell) for column, cell in results if column.extent != ROWS]
        missing = [total for column, _ in others for total in self._missing(column)]
        at_once = missing and all(self._goes_with(ROWS, total) for total in missing)
        if at_once and self.counts[ROWS] <= _ONE_BLOCK:
            self.store(ROWS, rows, others)
            return
        if rows:
            self.store(ROWS, rows)
        if others:
            self.store(ONE, others)

    def _goes_with(self, extent: str, total: Column) -> bool:
        """Whether a sum can be taken by a launch that goes through so many."""
        (added,) = total.args
        return added.extent == extent and not any(self._missing(added))

    def _missing(self, column: Column) -> Iterator[Column]:
        return (total for total in _totals_of(column) if total.parts is None)

    def _add_up(self, totals: Iterable[Column]) -> None:
        for total in totals:
            if total.parts is None:
                self._add_up(self._missing(total.args[0]))
            if total.parts is None:  # it was not taken along
                self.store(total.args[0].extent, [])

    def _launch(
        self, extent: str, stores: list[Store], totals: list[Column], last: Sequence[Store]
    ) -> None:
        count = 1 if extent == ONE else self.counts[extent]
        blocks = 1 if last else max(1, min(-(-count // LANES), _BLOCKS))
        threads = min(max(-(-count // 32) * 32, LANES), _MOST_LANES) if last else LANES
        parts = self.room(8 * blocks * len(totals)) if totals else Spot(0)
        struct = _Struct(self.dtype)
        struct.field("i64", "count", count)
        struct.field("Part*", "parts", parts)
        method = struct.method("void carry_out(i64 row, const Part* totals, Part* sums)", extent)
        for column, cell in stores:
            method.store(cell, column)
        reals = 0
        for k, total in enumerate(totals):
            reals |= (total.kind == REAL) << k
            method.lines.append(f"sums[{k}].{total.kind} += {method.value(total.args[0])};")
        method = struct.method("void conclude(const Part* totals, const Part* sums)", ONE)
        method.names |= {
            id(total): _real_or_whole(f"sums[{k}]", total.kind) for k, total in enumerate(totals)
        }
        for column, cell in last:
            method.store(cell, column)
        at_once = _AT_ONCE if count >= _AT_ONCE * blocks * threads else 1
        sums = f"SUMS = {len(totals)}, REALS = {reals}"
        counts = f"{sums}, CONCLUDES = {len(last)}, AT_ONCE = {at_once}"
        form, kernel = Form("columns_of", blocks, threads), f"COLUMNS({threads})\n"
        self.launches.append(struct.launch(form, counts, kernel))
        for k, total in enumerate(totals):
            total.parts = (parts + 8 * blocks * k, blocks)


def _totals_of(column: Column) -> Iterator[Column]:
    """The totals that are needed to compute a column."""
    if column.operation == "total":
        yield column
    elif column.cell is None:
        for x in column.args:
            if isinstance(x, Column):
                yield from _totals_of(x)


def _add_index(struct: _Struct, index: Column) -> None:
    method = struct.method("i64 index_of(i64 row)", ROWS)
    method.lines.append(f"return {method.value(index)};")


def _real_or_whole(part: str, kind: str) -> str:
    """The value of a part."""
    return f"R({part}.real)" if kind == REAL else f"{part}.whole"


class _Struct:
    """The struct `Steps` of one launch, as it is written."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.fields, self.values, self.layout = list[str](), list[Any](), "<"
        self.adding, self.methods = list[str](), list[_Method]()
        self.names: dict[Any, str] = {}  # of fields and totals

    def field(self, kind: str, name: str, value: Any) -> str:
        self.fields.append(f"{kind} {name};")
        self.values.append(value)
        self.layout += "d" if kind == "double" else "q"
        return name

    def method(self, head: str, extent: str) -> _Method:
        """Another method, to be written."""
        self.methods.append(_Method(self, head, extent))
        return self.methods[-1]

    def launch(self, form: Form, counts: str = "", after: str = "") -> Launch:
        """A launch of what was written, or part of another's."""
        code = _STRUCT.format(
            real=TYPES[self.dtype],
            counts=", ".join(filter(None, (counts, f"TOTALS = {len(self.adding)}"))),
            fields="\n  ".join(self.fields),
            adding="\n    ".join(self.adding),
            methods="\n".join(map(str, self.methods)),
        )
        return launching(form, f"{code}{after}", self.layout, self.values)

    def place(self, cell: Cell, const: str) -> str:
        """The field that holds the address of a cell."""
        name = self.names.get(cell)
        if name is None:
            name = self.names[cell] = f"p{len(self.fields)}"
            self.field(f"{const}{TYPES[cell.dtype]}*", name, cell.address)
        return name

    def constant(self, kind: str, value: float) -> str:
        name = self.names.get((kind, repr(value)))
        if name is None:
            name = self.names[kind, repr(value)] = f"c{len(self.fields)}"
            self.field(kind, name, value)
        return name

    def total(self, column: Column) -> str:
        """A sum that an earlier launch has taken."""
        assert column.parts is not None
        name, kind = self.names.get(id(column)), column.kind
        if name is None:
            (spot, count), k = column.parts, len(self.adding)
            at = self.field("const Part*", f"t{k}", spot)
            several = self.field("i64", f"n{k}", count)
            added = f"totals[{k}].{kind} = sum_of({at}, {several}, &Part::{kind});"
            self.adding.append(f"if (falls_to_warp({k})) {added}")
            name = self.names[id(column)] = _real_or_whole(f"totals[{k}]", kind)
        return name


class _Method:
    """A method of the struct: what it does with columns, step by step."""

    def __init__(self, struct: _Struct, head: str, extent: str) -> None:
        self.struct, self.head, self.extent = struct, head, extent
        self.lines: list[str] = []
        self.names: dict[int, str] = {}  # of columns

    def __str__(self) -> str:
        lines = "\n    ".join(self.lines)
        return f"  DEVICE {self.head} const {{\n    {lines}\n  }}\n"

    def store(self, cell: Cell, column: Column) -> None:
        at = "[0]" if self.extent == ONE else "[row]"
        self.write(f"{self.struct.place(cell, '')}{at}", cell.dtype, column)

    def write(self, to: str, dtype: str, column: Column) -> None:
        value = self.value(column)
        if "float" in dtype and dtype != "float64":
            self.lines.append(f"narrow(float({value}), {to});")
        else:
            self.lines.append(f"{to} = {value};")

    def value(self, column: Column) -> str:
        """The name of a column's value, once the steps that compute it are written."""
        name = self.names.get(id(column))
        if name is None:
            formula = self._formula(column)
            kind = {REAL: "R", WHOLE: "i64", TRUTH: "bool"}[column.kind]
            name = self.names[id(column)] = f"v{len(self.names)}"
            self.lines.append(f"const {kind} {name} = {formula};")
        return name

    def _formula(self, column: Column) -> str:
        operation, args = column.operation, column.args
        if column.cell is not None:
            return self._read(column.cell, "0" if column.extent == ONE else "row")
        if operation == "constant":
            if column.kind == REAL:
                return f"R({self.struct.constant('double', float(args[1]))})"
            return self.struct.constant("i64", int(args[1]))
        if operation == "total":
            return self.struct.total(column)
        if operation == "take":
            return self._read(args[0].cell, self.value(args[1]))
        return _WRITTEN[operation].format(*map(self.value, args))

    def _read(self, cell: Cell, index: str) -> str:
        entry = f"read({self.struct.place(cell, 'const ')} + {index})"
        return f"R(widen({entry}))" if "float" in cell.dtype else entry


_STRUCT = """
struct Steps {{
  typedef {real} R;
  enum {{ {counts} }};
  {fields}

  DEVICE void add_totals(Part* totals) const {{
    {adding}
  }}

{methods}}};
"""
