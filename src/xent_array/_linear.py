"""The front doors of the linear loss: projection and cross-entropy without the logits."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, Unpack, overload

from xent_array._linear_engines import evaluate, evaluate_with_grads
from xent_array._namespace import Array
from xent_array._options import (
    DEFAULTS,
    Check,
    Denominator,
    OnEmpty,
    Options,
    Reduction,
    RowKeywords,
    checked,
)
from xent_array._projected import Parts, gather_projected
from xent_array._rowwise import Stats

ArrayT = TypeVar("ArrayT")


class Keywords(RowKeywords, total=False):
    """Static types of the keywords beside `return_stats`, which settles what is returned."""

    linear_bias: Array | None
    weight: Array | None


@overload
def linear_cross_entropy(
    features: ArrayT,
    linear_weight: Array,
    target: Array,
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[Keywords],
) -> ArrayT: ...
@overload
def linear_cross_entropy(
    features: ArrayT,
    linear_weight: Array,
    target: Array,
    *,
    return_stats: Literal[True],
    **options: Unpack[Keywords],
) -> tuple[ArrayT, Stats]: ...
def linear_cross_entropy(
    features: ArrayT,
    linear_weight: Array,
    target: Array,
    *,
    linear_bias: Array | None = None,
    weight: Array | None = DEFAULTS.weight,
    ignore_index: int = DEFAULTS.ignore_index,
    reduction: Reduction = DEFAULTS.reduction,
    label_smoothing: float | Array = DEFAULTS.label_smoothing,
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
) -> Any:
    r"""Cross-entropy of ``features @ linear_weight.T + linear_bias``, never held as a whole.

    Equal to `cross_entropy` of those logits, their class axis last. Where values can be seen, rows
    are projected some at a time, and their logits read and dropped: beside arguments and gradients
    it takes no memory that grows with the number of rows or classes, but for what it returns of
    each row and for a copy of features that are not contiguous. torch gets its gradients from
    the same tiles, compiled as well, and in its other modes (torch.func, forward mode, derivatives
    of derivatives) makes a tile's logits again; so does JAX for whatever it derives. The tiles of
    dask are its chunks.

    Parameters
    ----------
    features
        Real floating, shape ``(H,)``, ``(N, H)`` or ``(N, ..., H)``.
    linear_weight
        The weight of the projection, as ``torch.nn.Linear`` has it: shape ``(C, H)``, the dtype of
        `features`.
    target
        As for `cross_entropy`, of logits of shape ``(N, ..., C)``: class indices of shape
        ``(N, ...)``, or probabilities with the class axis last.
    linear_bias
        The bias of the projection, shape ``(C,)``, the dtype of `features`.
    weight, ignore_index, reduction, label_smoothing, sample_weight, where, denominator
        As for `cross_entropy`.
    on_empty, logit_scale, softcap, z_loss, dtype, check, return_stats
        As for `cross_entropy`.

    Returns
    -------
    loss : array
        As `cross_entropy` returns it: 0-d, or of shape ``(N, ...)`` for reduction "none".
    stats : Stats
        Only with `return_stats`.

    Raises
    ------
    TypeError
        As `cross_entropy`; also for a projection of another dtype than that of `features`.
    ValueError
        As `cross_entropy`; also for a projection whose shape does not fit `features`.
    IndexError
        For a target outside the classes, where values can be seen; elsewhere the loss of its row is
        NaN, see `check`. Everything is raised before any work.

    See Also
    --------
    linear_cross_entropy_and_grad : The same with its gradients, for libraries without autograd.

    Examples
    --------
    >>> import numpy as np
    >>> import xent_array
    >>> features = np.asarray([[1.0, -1.0], [0.5, 2.0]])
    >>> linear_weight = np.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    >>> loss = xent_array.linear_cross_entropy(features, linear_weight, np.asarray([0, 1]))
    >>> float(loss).__round__(6)
    0.282858
    """
    options = Options(
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        DEFAULTS.axis,
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
    parts = Parts(features, linear_weight, linear_bias)
    result = evaluate(gather_projected(parts, target, checked(options)))
    return result.loss if result.stats is None else (result.loss, result.stats)


@overload
def linear_cross_entropy_and_grad(
    features: ArrayT,
    linear_weight: Array,
    target: Array,
    *,
    return_stats: Literal[False] = False,
    grad_output: Array | None = None,
    **options: Unpack[Keywords],
) -> tuple[ArrayT, tuple[ArrayT, ArrayT, ArrayT | None]]: ...
@overload
def linear_cross_entropy_and_grad(
    features: ArrayT,
    linear_weight: Array,
    target: Array,
    *,
    return_stats: Literal[True],
    grad_output: Array | None = None,
    **options: Unpack[Keywords],
) -> tuple[ArrayT, tuple[ArrayT, ArrayT, ArrayT | None], Stats]: ...
def linear_cross_entropy_and_grad(
    features: ArrayT,
    linear_weight: Array,
    target: Array,
    *,
    linear_bias: Array | None = None,
    weight: Array | None = DEFAULTS.weight,
    ignore_index: int = DEFAULTS.ignore_index,
    reduction: Reduction = DEFAULTS.reduction,
    label_smoothing: float | Array = DEFAULTS.label_smoothing,
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
) -> Any:
    r"""The linear cross-entropy and its gradients by all that the logits are made of.

    Each tile of logits is turned into its own gradient :math:`g`, from which follow
    :math:`g W`, :math:`g^T x` and the sum of :math:`g`: with the logits three matrix products. The
    gradient of the projection is summed over tiles in the dtype that is computed in, for half
    features in float32, and rounded once.

    Parameters
    ----------
    features, linear_weight, target, linear_bias
        As for `linear_cross_entropy`.
    weight, ignore_index, reduction, label_smoothing, sample_weight, where, denominator
        As for `cross_entropy`.
    on_empty, logit_scale, softcap, z_loss, dtype, check, return_stats
        As for `cross_entropy`. `dtype` is that of the loss.
    grad_output
        What the gradients are multiplied by, as for `cross_entropy_and_grad`.

    Returns
    -------
    loss : array
        As `linear_cross_entropy` returns it.
    grads : tuple of arrays
        The gradients by `features`, `linear_weight` and `linear_bias` (None without a bias), each
        of the shape and dtype of what it belongs to.
    stats : Stats
        Only with `return_stats`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `linear_cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import xent_array
    >>> features = np.asarray([[1.0, -1.0], [0.5, 2.0]])
    >>> linear_weight = np.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    >>> loss, (grad_features, grad_weight, grad_bias) = xent_array.linear_cross_entropy_and_grad(
    ...     features, linear_weight, np.asarray([0, 1])
    ... )
    >>> grad_features.round(4)
    array([[-0.123 ,  0.0724],
           [ 0.    , -0.1157]])
    >>> grad_bias is None
    True
    """
    options = Options(
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        DEFAULTS.axis,
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
    parts = Parts(features, linear_weight, linear_bias)
    call = gather_projected(parts, target, checked(options), grad_output=grad_output)
    result, grads = evaluate_with_grads(call)
    both = result.loss, tuple(grads)
    return both if result.stats is None else (*both, result.stats)
