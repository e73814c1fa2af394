"""The conformance kit: every library that is here passes it, and what is wrong does not."""

import math
import re
import subprocess
import sys
import unittest
from itertools import product

import numpy as np
import pytest

import xent_array
from xent_array.testing import Library, Report, cases, check
from xent_array.testing.__main__ import main
from xent_array.testing._checks import softmax as check_softmax
from xent_array.testing._oracle import gradient, losses, prediction, truth
from xent_array.testing._plain import along, call, plain, rounded

import oracle
from arrays import DTYPES, make, to_numpy

EVERY = [case for case in cases() if case.group != "values"]


def library(xp, **hooks):
    return Library(
        xp, **{"asarray": lambda x, dtype: make(xp, x, dtype), "to_list": listed} | hooks
    )


def listed(x):
    return to_numpy(x).tolist()


@pytest.mark.parametrize(("number", "case"), [*enumerate(EVERY)], ids=[*map(str, EVERY)])
def test_every_library_conforms(xp, number, case):
    """Of JAX, which compiles each case anew, every third."""
    if xp.__name__ == "jax.numpy" and number % 3:
        pytest.skip("one case in three on JAX")
    case.run(library(xp))


@pytest.mark.library("jax")
@pytest.mark.parametrize("case", EVERY[1::6], ids=str)
def test_compiled(case):
    """Calls inside jax.jit, arrays among the options traced as well: others, one in six."""
    jax = pytest.importorskip("jax")

    def compiled(function, *arguments, **options):
        every = {**dict(enumerate(arguments)), **options}
        names = [name for name, x in every.items() if isinstance(x, jax.Array)]

        def of_traced(*traced):
            filled = every | dict(zip(names, traced, strict=True))
            arrays = [filled.pop(i) for i in range(len(arguments))]
            return function(*arrays, **filled)

        return jax.jit(of_traced)(*(every[name] for name in names))

    with jax.enable_x64(True):
        case.run(library(jax.numpy, call=compiled))


@pytest.mark.needs("values")
@pytest.mark.parametrize("case", cases(groups=["values"]), ids=str)
def test_values_are_looked_at(xp, case):
    """A library that says so is not let off."""
    try:
        case.run(library(xp))
    except unittest.SkipTest as reason:
        pytest.fail(str(reason))


@pytest.mark.needs("half")
@pytest.mark.parametrize("case", cases(["float16", "bfloat16"], ["results"]), ids=str)
def test_half_dtypes(xp, case):
    """Computed in float32 and rounded once."""
    assert case.dtype in DTYPES[xp.__name__]
    case.run(library(xp))


# --- the kit can fail


def spoilt(spoil, only=xent_array.cross_entropy):
    """A way to call that spoils what one function returns."""

    def caller(function, *arrays, **options):
        result = function(*arrays, **options)
        if function is not only:
            return result
        if not isinstance(result, tuple):
            return spoil(result)
        return (spoil(result[0]), *result[1:])

    return caller


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", ["reference", "accuracy", "options"])
def test_a_loss_that_is_off_by_a_hundred_thousandth_fails(dtype, group):
    caller = spoilt(lambda loss: loss * loss.dtype.type(1 + 1e-5))
    report = check(np, call=caller, dtypes=[dtype], groups=[group])
    assert not report.ok
    assert len(report.failed) > len(report.passed)
    assert "times that off" in report.failed[0][1]
    with pytest.raises(AssertionError, match=f"FAILED {group}-"):
        report.raise_if_failed()


def test_a_textbook_loss_fails():
    """Right to 1e-15 of the greatest loss, it has no digits of the small ones."""

    def textbook(function, z, *others, **options):
        (target,) = others or (None,)
        if function is not xent_array.cross_entropy or options != {"reduction": "none"}:
            return function(z, *others, **options)
        lse = np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)) + z.max(axis=1)
        return (
            lse - z[np.arange(len(z)), target] if target.ndim == 1 else (target * -z).sum(1) + lse
        )

    report = check(np, call=textbook, groups=["accuracy"])
    failed = {case for case, _ in report.failed}
    assert {"accuracy-index-10-offset-0-float64", "accuracy-index-2-offset-1e+08-float32"} <= failed
    assert check(np, groups=["accuracy"]).ok


