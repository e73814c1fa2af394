"""softmax, log_softmax and logsumexp on torch's tensors, in all modes of its autograd."""

import contextlib

import pytest

import xent_array

from arrays import DEVICE

torch = pytest.importorskip("torch")
FlopCounterMode = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode

pytestmark = [
    pytest.mark.library("torch"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),  # torch's own
]

EVERY_FUNCTION = pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])


@pytest.mark.parametrize("axis", [0, 1])
@EVERY_FUNCTION
def test_every_derivative(function, axis):
    """Backward, twice, forward and batched, as finite differences tell."""
    z = torch.randn(4, 5, dtype=torch.float64, requires_grad=True, device=DEVICE)
    call = lambda z: getattr(xent_array, function)(z, axis=axis)  # noqa: E731
    torch.autograd.gradcheck(call, z, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(call, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40, 30), (600, 4000)], ids=["small", "in blocks"])
@EVERY_FUNCTION
def test_backward_is_as_torch_has_it(function, shape, dtype):
    """But for the rounding of half gradients, which torch's logsumexp has more of."""
    torch.manual_seed(0)
    ours = torch.randn(shape, device=DEVICE).to(dtype).requires_grad_()
    wide = ours.detach().double().requires_grad_()
    found = getattr(xent_array, function)(ours)
    expected = getattr(torch, function)(wide, -1)
    upstream = torch.randn(found.shape, device=DEVICE).to(dtype)
    found.backward(upstream)
    expected.backward(upstream.double())
    scale = wide.grad.abs().amax(-1, keepdim=True)
    limit = (4 * torch.finfo(dtype).eps) * scale
    assert ((ours.grad - wide.grad).abs() <= limit).all()
    assert ours.grad.dtype == dtype


@EVERY_FUNCTION
def test_what_backward_needs_is_one_array(function):
    """And of the logsumexp a few numbers of each row, beside the logits."""
    kept = []
    z = torch.randn(64, 1000, requires_grad=True, device=DEVICE)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        getattr(xent_array, function)(z)
    assert sum(x.numel() for x in kept if x.numel() >= z.numel()) == z.numel()


@EVERY_FUNCTION
def test_transforms(function):
    call = getattr(xent_array, function)
    reference = lambda z: getattr(torch, function)(z, -1)  # noqa: E731
    z = torch.randn(6, 5, dtype=torch.float64, device=DEVICE)
    for transform in (torch.func.vmap, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(call)(z), transform(reference)(z))
    ours, theirs = (
        torch.func.hessian(lambda z, f=f: (f(z) ** 2).sum())(z) for f in (call, reference)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.either_way
@EVERY_FUNCTION
def test_compiled(function):
    """One graph, of values and gradients."""
    torch._dynamo.reset()
    call = getattr(xent_array, function)
    ours = torch.randn(33, 17, requires_grad=True, device=DEVICE)
    theirs = ours.detach().clone().requires_grad_()
    found, expected = torch.compile(call, fullgraph=True)(ours), call(theirs)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad)


@EVERY_FUNCTION
def test_checkpoints(function):
    z = torch.randn(5, 7, requires_grad=True, device=DEVICE)
    call = getattr(xent_array, function)
    torch.utils.checkpoint.checkpoint(call, z, use_reentrant=False).pow(2).sum().backward()
    once = z.grad.clone()
    z.grad = None
    call(z).pow(2).sum().backward()
    torch.testing.assert_close(z.grad, once)


@pytest.mark.either_way
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.mul_(2),
        lambda y: y.masked_fill_(y < -1, 0.0),
        lambda y: y.add_(1).exp_(),
    ],
    ids=["multiplied", "masked", "twice"],
)
@EVERY_FUNCTION
def test_compiled_results_may_be_changed_in_place(function, change, axis):
    """Where a call alone lets backward raise, as torch does."""
    torch._dynamo.reset()
    call = getattr(xent_array, function)
    z = torch.randn(6, 5, requires_grad=True, device=DEVICE)
    upstream = torch.randn_like(call(z, axis))
    compiled = torch.compile(lambda z: change(call(z, axis)), fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(z), z, upstream)
    reference = change(getattr(torch, function)(z, axis).clone())
    torch.testing.assert_close(found, *torch.autograd.grad(reference, z, upstream))
    if function != "logsumexp":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(change(call(z, axis)), z, upstream)


@pytest.mark.parametrize("mode", ["alone", "compiled", "in blocks"])
@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
def test_confident_rows_pass_on_small_derivatives(function, mode):
    """Where torch's own function passes on 0."""
    torch._dynamo.reset()
    call = getattr(xent_array, function)
    call = torch.compile(call, fullgraph=True, backend="aot_eager") if mode == "compiled" else call
    z = torch.zeros(400_000 if mode == "in blocks" else 2, 3, device=DEVICE)
    z += torch.tensor([20.0, 0.0, 1.0], device=DEVICE)
    upstream = torch.zeros_like(z)
    upstream[:, 0] = 1
    (found,) = torch.autograd.grad(call(z.requires_grad_()), z, upstream)
    wide = z.detach()[:1].double().requires_grad_()
    (exact,) = torch.autograd.grad(getattr(torch, function)(wide, -1), wide, upstream[:1].double())
    torch.testing.assert_close(found.double(), exact.expand(z.shape), rtol=1e-6, atol=0)


@EVERY_FUNCTION
def test_results_are_no_views(function):
    """So that they may be changed in place, along whatever axis and by whatever code."""
    for dtype in (torch.float32, torch.bfloat16):
        z = torch.randn(4, 5, 6, device=DEVICE).to(dtype).requires_grad_()
        for context in (contextlib.nullcontext(), FlopCounterMode(display=False)):
            with context:
                found = getattr(xent_array, function)(z, axis=0)
            assert found.is_contiguous()
            found.mul_(2)
