"""The kernels in host memory that read rows of probabilities, beside the truth and array code."""

import itertools

import numpy as np
import pytest

import xent_array
from xent_array import _kernels
from xent_array._kernels import Soft

from arrays import set_budget

pytest.importorskip("numba")

from test_kernels import (
    BFLOAT16,
    DTYPES,
    KERNELS,
    OPTIONS,
    agrees_with_the_array_code,
    compute_dtype,
    laid_out,
    unit_of,
)
from xent_array._kernels import _rows, layouts

pytestmark = pytest.mark.skipif(
    _kernels.why_not_for_host() is not None, reason="kernels are switched off"
)

#: Around a block of lanes, a tile, a stretch, a run of additions, and both kinds of kernel.
WIDTHS = [1, 2, 9, 63, 64, 65, 127, 128, 129, 257, 4097]

#: Layouts of logits and probabilities.
LAYOUTS = [("rows", "rows"), ("class-major", "rows"), ("rows", "apart"), ("reversed", "reversed")]


def probabilities(rng, shape, dtype):
    """Rows of them, some of which are 0, not that of the first class."""
    p = rng.random(shape) * (rng.random(shape) < 0.7) + 0.0
    p[..., 0] += 0.1
    return (p / p.sum(-1, keepdims=True)).astype(dtype)


def wanted(soft):
    """What such a target wants of each class, in long double."""
    q = soft.p.astype(np.longdouble)
    return q if soft.times is None else q * soft.times + soft.plus


def soft_of(rng, p, *, scaled):
    compute = compute_dtype(p.dtype.type)
    if not scaled:
        return Soft(p, None, None)
    return Soft(p, rng.random(p.shape[-1]).astype(compute), 0.25)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", WIDTHS)
def test_statistics_against_exact_sums(classes, dtype, scaled):
    """In long double: sums are within 32 units of rounding, whichever kernel reads the rows."""
    for layout in LAYOUTS:
        statistics_against_exact_sums(classes, dtype, layout, scaled)


def statistics_against_exact_sums(classes, dtype, layout, scaled):
    rng = np.random.default_rng(classes)
    compute, unit = compute_dtype(dtype), unit_of(dtype)
    z = laid_out((4 * rng.standard_normal((5, classes))).astype(dtype), layout[0])
    soft = soft_of(rng, laid_out(probabilities(rng, (5, classes), dtype), layout[1]), scaled=scaled)
    found = KERNELS.soft_stats(z, soft, 0.5, compute, argmax=True)
    exact, q = z.astype(np.longdouble), wanted(soft)
    top, place = exact.max(-1, keepdims=True), exact.argmax(-1)[:, None]
    fall = 0.5 * (exact - top)
    others = np.exp(fall)
    np.put_along_axis(others, place, 0, -1)
    np.testing.assert_array_equal(found.top, top.astype(compute))
    np.testing.assert_array_equal(found.argmax, place)
    np.testing.assert_array_equal(found.label, soft.p.astype(float).argmax(-1)[:, None])
    sums = {"rest": others, "mass": q, "fall": q * fall}
    for name, terms in sums.items():
        theirs = getattr(found, name).astype(np.longdouble)
        total = terms.sum(-1, keepdims=True)
        np.testing.assert_allclose(theirs, total, rtol=32 * unit, err_msg=f"{name}, {layout}")


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 64, 65, 129, 300])
def test_gradients_in_place_and_into_other_memory(classes, dtype, scaled):
    for rows, layout in itertools.product((3, 131), LAYOUTS):
        gradients_in_place_and_into_other_memory(rows, classes, dtype, layout, scaled)


def gradients_in_place_and_into_other_memory(rows, classes, dtype, layout, scaled):
    rng = np.random.default_rng(0)
    z = laid_out(rng.standard_normal((rows, classes)).astype(dtype), layout[0])
    p = laid_out(probabilities(rng, (rows, classes), dtype), layout[1])
    soft, compute = soft_of(rng, p, scaled=scaled), compute_dtype(dtype)
    top, rest, total, factor = rng.random((4, rows, 1)).astype(compute)
    kept = rng.random((rows, 1)) < 0.7
    numbers = {"top": top, "rest": rest, "total": total, "factor": factor, "kept": kept}
    into = np.full((rows, classes), 7, dtype)
    KERNELS.soft_grad(z, into, soft, 0.5, **numbers)
    share = np.exp(0.5 * (z.astype(np.longdouble) - top)) / (1 + rest)
    leads = share * (1 + rest) > 0.5 + rest
    q = wanted(soft)
    expected = np.where(leads, total / (1 + rest) - q, total * share - q) * factor
    expected = np.where(kept, expected, 0)
    scale = {np.float32: 2**-21, np.float64: 2**-50, np.float16: 2**-10, BFLOAT16: 2**-7}[dtype]
    case = f"{rows} rows, {layout}"
    found = into.astype(np.longdouble)
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * scale, err_msg=case)
    KERNELS.soft_grad(z, z, soft, 0.5, **numbers)
    np.testing.assert_array_equal(z.astype(float), into.astype(float), err_msg=case)