def test_a_gradient_from_the_logsumexp_alone_fails():
    """exp(z - lse) loses the digits that a common offset takes from the logsumexp."""

    def textbook(function, z, target, **options):
        loss, grad = function(z, target, **options)
        if options == {"reduction": "sum"} and target.ndim == 1:
            grad = np.exp(z - xent_array.logsumexp(z)[:, None])
            grad[np.arange(len(z)), target] -= 1
        return loss, grad

    cases_of_offset = [c for c in cases(groups=["gradient"]) if c.name.startswith("gradient-index")]
    failed = [case for case in cases_of_offset if fails(case, np, call=textbook)]
    assert len(failed) == len(cases_of_offset)


def fails(case, xp, **hooks):
    try:
        case.run(library(xp, **hooks))
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.tolist(), "got a <class '(float|list)'> of a <class 'numpy.ndarray'>"),
        (lambda x: x.astype(np.float16), "loss: got dtype float16, expected float64"),
        (lambda x: x[..., None], r"loss: got shape \((3, 2, 1|1,)\), expected \((3, 2)?\)"),
        (lambda x: np.asarray(x * np.nan), r"loss(\[0, 0\])? is nan, expected"),
    ],
    ids=["type", "dtype", "shape", "NaN"],
)
def test_a_result_of_the_wrong_kind_fails(spoil, message):
    for case in cases(["float64"], ["results"]):
        if "cross-entropy-" in case.name and "grad" not in case.name:
            with pytest.raises(AssertionError, match=message):
                case.run(Library(np, call=spoilt(spoil)))


def test_writing_to_the_inputs_fails():
    def careless(function, x, *others, **options):
        result = function(x, *others, **options)
        x[...] = 0.0
        return result

    report = check(np, call=careless, groups=["results"])
    assert not report.passed
    assert all("changed an array" in message for _, message in report.failed)


def test_another_exception_or_text_fails():
    def silent(function, *arrays, **options):
        try:
            return function(*arrays, **options)
        except TypeError:
            return arrays[0]
        except ValueError as error:
            raise ValueError(f"{error}!") from None

    report = check(np, call=silent, groups=["errors", "values"])
    assert {case.partition("-")[0] for case in report.passed} == {"values"}  # IndexError
    messages = " ".join(message for _, message in report.failed)
    assert "got a result, " in messages
    assert "got nan!" in messages


def test_wrong_statistics_fail():
    def off_by_one(function, *arrays, **options):
        loss, stats = function(*arrays, **options)
        return loss, stats._replace(prediction=stats.prediction + 1)

    stats = [case for case in cases(groups=["options"]) if "-stats-" in case.name]
    assert stats
    assert all(fails(case, np, call=off_by_one) for case in stats)


def test_other_exceptions_are_failures_too():
    def broken(function, *arrays, **options):
        raise KeyError("axis")

    report = check(np, call=broken, dtypes=["float32"], groups=["softmax"])
    assert report.failed[0] == ("softmax-softmax-rows-float32", "KeyError: 'axis'")
    assert not report.passed


# --- what a library lacks


def test_dtypes_that_are_not_there_are_skipped():
    report = check(np, dtypes=["bfloat16"], groups=["softmax"])
    assert set(report.skipped) == {
        (str(case), "numpy has no bfloat16") for case in cases(["bfloat16"], ["softmax"])
    }
    assert not report.ok, "nothing was proved"
    assert "skipped 18: numpy has no bfloat16" in str(report)


def test_arrays_of_another_dtype_are_not_taken():
    """As JAX makes them unless 64-bit numbers are switched on."""
    narrow = check(
        np,
        asarray=lambda x, dtype: np.asarray(x, "float32" if dtype == "float64" else dtype),
        groups=["softmax", "options"],
    )
    reasons = {reason for _, reason in narrow.skipped}
    assert reasons == {"asarray makes float32 of float64"}
    assert narrow.ok
    assert {case.rpartition("-")[2] for case in narrow.passed} == {"float32"}


