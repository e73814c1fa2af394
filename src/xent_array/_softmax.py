"""softmax, log_softmax and logsumexp: the same reading of a row, without a target."""

from __future__ import annotations

from typing import TypeVar

from xent_array._engines import evaluate, probabilities
from xent_array._gather import gather_rows

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
    found: ArrayT = probabilities(gather_rows("x", x, axis))
    return found


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
    found: ArrayT = probabilities(gather_rows("x", x, axis, logarithm=True))
    return found


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
    lse: ArrayT = evaluate(gather_rows("x", x, axis)).loss
    return lse
