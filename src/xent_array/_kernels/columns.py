"""Array code on numbers of rows, written down as it runs.

Each operation on an array costs a call of Python's, and on a GPU a launch, which take longer than
the arithmetic on a few numbers of each row. So where kernels read rows the loss is evaluated once
on a `Ledger` instead of arrays: what is asked of columns is noted. What is made of it is a program
for the processor (`steps`), or kernels for a GPU (`cuda_columns`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from xent_array._kernels.launches import Cell, Spot

#: What there is one of: each row, each class, all of them.
ROWS, CLASSES, ONE = "rows", "classes", "one"

#: What numbers may be; the first two as a `Part` of `columns.cu` has them.
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
        return self.ledger.noted("or", (self < other, self == other), TRUTH)

    def __ge__(self, other: Any) -> Column:
        return self.ledger.noted("or", (self > other, self == other), TRUTH)

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
    """What is asked of columns, in `dtype`."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._columns: dict[Any, Column] = {}

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
        return self.noted(operation, args, TRUTH)

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
        return self.noted("take", (vector, index), vector.kind, index.extent)

    def total(self, x: Column) -> Column:
        """The sum of all there is of a column."""
        assert x.extent != ONE, "one number for all rows says nothing of how many they are"
        return self.noted("total", (x,), REAL if x.kind == REAL else WHOLE, ONE)