def test_values_that_nobody_looks_at_are_skipped():
    """Their bad rows must be NaN all the same."""

    def unchecked(function, *arrays, **options):
        return function(*arrays, **options | {"check": False})

    report = check(np, call=unchecked, groups=["values"])
    assert [case for case, _ in report.skipped if "index" in case]
    assert not [case for case, _ in report.failed if "index" in case]

    def wrong(function, *arrays, **options):
        return np.nan_to_num(unchecked(function, *arrays, **options))

    report = check(np, call=wrong, groups=["values"])
    assert len([case for case, _ in report.failed if "index" in case]) == 5


def test_arrays_are_read_entry_by_entry_where_they_have_no_list():
    array_api_strict = pytest.importorskip("array_api_strict")
    assert not hasattr(array_api_strict.asarray(1.0), "tolist")
    check(array_api_strict, groups=["results", "softmax"]).raise_if_failed()


def test_lazy_arrays_are_computed_once():
    """Not for each of their entries, which takes as many times as long."""
    da = pytest.importorskip("dask.array")
    from dask.callbacks import Callback

    graphs = []
    with Callback(start=graphs.append):
        assert Library(da).data(da.ones((3, 4))).flat == (1.0,) * 12
    assert len(graphs) == 1


# --- the oracle


def truth_of(z, target, dtype="float64", **options):
    made = {k: plain(v, dtype) if isinstance(v, list) else v for k, v in options.items()}
    kind = dtype if isinstance(target, list) and isinstance(target[0], list) else "int32"
    return call("cross_entropy", plain(z, dtype), plain(target, kind), **made)


def test_the_oracle_by_hand():
    """Four equal logits: each class has a quarter."""
    zeros, log4 = [[0.0] * 4] * 2, math.log(4.0)
    for options, expected in [
        ({}, log4),
        ({"reduction": "sum"}, 2 * log4),
        ({"weight": [1.0, 0.5, 1.0, 3.0]}, log4),
        ({"weight": [1.0, 0.5, 1.0, 3.0], "denominator": "rows"}, 1.75 * log4),
        ({"weight": [1.0, 0.5, 1.0, 3.0], "reduction": "sum", "label_smoothing": 1.0}, 2.75 * log4),
        ({"sample_weight": [2.0, 4.0], "denominator": 12.0}, 0.5 * log4),
        ({"ignore_index": 1}, log4),
        ({"z_loss": 0.5}, log4 + 0.5 * log4**2),
    ]:
        (loss,) = losses(truth_of(zeros, [1, 3], **options))
        assert float(loss) == pytest.approx(expected, rel=1e-15), options
    assert list(map(float, gradient(truth_of(zeros, [1, 3])))) == [
        *(0.125, -0.375, 0.125, 0.125),
        *(0.125, 0.125, 0.125, -0.375),
    ]


def test_the_oracle_of_transformed_logits():
    """log(1 + e) of scaled and capped logits; the derivative of the cap is 1 - tanh²."""
    of = truth_of([[0.0, 0.5]], [0], logit_scale=2.0)
    assert float(losses(of)[0]) == pytest.approx(math.log1p(math.e), rel=1e-15)
    of = truth_of([[0.0, 8.0]], [0], softcap=4.0)
    seen = 4.0 * math.tanh(2.0)
    assert float(losses(of)[0]) == pytest.approx(math.log1p(math.exp(seen)), rel=1e-15)
    slope, p = 1.0 - math.tanh(2.0) ** 2, 1.0 / (1.0 + math.exp(-seen))
    assert list(map(float, gradient(of))) == pytest.approx([-p, p * slope], rel=1e-14)
    assert prediction(truth(of).rows[0]) == 1


