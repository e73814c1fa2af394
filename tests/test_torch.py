"""torch: its autograd through the loss, autocast, transforms, and what it must refuse."""

import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

import xent_array
from xent_array import _gather
from xent_array._engines import _torch_constant

from arrays import DEVICE

pytestmark = pytest.mark.library("torch")

F = torch.nn.functional
RNG = np.random.default_rng(8)


def tensor(values, **options):
    return torch.tensor(values, device=DEVICE, **options)


LOGITS = RNG.normal(size=(6, 4))
TARGET = [0, 3, -100, 2, 2, 1]
PROBABILITIES = RNG.dirichlet(np.ones(4), size=6)
WEIGHT = [0.5, 1.0, 2.0, 1.5]


def gradient(function, logits, *arguments, **options):
    logits = tensor(logits, requires_grad=True, dtype=torch.float64)
    (result,) = torch.autograd.grad(function(logits, *arguments, **options), logits)
    return result


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])
def test_gradients_are_torchs(reduction, smoothing, weight, target):
    options = {
        "reduction": reduction,
        "label_smoothing": smoothing,
        "weight": None if weight is None else tensor(weight, dtype=torch.float64),
    }
    target = tensor(target)
    ours = gradient(xent_array.cross_entropy, LOGITS, target, **options)
    theirs = gradient(F.cross_entropy, LOGITS, target, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_gradients_at_ties(target):
    """Equal greatest logits share the probability; none is favoured."""
    ours = gradient(xent_array.cross_entropy, [3.0, 3.0, 3.0], tensor(target))
    expected = torch.full((3,), 1 / 3, dtype=torch.float64, device=DEVICE)
    expected[target] -= 1.0
    torch.testing.assert_close(ours, expected, rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("margin", [1.0, 20.0, 80.0])
def test_the_targets_gradient_keeps_its_digits(margin):
    """p - 1 is formed from its parts; torch's own is 0 from a margin of 37 on."""
    ours = gradient(xent_array.cross_entropy, [margin, 0.0], tensor(0))
    rest = np.exp(-margin)
    expected = tensor([-rest / (1 + rest), rest / (1 + rest)], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-14, atol=0.0)


def test_gradcheck_of_everything_differentiable():
    """Logits, probabilities, class weights, sample weights and the scale."""
    target = tensor([0, 3, -100, 2, 2, 1])
    arrays = [
        tensor(values, dtype=torch.float64, requires_grad=True)
        for values in (LOGITS, WEIGHT, RNG.random(6) + 0.5, 0.7)
    ]

    def of_indices(logits, weight, sample_weight, scale):
        return xent_array.cross_entropy(
            logits,
            target,
            weight=weight,
            sample_weight=sample_weight,
            logit_scale=scale,
            label_smoothing=0.1,
            z_loss=0.01,
            softcap=20.0,
        )

    def of_probabilities(probabilities, logits, weight):
        return xent_array.cross_entropy(logits, probabilities, weight=weight, label_smoothing=0.1)

    assert torch.autograd.gradcheck(of_indices, arrays)
    assert torch.autograd.gradgradcheck(of_indices, arrays)
    soft = tensor(PROBABILITIES, requires_grad=True)
    assert torch.autograd.gradcheck(of_probabilities, (soft, *arrays[:2]))


# torch's own gradcheck uses torch.jit for forward mode, and warns of it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("axis", [1, -1, 0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_the_rule_in_every_mode(axis, reduction):
    """Logits alone are differentiated: backward, twice, forward mode, and by many vectors."""
    target = tensor([[0, 3], [-100, 2], [2, 1]])
    weight = tensor(WEIGHT, dtype=torch.float64)
    logits = torch.movedim(tensor(RNG.normal(size=(3, 4, 2))), 1, axis).requires_grad_()

    def loss(z):
        return xent_array.cross_entropy(
            z,
            target,
            axis=axis,
            weight=weight,
            label_smoothing=0.1,
            z_loss=0.05,
            softcap=9.0,
            reduction=reduction,
        )

    assert torch.autograd.gradcheck(
        loss, logits, check_forward_ad=True, check_batched_grad=True, check_undefined_grad=False
    )
    assert torch.autograd.gradgradcheck(loss, logits, check_fwd_over_rev=True)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_backward_keeps_the_logits_and_nothing_of_their_size(reduction, monkeypatch):
    """torch's own function keeps the log-probabilities as well."""
    monkeypatch.setattr(_torch_constant, "SMALL", {})  # such calls keep the gradient instead
    logits = torch.zeros(64, 1000, device=DEVICE, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        xent_array.cross_entropy(logits, tensor([1] * 64), label_smoothing=0.1, reduction=reduction)
    large = [x for x in kept if x.numel() > 64]
    assert [x.data_ptr() for x in large] == [logits.data_ptr()]


@pytest.mark.parametrize("changed", ["logits", "target", "weight"])
def test_a_change_in_place_before_backward_is_an_error(changed):
    """As everywhere in torch; a silently wrong gradient otherwise."""
    arrays = {
        "logits": tensor(LOGITS, requires_grad=True) * 1.0,
        "target": tensor(TARGET),
        "weight": tensor(WEIGHT, dtype=torch.float64),
    }
    loss = xent_array.cross_entropy(arrays["logits"], arrays["target"], weight=arrays["weight"])
    with torch.no_grad():
        arrays[changed].add_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("create_graph", [False, True])
def test_hooks_of_the_logits_run_once(create_graph):
    logits = tensor(LOGITS, requires_grad=True)
    middle = logits * 1.0
    middle.register_hook(lambda grad: grad * 2)
    middle.retain_grad()
    loss = xent_array.cross_entropy(middle, tensor(TARGET))
    (ours,) = torch.autograd.grad(loss, logits, create_graph=create_graph)
    torch.testing.assert_close(ours, 2 * gradient(F.cross_entropy, LOGITS, tensor(TARGET)))


@pytest.mark.parametrize("kind", ["logits", "target"])
def test_backward_frees_the_arguments(kind):
    """While the loss lives on, as in a log."""
    arrays = {
        "logits": tensor(LOGITS, requires_grad=True) * 1.0,
        "target": tensor(PROBABILITIES),
    }
    loss = xent_array.cross_entropy(**arrays)
    watched = weakref.ref(arrays[kind])
    loss.backward()
    arrays.clear()
    assert watched() is None
    assert loss.isfinite()


def test_traced_calls_see_the_array_code():
    logits, target = tensor(LOGITS, requires_grad=True), tensor(TARGET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(
            lambda z: xent_array.cross_entropy(z, target), (logits,), check_trace=False
        )
        torch.testing.assert_close(traced(logits), xent_array.cross_entropy(logits, target))


def test_backward_twice():
    """With retain_graph the gradient is computed again, and is the same."""
    logits = tensor(LOGITS, requires_grad=True)
    loss = xent_array.cross_entropy(logits, tensor(TARGET))
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e8])
def test_backward_is_as_exact_as_the_gradient_itself(offset):
    """Bit for bit that of cross_entropy_and_grad, ties and far offsets included."""
    logits = tensor(LOGITS * 8 + offset, dtype=torch.float32)
    logits[0, :2] = logits[0].max()
    _, expected = xent_array.cross_entropy_and_grad(logits, tensor(TARGET), label_smoothing=0.1)
    leaf = logits.clone().requires_grad_()
    xent_array.cross_entropy(leaf, tensor(TARGET), label_smoothing=0.1).backward()
    assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_rows_that_do_not_count_have_no_gradient(junk):
    """Exactly 0, whatever the logits hold; torch returns NaN."""
    logits = LOGITS.copy()
    logits[2] = junk
    for options in ({}, {"softcap": 5.0}, {"logit_scale": -2.0, "z_loss": 0.1}):
        ours = gradient(xent_array.cross_entropy, logits, tensor(TARGET), **options)
        assert (ours[2] == 0).all()
        assert ours[[0, 1, 3, 4, 5]].isfinite().all()
    scale = tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = xent_array.cross_entropy(tensor(logits), tensor(TARGET), logit_scale=scale, softcap=9.0)
    assert torch.autograd.grad(loss, scale)[0].isfinite()
    where = torch.arange(6, device=DEVICE) != 2
    weights = torch.where(where, 1.0, torch.nan)
    ours = gradient(
        xent_array.cross_entropy, logits, tensor([0] * 6), where=where, sample_weight=weights
    )
    assert (ours[2] == 0).all()
    assert ours[[0, 1, 3, 4, 5]].isfinite().all()


def test_a_mean_of_nothing_has_no_gradient():
    """The loss is NaN, the gradient 0, as in torch."""
    ours = gradient(xent_array.cross_entropy, LOGITS, tensor([-100] * 6))
    assert (ours == 0).all()


def test_bad_targets_have_nan_gradients_unchecked():
    ours = gradient(
        xent_array.cross_entropy, LOGITS, tensor([0, 9, 1, 1, 1, 1]), check=False, reduction="sum"
    )
    assert ours[1].isnan().all()
    assert ours[[0, 2, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_rows_without_a_loss_have_nan_gradients(bad):
    logits = [[0.0, 1.0], bad]
    ours = gradient(xent_array.cross_entropy, logits, tensor([0, 1]), reduction="sum")
    assert ours[1].isnan().all()
    assert ours[0].isfinite().all()


def test_a_training_step_is_that_of_nn():
    """CrossEntropyLoss in the place of nn.CrossEntropyLoss."""
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(4, 3).to(DEVICE), torch.nn.Linear(4, 3).to(DEVICE)
    theirs.load_state_dict(ours.state_dict())
    x, y = tensor(LOGITS, dtype=torch.float32), tensor([0, 1, 2, 2, 1, 0])
    xent_array.CrossEntropyLoss(label_smoothing=0.1)(ours(x), y).backward()
    torch.nn.CrossEntropyLoss(label_smoothing=0.1)(theirs(x), y).backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_autocast_widens_half_results(dtype):
    logits, target = tensor(LOGITS, dtype=dtype), tensor(TARGET)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        ours = xent_array.cross_entropy(logits, target)
        theirs = F.cross_entropy(logits, target)
        assert xent_array.softmax(logits).dtype == dtype
    assert ours.dtype == theirs.dtype == (dtype if dtype == torch.float64 else torch.float32)


def test_half_gradients_are_half():
    logits = tensor(LOGITS, dtype=torch.bfloat16, requires_grad=True)
    xent_array.cross_entropy(logits, tensor(TARGET)).backward()
    assert logits.grad.dtype == torch.bfloat16


def test_meta_tensors_have_shapes_alone():
    logits = torch.empty(6, 4, device="meta")
    target = torch.empty(6, dtype=torch.int64, device="meta")
    assert xent_array.cross_entropy(logits, target, reduction="none").shape == (6,)
    with pytest.raises(ValueError, match="check=True must see the values of target"):
        xent_array.cross_entropy(logits, target, check=True)
    with pytest.raises(ValueError, match="on_empty='raise' must see which rows count"):
        xent_array.cross_entropy(logits, target, on_empty="raise")


def test_another_device_is_refused():
    with pytest.raises(ValueError, match=r"^target is on device meta but logits is on cpu: "):
        xent_array.cross_entropy(
            torch.zeros(2, 3), torch.empty(2, dtype=torch.int64, device="meta")
        )


def test_sparse_and_nested_tensors_are_refused():
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(TypeError, match="logits must be a strided tensor, got a sparse_coo one"):
        xent_array.cross_entropy(sparse, torch.zeros(3, dtype=torch.int64))


def test_transforms_see_one_expression():
    """torch.func.vmap and grad hide the values: nothing branches on them."""
    target = tensor([0, 3, 1])
    rows = tensor(LOGITS[:3])
    each = torch.func.vmap(xent_array.cross_entropy)(rows, target)
    torch.testing.assert_close(each, xent_array.cross_entropy(rows, target, reduction="none"))
    one = torch.func.grad(xent_array.cross_entropy)(rows, target)
    torch.testing.assert_close(one, gradient(F.cross_entropy, LOGITS[:3], target))


def test_transformed_targets_and_masks_hide_their_values_too():
    """Whichever argument a transform wraps, nobody looks at what it holds."""
    rows, target = tensor(LOGITS[:3]), tensor([[0, 3, 1], [0, 9, 1]])
    losses = torch.func.vmap(lambda t: xent_array.cross_entropy(rows, t))(target)
    assert losses.isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="on_empty='raise' must see which rows count"):
        torch.func.vmap(
            lambda mask: xent_array.cross_entropy(rows, target[0], where=mask, on_empty="raise")
        )(tensor([[True, False, True]]))


COMPILED_FIRST = """
import torch, xent_array
target = torch.tensor([0, 3, -100, 2])
def loss(logits):
    return xent_array.cross_entropy(logits, target, label_smoothing=0.1)
def gradient(function):
    logits = torch.arange(20.0).reshape(4, 5).requires_grad_()
    function(logits).backward()
    return logits.grad
compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
first, second = gradient(compiled), gradient(compiled)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
torch.testing.assert_close(first, gradient(loss))
torch.testing.assert_close(second, gradient(loss))
"""


def test_the_first_call_of_all_may_be_compiled():
    """In one graph, once, with warnings as errors: nothing is looked up in a way that breaks it."""
    torchs = "ignore:<class 'torch.autograd.function.Function'> should not be instantiated"
    command = [sys.executable, "-W", "error", "-W", torchs, "-c", COMPILED_FIRST]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shape", [(4, 5), (300, 1000)])
def test_the_first_call_of_all_may_be_checkpointed(shape, monkeypatch):
    """What is kept of it is what is kept of the second."""
    monkeypatch.setattr(_gather, "_templates", {})
    logits = torch.ones(shape, requires_grad=True)
    target = torch.zeros(shape[0], dtype=torch.int64)
    loss = torch.utils.checkpoint.checkpoint(
        xent_array.cross_entropy, logits, target, use_reentrant=False
    )
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, xent_array.cross_entropy_and_grad(logits, target)[1])


def test_parameters_and_no_grad():
    parameter = torch.nn.Parameter(tensor(LOGITS))
    with torch.no_grad():
        assert not xent_array.cross_entropy(parameter, tensor(TARGET)).requires_grad
    assert xent_array.cross_entropy(parameter, tensor(TARGET)).requires_grad
    assert xent_array.softmax(parameter).requires_grad
    assert xent_array.logsumexp(parameter).requires_grad


def test_small_losses_keep_their_gradient():
    """It is scaled by what comes from above, as often as asked, and can be differentiated."""
    logits = tensor(LOGITS, requires_grad=True)
    loss = xent_array.cross_entropy(logits, tensor(TARGET))
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (thrice,) = torch.autograd.grad(3.0 * loss, logits, retain_graph=True)
    torch.testing.assert_close(thrice, 3.0 * once, rtol=1e-15, atol=0.0)
    (again,) = torch.autograd.grad(loss, logits, create_graph=True)
    torch.testing.assert_close(again, once, rtol=1e-14, atol=1e-17)
    assert again.requires_grad
    assert torch.isfinite(torch.autograd.grad(again.square().sum(), logits)[0]).all()


def test_an_infinite_factor_leaves_ignored_rows_zero():
    logits = tensor(LOGITS, requires_grad=True)
    loss = xent_array.cross_entropy(logits, tensor(TARGET))
    (grad,) = torch.autograd.grad(loss, logits, tensor(np.inf))
    assert (grad[2] == 0).all()


def test_half_gradients_are_scaled_before_they_are_rounded():
    """A loss scaled up for float16 has gradients that would underflow unscaled."""
    logits = tensor([[18.0, 0.0]], dtype=torch.float16, requires_grad=True)
    loss = xent_array.cross_entropy(logits, tensor([0]), dtype=torch.float32)
    (grad,) = torch.autograd.grad(loss * 2.0**16, logits)
    assert grad[0, 1].item() == pytest.approx(2.0**16 * np.exp(-18.0), rel=2e-3)


@pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])
def test_export(target):
    """torch.export makes one graph of it, for other values of the same shapes."""

    class Loss(torch.nn.Module):
        def forward(self, logits, target):
            return xent_array.cross_entropy(logits, target, label_smoothing=0.1)

    arguments = tensor(LOGITS), tensor(target)
    program = torch.export.export(Loss(), arguments)
    ours = program.module()(arguments[0] * 2, arguments[1])
    expected = xent_array.cross_entropy(arguments[0] * 2, arguments[1], label_smoothing=0.1)
    torch.testing.assert_close(ours, expected, rtol=1e-14, atol=0.0)


