"""On torch tensors: its own loss, eager and compiled, and one read of the logits."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import xent_array

from peers import COPY, READ, Call, Peer, Prepare, both_engines
from problems import SHAPES, Problem


def tensor(array: np.ndarray) -> torch.Tensor:
    """Share the memory of a NumPy array."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def forward(loss_of: Callable[..., torch.Tensor]) -> Prepare:
    """Call a loss on tensors that need no gradient."""

    def prepare(logits: np.ndarray, target: np.ndarray) -> Call:
        return functools.partial(loss_of, tensor(logits), tensor(target))

    return prepare


def backward(loss_of: Callable[..., torch.Tensor]) -> Prepare:
    """Call a loss and have torch go back through it; every call takes the gradient along."""

    def prepare(logits: np.ndarray, target: np.ndarray) -> Call:
        leaf, labels = tensor(logits).requires_grad_(), tensor(target)

        def loss_and_grad() -> tuple[torch.Tensor, torch.Tensor | None]:
            loss = loss_of(leaf, labels)
            loss.backward()
            grad, leaf.grad = leaf.grad, None
            return loss.detach(), grad

        return loss_and_grad

    return prepare


def compiled(
    loss_of: Callable[..., torch.Tensor], prepare_with: Callable[[Any], Prepare]
) -> Prepare:
    """Have torch compile a loss for the shape at hand."""

    def prepare(logits: np.ndarray, target: np.ndarray) -> Call:
        def alone(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return loss_of(logits, target)

        # In code of its own: torch would take what it has compiled of that for another engine, and
        # compiles it for so many shapes only.
        code = alone.__code__.replace()
        own = types.FunctionType(code, globals(), closure=alone.__closure__)
        return prepare_with(torch.compile(own, dynamic=False))(logits, target)

    return prepare


def one_read(logits: np.ndarray, _: np.ndarray) -> Call:
    """The greatest logit of all."""
    return functools.partial(torch.amax, tensor(logits))


def one_copy(logits: np.ndarray, _: np.ndarray) -> Call:
    """The logits in memory that NumPy takes, in huge pages where there are any."""
    source = tensor(logits)
    return lambda: tensor(np.empty_like(logits)).copy_(source)


def of_many_shapes(problem: Problem) -> bool:
    """Whether a problem is no step of a series: compiling for each takes its time."""
    return problem.shape in SHAPES


PEERS = [
    *both_engines("torch", forward(xent_array.cross_entropy), backward(xent_array.cross_entropy)),
    Peer("torch: F.cross_entropy", forward(cross_entropy), backward(cross_entropy)),
    Peer(
        "torch: F.cross_entropy, compiled",
        compiled(cross_entropy, forward),
        compiled(cross_entropy, backward),
        takes=of_many_shapes,
        compiled=True,
    ),
    *both_engines(
        "torch.compile",
        compiled(xent_array.cross_entropy, forward),
        compiled(xent_array.cross_entropy, backward),
        takes=of_many_shapes,
        compiled=True,
    ),
    Peer(READ, one_read, most=1e10),
    Peer(COPY, None, one_copy),
]
