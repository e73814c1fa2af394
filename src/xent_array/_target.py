"""The target argument: its kind, told by its dtype, and every check of it."""

from __future__ import annotations

import math
from typing import Any

from xent_array._arguments import Library
from xent_array._backends import Memory, Standard
from xent_array._blocks import LOOK
from xent_array._namespace import Array, dtype_name
from xent_array._options import Options
from xent_array._row_blocks import row_blocks
from xent_array._rows import fits, row_shape
from xent_array._wanted import IndexTarget, ProbabilityTarget, Smoothing, Target


def class_weight(library: Library, weight: Array | None, classes: int, dtype: Any) -> Array | None:
    """Check the class weights and cast them to the compute dtype."""
    if weight is None:
        return None
    weight = library.floating("weight", library.admit("weight", weight))
    if tuple(weight.shape) != (classes,):
        raise ValueError(
            f"weight must have one entry per class, shape ({classes},); "
            f"got shape {tuple(weight.shape)}"
        )
    with library.backend.quiet():  # of what the compute dtype holds as infinite, or as 0
        return library.backend.cast(weight, dtype)


def check_target(
    library: Library,
    target: Array,
    options: Options,
    *,
    shape: tuple[int, ...],
    axis: int,
    q: Smoothing,
    where: Array | None,
) -> Target:
    """Tell class indices from probabilities and check them; `shape` and `axis` are the logits'."""
    target = library.admit("target", target)
    if library.backend.is_integer(target.dtype):
        _check_index_shape(target, shape, axis)
        return checked_indices(library.memory, target, q, where, options)
    if not library.backend.is_floating(target.dtype):
        raise TypeError(
            "target must have an integer dtype (class indices) or a real floating one "
            f"(probabilities), got {dtype_name(target.dtype)}"
        )
    _check_probabilities(target, shape, options.ignore_index)
    return ProbabilityTarget(q, target)


def _check_probabilities(target: Array, shape: tuple[int, ...], ignore_index: int) -> None:
    if not fits(tuple(target.shape), shape):
        raise ValueError(
            f"target of dtype {dtype_name(target.dtype)} holds probabilities, which must have the "
            f"shape of logits {shape}; got shape {tuple(target.shape)} (class indices must have "
            "an integer dtype)"
        )
    if ignore_index >= 0:
        raise ValueError(
            f"ignore_index is {ignore_index}, but it goes with class indices: "
            "leave rows of probabilities out by where="
        )


def _check_index_shape(target: Array, shape: tuple[int, ...], axis: int) -> None:
    given, rows = tuple(target.shape), row_shape(shape, axis)
    if fits(given, rows):
        return
    advice = ""
    others = [k for k in range(len(shape)) if given == row_shape(shape, k)]
    if given == shape:
        advice = " (probabilities, one-hots among them, must have a floating dtype: cast them)"
    elif others:
        advice = f" (if axis {others[-1]} holds the classes, pass axis={others[-1]})"
    raise ValueError(
        f"target of dtype {dtype_name(target.dtype)} holds class indices, which must have the "
        f"shape of logits {shape} without class axis {axis}, {rows}; got shape {given}{advice}"
    )


def looks_at_indices(memory: Memory, options: Options) -> bool:
    """Whether class indices are looked at before any work."""
    return options.check is True or (options.check == "auto" and memory == "host")


def checked_indices(
    memory: Memory, target: Array, q: Smoothing, where: Array | None, options: Options
) -> IndexTarget:
    """Class indices, of a dtype and a shape that are right, and how far they can be trusted.

    Memory on the host is looked at: where all is well and nothing is ignored, the loss need not ask
    row by row. On devices, and where values do not exist yet, a row with a bad index becomes NaN.
    """
    backend, ignore = q.backend, options.ignore_index
    if options.check is True and memory == "opaque":
        raise ValueError("check=True must see the values of target, and they cannot be seen")
    look = looks_at_indices(memory, options)
    rows = math.prod(target.shape)
    inside = rows == 0 or (look and _within(backend, target, rows, q.classes))
    if inside and not 0 <= ignore < q.classes:
        return IndexTarget(q, target, ignore_index=None, trusted=True)
    # A value that the target's dtype cannot hold ignores nothing, whatever a cast would make of it.
    lowest, highest = backend.integer_range(target.dtype)
    held = int(ignore) if lowest <= ignore <= highest else None
    if held is not None and held > backend.integer_range(backend.index_dtype(target))[1]:
        held -= highest + 1  # what the cast makes of it
    if look and not inside:
        _raise_bad(IndexTarget(q, target, held, trusted=False), where, options)
    return IndexTarget(q, target, held, trusted=look)


def _within(backend: Standard, target: Array, rows: int, classes: int) -> bool:
    """Whether every index is a class."""
    if rows <= LOOK:
        return backend.within(target, classes)
    blocks = row_blocks(tuple(target.shape), LOOK)
    return all(backend.within(target[block], classes) for block in blocks)


def _raise_bad(target: IndexTarget, where: Array | None, options: Options) -> None:
    """Raise IndexError for the first row that counts and whose index is not a class, if any."""
    backend, before = target.q.backend, 0
    shape, classes = tuple(target.array.shape), target.q.classes
    for block in row_blocks(shape, LOOK):
        rows = target.rows(block, None if where is None else where[block])
        bad = backend.xp.reshape(rows.bad, (-1,))
        if backend.any(bad):
            first = int(backend.xp.argmax(backend.cast(bad, rows.index.dtype)))
            value = _value(backend, target.array[block], first)
            place = ", ".join(map(str, _unravel(before + first, shape)))
            raise IndexError(
                f"target{f'[{place}]' if place else ''} is {value}: outside the {classes} classes "
                f"[0, {classes}) and not ignore_index ({options.ignore_index})"
            )
        before += bad.shape[0]


def _value(backend: Standard, index: Array, position: int) -> int:
    """An entry as its dtype has it: above 2**63, the index dtype shows an unsigned as negative."""
    lowest, highest = backend.integer_range(index.dtype)
    flat = backend.xp.reshape(backend.cast(index, backend.index_dtype(index)), (-1,))
    value = int(flat[position])
    return value + highest + 1 if value < lowest else value


def _unravel(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    place: tuple[int, ...] = ()
    for length in reversed(shape):
        position, here = divmod(position, length)
        place = (here, *place)
    return place
