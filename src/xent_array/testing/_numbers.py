"""Cases of what numbers come out: against the formula, at any confidence, and derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from xent_array.testing._checks import Check, gradient, loss
from xent_array.testing._draws import Draw, ignored, offsets, one_hot, transposed
from xent_array.testing._plain import Call, Plain, call, full, plain, shaped

#: The name of a case, what it does, and with which call.
Entry = tuple[str, Check, Call]

KINDS = ("index", "probabilities")
REDUCTIONS = ("none", "mean", "sum")

#: Shape of the logits, `axis`, and the class axis that it means.
_LAYOUTS: dict[str, tuple[tuple[int, ...], int | None, int]] = {
    "C": ((5,), None, 0),
    "NCd": ((3, 5, 4), None, 1),
    "NdC": ((3, 4, 5), -1, 2),
    "CNd": ((5, 3, 4), 0, 0),
}


def reference(dtype: str) -> Iterator[Entry]:
    """The formula over the product of torch's own options, then over layouts."""
    draw = Draw(1, dtype)
    logits, weight = draw.normal(6, 5), plain([0.5, 1.0, 2.0, 0.0, 1.5], dtype)
    targets = {kind: draw.target(kind, (6, 5)) for kind in KINDS}
    for kind, weighted, smoothing, reduction in product(KINDS, (0, 1), (0.0, 0.3), REDUCTIONS):
        words = [kind, *["weighted"] * weighted, *["smooth"] * bool(smoothing), reduction]
        yield (
            "-".join(words),
            loss,
            call(
                "cross_entropy",
                logits,
                targets[kind],
                weight=weight if weighted else None,
                label_smoothing=smoothing,
                reduction=reduction,
            ),
        )
    for (name, (shape, axis, classes)), (kind, reduction) in product(
        _LAYOUTS.items(), zip(KINDS, ("none", "mean"), strict=True)
    ):
        arguments = draw.normal(*shape), draw.target(kind, shape, classes)
        options = {"label_smoothing": 0.3, "axis": axis, "reduction": reduction}
        yield (
            f"{name}-{kind}-{reduction}",
            loss,
            call("cross_entropy", *arguments, weight=weight, **options),
        )


def accuracy(dtype: str) -> Iterator[Entry]:
    """Relative precision at any margin, offset, number of classes and layout."""
    yield from _hot_targets(dtype)
    yield from _soft_targets(dtype)
    yield from _transformed(dtype)
    draw = Draw(5, dtype)
    for reduction in ("mean", "sum"):
        arguments = draw.confident(10, margins=(20.0, 40.0, 60.0, 80.0))
        yield f"confident-{reduction}", loss, _rows(*arguments, reduction=reduction)
    z, target = draw.confident(1000)
    yield "classes-first", loss, _rows(transposed(z), target, axis=0)
    yield "sums-above-one", loss, _rows(_sums_above_one(dtype), full((5,), 0, "int32"))


def _rows(logits: Plain, target: Plain, *, reduction: str = "none", **options: object) -> Call:
    return call("cross_entropy", logits, target, reduction=reduction, **options)


def _hot_targets(dtype: str) -> Iterator[Entry]:
    for classes, offset in product((2, 10, 1000), offsets(dtype, 0.0, 1e4, 1e8)):
        z, target = Draw(classes, dtype).confident(classes, offset)
        yield f"index-{classes}-offset-{offset:g}", loss, _rows(z, target)
    for classes, offset in product((10, 1000), (0.0, 1e4)):
        z, target = Draw(classes, dtype).confident(classes, offset)
        hot = one_hot(target, classes, dtype)
        yield f"one-hot-{classes}-offset-{offset:g}", loss, _rows(z, hot)


def _soft_targets(dtype: str) -> Iterator[Entry]:
    for offset in offsets(dtype, 0.0, 1e8):
        draw = Draw(2, dtype)
        z, target = draw.confident(10, offset)
        weight, p = draw.positive(10), draw.probabilities(z.shape, 1)
        for name, wants, options in (
            ("smooth", target, {"label_smoothing": 0.1}),
            ("smooth-weighted", target, {"label_smoothing": 0.1, "weight": weight}),
            ("fully-smooth", target, {"label_smoothing": 1.0}),
            ("probabilities", p, {}),
            ("probabilities-weighted", p, {"label_smoothing": 0.1, "weight": weight}),
        ):
            yield f"{name}-offset-{offset:g}", loss, _rows(z, wants, **options)


