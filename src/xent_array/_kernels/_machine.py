"""Numbers of rows, worked on by compiled code: a machine for the steps of a program.

Array code on a few numbers of each row costs a call of Python's for each operation. Written down
once (see `steps`), it is done by one loop over the steps, in which each is a loop over some rows.

A step is an operation, the register it writes, and up to three that it reads. A register holds a
number of each of these rows; there are real ones, and whole ones, which are truths as well.
"""

from __future__ import annotations

import enum

import numpy as np

from xent_array._kernels._arithmetic import add_exactly, exp, log1p
from xent_array._kernels._lanes import LANES, compiled, line


class Operation(enum.IntEnum):
    """What a step does."""

    # Memory to registers: of what is given of each row and class, vectors, and sums.
    INDEX = enum.auto()
    MASK = enum.auto()
    GIVEN = enum.auto()
    WEIGHT = enum.auto()
    TAKEN = enum.auto()  # of a vector, at an index
    SUM = enum.auto()
    COUNT = enum.auto()

    # Registers to memory.
    RESULT = enum.auto()
    WHOLE_RESULT = enum.auto()
    FINAL = enum.auto()  # one for all rows
    VECTOR = enum.auto()
    ADDED = enum.auto()  # to a sum
    COUNTED = enum.auto()

    # To real numbers.
    COPY = enum.auto()
    ADD = enum.auto()
    SUBTRACT = enum.auto()
    MULTIPLY = enum.auto()
    DIVIDE = enum.auto()
    EXP = enum.auto()
    LOG1P = enum.auto()
    WHERE = enum.auto()
    REAL = enum.auto()

    # To truths and whole numbers.
    FINITE = enum.auto()
    LESS = enum.auto()
    EQUAL = enum.auto()
    WHOLE_COPY = enum.auto()
    WHOLE_LESS = enum.auto()
    WHOLE_EQUAL = enum.auto()
    WHOLE_SUBTRACT = enum.auto()
    WHOLE_WHERE = enum.auto()
    NOT = enum.auto()
    AND = enum.auto()
    OR = enum.auto()


#: A step of a program.
STEP = np.dtype([(name, np.int64) for name in ("operation", "to", "a", "b", "c")])

#: What segments of a program go through: the rows, the classes, or nothing but once.
ROWS, CLASSES, ONE = range(3)

#: A segment of a program:
#: `extent`, what it goes through;
#: `start`, `look`, `write`, `stop`, where its steps begin: those before it reads rows of logits,
#: before it writes their gradients, and after that; and where they end;
#: `looks`, `writes`, whether it reads rows, and whether it writes their gradients;
#: `fall`, the vector of class weights in the sum of weight·scale·(z - top), or -1: no such sum;
#: `even`, the vector of class weights that shares of smoothing are times, or -1: no smoothing;
#: `times` and `plus`, the vectors that make of probabilities what is wanted of each class, or -1;
#: `argmax`, whether the class of the greatest logit is asked for;
#: `keeps`, whether there are rows that do not count;
#: `logarithm`, whether it is the softmax's that is written;
#: `adds`, the sums that it adds to, a bit for each.
VECTORS = ("fall", "even", "times", "plus")
FIELDS = (
    *("extent", "start", "look", "write", "stop", "looks", "writes"),
    *(*VECTORS, "argmax", "keeps", "logarithm", "adds"),
)
SEGMENT = np.dtype([(name, np.int64) for name in FIELDS])

#: The registers of what kernels find in rows, and of what they make gradients of; the first of
#: those that are free.
TOP, REST, PICKED, FALL, MASS, PULL, EVEN, CHOSEN, TOTAL, FACTOR, FREE = range(11)
INDEX, ARGMAX, LABEL, KEPT, WHOLE_FREE = range(5)


@compiled
def carry_out(code, start, stop, n, places, registers, added, memory):
    """Do some steps with `n` rows, found at one place in what is given, at another in results."""
    reals, wholes = registers
    at, to_at = places
    index, mask, given, weights, vectors, sums, results, whole_results, finals = memory
    for step in code[start:stop]:
        operation, to, a, b, c = step.operation, step.to, step.a, step.b, step.c
        # What an operation does not have is never looked at.
        real, whole = line(reals, to, 0, n), line(wholes, to, 0, n)
        x, y, z = line(reals, a, 0, n), line(reals, b, 0, n), line(reals, c, 0, n)
        u, v, w = line(wholes, a, 0, n), line(wholes, b, 0, n), line(wholes, c, 0, n)
        if operation < Operation.RESULT:
            read(operation, real, whole, a, v, at, index, mask, given, weights, vectors, sums)
        elif operation < Operation.COPY:
            write(operation, to, x, u, to_at, results, whole_results, finals, vectors, added)
        elif operation < Operation.FINITE:
            calculate(operation, real, x, y, z, u)
        else:
            decide(operation, whole, x, y, u, v, w)


