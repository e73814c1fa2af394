"""torch's tensors in a GPU's memory, which is the processor's here, read by the CUDA kernels."""

import contextlib

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import xent_array
from xent_array import (
    _gather,
    _kernels,
    _tiles,
    cross_entropy,
    cross_entropy_and_grad,
    linear_cross_entropy,
)
from xent_array.__main__ import served_by
from xent_array._backends import _torch_cuda
from xent_array._backends.torch import Backend
from xent_array._engines import _torch_compiled, _torch_constant
from xent_array._kernels import cuda
from xent_array._kernels.cuda import Kernels

from cuda_stand_in import Processor, library

pytestmark = [
    pytest.mark.library("torch"),
    pytest.mark.skipif(_kernels._missing("sys") is not None, reason="kernels are switched off"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

STATS, GRAD = "wide_stats", "wide_grad"


@pytest.fixture(params=[0, 1 << 16], ids=["", "fused"])
def launches(request, monkeypatch):
    """Have the processor's memory be a GPU's; the kernels that were launched there."""
    library()
    processor = Processor(keeps=request.param)
    if request.param:
        monkeypatch.setattr(cuda, "FUSED_BLOCKS", (1,))
        monkeypatch.setattr(cuda, "_FEW_ROWS", 1)
    kernels = Kernels(_torch_cuda, processor)
    memory = Backend.memory

    @contextlib.contextmanager
    def current(x):
        yield 0

    def on_gpu(backend, x):
        seen = memory(backend, x)
        return "device" if seen == "host" else seen

    monkeypatch.setitem(_torch_constant.SMALL, "device", 1 << 17)
    monkeypatch.setattr(_torch_cuda, "holds", lambda x: True)
    monkeypatch.setattr(_torch_cuda, "device", lambda x: 0)
    monkeypatch.setattr(_torch_cuda, "current", current)
    monkeypatch.setattr(Backend, "memory", on_gpu)
    monkeypatch.setattr(_gather, "_templates", {})  # which remember what reads calls like them
    monkeypatch.setattr(
        _kernels, "for_cuda", lambda producer: None if _kernels._disabled else kernels
    )
    return processor.launches


def names(launches):
    """What was launched on rows of logits since the last look."""
    kernels = [form.kernel.rpartition("_")[0] for _, _, form, _ in launches]
    launches.clear()
    both = {"columns": [], "fused1": [STATS, GRAD]}  # in place of these two
    return [x for name in kernels for x in both.get(name, [name])]


def problem(dtype=torch.float32, rows=300, classes=200):
    torch.manual_seed(0)
    logits = torch.randn(rows, classes, dtype=torch.float64).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (rows,))
    target[3] = -100
    return logits, target


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_loss_and_backward(launches, dtype, rows, smoothing, reduction):
    """One look at the logits for the loss and one for its gradient, with the right numbers."""
    logits, target = problem(dtype, max(rows, 4))
    options = {"reduction": reduction, "label_smoothing": smoothing}
    loss = cross_entropy(logits, target, **options, dtype=torch.float64)
    factor = torch.rand_like(loss)
    (grad,) = torch.autograd.grad(loss, logits, factor)
    assert names(launches) == [STATS, GRAD]
    wide = logits.detach().double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(wide, target, **options)
    (true,) = torch.autograd.grad(exact, wide, factor)
    unit = {torch.float64: 2**-53, torch.float32: 2**-24}.get(dtype, 2**-8)
    torch.testing.assert_close(loss, exact, rtol=64 * max(2**-53, min(unit, 2**-24)), atol=0)
    torch.testing.assert_close(grad.double(), true, rtol=64 * unit, atol=unit)
    assert (grad[3] == 0).all()


def test_small_gradients_come_with_the_loss(launches):
    """And are multiplied later, rows that do not count staying 0."""
    logits, target = problem(rows=40)
    loss = cross_entropy(logits, target)
    assert names(launches) == [STATS, GRAD]
    (grad,) = torch.autograd.grad(2 * loss, logits, retain_graph=True)
    (endless,) = torch.autograd.grad(float("inf") * loss, logits)
    assert names(launches) == []
    wide = logits.detach().double().requires_grad_()
    (2 * torch.nn.functional.cross_entropy(wide, target)).backward()
    torch.testing.assert_close(grad.double(), wide.grad, rtol=1e-5, atol=1e-9)
    assert (endless[3] == 0).all()
    assert endless[:3].isinf().all()


def test_a_loss_that_nothing_differentiates(launches):
    """Statistics too."""
    logits, target = problem()
    with torch.no_grad():
        loss, stats = cross_entropy(logits, target, return_stats=True)
    assert names(launches) == [STATS]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, target).detach())
    assert stats.prediction.equal(logits.argmax(1))


