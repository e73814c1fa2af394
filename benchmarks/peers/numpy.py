"""On NumPy arrays: by hand, by SciPy and by scikit-learn."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss

import xent_array

from peers import Call, Peer, Prepare, both_engines, hard, soft
from problems import Problem

LossAndGrad = tuple[np.floating, np.ndarray]


def log_softmax_by_hand(logits: np.ndarray) -> np.ndarray:
    """What NumPy users write."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def by_hand(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """Pick the log-softmax at the targets by take_along_axis."""
    index = np.expand_dims(target, 1)
    return -np.take_along_axis(log_softmax_by_hand(logits), index, axis=1).mean()


def by_index(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """Pick it by integer indices, which NumPy does sooner."""
    return -log_softmax_by_hand(logits)[np.arange(len(target)), target].mean()


def by_scipy(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """Pick SciPy's log_softmax at the targets."""
    index = np.expand_dims(target, 1)
    return -np.take_along_axis(log_softmax(logits, axis=1), index, axis=1).mean()


def by_scikit_learn(logits: np.ndarray, target: np.ndarray) -> float:
    """scikit-learn's log_loss, which asks for probabilities."""
    return log_loss(target, softmax(logits, axis=1), labels=np.arange(logits.shape[1]))


def gradient_by_hand(logits: np.ndarray, target: np.ndarray) -> LossAndGrad:
    """Take the exponentials once, for the loss and for the softmax of the gradient."""
    index = np.expand_dims(target, 1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    grad = np.exp(shifted)
    sums = grad.sum(axis=1, keepdims=True)
    loss = (np.log(sums) - np.take_along_axis(shifted, index, axis=1)).mean()
    grad /= sums
    np.put_along_axis(grad, index, np.take_along_axis(grad, index, axis=1) - 1, axis=1)
    grad /= target.size
    return loss, grad


def gradient_by_index(logits: np.ndarray, target: np.ndarray) -> LossAndGrad:
    """The same with integer indices."""
    rows = np.arange(len(target))
    shifted = logits - logits.max(axis=1, keepdims=True)
    grad = np.exp(shifted)
    sums = grad.sum(axis=1, keepdims=True)
    loss = (np.log(sums)[:, 0] - shifted[rows, target]).mean()
    grad /= sums
    grad[rows, target] -= 1
    grad /= len(target)
    return loss, grad


def gradient_by_scipy(logits: np.ndarray, target: np.ndarray) -> LossAndGrad:
    """SciPy's log_softmax, and its exponentials less 1 at the targets."""
    index = np.expand_dims(target, 1)
    log_probabilities = log_softmax(logits, axis=1)
    picked = np.take_along_axis(log_probabilities, index, axis=1)
    grad = np.exp(log_probabilities)
    np.put_along_axis(grad, index, np.exp(picked) - 1, axis=1)
    grad /= target.size
    return -picked.mean(), grad


def softly_by_hand(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """Weigh the log-softmax by probabilities."""
    return -(target * log_softmax_by_hand(logits)).sum(axis=1).mean()


def softly_by_scipy(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """Weigh SciPy's log_softmax."""
    return -(target * log_softmax(logits, axis=1)).sum(axis=1).mean()


def soft_gradient_by_hand(logits: np.ndarray, target: np.ndarray) -> LossAndGrad:
    """Take the exponentials once, of probabilities that sum to 1."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    grad = np.exp(shifted)
    sums = grad.sum(axis=1, keepdims=True)
    losses = np.log(sums[:, 0]) - (target * shifted).sum(axis=1)
    grad /= sums
    grad -= target
    grad /= losses.size
    return losses.mean(), grad


def soft_gradient_by_scipy(logits: np.ndarray, target: np.ndarray) -> LossAndGrad:
    """SciPy's log_softmax, and its exponentials less the probabilities."""
    log_probabilities = log_softmax(logits, axis=1)
    losses = -(target * log_probabilities).sum(axis=1)
    grad = np.exp(log_probabilities)
    grad -= target
    grad /= losses.size
    return losses.mean(), grad


def widened(logits: np.ndarray, target: np.ndarray) -> np.floating:
    """By hand in float32: NumPy's own functions are slow and coarse in bfloat16."""
    return by_hand(logits.astype(np.float32), target)


def widened_gradient(logits: np.ndarray, target: np.ndarray) -> LossAndGrad:
    """The same with the gradient, in the dtype of the logits."""
    loss, grad = gradient_by_hand(logits.astype(np.float32), target)
    return loss, grad.astype(logits.dtype)


def on_arrays(function: Callable[..., object]) -> Prepare:
    """Call a function on the arrays as they are."""

    def prepare(logits: np.ndarray, target: np.ndarray) -> Call:
        return functools.partial(function, logits, target)

    return prepare


def in_numpy(problem: Problem) -> bool:
    """Whether NumPy itself has the dtype, of class indices."""
    return problem.dtype != "bfloat16" and hard(problem)


def soft_in_numpy(problem: Problem) -> bool:
    """The same of probabilities."""
    return problem.dtype != "bfloat16" and soft(problem)


def plain(problem: Problem) -> bool:
    """Whether it is also a plain matrix."""
    return in_numpy(problem) and len(problem.shape) == 2


PEERS = [
    *both_engines(
        "NumPy",
        on_arrays(xent_array.cross_entropy),
        on_arrays(xent_array.cross_entropy_and_grad),
    ),
    Peer("NumPy: by hand", on_arrays(by_hand), on_arrays(gradient_by_hand), in_numpy),
    Peer("NumPy: by hand, indexed", on_arrays(by_index), on_arrays(gradient_by_index), plain),
    Peer(
        "NumPy: by hand in float32",
        on_arrays(widened),
        on_arrays(widened_gradient),
        lambda problem: problem.dtype == "bfloat16" and hard(problem),
    ),
    Peer("SciPy: log_softmax", on_arrays(by_scipy), on_arrays(gradient_by_scipy), in_numpy),
    Peer(
        "NumPy: by hand",
        on_arrays(softly_by_hand),
        on_arrays(soft_gradient_by_hand),
        soft_in_numpy,
    ),
    Peer(
        "SciPy: log_softmax",
        on_arrays(softly_by_scipy),
        on_arrays(soft_gradient_by_scipy),
        soft_in_numpy,
    ),
    # It makes a matrix of ones and zeros of the targets, of eight bytes each.
    Peer("scikit-learn: log_loss", on_arrays(by_scikit_learn), takes=plain, most=5e6),
]
