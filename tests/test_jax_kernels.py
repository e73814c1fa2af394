"""JAX on the CPU, its buffers read by kernels: what array code means, under every transform."""

import contextlib
import functools

import numpy as np
import pytest

import xent_array
from test_jax import given, run
from xent_array import _kernels
from xent_array.__main__ import served_by
from xent_array.testing import check

jax = pytest.importorskip("jax")
jnp = jax.numpy
engine = pytest.importorskip("xent_array._engines.jax")
buffers = pytest.importorskip("xent_array._engines._jax_buffers")

pytestmark = [
    pytest.mark.library("jax"),
    pytest.mark.skipif(_kernels.why_not_for_host() is not None, reason="kernels are switched off"),
]

RNG = np.random.default_rng(23)
LOGITS = RNG.normal(size=(6, 5)) * 2
LOGITS[2, 3] = LOGITS[2, 1] = 5.0  # a tie, of which a maximum has other derivatives
TARGET = np.asarray([0, 3, -100, 2, 2, 1])
WEIGHT = np.asarray([0.5, 1.0, 2.0, 1.5, 0.2])
ROWS = RNG.random(6)
OPTIONS = {
    "plain": {},
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum", "sample_weight": ROWS},
    "smoothed": {"weight": WEIGHT, "label_smoothing": 0.1, "z_loss": 0.05},
    "scaled": {"logit_scale": 0.7, "where": TARGET != 2, "denominator": "rows"},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
SOME_OPTIONS = pytest.mark.parametrize(
    "options", [OPTIONS["none"], OPTIONS["smoothed"]], ids=["none", "smoothed"]
)


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    """Have kernels read the smallest calls too, of any classes, and count how often they do."""
    write, calls = buffers._write, []

    def counted(*args):
        calls.append(args)
        write(*args)

    monkeypatch.setattr(buffers, "WORTH_A_CALL", 0)
    monkeypatch.setattr(buffers, "_write", counted)
    monkeypatch.setattr(engine, "are_few", lambda _classes: False)
    jax.clear_caches()
    with jax.enable_x64(True):
        yield calls


def of_logits(options, *, kernels=True):
    """The loss as a function of the logits, by kernels or by array code."""

    def loss(z):
        with contextlib.nullcontext() if kernels else _kernels.disabled():
            return xent_array.cross_entropy(z, jnp.asarray(TARGET), **given(options))

    return loss


def total(options, **how):
    """The same added up, so that it has a gradient."""
    loss = of_logits(options, **how)
    return lambda z: jnp.sum(loss(z) ** 2)


@EVERY_OPTION
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_what_numpys_kernels_say(options, dtype, of_any_size):
    z = jnp.asarray(LOGITS).astype(dtype)
    options = {n: x.astype(np.float32) if x is WEIGHT else x for n, x in options.items()}
    if dtype == "float64":
        options = {n: x.astype(np.float64) if n == "weight" else x for n, x in options.items()}
    loss, grad, stats = xent_array.cross_entropy_and_grad(
        z, jnp.asarray(TARGET), return_stats=True, **given(options)
    )
    assert of_any_size
    expected = xent_array.cross_entropy_and_grad(
        np.asarray(z), TARGET, return_stats=True, **options
    )
    for ours, theirs in zip((loss, grad, *stats), (*expected[:2], *expected[2]), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(ours), theirs)


@EVERY_OPTION
@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["eager", "jit", "remat"]
)
def test_gradients(options, wrap, of_any_size):
    z = jnp.asarray(LOGITS)
    expected = jax.value_and_grad(total(options, kernels=False))(z)
    assert not of_any_size
    found = jax.value_and_grad(wrap(total(options)))(z)
    assert of_any_size
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)


def scanned(function):
    """The same as the last of two rounds of a loop."""

    def looped(z):
        return jax.lax.scan(lambda _, __: (function(z), None), jnp.zeros(()), jnp.arange(2))[0]

    return looped


@SOME_OPTIONS
@pytest.mark.parametrize("wrap", [lambda f: f, scanned], ids=["eager", "scan"])
def test_second_order(options, wrap):
    """Whatever JAX forgets of the rule for the loss: in a loop it takes apart, for one."""
    z, direction = jnp.asarray(LOGITS), jnp.cos(jnp.arange(30.0)).reshape(6, 5)
    ours, theirs = wrap(total(options)), total(options, kernels=False)
    expected = jax.hessian(theirs)(z)
    np.testing.assert_allclose(jax.hessian(ours)(z), expected, rtol=1e-11, atol=1e-14)
    along = jax.jvp(jax.grad(ours), (z,), (direction,))[1]
    np.testing.assert_allclose(along, jnp.einsum("ijkl,kl", expected, direction), rtol=1e-10)
    np.testing.assert_allclose(
        jax.jvp(ours, (z,), (direction,))[1], (jax.grad(theirs)(z) * direction).sum(), rtol=1e-12
    )