def test_images(launches):
    """A class axis that is not last costs no copy, forward and backward."""
    logits = torch.randn(2, 5, 8, 9, requires_grad=True)
    target = torch.randint(0, 5, (2, 8, 9))
    cross_entropy(logits, target).backward()
    assert names(launches) == ["lane_stats", "lane_grad"]
    ours, logits.grad = logits.grad, None
    torch.nn.functional.cross_entropy(logits, target).backward()
    torch.testing.assert_close(ours, logits.grad)


def test_out_is_known_to_have_changed(launches):
    """Also where it is the logits themselves."""
    logits, target = problem()
    logits = logits.detach()
    _, expected = cross_entropy_and_grad(logits, target)
    for out in (torch.empty_like(logits), logits):
        version = out._version
        _, grad = cross_entropy_and_grad(logits, target, out=out)
        assert grad is out
        assert out._version > version
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert names(launches) == [STATS, GRAD] * 3


def test_bad_indices_are_nan_and_nothing_looks(launches):
    logits, target = problem()
    target[5] = 200
    losses = cross_entropy(logits, target, reduction="none")
    losses.nansum().backward()
    assert names(launches) == [STATS, GRAD]
    assert losses.isnan().nonzero().tolist() == [[5]]
    assert logits.grad[5].isnan().all()
    assert logits.grad[:5].isfinite().all()


OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weight": torch.rand(200)},
    {"weight": torch.rand(200), "reduction": "none"},
    {"sample_weight": torch.rand(300), "z_loss": 1e-3, "on_empty": "zero"},
    {"where": torch.rand(300) < 0.5, "denominator": "rows", "logit_scale": 0.5},
]


def by_each_door(logits, target, options):
    """Backward, with statistics, and with a gradient at once."""
    logits = logits.detach().requires_grad_()
    loss = cross_entropy(logits, target, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return [
        *(loss, grad),
        *cross_entropy(logits.detach(), target, return_stats=True, **options)[1],
        *cross_entropy_and_grad(logits.detach(), target, **options),
    ]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "none")
def test_all_memory_is_taken_on_the_device_of_the_logits(launches, options):
    """What names no device is made on another one here, which has no memory."""
    logits, target = problem()
    expected = by_each_door(logits, target, options)
    with torch.device("meta"):
        found = by_each_door(logits, target, options)
    assert names(launches) == [STATS, GRAD, STATS, STATS, GRAD] * 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


