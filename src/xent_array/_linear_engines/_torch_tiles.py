"""torch differentiates tile by tile, in every mode: each tile is made again where it is derived."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch

from xent_array._batch import Arrays, Batch, apart, together
from xent_array._evaluate import Result
from xent_array._linear_engines._torch_recomputed import recomputed
from xent_array._projected import Parts, Projected, flattened
from xent_array._tiles import (
    Columns,
    assembled,
    columns_of,
    counts_of,
    evaluate_columns,
    tiles,
)


def value(call: Projected) -> Result:
    """Evaluate the loss, in array code that may be differentiated."""
    shape, (batch, parts, *_) = call.batch.shape, flattened(call)
    batch = batch._replace(grad_output=None)
    bare, arrays = apart(batch, torch.Tensor)
    whole: Iterable[Any] = arrays._replace(target=None, where=None, sample_weight=None)
    of_tile = functools.partial(_of_tile, bare)
    every = [
        recomputed(of_tile, *columns, *parts[1:], *whole)
        for columns in _cut(columns_of(batch, parts), tiles(batch)[0].stop)
    ]
    loss, *stats = zip(*every, strict=True)
    joined = torch.cat(loss) if batch.reduction == "none" else torch.stack(loss).sum()
    return assembled(batch, shape, joined, [torch.cat(x) for x in stats], counts_of(batch))


def _cut(columns: Columns, rows: int) -> Iterator[Columns]:
    """Split, not sliced: the derivative of a slice would be as large as what it was cut from."""
    parts = [repeat(None) if x is None else x.split(rows) for x in columns]
    return map(Columns, *parts)


def _of_tile(bare: Batch, *tensors: Any) -> tuple[torch.Tensor, ...]:
    """Loss, and statistics where asked for, of the rows of some columns."""
    columns, (weight, bias), arrays = Columns(*tensors[:4]), tensors[4:6], Arrays(*tensors[6:])
    batch = together(bare, arrays._replace(target=columns.target))
    differentiable = batch.backend.differentiates(*tensors)
    result = evaluate_columns(
        batch._replace(differentiable=differentiable),
        Parts(columns.features, weight, bias),
        columns,
    )
    return result.loss, *(result.stats or ())
