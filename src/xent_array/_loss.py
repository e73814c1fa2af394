"""The front door: cross_entropy, and the same with its options frozen."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, Unpack, overload

from xent_array._engines import evaluate
from xent_array._evaluate import Result
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
def cross_entropy(
    logits: ArrayT,
    target: Array,
    *,
    weight: Array | None = None,
    return_stats: Literal[False] = False,
    **options: Unpack[Keywords],
) -> ArrayT: ...
@overload
def cross_entropy(
    logits: ArrayT,
    target: Array,
    *,
    weight: Array | None = None,
    return_stats: Literal[True],
    **options: Unpack[Keywords],
) -> tuple[ArrayT, Stats]: ...
def cross_entropy(
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
) -> Any:
    r"""Cross-entropy between logits and targets, as ``torch.nn.CrossEntropyLoss`` means it.

    With :math:`q` what a row wants of each class, its target with label smoothing
    :math:`\varepsilon` and class weights :math:`w` folded in,

    .. math::

        \ell = \sum_j q_j \Bigl(\log \sum_k e^{z_k} - z_j\Bigr),
        \qquad
        q_j = \Bigl((1-\varepsilon)\,p_j + \frac{\varepsilon}{C}\Bigr)\, w_j,

    where :math:`p` holds the probabilities, or a one at the class index. Losses keep full relative
    precision however confident a row is, at any common offset of its logits.

    Parameters
    ----------
    logits
        Scores of C classes, real floating, shape ``(C,)``, ``(N, C)`` or ``(N, C, d1, ..., dk)``,
        of any array library and any strides. float16 and bfloat16 are computed in float32.
    target
        Class indices: any integer dtype, the shape of `logits` less the class axis, values in
        [0, C) or `ignore_index`. Or probabilities: a real floating dtype, the shape of `logits`.
        The kind is told by the dtype alone.
    weight
        Class weights, floating, shape ``(C,)``. The mean of index targets divides by the sum of
        ``weight[target]``, that of probabilities by the number of rows (torch's rule).
    ignore_index
        A row with this class index has loss and gradient exactly 0 whatever its logits hold, and
        leaves the mean. Only for class indices: with probabilities it must be negative. One that
        the target's dtype cannot hold ignores nothing.
    reduction
        "none" (a loss per row: the shape of `logits` less the class axis), "mean" or "sum".
    label_smoothing
        :math:`\varepsilon` in [0, 1], a number or a 0-d array.
    axis
        The class axis. None is torch's: axis 0 of a single sample, else axis 1. Negative numbers
        count from the end.
    sample_weight
        Weights of the rows, floating, 0-d or with as many axes as the rows and broadcastable to
        them. The mean then divides by the sum of sample weight times class weight.
    where
        Boolean mask of the rows that count, shaped like `sample_weight`. A row left out is like
        an ignored one, for both kinds of target; its target is not looked at.
    denominator
        What "mean" divides by: None (the rules above), "rows" (the number of rows that count) or a
        positive number or 0-d array, as for gradient accumulation.
    on_empty
        The mean where no row counts: "nan" (torch's, with gradient 0), "zero", or "raise". Divided
        by a given `denominator` it is 0, nothing being undefined, unless it is to raise.
    logit_scale
        Factor of the logits, a number or a 0-d array (an inverse temperature).
    softcap
        Positive: logits become ``softcap * tanh(logits / softcap)``, after `logit_scale`.
    z_loss
        Adds ``z_loss * logsumexp(logits)**2`` to every row that counts (times its sample weight).
    dtype
        Dtype of the result; None is that of `logits` (float32 for half dtypes under torch's
        autocast). It does not change what is computed in.
    check
        Whether indices that are neither classes nor ignored raise IndexError. "auto": they raise
        where values lie in host memory; on devices, and where values are traced or lazy, such a
        row becomes NaN. True: they always raise. False: nobody looks, such a row becomes NaN.
    return_stats
        Return ``(loss, Stats)``: each row's logsumexp, predicted class and whether it is correct.

    Returns
    -------
    loss : array
        Of the library and device of `logits`: 0-d, or per row for reduction "none".
    stats : Stats
        Only with `return_stats`.

    Raises
    ------
    TypeError
        For an argument that is no array of the library of `logits`, or of a wrong dtype.
    ValueError
        For a wrong shape, device or option.
    IndexError
        For a target outside the classes; see `check`. Everything is raised before any work.

    See Also
    --------
    CrossEntropyLoss : The same with its options frozen.

    References
    ----------
    .. [1] `torch.nn.CrossEntropyLoss
       <https://docs.pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html>`_

    Examples
    --------
    >>> import numpy as np
    >>> import xent_array
    >>> logits = np.asarray([[2.0, 0.5, 0.1], [0.3, 1.9, 0.2]])
    >>> float(xent_array.cross_entropy(logits, np.asarray([0, 1]))).__round__(6)
    0.321088

    One class is worth more, the second row does not count:

    >>> weight = np.asarray([1.0, 2.0, 1.0])
    >>> xent_array.cross_entropy(
    ...     logits, np.asarray([0, -100]), weight=weight, reduction="none"
    ... ).round(6)
    array([0.316779, 0.      ])
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
    return _returned(evaluate(gather(logits, target, checked(options))))


class CrossEntropyLoss:
    """`cross_entropy` with its options frozen: call it with logits and target.

    Takes the keywords of `cross_entropy`, with `weight` first as in torch, and checks them at
    once. It holds no state, can be pickled, and prints the options that differ from their default.

    Parameters
    ----------
    weight
        Class weights.
    **options
        The other keywords of `cross_entropy`.

    Attributes
    ----------
    options : tuple
        Every option by name.

    Raises
    ------
    TypeError, ValueError
        For an option that is wrong whatever the logits.

    Examples
    --------
    >>> import numpy as np
    >>> import xent_array
    >>> loss = xent_array.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    >>> loss
    CrossEntropyLoss(reduction='sum', label_smoothing=0.1)
    >>> float(loss(np.asarray([0.0, 0.0]), np.asarray(1))).__round__(6)
    0.693147
    """

    __slots__ = ("options",)
    options: Options

    def __init__(
        self,
        weight: Array | None = None,
        *,
        return_stats: bool = False,
        **options: Unpack[Keywords],
    ) -> None:
        if unknown := options.keys() - set(Options._fields):
            raise TypeError(f"CrossEntropyLoss has no option {min(unknown)!r}")
        every = Options(weight, return_stats=return_stats, **options)
        object.__setattr__(self, "options", checked(every))

    def __call__(self, logits: Array, target: Array) -> Any:
        """Return what `cross_entropy` returns with these options."""
        return _returned(evaluate(gather(logits, target, self.options)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} cannot be set: a {type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name} cannot be deleted: a {type(self).__name__} is frozen")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), tuple(self.options)), getattr(self, "__dict__", None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.options.changed()})"


def _restore(kind: type[CrossEntropyLoss], options: tuple[Any, ...]) -> CrossEntropyLoss:
    loss = object.__new__(kind)
    object.__setattr__(loss, "options", Options(*options))
    return loss


def _returned(result: Result) -> Any:
    return result.loss if result.stats is None else (result.loss, result.stats)
