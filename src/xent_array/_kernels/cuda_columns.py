"""What is asked of columns, turned into C++.

It is done in as few launches as the sums among it allow, each a kernel made for it; see
`columns.cu` and `_engines.device`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

#: Threads of a block, as in `columns.cu`.
LANES = 128

#: Blocks of a launch, at most.
_BLOCKS = 1024


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

    def steps(self, results: dict[str, Column], given: dict[str, Column]) -> Launch | None:
        """Steps for another kernel to do with a row, which knows the given columns by some names.

        None where that must know a sum first.
        """
        if any(any(self._missing(column)) for column in results.values()):
            return None
        return _Writer(self.dtype, ROWS).steps_for(results, given)

    def store(self, extent: str, stores: list[tuple[Column, Cell]]) -> None:
        """Write columns down, and add up what can be by then."""
        self._add_up(x for column, _ in stores for x in _totals_of(column))
        ready = [
            total
            for total in self._columns.values()
            if total.operation == "total"
            and total.parts is None
            and total.args[0].extent == extent
            and not any(self._missing(total.args[0]))
        ]
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
            if total.parts is None:
                self._add_up(self._missing(total.args[0]))
            if total.parts is None:  # it was not taken along
                self.store(total.args[0].extent, [])

    def _launch(self, extent: str, stores: list[tuple[Column, Cell]], totals: list[Column]) -> None:
        count = 1 if extent == ONE else self.counts[extent]
        blocks = max(1, min(-(-count // LANES), _BLOCKS))
        parts = self.room(8 * blocks * len(totals)) if totals else Spot(0)
        writer = _Writer(self.dtype, extent)
        self.launches.append(writer.launch(blocks, count, stores, totals, parts))
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


class _Writer:
    """Writes the struct `Steps` of one launch."""

    def __init__(self, dtype: str, extent: str) -> None:
        self.dtype, self.extent = dtype, extent
        self.fields, self.values, self.layout = list[str](), list[Any](), "<"
        self.adding, self.lines = list[str](), list[str]()
        self.names: dict[Any, str] = {}

    def launch(
        self,
        blocks: int,
        count: int,
        stores: list[tuple[Column, Cell]],
        totals: list[Column],
        parts: Spot,
    ) -> Launch:
        self._field("i64", "count", count)
        self._field("Part*", "parts", parts)
        at = "[0]" if self.extent == ONE else "[row]"
        for column, cell in stores:
            self._write(f"{self._place(cell, '')}{at}", cell.dtype, column)
        reals = 0
        for k, total in enumerate(totals):
            reals |= (total.kind == REAL) << k
            self.lines.append(f"sums[{k}].{total.kind} += {self._value(total.args[0])};")
        counts = f"SUMS = {len(totals)}, REALS = {reals}, "
        code = f"{self._struct(counts, 'Part* sums')}COLUMNS\n"
        return launching(Form("columns_of", blocks, LANES), code, self.layout, self.values)

    def steps_for(self, results: dict[str, Column], given: dict[str, Column]) -> Launch:
        """The struct alone: the results become those of a `slope`."""
        self.names |= {id(column): name for name, column in given.items()}
        for name, column in results.items():
            self._write(f"slope.{name}", column.dtype, column)
        code = self._struct("", "const R* seen, Slope<R>& slope")
        return launching(Form("", 0, 0), code, self.layout, self.values)

    def _write(self, to: str, dtype: str, column: Column) -> None:
        value = self._value(column)
        if "float" in dtype and dtype != "float64":
            self.lines.append(f"narrow(float({value}), {to});")
        else:
            self.lines.append(f"{to} = {value};")

    def _struct(self, counts: str, others: str) -> str:
        return _STRUCT.format(
            real=TYPES[self.dtype],
            counts=f"{counts}TOTALS = {len(self.adding)}",
            others=others,
            fields="\n  ".join(self.fields),
            adding="\n    ".join(self.adding),
            lines="\n    ".join(self.lines),
        )

    def _value(self, column: Column) -> str:
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
            real = column.kind == REAL
            value = float(args[1]) if real else int(args[1])
            name = self._field("double" if real else "i64", f"c{len(self.fields)}", value)
            return f"R({name})" if real else name
        if operation == "total":
            return self._total(column)
        if operation == "take":
            return self._read(args[0].cell, self._value(args[1]))
        return _WRITTEN[operation].format(*map(self._value, args))

    def _read(self, cell: Cell, index: str) -> str:
        entry = f"{self._place(cell, 'const ')}[{index}]"
        return f"R(widen({entry}))" if "float" in cell.dtype else entry

    def _total(self, column: Column) -> str:
        assert column.parts is not None
        spot, count = column.parts
        k, kind = len(self.adding), column.kind
        at = self._field("const Part*", f"t{k}", spot)
        several = self._field("i64", f"n{k}", count)
        added = f"totals[{k}].{kind} = sum_of({at}, {several}, &Part::{kind});"
        self.adding.append(f"if (falls_to_warp({k})) {added}")
        return f"R(totals[{k}].real)" if kind == REAL else f"totals[{k}].whole"

    def _place(self, cell: Cell, const: str) -> str:
        name = self.names.get(cell)
        if name is None:
            name = self.names[cell] = f"p{len(self.fields)}"
            self._field(f"{const}{TYPES[cell.dtype]}*", name, cell.address)
        return name

    def _field(self, kind: str, name: str, value: Any) -> str:
        self.fields.append(f"{kind} {name};")
        self.values.append(value)
        self.layout += "d" if kind == "double" else "q"
        return name


_STRUCT = """
struct Steps {{
  typedef {real} R;
  enum {{ {counts} }};
  {fields}

  DEVICE void add_totals(Part* totals) const {{
    {adding}
  }}

  DEVICE void carry_out(i64 row, const Part* totals, {others}) const {{
    {lines}
  }}
}};
"""