def test_export_for_any_number_of_rows():
    class Loss(torch.nn.Module):
        def forward(self, logits, target):
            return xent_array.cross_entropy(logits, target, label_smoothing=0.1)

    logits, target = torch.randn(50, 100), torch.randint(0, 100, (50,))
    rows = {0: torch.export.Dim("rows")}
    program = torch.export.export(Loss(), (logits, target), dynamic_shapes=(rows, rows))
    expected = xent_array.cross_entropy(logits[:40], target[:40], label_smoothing=0.1)
    torch.testing.assert_close(program.module()(logits[:40], target[:40]), expected)


def test_deterministic_algorithms():
    """Nothing of it is refused when only deterministic operations are allowed."""
    torch.use_deterministic_algorithms(True)
    try:
        weight = tensor(WEIGHT, dtype=torch.float64, requires_grad=True)
        logits = tensor(LOGITS, requires_grad=True)
        for options in ({}, {"weight": weight, "label_smoothing": 0.1}):
            grads = [
                torch.autograd.grad(
                    xent_array.cross_entropy(logits, tensor(TARGET), **options), logits
                )[0]
                for _ in range(2)
            ]
            assert torch.equal(*grads)
    finally:
        torch.use_deterministic_algorithms(False)


def test_fake_tensors():
    """Shapes and dtypes of a call that never happens."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        logits = torch.empty(6, 4, requires_grad=True)
        target = torch.empty(6, dtype=torch.int64)
        loss, stats = xent_array.cross_entropy(logits, target, reduction="none", return_stats=True)
        assert loss.shape == stats.lse.shape == (6,)
        xent_array.cross_entropy(logits, target).backward()
        assert logits.grad.shape == (6, 4)
        _, grad = xent_array.cross_entropy_and_grad(logits, target)
        assert grad.shape == (6, 4)


def test_class_weights_on_the_models_device():
    """The recipe of the documentation: a module that keeps the class weights as a buffer."""

    class Criterion(torch.nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.register_buffer("weight", weight)

        def forward(self, logits, target):
            return xent_array.cross_entropy(logits, target, weight=self.weight)

    criterion = Criterion(torch.tensor(WEIGHT)).to(DEVICE, torch.float64)
    ours = criterion(tensor(LOGITS), tensor(TARGET))
    weight = tensor(WEIGHT, dtype=torch.float64)
    torch.testing.assert_close(ours, F.cross_entropy(tensor(LOGITS), tensor(TARGET), weight))
    assert list(criterion.state_dict()) == ["weight"]


def test_a_gradient_written_in_place_is_a_change_in_place():
    """Also where it is NumPy that writes: torch's backward must not use what is gone."""
    logits = tensor(LOGITS, requires_grad=True)
    middle = logits * 1.0
    loss = xent_array.cross_entropy(middle, tensor(TARGET))
    held = middle.detach()
    xent_array.cross_entropy_and_grad(held, tensor(TARGET), out=held)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_out_of_inference_mode():
    with torch.inference_mode():
        out = tensor(LOGITS).clone()
        xent_array.cross_entropy_and_grad(tensor(LOGITS), tensor(TARGET), out=out)
    with pytest.raises(ValueError, match="inference tensor"):
        xent_array.cross_entropy_and_grad(tensor(LOGITS), tensor(TARGET), out=out)


