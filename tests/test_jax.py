"""JAX: every transform of it, traced options, 32-bit numbers, sharded arrays."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import xent_array
from xent_array import _kernels

import oracle
from arrays import unit

jax = pytest.importorskip("jax")
jnp = jax.numpy
check_grads = pytest.importorskip("jax.test_util").check_grads

pytestmark = pytest.mark.library("jax")

RNG = np.random.default_rng(21)
LOGITS = RNG.normal(size=(6, 4)) * 2
TARGET = np.asarray([0, 3, -100, 2, 2, 1])
PROBABILITIES = RNG.dirichlet(np.ones(4), size=6)
WEIGHT = np.asarray([0.5, 1.0, 2.0, 1.5])
DIRECTION = np.cos(np.arange(24.0)).reshape(6, 4)
TARGETS = pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])
OPTIONS = {
    "plain": {},
    "weighted": {"weight": WEIGHT, "label_smoothing": 0.1},
    "all": {
        "weight": WEIGHT,
        "label_smoothing": 0.1,
        "z_loss": 0.05,
        "softcap": 5.0,
        "logit_scale": 0.7,
        "sample_weight": RNG.random(6),
        "where": np.asarray([True, True, True, False, True, True]),
    },
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def given(options):
    return {n: jnp.asarray(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}


def by_torch(target, options, *, order):
    """Derivatives of the loss by the logits, from torch through our own code."""
    options = {n: torch.asarray(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}

    def loss(z):
        return xent_array.cross_entropy(z, torch.asarray(target), **options)

    for _ in range(order):
        loss = torch.func.jacrev(loss)
    return loss(torch.asarray(LOGITS)).numpy()


def of_logits(target, options):
    target, options = jnp.asarray(target), given(options)
    return lambda z: xent_array.cross_entropy(z, target, **options)


@TARGETS
@EVERY_OPTION
@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["eager", "jit", "remat"]
)
def test_gradients(target, options, wrap):
    """By grad and value_and_grad, eager, compiled and rematerialised, as torch derives them."""
    function, z = wrap(of_logits(target, options)), jnp.asarray(LOGITS)
    expected = by_torch(target, options, order=1)
    np.testing.assert_allclose(jax.grad(function)(z), expected, rtol=1e-12, atol=1e-15)
    loss, grad = jax.jit(jax.value_and_grad(function))(z)
    np.testing.assert_allclose(loss, by_torch(target, options, order=0), rtol=1e-14)
    np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-15)


@TARGETS
@EVERY_OPTION
def test_forward_mode_and_second_order(target, options):
    function, z = of_logits(target, options), jnp.asarray(LOGITS)
    slope, hessian = by_torch(target, options, order=1), by_torch(target, options, order=2)
    direction = np.cos(np.arange(24.0)).reshape(6, 4)
    _, along = jax.jvp(function, (z,), (jnp.asarray(direction),))
    np.testing.assert_allclose(along, (slope * direction).sum(), rtol=1e-12)
    for twice in (
        jax.hessian,
        lambda f: jax.jacrev(jax.grad(f)),
        lambda f: jax.jacfwd(jax.jacfwd(f)),
    ):
        np.testing.assert_allclose(twice(function)(z), hessian, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    ("reduction", "axis"), [("none", 0), ("none", 1), ("sum", -1), ("mean", 0), ("mean", -1)]
)
def test_every_reduction_on_every_axis(reduction, axis):
    z = RNG.normal(size=(3, 4, 2))
    target = jnp.asarray(RNG.integers(0, 4, (3, 2)))

    def loss(z):
        z = jnp.asarray(z)
        losses = xent_array.cross_entropy(z, target, axis=axis, reduction=reduction)
        return jnp.sum(losses * jnp.cos(jnp.arange(float(losses.size))).reshape(losses.shape))

    z = jnp.asarray(np.moveaxis(z, 1, axis))
    check_grads(loss, (z,), order=2, modes=["fwd", "rev"])


def test_all_that_can_be_differentiated():
    """Logits, probabilities, class weights, row weights, smoothing, scale and the denominator."""

    def loss(z, p, weight, sample_weight, smoothing, scale, denominator):
        return xent_array.cross_entropy(
            z,
            p,
            weight=weight,
            sample_weight=sample_weight,
            label_smoothing=smoothing,
            logit_scale=scale,
            denominator=denominator,
            z_loss=0.1,
        )

    def of_numbers(*arrays):
        return loss(*map(jnp.asarray, arrays))

    arrays = (LOGITS, PROBABILITIES, WEIGHT, RNG.random(6), 0.1, 0.7, 3.0)
    arrays = tuple(map(jnp.asarray, arrays))
    check_grads(of_numbers, arrays, order=2, modes=["fwd", "rev"])


def test_options_may_be_traced():
    """One compiled program for any smoothing, weights, scale and denominator."""
    traces = []

    @jax.jit
    def loss(z, target, smoothing, weight, scale, denominator):
        traces.append(None)
        return xent_array.cross_entropy(
            z,
            target,
            label_smoothing=smoothing,
            weight=weight,
            logit_scale=scale,
            denominator=denominator,
        )

    for smoothing in (0.0, 0.2, 1.0):
        options = {
            "label_smoothing": smoothing,
            "weight": WEIGHT + smoothing,
            "logit_scale": 2.0 - smoothing,
            "denominator": 3.0 + smoothing,
        }
        expected = xent_array.cross_entropy(LOGITS, TARGET, **options)
        ours = loss(jnp.asarray(LOGITS), jnp.asarray(TARGET), *options.values())
        np.testing.assert_allclose(ours, expected, rtol=1e-14)
    assert len(traces) == 1


@TARGETS
def test_vmap(target):
    """Of the loss and of its gradient, over all arguments or the logits alone."""
    losses = jax.vmap(xent_array.cross_entropy)(jnp.asarray(LOGITS), jnp.asarray(target))
    expected = xent_array.cross_entropy(LOGITS, target, reduction="none")
    expected = (
        np.where(np.asarray(target) == -100, np.nan, expected) if target.ndim == 1 else expected
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-14)
    grads = jax.vmap(jax.grad(xent_array.cross_entropy))(jnp.asarray(LOGITS), jnp.asarray(target))
    _, expected = xent_array.cross_entropy_and_grad(LOGITS, target, reduction="none")
    np.testing.assert_allclose(grads, expected, rtol=1e-12, atol=1e-16)
    same = jax.vmap(lambda z: xent_array.cross_entropy(z, jnp.asarray(target)))
    stacked = jnp.stack([jnp.asarray(LOGITS), jnp.asarray(LOGITS) * 2])
    expected = [xent_array.cross_entropy(LOGITS * factor, target) for factor in (1, 2)]
    np.testing.assert_allclose(same(stacked), expected, rtol=1e-14)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_ties(target):
    """Equal greatest logits: gradient and Hessian are those of the softmax."""
    z = jnp.asarray([3.0, 3.0, 3.0])
    loss = of_logits(np.asarray(target), {})
    third = np.full(3, 1 / 3)
    np.testing.assert_allclose(jax.grad(loss)(z), third - np.eye(3)[target], rtol=1e-15)
    expected = np.diag(third) - np.outer(third, third)
    np.testing.assert_allclose(jax.hessian(loss)(z), expected, rtol=1e-14)


@pytest.mark.parametrize("margin", [1.0, 20.0, 80.0])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_targets_gradient_keeps_its_digits(margin, wrap):
    z = [margin, 0.0, -1.0]
    (true, *_) = oracle.row_gradient(z, oracle.exact([1.0, 0.0, 0.0]))
    grad = wrap(jax.grad(of_logits(np.asarray(0), {})))(jnp.asarray(z))
    assert abs(float(grad[0]) / float(true) - 1) <= (32 + margin) * unit("float64")


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_ignored_rows_have_no_gradient(junk):
    logits = LOGITS.copy()
    logits[2] = junk
    loss = of_logits(TARGET, {"weight": WEIGHT, "label_smoothing": 0.1})
    grad = np.asarray(jax.grad(loss)(jnp.asarray(logits)))
    assert (grad[2] == 0).all()
    assert np.isfinite(grad).all()
    assert np.isfinite(jax.hessian(loss)(jnp.asarray(logits))).all()


def test_bad_targets_are_nan_where_they_cannot_be_seen():
    target = jnp.asarray(np.where(TARGET == 3, 9, TARGET))
    losses = jax.jit(lambda z, t: xent_array.cross_entropy(z, t, reduction="none"))(LOGITS, target)
    assert np.isnan(losses).tolist() == [False, True, False, False, False, False]
    with pytest.raises(IndexError, match=r"target\[1\] is 9: outside the 4 classes"):
        xent_array.cross_entropy(jnp.asarray(LOGITS), target)
    with pytest.raises(ValueError, match="check=True must see the values of target"):
        jax.jit(lambda z, t: xent_array.cross_entropy(z, t, check=True))(LOGITS, target)


def test_statistics_in_a_compiled_function():
    """The logsumexp can be differentiated; the others are indices and truth values."""
    z, target = jnp.asarray(LOGITS), jnp.asarray(TARGET)

    def lse(z):
        return xent_array.cross_entropy(z, target, return_stats=True)[1].lse.sum()

    softmax = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = np.where((TARGET == -100)[:, None], 0.0, softmax)
    np.testing.assert_allclose(jax.jit(jax.grad(lse))(z), expected, rtol=1e-13)


def test_out_is_refused():
    z = jnp.asarray(LOGITS)
    with pytest.raises(ValueError, match="out cannot be written to: JAX arrays are immutable"):
        xent_array.cross_entropy_and_grad(z, jnp.asarray(TARGET), out=z)


def test_results_are_constants():
    """As to torch: the gradient that came with the loss is not differentiated further."""
    target = jnp.asarray(TARGET)
    grad = jax.grad(lambda z: xent_array.cross_entropy_and_grad(z, target)[1].sum())
    assert (np.asarray(grad(jnp.asarray(LOGITS))) == 0).all()


def test_32_bits():
    """Without 64-bit numbers nothing warns, indices are 32 bits wide, float64 is refused."""
    with jax.enable_x64(False):
        z, target = jnp.asarray(LOGITS), jnp.asarray(TARGET)
        assert z.dtype == jnp.float32
        loss, stats = xent_array.cross_entropy(z, target, return_stats=True, weight=jnp.ones(4))
        expected = xent_array.cross_entropy(np.asarray(z), TARGET)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        assert loss.dtype == jnp.float32
        assert stats.prediction.dtype == jnp.int32
        assert jax.grad(xent_array.cross_entropy)(z, target).dtype == jnp.float32
        with pytest.raises(TypeError, match="dtype must be a real floating dtype of the array"):
            xent_array.cross_entropy(z, target, dtype="float64")


def test_rows_are_taken_in_blocks():
    """On one CPU a compiled program holds blocks beside the logits and the gradient."""
    program = """
