"""What a case does: make a call, and compare what it returns with the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from xent_array.testing import _oracle as oracle
from xent_array.testing._exact import Real, exact, mp
from xent_array.testing._library import Library, Skipped
from xent_array.testing._plain import (
    Call,
    Dtype,
    Plain,
    across,
    along,
    compute_dtype,
    without,
)
from xent_array.testing._tolerance import Limits

#: Begins the messages of what must see values that cannot be seen.
_UNSEEN = ("check=True must see", "on_empty='raise' must see")


def loss(library: Library, call: Call) -> None:
    """The loss, and the statistics if they are asked for."""
    result = library.evaluate(call)
    limits = _limits(library, call)
    if not call.option("return_stats"):
        return _loss(library, limits, result)
    value, stats = result
    _loss(library, limits, value)
    return _stats(library, limits, stats)


def gradient(library: Library, call: Call) -> None:
    """Loss and gradient, and the statistics if they are asked for."""
    value, grad, *stats = library.evaluate(call)
    limits = _limits(library, call)
    _loss(library, limits, value)
    true, dtype = oracle.gradient(call), call.dtype
    got = _read(library, "gradient", grad, call.arrays[0].shape, dtype)
    _compare("gradient", limits, got, true, limits.gradient())
    if stats:
        _stats(library, limits, stats[0])


def softmax(library: Library, call: Call) -> None:
    """softmax, log_softmax or logsumexp."""
    (x,), limits = call.arrays, _limits(library, call)
    rows = [oracle.softmax_row(tuple(map(exact, z))) for z in along(x, call.axis)]
    result = library.evaluate(call)
    if call.function == "logsumexp":
        true, bounds = [row.lse for row in rows], [limits.logsumexp(row) for row in rows]
        shape = without(x.shape, call.axis)
    else:
        formula = _softmax if call.function == "softmax" else _log_softmax
        pairs = [[formula(limits, row, j) for j in range(len(row.z))] for row in rows]
        true = list(across([[t for t, _ in row] for row in pairs], x.shape, call.axis))
        bounds = list(across([[b for _, b in row] for row in pairs], x.shape, call.axis))
        shape = x.shape
    got = _read(library, call.function, result, shape, call.dtype)
    _compare(call.function, limits, got, true, bounds)


def refused(library: Library, call: Call, error: type[Exception], text: str) -> None:
    """One exception with one text; the arrays are as they were."""
    arrays = library.given(call)
    raised = _raised(library, call, arrays)
    told, expected = _told(raised), f"{error.__name__}: {text}"
    _require(told == expected, f"{call}:\n    got {told}\n    expected {expected}")
    _assert_unchanged(library, call, arrays)


def refused_by_value(library: Library, call: Call, error: type[Exception], text: str) -> None:
    """The same where values can be looked at; elsewhere a bad row is NaN."""
    raised = _raised(library, call, library.given(call))
    if isinstance(raised, ValueError) and str(raised).startswith(_UNSEEN):
        raise Skipped("values cannot be seen, as the error says that was raised")
    if isinstance(raised, Exception):
        return refused(library, call, error, text)
    if error is IndexError:
        _loss(library, _limits(library, call), raised)
    raise Skipped("values are not looked at, as documented of lazy arrays and unknown libraries")


def _raised(library: Library, call: Call, arrays: list[Any]) -> Any:
    """The exception that a call raises, or what it returns."""
    try:
        return library.evaluate_with(call, arrays)
    except Skipped:
        raise
    except Exception as raised:
        return raised


def _told(raised: Any) -> str:
    if isinstance(raised, Exception):
        return f"{type(raised).__name__}: {raised}"
    return f"a result, {raised!r}"


def kind(library: Library, call: Call) -> None:
    """Results are arrays of the inputs' type and device, and right; the inputs are unchanged."""
    arrays = library.given(call)
    results = library.evaluate_with(call, arrays)
    results = list(results) if isinstance(results, tuple) else [results]
    if call.option("return_stats"):
        results += results.pop()
    for x in results:
        _require(isinstance(x, type(arrays[0])), f"{call}: got a {type(x)} of a {type(arrays[0])}")
        _require(_device(x) == _device(arrays[0]), f"{call}: result is on device {_device(x)}")
    _assert_unchanged(library, call, arrays)
    if call.function in ("softmax", "log_softmax", "logsumexp"):
        softmax(library, call)
    elif call.function == "cross_entropy_and_grad":
        gradient(library, call)
    else:
        loss(library, call)


