"""The target argument: its kind, told by its dtype, and every check of it."""

from __future__ import annotations

import math
from typing import Any

from xent_array._arguments import Library
from xent_array._backends import dtype_name
from xent_array._namespace import Array
from xent_array._options import Options
from xent_array._rows import classes_last
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
    return library.backend.cast(weight, dtype)


def check_target(
    library: Library,
    target: Array,
    options: Options,
    *,
    axis: int,
    q: Smoothing,
    where: Array | None,
) -> Target:
    """Tell class indices from probabilities and check them; `axis` is the class axis of logits."""
    target = library.admit("target", target)
    shape = tuple(library.leader.shape)
    if library.backend.is_integer(target.dtype):
        _check_index_shape(target, shape, axis)
        return _indices(library, target, q, where, options)
    if not library.backend.is_floating(target.dtype):
        raise TypeError(
            "target must have an integer dtype (class indices) or a real floating one "
            f"(probabilities), got {dtype_name(target.dtype)}"
        )
    _check_probabilities(target, shape, options.ignore_index)
    return ProbabilityTarget(q, classes_last(library.backend, target, axis))


def _check_probabilities(target: Array, shape: tuple[int, ...], ignore_index: int) -> None:
    if tuple(target.shape) != shape:
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
    given, rows = tuple(target.shape), shape[:axis] + shape[axis + 1 :]
    if given == rows:
        return
    advice = ""
    if given == shape:
        advice = " (probabilities, one-hots among them, must have a floating dtype: cast them)"
    raise ValueError(
        f"target of dtype {dtype_name(target.dtype)} holds class indices, which must have the "
        f"shape of logits {shape} without class axis {axis}, {rows}; got shape {given}{advice}"
    )


def _indices(
    library: Library, target: Array, q: Smoothing, where: Array | None, options: Options
) -> IndexTarget:
    """Class indices, and how far they can be trusted.

    Memory on the host is looked at: where all is well and nothing is ignored, the loss need not ask
    row by row. On devices, and where values do not exist yet, a row
    with a bad index becomes NaN.
    """
    backend, ignore = library.backend, options.ignore_index
    if options.check is True and library.memory == "traced":
        raise ValueError("check=True must see the target's values, but they are traced or lazy")
    look = options.check is True or (options.check == "auto" and library.memory == "host")
    index = backend.cast(target, backend.index_dtype(target))[..., None]
    inside = math.prod(target.shape) == 0 or (look and backend.within(index, q.classes))
    if inside and not 0 <= ignore < q.classes:
        return IndexTarget(q, index, ignore_index=None, trusted=True)
    # A value that the target's dtype cannot hold ignores nothing, whatever a cast would make of it.
    lowest, highest = backend.integer_range(target.dtype)
    ignore = int(ignore) if lowest <= ignore <= highest else None
    checked = IndexTarget(q, index, ignore, trusted=look)
    if look and not inside:
        _raise_bad(library, target, checked, where, options)
    return checked


def _raise_bad(
    library: Library, target: Array, checked: IndexTarget, where: Array | None, options: Options
) -> None:
    """Raise IndexError for the first row that counts and whose index is not a class, if any."""
    xp, backend = library.backend.xp, library.backend
    bad = xp.reshape(checked.distrusted().rows((...,), where).bad, (-1,))
    if not xp.any(bad):
        return
    position = int(xp.argmax(xp.astype(bad, backend.index_dtype(target))))
    value = int(xp.reshape(target, (-1,))[position])
    place = ", ".join(map(str, _unravel(position, tuple(target.shape))))
    raise IndexError(
        f"target{f'[{place}]' if place else ''} is {value}: outside the {checked.q.classes} "
        f"classes [0, {checked.q.classes}) and not ignore_index ({options.ignore_index})"
    )


def _unravel(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    place: tuple[int, ...] = ()
    for length in reversed(shape):
        position, here = divmod(position, length)
        place = (here, *place)
    return place
