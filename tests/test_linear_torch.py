"""linear_cross_entropy in torch: plain backward from tiles, and every other mode."""

import itertools

import numpy as np
import pytest
import torch

import xent_array
from test_linear import (
    FEATURES,
    LINEAR_BIAS,
    LINEAR_WEIGHT,
    OPTIONS,
    REDUCTIONS,
    TARGET,
    TARGETS,
    C,  # noqa: F401  for the fixture `tile_rows`
    arrays,
    by_hand,
)

from arrays import to_numpy

pytestmark = pytest.mark.library("torch")

PARTS = (FEATURES, LINEAR_WEIGHT, LINEAR_BIAS)


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


@REDUCTIONS
@pytest.mark.usefixtures("tile_rows")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_torch_differentiates_twice_and_forward(reduction):
    def loss(features, weight, bias):
        return xent_array.linear_cross_entropy(
            features, weight, torch.tensor(TARGET), linear_bias=bias, reduction=reduction
        )

    assert torch.autograd.gradcheck(loss, leaves(*PARTS), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, leaves(*PARTS))


def test_torch_transforms_and_compiles():
    features, weight = map(torch.tensor, PARTS[:2])
    target = torch.tensor(TARGET)

    def loss(weight, features):
        return xent_array.linear_cross_entropy(features, weight, target)

    expected = xent_array.linear_cross_entropy_and_grad(features, weight, target)[1]
    grad = torch.func.grad(loss)(weight, features)
    torch.testing.assert_close(grad, expected[1], rtol=1e-11, atol=1e-14)
    both = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, torch.stack([features] * 2))
    torch.testing.assert_close(both[1], expected[1], rtol=1e-11, atol=1e-14)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    weight.requires_grad_()
    compiled(weight, features).backward()
    torch.testing.assert_close(weight.grad, expected[1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("compiled", [False, True])
def test_results_are_constants_to_torch(compiled):
    target = torch.tensor(TARGET)

    def both(*parts):
        loss, grads = xent_array.linear_cross_entropy_and_grad(
            *parts[:2], target, linear_bias=parts[2]
        )
        return loss, *grads

    torch._dynamo.reset()
    call = torch.compile(both, fullgraph=True, backend="aot_eager") if compiled else both
    assert not any(x.requires_grad for x in call(*leaves(*PARTS)))


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


def test_torch_keeps_nothing_of_the_logits():
    """What is kept for backward is no larger than arguments and gradients."""
    features = torch.randn(64, 4, requires_grad=True)
    weight = torch.randn(1000, 4, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        xent_array.linear_cross_entropy(features, weight, torch.zeros(64, dtype=torch.int64))
    assert max(kept) == weight.numel()