def _transformed(dtype: str) -> Iterator[Entry]:
    """A scale is applied below the top, where it costs no digits of the offset."""
    for scale, offset in product((10.0, 0.1, -3.0), (0.0, 1e4)):
        draw = Draw(3, dtype)
        z = shaped([value / 8 + offset for value in draw.normal(7, 10).flat], (7, 10), dtype)
        rows = [z.flat[i : i + 10] for i in range(0, 70, 10)]
        best = max if scale > 0 else min
        target = plain([row.index(best(row)) for row in rows], "int32")
        yield f"scale-{scale:g}-offset-{offset:g}", loss, _rows(z, target, logit_scale=scale)
    for softcap in (5.0, 30.0):
        yield f"softcap-{softcap:g}", loss, _rows(*Draw(4, dtype).confident(10), softcap=softcap)


def _sums_above_one(dtype: str) -> Plain:
    """Many equal logits below one top: the sum's error is not multiplied when its 1 is taken."""
    below = [math.log(rest / 999) for rest in (0.4, 0.5, 0.9, 1.9, 2.1)]
    return plain([[0.0] + [value] * 999 for value in below], dtype)


def derivatives(dtype: str) -> Iterator[Entry]:
    """`cross_entropy_and_grad`: confident rows, every option, what it is multiplied by."""
    yield from _confident_derivatives(dtype)
    yield from _every_option(dtype)
    yield from _upstream(dtype)
    draw = Draw(8, dtype)
    z, target = draw.normal(4, 3), draw.indices((4,), 3)
    yield "mean-of-nothing", gradient, _grad(z, ignored(4))
    yield "zero-of-nothing", gradient, _grad(z, ignored(4), on_empty="zero")
    none = Plain((), (0, 3), dtype), Plain((), (0,), "int32")
    yield "no-rows", gradient, _grad(*none, reduction="sum")
    yield "ties", gradient, _grad(full((3, 3), 3.0, dtype), plain([0, 1, 2], "int32"))
    bad = plain([0, 9, -1, 2], "int32")
    yield "bad-index", gradient, _grad(z, bad, check=False, reduction="sum")
    yield "stats", gradient, _grad(z, target, return_stats=True)
    for name, shape, axis in (("classes-first", (5, 3, 4), 0), ("classes-last", (3, 4, 5), -1)):
        arguments = draw.normal(*shape), draw.target("index", shape, axis)
        yield name, gradient, _grad(*arguments, axis=axis)


def _grad(logits: Plain, target: Plain, **options: object) -> Call:
    return call("cross_entropy_and_grad", logits, target, **options)


def _confident_derivatives(dtype: str) -> Iterator[Entry]:
    for classes, offset in product((2, 10, 1000), offsets(dtype, 0.0, 1e4, 1e8)):
        z, target = Draw(classes, dtype).confident(classes, offset, (0.0, 1.0, 17.0, 80.0))
        name = f"{classes}-offset-{offset:g}"
        yield f"index-{name}", gradient, _grad(z, target, reduction="sum")
        if classes == 10:
            hot = one_hot(target, classes, dtype)
            yield f"one-hot-{name}", gradient, _grad(z, hot, reduction="sum")
    for smoothing in (1e-3, 0.1):
        z, target = Draw(6, dtype).confident(4, 0.0, (0.0, 5.0, 20.0))
        smooth = _grad(z, target, label_smoothing=smoothing, reduction="none")
        yield f"smooth-{smoothing:g}", gradient, smooth
    steep = plain([[80.0, 0.0, 1.0], [-80.0, 3.0, 20.0]], dtype)
    target = plain([1, 2], "int32")
    yield "steep-softcap", gradient, _grad(steep, target, softcap=5.0, reduction="sum")


def _every_option(dtype: str) -> Iterator[Entry]:
    draw = Draw(7, dtype)
    z, weight, sample_weight = draw.normal(6, 4), draw.positive(4), draw.positive(6)
    options = {
        "weight": weight,
        "sample_weight": sample_weight,
        "where": plain([True, False, True, True, False, True], "bool"),
        "label_smoothing": 0.1,
        "z_loss": 0.05,
    }
    for kind, reduction, (scale, softcap) in product(KINDS, REDUCTIONS, ((1.0, None), (-0.7, 3.0))):
        name = f"every-option-{kind}-{reduction}" + "-capped" * bool(softcap)
        transformed = {"logit_scale": scale, "softcap": softcap, "reduction": reduction}
        yield name, gradient, _grad(z, draw.target(kind, (6, 4)), **options, **transformed)


def _upstream(dtype: str) -> Iterator[Entry]:
    draw = Draw(9, dtype)
    z, target = draw.normal(6, 4), draw.indices((6,), 4)
    for name, factor, reduction in (
        ("each-row", draw.positive(6), "none"),
        ("0d", plain(2.5, dtype), "none"),
        ("mean", plain(3.0, dtype), "mean"),
    ):
        options = {"grad_output": factor, "reduction": reduction}
        yield f"grad-output-{name}", gradient, _grad(z, target, **options)
