"""linear_cross_entropy in torch: plain backward from tiles, and every other mode."""

import contextlib
import itertools

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import xent_array
from test_linear import (
    FEATURES,
    LINEAR_BIAS,
    LINEAR_WEIGHT,
    OPTIONS,
    PROBABILITIES,
    REDUCTIONS,
    RNG,
    TARGET,
    TARGETS,
    C,
    arrays,
    by_hand,
)
from xent_array import _tiles
from xent_array._backends import torch as backend

from arrays import DEVICE, to_numpy

pytestmark = pytest.mark.library("torch")

PARTS = (FEATURES, LINEAR_WEIGHT, LINEAR_BIAS)


@pytest.fixture(autouse=True)
def on_the_device():
    """Tensors that name no device are made where the others are."""
    with contextlib.nullcontext() if DEVICE == "cpu" else torch.device(DEVICE):
        yield


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()


def leaves(*values):
    return [torch.tensor(value, requires_grad=True) for value in values]


@TARGETS
@REDUCTIONS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.usefixtures("tile_rows")
def test_torch_differentiates(target, reduction, options):
    """Backward equals that of the logits held as a whole, for what requires grad and no more."""
    given = {**arrays(torch, options), "reduction": reduction}
    for needs in itertools.product([False, True], repeat=3):
        ours, theirs = (
            [x.requires_grad_(need) for x, need in zip(leaves(*PARTS), needs, strict=True)]
            for _ in range(2)
        )
        loss = xent_array.linear_cross_entropy(
            *ours[:2], torch.tensor(target), linear_bias=ours[2], **given
        )
        logits = torch.nn.functional.linear(*theirs)
        expected = xent_array.cross_entropy(logits, torch.tensor(target), **given)
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
        if any(needs):
            factor = torch.rand(loss.shape, dtype=torch.float64) + 0.5
            loss.backward(factor)
            expected.backward(factor)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-14)


def backward(loss, parts):
    loss(*parts)[0].sum().backward()
    return [x.grad for x in parts]


def twice(loss, parts):
    grads = torch.autograd.grad(loss(*parts)[0].sum(), parts, create_graph=True)
    sum((grad * grad).sum() for grad in grads).backward()
    return [x.grad for x in parts]


def many_vectors(loss, parts):
    """By a batch of vectors at once, as torch.autograd.functional and gradcheck do."""
    out = loss(*parts)[0]
    vectors = torch.eye(max(1, out.numel()), dtype=out.dtype).reshape(-1, *out.shape)
    return torch.autograd.grad(out, parts, vectors, is_grads_batched=True)


def dual_numbers(loss, parts):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x.detach(), x.detach() + 1.0) for x in parts]
        return forward_ad.unpack_dual(loss(*duals)[0])


def func(transform):
    """A transform of torch.func, of the sum of the losses by all parts."""

    def run(loss, parts):
        parts = tuple(x.detach() for x in parts)
        return tree_leaves(transform(lambda *parts: loss(*parts)[0].sum(), parts))

    return run


def statistics(loss, parts):
    """Those of each row are differentiable by its logsumexp."""
    value, stats = loss(*parts, return_stats=True)
    (value.sum() + (stats.lse * stats.lse).sum()).backward()
    return [*stats, *(x.grad for x in parts)]


EVERY = (0, 1, 2)
MODES = {
    "twice": twice,
    "many vectors": many_vectors,
    "dual numbers": dual_numbers,
    "grad": func(lambda f, parts: torch.func.grad(f, EVERY)(*parts)),
    "vmap of grad": func(
        lambda f, parts: torch.func.vmap(torch.func.grad(f, EVERY), (0, None, None))(
            torch.stack([parts[0], 2.0 * parts[0]]), *parts[1:]
        )
    ),
    "jvp": func(lambda f, parts: torch.func.jvp(f, parts, parts)),
    "forward over reverse": func(
        lambda f, parts: torch.func.jvp(torch.func.grad(f, EVERY), parts, parts)
    ),
    "reverse over forward": func(
        lambda f, parts: torch.func.grad(lambda *p: torch.func.jvp(f, p, parts)[1], EVERY)(*parts)
    ),
    "hessian": func(lambda f, parts: torch.func.hessian(f, 2)(*parts)),
    "statistics": statistics,
}