import jax, jax.numpy as jnp, xent_array
z, t = jax.ShapeDtypeStruct((2050, 32000), "float32"), jax.ShapeDtypeStruct((2050,), "int32")
for function in (xent_array.cross_entropy, jax.value_and_grad(xent_array.cross_entropy)):
    print(jax.jit(function).lower(z, t).compile().memory_analysis().temp_size_in_bytes)
"""
    for temporary in run(program, XENT_ARRAY_KERNELS="off").split():
        assert int(temporary) < 32 << 20


def test_few_classes_are_not_stored():
    """Beside 160 MB of logits there are numbers of rows, and what is weighed of a block."""
    program = """
import functools, jax, jax.numpy as jnp, xent_array
z, t = jax.ShapeDtypeStruct((4_000_000, 10), "float32"), jax.ShapeDtypeStruct((4_000_000,), "int32")
for smoothing in (0.0, 0.1):
    loss = functools.partial(xent_array.cross_entropy, label_smoothing=smoothing)
    print(jax.jit(loss).lower(z, t).compile().memory_analysis().temp_size_in_bytes)
"""
    for temporary in run(program).split():
        assert int(temporary) < 80 << 20


def test_a_row_wider_than_a_block():
    program = """
import jax, jax.numpy as jnp, xent_array
z, t = jnp.zeros((1, 1_000_000), jnp.float32), jnp.asarray([3])
loss, grad = jax.value_and_grad(xent_array.cross_entropy)(z, t)
assert abs(loss - 13.815511) < 1e-5 and abs(grad[0, 3] + 1) < 1e-5
assert (xent_array.cross_entropy_and_grad(z[0], t[0])[1] == grad[0]).all()
"""
    run(program)


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_meshes_of_one_device(kernels):
    """Rows in blocks and sharded types do not go together."""
    program = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from xent_array import cross_entropy
z, t = jnp.ones((300, 4000)), jnp.zeros(300, int)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((1,), ("n",), axis_types=(kind,))
    a, b = (jax.device_put(x, NamedSharding(mesh, P("n"))) for x in (z, t))
    loss, grad = jax.value_and_grad(cross_entropy)(a, b)
    np.testing.assert_allclose(loss, np.log(4000), rtol=1e-5)
    def of_shard(z, t):
        return cross_entropy(z, t, reduction="none")
    mapped = jax.shard_map(of_shard, mesh=mesh, in_specs=(P("n"), P("n")), out_specs=P("n"))
    np.testing.assert_allclose(jax.jit(mapped)(a, b), np.log(4000), rtol=1e-5)
def of_one(z):
    with_target = lambda t: cross_entropy(z, t, reduction="none")
    return jax.shard_map(with_target, mesh=auto, in_specs=P("n"), out_specs=P("n"))(t)
auto = jax.make_mesh((1,), ("n",), axis_types=(AxisType.Auto,))
np.testing.assert_allclose(of_one(z), np.log(4000), rtol=1e-5)
assert np.isfinite(jax.grad(lambda z: of_one(z).sum())(z)).all()
"""
    run(program, XENT_ARRAY_KERNELS=kernels)


