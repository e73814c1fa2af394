"""The front door of the gradient, for every array type, those without autograd included."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, Unpack, overload

from xent_array._engines import evaluate_with_grad
from xent_array._gather import gather
from xent_array._namespace import Array
from xent_array._options import (
    DEFAULTS,
    Check,
    Denominator,
    Keywords,
    OnEmpty,
    Options,
    Reduction,
    checked,
)
from xent_array._rowwise import Stats

ArrayT = TypeVar("ArrayT")


@overload
def cross_entropy_and_grad(
    logits: ArrayT,
    target: Array,
    *,
    weight: Array | None = None,
    return_stats: Literal[False] = False,
    grad_output: Array | None = None,
    out: ArrayT | None = None,
    **options: Unpack[Keywords],
) -> tuple[ArrayT, ArrayT]: ...
@overload
def cross_entropy_and_grad(
    logits: ArrayT,
    target: Array,
    *,
    weight: Array | None = None,
    return_stats: Literal[True],
    grad_output: Array | None = None,
    out: ArrayT | None = None,
    **options: Unpack[Keywords],
) -> tuple[ArrayT, ArrayT, Stats]: ...
def cross_entropy_and_grad(
    logits: ArrayT,
    target: Array,
    *,
    weight: Array | None = DEFAULTS.weight,
    ignore_index: int = DEFAULTS.ignore_index,
    reduction: Reduction = DEFAULTS.reduction,
    label_smoothing: float | Array = DEFAULTS.label_smoothing,
    axis: int | None = DEFAULTS.axis,
    sample_weight: Array | None = DEFAULTS.sample_weight,
    where: Array | None = DEFAULTS.where,
    denominator: Denominator = DEFAULTS.denominator,
    on_empty: OnEmpty = DEFAULTS.on_empty,
    logit_scale: float | Array = DEFAULTS.logit_scale,
    softcap: float | None = DEFAULTS.softcap,
    z_loss: float = DEFAULTS.z_loss,
    dtype: Any = DEFAULTS.dtype,
    check: Check = DEFAULTS.check,
    return_stats: bool = DEFAULTS.return_stats,
    grad_output: Array | None = None,
    out: ArrayT | None = None,
) -> Any:
    r"""Cross-entropy and its gradient with respect to the logits, in one pass over them.

    With :math:`p` the softmax of a row and :math:`q` what it wants of each class, as in
    `cross_entropy`, a row's loss has the derivatives

    .. math:: \frac{\partial \ell}{\partial z_j} = A\,p_j - q_j,
        \qquad A = \sum_k q_k + 2\,z_{\text{loss}} \log \sum_k e^{z_k},

    for logits as the loss sees them. The array library needs no autograd; where it has one, the
    results are constants to it.

    Parameters
    ----------
    logits, target
        As for `cross_entropy`.
    weight, ignore_index, reduction, label_smoothing, axis, sample_weight, where, denominator
        As for `cross_entropy`.
    on_empty, logit_scale, softcap, z_loss, dtype, check, return_stats
        As for `cross_entropy`. `dtype` is that of the loss: the gradient has that of `logits`.
    grad_output
        What the gradient is multiplied by, the gradient of something by this loss: floating and
        0-d, or for reduction "none" with as many axes as the rows and broadcastable to them. None
        is 1: for reduction "none", the gradient of the sum.
    out
        Where the gradient is written: an array of the shape, dtype and device of `logits`, or
        `logits` itself, whose values are then replaced block by block. Memory that overlaps an
        argument in any other way gives wrong results.

    Returns
    -------
    loss : array
        As `cross_entropy` returns it.
    grad_logits : array
        `out`, or a new array of the shape, dtype and device of `logits`. Exactly 0 in rows that do
        not count, whatever they hold; NaN in rows whose loss is NaN.
    stats : Stats
        Only with `return_stats`.

    Raises
    ------
    TypeError
        As `cross_entropy`; also for `out` of another dtype.
    ValueError
        As `cross_entropy`; also for `out` of another shape or that cannot be written to, such as
        a read-only array or a tensor that requires grad.
    IndexError
        For a target outside the classes. Everything is raised before anything is written.

    Examples
    --------
    >>> import numpy as np
    >>> import xent_array
    >>> logits = np.asarray([[2.0, 0.5, 0.1], [0.3, 1.9, 0.2]])
    >>> loss, grad = xent_array.cross_entropy_and_grad(logits, np.asarray([0, 1]))
    >>> grad.round(4)
    array([[-0.1358,  0.0813,  0.0545],
           [ 0.0729, -0.1389,  0.066 ]])

    In place, with no memory for the gradient:

    >>> loss, grad = xent_array.cross_entropy_and_grad(logits, np.asarray([0, 1]), out=logits)
    >>> grad is logits
    True
    """
    options = Options(
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        axis,
        sample_weight,
        where,
        denominator,
        on_empty,
        logit_scale,
        softcap,
        z_loss,
        dtype,
        check,
        return_stats,
    )
    batch = gather(logits, target, checked(options), grad_output=grad_output, out=out)
    loss, grad_logits, stats = evaluate_with_grad(batch)
    if out is not None:
        grad_logits = out  # the caller's own object, not a view of it
    return (loss, grad_logits) if stats is None else (loss, grad_logits, stats)
