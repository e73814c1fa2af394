"""Array code on numbers of rows, written down as it runs, as a program for the host's machine.

The loss is evaluated once on the columns of a ledger. What comes of it is a program: segments that
go through the classes, or the rows, or are done once, and the steps of each (see `_machine`). Rows
are gone through once, and before that only for sums that a gradient must know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from xent_array._kernels import RowStats, Soft, SoftStats
from xent_array._kernels import _machine as machine
from xent_array._kernels._machine import Operation
from xent_array._kernels.columns import CLASSES, ONE, REAL, ROWS, WHOLE, Column, Ledger
from xent_array._namespace import Array

#: What loads the numbers of rows that are not real.
_LOADS = {"index": Operation.INDEX, "where": Operation.MASK}

#: What operations are, by whether their first operand is real.
_REAL = {
    "add": Operation.ADD,
    "subtract": Operation.SUBTRACT,
    "multiply": Operation.MULTIPLY,
    "divide": Operation.DIVIDE,
    "exp": Operation.EXP,
    "log1p": Operation.LOG1P,
    "finite": Operation.FINITE,
    "less": Operation.LESS,
    "equal": Operation.EQUAL,
}
_WHOLE = {
    "real": Operation.REAL,
    "less": Operation.WHOLE_LESS,
    "equal": Operation.WHOLE_EQUAL,
    "not": Operation.NOT,
    "and": Operation.AND,
    "or": Operation.OR,
    "subtract whole": Operation.WHOLE_SUBTRACT,
}

#: The registers of what is found in rows.
_SEEN = {
    "top": machine.TOP,
    "rest": machine.REST,
    "picked": machine.PICKED,
    "fall": machine.FALL,
    "mass": machine.MASS,
    "argmax": machine.ARGMAX,
    "label": machine.LABEL,
}


#: The kinds of results: real or whole numbers of rows, and a real one for all.
REALS, WHOLES, FINALS = range(3)

#: Of which kind a result is, and which of those.
Place = tuple[int, int]


class Program(NamedTuple):
    """What the machine does with rows: see `_rows.run`."""

    scale: Any
    segments: Array
    code: Array
    numbers: Array  # constants, and what is given for all rows
    whole_numbers: Array
    registers: int
    vectors: int
    sums: int
    masked: bool  # by the `where` that it is given
    soft: bool  # the target is rows of probabilities
    reals: list[str]  # which real numbers of rows it is given
    weights: list[str]  # and which of classes
    ones: list[tuple[str, int]]  # what is given for all rows, and where among the numbers
    results: list[Place]
    counts: tuple[int, int, int]  # how many there are of each kind
    leaves: bool  # what was found of a row's logits may be left where its gradient goes


class Look(NamedTuple):
    """What is asked of rows."""

    target: Column
    weight: Column | None
    argmax: bool


class SoftLook(NamedTuple):
    """What is asked of rows whose target is rows of probabilities; see `Soft`."""

    times: Column | None
    plus: Column | None
    argmax: bool


class Slope(NamedTuple):
    """What gradients of rows are made of."""

    top: Column
    pull: Column
    even: Column | None
    weight: Column | None
    target: Column
    chosen: Column
    kept: Column | None
    logarithm: bool


class SoftSlope(NamedTuple):
    """The same of rows whose target is rows of probabilities."""

    times: Column | None
    plus: Column | None
    top: Column
    rest: Column
    total: Column
    factor: Column
    kept: Column | None
    logarithm: bool = False


class Steps(Ledger):
    """What is asked of columns, and kernels that note what is asked of rows."""

    compiler = "numba"

    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self._look: Look | SoftLook | None = None
        self._slope: Slope | SoftSlope | None = None
        self._scale = 1.0

    def given(self, name: str, kind: str, extent: str) -> Column:
        """A column that a program is given by name."""
        return self.noted("given", (name,), kind, extent)

    def serial(self) -> Steps:
        """The same."""
        return self

    def row_stats(
        self,
        _z: Any,
        index: Column | int,
        weight: Column | float | None,
        scale: float,
        _dtype: Any,
        *,
        argmax: bool,
    ) -> RowStats:
        """Note what is asked; see `_kernels.Kernels`."""
        assert self._look is None, "rows are looked at once"
        weight = None if weight is None else self.column(weight, REAL)
        self._look, self._scale = Look(self.column(index, WHOLE), weight, argmax), scale
        top, rest, picked = (self._seen(name, REAL) for name in ("top", "rest", "picked"))
        fall = None if weight is None else self._seen("fall", REAL)
        return RowStats(top, rest, picked, fall, self._seen("argmax", WHOLE) if argmax else None)

    def suits(self, _axis: int, _z: Any, _into: Any, _p: Any) -> bool:
        """Nothing is read while it is noted."""
        return True

    def soft_stats(
        self, _z: Any, soft: Soft, scale: float, _dtype: Any, *, argmax: bool
    ) -> SoftStats:
        """Note what is asked; see `_kernels.Kernels`."""
        assert self._look is None, "rows are looked at once"
        self._look, self._scale = SoftLook(*self._vectors(soft), argmax), scale
        top, rest, mass, fall = (self._seen(name, REAL) for name in ("top", "rest", "mass", "fall"))
        classes = [self._seen(name, WHOLE) if argmax else None for name in ("argmax", "label")]
        return SoftStats(top, rest, mass, fall, *classes)

    def _vectors(self, soft: Soft) -> tuple[Column | None, Column | None]:
        if soft.times is None:
            return None, None
        return self.column(soft.times, REAL), self.column(soft.plus, REAL)

    def _seen(self, name: str, kind: str) -> Column:
        return self.noted("seen", (name,), kind, ROWS)

    def row_grad(
        self,
        _z: Any,
        _into: Any,
        scale: float,
        *,
        top: Column,
        pull: Column,
        even: Column | float | None,
        weight: Column | None,
        index: Column | int,
        chosen: Column,
        kept: Column | None,
        logarithm: bool = False,
    ) -> None:
        """Note what is asked; see `_kernels.Kernels`."""
        share = None
        if even is not None:
            share = self.column(even, REAL)
            weight = self.constant(1.0, REAL) if weight is None else weight
        at = self.column(index, WHOLE)
        slope = Slope(top, pull, share, weight, at, chosen, kept, logarithm)
        self._slope, self._scale = slope, scale

    def soft_grad(
        self,
        _z: Any,
        _into: Any,
        soft: Soft,
        scale: float,
        *,
        top: Column,
        rest: Column,
        total: Column,
        factor: Column | float,
        kept: Column | None,
    ) -> None:
        """Note what is asked; see `_kernels.Kernels`."""
        factor = self.column(factor, REAL)
        self._slope = SoftSlope(*self._vectors(soft), top, rest, total, factor, kept)
        self._scale = scale

    def program(self, results: Iterable[Column]) -> Program:
        """Write down what it takes to have some results, and the gradients asked for."""
        with np.errstate(all="ignore"):  # of numbers that the dtype holds as infinite, or as 0
            return _Writer(self, self._look, self._slope).program(list(results), self._scale)


class _Writer:
    """Writes the segments of a program."""

    def __init__(
        self, ledger: Steps, look: Look | SoftLook | None, slope: Slope | SoftSlope | None
    ) -> None:
        self.ledger, self.look, self.slope = ledger, look, slope
        self.code, self.segments = list[tuple[int, ...]](), list[dict[str, int]]()
        self.numbers, self.whole_numbers = list[Any](), list[Any]()
        self.masked, self.ones = False, list[tuple[str, int]]()
        self.reals, self.weights = list[str](), list[str]()
        self.constants = dict[int, int]()  # registers by a column's id
        self.sums, self.vectors = dict[int, Column](), dict[int, Column]()
        # Registers of a segment: the first is -1, the next -2, until all constants are known.
        self.names, self.temporary = dict[int, int](), 0

    def program(self, results: list[Column], scale: float) -> Program:
        counts, places = [0, 0, 0], list[Place]()
        for x in results:
            kind = FINALS if x.extent == ONE else REALS if x.kind == REAL else WHOLES
            places.append((kind, counts[kind]))
            counts[kind] += 1
        stores = [*zip(results, places, strict=True)]
        self._rows(results, [(x, place) for x, place in stores if place[0] != FINALS])
        if counts[FINALS]:
            self._segment(ONE, [], [(x, place) for x, place in stores if place[0] == FINALS])
        self._classes()
        dtype = np.dtype(self.ledger.dtype)
        free = max(machine.FREE + len(self.numbers), machine.WHOLE_FREE + len(self.whole_numbers))
        code = [tuple(x if x >= 0 else free - 1 - x for x in step) for step in self.code]
        segments = [tuple(x[name] for name in machine.FIELDS) for x in self.segments]
        temporary = max((-x for step in self.code for x in step), default=0)
        return Program(
            dtype.type(scale),
            np.array(segments, machine.SEGMENT),
            np.array(code, machine.STEP),
            np.array(self.numbers, dtype),
            np.array(self.whole_numbers, np.int64),
            free + max(temporary, 0),
            len(self.vectors),
            len(self.sums),
            self.masked,
            isinstance(self.look, SoftLook) or isinstance(self.slope, SoftSlope),
            self.reals,
            self.weights,
            self.ones,
            places,
            (counts[0], counts[1], counts[2]),
            self.look is not None and self.slope is not None and not self.slope.logarithm,
        )

    def _rows(self, results: list[Column], stores: list[tuple[Column, Place]]) -> None:
        """Go through the rows: first for the sums that what is done with a row must know."""
        done = [*(x for x, _ in stores), *_columns(self.look), *_columns(self.slope)]
        early = _totals_of(done, ROWS)
        late = {key: x for key, x in _totals_of(results, ROWS).items() if key not in early}
        if early:  # none of them knows what is found in rows: those are looked at once
            self._segment(ROWS, [*early.values()], [])
        if done or late:
            self._segment(ROWS, [*late.values()], stores, looks=True)

    def _classes(self) -> None:
        """Go through the classes, before all else, for what others turned out to need of them."""
        totals = [x for x in self.sums.values() if x.args[0].extent != ROWS]
        if self.vectors or totals:
            self._segment(CLASSES, totals, [])
            self.segments.insert(0, self.segments.pop())

    def _segment(
        self,
        extent: str,
        totals: list[Column],
        stores: list[tuple[Column, Place]],
        *,
        looks: bool = False,
    ) -> None:
        """Write a segment; in one that `looks`, what is asked of rows is done."""
        self.names, self.temporary = {}, 0
        segment = dict.fromkeys(machine.FIELDS, 0) | dict.fromkeys(machine.VECTORS, -1)
        segment |= {"extent": _EXTENTS[extent], "start": len(self.code)}
        if looks and self.look is not None:
            segment |= self._looking(self.look)
        segment["look"] = len(self.code)
        if looks and self.slope is not None:
            segment |= self._sloping(self.slope)
        segment["write"] = len(self.code)
        for total in totals:
            operation = Operation.ADDED if total.args[0].kind == REAL else Operation.COUNTED
            place = self._sum(total)
            segment["adds"] |= 1 << place
            self._step(operation, place, self._value(total.args[0]))
        for column, (kind, place) in stores:
            self._step(_STORES[kind], place, self._value(column))
        if extent == CLASSES:
            for place, column in enumerate([*self.vectors.values()]):
                self._step(Operation.VECTOR, place, self._value(column))
        segment["stop"] = len(self.code)
        self.segments.append(segment)

    def _looking(self, look: Look | SoftLook) -> dict[str, int]:
        fields = {"looks": 1, "argmax": int(look.argmax)}
        if isinstance(look, SoftLook):
            return fields | self._soft_vectors(look)
        self._copy(machine.INDEX, look.target)
        return fields | {"fall": -1 if look.weight is None else self._vector(look.weight)}

    def _sloping(self, slope: Slope | SoftSlope) -> dict[str, int]:
        known = slope.top.operation == "seen"
        if isinstance(slope, SoftSlope):
            copies = [(machine.TOTAL, slope.total), (machine.FACTOR, slope.factor)]
            read = [(machine.TOP, slope.top), (machine.REST, slope.rest)]
            vectors = self._soft_vectors(slope)
        else:
            copies = [(machine.PULL, slope.pull), (machine.CHOSEN, slope.chosen)]
            read = [(machine.TOP, slope.top), (machine.INDEX, slope.target)]
            vectors = {}
            if slope.even is not None and slope.weight is not None:
                copies.append((machine.EVEN, slope.even))
                vectors = {"even": self._vector(slope.weight)}
        if not known:
            copies += read
        if slope.kept is not None:
            copies.append((machine.KEPT, slope.kept))
        for register, column in copies:
            self._copy(register, column)
        keeps, logarithm = int(slope.kept is not None), int(slope.logarithm)
        return {"writes": 1, "keeps": keeps, "logarithm": logarithm} | vectors

    def _soft_vectors(self, asked: SoftLook | SoftSlope) -> dict[str, int]:
        if asked.times is None or asked.plus is None:
            return {}
        return {"times": self._vector(asked.times), "plus": self._vector(asked.plus)}

    def _copy(self, register: int, column: Column) -> None:
        operation = Operation.COPY if column.kind == REAL else Operation.WHOLE_COPY
        self._step(operation, register, self._value(column))

    def _step(self, operation: int, to: int, a: int = 0, b: int = 0, c: int = 0) -> None:
        self.code.append((int(operation), to, a, b, c))

    def _value(self, column: Column) -> int:
        """The register of a column, once the steps that compute it are written."""
        operation, key = column.operation, id(column)
        if operation == "seen":
            return _SEEN[column.args[0]]
        if operation == "constant" or (operation == "given" and column.extent == ONE):
            return self._constant(column)
        if key not in self.names:
            operands = self._operands(column)
            self.temporary -= 1
            self.names[key] = self.temporary
            self._step(operands[0], self.temporary, *operands[1:])
        return self.names[key]

    def _operands(self, column: Column) -> tuple[int, ...]:
        """The operation that computes a column, and its operands."""
        operation, args, real = column.operation, column.args, column.kind == REAL
        if operation == "given":
            return self._given(column)
        if operation == "total":
            return (Operation.SUM if real else Operation.COUNT), self._sum(column)
        if operation == "take":
            return Operation.TAKEN, self._vector(args[0]), self._value(args[1])
        values = tuple(map(self._value, args))
        if operation == "where":
            return (Operation.WHERE if real else Operation.WHOLE_WHERE), *values
        return (_REAL if args[0].kind == REAL else _WHOLE)[operation], *values

    def _given(self, column: Column) -> tuple[int, ...]:
        (name,) = column.args
        self.masked |= name == "where"
        if name in _LOADS:
            return (_LOADS[name],)
        of_rows = column.extent == ROWS
        names = self.reals if of_rows else self.weights
        if name not in names:
            names.append(name)
        return Operation.GIVEN if of_rows else Operation.WEIGHT, names.index(name)

    def _constant(self, column: Column) -> int:
        """The register of what is the same for all rows and known before."""
        key, real = id(column), column.kind == REAL
        if key not in self.constants:
            numbers = self.numbers if real else self.whole_numbers
            first = machine.FREE if real else machine.WHOLE_FREE
            self.constants[key] = first + len(numbers)
            if column.operation == "given":
                self.ones.append((column.args[0], len(numbers)))
            numbers.append(0 if column.operation == "given" else column.args[1])
        return self.constants[key]

    def _sum(self, total: Column) -> int:
        self.sums.setdefault(id(total), total)
        return list(self.sums).index(id(total))

    def _vector(self, column: Column) -> int:
        self.vectors.setdefault(id(column), column)
        return list(self.vectors).index(id(column))


_EXTENTS = {ROWS: machine.ROWS, CLASSES: machine.CLASSES, ONE: machine.ONE}
_STORES = (Operation.RESULT, Operation.WHOLE_RESULT, Operation.FINAL)


def _columns(asked: tuple[Any, ...] | None) -> list[Column]:
    return [x for x in asked or () if isinstance(x, Column)]


def _totals_of(columns: Iterable[Column], extent: str) -> dict[int, Column]:
    """The sums over some extent that columns depend on, by their ids."""
    found, seen, waiting = dict[int, Column](), set[int](), [*columns]
    while waiting:
        column = waiting.pop()
        if column.operation == "total" and column.args[0].extent == extent:
            found[id(column)] = column
        elif id(column) not in seen:
            waiting += [x for x in column.args if isinstance(x, Column)]
        seen.add(id(column))
    return found