@pytest.mark.parametrize(
    ("kind", "weighted", "smoothing", "reduction"),
    [*product(["index", "probabilities"], [False, True], [0.0, 0.25], ["none", "mean", "sum"])],
)
def test_two_oracles_agree(kind, weighted, smoothing, reduction):
    """The kit's, in plain Python, and that of these tests, written apart."""
    rng = np.random.default_rng(5)
    z, weight = rng.normal(size=(5, 4)), rng.random(4) if weighted else None
    target = rng.random((5, 4)) if kind == "probabilities" else np.asarray([0, 1, -100, 3, 1])
    theirs = oracle.cross_entropy(
        z, target, weight=weight, smoothing=smoothing, reduction=reduction
    )
    options = {"weight": weight.tolist()} if weighted else {}
    of = truth_of(
        z.tolist(), target.tolist(), label_smoothing=smoothing, reduction=reduction, **options
    )
    theirs = np.atleast_1d(np.asarray(theirs, float))
    np.testing.assert_allclose(np.asarray(losses(of), float), theirs, rtol=1e-15)
    if reduction != "none":
        options = {"weight": weight, "smoothing": smoothing, "mean": reduction == "mean"}
        theirs = oracle.gradient(z, target, ignore_index=-100, **options).reshape(-1)
        ours = np.asarray(gradient(of), float)
        np.testing.assert_allclose(ours, theirs.astype(float), rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_are_rounded_as_the_dtype_rounds_them(dtype):
    """To nearest, ties to even; infinities and NaN stay."""
    bits = np.asarray(
        [*range(0x3F80_0000, 0x3F82_0000, 0x1000), 0x0000_8000, 0x3F80_8001], "uint32"
    )
    numbers = [*bits.view("float32").astype(float), -0.1, 1 / 3, 1e-7, math.inf, -math.inf]
    ours = [rounded(number, dtype) for number in numbers]
    np.testing.assert_array_equal(ours, to_numpy(make(np, numbers, dtype)))
    assert math.isnan(rounded(math.nan, dtype))


# --- the package


def test_names_are_unique():
    every = [str(case) for case in cases(["float64", "float32", "float16", "bfloat16"])]
    assert len(every) == len(set(every))


def test_an_unknown_group_is_refused():
    with pytest.raises(ValueError, match="no group 'speed': the groups are reference, accuracy"):
        cases(groups=["speed"])


def test_neither_numpy_nor_pytest_is_imported():
    code = (
        "import sys, xent_array.testing as kit; kit.cases(); "
        "assert not {'numpy', 'pytest'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_command(capsys):
    assert main(["numpy", "--dtype", "float32", "--group", "softmax"]) == 0
    assert re.search(
        r"^numpy +passed +failed +skipped\nsoftmax +18 +0 +0\n", capsys.readouterr().out
    )
    assert main(["numpy", "--dtype", "bfloat16", "--group", "softmax"]) == 1
    for wrong in (["numpy", "--group", "speed"], ["no_such_library"]):
        with pytest.raises(SystemExit):
            main(wrong)


def test_a_report_is_a_value():
    report = check(np, dtypes=["float32"], groups=["softmax"])
    assert report == Report(report.library, report.outcomes)
    assert report.library == "numpy"
    assert len(report.passed) == len(cases(["float32"], ["softmax"]))


def test_vectors_along_any_axis():
    x = plain([[[1, 2], [3, 4], [5, 6]]], "int32")
    assert along(x, 1) == [(1, 3, 5), (2, 4, 6)]
    assert along(x, -1) == [(1, 2), (3, 4), (5, 6)]
    assert x.nested() == [[[1, 2], [3, 4], [5, 6]]]


def test_softmax_is_held_to_its_promise():
    of = call("softmax", plain([[0.0, 40.0]], "float64"))
    check_softmax(Library(np), of)
    with pytest.raises(AssertionError, match=r"softmax\[0, 0\] is 0.0"):
        check_softmax(Library(np, call=lambda f, x: np.round(f(x), 10)), of)


def test_without_mpmath_the_error_says_what_to_install():
    code = "import sys; sys.modules['mpmath'] = None; import xent_array.testing"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs mpmath: pip install 'xent_array[testing]'" in run.stderr


def test_it_fails_without_assertions_too():
    """`python -O` leaves `assert` out."""
    code = (
        "import numpy, xent_array.testing as kit; "
        "report = kit.check(numpy, call=lambda f, x, **o: f(2 * x, **o), groups=['softmax']); "
        "raise SystemExit(len(report.failed) < 20)"
    )
    subprocess.run([sys.executable, "-O", "-c", code], check=True)
