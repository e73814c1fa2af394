"""The keywords of the loss, and every check of them that needs neither logits nor target."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from operator import index, is_
from typing import Any, Literal, NamedTuple, TypedDict

from xent_array._namespace import Array, dtype_name

Reduction = Literal["none", "mean", "sum"]
OnEmpty = Literal["nan", "zero", "raise"]
Denominator = float | Array | Literal["rows"] | None
Check = bool | Literal["auto"]


class Options(NamedTuple):
    """What every front door of the loss takes beside logits and target; see `cross_entropy`."""

    weight: Array | None = None
    ignore_index: int = -100
    reduction: Reduction = "mean"
    label_smoothing: float | Array = 0.0
    axis: int | None = None
    sample_weight: Array | None = None
    where: Array | None = None
    denominator: Denominator = None
    on_empty: OnEmpty = "nan"
    logit_scale: float | Array = 1.0
    softcap: float | None = None
    z_loss: float = 0.0
    dtype: Any = None
    check: Check = "auto"
    return_stats: bool = False

    def changed(self) -> str:
        """The options that differ from their default, as written in a call."""
        return ", ".join(
            f"{name}={describe(value)}"
            for name, value, default in zip(self._fields, self, DEFAULTS, strict=True)
            if not _equal(value, default)
        )


#: The default of every option: `cross_entropy` names these very objects, so that what a caller
#: left alone is told by identity.
DEFAULTS = Options()


class RowKeywords(TypedDict, total=False):
    """Static types of the keywords beside `weight` and `return_stats`, which have their own place.

    `CrossEntropyLoss` takes the one by position, the other settles what is returned.
    """

    ignore_index: int
    reduction: Reduction
    label_smoothing: float | Array
    sample_weight: Array | None
    where: Array | None
    denominator: Denominator
    on_empty: OnEmpty
    logit_scale: float | Array
    softcap: float | None
    z_loss: float
    dtype: Any
    check: Check


class Keywords(RowKeywords, total=False):
    """The same of logits, whose class axis may be any."""

    axis: int | None


def checked(options: Options) -> Options:
    """Return `options` if each is valid by itself; `DEFAULTS` where none was given."""
    if all(map(is_, options, DEFAULTS)):
        return DEFAULTS
    for name, value, default in zip(Options._fields, options, DEFAULTS, strict=True):
        if value is not default and name in _CHECKS:
            _CHECKS[name](name, value)
    if options.denominator is not None and options.reduction != "mean":
        raise ValueError(
            f"denominator goes with reduction='mean', got reduction={options.reduction!r}"
        )
    return options


def holds_arrays(options: Options) -> bool:
    """Whether an option is an array, or of a type that is not known to be none."""
    return options is not DEFAULTS and not _PLAIN.issuperset(map(type, options))


#: The types of numbers, words and flags.
_PLAIN = frozenset((float, int, str, bool, type(None)))

#: The scalar options: what is expected of a value, in words and as a test. Comparisons alone, which
#: torch.compile can make of a number that it has not made a constant.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "label_smoothing": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "logit_scale": ("finite", lambda value: -math.inf < value < math.inf),
    "softcap": ("positive and finite", lambda value: 0 < value < math.inf),
    "z_loss": ("finite and not negative", lambda value: 0 <= value < math.inf),
    "denominator": ("positive and finite", lambda value: 0 < value < math.inf),
}


def check_range(name: str, value: object, concrete: float | None = None) -> None:
    """Check a scalar option that may be a number or a 0-d array.

    The range of an array is checked once its value is known, which is passed as `concrete`.
    """
    if is_number(value):
        concrete = _as_float(value)
    elif isinstance(value, type) or (shape := getattr(value, "shape", None)) is None:
        raise TypeError(f"{name} must be a number or a 0-d array, got {describe(value)}")
    elif shape != ():
        raise ValueError(f"{name} must be a number or a 0-d array, got shape {tuple(shape)}")
    expected, holds = _RANGES[name]
    if concrete is not None and not holds(concrete):
        raise ValueError(f"{name} must be {expected}, got {concrete}")


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int or a fraction beyond every float
        return math.inf if value > 0 else -math.inf


def describe(value: object) -> str:
    """A short repr: arrays by shape and dtype."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(value, type) or shape is None or dtype is None or is_number(value):
        return repr(value)
    return f"array(shape={tuple(shape)}, dtype={dtype_name(dtype)})"


def _equal(value: object, default: object) -> bool:
    return value is default or (type(value) is type(default) and value == default)


def _check_number(name: str, value: object) -> None:
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {describe(value)}")
    check_range(name, value)


def _check_denominator(name: str, value: object) -> None:
    if not isinstance(value, str):
        check_range(name, value)
    elif value != "rows":
        raise ValueError(f"{name} must be 'rows', a number or a 0-d array; got {value!r}")


def check_integer(name: str, value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        return
    try:
        index(value)
    except TypeError:
        integral = False
    else:
        is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
        integral = not is_bool and getattr(value, "shape", ()) == ()
    if not integral:
        raise TypeError(f"{name} must be an integer, got {describe(value)}")


def _choice(*allowed: str | bool) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if type(value) in (str, bool) and value in allowed:
            return
        error = ValueError if type(value) in map(type, allowed) else TypeError
        choices = ", ".join(map(repr, allowed))
        raise error(f"{name} must be one of {choices}; got {describe(value)}")

    return check


#: Checks of the options by themselves; what arrays they hold is checked against the logits.
_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "ignore_index": check_integer,
    "reduction": _choice("none", "mean", "sum"),
    "label_smoothing": check_range,
    "axis": check_integer,
    "denominator": _check_denominator,
    "on_empty": _choice("nan", "zero", "raise"),
    "logit_scale": check_range,
    "softcap": _check_number,
    "z_loss": _check_number,
    "check": _choice("auto", True, False),
    "return_stats": _choice(True, False),
}
