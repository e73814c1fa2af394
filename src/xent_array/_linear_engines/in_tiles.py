"""Tile by tile: values that can be seen, which nobody differentiates."""

from __future__ import annotations

from xent_array._evaluate import Result
from xent_array._projected import Parts, Projected
from xent_array._slopes import Wanted
from xent_array._tiles import evaluate_tiles


def value(call: Projected) -> Result:
    """Evaluate the loss."""
    return evaluate_tiles(call)[0]


def value_and_grads(call: Projected) -> tuple[Result, Parts]:
    """Evaluate the loss and its derivatives by all that the logits are made of."""
    return evaluate_tiles(call, Wanted(True, True, True))
