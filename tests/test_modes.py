"""The modes of differentiation: each proved on each library that has it, and the page that says so.

Every probe returns the gradient by the logits, or what follows from it, made in one mode.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import xent_array

from arrays import DEVICE

RNG = np.random.default_rng(41)
LOGITS = RNG.normal(size=(6, 4)) * 2
TARGET = np.asarray([0, 3, -100, 2, 2, 1])
WEIGHT = np.asarray([0.5, 1.0, 2.0, 1.5])
SMOOTHING = 0.1
DIRECTION = np.cos(np.arange(24.0)).reshape(6, 4)


def expected_gradient():
    options = {"weight": WEIGHT, "label_smoothing": SMOOTHING}
    return xent_array.cross_entropy_and_grad(LOGITS, TARGET, **options)[1]


def expected_hessian():
    """From differences of the gradient, to be compared with loosely."""
    step, columns = 1e-6, []
    for i in np.ndindex(*LOGITS.shape):
        grads = []
        for sign in (1, -1):
            moved = LOGITS.copy()
            moved[i] += sign * step
            options = {"weight": WEIGHT, "label_smoothing": SMOOTHING}
            grads.append(xent_array.cross_entropy_and_grad(moved, TARGET, **options)[1])
        columns.append((grads[0] - grads[1]) / (2 * step))
    return np.stack(columns).reshape(6, 4, 6, 4)


# --- torch


TORCH_TARGET = torch.tensor(TARGET, device=DEVICE)
TORCH_WEIGHT = torch.tensor(WEIGHT, device=DEVICE)


def torch_loss(logits):
    options = {"weight": TORCH_WEIGHT, "label_smoothing": SMOOTHING}
    return xent_array.cross_entropy(logits, TORCH_TARGET, **options)


def torch_logits(**options):
    return torch.tensor(LOGITS, device=DEVICE, **options)


def torch_reverse():
    logits = torch_logits(requires_grad=True)
    torch_loss(logits).backward()
    return logits.grad


def torch_second():
    logits = torch_logits(requires_grad=True)
    (grad,) = torch.autograd.grad(torch_loss(logits), logits, create_graph=True)
    rows = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in grad.flatten()]
    return torch.stack(rows).reshape(6, 4, 6, 4)


def torch_forward():
    direction = torch.tensor(DIRECTION, device=DEVICE)
    return torch.func.jvp(torch_loss, (torch_logits(),), (direction,))[1]


def torch_function():
    return torch.func.grad(torch_loss)(torch_logits())


def torch_hessian():
    return torch.func.hessian(torch_loss)(torch_logits())


def torch_vmap():
    batch = torch.stack([torch_logits(), torch_logits()])
    return torch.vmap(torch.func.grad(torch_loss))(batch)[1]


def torch_compiled():
    torch._dynamo.reset()
    logits = torch_logits(requires_grad=True)
    torch.compile(torch_loss, fullgraph=True, backend="aot_eager")(logits).backward()
    return logits.grad


def torch_checkpointed():
    from torch.utils.checkpoint import checkpoint

    logits = torch_logits(requires_grad=True)
    checkpoint(torch_loss, logits, use_reentrant=False).backward()
    return logits.grad


def torch_shapes():
    logits = torch_logits(requires_grad=True).to("meta").detach().requires_grad_()
    target, weight = torch.tensor(TARGET).to("meta"), torch.tensor(WEIGHT).to("meta")
    xent_array.cross_entropy(logits, target, weight=weight).backward()
    return logits.grad


# --- JAX


def jax_loss(logits):
    jnp = pytest.importorskip("jax.numpy")
    options = {"weight": jnp.asarray(WEIGHT), "label_smoothing": SMOOTHING}
    return xent_array.cross_entropy(logits, jnp.asarray(TARGET), **options)


def with_jax(transform):
    """Apply what a function makes of `jax` and the loss to the logits."""

    def probe():
        jax = pytest.importorskip("jax")
        with jax.enable_x64(True):
            return transform(jax)(jax.numpy.asarray(LOGITS))

    return probe


MODES = {
    "reverse mode": (torch_reverse, with_jax(lambda jax: jax.grad(jax_loss))),
    "second derivatives": (torch_second, with_jax(lambda jax: jax.jacrev(jax.grad(jax_loss)))),
    "forward mode": (
        torch_forward,
        with_jax(lambda jax: lambda z: jax.jvp(jax_loss, (z,), (jax.numpy.asarray(DIRECTION),))[1]),
    ),
    "function transforms": (
        torch_function,
        with_jax(lambda jax: lambda z: jax.value_and_grad(jax_loss)(z)[1]),
    ),
    "Hessian": (torch_hessian, with_jax(lambda jax: jax.hessian(jax_loss))),
    "vmap of the gradient": (
        torch_vmap,
        with_jax(lambda jax: lambda z: jax.vmap(jax.grad(jax_loss))(jax.numpy.stack([z, z]))[1]),
    ),
    "compiled": (torch_compiled, with_jax(lambda jax: jax.jit(jax.grad(jax_loss)))),
    "checkpointed": (torch_checkpointed, with_jax(lambda jax: jax.grad(jax.checkpoint(jax_loss)))),
    "shapes alone": (
        torch_shapes,
        with_jax(lambda jax: lambda z: jax.eval_shape(jax.grad(jax_loss), z)),
    ),
}

#: What the page calls a mode in each library's own words.
WORDS = {
    "reverse mode": ("`backward`", "`grad`"),
    "second derivatives": ("`create_graph=True`", "`jacrev(grad)`"),
    "forward mode": ("`torch.func.jvp`", "`jvp`"),
    "function transforms": ("`torch.func.grad`", "`value_and_grad`"),
    "Hessian": ("`torch.func.hessian`", "`hessian`"),
    "vmap of the gradient": ("`torch.vmap(torch.func.grad)`", "`vmap(grad)`"),
    "compiled": ("`torch.compile(fullgraph=True)`", "`jit`"),
    "checkpointed": ("`torch.utils.checkpoint`", "`checkpoint`"),
    "shapes alone": ("meta tensors", "`eval_shape`"),
}


# torch's forward mode uses torch.jit, and warns of it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "library",
    [
        pytest.param(0, marks=pytest.mark.library("torch"), id="torch"),
        pytest.param(1, marks=pytest.mark.library("jax"), id="jax"),
    ],
)
def test_a_mode(library, mode):
    """With class weights, smoothing and an ignored row at once."""
    ours = MODES[mode][library]()
    if mode == "shapes alone":
        assert tuple(ours.shape) == LOGITS.shape
        return
    ours = np.asarray(ours.detach().cpu() if isinstance(ours, torch.Tensor) else ours)
    if mode in ("second derivatives", "Hessian"):
        np.testing.assert_allclose(ours, expected_hessian(), atol=1e-8)
        return
    expected = expected_gradient()
    if mode == "forward mode":
        expected = (expected * DIRECTION).sum()
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-16)


def table():
    lines = ["| mode | torch | JAX |", "| --- | --- | --- |"]
    lines += [f"| {mode} | {of_torch} | {of_jax} |" for mode, (of_torch, of_jax) in WORDS.items()]
    return "\n".join(lines)


def test_the_page_shows_the_modes():
    assert set(WORDS) == set(MODES)
    page = (Path(__file__).parent.parent / "docs" / "gradients.md").read_text()
    assert table() in page, f"docs/gradients.md must have this table:\n\n{table()}\n"