@compiled
def read(operation, real, whole, a, v, at, index, mask, given, weights, vectors, sums):
    if operation == Operation.INDEX:
        load(whole, index, at)
    elif operation == Operation.MASK:
        load(whole, mask, at)
    elif operation == Operation.GIVEN:
        load(real, given[a], at)
    elif operation == Operation.WEIGHT:
        load(real, weights[a], at)
    elif operation == Operation.TAKEN:
        vector = vectors[a]
        for k in range(len(real)):
            real[k] = vector[v[k]]
    elif operation == Operation.SUM:
        real[:] = sum_of(sums, a)
    else:
        whole[:] = np.int64(sum_of(sums, a))


@compiled
def write(operation, to, x, u, at, results, whole_results, finals, vectors, added):
    if operation == Operation.RESULT:
        store(results, to, at, x)
    elif operation == Operation.WHOLE_RESULT:
        store(whole_results, to, at, u)
    elif operation == Operation.FINAL:
        finals[to] = x[0]
    elif operation == Operation.VECTOR:
        store(vectors, to, at, x)
    elif operation == Operation.ADDED:
        add_to(added, to, x)
    else:
        add_to(added, to, u)


@compiled
def calculate(operation, real, x, y, z, u):
    n = len(real)
    if operation == Operation.COPY:
        load(real, x, 0)
    elif operation == Operation.ADD:
        for k in range(n):
            real[k] = x[k] + y[k]
    elif operation == Operation.SUBTRACT:
        for k in range(n):
            real[k] = x[k] - y[k]
    elif operation == Operation.MULTIPLY:
        for k in range(n):
            real[k] = x[k] * y[k]
    elif operation == Operation.DIVIDE:
        for k in range(n):
            real[k] = x[k] / y[k]
    elif operation == Operation.EXP:
        for k in range(n):
            real[k] = exp(x[k])
    elif operation == Operation.LOG1P:
        for k in range(n):
            real[k] = log1p(x[k])
    elif operation == Operation.WHERE:
        for k in range(n):
            real[k] = y[k] if u[k] else z[k]
    else:
        load(real, u, 0)


@compiled
def decide(operation, whole, x, y, u, v, w):
    n = len(whole)
    if operation == Operation.FINITE:
        for k in range(n):
            whole[k] = x[k] - x[k] == 0
    elif operation == Operation.LESS:
        for k in range(n):
            whole[k] = x[k] < y[k]
    elif operation == Operation.EQUAL:
        for k in range(n):
            whole[k] = x[k] == y[k]
    elif operation == Operation.WHOLE_COPY:
        load(whole, u, 0)
    elif operation == Operation.WHOLE_LESS:
        for k in range(n):
            whole[k] = u[k] < v[k]
    elif operation == Operation.WHOLE_EQUAL:
        for k in range(n):
            whole[k] = u[k] == v[k]
    elif operation == Operation.WHOLE_SUBTRACT:
        for k in range(n):
            whole[k] = u[k] - v[k]
    elif operation == Operation.WHOLE_WHERE:
        for k in range(n):
            whole[k] = v[k] if u[k] else w[k]
    elif operation == Operation.NOT:
        for k in range(n):
            whole[k] = u[k] ^ 1
    elif operation == Operation.AND:
        for k in range(n):
            whole[k] = u[k] & v[k]
    else:
        for k in range(n):
            whole[k] = u[k] | v[k]


@compiled
def load(to, x, at):
    for k in range(len(to)):
        to[k] = x[at + k]


@compiled
def store(to, row, at, x):
    for k in range(len(x)):
        to[row, at + k] = x[k]


@compiled
def add_to(added, j, x):
    """Add numbers of rows to sums, one for each lane, that lose nothing."""
    total, lost = line(added, 2 * j, 0, LANES), line(added, 2 * j + 1, 0, LANES)
    for k in range(len(x)):
        total[k], lost[k] = add_exactly(total[k], lost[k], np.float64(x[k]))


@compiled
def keep_sums(sums, share, adds, lanes, added):
    """Add the sums of so many lanes to those that a share of the rows has so far."""
    for j in range(len(added) // 2):
        if not (adds >> j) & 1:
            continue
        total, lost = sums[share, 2 * j], sums[share, 2 * j + 1]
        for k in range(lanes):
            total, lost = add_exactly(total, lost, added[2 * j, k])
            lost += added[2 * j + 1, k]
        sums[share, 2 * j], sums[share, 2 * j + 1] = total, lost


@compiled
def sum_of(sums, j):
    """A sum over the rows of all shares, rounded; where it is infinite, nothing was lost."""
    total, lost = 0.0, 0.0
    for share in range(len(sums)):
        total, lost = add_exactly(total, lost, sums[share, 2 * j])
        lost += sums[share, 2 * j + 1]
    return total + lost if lost == lost else total


@compiled
def registers(numbers, whole_numbers, count):
    """So many registers, of which the first free ones hold constants."""
    reals = np.empty((count, LANES), numbers.dtype)
    wholes = np.empty((count, LANES), np.int64)
    for j in range(len(numbers)):
        reals[FREE + j] = numbers[j]
    for j in range(len(whole_numbers)):
        wholes[WHOLE_FREE + j] = whole_numbers[j]
    return reals, wholes
