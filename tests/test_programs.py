"""Programs: array code on numbers of rows, noted once and done by the host's machine."""

import itertools
import math

import numpy as np
import pytest
import torch

import xent_array
from xent_array import _gather, _kernels

pytest.importorskip("numba")

from xent_array._engines import host as engine
from xent_array._kernels import host
from xent_array._kernels._machine import CLASSES, ONE, ROWS
from xent_array._kernels.columns import CLASSES as OF_CLASSES
from xent_array._kernels.columns import ONE as OF_ALL
from xent_array._kernels.columns import REAL, TRUTH, WHOLE
from xent_array._kernels.columns import ROWS as OF_ROWS
from xent_array._kernels.steps import Steps

pytestmark = pytest.mark.skipif(
    _kernels.why_not_for_host() is not None, reason="kernels are switched off"
)

DTYPES = ["float32", "float64"]
RNG = np.random.default_rng(3)

#: Around the lanes of the machine.
COUNTS = [0, 1, 5, 127, 128, 129, 1000]


class Written:
    """A ledger whose columns are also arrays."""

    def __init__(self, dtype, rows, classes=3, threads=1):
        self.steps = Steps(dtype)
        self.logits = np.zeros((rows, classes), dtype)
        self.kernels = host.Kernels(lambda: threads)
        self.given = {}

    def column(self, name, x, kind=REAL, extent=OF_ROWS):
        self.given[name] = x
        return self.steps.given(name, kind, extent)

    def results(self, *columns):
        program = self.steps.program(columns)
        return self.kernels.run(program, self.logits, self.logits, self.given)


def real(name, *args):
    return args[0].ledger.real(name, *args)


#: What columns are asked for, and the same of arrays: x is real, i is whole, t is a truth.
OPERATIONS = {
    "sum": (lambda x, i, t: x + x * 0.5, lambda x, i, t: x + x * np.asarray(0.5, x.dtype)),
    "difference": (lambda x, i, t: 1.0 - x, lambda x, i, t: np.asarray(1, x.dtype) - x),
    "quotient": (lambda x, i, t: x / (x - 7.0), lambda x, i, t: x / (x - np.asarray(7, x.dtype))),
    "exp": (lambda x, i, t: real("exp", x * x * -1.0), lambda x, i, t: np.exp(-x * x)),
    "log1p": (lambda x, i, t: real("log1p", x * x), lambda x, i, t: np.log1p(x * x)),
    "real": (lambda x, i, t: x.ledger.converted(i, "float64"), lambda x, i, t: i.astype(x.dtype)),
    "number of truth": (lambda x, i, t: t.ledger.converted(t, "int64"), lambda x, i, t: t * 1),
    "less": (lambda x, i, t: x < 0.5, lambda x, i, t: x < 0.5),
    "greater or equal": (lambda x, i, t: x >= 0.5, lambda x, i, t: x >= 0.5),
    "equal": (lambda x, i, t: x == x * 1.0, lambda x, i, t: x == x),
    "whole less": (lambda x, i, t: i < 2, lambda x, i, t: i < 2),
    "whole unequal": (lambda x, i, t: i != 2, lambda x, i, t: i != 2),
    "not": (lambda x, i, t: ~t, lambda x, i, t: ~t),
    "and, or": (lambda x, i, t: (t & (x < 0)) | (i > 1), lambda x, i, t: (t & (x < 0)) | (i > 1)),
    "where": (lambda x, i, t: t.ledger.where(t, x, 0.0), lambda x, i, t: np.where(t, x, 0)),
    "whole where": (lambda x, i, t: t.ledger.where(t, i, 7), lambda x, i, t: np.where(t, i, 7)),
    "finite": (
        lambda x, i, t: x.ledger.noted("finite", (1.0 / x,), TRUTH),
        lambda x, i, t: np.isfinite(1 / x),
    ),
}


