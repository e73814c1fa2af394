"""Bad input: the documented exception and text, the same on every backend, before any work."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

import xent_array

from arrays import make, to_numpy

LOGITS = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
TARGET = np.asarray([0, 1, 2, 0])
PROBABILITIES = np.full((4, 3), 1 / 3)

#: What differs from a good call, the exception, its text.
CASES = [
    # dtypes
    (
        {"logits": LOGITS.astype(int)},
        TypeError,
        "logits must have a real floating dtype, got int64",
    ),
    (
        {"logits": LOGITS.astype(complex)},
        TypeError,
        "logits must have a real floating dtype, got complex128",
    ),
    (
        {"target": TARGET.astype(bool)},
        TypeError,
        "target must have an integer dtype (class indices) or a real floating one "
        "(probabilities), got bool",
    ),
    (
        {"weight": np.asarray([1, 2, 3])},
        TypeError,
        "weight must have a real floating dtype, got int64",
    ),
    (
        {"sample_weight": np.asarray([1, 2, 3, 4])},
        TypeError,
        "sample_weight must have a real floating dtype, got int64",
    ),
    (
        {"where": np.asarray([1, 0, 1, 0])},
        TypeError,
        "where must have a boolean dtype, got int64",
    ),
    (
        {"logit_scale": np.asarray(True)},
        TypeError,
        "logit_scale must have a real dtype, got bool",
    ),
    # shapes
    ({"logits": np.asarray(1.0)}, ValueError, "logits must have a class axis, got shape ()"),
    (
        {"logits": np.zeros((4, 0))},
        ValueError,
        "logits of shape (4, 0) must have at least one class along axis 1",
    ),
    ({"axis": 2}, ValueError, "axis is 2: out of range for logits of shape (4, 3)"),
    ({"axis": -3}, ValueError, "axis is -3: out of range for logits of shape (4, 3)"),
    (
        {"target": np.zeros((4, 1), dtype=int)},
        ValueError,
        "target of dtype int64 holds class indices, which must have the shape of logits (4, 3) "
        "without class axis 1, (4,); got shape (4, 1)",
    ),
    (
        {"logits": LOGITS[0], "target": np.asarray([0])},
        ValueError,
        "target of dtype int64 holds class indices, which must have the shape of logits (3,) "
        "without class axis 0, (); got shape (1,)",
    ),
    (
        {"target": np.eye(3, dtype=int)[TARGET]},
        ValueError,
        "target of dtype int64 holds class indices, which must have the shape of logits (4, 3) "
        "without class axis 1, (4,); got shape (4, 3) (probabilities, one-hots among them, must "
        "have a floating dtype: cast them)",
    ),
    (
        {"logits": np.zeros((2, 5, 3)), "target": np.zeros((2, 5), dtype=int)},
        ValueError,
        "target of dtype int64 holds class indices, which must have the shape of logits (2, 5, 3) "
        "without class axis 1, (2, 3); got shape (2, 5) (if axis 2 holds the classes, pass axis=2)",
    ),
    (
        {"target": TARGET.astype(float)},
        ValueError,
        "target of dtype float64 holds probabilities, which must have the shape of logits (4, 3); "
        "got shape (4,) (class indices must have an integer dtype)",
    ),
    (
        {"weight": np.ones(4)},
        ValueError,
        "weight must have one entry per class, shape (3,); got shape (4,)",
    ),
    (
        {"sample_weight": np.ones(3)},
        ValueError,
        "sample_weight must be 0-d or broadcast, axis by axis, to the rows' shape (4,); "
        "got shape (3,)",
    ),
    (
        {"where": np.ones((4, 1), dtype=bool)},
        ValueError,
        "where must be 0-d or broadcast, axis by axis, to the rows' shape (4,); got shape (4, 1)",
    ),
    (
        {"label_smoothing": np.asarray([0.1])},
        ValueError,
        "label_smoothing must be a number or a 0-d array, got shape (1,)",
    ),
    # options
    (
        {"reduction": "avg"},
        ValueError,
        "reduction must be one of 'none', 'mean', 'sum'; got 'avg'",
    ),
    ({"reduction": None}, TypeError, "reduction must be one of 'none', 'mean', 'sum'; got None"),
    (
        {"on_empty": "skip"},
        ValueError,
        "on_empty must be one of 'nan', 'zero', 'raise'; got 'skip'",
    ),
    ({"check": "never"}, ValueError, "check must be one of 'auto', True, False; got 'never'"),
    ({"check": 1}, TypeError, "check must be one of 'auto', True, False; got 1"),
    ({"return_stats": 1}, TypeError, "return_stats must be one of True, False; got 1"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer, got 0.5"),
    ({"ignore_index": True}, TypeError, "ignore_index must be an integer, got True"),
    ({"axis": 1.0}, TypeError, "axis must be an integer, got 1.0"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing must be in [0, 1], got 1.5"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be in [0, 1], got -0.1"),
    ({"label_smoothing": np.nan}, ValueError, "label_smoothing must be in [0, 1], got nan"),
    (
        {"label_smoothing": "0.1"},
        TypeError,
        "label_smoothing must be a number or a 0-d array, got '0.1'",
    ),
    (
        {"label_smoothing": True},
        TypeError,
        "label_smoothing must be a number or a 0-d array, got True",
    ),
    ({"logit_scale": np.inf}, ValueError, "logit_scale must be finite, got inf"),
    (
        {"logits": LOGITS.astype("float32"), "softcap": 1e39},
        ValueError,
        "softcap must be within the range of float32, got 1e+39",
    ),
    ({"z_loss": 10**400}, ValueError, "z_loss must be finite and not negative, got inf"),
    (
        {"label_smoothing": np.float32},
        TypeError,
        "label_smoothing must be a number or a 0-d array, got <class 'numpy.float32'>",
    ),
    ({"softcap": 0.0}, ValueError, "softcap must be positive and finite, got 0.0"),
    ({"softcap": "30"}, TypeError, "softcap must be a number, got '30'"),
    ({"z_loss": -1.0}, ValueError, "z_loss must be finite and not negative, got -1.0"),
    (
        {"z_loss": np.asarray([1.0])},
        TypeError,
        "z_loss must be a number, got array(shape=(1,), dtype=float64)",
    ),
    ({"denominator": 0}, ValueError, "denominator must be positive and finite, got 0.0"),
    (
        {"denominator": "tokens"},
        ValueError,
        "denominator must be 'rows', a number or a 0-d array; got 'tokens'",
    ),
    (
        {"denominator": 2.0, "reduction": "sum"},
        ValueError,
        "denominator goes with reduction='mean', got reduction='sum'",
    ),
    (
        {"target": PROBABILITIES, "ignore_index": 1},
        ValueError,
        "ignore_index is 1, but it goes with class indices: "
        "leave rows of probabilities out by where=",
    ),
    (
        {"dtype": "int64"},
        TypeError,
        "dtype must be a real floating dtype of the array library, got 'int64'",
    ),
]

#: The same for what only values tell.
CASES_OF_VALUES = [
    # targets out of range
    (
        {"target": np.asarray([0, 1, 3, -1])},
        IndexError,
        "target[2] is 3: outside the 3 classes [0, 3) and not ignore_index (-100)",
    ),
    (
        {"target": np.asarray([0, 1, -1, -100]), "ignore_index": 2},
        IndexError,
        "target[2] is -1: outside the 3 classes [0, 3) and not ignore_index (2)",
    ),
    (
        {"logits": LOGITS[0], "target": np.asarray(7)},
        IndexError,
        "target is 7: outside the 3 classes [0, 3) and not ignore_index (-100)",
    ),
    (
        {"logits": np.zeros((2, 3, 5)), "target": np.asarray([[0] * 5, [0, 1, 2, 3, 4]])},
        IndexError,
        "target[1, 3] is 3: outside the 3 classes [0, 3) and not ignore_index (-100)",
    ),
    (
        {"logits": LOGITS.astype("float32"), "denominator": np.asarray(1e-50)},
        ValueError,
        "denominator must be within the range of float32, got 1e-50",
    ),
    (
        {"label_smoothing": np.asarray(1.5)},
        ValueError,
        "label_smoothing must be in [0, 1], got 1.5",
    ),
]


@pytest.mark.parametrize(("change", "error", "text"), CASES, ids=lambda x: str(x)[:40])
def test_bad_input(xp, change, error, text):
    """One exception with one text; the arrays are as they were."""
    assert_refused(xp, change, error, text)


@pytest.mark.needs("values")
@pytest.mark.parametrize(("change", "error", "text"), CASES_OF_VALUES, ids=lambda x: str(x)[:40])
def test_bad_values(xp, change, error, text):
    """They are looked at where that costs nothing."""
    assert_refused(xp, change, error, text)


def assert_refused(xp, change, error, text):
    arrays = {"logits": LOGITS, "target": TARGET} | change
    given = {
        name: make(xp, value) if isinstance(value, (np.ndarray, np.generic)) else value
        for name, value in arrays.items()
    }
    before = {name: np.array(to_numpy(x)) for name, x in given.items() if hasattr(x, "dtype")}
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        xent_array.cross_entropy(given.pop("logits"), given.pop("target"), **given)
    for name, x in given.items():
        if name in before:
            np.testing.assert_array_equal(to_numpy(x), before[name])


def refused(x, text):
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        xent_array.cross_entropy(x, np.asarray([0, 1]))


def test_what_is_no_array_is_refused_with_advice():
    refused(
        [[1.0, 2.0], [3.0, 4.0]],
        "logits must be an array, got list: make one with your array library's asarray()",
    )
    refused(
        pd.DataFrame([[1.0, 2.0], [3.0, 4.0]]),
        "logits must be an array, got DataFrame: pass x.to_numpy()",
    )
    refused(
        np.ma.masked_array(np.zeros((2, 2))),
        "logits must be a plain array, got MaskedArray: pass x.filled(...) and the rows to keep "
        "as where=",
    )
    refused(
        np.ndarray,
        "logits must be an array, got type: make one with your array library's asarray()",
    )
    refused(
        _Subclass(),
        "logits must be a plain array, got _Subclass: pass numpy.asarray(x)",
    )


class _Subclass(np.ndarray):
    def __new__(cls):
        return np.zeros((2, 2)).view(cls)


@pytest.mark.parametrize(
    "option", ["target", "weight", "sample_weight", "where", "label_smoothing", "denominator"]
)
def test_arrays_of_two_libraries_are_refused(xp, option):
    """Every argument must be of the logits' own library."""
    other = np.asarray if xp.__name__ == "torch" else torch.asarray
    values = {
        "target": TARGET,
        "weight": np.ones(3),
        "sample_weight": np.ones(4),
        "where": np.ones(4, dtype=bool),
        "label_smoothing": np.asarray(0.1),
        "denominator": np.asarray(3.0),
    }
    arguments = {"target": make(xp, TARGET), option: other(values[option])}
    theirs = "numpy.ndarray" if xp.__name__ == "torch" else "torch.Tensor"
    logits = make(xp, LOGITS)
    ours = f"{type(logits).__module__.partition('.')[0]}.{type(logits).__name__}"
    text = (
        f"{option} is a {theirs} but logits is a {ours}: "
        "all arrays of a call must come from one library, convert one of them"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        xent_array.cross_entropy(make(xp, LOGITS), **arguments)


@pytest.mark.parametrize("option", ["target", "weight", "sample_weight", "where", "logit_scale"])
@pytest.mark.parametrize("value", [[0, 1, 2, 0], None, "abc"])
def test_arguments_that_are_no_arrays(xp, option, value):
    if value is None and option != "target":
        pytest.skip("None is this option's default")
    arguments = {"target": make(xp, TARGET), option: value}
    with pytest.raises(TypeError, match=f"^{option} must be a"):
        xent_array.cross_entropy(make(xp, LOGITS), **arguments)


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_bad_input_of_the_softmaxes(xp, function):
    call = getattr(xent_array, function)
    for arguments, error, text in [
        ((make(xp, [1, 2]),), TypeError, "x must have a real floating dtype, got int64"),
        ((make(xp, 1.0),), ValueError, "x must have a class axis, got shape ()"),
        (
            (make(xp, np.zeros((2, 0))),),
            ValueError,
            "x of shape (2, 0) must have at least one class along axis 1",
        ),
        ((make(xp, [1.0]), 1), ValueError, "axis is 1: out of range for x of shape (1,)"),
        ((make(xp, [1.0]), None), TypeError, "axis must be an integer, got None"),
        (
            ([1.0],),
            TypeError,
            "x must be an array, got list: make one with your array library's asarray()",
        ),
    ]:
        with pytest.raises(error, match=f"^{re.escape(text)}$"):
            call(*arguments)


def test_another_order_of_bytes_is_shown():
    out = np.empty(LOGITS.shape, LOGITS.dtype.newbyteorder())
    shown = re.escape(f"out must have the dtype of logits, float64; got {out.dtype}")
    with pytest.raises(TypeError, match=shown):
        xent_array.cross_entropy_and_grad(LOGITS, TARGET, out=out)
