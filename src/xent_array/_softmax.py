"""softmax, log_softmax and logsumexp: the same reading of a row, without a target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from xent_array._arguments import Library
from xent_array._blocks import Assembly, Plan, budget_of, for_each_block, plan
from xent_array._namespace import Array
from xent_array._options import check_integer
from xent_array._row_blocks import RowIndex
from xent_array._rows import class_axis, classes_back, classes_last
from xent_array._stats import FourNumbers, Spread, merge_tree, spread
from xent_array._stats import logsumexp as row_logsumexp

ArrayT = TypeVar("ArrayT")


def softmax(x: ArrayT, axis: int = -1) -> ArrayT:
    r"""Exponentials along an axis, divided by their sum.

    .. math:: \operatorname{softmax}(x)_j = \exp(x_j) \Big/ \sum_k \exp(x_k)

    Parameters
    ----------
    x
        Array of a real floating dtype, of any array library. Half dtypes are computed in float32.
    axis
        The axis of the sum. Negative numbers count from the end.

    Returns
    -------
    array
        Of the shape, dtype and device of `x`. NaN along an axis that holds NaN or +inf, or
        nothing but -inf.

    Raises
    ------
    TypeError
        If `x` is not an array of a real floating dtype.
    ValueError
        If `axis` is out of range, or of length zero.

    Examples
    --------
    >>> import numpy as np
    >>> import xent_array
    >>> xent_array.softmax(np.asarray([0.0, np.log(3.0)])).round(4)
    array([0.25, 0.75])
    """
    return _along_classes(x, axis, lambda _, row: row.exps / (1.0 + row.rest))


def log_softmax(x: ArrayT, axis: int = -1) -> ArrayT:
    r"""Logarithm of the softmax along an axis, without forming the softmax.

    .. math:: \operatorname{log\_softmax}(x)_j = x_j - \log \sum_k \exp(x_k)

    At the greatest entry the result keeps full relative precision however near to 0 it is.

    Parameters
    ----------
    x
        Array of a real floating dtype, of any array library. Half dtypes are computed in float32.
    axis
        The axis of the sum. Negative numbers count from the end.

    Returns
    -------
    array
        Of the shape, dtype and device of `x`. NaN along an axis that holds NaN or +inf, or
        nothing but -inf.

    Raises
    ------
    TypeError
        If `x` is not an array of a real floating dtype.
    ValueError
        If `axis` is out of range, or of length zero.

    Examples
    --------
    >>> import numpy as np
    >>> import xent_array
    >>> xent_array.log_softmax(np.asarray([0.0, 100.0]))
    array([-1.00000000e+02, -3.72007598e-44])
    """
    return _along_classes(x, axis, lambda xp, row: row.shifted - xp.log1p(row.rest))


def logsumexp(x: ArrayT, axis: int = -1) -> ArrayT:
    r"""Logarithm of the sum of exponentials along an axis.

    Parameters
    ----------
    x
        Array of a real floating dtype, of any array library. Half dtypes are computed in float32.
    axis
        The axis of the sum. Negative numbers count from the end.

    Returns
    -------
    array
        Of the dtype and device of `x` and of its shape less `axis`. -inf where everything is
        -inf, +inf where something is.

    Raises
    ------
    TypeError
        If `x` is not an array of a real floating dtype.
    ValueError
        If `axis` is out of range, or of length zero.

    Examples
    --------
    >>> import numpy as np
    >>> import xent_array
    >>> xent_array.logsumexp(np.asarray([[1000.0, 1000.0], [0.0, -np.inf]])).round(4)
    array([1000.6931,    0.    ])
    """
    library, z, axis = _open(x, axis)
    backend = library.backend
    if backend.chunked:
        chunks: ArrayT = backend.map_chunks(partial(logsumexp, axis=axis), x, axis, keep=False)
        return chunks
    dtype = backend.compute_dtype(z.dtype)
    differentiable = backend.differentiates(z)
    _, blocks, slabs = _plan(library, z, differentiable=differentiable)

    def of_block(block: RowIndex) -> Array:
        parts = []
        for classes in slabs:
            slab = backend.cast(z[block][..., classes], dtype)
            seen = spread(backend, slab, 1.0, slab=len(slabs) > 1, differentiable=differentiable)
            parts.append(FourNumbers(seen.top, seen.rest, 0.0, 0.0))
        row = merge_tree(backend.xp, parts)
        return row_logsumexp(backend.xp, row.top, row.rest)

    with backend.quiet():
        if len(blocks) == 1:
            lse = of_block(blocks[0])
        else:
            rows = Assembly(backend, (*z.shape[:-1], 1))
            for_each_block(backend, z, lambda _, block: rows.put(block, [of_block(block)]), blocks)
            (lse,) = rows.columns
    result: ArrayT = backend.finalize(lse[..., 0], z.dtype)
    return result


def _along_classes(x: ArrayT, axis: int, formula: Callable[[Any, Spread], Array]) -> ArrayT:
    """Apply a formula for every class of a row, block by block; whole rows make a block."""
    library, z, axis = _open(x, axis)
    backend = library.backend
    if backend.chunked:
        of_chunk = partial(_along_classes, axis=axis, formula=formula)
        chunks: ArrayT = backend.map_chunks(of_chunk, x, axis, keep=True)
        return chunks
    dtype = backend.compute_dtype(z.dtype)
    differentiable = backend.differentiates(z)

    def of_block(block: RowIndex) -> Array:
        rows = backend.cast(z[block], dtype)
        seen = spread(backend, rows, 1.0, slab=False, differentiable=differentiable)
        return backend.finalize(formula(backend.xp, seen), z.dtype)

    with backend.quiet():
        blocks = _plan(library, z, differentiable=differentiable).blocks
        if len(blocks) == 1:
            whole_array: ArrayT = classes_back(backend, of_block(blocks[0]), axis)
            return whole_array
        out: ArrayT = backend.room(library.leader.shape, library.leader)
        out_rows = classes_last(backend, out, axis)

        def write(_: int, block: RowIndex) -> None:
            out_rows[block] = of_block(block)

        for_each_block(backend, z, write, blocks)
    return out


def _open(x: Array, axis: int) -> tuple[Library, Array, int]:
    check_integer("axis", axis)
    library = Library("x", x)
    axis = class_axis(library, axis)
    return library, classes_last(library.backend, library.leader, axis), axis


def _plan(library: Library, z: Array, *, differentiable: bool) -> Plan:
    backend, shape = library.backend, tuple(z.shape)
    itemsize = backend.itemsize(backend.compute_dtype(z.dtype))
    budget = budget_of(backend, library.memory, differentiable=differentiable)
    return plan(shape[:-1], shape[-1], itemsize, budget)
