"""The loss is traced: evaluated on symbolic columns, which note the operations in a ledger.

See `_kernels.columns`. `host` makes a program of a ledger, `device` launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from xent_array import _evaluate
from xent_array._backends import Memory, Standard
from xent_array._batch import NUMBERS, Arrays, Batch, arrays_of, with_arrays
from xent_array._evaluate import Kept, Result, room_for_gradient
from xent_array._kernels import Kernels
from xent_array._kernels.columns import CLASSES, ONE, ROWS, Column, Flat
from xent_array._namespace import Array, dtype_name
from xent_array._rowwise import Stats


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

    def row_count(self, logits: Logits, shape: tuple[int, ...]) -> Any:
        return super().row_count(logits, shape) if logits.row_count is None else logits.row_count

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

    dtype: str
    shape: tuple[int, ...]
    rows: Any = None  # where they are, if that is noted as well
    row_count: Column | None = None  # of all rows, if a call like this one may have others

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, block: Any) -> Logits:
        return self


# --- what is evaluated on columns; the results are one after the other

Results = list[Any]
Work = Callable[[Batch, Kept | None], Results]


def _value(batch: Batch, _: Kept | None) -> Results:
    result = _evaluate.value(batch)
    return [result.loss, *(result.stats or ())]


def _value_and_grad(batch: Batch, _: Kept | None) -> Results:
    result = _evaluate.value_and_grad(batch)
    return [result.loss, *(result.stats or ())]


def _probabilities(batch: Batch, _: Kept | None) -> Results:
    _evaluate.probabilities(batch)
    return []


def _value_to_differentiate(batch: Batch, _: Kept | None) -> Results:
    result, kept = _evaluate.value_to_differentiate(batch)
    return [result.loss, kept.divisor, *kept.seen]


def _grad_of_kept(batch: Batch, kept: Kept | None) -> Results:
    assert kept is not None
    _evaluate.grad_of_kept(batch, kept)
    return []


class Evaluations(NamedTuple):
    """What an engine has, on arrays: see `_engines.of_memory`."""

    value: Callable[[Batch], Result]
    value_and_grad: Callable[[Batch], Result]
    probabilities: Callable[[Batch], Array]
    value_to_differentiate: Callable[[Batch], tuple[Result, Kept]]
    grad_of_kept: Callable[[Batch, Kept], Array]


def evaluations(run: Callable[[Work, Batch, Kept | None, Array | None], Results]) -> Evaluations:
    """Evaluate by what does some work on a batch, what was kept, and memory for the gradient."""

    def value(batch: Batch) -> Result:
        loss, *stats = run(_value, batch, None, None)
        return Result(loss, None, Stats(*stats) if stats else None)

    def value_and_grad(batch: Batch) -> Result:
        out = room_for_gradient(batch)
        loss, *stats = run(_value_and_grad, batch, None, out)
        return Result(loss, out, Stats(*stats) if stats else None)

    def probabilities(batch: Batch) -> Array:
        out = room_for_gradient(batch)
        run(_probabilities, batch, None, out)
        return out

    def value_to_differentiate(batch: Batch) -> tuple[Result, Kept]:
        loss, divisor, *seen = run(_value_to_differentiate, batch, None, None)
        return Result(loss, None, None), Kept(seen, divisor)

    def grad_of_kept(batch: Batch, kept: Kept) -> Array:
        out = room_for_gradient(batch)
        run(_grad_of_kept, batch, kept, out)
        return out

    return Evaluations(value, value_and_grad, probabilities, value_to_differentiate, grad_of_kept)


def planned(work: Work, batch: Batch, find: Callable[[], Any]) -> Any:
    """What an engine does for a call: found once for all calls of its signature, if it has one."""
    plans = batch.plans
    if plans is None:
        return find()
    key = work, batch.target.found
    plan = plans.get(key)
    if plan is None:
        plan = plans[key] = find()
    return plan


#: What a batch and what was kept have one number of; rows are the others.
_EXTENTS = {"weight": CLASSES, "smoothing": ONE, "denominator": ONE, "divisor": ONE}

KEPT = ("top", "rest", "mass", "picked", "divisor")


def own_dtypes(batch: Batch) -> dict[str, Any]:
    """The library's own dtypes by their names, as far as results have them."""
    xp, own = batch.backend.xp, (batch.compute_dtype, batch.result_dtype)
    return {"int64": xp.int64, "bool": xp.bool, **{dtype_name(dtype): dtype for dtype in own}}


def results_on_columns(
    work: Work,
    batch: Batch,
    arrays: Sequence[Any],
    *,
    column: Callable[[str, Any, str], Column],
    logits: Logits,
    into: Logits | None,
    kernels: Kernels,
) -> Results:
    """Do some work on a batch with columns for arrays, those of the batch and what was kept.

    `column(name, array, extent)` makes a symbolic column, whose extent is what there is one number
    of: each row, each class, or one for all. None and numbers stay what they are.
    """
    places = len(Arrays._fields) - 1
    columns = [
        x if type(x) in NUMBERS else column(name, x, _EXTENTS.get(name, ROWS))
        for name, x in zip((*Arrays._fields[1:], *KEPT), arrays, strict=False)
    ]
    numbers = arrays_of(batch)[1:]  # in the place of arrays
    own = [b if a is None else a for a, b in zip(columns[:places], numbers, strict=True)]
    dtype = dtype_name(batch.compute_dtype)
    library = (COLUMNS, dtype, dtype_name(batch.result_dtype), False)
    noted = with_arrays(batch, Arrays(logits, *own), library, kernels)
    kept = Kept(columns[places:-1], columns[-1]) if len(columns) > places else None
    found = work(noted._replace(axis=logits.ndim - 1, memory="device", out=into), kept)
    return [Finished(x, x.dtype, flat=False) if isinstance(x, Column) else x for x in found]