def test_out_that_is_a_negative_view():
    """Of a conjugate's imaginary part: NumPy cannot see the sign, and torch writes."""
    rows, classes = tensor(LOGITS).shape
    out = torch.zeros(rows, classes, dtype=torch.complex128, device=DEVICE).conj().imag
    _, grad = xent_array.cross_entropy_and_grad(tensor(LOGITS), tensor(TARGET), out=out)
    expected = xent_array.cross_entropy_and_grad(tensor(LOGITS), tensor(TARGET))[1]
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("rows", [6, 3000])
def test_a_watched_loss_and_a_backward_that_is_not(rows):
    """As in selective checkpointing: torch computes the one, NumPy the other."""
    from torch.utils.flop_counter import FlopCounterMode

    logits = torch.randn(rows, 50, device=DEVICE, dtype=torch.float64, requires_grad=True)
    target = torch.arange(rows, device=DEVICE) % 50
    weight = torch.rand(50, device=DEVICE, dtype=torch.float64)
    with FlopCounterMode(display=False):
        loss = xent_array.cross_entropy(logits, target, weight=weight)
    loss.backward()
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, target, weight), logits)
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_plain_tensors_inside_a_transform(needs_grad):
    """The transform is over something else; the logits are closed over."""
    logits, target = tensor(LOGITS, requires_grad=needs_grad), tensor(TARGET)
    expected = F.cross_entropy(logits, target)
    xent_array.cross_entropy(logits, target)

    def scaled(s):
        return s * xent_array.cross_entropy(logits, target)

    one = torch.tensor(1.0, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(torch.func.grad(scaled)(one), expected)
    many = torch.arange(3.0, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(torch.vmap(scaled)(many), many * expected)


def test_a_graph_recorded_from_values_holds_for_others():
    """No value is looked at while a graph is recorded: a target ignored later is ignored."""
    from torch.fx.experimental.proxy_tensor import make_fx

    logits, target = tensor(LOGITS), tensor(TARGET).clamp(min=0)
    xent_array.cross_entropy(logits, target)

    def loss(logits, target):
        return xent_array.cross_entropy(logits, target)

    graph = make_fx(loss)(logits, target)
    torch.testing.assert_close(
        graph(logits, tensor(TARGET)), F.cross_entropy(logits, tensor(TARGET))
    )


def test_negated_bfloat16_is_read_as_it_is():
    """Memory that torch negates on the way."""
    logits, target = torch.randn(5, 70).to(torch.bfloat16), torch.arange(5)
    expected = xent_array.cross_entropy(-logits, target)
    assert torch.equal(xent_array.cross_entropy(torch._neg_view(logits), target), expected)