#: What has the host wait for a device, or copies to it what the host has; no graph captures that.
WAITS = {"item", "_local_scalar_dense", "nonzero", "lift_fresh", "equal", "is_nonzero", "unique"}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "none")
def test_nothing_waits_for_the_device(launches, options):
    logits, target = problem()
    with torch.profiler.profile() as seen:
        by_each_door(logits, target, options)
    operations = {event.name.removeprefix("aten::") for event in seen.events()}
    assert len(operations) > 10
    assert operations.isdisjoint(WAITS), operations & WAITS


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_tile_of_the_linear_loss_is_a_batch_like_any(launches, monkeypatch, dtype, reduction):
    """Read once for the loss, then overwritten by its gradient; single losses read it twice."""
    monkeypatch.setitem(_tiles.TILE_BYTES, "device", 100 * 200 * 8)
    _, target = problem()
    leaves = [torch.randn(size, 5, dtype=dtype, requires_grad=True) for size in (300, 200)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    tiles = 3 if dtype is torch.float64 else 2
    for parts in leaves, wide:
        loss = linear_cross_entropy(*parts, target, reduction=reduction, dtype=torch.float64)
        loss.sum().backward()
        if parts is leaves:
            one = [STATS] if reduction == "none" else []
            assert names(launches) == one * tiles + [STATS, GRAD] * tiles
    with _kernels.disabled():
        expected = linear_cross_entropy(*wide, target, reduction=reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    for mine, theirs in zip(leaves, wide, strict=True):
        rough = dtype is torch.bfloat16
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-12, atol=0.05 * rough)


class Watcher(TorchDispatchMode):
    """What counts or records operations, as torch's profilers and tracers do."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def by_second_order(logits, target):
    (grad,) = torch.autograd.grad(cross_entropy(logits, target), logits, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), logits)
    return second


def by_forward_mode(logits, target):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits.detach(), torch.ones_like(logits))
        return forward_ad.unpack_dual(cross_entropy(dual, target)).tangent


def by_transform(logits, target):
    return torch.func.grad(cross_entropy)(logits.detach(), target)


def by_weights(logits, target):
    weight = torch.ones(logits.shape[1], requires_grad=True)
    return torch.autograd.grad(cross_entropy(logits, target, weight=weight), weight)[0]


def watched(logits, target):
    with Watcher():
        return cross_entropy(logits.detach(), target)


def negated(logits, target):
    view = torch._neg_view(logits.detach())
    assert view.is_neg()
    out = torch._neg_view(torch.empty_like(view))
    return cross_entropy_and_grad(view, target)[1], cross_entropy_and_grad(view, target, out=out)[1]


@pytest.mark.parametrize(
    "mode", [by_second_order, by_forward_mode, by_transform, by_weights, watched, negated]
)
def test_other_modes_are_torchs(launches, mode):
    """Where torch must see its own operations, the same values as without kernels."""
    logits, target = problem(torch.float64, 4)
    ours = mode(logits, target)
    allowed = [STATS] if mode is by_second_order else []  # the loss; its gradient is derived
    assert [name for name in names(launches) if name != GRAD] == allowed
    with _kernels.disabled():
        torch.testing.assert_close(ours, mode(logits, target))


def test_an_out_that_torch_must_write(launches):
    """A view of numbers that are to be negated: kernels know of none."""
    logits, target = problem()
    out = torch._neg_view(torch.empty(300, 200))
    _, grad = cross_entropy_and_grad(logits.detach(), target, out=out)
    assert names(launches) == []
    torch.testing.assert_close(grad, cross_entropy_and_grad(logits.detach(), target)[1])


def test_weights_that_are_a_view_to_be_negated(launches):
    logits, target = problem()
    weight = torch.rand(200)
    view = torch._neg_view(-weight)
    options = {"label_smoothing": 0.1}
    for one, other in zip(
        cross_entropy_and_grad(logits.detach(), target, weight=view, **options),
        cross_entropy_and_grad(logits.detach(), target, weight=weight, **options),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert names(launches) == [STATS, GRAD] * 2


@pytest.mark.parametrize("name", ["label_smoothing", "denominator"])
def test_a_number_that_is_a_view_to_be_negated(launches, name):
    logits, target = problem()
    number = torch.tensor(0.1)
    view = torch._neg_view(-number)
    assert view.is_neg()
    for one, other in zip(
        cross_entropy_and_grad(logits.detach(), target, **{name: view}),
        cross_entropy_and_grad(logits.detach(), target, **{name: number}),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_one_factor_of_all_rows_is_not_copied(launches):
    """As the backward of a mean or a sum has it."""
    logits, target = problem()
    loss = cross_entropy(logits, target)
    launches.clear()
    with torch.profiler.profile() as seen:
        (3 * loss).backward()
    assert "aten::clone" not in {event.name for event in seen.events()}
    wide = logits.detach().double().requires_grad_()
    (3 * torch.nn.functional.cross_entropy(wide, target)).backward()
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=1e-5, atol=1e-9)


def test_an_out_that_is_not_aligned_is_left_to_torch(launches):
    logits, target = problem()
    raw = torch.zeros(logits.nbytes + 1, dtype=torch.uint8)
    odd = torch.frombuffer(raw.numpy(), dtype=torch.float32, offset=1, count=logits.numel())
    _, grad = cross_entropy_and_grad(logits.detach(), target, out=odd.view_as(logits))
    assert names(launches) == []
    torch.testing.assert_close(grad, cross_entropy_and_grad(logits.detach(), target)[1])


def test_backward_by_kernels_of_a_loss_that_was_torchs(launches):
    """Where something watched the loss alone, the target's logit is gathered."""
    logits, target = problem()
    with Watcher():
        loss = cross_entropy(logits, target)
    loss.backward()
    assert names(launches) == [GRAD]
    wide = logits.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(wide, target).backward()
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=1e-5, atol=1e-9)


