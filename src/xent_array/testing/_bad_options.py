"""Options that are wrong: by themselves, or beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xent_array.testing._plain import Plain, full

#: A name, what differs from a good call, the exception, its text.
Refusal = tuple[str, dict[str, Any], type[Exception], str]


def bad_options(dtype: str) -> Iterator[Refusal]:
    number = "be a number or a 0-d array"
    for name, value, error, expected in (
        ("reduction", "avg", ValueError, "be one of 'none', 'mean', 'sum'; got 'avg'"),
        ("reduction", None, TypeError, "be one of 'none', 'mean', 'sum'; got None"),
        ("on_empty", "skip", ValueError, "be one of 'nan', 'zero', 'raise'; got 'skip'"),
        ("check", "never", ValueError, "be one of 'auto', True, False; got 'never'"),
        ("check", 1, TypeError, "be one of 'auto', True, False; got 1"),
        ("return_stats", 1, TypeError, "be one of True, False; got 1"),
        ("ignore_index", 0.5, TypeError, "be an integer, got 0.5"),
        ("ignore_index", True, TypeError, "be an integer, got True"),
        ("axis", 1.0, TypeError, "be an integer, got 1.0"),
        ("label_smoothing", 1.5, ValueError, "be in [0, 1], got 1.5"),
        ("label_smoothing", -0.1, ValueError, "be in [0, 1], got -0.1"),
        ("label_smoothing", float("nan"), ValueError, "be in [0, 1], got nan"),
        ("label_smoothing", "0.1", TypeError, f"{number}, got '0.1'"),
        ("label_smoothing", True, TypeError, f"{number}, got True"),
        ("label_smoothing", float, TypeError, f"{number}, got <class 'float'>"),
        ("logit_scale", float("inf"), ValueError, "be finite, got inf"),
        ("softcap", 0.0, ValueError, "be positive and finite, got 0.0"),
        ("softcap", "30", TypeError, "be a number, got '30'"),
        ("z_loss", -1.0, ValueError, "be finite and not negative, got -1.0"),
        ("z_loss", 10**400, ValueError, "be finite and not negative, got inf"),
        (
            "z_loss",
            full((1,), 1.0, dtype),
            TypeError,
            f"be a number, got array(shape=(1,), dtype={dtype})",
        ),
        ("denominator", 0, ValueError, "be positive and finite, got 0.0"),
        ("denominator", "tokens", ValueError, "be 'rows', a number or a 0-d array; got 'tokens'"),
        (
            "dtype",
            "int64",
            TypeError,
            "be a real floating dtype of the array library, got 'int64'",
        ),
    ):
        shown = "array" if isinstance(value, Plain) else str(value)[:9]
        yield f"{name}-{shown}", {name: value}, error, f"{name} must {expected}"
    yield from _combinations(dtype)


def _combinations(dtype: str) -> Iterator[Refusal]:
    advice = "it goes with class indices: leave rows of probabilities out by where="
    yield (
        "denominator-of-a-sum",
        {"denominator": 2.0, "reduction": "sum"},
        ValueError,
        "denominator goes with reduction='mean', got reduction='sum'",
    )
    yield (
        "ignored-probabilities",
        {"target": full((4, 3), 0.5, dtype), "ignore_index": 1},
        ValueError,
        f"ignore_index is 1, but {advice}",
    )
    yield (
        "softcap-beyond-float32",
        {"logits": full((4, 3), 1.0, "float32"), "softcap": 1e39},
        ValueError,
        "softcap must be within the range of float32, got 1e+39",
    )
