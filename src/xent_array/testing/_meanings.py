"""Cases of what the arguments mean: options, rows that are not finite, kinds of result, softmax."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from xent_array.testing._checks import gradient, kind, loss, softmax
from xent_array.testing._draws import Draw, ignored, offsets, one_hot
from xent_array.testing._numbers import KINDS, REDUCTIONS, Entry
from xent_array.testing._plain import Call, Dtype, Plain, along, call, full, plain

INF, NAN = float("inf"), float("nan")
_KEPT = plain([True, False, True, True, False, True], "bool")


def _loss(logits: Plain, target: Plain, **options: object) -> Call:
    return call("cross_entropy", logits, target, **options)


def options(dtype: str) -> Iterator[Entry]:
    """Every keyword beside torch's own, and what of torch's the reference leaves out."""
    yield from _row_arguments(dtype)
    yield from _denominators(dtype)
    yield from _nothing(dtype)
    yield from _indices(dtype)
    yield from _logits(dtype)
    yield from _dtypes(dtype)
    yield from _statistics(dtype)


def _row_arguments(dtype: str) -> Iterator[Entry]:
    draw = Draw(11, dtype)
    z, weight, factors = draw.normal(6, 4), draw.positive(4), draw.positive(6)
    images, column = draw.normal(3, 4, 2), draw.positive(3, 1)
    for name in KINDS:
        target, wide = draw.target(name, (6, 4)), draw.target(name, (3, 4, 2))
        rows = {"sample_weight": factors, "where": _KEPT}
        for reduction in ("none", "mean"):
            weighed = _loss(z, target, sample_weight=factors, reduction=reduction)
            yield f"sample-weight-{name}-{reduction}", loss, weighed
            masked = _loss(z, target, where=_KEPT, weight=weight, reduction=reduction)
            yield f"where-{name}-{reduction}", loss, masked
            every = _loss(z, target, **rows, weight=weight, z_loss=0.1, reduction=reduction)
            yield f"all-weights-{name}-{reduction}", loss, every
        scalar = _loss(z, target, sample_weight=plain(0.5, dtype), where=plain(True, "bool"))
        yield f"0d-{name}", loss, scalar
        mask = plain([[True], [False], [True]], "bool")
        spread = _loss(images, wide, sample_weight=column, where=mask, reduction="none")
        yield f"broadcast-{name}", loss, spread


def _denominators(dtype: str) -> Iterator[Entry]:
    draw = Draw(12, dtype)
    z, options = draw.normal(6, 4), {"weight": draw.positive(4), "where": _KEPT}
    for name, divisor in (
        ("rows", "rows"),
        ("number", 12.0),
        ("0d", plain(12.0, dtype)),
        ("0d-int", plain(12, "int32")),
    ):
        for target in KINDS if name == "rows" else KINDS[:1]:
            wants = draw.target(target, (6, 4))
            divided = _loss(z, wants, **options, denominator=divisor)
            yield f"denominator-{name}-{target}", loss, divided


def _nothing(dtype: str) -> Iterator[Entry]:
    """Means of no rows, and of rows that weigh nothing."""
    draw = Draw(13, dtype)
    z, none = draw.normal(6, 4), full((6,), False, "bool")
    for name in KINDS:
        target = draw.target(name, (6, 4))
        yield f"weightless-{name}", loss, _loss(z, target, sample_weight=full((6,), 0.0, dtype))
        for empty in ("nan", "zero"):
            yield f"on-empty-{empty}-{name}", loss, _loss(z, target, where=none, on_empty=empty)
    yield "on-empty-denominator", loss, _loss(z, ignored(6), denominator=3.0)
    yield "on-empty-sum", loss, _loss(z, ignored(6), reduction="sum", on_empty="raise")
    for reduction in REDUCTIONS:
        nothing = Plain((), (0, 4), dtype), Plain((), (0,), "int32")
        yield f"no-rows-{reduction}", loss, _loss(*nothing, reduction=reduction)


def _indices(dtype: str) -> Iterator[Entry]:
    draw = Draw(14, dtype)
    z, labels = draw.normal(6, 4), [0, 3, 1, 2, 2, 0]
    some = plain([0, -100, 1, -100, 2, 0], "int32")
    yield "ignore-index", loss, _loss(z, some)
    for name in ("int8", "int64", "uint8", "uint64"):
        target = plain(labels, name)
        yield f"ignore-index-{name}", loss, _loss(z, target, ignore_index=2, reduction="none")
    wide = full((2, 200), 0.0, dtype)  # 156 is -100 modulo 256
    yield "ignore-index-unsigned", loss, _loss(wide, plain([156, 3], "uint8"), reduction="none")
    beyond = _loss(wide, plain([156, 3], "uint8"), ignore_index=2**80 + 3, reduction="none")
    yield "ignore-index-beyond", loss, beyond
    # Rows whose prediction is class 0, which may be read in place of a bad index.
    first, bad = (
        plain([[3.0, 0.5, 1.0, 2.0]] * 6, dtype),
        plain([0, 1003, -1, 4, -101, -100], "int32"),
    )
    for reduction in ("none", "mean"):
        unchecked = _loss(first, bad, check=False, reduction=reduction, return_stats=True)
        yield f"bad-index-{reduction}", loss, unchecked
    masked = plain([0, 1003, 1, 2, -7, 3], "int32")
    yield "masked-bad-index", loss, _loss(z, masked, where=_KEPT)


def _logits(dtype: str) -> Iterator[Entry]:
    draw = Draw(15, dtype)
    z, target = draw.normal(6, 4), draw.indices((6,), 4)
    for name, scale in (("2", 2.0), ("negative", -0.5), ("0", 0.0), ("0d", plain(-2.0, dtype))):
        yield f"logit-scale-{name}", loss, _loss(z, target, logit_scale=scale, reduction="none")
    yield "scaled-softcap", loss, _loss(z, target, softcap=3.0, logit_scale=2.0)
    yield "z-loss", loss, _loss(z, target, z_loss=0.1, logit_scale=2.0, reduction="none")
    yield "label-smoothing-0d", loss, _loss(z, target, label_smoothing=plain(0.2, dtype))


def _dtypes(dtype: str) -> Iterator[Entry]:
    """The dtype of the result, and of arrays beside the logits."""
    draw = Draw(16, dtype)
    z, target = draw.normal(6, 4), draw.indices((6,), 4)
    other = "float32" if dtype == "float64" else "float64"
    chosen = _loss(z, target, dtype=Dtype(other), return_stats=True, reduction="none")
    yield f"dtype-{other}", loss, chosen
    mixed = {
        "weight": plain([0.5, 1.0, 2.0, 1.5], other),
        "sample_weight": plain([1.0, 0.5, 2.0, 0.0, 3.0, 1.0], other),
        "logit_scale": plain(2.0, other),
    }
    p = plain([[0.5, 0.25, 0.125, 0.125]] * 6, other)
    yield f"arrays-of-{other}", loss, _loss(z, p, **mixed)


def _statistics(dtype: str) -> Iterator[Entry]:
    draw = Draw(17, dtype)
    z = draw.normal(6, 4)
    for name in KINDS:
        target = draw.target(name, (6, 4))
        kept = {"where": _KEPT, "return_stats": True}
        yield f"stats-{name}", loss, _loss(z, target, **kept)
        seen = _loss(z, target, logit_scale=-2.0, softcap=3.0, return_stats=True)
        yield f"stats-capped-{name}", loss, seen
    ties = plain([[0.0, 2.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype)
    yield "stats-ties", loss, _loss(ties, plain([1, 1, -100], "int32"), return_stats=True)
    images = draw.normal(2, 4, 3), draw.target("index", (2, 4, 3))
    yield "stats-NCd", loss, _loss(*images, return_stats=True)


#: Logits that are not finite, a class index, and what is special about them.
_ROWS = [
    ([0.0, NAN, 1.0, 2.0], 0),
    ([0.0, NAN, 1.0, 2.0], 1),
    ([NAN, INF, -INF, 0.0], 3),
    ([0.0, INF, 1.0, 2.0], 0),
    ([0.0, INF, 1.0, 2.0], 1),
    ([INF, INF, INF, INF], 1),
    ([-INF, -INF, -INF, -INF], 1),
    ([0.0, -INF, 0.0, 0.0], 1),
    ([-INF, -INF, -INF, 5.0], 0),
    ([0.0, -INF, 0.0, -INF], 0),
    ([-INF, -INF, 3.0, -INF], 2),
    ([0.0, 1.0, 2.0, 3.0], 3),
]


def non_finite(dtype: str) -> Iterator[Entry]:
    """NaN and infinities, in rows that count and in rows that do not."""
    z = plain([row for row, _ in _ROWS], dtype)
    target = plain([label for _, label in _ROWS], "int32")
    hot = one_hot(target, 4, dtype)
    for name, wants in (("index", target), ("one-hot", hot)):
        rows = _loss(z, wants, reduction="none", return_stats=True)
        yield f"{name}-rows", loss, rows
        grad = call("cross_entropy_and_grad", z, wants, reduction="sum")
        yield f"{name}-gradient", gradient, grad
    impossible, second = plain([0.0, -INF, 0.0, 0.0], dtype), plain(1, "int32")
    free = plain([1.0, 0.0, 1.0, 1.0], dtype)
    for name, smoothing in (("", 0.0), ("-smooth", 0.4)):
        for kind_of, wants in (
            ("index", second),
            ("probabilities", one_hot(second, 4, dtype)),
        ):
            weighted = {"weight": free, "label_smoothing": smoothing, "reduction": "sum"}
            yield f"zero-weight-{kind_of}{name}", loss, _loss(impossible, wants, **weighted)
    yield "smoothed", loss, _loss(impossible, plain(0, "int32"), label_smoothing=0.1)
    yield from _inert(dtype)


def _inert(dtype: str) -> Iterator[Entry]:
    """Rows that do not count are exactly 0, whatever they hold; a sample weight of 0 counts."""
    good = [1.0, 2.0, 3.0, 4.0]
    z = plain([good, [NAN] * 4, [INF] * 4, [-INF] * 4, [NAN, INF, 0.0, -INF], good], dtype)
    unused, kept = [0, -100, -100, -100, -100, 3], [True, False, False, False, False, True]
    masked = {"where": plain(kept, "bool")}
    junk = plain([[0.25] * 4, *[[NAN] * 4] * 4, [0.25] * 4], dtype)
    weights = plain([2.0, NAN, NAN, INF, 0.0, 1.0], dtype)
    for reduction in ("none", "mean"):
        for name, target, options in (
            ("ignored", plain(unused, "int32"), {}),
            ("masked", plain([abs(i) for i in unused], "int32"), masked),
            ("masked-probabilities", junk, {**masked, "sample_weight": weights}),
        ):
            arguments = {"reduction": reduction, **options}
            yield (
                f"inert-{name}-{reduction}",
                gradient,
                call("cross_entropy_and_grad", z, target, **arguments),
            )
    zero = {"sample_weight": full((6,), 0.0, dtype), "reduction": "none"}
    yield "weight-0-counts", loss, _loss(z, full((6,), 0, "int32"), **zero)


def results(dtype: str) -> Iterator[Entry]:
    """Results are arrays of the same library, device and dtype; inputs are as they were."""
    draw = Draw(18, dtype)
    z, x = draw.normal(3, 4, 2), draw.normal(3, 4)
    targets = {name: draw.target(name, (3, 4, 2)) for name in KINDS}
    for name, reduction in product(KINDS, ("none", "mean")):
        returned = {"reduction": reduction, "return_stats": True}
        for function in ("cross_entropy", "cross_entropy_and_grad"):
            words = function.replace("_", "-"), name, reduction
            yield "-".join(words), kind, call(function, z, targets[name], **returned)
    frozen = {"weight": draw.positive(4), "label_smoothing": 0.1}
    yield "CrossEntropyLoss", kind, call("CrossEntropyLoss", z, targets["index"], **frozen)
    for function in ("softmax", "log_softmax", "logsumexp"):
        yield function.replace("_", "-"), kind, call(function, x)


def softmaxes(dtype: str) -> Iterator[Entry]:
    """softmax, log_softmax and logsumexp along any axis, of any row."""
    draw = Draw(19, dtype)
    rows = plain([row for row, _ in _ROWS], dtype)
    offset, _ = draw.confident(10, offsets(dtype, 1e4, 1e8)[-1])
    confident = Plain(along(offset, 1)[-1], (10,), dtype)
    for function, (name, x, options) in product(
        ("softmax", "log_softmax", "logsumexp"),
        (
            ("rows", draw.normal(4, 5), {}),
            ("columns", draw.normal(4, 5), {"axis": 0}),
            ("middle", draw.normal(2, 5, 3), {"axis": -2}),
            ("confident", draw.confident(10)[0], {}),
            ("offset", confident, {}),
            ("non-finite", rows, {}),
        ),
    ):
        yield f"{function.replace('_', '-')}-{name}", softmax, call(function, x, **options)
