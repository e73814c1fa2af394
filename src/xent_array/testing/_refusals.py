"""Cases of bad arguments: one exception with one text on every library."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from xent_array.testing._bad_options import Refusal, bad_options
from xent_array.testing._checks import refused, refused_by_value
from xent_array.testing._numbers import Entry
from xent_array.testing._plain import Call, Plain, full, plain

_NO_ARRAY = "must be an array, got {}: make one with your array library's asarray()"


def errors(dtype: str) -> Iterator[Entry]:
    """Refused before any work, whatever values there are."""
    for name, change, error, text in (*_dtypes(), *_shapes(dtype), *bad_options(dtype)):
        yield name, partial(refused, error=error, text=text), _bad("cross_entropy", dtype, change)
    for name, change, error, text in _gradients(dtype):
        bad = _bad("cross_entropy_and_grad", dtype, change)
        yield f"gradient-{name}", partial(refused, error=error, text=text), bad
    for function in ("softmax", "log_softmax", "logsumexp"):
        for name, x, options, error, text in _softmaxes(dtype):
            bad = Call(function, (x,), tuple(options.items()))
            yield (
                f"{function.replace('_', '-')}-{name}",
                partial(refused, error=error, text=text),
                bad,
            )


def values(dtype: str) -> Iterator[Entry]:
    """Refused for what values there are, where somebody looks at them."""
    for name, change, error, text in _of_values(dtype):
        check = partial(refused_by_value, error=error, text=text)
        yield name, check, _bad("cross_entropy", dtype, change)


def _bad(function: str, dtype: str, change: dict[str, Any]) -> Call:
    """A good call but for a change."""
    logits = plain([[-1.0, 0.5, 0.25], [0.0, 1.0, 2.0], [1.5, 0.5, 1.0], [3.0, 0.0, 1.0]], dtype)
    good = {"logits": logits, "target": plain([0, 1, 2, 0], "int32")}
    arguments = good | change
    arrays = arguments.pop("logits"), arguments.pop("target")
    return Call(function, arrays, tuple(arguments.items()))


def _dtypes() -> Iterator[Refusal]:
    floating = "must have a real floating dtype, got int32"
    integers = full((4, 3), 1, "int32")
    yield "integer-logits", {"logits": integers}, TypeError, f"logits {floating}"
    for name, x in (
        ("weight", plain([1, 2, 3], "int32")),
        ("sample_weight", full((4,), 1, "int32")),
    ):
        yield f"integer-{name}", {name: x}, TypeError, f"{name} {floating}"
    yield (
        "complex-logits",
        {"logits": full((4, 3), 1 + 1j, "complex64")},
        TypeError,
        "logits must have a real floating dtype, got complex64",
    )
    yield (
        "boolean-target",
        {"target": full((4,), True, "bool")},
        TypeError,
        (
            "target must have an integer dtype (class indices) or a real floating one "
            "(probabilities), got bool"
        ),
    )
    yield (
        "integer-where",
        {"where": full((4,), 1, "int32")},
        TypeError,
        "where must have a boolean dtype, got int32",
    )
    yield (
        "boolean-logit-scale",
        {"logit_scale": plain(True, "bool")},
        TypeError,
        "logit_scale must have a real dtype, got bool",
    )
    yield "logits-list", {"logits": [[1.0]]}, TypeError, f"logits {_NO_ARRAY.format('list')}"
    yield "target-int", {"target": 0}, TypeError, f"target {_NO_ARRAY.format('int')}"


def _shapes(dtype: str) -> Iterator[Refusal]:
    rows = "must be 0-d or broadcast, axis by axis, to the rows' shape (4,);"
    for name, change, text in (
        ("0d-logits", {"logits": plain(1.0, dtype)}, "logits must have a class axis, got shape ()"),
        (
            "no-classes",
            {"logits": Plain((), (4, 0), dtype)},
            "logits of shape (4, 0) must have at least one class along axis 1",
        ),
        ("axis", {"axis": 2}, "axis is 2: out of range for logits of shape (4, 3)"),
        ("negative-axis", {"axis": -3}, "axis is -3: out of range for logits of shape (4, 3)"),
        (
            "weight",
            {"weight": full((4,), 1.0, dtype)},
            "weight must have one entry per class, shape (3,); got shape (4,)",
        ),
        (
            "sample-weight",
            {"sample_weight": full((3,), 1.0, dtype)},
            f"sample_weight {rows} got shape (3,)",
        ),
        (
            "where",
            {"where": full((4, 1), True, "bool")},
            f"where {rows} got shape (4, 1)",
        ),
        (
            "label-smoothing",
            {"label_smoothing": full((1,), 0.1, dtype)},
            "label_smoothing must be a number or a 0-d array, got shape (1,)",
        ),
    ):
        yield f"shape-of-{name}", change, ValueError, text
    yield from _target_shapes(dtype)


def _target_shapes(dtype: str) -> Iterator[Refusal]:
    shape = "which must have the shape of logits (4, 3)"
    indices = f"target of dtype int32 holds class indices, {shape[:-7]}"
    cast = "(probabilities, one-hots among them, must have a floating dtype: cast them)"
    integers = "(class indices must have an integer dtype)"
    for name, change, text in (
        (
            "column",
            {"target": full((4, 1), 0, "int32")},
            f"{indices} (4, 3) without class axis 1, (4,); got shape (4, 1)",
        ),
        (
            "1d",
            {"logits": full((3,), 1.0, dtype), "target": plain([0], "int32")},
            f"{indices} (3,) without class axis 0, (); got shape (1,)",
        ),
        (
            "integer-one-hot",
            {"target": full((4, 3), 0, "int32")},
            f"{indices} (4, 3) without class axis 1, (4,); got shape (4, 3) {cast}",
        ),
        (
            "floating-index",
            {"target": full((4,), 1.0, dtype)},
            f"target of dtype {dtype} holds probabilities, {shape}; got shape (4,) {integers}",
        ),
    ):
        yield f"shape-of-target-{name}", change, ValueError, text


def _gradients(dtype: str) -> Iterator[Refusal]:
    yield (
        "shape-of-grad-output",
        {"grad_output": full((4,), 1.0, dtype)},
        ValueError,
        "grad_output must be 0-d, as the loss of reduction='mean'; got shape (4,)",
    )
    yield (
        "integer-grad-output",
        {"grad_output": plain(1, "int32")},
        TypeError,
        "grad_output must have a real floating dtype, got int32",
    )
    yield (
        "shape-of-out",
        {"out": full((3, 4), 0.0, dtype)},
        ValueError,
        "out must have the shape of logits, (4, 3); got shape (3, 4)",
    )
    yield (
        "dtype-of-out",
        {"out": full((4, 3), 0, "int32")},
        TypeError,
        f"out must have the dtype of logits, {dtype}; got int32",
    )
    yield "out-list", {"out": [[0.0]]}, TypeError, f"out {_NO_ARRAY.format('list')}"


def _softmaxes(dtype: str) -> Iterator[tuple[str, Any, dict[str, Any], type[Exception], str]]:
    x = plain([1.0], dtype)
    integers = "x must have a real floating dtype, got int32"
    yield "integers", plain([1, 2], "int32"), {}, TypeError, integers
    yield "0d", plain(1.0, dtype), {}, ValueError, "x must have a class axis, got shape ()"
    yield "axis", x, {"axis": 1}, ValueError, "axis is 1: out of range for x of shape (1,)"
    yield "axis-None", x, {"axis": None}, TypeError, "axis must be an integer, got None"
    yield "list", [1.0], {}, TypeError, f"x {_NO_ARRAY.format('list')}"


def _of_values(dtype: str) -> Iterator[Refusal]:
    rows, auto = {"reduction": "none"}, {"auto": {}, "checked": {"check": True}}
    outside = "outside the 3 classes [0, 3) and not ignore_index"
    for name, check in auto.items():
        yield (
            f"index-{name}",
            {"target": plain([0, 1, 3, -1], "int32"), **rows, **check},
            IndexError,
            f"target[2] is 3: {outside} (-100)",
        )
    yield (
        "negative-index",
        {"target": plain([0, 1, -1, -100], "int32"), "ignore_index": 2, **rows},
        IndexError,
        f"target[2] is -1: {outside} (2)",
    )
    one = {"logits": full((3,), 1.0, dtype), "target": plain(7, "int32")}
    yield "0d-index", {**one, **rows}, IndexError, f"target is 7: {outside} (-100)"
    images = {
        "logits": full((2, 3, 5), 0.0, dtype),
        "target": plain([[0] * 5, [0, 1, 2, 3, 4]], "int32"),
    }
    yield "index-NCd", {**images, **rows}, IndexError, f"target[1, 3] is 3: {outside} (-100)"
    yield (
        "label-smoothing",
        {"label_smoothing": plain(1.5, dtype)},
        ValueError,
        "label_smoothing must be in [0, 1], got 1.5",
    )
    yield (
        "denominator",
        {"denominator": plain(-1.0, dtype)},
        ValueError,
        "denominator must be positive and finite, got -1.0",
    )
    empty = "no row counts, of rows of shape (4,), and on_empty is 'raise'"
    nothing = {"target": full((4,), -100, "int32"), "on_empty": "raise"}
    yield "on-empty", nothing, ValueError, empty
    yield "on-empty-denominator", {**nothing, "denominator": 4}, ValueError, empty