def test_concrete_arrays_inside_a_trace():
    """What is computed of them is traced: nothing is looked at, and bad targets are NaN."""
    z, target = jnp.asarray(LOGITS), jnp.asarray(TARGET)
    expected = xent_array.cross_entropy(LOGITS, TARGET)
    scaled = jax.jit(lambda s: s * xent_array.cross_entropy(z, target))(2.0)
    np.testing.assert_allclose(scaled, 2 * expected, rtol=1e-14)
    assert jax.eval_shape(lambda: xent_array.cross_entropy(z, target)).shape == ()
    assert np.isnan(jax.jit(lambda: xent_array.cross_entropy(z, target + 9))())


def test_half_gradients_are_scaled_before_they_are_rounded():
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(4096, 100)) * 2).astype(np.float16)
    target = rng.integers(0, 100, 4096)

    def loss(z):
        return 4096.0 * xent_array.cross_entropy(z, jnp.asarray(target), dtype="float32")

    _, expected = xent_array.cross_entropy_and_grad(z, target, grad_output=np.float32(4096.0))
    ours = np.asarray(jax.grad(loss)(jnp.asarray(z)))
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-7)


def test_directions_of_ignored_rows_do_not_matter():
    """NaN along an ignored row, or a factor that is not finite, leaves it 0."""
    loss, z = of_logits(TARGET, {}), jnp.asarray(LOGITS)
    direction = jnp.asarray(np.where((TARGET == -100)[:, None], np.nan, DIRECTION))
    _, along = jax.jvp(loss, (z,), (direction,))
    expected = (np.asarray(jax.grad(loss)(z)) * DIRECTION).sum()
    np.testing.assert_allclose(along, expected, rtol=1e-12)
    (grad,) = jax.vjp(loss, z)[1](jnp.asarray(np.inf))
    assert (np.asarray(grad)[TARGET == -100] == 0).all()


