"""How softmax and log_softmax change with the logits, from their values.

With p the softmax of a row, a direction d of its logits z, and an upstream gradient g,

    p_j                    changes by  p_j·(d_j - sum p·d)    and passes on  p_j·(g_j - sum p·g)
    z_j - logsumexp(z)     changes by  d_j - sum p·d          and passes on  g_j - p_j·sum g.

What is passed on sums to 0, and a direction that is the same for all classes changes nothing. Where
one class leads, with p near to 1, nearly all digits of its own difference would be lost: so what it
passes on is made from what the others do, and directions are taken relative to its own.
"""

from __future__ import annotations

from collections.abc import Callable

from xent_array._backends import Standard
from xent_array._blocks import budget_of, for_each_block, plan
from xent_array._namespace import Array
from xent_array._row_blocks import RowIndex
from xent_array._rows import classes_back, classes_last

#: From the rows of arrays that are alike to those of another.
Formula = Callable[[Standard, Array, Array], Array]

#: More than the others have together.
_MOST = 0.5


def changed(backend: Standard, p: Array, d: Array) -> Array:
    """How the logarithm of the softmax changes along a direction; times p, the softmax itself."""
    xp, leading = backend.xp, p > _MOST
    own = backend.row_sum(xp.where(leading, d, 0.0))
    d = xp.where(leading, 0.0, d - own)
    return d - backend.row_sum(p * d)


def passed_on(backend: Standard, p: Array, g: Array) -> Array:
    """What the softmax passes on of an upstream gradient."""
    return _summing_to_0(backend, p, p * (g - backend.row_sum(p * g)))


def log_passed_on(backend: Standard, log_p: Array, g: Array) -> Array:
    """What the logarithm of the softmax passes on of an upstream gradient."""
    p = backend.xp.exp(log_p)
    return _summing_to_0(backend, p, g - p * backend.row_sum(g))


def _summing_to_0(backend: Standard, p: Array, passed: Array) -> Array:
    """`passed`, an array of our own, but that of a class that leads is what the others leave."""
    xp = backend.xp
    if not backend.branches(p):
        leading = p > _MOST
        others = xp.where(leading, 0.0, passed)
        return xp.where(leading, 0.0 - backend.row_sum(others), others)
    rows = (backend.row_max(p) > _MOST)[..., 0]
    if backend.any(rows):
        few, index = passed[rows, :], backend.row_argmax(p[rows, :])
        few = backend.put(few, index, xp.zeros_like(few[..., :1]))
        passed[rows, :] = backend.put(few, index, 0.0 - backend.row_sum(few))
    return passed


def by_blocks(
    backend: Standard, formula: Formula, arrays: tuple[Array, Array], axis: int, out: Array
) -> None:
    """Write a formula of the rows of two arrays, block by block, computed in the compute dtype."""
    a, b, into = (classes_last(backend, x, axis) for x in (*arrays, out))
    dtype = backend.compute_dtype(a.dtype)

    def work(_: int, block: RowIndex) -> None:
        rows = (backend.cast(x[block], dtype) for x in (a, b))
        into[block] = backend.cast(formula(backend, *rows), out.dtype)

    budget = budget_of(backend, backend.memory(a), differentiable=False)
    cut = plan(tuple(a.shape[:-1]), a.shape[-1], backend.itemsize(dtype), budget)
    with backend.detached():
        for_each_block(backend, a, work, cut.blocks)


def at_once(backend: Standard, formula: Formula, arrays: tuple[Array, Array], axis: int) -> Array:
    """The same as operations of the library's own, which it may differentiate."""
    a, b = (classes_last(backend, x, axis) for x in arrays)
    dtype = backend.compute_dtype(a.dtype)
    found = formula(backend, backend.cast(a, dtype), backend.cast(b, dtype))
    return classes_back(backend, backend.cast(found, a.dtype), axis)