@SOME_OPTIONS
def test_many_calls_at_once(options):
    """Are array code, and differentiated as it is; what is the same for all may stay one."""
    many = jnp.stack([jnp.asarray(LOGITS), jnp.asarray(LOGITS[::-1])])
    for transform in (lambda f: f, jax.grad, lambda f: jax.jit(jax.grad(f))):
        found = jax.vmap(transform(total(options)))(many)
        one_by_one = [transform(total(options, kernels=False))(z) for z in many]
        np.testing.assert_allclose(found, jnp.stack(one_by_one), rtol=1e-12, atol=1e-15)
    hessians = jax.vmap(jax.hessian(total(options)))(many)
    expected = jax.hessian(total(options, kernels=False))(many[1])
    np.testing.assert_allclose(hessians[1], expected, rtol=1e-11, atol=1e-14)
    in_a_loop = jax.jvp(scanned(lambda z: jax.vmap(total(options))(z).sum()), (many,), (many,))
    directly = jax.jvp(lambda z: jax.vmap(total(options, kernels=False))(z).sum(), (many,), (many,))
    np.testing.assert_allclose(in_a_loop, directly, rtol=1e-12)


def test_statistics_in_a_loop():
    """The logsumexp has a derivative there too; the others are indices and truth values."""
    z, target = jnp.asarray(LOGITS), jnp.asarray(TARGET)

    def lse(z):
        return xent_array.cross_entropy(z, target, return_stats=True)[1].lse.sum()

    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = np.where((TARGET == -100)[:, None], 0.0, softmax)
    for function in (lse, scanned(lse)):
        np.testing.assert_allclose(jax.grad(function)(z), expected, rtol=1e-13)
        np.testing.assert_allclose(jax.hessian(function)(z), jax.hessian(lse)(z), rtol=1e-13)


def test_options_may_be_traced(of_any_size):
    """One compiled program for any smoothing, weights and denominator."""
    target = jnp.asarray(TARGET)

    @jax.jit
    def loss(z, smoothing, weight, denominator):
        return xent_array.cross_entropy(
            z, target, label_smoothing=smoothing, weight=weight, denominator=denominator
        )

    for smoothing, denominator in ((0.0, 1.0), (0.3, 7.0)):
        weight = WEIGHT * (1 + smoothing)
        ours = loss(jnp.asarray(LOGITS), smoothing, jnp.asarray(weight), denominator)
        expected = xent_array.cross_entropy(
            LOGITS, TARGET, label_smoothing=smoothing, weight=weight, denominator=denominator
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-14)
    assert len(of_any_size) == 2
    assert loss._cache_size() == 1
    by_smoothing = jax.grad(loss, argnums=1)(jnp.asarray(LOGITS), 0.3, jnp.asarray(WEIGHT), 7.0)
    assert np.isfinite(by_smoothing)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_classes_along_any_axis(axis, of_any_size):
    z = RNG.normal(size=(70, 3, 80))
    rows = z.shape[:axis] + z.shape[axis + 1 :]
    target = RNG.integers(0, z.shape[axis], rows)
    loss = functools.partial(xent_array.cross_entropy, axis=axis)
    expected = xent_array.cross_entropy_and_grad(z, target, axis=axis)
    found = jax.jit(jax.value_and_grad(loss))(jnp.asarray(z), jnp.asarray(target))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-17)


def test_no_rows_and_bad_targets():
    losses = functools.partial(xent_array.cross_entropy, reduction="none")
    assert losses(jnp.zeros((0, 4)), jnp.zeros(0, int)).shape == (0,)
    z, bad = jnp.asarray(LOGITS), jnp.asarray([0, 1, 9, -1, 2, 2])
    with pytest.raises(IndexError):
        losses(z, bad)
    loss, grad = jax.jit(xent_array.cross_entropy_and_grad)(z, bad)
    assert np.isnan(loss)
    assert (np.isnan(np.asarray(grad)).all(axis=1) == [0, 0, 1, 1, 0, 0]).all()
    assert (np.isnan(np.asarray(jax.jit(losses)(z, bad))) == [0, 0, 1, 1, 0, 0]).all()


def test_directions_of_ignored_rows_do_not_matter():
    loss, z = of_logits({}), jnp.asarray(LOGITS)
    direction = jnp.where(jnp.asarray(TARGET == -100)[:, None], jnp.nan, 1.0) * z
    _, along = jax.jvp(loss, (z,), (direction,))
    assert np.isfinite(along)
    (grad,) = jax.vjp(loss, z)[1](jnp.asarray(np.inf))
    assert (np.asarray(grad)[TARGET == -100] == 0).all()
    assert np.isinf(np.asarray(grad)[TARGET != -100]).all()
    _, along = jax.jvp(lambda z: jax.jvp(loss, (z,), (direction,))[1], (z,), (direction,))
    assert np.isfinite(along)


def test_without_jit():
    with jax.disable_jit():
        found = jax.value_and_grad(of_logits({}))(jnp.asarray(LOGITS))
    expected = xent_array.cross_entropy_and_grad(LOGITS, TARGET)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_the_conformance_kit():
    with jax.enable_x64(False):
        check(jnp, dtypes=("float32",)).raise_if_failed()