def both_ways(target, **options):
    """The linear loss and that of the logits held, of parts, as tuples."""
    target, options = torch.tensor(target), arrays(torch, options)

    def ours(features, weight, bias, **more):
        result = xent_array.linear_cross_entropy(
            features, weight, target, linear_bias=bias, **options, **more
        )
        return result if more else (result,)

    def theirs(*parts, **more):
        logits = torch.nn.functional.linear(*parts)
        result = xent_array.cross_entropy(logits, target, axis=-1, **options, **more)
        return result if more else (result,)

    return ours, theirs


def assert_all_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@TARGETS
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_every_mode(set_tile_bytes, mode, options, target):
    """Each gives what it gives of the logits held, in tiles of three rows, the last of one."""
    set_tile_bytes(8 * C * 3)
    for reduction in ("mean", "none"):
        ours, theirs = both_ways(target, reduction=reduction, **options)
        assert_all_close(mode(ours, leaves(*PARTS)), mode(theirs, leaves(*PARTS)))


@pytest.mark.parametrize("name", ["weight", "sample_weight", "label_smoothing", "logit_scale", "p"])
@REDUCTIONS
@pytest.mark.usefixtures("tile_rows")
def test_whatever_else_requires_grad(name, reduction):
    values = {
        "weight": OPTIONS["weights"]["weight"],
        "sample_weight": OPTIONS["rows"]["sample_weight"],
        "label_smoothing": np.asarray(0.2),
        "logit_scale": np.asarray(0.7),
        "p": PROBABILITIES,
    }
    results = []
    for way in both_ways_of_tensors():
        features, leaf = leaves(FEATURES, values[name])
        target = leaf if name == "p" else torch.tensor(TARGET)
        options = {} if name == "p" else {name: leaf}
        loss = way(features, torch.tensor(LINEAR_WEIGHT), target, reduction=reduction, **options)
        loss.sum().backward()
        results.append((loss, features.grad, leaf.grad))
    assert_all_close(*results)


def both_ways_of_tensors():
    yield xent_array.linear_cross_entropy
    yield lambda x, w, target, **options: xent_array.cross_entropy(x @ w.T, target, **options)


COMPILED = {
    "backward": (backward, {}),
    "statistics": (lambda loss, parts: loss(*(x.detach() for x in parts), return_stats=True), {}),
    "differentiable statistics": (statistics, {}),
    "tensors": (backward, {"label_smoothing": np.asarray(0.1), "denominator": np.asarray(9.0)}),
    "rows": (backward, {"denominator": "rows", "on_empty": "zero"}),
}