@pytest.mark.parametrize("rows", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_it_does_to_arrays(name, dtype, rows):
    x = RNG.standard_normal(rows).astype(dtype)
    x[::5], x[1::7] = 0, np.nan
    i, t = RNG.integers(-3, 4, rows), RNG.random(rows) < 0.5
    written = Written(dtype, rows)
    columns = [
        written.column("x", x),
        written.column("index", i, WHOLE),
        written.column("where", t, TRUTH),
    ]
    of_columns, of_arrays = OPERATIONS[name]
    (found,) = written.results(of_columns(*columns))
    with np.errstate(all="ignore"):
        expected = of_arrays(x, i, t)
    unit = np.finfo(dtype).eps / 2
    np.testing.assert_allclose(found.astype("f8"), expected.astype("f8"), rtol=6 * unit)


@pytest.mark.parametrize("rows", [1, 129, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_sums_lose_nothing(threads, dtype, rows, monkeypatch):
    """Whatever the shares of the rows: the exact sum, rounded."""
    x = (RNG.standard_normal(rows) * 10.0 ** RNG.integers(0, 12, rows)).astype(dtype)
    kept = RNG.random(rows) < 0.5
    for size in (host._SHARE_BYTES, 4096):
        monkeypatch.setattr(host, "_SHARE_BYTES", size)
        written = Written(dtype, rows, threads=threads)
        column, mask = written.column("x", x), written.column("where", kept, TRUTH)
        steps = written.steps
        count = steps.converted(steps.total(mask), dtype)
        total, number = written.results(steps.total(column), count)
        assert total == np.dtype(dtype).type(math.fsum(x.astype(float)))
        assert number == kept.sum()


@pytest.mark.parametrize("classes", COUNTS[1:])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_of_classes_come_first(dtype, classes):
    """Their sum, and those of an index, are known to every row."""
    weight = RNG.random(classes).astype(dtype)
    index, scale = RNG.integers(0, classes, 300), np.asarray(0.3, dtype)
    written = Written(dtype, 300, classes)
    steps = written.steps
    w = written.column("weight", weight, REAL, OF_CLASSES)
    i = written.column("index", index, WHOLE)
    half = w * written.column("scale", scale, REAL, OF_ALL)
    (found,) = written.results(steps.take(half, i) / steps.total(half))
    expected = weight[index] / weight.sum(dtype="f8")
    np.testing.assert_allclose(found, expected.astype(dtype), rtol=4 * np.finfo(dtype).eps)


def test_results_for_all_and_for_each():
    written = Written("float64", 4)
    x = written.column("x", np.arange(4.0))
    total = written.steps.total(x)
    each, all_, whole = written.results(x / total, total, written.steps.where(x < 2.0, 1, 0) + 0)
    np.testing.assert_array_equal(each, np.arange(4) / 6)
    assert all_.shape == ()
    assert all_ == 6
    np.testing.assert_array_equal(whole, [1, 1, 0, 0])


def told(call, target=(0, 2, 1), **options):
    """What the segments of a call's program go through, and which looks at rows and writes."""
    engine._programs.clear()
    _gather._templates.clear()  # with which lie the programs of calls that were made before
    call(np.zeros((3, 4)), np.asarray(target), **options)
    ((program, *_),) = engine._programs.values()
    return [(int(s["extent"]), bool(s["looks"]), bool(s["writes"])) for s in program.segments]


def test_rows_are_looked_at_once():
    """Gradients are written on the way; before, at most, targets are counted."""
    loss, both = xent_array.cross_entropy, xent_array.cross_entropy_and_grad
    once = (ONE, False, False)
    assert told(loss, reduction="none") == [(ROWS, True, False)]
    assert told(loss) == [(ROWS, True, False), once]
    assert told(loss, (0, -100, 1)) == [(ROWS, True, False), once]
    assert told(both) == [(ROWS, True, True), once]
    assert told(both, (0, -100, 1)) == [(ROWS, False, False), (ROWS, True, True), once]
    smooth = {"label_smoothing": 0.1, "weight": np.ones(4)}
    counted = [(ROWS, False, False), (ROWS, True, True), once]
    assert told(both, **smooth) == [(CLASSES, False, False), *counted]


def test_programs_are_bounded(monkeypatch):
    monkeypatch.setattr(engine, "PROGRAMS", 8)
    for classes in range(1, 20):
        xent_array.cross_entropy(np.zeros((3, classes)), np.zeros(3, dtype=int))
        assert 0 < len(engine._programs) <= 8


def test_one_program_serves_any_rows():
    """None at all aside: their mean is not a number."""
    engine._programs.clear()
    for shape in ((3,), (7,), (), (2, 3), (4, 1, 2)):
        logits, target = RNG.standard_normal((*shape, 5)), RNG.integers(0, 5, shape)
        ours = xent_array.cross_entropy(logits, target, axis=-1)
        with _kernels.disabled():
            plain = xent_array.cross_entropy(logits, target, axis=-1)
        np.testing.assert_allclose(ours, plain, rtol=1e-14)
    assert len(engine._programs) == 1
    assert np.isnan(xent_array.cross_entropy(np.zeros((0, 5)), np.zeros(0, int), axis=-1))
    assert len(engine._programs) == 2


def test_a_number_is_no_array_of_its_value():
    """What was written for the one does not serve the other."""
    logits, target = RNG.standard_normal((6, 4)), RNG.integers(0, 4, 6)
    plain = xent_array.cross_entropy(logits, target, reduction="sum")
    for number, array in itertools.permutations([1.0, np.asarray(4.0), 4.0], 2):
        for value in (number, array):
            loss = xent_array.cross_entropy(logits, target, denominator=value)
            assert loss == pytest.approx(plain / float(value), rel=1e-14)
    smooth = {"label_smoothing": 1.0, "reduction": "sum"}
    before = xent_array.cross_entropy(logits, target, **smooth)
    smooth["label_smoothing"] = np.asarray(0.5)
    halfway = xent_array.cross_entropy(logits, target, **smooth)
    assert halfway == pytest.approx((before + plain) / 2, rel=1e-14)


def test_no_program_for_each_number_that_is_divided_by():
    engine._programs.clear()
    logits = torch.randn(600, 100, requires_grad=True)
    for kept in range(10, 20):
        target = torch.randint(0, 100, (600,))
        target[kept:] = -100
        xent_array.cross_entropy(logits, target).backward()
        xent_array.cross_entropy(logits, target, denominator=float(kept)).backward()
    assert len(engine._programs) <= 4


def test_wide_rows_whose_loss_was_array_codes():
    """Read in slabs, they leave no kernel anything to go on with."""
    logits, target = torch.randn(2, 300_000, requires_grad=True), torch.tensor([1, 2])
    with _kernels.disabled():
        loss = xent_array.cross_entropy(logits, target)
    loss.backward()
    expected = torch.softmax(logits.detach(), 1)
    expected[[0, 1], [1, 2]] -= 1
    torch.testing.assert_close(logits.grad, expected / 2)


def test_what_overflows_is_infinite_without_a_warning():
    with np.errstate(all="raise"):
        half = (100 * RNG.standard_normal((30_000, 7))).astype(np.float16)
        assert xent_array.cross_entropy(half, np.zeros(30_000, int), reduction="sum") == np.inf
        options = {"logit_scale": 1e38, "denominator": 1e-37}
        assert xent_array.cross_entropy(np.float32([[0, 1]]), np.asarray([0]), **options) == np.inf


def test_what_is_kept_of_a_result_is_no_more_than_that():
    logits, target = RNG.standard_normal((100, 4)), RNG.integers(0, 4, 100)
    loss, stats = xent_array.cross_entropy(logits, target, reduction="none", return_stats=True)
    for x in (loss, stats.lse):
        assert x.base is None or x.base.nbytes == x.nbytes


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint64", ">i8"])
def test_indices_at_the_ends(dtype):
    logits, ok = np.zeros((3, 100)), np.asarray([0, 99, 5], dtype)
    assert xent_array.cross_entropy(logits, ok) == pytest.approx(math.log(100))
    bad = itertools.chain([100, 127], [] if "u" in dtype else [-1, -128])
    for value in bad:
        with pytest.raises(IndexError, match=rf"target\[1\] is {value}: "):
            xent_array.cross_entropy(logits, np.asarray([0, value, 5], dtype))