@pytest.mark.parametrize(
    ("shape", "dtype", "served"),
    [
        pytest.param((100, 100), "float64", False, id="small"),
        pytest.param((200, 100), "float64", True, id="large"),
        pytest.param((5000, 24), "float64", False, id="few classes"),
        pytest.param((5000, 24), "float16", False, id="few classes, halves"),
        pytest.param((300_000, 24), "float16", True, id="many rows of few classes, halves"),
        pytest.param((5000, 25), "float64", True, id="more classes"),
        pytest.param((50, 10, 200), "float64", True, id="few classes further apart"),
    ],
)
def test_what_is_worth_a_call(shape, dtype, served, monkeypatch):
    monkeypatch.undo()
    target = jnp.zeros(shape[:1] + shape[2:], int)
    text = str(jax.make_jaxpr(xent_array.cross_entropy)(jnp.zeros(shape, dtype), target))
    assert ("xent_array_evaluation" in text) is served


def test_of_many_shapes_it_is_array_code():
    """As where a program is exported with symbols in the place of lengths."""
    from jax import export

    rows, classes = export.symbolic_shape("rows, classes")
    shapes = (
        jax.ShapeDtypeStruct((rows, classes), "float64"),
        jax.ShapeDtypeStruct((rows,), "int64"),
    )
    exported = export.export(jax.jit(xent_array.cross_entropy))(*shapes)
    ours = exported.call(jnp.asarray(LOGITS), jnp.asarray(TARGET))
    np.testing.assert_allclose(ours, xent_array.cross_entropy(LOGITS, TARGET), rtol=1e-14)


def test_nothing_is_copied():
    """Beside the logits and the gradient there is next to nothing, nor is one multiplied."""
    program = """
import jax, jax.numpy as jnp, xent_array
z, t = jax.ShapeDtypeStruct((2050, 32000), "float32"), jax.ShapeDtypeStruct((2050,), "int32")
for function in (xent_array.cross_entropy, jax.value_and_grad(xent_array.cross_entropy)):
    compiled = jax.jit(function).lower(z, t).compile()
    assert "buffer_python_cpu_callback" in compiled.as_text()
    assert "multiply(" not in compiled.as_text()
    print(compiled.memory_analysis().temp_size_in_bytes)
"""
    for temporary in run(program).split():
        assert int(temporary) < 1 << 20


def test_several_devices_are_array_code():
    program = """
import jax, jax.numpy as jnp, xent_array
assert len(jax.devices()) == 2
text = str(jax.make_jaxpr(xent_array.cross_entropy)(jnp.zeros((2000, 100)), jnp.zeros(2000, int)))
assert "xent_array_evaluation" not in text
"""
    run(program, XLA_FLAGS="--xla_force_host_platform_device_count=2")


def test_the_report():
    assert served_by(jnp).startswith("kernels compiled by numba")
    with _kernels.disabled():
        assert served_by(jnp).startswith("portable array code, compiled by XLA")


def test_a_jax_that_cannot_call_back(monkeypatch):
    from xent_array._backends import jax as backend

    monkeypatch.setattr(backend, "_calls_back", lambda: False)
    text = str(jax.make_jaxpr(of_logits({}))(jnp.asarray(LOGITS)))
    assert "xent_array_evaluation" not in text
    assert served_by(jnp).endswith("(no kernels: this JAX has no buffer_callback)")


def test_arrays_on_a_mesh_are_array_code():
    """Be it one of one device, and of one argument alone."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from xent_array import cross_entropy
from xent_array._engines import _jax_buffers
_jax_buffers.WORTH_A_CALL = 0
z, t, w = jnp.ones((6, 40)), jnp.zeros(6, int), jnp.ones(6)
def of_one(z):
    losses = lambda t, w: cross_entropy(z, t, reduction="none", sample_weight=w)
    return jax.shard_map(losses, mesh=mesh, in_specs=P("n"), out_specs=P("n"))(t, w)
for kind in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((1,), ("n",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        assert "xent_array_evaluation" not in str(jax.make_jaxpr(cross_entropy)(z, t))
for function in (of_one, jax.jit(of_one), jax.grad(lambda z: of_one(z).sum())):
    assert np.isfinite(function(z)).all()
placed = jax.device_put(w, NamedSharding(mesh, P("n")))
text = str(jax.make_jaxpr(lambda w: cross_entropy(z, t, sample_weight=w))(placed))
assert "xent_array_evaluation" not in text
"""
    run(program)


def test_a_program_for_several_platforms():
    loss = jax.jit(of_logits({}))
    for platforms, calls_back in ((("cpu",), True), (("tpu",), False), (("cpu", "tpu"), False)):
        text = loss.trace(jnp.asarray(LOGITS)).lower(lowering_platforms=platforms).as_text()
        assert ("buffer_python_cpu_callback" in text) is calls_back
