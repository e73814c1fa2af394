"""Any shape and class axis, seen as rows: the class axis last, without a copy."""

from __future__ import annotations

from operator import index

from xent_array._arguments import Library
from xent_array._backends import Standard
from xent_array._namespace import Array, dtype_name


def class_axis(library: Library, axis: int | None) -> int:
    """The class axis of the leading argument, not negative; None is torch's: 1, or 0 if alone."""
    name, shape = library.name, tuple(library.leader.shape)
    ndim = len(shape)
    if ndim == 0:
        raise ValueError(f"{name} must have a class axis, got shape ()")
    axis = min(ndim - 1, 1) if axis is None else index(axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis is {axis}: out of range for {name} of shape {shape}")
    axis %= ndim
    if shape[axis] != shape[axis]:  # NaN, and a comparison that torch.compile can make
        raise ValueError(f"{name} must have a known number of classes along axis {axis}")
    if shape[axis] == 0:
        raise ValueError(f"{name} of shape {shape} must have at least one class along axis {axis}")
    return axis


def fits(given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether two shapes are equal, as far as they are known: dask has lengths that are NaN."""
    if given == expected or len(given) != len(expected):
        return given == expected
    return all(a == b or a != a or b != b for a, b in zip(given, expected, strict=True))  # noqa: PLR0124


def row_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of the rows of an array: its own less the class axis."""
    return shape[:axis] + shape[axis + 1 :]


def classes_last(backend: Standard, x: Array, axis: int) -> Array:
    """A view of `x` with the class axis moved to the end."""
    if axis == x.ndim - 1:
        return x
    return backend.xp.permute_dims(x, (*range(axis), *range(axis + 1, x.ndim), axis))


def classes_back(backend: Standard, x: Array, axis: int) -> Array:
    """Undo `classes_last` for an array of our own."""
    last = x.ndim - 1
    if axis == last:
        return x
    return backend.settled(backend.xp.permute_dims(x, (*range(axis), last, *range(axis, last))))


def row_factors(
    library: Library, name: str, x: Array | None, shape: tuple[int, ...]
) -> Array | None:
    """Check sample_weight or grad_output; view it with a class axis of length one."""
    if x is None:
        return None
    x = library.floating(name, library.admit(name, x))
    return _broadcast(library.backend, name, x, shape)


def row_mask(library: Library, where: Array | None, shape: tuple[int, ...]) -> Array | None:
    """Check where and view it with a class axis of length one."""
    if where is None:
        return None
    where = library.admit("where", where)
    if not library.backend.is_boolean(where.dtype):
        raise TypeError(f"where must have a boolean dtype, got {dtype_name(where.dtype)}")
    return _broadcast(library.backend, "where", where, shape)


def _broadcast(backend: Standard, name: str, x: Array, shape: tuple[int, ...]) -> Array:
    given = tuple(x.shape)
    aligned = len(given) == len(shape) and all(
        length == 1 or fits((length,), (rows,)) for length, rows in zip(given, shape, strict=True)
    )
    if given != () and not aligned:
        raise ValueError(
            f"{name} must be 0-d or broadcast, axis by axis, to the rows' shape {shape}; "
            f"got shape {given}"
        )
    return backend.broadcast_rows(x, shape)[..., None]