def test_no_kernel_where_values_cannot_be_seen(launches):
    meta = torch.empty(4, 100, device="meta")
    assert cross_entropy(meta, torch.empty(4, dtype=torch.int64, device="meta")).is_meta
    assert names(launches) == []


def test_compiled_code_calls_the_kernels(launches, monkeypatch):
    monkeypatch.setitem(_torch_compiled.WORTH_A_CALL, "cpu", 0)

    def gradient(loss):
        logits, target = problem()
        (grad,) = torch.autograd.grad(loss(logits, target), logits)
        assert names(launches) == [STATS, GRAD]
        return grad

    compiled = torch.compile(cross_entropy, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradient(compiled), gradient(cross_entropy))


def test_calls_alike_are_read_by_what_serves_each(launches):
    """What was checked of one call tells nothing of the kernels of the next."""
    logits, target = problem()
    raw = torch.zeros(logits.nbytes + 1, dtype=torch.uint8)
    odd = torch.frombuffer(raw.numpy(), dtype=torch.float32, offset=1, count=logits.numel())
    odd = odd.view_as(logits).copy_(logits.detach())
    with torch.no_grad():
        for z, served in ((logits, True), (odd, False), (logits, True)):
            loss = cross_entropy(z, target)
            assert names(launches) == [STATS] * served
            with _kernels.disabled():
                torch.testing.assert_close(cross_entropy(z, target), loss)
            assert names(launches) == []


def test_the_report_names_what_serves(launches, monkeypatch):
    assert served_by(torch, device="cpu") == "kernels compiled by NVRTC"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with _kernels.disabled():
        served = "portable array code, blocks of 32 MiB (no kernels: switched off)"
        assert served_by(torch, device="cpu") == served
    monkeypatch.setattr(torch.version, "cuda", None)
    assert Backend(torch).why_no_kernels(torch.zeros(1)) == "the GPU is not NVIDIA's"


@pytest.mark.parametrize("classes", [3, 300])
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_rows_without_a_target(launches, function, classes):
    """They are read by kernels, and differentiated."""
    ours = torch.randn(5, classes, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    found = getattr(xent_array, function)(ours)
    expected = getattr(torch, function)(theirs, -1)
    assert launches
    torch.testing.assert_close(found, expected)
    for x in (found, expected):
        x.backward(torch.arange(x.numel()).reshape(x.shape) / x.numel())
    torch.testing.assert_close(ours.grad, theirs.grad)
