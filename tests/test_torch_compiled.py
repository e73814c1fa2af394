"""torch.compile: operators where kernels read the rows, else array code with a rule of ours."""

import contextlib
import functools

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

import xent_array
from xent_array import _kernels
from xent_array._backends import backend_of
from xent_array._engines import _torch_compiled

from arrays import DEVICE

pytestmark = [
    pytest.mark.library("torch"),
    pytest.mark.either_way,
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),  # torch's own
]

ROWS, CLASSES = 40, 1000
OPERATOR = "xent_array.cross_entropy.default"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Calls of these sizes are worth an operator, and nothing is compiled yet.

    torch compiles a function for some kinds of arguments only.
    """
    worth = dict.fromkeys(_torch_compiled.WORTH_A_CALL, 1 << 17)
    monkeypatch.setattr(_torch_compiled, "WORTH_A_CALL", worth)
    torch._dynamo.reset()


def problem(dtype=torch.float32, rows=ROWS, classes=CLASSES):
    torch.manual_seed(0)
    logits = torch.randn(rows, classes, device=DEVICE).to(dtype)
    target = torch.randint(0, classes, (rows,), device=DEVICE)
    target[3] = -100
    return logits, target


def are_there(dtype=torch.float32):
    """Whether kernels read logits here."""
    backend = backend_of("x", logits := torch.zeros(1, dtype=dtype, device=DEVICE))
    try:
        return backend.evaluator(logits).kernels(backend.lent(logits)) is not None
    except (LookupError, TypeError):
        return backend.kernels(logits) is not None


def operators(graph):
    return [str(node.target) for node in graph.graph.nodes if "xent_array" in str(node.target)]


def compiled(function, seen=None, **options):
    """The function, compiled in one graph; `seen` are the operators of each graph."""

    def look(graph, _):
        if seen is not None:
            seen.append(operators(graph))
        return graph

    backend = "aot_eager" if seen is None else look
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def loss_and_gradient(function, logits, target):
    """With a factor of its own for every loss."""
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, target)
    upstream = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype, device=DEVICE)
    (grad,) = torch.autograd.grad(loss, leaf, upstream.reshape(loss.shape))
    return loss.detach(), grad


def given(name):
    rng = np.random.default_rng(0)
    return {
        "weight": torch.tensor(rng.random(CLASSES), dtype=torch.float32, device=DEVICE),
        "sample_weight": torch.tensor(rng.random(ROWS), dtype=torch.float32, device=DEVICE),
        "where": torch.tensor(rng.random(ROWS) < 0.7, device=DEVICE),
        "denominator": torch.tensor(7.0, device=DEVICE),
        "label_smoothing": torch.tensor(0.2, device=DEVICE),
    }[name]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"reduction": "sum", "label_smoothing": 0.1},
        {"weight": ..., "label_smoothing": ...},
        {"sample_weight": ..., "z_loss": 1e-3},
        {"where": ..., "reduction": "none", "logit_scale": 0.5},
        {"denominator": "rows", "weight": ...},
        {"denominator": ..., "ignore_index": 5},
        {"denominator": 9.0, "dtype": torch.float64},
    ],
)
def test_every_option(options):
    options = {name: given(name) if x is ... else x for name, x in options.items()}
    logits, target = problem()
    target[3] = options.get("ignore_index", -100)

    def loss(z, t):
        return xent_array.cross_entropy(z, t, **options)

    def at_once(z, t):
        return xent_array.cross_entropy_and_grad(z, t, return_stats=True, **options)

    expected = loss_and_gradient(loss, logits, target)
    torch.testing.assert_close(loss_and_gradient(compiled(loss), logits, target), expected)
    found = compiled(at_once)(logits, target)
    torch.testing.assert_close(found, at_once(logits, target), rtol=1e-5, atol=1e-6)
    alone, stats = compiled(lambda z, t: at_once(z, t)[::2])(logits, target)
    torch.testing.assert_close(alone, expected[0])
    assert stats.prediction.equal(logits.argmax(1))


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype(dtype, reduction):
    logits, target = problem(dtype)

    def loss(z, t):
        return xent_array.cross_entropy(z, t, reduction=reduction)

    expected = loss_and_gradient(loss, logits, target)
    torch.testing.assert_close(loss_and_gradient(compiled(loss), logits, target), expected)


def test_images_and_their_transposes():
    """The class axis is the second, in memory that is not in its order either."""
    torch.manual_seed(0)
    for shape in ((2, 21, 30, 40), (40, 30, 21, 2)):
        logits = torch.randn(shape, device=DEVICE)
        logits = logits if shape[1] == 21 else logits.permute(3, 2, 0, 1)
        target = torch.randint(0, 21, (2, *logits.shape[2:]), device=DEVICE)
        expected = loss_and_gradient(xent_array.cross_entropy, logits, target)
        ours = loss_and_gradient(compiled(xent_array.cross_entropy), logits, target)
        torch.testing.assert_close(ours, expected)


def test_by_inductor():
    """As users compile; what comes before the loss, and after it, is compiled too."""
    logits, target = problem()

    def loss(z, t):
        return 2 * xent_array.cross_entropy(z.sin(), t)

    expected = loss_and_gradient(loss, logits, target)
    found = loss_and_gradient(torch.compile(loss, fullgraph=True), logits, target)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("options", "served"),
    [
        ({}, True),
        ({"rows": 20}, False),  # the compiler's own code is as fast
        ({"softcap": 30.0}, False),
        ({"logit_scale": -1.0}, False),
        ({"probabilities": True}, False),
        ({"return_stats": True}, False),  # the logsumexp has a derivative too
        ({"requires": True}, False),
    ],
)
def test_what_is_an_operator(options, served):
    """What kernels read, where nothing but the logits is differentiated."""
    seen, logits, target = [], *problem(rows=options.pop("rows", ROWS))
    logits.requires_grad_()
    if options.pop("probabilities", False):
        target = logits.detach().softmax(1)
    if options.pop("requires", False):
        options["weight"] = given("weight").requires_grad_()
    compiled(lambda z, t: xent_array.cross_entropy(z, t, **options), seen)(logits, target)
    assert seen == [[OPERATOR] if served and are_there() else []]


def test_a_number_that_varies_is_not_compiled_for_each_value():
    seen, (logits, target) = [], problem()

    def loss(z, t, smoothing, scale):
        return xent_array.cross_entropy(z, t, label_smoothing=smoothing, logit_scale=scale)

    call = compiled(loss, seen)
    for number in (0.1, 0.2, 0.3, 0.4):
        found = call(logits, target, number, 1 + number)
        torch.testing.assert_close(found, loss(logits, target, number, 1 + number))
    assert len(seen) <= 2


def test_sizes_that_vary_are_not_compiled_for_each():
    seen = []
    call = compiled(xent_array.cross_entropy, seen, dynamic=True)
    for rows in (40, 50, 60):
        logits, target = problem(rows=rows)
        expected = xent_array.cross_entropy(logits, target)
        torch.testing.assert_close(call(logits, target), expected)
    assert len(seen) == 1


def test_bad_classes_make_their_rows_nan():
    logits, target = problem()
    target[1] = CLASSES
    losses, grad = loss_and_gradient(
        compiled(lambda z, t: xent_array.cross_entropy(z, t, reduction="none")), logits, target
    )
    assert losses.isnan().nonzero().flatten().tolist() == [1]
    assert grad[1].isnan().all()
    assert not grad[2:].isnan().any()


def test_an_infinite_factor_leaves_ignored_rows_zero():
    logits, target = problem()
    leaf = logits.requires_grad_()
    loss = compiled(xent_array.cross_entropy)(leaf, target)
    (grad,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, torch.inf))
    assert (grad[3] == 0).all()


@torch._functorch.config.patch(donated_buffer=False)  # else torch refuses
def test_backward_again():
    logits, target = problem()
    leaf = logits.requires_grad_()
    loss = compiled(xent_array.cross_entropy)(leaf, target)
    (once,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (again,) = torch.autograd.grad(loss, leaf, 2 * torch.ones_like(loss))
    torch.testing.assert_close(again, 2 * once)


@pytest.mark.parametrize("classes", [CLASSES, 3_000_000])
def test_kernels_that_are_gone_when_the_code_runs(classes):
    """Array code does the same, in slabs of rows that are long."""
    logits, target = problem(rows=4, classes=classes)
    logits = logits.repeat(ROWS // 4, 1) if classes == CLASSES else logits
    target = target.repeat(ROWS // 4) if classes == CLASSES else target
    call = compiled(xent_array.cross_entropy)
    expected = loss_and_gradient(call, logits, target)
    with _kernels.disabled():
        torch.testing.assert_close(loss_and_gradient(call, logits, target), expected)


def tangents(level):
    """What forward mode makes of the loss, and how that is compiled."""
    logits, target = problem()
    along = torch.linspace(0, 1, CLASSES, device=DEVICE).expand(ROWS, CLASSES)

    def tangent(z, v):
        with level():
            found = xent_array.cross_entropy(forward_ad.make_dual(z, v), target)
            return forward_ad.unpack_dual(found).tangent

    return compiled(tangent)(logits, along), tangent(logits, along)


def many_vectors(loss):
    """The gradients of all losses, at once."""
    logits, target = problem()
    leaf = logits.requires_grad_()
    losses = loss(leaf, target, reduction="none")
    vectors = torch.eye(ROWS, device=DEVICE)[:3]
    return torch.autograd.grad(losses, leaf, vectors, is_grads_batched=True)


def second_derivatives(loss):
    logits, target = problem()
    leaf = logits.requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf, target), leaf, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), leaf)


def test_forward_mode():
    found, expected = tangents(forward_ad.dual_level)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", [many_vectors, second_derivatives])
def test_what_torch_derives_of_array_code(mode):
    """Where the compiler leaves that to torch: of operators, and not of a rule that it traced."""
    loss = torch.compile(xent_array.cross_entropy, backend="eager", fullgraph=True)
    if are_there():
        torch.testing.assert_close(mode(loss), mode(xent_array.cross_entropy))
        torch._dynamo.reset()
    with _kernels.disabled(), pytest.raises(RuntimeError, match=r"Batching rule|require grad"):
        mode(loss)


WORDS = {
    "axis": 1,
    "ignore_index": -100,
    "reduction": "mean",
    "on_empty": "nan",
    "by_rows": False,
    "return_stats": False,
}


def laid_out(layout, dtype):
    torch.manual_seed(0)
    if layout == "rows":
        return torch.randn(ROWS, CLASSES, device=DEVICE).to(dtype)
    return torch.randn(40, 21, 2, 30, device=DEVICE).to(dtype).movedim(-1, 1)


@pytest.mark.parametrize("layout", ["rows", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gives", ["nothing", "kept", "gradient"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, while it checks
def test_what_torch_expects_of_the_operators(gives, dtype, layout):
    """Results are where and as large as the compiler was told, kernels or not."""
    logits = laid_out(layout, dtype)
    classes, rows = logits.shape[1], (logits.shape[0], *logits.shape[2:], 1)
    target = torch.randint(0, classes, rows, device=DEVICE)
    number = torch.tensor(0.1, dtype=torch.float64)
    weight = torch.rand(classes, device=DEVICE)
    words = {**WORDS, "dtype": dtype, "gives": gives, "return_stats": gives != "kept"}
    given = (target, [number, weight], "smoothing | weight")
    leaf = logits.clone().requires_grad_(gives == "kept")
    torch.library.opcheck(_torch_compiled._loss, (leaf, *given), words)
    if gives == "kept":
        _, *kept = _torch_compiled._loss(logits, *given, **words)
        kept.append(torch.ones((), dtype=dtype, device=DEVICE))
        del words["gives"]
        torch.library.opcheck(_torch_compiled._gradient, (logits, *given, kept), words)


def test_what_divides_the_mean_lies_with_the_logits():
    """It may be a number: of targets that ignore nothing, or given."""
    logits, target = problem()
    for labels, given in ((target.clamp(0, 255).to(torch.uint8), ""), (target, "denominator |")):
        numbers = [torch.tensor(9.0, dtype=torch.float64)] * bool(given)
        words = {**WORDS, "dtype": torch.float32, "gives": "kept"}
        *_, divisor = _torch_compiled._loss(logits, labels[:, None], numbers, given or "|", **words)
        assert divisor.device == logits.device
        assert divisor.dtype == torch.float32


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_memory_for_the_gradient(in_place, kernels):
    logits, target = problem()
    expected = xent_array.cross_entropy_and_grad(logits, target)
    out = logits if in_place else torch.full_like(logits, torch.nan)
    call = compiled(lambda z, t, out: xent_array.cross_entropy_and_grad(z, t, out=out)[:2])
    with contextlib.nullcontext() if kernels else _kernels.disabled():
        loss, grad = call(logits, target, out)
    torch.testing.assert_close((loss, grad), tuple(expected[:2]))
    assert grad is out


# --- array code


SOFTENED = torch.linspace(0, 1, CLASSES, device=DEVICE).expand(ROWS, CLASSES).softmax(-1)


def in_array_code(function, graphs=None):
    """The function, compiled without kernels; `graphs` are those of forward and backward."""

    def kept(graph, _):
        if graphs is not None:
            graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=kept,
        bw_compiler=kept,
        partition_fn=min_cut_rematerialization_partition,
    )
    call = torch.compile(function, fullgraph=True, backend=backend)

    def without_kernels(*arguments):
        with _kernels.disabled():
            return call(*arguments)

    return without_kernels


@pytest.mark.parametrize("target", ["indices", "probabilities"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"reduction": "sum", "label_smoothing": 0.1},
        {"weight": ..., "label_smoothing": ...},
        {"sample_weight": ..., "z_loss": 1e-3, "softcap": 3.0},
        {"where": ..., "reduction": "none", "logit_scale": -0.5},
        {"denominator": ..., "dtype": torch.float64},
    ],
    ids=str,
)
def test_array_code(options, target):
    logits, labels = problem()
    options = {name: given(name) if x is ... else x for name, x in options.items()}
    chosen = labels if target == "indices" else SOFTENED

    def loss(z, t):
        return xent_array.cross_entropy(z, t, **options)

    with _kernels.disabled():
        expected = loss_and_gradient(loss, logits, chosen)
    found = loss_and_gradient(in_array_code(loss), logits, chosen)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_array_code_keeps_numbers_of_rows_and_scatters_nothing(dtype):
    """Its backward is one expression, which a compiler can write in one pass over the logits."""
    graphs = []
    loss_and_gradient(in_array_code(xent_array.cross_entropy, graphs), *problem(dtype))
    forward, backward = graphs
    (results,) = forward.graph.find_nodes(op="output")[0].args
    large = [x for x in results if x.meta["val"].numel() >= ROWS * CLASSES]
    assert [x.op for x in large] == ["placeholder"]  # the logits
    called = {str(node.target) for node in backward.graph.nodes if node.op == "call_function"}
    assert not any("scatter" in name or "sum" in name for name in called), called


def test_array_code_of_images_gives_gradients_laid_out_as_the_logits():
    logits = torch.randn(2, 5, 6, 7, device=DEVICE)
    target = torch.randint(0, 5, (2, 6, 7), device=DEVICE)
    _, grad = loss_and_gradient(in_array_code(xent_array.cross_entropy), logits, target)
    assert grad.is_contiguous()
    at_once = in_array_code(lambda z, t: xent_array.cross_entropy_and_grad(z, t)[1])
    assert at_once(logits, target).is_contiguous()


@pytest.mark.skipif(torch.device(DEVICE).type != "cpu", reason="about inductor for the CPU")
def test_images_by_inductor_keep_small_losses(monkeypatch):
    """Their exponentials are not stored: each sum has some of its own, of what comes before too."""
    monkeypatch.setattr(_torch_compiled, "WORTH_A_CALL", {})
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 9, 16, 16)
    logits[0, 4] += 20  # confident
    logits[1, :, :4] = 0  # ties
    logits[1, 3, 5] = torch.nan
    logits[1, :, 6] = -torch.inf
    target = torch.full((2, 16, 16), 4)

    def loss(z, t):
        return xent_array.cross_entropy(1.5 * z + 0.25, t, reduction="none")

    found = torch.compile(loss, fullgraph=True)(logits, target)
    expected = loss(logits.double(), target)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2.0**-126, equal_nan=True)
    assert 0 < found[0].min() < 1e-6


def later_multiplied(logits, target):
    return logits.mul_(3)


def later_masked(logits, target):
    return logits.masked_fill_(logits > 0, 0.0)


def with_other_targets_later(logits, target):
    return target.clamp_(0).add_(1).remainder_(7)


@pytest.mark.parametrize("change", [later_multiplied, later_masked, with_other_targets_later])
@pytest.mark.parametrize("kernels", [True, False])
def test_what_is_changed_in_place_after_the_loss(change, kernels):
    """torch saves what an autograd Function is given as it is at the end of the graph."""
    logits, target = problem()

    def step(change, z, t):
        z, t = 2 * z, t.clone()
        loss = xent_array.cross_entropy(z, t)
        change(z, t)
        return loss

    expected = loss_and_gradient(lambda z, t: step(lambda *_: None, z, t), logits, target)
    changed = functools.partial(step, change)
    if kernels and are_there() and change is not with_other_targets_later:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss_and_gradient(compiled(changed), logits, target)
    else:
        torch.testing.assert_close(
            loss_and_gradient(in_array_code(changed), logits, target), expected
        )


def test_memory_for_the_gradient_of_any_size():
    call = in_array_code(lambda z, t, out: xent_array.cross_entropy_and_grad(z, t, out=out)[1])
    for rows in (7, 9, 12):
        logits, target = problem(rows=rows)
        out = torch.empty_like(logits)
        assert call(logits, target, out) is out
        torch.testing.assert_close(out, xent_array.cross_entropy_and_grad(logits, target)[1])


@pytest.mark.parametrize("shape", [(8, 10), (300, 1000)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_compiled_by_itself(shape, reduction):
    """Compiled autograd, of a loss that was not compiled."""
    logits = torch.randn(*shape, device=DEVICE, requires_grad=True)
    target = torch.randint(0, shape[1], shape[:1], device=DEVICE)
    loss = xent_array.cross_entropy(logits, target, reduction=reduction).sum()
    (expected,) = torch.autograd.grad(loss, logits, retain_graph=True)
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        loss.backward()
    torch.testing.assert_close(logits.grad, expected)