@pytest.mark.parametrize("classes", [5, 65, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_confident_row_keeps_the_digits_of_its_gradient(classes, dtype):
    """Of a top that is wanted whole, and of the others: relative to what each of them is."""
    unit, low = unit_of(dtype), dtype(-25)
    z = np.full((2, classes), low, dtype)
    z[:, 1] = 0
    p = np.zeros((2, classes), dtype)
    p[:, 1] = 1
    _, grad = xent_array.cross_entropy_and_grad(z, p, reduction="sum")
    rest = (classes - 1) * np.exp(np.longdouble(low))
    np.testing.assert_allclose(grad[:, 1], np.float64(-rest / (1 + rest)), rtol=32 * unit)
    others = np.float64(np.exp(np.longdouble(low)) / (1 + rest))
    np.testing.assert_allclose(grad[:, 0], others, rtol=32 * unit)


@pytest.mark.parametrize("classes", [5, 200])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_option_means_what_it_means_to_the_array_code(axis, classes, monkeypatch):
    """Loss, statistics and gradient; NaN and infinities among logits and probabilities."""
    rng = np.random.default_rng(0)
    z, p = rng.standard_normal((6, 4, classes)), probabilities(rng, (6, 4, classes), float)
    z[0, 0, 1], z[0, 1, 2], z[0, 2, 3], z[1, 0], z[1, 1, :-1] = np.nan, np.inf, -np.inf, -np.inf, 2
    p[0, 2, 3], p[2, 0, 1], p[2, 1] = 0.0, np.nan, 0.0
    logits, target = np.moveaxis(z, 2, axis), np.moveaxis(p, 2, axis)
    arrays = {
        "weights": rng.random(classes),
        "mask": rng.random((6, 4)) < 0.8,
        "weights of rows": rng.random((6, 4)),
    }
    arrays["mask"][2, 0] = False
    set_budget(monkeypatch, 8 * classes * 5)
    every = itertools.product(*{**OPTIONS, "ignore_index": [-100]}.values())
    agrees_with_the_array_code(logits, target, axis, arrays, every)


def test_which_dtypes_go_together():
    """Those that are computed in the same one; others are read by array code."""
    narrow = {np.float32, np.float16, BFLOAT16}
    for dtype, other in itertools.product((*narrow, np.float64), repeat=2):
        together = dtype is other or {dtype, other} <= narrow
        assert KERNELS.suits(1, np.ones((2, 3), dtype), None, np.ones((2, 3), other)) == together


@pytest.mark.parametrize("dtypes", [(BFLOAT16, np.float32), (np.float32, np.float64)])
@pytest.mark.parametrize("classes", [40, 300])
def test_probabilities_of_another_dtype(classes, dtypes):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((50, classes)).astype(dtypes[0])
    p = probabilities(rng, z.shape, dtypes[1])
    loss, grad = xent_array.cross_entropy_and_grad(z, p)
    with _kernels.disabled():
        plain, expected = xent_array.cross_entropy_and_grad(z, p)
    tolerance = {"rtol": 1e-2 if dtypes[0] is BFLOAT16 else 1e-5, "atol": 1e-8}
    np.testing.assert_allclose(float(loss), float(plain), **tolerance)
    np.testing.assert_allclose(grad.astype(float), expected.astype(float), **tolerance)


#: Views that kernels read from copies: of what, and how.
SCATTERED = {
    "every other class": ((40, 2 * 300), lambda x: x[:, ::2]),
    "few pixels": ((70, 300, 4), lambda x: np.moveaxis(x, 1, -1)),
    "pixels left out": ((3, 21, 40, 30), lambda x: np.moveaxis(x[:, :, ::2, ::3], 1, -1)),
}


@pytest.mark.parametrize("which", ["logits", "probabilities", "both"])
@pytest.mark.parametrize("view", SCATTERED)
def test_scattered_rows_are_read_from_copies(view, which):
    """To the last bit they give what their contiguous copies give."""
    shape, look = SCATTERED[view]
    rng = np.random.default_rng(1)
    z, p = (look(x) for x in (rng.standard_normal(shape), rng.random(shape)))
    dense = np.ascontiguousarray(z), np.ascontiguousarray(p)
    logits = dense[0] if which == "probabilities" else z
    target = dense[1] if which == "logits" else p
    assert not layouts.lie_well(logits, target)
    options = {"axis": -1, "reduction": "none", "label_smoothing": 0.1, "return_stats": True}
    expected = xent_array.cross_entropy_and_grad(*dense, **options)
    found = xent_array.cross_entropy_and_grad(logits, target, **options)
    for ours, theirs in zip((*found[:2], *found[2]), (*expected[:2], *expected[2]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_probabilities_are_not_written_to():
    rng = np.random.default_rng(0)
    for shape in ((300, 200), (3, 200, 70), (40, 10)):
        z, p = rng.standard_normal(shape), rng.random(shape)
        kept, p.flags.writeable = p.copy(), False
        xent_array.cross_entropy_and_grad(z, p, out=z)
        np.testing.assert_array_equal(p, kept)


def used(along):
    """How often the compiler had a kernel for soft targets to make."""
    return len(_rows.RUN[along, True].signatures)


@pytest.mark.library("torch")
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("classes", [10, 70])
def test_tensors_are_read_by_the_kernels(name, classes):
    """The same numbers as NumPy's, to the last bit, for they are computed by the same code."""
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    logits = torch.randn(300, classes).to(dtype).requires_grad_()
    target = torch.softmax(torch.randn(300, classes), 1).to(dtype)
    loss = xent_array.cross_entropy(logits, target, label_smoothing=0.1)
    loss.backward()

    def numpy(x):
        flat = x.detach()
        return flat.view(torch.int16).numpy().view(BFLOAT16) if name == "bfloat16" else flat.numpy()

    ours, grad = xent_array.cross_entropy_and_grad(
        numpy(logits), numpy(target), label_smoothing=0.1
    )
    assert loss.item() == float(ours)
    theirs = logits.grad.double().numpy()
    assert used(along=classes >= 65)
    np.testing.assert_allclose(theirs, grad.astype(float), rtol=2e-2 if "16" in name else 1e-5)


@pytest.mark.library("torch")
@pytest.mark.parametrize("watched", ["loss", "gradient"])
def test_torch_and_kernels_take_turns(watched):
    """One evaluates the loss, as something watches torch's operations, the other its gradient."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    logits = torch.randn(500, 100, requires_grad=True)
    target = torch.softmax(torch.randn(500, 100), 1)
    expected = xent_array.cross_entropy(logits, target, label_smoothing=0.1)
    (grad,) = torch.autograd.grad(expected, logits)
    if watched == "loss":
        with FlopCounterMode(display=False):
            loss = xent_array.cross_entropy(logits, target, label_smoothing=0.1)
        (found,) = torch.autograd.grad(loss, logits)
    else:
        loss = xent_array.cross_entropy(logits, target, label_smoothing=0.1)
        with FlopCounterMode(display=False):
            (found,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, grad)


@pytest.mark.library("jax")
def test_jax_has_them_read_by_the_kernels():
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 200)).astype(np.float32)
    p = probabilities(rng, z.shape, np.float32)
    ours, grad = xent_array.cross_entropy_and_grad(z, p, label_smoothing=0.1)
    loss = jax.value_and_grad(
        lambda x: xent_array.cross_entropy(x, jax.numpy.asarray(p), label_smoothing=0.1)
    )
    assert "xent_array_evaluation" in str(jax.make_jaxpr(loss)(z))
    value, theirs = jax.jit(loss)(z)
    np.testing.assert_allclose(value, ours, rtol=1e-6)
    np.testing.assert_allclose(theirs, grad, rtol=1e-5, atol=1e-9)


@pytest.mark.library("dask")
@pytest.mark.parametrize("chunks", [(100, 200), (100, 70)])
def test_chunks_of_whole_rows_are_read_by_them(chunks):
    da = pytest.importorskip("dask.array")
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 200))
    p = probabilities(rng, z.shape, z.dtype)
    options = {"label_smoothing": 0.1, "return_stats": True, "reduction": "none"}
    expected = xent_array.cross_entropy_and_grad(z, p, **options)
    lazy = (da.from_array(x, chunks=chunks) for x in (z, p))
    found = xent_array.cross_entropy_and_grad(*lazy, **options)
    for ours, theirs in zip((*found[:2], *found[2]), (*expected[:2], *expected[2]), strict=True):
        np.testing.assert_allclose(ours.compute(), theirs, rtol=1e-12, atol=1e-16)