@pytest.mark.either_way
@pytest.mark.parametrize(("mode", "more"), COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled(set_tile_bytes, mode, more, options):
    set_tile_bytes(8 * C * 3)
    for reduction in ("mean",) if "denominator" in more else ("mean", "none"):
        ours, theirs = both_ways(TARGET, **{"reduction": reduction, **options, **more})
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        assert_all_close(mode(compiled, leaves(*PARTS)), mode(theirs, leaves(*PARTS)))


VARYING = {
    "label_smoothing": [0.02, 0.03, 0.05, 0.07],
    "logit_scale": [1.5, 2.5, 3.5, 4.5],
    "softcap": [1.5, 2.5, 3.5, 4.5],
    "z_loss": [0.1, 0.2, 0.3, 0.4],
    "denominator": [3.5, 4.5, 5.5, 6.5],
    "ignore_index": [-1, -2, -3, -4],
}


@pytest.mark.either_way
@pytest.mark.parametrize("name", VARYING)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.usefixtures("fresh_dynamo")
def test_a_number_that_varies_is_not_compiled_for_each_value(name, linear):
    ours, theirs = both_ways_of_tensors()
    target = torch.tensor(TARGET).clamp(0)

    def loss(value, *parts):
        return (ours if linear else theirs)(*parts, target, **{name: value})

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    parts = leaves(*PARTS[:2])
    loss(VARYING[name][0], *parts)  # the first call of all remembers what torch's tensors are
    for value in VARYING[name]:
        torch.testing.assert_close(compiled(value, *parts), loss(value, *parts))
    assert counter.frame_count <= 2  # of one number, then of any


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_for_any_size(linear):
    ours, theirs = both_ways_of_tensors()

    def loss(target, *parts):
        return (ours if linear else theirs)(*parts, target)

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    loss(torch.tensor(TARGET), *leaves(*PARTS[:2]))
    for rows in (3, 6, 7):
        target, parts = torch.tensor(TARGET[:rows]), leaves(FEATURES[:rows], LINEAR_WEIGHT)
        torch.testing.assert_close(compiled(target, *parts), loss(target, *parts))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_transforms():
    ours, theirs = both_ways(TARGET)
    parts = tuple(x.detach() for x in leaves(*PARTS))
    grads = [torch.func.grad(lambda *x, f=f: f(*x)[0], EVERY) for f in (ours, theirs)]
    compiled = torch.compile(grads[0], fullgraph=True, backend="aot_eager")
    assert_all_close(compiled(*parts), grads[1](*parts))


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_graph_has_one_operator():
    graphs = []

    def look(graph, _):
        graphs.append(graph)
        return graph.forward

    loss = both_ways(TARGET)[0]
    torch.compile(loss, fullgraph=True, backend=look)(*leaves(*PARTS))
    called = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert "xent_array.linear_cross_entropy.default" in called
    assert not any("matmul" in name or "linear(" in name for name in called)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_operator_is_well_behaved(reduction):
    """torch's own checks of its schema, its shapes and its derivatives."""
    smoothing = torch.tensor(0.1, dtype=torch.float64)
    arguments = (*leaves(*PARTS), torch.tensor(TARGET), [smoothing])
    words = {
        "names": "label_smoothing |",
        "by_rows": False,
        "ignore_index": -100,
        "reduction": reduction,
        "on_empty": "nan",
        "dtype": torch.float64,
        "return_stats": False,
        "wanted": [reduction == "mean"] * 3 + [True],
    }
    operator = torch.ops.xent_array.linear_cross_entropy.default
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(operator, arguments, words, test_utils=checks)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("fresh_dynamo")
def test_results_are_constants_to_torch(compiled):
    target = torch.tensor(TARGET)

    def both(*parts):
        loss, grads = xent_array.linear_cross_entropy_and_grad(
            *parts[:2], target, linear_bias=parts[2]
        )
        return loss, *grads

    call = torch.compile(both, fullgraph=True, backend="aot_eager") if compiled else both
    assert not any(x.requires_grad for x in call(*leaves(*PARTS)))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("hooks", [False, True])
def test_backward_again(reduction, hooks):
    """What backward returns is the caller's: written to, it changes nothing of a later one."""
    identity = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with identity if hooks else contextlib.nullcontext():
        parts = leaves(*PARTS)
        loss = both_ways(TARGET, reduction=reduction)[0](*parts)[0].sum()
    expected = torch.autograd.grad(loss, parts, retain_graph=True)
    copies = [x.clone() for x in expected]
    for grad in expected:
        grad.zero_()
    by_weight = torch.autograd.grad(0.5 * loss, parts[1], retain_graph=True)
    assert_all_close(by_weight, [0.5 * copies[1]])
    loss.backward(retain_graph=True)
    loss.backward()
    assert_all_close([x.grad for x in parts], [2.0 * x for x in copies])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_statistics_beside_plain_backward():
    """Where only the loss is differentiated, nothing is made again for them."""
    parts = leaves(*PARTS)
    ours, theirs = both_ways(TARGET)
    expected, reference = theirs(*leaves(*PARTS), return_stats=True)
    with Products() as made:
        loss, stats = ours(*parts, return_stats=True)
        loss.backward()
    assert made.count == 3
    assert_all_close([loss, *stats], [expected, *reference])
    assert_all_close([x.grad for x in parts], backward(theirs, leaves(*PARTS)))


class Products(TorchDispatchMode):
    """How many matrix products are made."""

    count = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        self.count += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_meta_tensors(dtype):
    """Shapes and dtypes alone."""
    parts = [torch.tensor(x, dtype=getattr(torch, dtype), device="meta") for x in PARTS[:2]]
    target = torch.tensor(TARGET, device="meta")
    loss, (by_features, by_weight, _) = xent_array.linear_cross_entropy_and_grad(*parts, target)
    assert loss.is_meta
    assert (by_features.shape, by_weight.dtype) == (parts[0].shape, parts[1].dtype)
    assert xent_array.cross_entropy(parts[0] @ parts[1].T, target).dtype is parts[0].dtype


def test_torch_autocast():
    """As F.linear: multiplied in the chosen dtype, a float32 loss, gradients as their leaves."""
    features, weight = (torch.tensor(x, dtype=torch.float32) for x in PARTS[:2])
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = xent_array.linear_cross_entropy(features, weight, torch.tensor(TARGET))
    loss.backward()
    assert loss.dtype is weight.grad.dtype is torch.float32
    _, (_, expected, _) = by_hand(TARGET, None, {})
    np.testing.assert_allclose(to_numpy(weight.grad), expected, atol=3e-2)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor holds which is made here."""

    numbers = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = (x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
        self.numbers = max(self.numbers, *sizes, 0)
        return result


@pytest.mark.parametrize("mode", [backward, *MODES.values()], ids=["backward", *MODES])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_nothing_is_as_large_as_the_logits(set_tile_bytes, mode, reduction):
    """Neither made on the way nor kept for backward, but where torch asks for a batch of each."""
    rows, classes = 12, 1000
    set_tile_bytes(8 * classes * 3)
    target = np.zeros(rows, dtype=np.int64)
    parts = leaves(*(RNG.normal(size=size) for size in [(rows, 2), (classes, 2), (classes,)]))
    with Largest() as seen:
        mode(both_ways(target, reduction=reduction)[0], parts)
    batch = {MODES["vmap of grad"]: 2, MODES["hessian"]: classes}.get(mode, 1)
    if mode is many_vectors and reduction == "none":
        batch = rows
    assert seen.numbers <= batch * 3 * classes


def test_half_products_are_summed_by_the_product_itself(monkeypatch):
    """As on a GPU: every product after the first adds to a float32 sum, and none is rounded."""
    asked = []

    def wide(function):
        def product(*matrices, out_dtype, out):
            asked.append((function.__name__, out_dtype))
            return function(*[x.float() for x in matrices], out=out)

        return product

    torch.manual_seed(0)
    parts = [(torch.randn(size, 64) / 3).bfloat16() for size in (40, 30)]
    target = torch.randint(30, (40,))
    monkeypatch.setitem(_tiles.TILE_BYTES, "host", 4 * 30 * 10)
    monkeypatch.setattr(backend, "_sums_half_products", lambda total, a: a.dtype is torch.bfloat16)
    monkeypatch.setattr(torch, "mm", wide(torch.mm))
    monkeypatch.setattr(torch, "addmm", wide(torch.addmm))
    monkeypatch.setattr(backend.Backend, "affine", lambda own, x, weight, *_: x @ weight.T)
    _, grads = xent_array.linear_cross_entropy_and_grad(*parts, target)
    names = [name for name, dtype in asked if dtype is torch.float32]
    assert names == ["mm", "mm", *["mm", "addmm"] * 3]
    leaves = [x.double().requires_grad_() for x in parts]
    torch.nn.functional.cross_entropy(leaves[0] @ leaves[1].T, target).backward()
    for ours, theirs in zip(grads, leaves, strict=False):
        torch.testing.assert_close(ours.double(), theirs.grad, rtol=0.02, atol=2e-4)
