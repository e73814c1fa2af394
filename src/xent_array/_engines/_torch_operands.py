"""torch operators are given tensors and words: named values, packed for one and unpacked in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def packed(values: Mapping[str, Any]) -> tuple[list[torch.Tensor], str]:
    """Tensors and numbers by their names, numbers first, as tensors; what is neither is left out.

    For each other number all would be compiled anew, but for a tensor's.
    """
    numbers = {name: x for name, x in values.items() if isinstance(x, float | int)}
    tensors = {name: x for name, x in values.items() if isinstance(x, torch.Tensor)}
    arrays = [*map(_in_a_tensor, numbers.values()), *tensors.values()]
    return arrays, " ".join((*numbers, "|", *tensors))


def unpacked(arrays: Sequence[torch.Tensor], names: str) -> dict[str, Any]:
    """What was packed, numbers as they were; names may have been added at the end."""
    numbers, tensors = (part.split() for part in names.split("|"))
    values: dict[str, Any] = dict(zip((*numbers, *tensors), arrays, strict=True))
    return values | {name: values[name].item() for name in numbers}


def _in_a_tensor(number: float) -> torch.Tensor:
    # By a product: what is handed to a tensor's maker is made a constant.
    return torch.ones((), dtype=torch.float64, device="cpu") * number