def test_blocks_agree_with_the_whole():
    """Rows that do not divide into equal blocks, in a process of one device."""
    program = """
import jax, jax.numpy as jnp, numpy as np, xent_array
from xent_array import _blocks
rng = np.random.default_rng(0)
z, t = rng.normal(size=(3, 7, 10)).astype("float32"), rng.integers(0, 10, (3, 7))
t[1, 2] = -100
p = rng.dirichlet(np.ones(10), size=(3, 7)).astype("float32")
options = {"axis": -1, "weight": rng.random(10).astype("float32"), "label_smoothing": 0.1}
_blocks.BLOCK_BYTES["host"], _blocks.ROW_BYTES = 4 * 40, 0
for target in (t, p):
    for reduction in ("none", "mean", "sum"):
        loss, grad = xent_array.cross_entropy_and_grad(z, target, reduction=reduction, **options)
        given = {**options, "weight": jnp.asarray(options["weight"]), "reduction": reduction}
        ours = xent_array.cross_entropy_and_grad(
            jnp.asarray(z), jnp.asarray(target), return_stats=True, **given
        )
        np.testing.assert_allclose(ours[0], loss, rtol=2e-6)
        np.testing.assert_allclose(ours[1], grad, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(ours[2].prediction, z.argmax(-1))
"""
    run(program)


SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np, xent_array
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
rng = np.random.default_rng(0)
z = rng.normal(size=(8, 16)).astype("float32") * 3
z[0, :2] = z[0].max()
t = rng.integers(0, 16, 8)
t[3] = -100
p = rng.dirichlet(np.ones(16), size=8).astype("float32")
w = rng.random(16).astype("float32")
smooth = {"label_smoothing": 0.1}
def compare(mesh, spec, target, options):
    rows = P(spec[0]) if target.ndim == 1 else P(*spec)
    put = lambda x, s: jax.device_put(x, NamedSharding(mesh, s))
    args = put(z, P(*spec)), put(target, rows), put(w, P(None))
    for wrap in (lambda f: f, jax.value_and_grad):
        def loss(z, target, w):
            return xent_array.cross_entropy(z, target, weight=w if options else None, **options)
        expected = wrap(loss)(jnp.asarray(z), jnp.asarray(target), jnp.asarray(w))
        with jax.set_mesh(mesh):
            eager = wrap(loss)(*args)
            compiled = jax.jit(wrap(loss)).lower(*args).compile()
            ours = compiled(*args)
        text = compiled.as_text()
        assert "all-gather" not in text, re.findall(r".*all-gather.*", text)
        for got in (eager, ours):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), got, expected
            )
