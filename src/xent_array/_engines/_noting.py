"""Columns in the place of arrays, and kernels that note what they are asked for.

The loss runs on them, and what comes of it is in a ledger; see `_kernels.columns`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from xent_array._backends import Memory, Standard
from xent_array._kernels import RowStats
from xent_array._kernels.columns import CLASSES, ROWS, Column, Flat, Ledger
from xent_array._kernels.cuda import Given, Kernels, Rows, fused, launches_of, number_apart
from xent_array._kernels.launches import Cell
from xent_array._namespace import Array


class _Words:
    """What the loss says to columns, in the words of the Array API standard."""

    __name__ = "xent_array.columns"
    nan, inf = math.nan, math.inf
    bool, int64, float32, float64 = "bool", "int64", "float32", "float64"

    def where(self, condition: Column, a: Any, b: Any) -> Column:
        return condition.ledger.where(condition, a, b)

    def exp(self, x: Column) -> Column:
        return x.ledger.real("exp", x)

    def log1p(self, x: Column) -> Column:
        return x.ledger.real("log1p", x)

    def isfinite(self, x: Column) -> Column:
        return x.ledger.noted("finite", (x,), "truth")

    def ones_like(self, _: Column) -> float:
        return 1.0

    def zeros_like(self, _: Column) -> float:
        return 0.0

    def broadcast_to(self, x: Column, _: tuple[int, ...]) -> Column:
        return x


class Finished(NamedTuple):
    """A result: a column as the caller gets it."""

    column: Column
    dtype: str
    flat: bool  # without the class axis


class Columns(Standard):
    """The backend of columns."""

    def memory(self, _: Array) -> Memory:
        return "device"

    def index_dtype(self, _: Array) -> Any:
        return "int64"

    def itemsize(self, _: Any) -> int:
        return 8

    def cast(self, x: Column, dtype: Any) -> Column:
        return x.ledger.converted(x, dtype)

    def take(self, x: Column, index: Column) -> Column:
        return x.ledger.take(x, index)

    def total(self, x: Column) -> Column:
        return x.ledger.total(x)

    def row_sum(self, x: Column) -> Column:
        return x.ledger.total(x)

    def count(self, mask: Column) -> Column:
        return mask.ledger.total(mask)

    def finalize(self, x: Column | Flat, dtype: Any) -> Any:
        if isinstance(x, Flat):
            return Finished(x.column, dtype, flat=True)
        return Finished(x, dtype, flat=False)


COLUMNS = Columns(_Words())


class Logits(NamedTuple):
    """Logits, or their gradient: rows that kernels alone look at."""

    rows: Rows
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        return self.rows.start.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, block: Any) -> Logits:  # type: ignore[override]
        return self


class _Looked(NamedTuple):
    """A look at rows that was noted."""

    given: Given[Cell]
    seen: tuple[Column | None, ...]  # what the kernel knows of a row, in this order
    launches: int  # how many there were before


class Noted:
    """Kernels whose launches are noted in a ledger."""

    compiler = Kernels.compiler

    def __init__(self, ledger: Ledger, *, fuses: bool) -> None:
        self._ledger, self._fuses = ledger, fuses
        self._looked: _Looked | None = None

    def serial(self) -> Noted:
        """The same: a GPU shares rows by itself."""
        return self

    def row_stats(
        self,
        z: Logits,
        index: Column,
        weight: Column | float | None,
        scale: float,
        dtype: str,
        *,
        place: bool,
        into: Logits | None = None,
    ) -> RowStats:
        ledger = self._ledger
        vectors = [(weight, CLASSES)] if isinstance(weight, Column) else []
        where, *weights = ledger.settle([(index, ROWS), *vectors])
        top, rest, picked = (ledger.fresh(dtype) for _ in range(3))
        even = None if weight is None else ledger.fresh(dtype)
        at = ledger.fresh("int64") if place else None
        written = (top, rest, picked, even, at)
        share, _ = number_apart(weight)
        given = Given(
            (scale, share),
            weights or (None,),
            (where, *(None if x is None else x.cell for x in written)),
        )
        self._looked = _Looked(given, written[:4], len(ledger.launches))
        ledger.launches += launches_of("stats", z.shape, (z.rows,), given)
        return RowStats(top, rest, picked, even, at)

    def row_grad(
        self,
        z: Logits,
        into: Logits,
        scale: float,
        *,
        top: Column,
        pull: Column,
        even: Column | float | None,
        weight: Column | None,
        index: Column,
        chosen: Column,
        kept: Column | None,
        left: bool = False,
    ) -> None:
        ledger, vector = self._ledger, None
        if weight is not None and even is not None:
            (vector,) = ledger.settle([(weight, CLASSES)])
        owed, even = number_apart(even)
        named = {"pull": pull, "owed": even, "chosen": chosen, "kept": kept}
        numbers = {name: x for name, x in named.items() if isinstance(x, Column)}
        if self._fused(z, into, owed, vector, numbers):
            return
        numbers |= {"top": top, "index": index}
        settled = ledger.settle([(x, ROWS) for x in numbers.values()])
        cells = dict(zip(numbers, settled, strict=True))
        columns = [cells.get(name) for name in ("top", "pull", "owed", "index", "chosen", "kept")]
        given = Given((scale, owed), (vector,), columns)
        ledger.launches += launches_of("grad", z.shape, (z.rows, into.rows), given)

    def _fused(
        self,
        z: Logits,
        into: Logits,
        owed: float,
        vector: Cell | None,
        numbers: dict[str, Column],
    ) -> bool:
        """Have the look at the rows write their gradient as well, if it was the last launch."""
        ledger, looked = self._ledger, self._looked
        if not self._fuses or looked is None or looked.launches != len(ledger.launches) - 1:
            return False
        given = {f"seen[{k}]": x for k, x in enumerate(looked.seen) if x is not None}
        steps = ledger.steps(numbers, given)
        if steps is None:
            return False
        factors, weights, columns = looked.given
        both = Given((*factors, owed), (*weights, vector), columns)
        one = fused(z.shape, (z.rows, into.rows), both, steps)
        if one is not None:
            ledger.launches[-1] = one
        return one is not None