def _limits(library: Library, call: Call) -> Limits:
    return Limits(call, flushes=library.flushes(compute_dtype(call.dtype)))


def _loss(library: Library, limits: Limits, value: Any) -> None:
    call = limits.call
    shape = oracle.truth(call).shape if oracle.reduction(call) == "none" else ()
    got = _read(library, "loss", value, shape, _result_dtype(call))
    _compare("loss", limits, got, oracle.losses(call), limits.losses())


def _stats(library: Library, limits: Limits, stats: Any) -> None:
    call = limits.call
    rows, shape, _ = oracle.truth(call)
    lse = _read(library, "stats.lse", stats.lse, shape, _result_dtype(call))
    true = [row.logits.lse if row.counts else exact(0) for row in rows]
    _compare("stats.lse", limits, lse, true, limits.logsumexps())
    prediction = _read(library, "stats.prediction", stats.prediction, shape, None).flat
    correct = _read(library, "stats.correct", stats.correct, shape, "bool").flat
    for i, row in enumerate(rows):
        if (expected := oracle.prediction(row)) is None:
            continue
        hit = row.counts and not row.bad and expected == row.correct
        _assert_equal(call, f"stats.prediction of row {i}", prediction[i], expected)
        _assert_equal(call, f"stats.correct of row {i}", correct[i], hit)


def _result_dtype(call: Call) -> str:
    dtype = call.option("dtype")
    return dtype.name if isinstance(dtype, Dtype) else call.dtype


def _read(library: Library, what: str, x: Any, shape: tuple[int, ...], dtype: str | None) -> Plain:
    got = library.data(x)
    _require(got.shape == shape, f"{what}: got shape {got.shape}, expected {shape}")
    _require(dtype in (got.dtype, None), f"{what}: got dtype {got.dtype}, expected {dtype}")
    return got


def _compare(
    what: str, limits: Limits, got: Plain, true: Sequence[Real], bounds: Sequence[Real]
) -> None:
    """Each entry must be within its bound; the one that is furthest out is reported."""
    worst, message = 1.0, ""
    for i, (entry, exactly, bound) in enumerate(zip(got.flat, true, bounds, strict=True)):
        allowed = limits.stored(bound, exactly, got.dtype)
        excess = _excess(entry, exactly, allowed)
        if excess > worst:
            worst = excess
            message = (
                f"{limits.call}: {what}{_place(i, got.shape)} is {entry!r}, expected "
                f"{mp.nstr(exactly, 20)} within {mp.nstr(allowed, 3)}: {excess:.3g} times that off"
            )
    _require(not message, message)


def _excess(got: float, true: Real, allowed: Real) -> float:
    """How many times the allowed error there is."""
    if mp.isnan(true):
        return 0.0 if math.isnan(got) else math.inf
    if not (mp.isfinite(true) and math.isfinite(got)):
        return 0.0 if exact(got) == true else math.inf
    error = abs(exact(got) - true)
    if not allowed:
        return math.inf if error else 0.0
    return float(error / allowed)


def _place(i: int, shape: tuple[int, ...]) -> str:
    """An entry's place in row-major order as an index, empty for 0-d."""
    place: list[int] = []
    for length in reversed(shape):
        i, step = divmod(i, length)
        place.insert(0, step)
    return str(place) if place else ""


def _require(holds: bool, message: str) -> None:
    """A statement of its own: ``python -O`` leaves out `assert`, and everything would pass."""
    if not holds:
        raise AssertionError(message)


def _assert_equal(call: Call, what: str, got: Any, expected: Any) -> None:
    _require(got == expected, f"{call}: {what} is {got}, expected {expected}")


def _assert_unchanged(library: Library, call: Call, arrays: Sequence[Any]) -> None:
    for x, given in zip(arrays, call.arrays, strict=True):
        if isinstance(given, Plain):
            now, then = map(repr, (library.data(x).flat, given.flat))  # NaN equals itself
            _require(now == then, f"{call}: changed an array from {then} to {now}")


def _device(x: Any) -> Any:
    return getattr(x, "device", None)


def _softmax(limits: Limits, row: oracle.Logits, j: int) -> tuple[Real, Real]:
    return row.p[j], limits.softmax(row, j)


def _log_softmax(limits: Limits, row: oracle.Logits, j: int) -> tuple[Real, Real]:
    """NaN where there is no softmax."""
    defined = mp.isfinite(row.lse)
    return (row.z[j] - row.lse if defined else mp.nan), limits.log_softmax(row, j)


#: A check of a case: what it does with a library and a call.
Check = Callable[[Library, Call], None]