for kind in (AxisType.Auto, AxisType.Explicit):
    for shape, spec in (((1, 4), (None, "c")), ((2, 2), ("n", "c")), ((4, 1), ("n", None))):
        mesh = jax.make_mesh(shape, ("n", "c"), axis_types=(kind, kind))
        for target, options in ((t, {}), (t, smooth), (p, smooth)):
            compare(mesh, spec, target, options)
print("equal")
"""


def test_sharded_arrays():
    """On Auto and Explicit meshes of 4 devices: no all-gather, results as on one device."""
    flags = (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4")
    assert run(SHARDED, XLA_FLAGS=" ".join(flags)).strip() == "equal"


@pytest.mark.parametrize("classes", [2, 32, 33])
def test_few_classes_by_array_code(classes):
    """They are summed as pairs, and taken in larger blocks."""
    rows = 400_000
    rng = np.random.default_rng(0)
    z = (5 * rng.standard_normal((rows, classes))).astype(np.float32)
    z[:, 0] += 10
    z[7, 1] = z[7, 0]
    target = np.zeros(rows, np.int32)
    exact, derivative = xent_array.cross_entropy_and_grad(
        z.astype(np.float64), target, reduction="none"
    )

    def total(z, target):
        return xent_array.cross_entropy(z, target, reduction="sum")

    with _kernels.disabled():
        z, target = jnp.asarray(z), jnp.asarray(target)
        loss, grad = jax.jit(jax.value_and_grad(total))(z, target)
        per_row = xent_array.cross_entropy(z, target, reduction="none")
    np.testing.assert_allclose(per_row, exact, rtol=1e-5, atol=classes * 2.0**-126)
    np.testing.assert_allclose(loss, exact.sum(), rtol=1e-5)
    np.testing.assert_allclose(grad, derivative, rtol=1e-4, atol=1e-37)


STRICT = {
    "gradient": lambda z, t, w, p: jax.grad(xent_array.cross_entropy)(z, t),
    "smooth": lambda z, t, w, p: xent_array.cross_entropy_and_grad(
        z, t, weight=w, label_smoothing=0.1
    ),
    "probabilities": lambda z, t, w, p: xent_array.cross_entropy_and_grad(
        z, p, weight=w, label_smoothing=0.1
    ),
    "derived": lambda z, t, w, p: jax.grad(
        lambda w: xent_array.cross_entropy(z, t, weight=w, label_smoothing=0.1)
    )(w),
    "statistics": lambda z, t, w, p: xent_array.cross_entropy(z, t, return_stats=True),
    "softmax": lambda z, t, w, p: (xent_array.softmax(z), xent_array.log_softmax(z)),
    "logsumexp": lambda z, t, w, p: xent_array.logsumexp(z),
    "linear": lambda z, t, w, p: xent_array.linear_cross_entropy_and_grad(
        z, z[:7], t % 7, linear_bias=w[:7]
    ),
    "linear gradient": lambda z, t, w, p: jax.grad(
        lambda z: xent_array.linear_cross_entropy(z, z[:7], t % 7, linear_bias=w[:7])
    )(z),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("call", STRICT.values(), ids=STRICT)
def test_no_rank_and_no_dtype_is_promoted_without_a_word(call, dtype):
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.standard_normal((8, 10)), dtype)
    arguments = (z, jnp.arange(8), jnp.linspace(0.5, 2, 10, dtype=dtype), jax.nn.softmax(z))
    expected = call(*arguments)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        found = call(*arguments)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_random_keys_are_no_logits():
    key = jax.random.key(0)[None]
    with pytest.raises(TypeError, match="logits must have a real floating dtype, got key<"):
        xent_array.cross_entropy(key, jnp.zeros(1, int))
    with pytest.raises(TypeError, match=r"target must have .* got key<"):
        xent_array.cross_entropy(jnp.zeros((1, 3)), key)


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
