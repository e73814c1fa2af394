"""Any strides, any class axis, read-only memory, and no copy of the whole."""

import os
import subprocess
import sys

import numpy as np
import pytest

import xent_array
from xent_array._blocks import plan
from xent_array._row_blocks import row_blocks

from arrays import BENCHMARKS, make, set_budget, to_numpy

LOGITS = np.random.default_rng(5).normal(size=(4, 6, 5, 3))
TARGET = np.random.default_rng(6).integers(0, 6, (4, 5, 3))
OPTIONS = {"reduction": "none", "label_smoothing": 0.1}
VIEWS = {
    "reversed": np.s_[:, :, ::-1, :],
    "steps": np.s_[::2, :, 1::2, :],
    "one image": np.s_[1:2, :, :, :],
}


def expected(logits, target):
    """Row by row, each by itself."""
    rows = np.moveaxis(logits, 1, -1)
    losses = [
        float(xent_array.cross_entropy(rows[place].copy(), np.asarray(target[place]), **OPTIONS))
        for place in np.ndindex(*target.shape)
    ]
    return np.reshape(losses, target.shape)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
@pytest.mark.parametrize("bytes_a_block", [1 << 20, 8 * 6 * 4, 8 * 5])
def test_strides_and_axes(xp, view, axis, bytes_a_block, monkeypatch):
    """Views with any strides and the class axis anywhere, whole, in row blocks, in slabs."""
    if xp.__name__ == "torch" and view == "reversed":
        pytest.skip("torch has no negative strides")
    set_budget(monkeypatch, bytes_a_block)
    batch, classes, *pixels = VIEWS[view]
    logits = make(xp, LOGITS)[(batch, classes, *pixels)]
    target = make(xp, TARGET)[(batch, *pixels)]
    losses = xent_array.cross_entropy(xp.moveaxis(logits, 1, axis), target, axis=axis, **OPTIONS)
    np.testing.assert_allclose(
        to_numpy(losses), expected(to_numpy(logits), to_numpy(target)), rtol=1e-14
    )


def test_read_only_and_broadcast_memory():
    """Arrays that cannot be written to, memory maps and zero strides are only read."""
    logits, target = LOGITS[0, :, :, 0].T.copy(), TARGET[0, :, 0]
    frozen = logits.copy()
    frozen.flags.writeable = False
    plain = xent_array.cross_entropy(logits, target)
    assert xent_array.cross_entropy(frozen, target) == plain
    repeated = np.broadcast_to(logits[0], (5, 6))
    assert xent_array.cross_entropy(repeated, target[:1].repeat(5)) == pytest.approx(
        float(xent_array.cross_entropy(logits[0], target[0])), rel=1e-15
    )


def test_memory_maps(tmp_path):
    """numpy.memmap in, ndarray out."""
    mapped = np.memmap(tmp_path / "logits", dtype=np.float32, mode="w+", shape=(5, 6))
    mapped[:] = LOGITS[0, :, :, 0].T
    loss = xent_array.cross_entropy(mapped, TARGET[0, :, 0], reduction="none")
    assert type(loss) is np.ndarray
    assert type(xent_array.softmax(mapped)) is np.ndarray


def test_byte_order():
    """Arrays of the other byte order are read right, and looked at right."""
    logits, target = LOGITS[0, :, :, 0].T, TARGET[0, :, 0]
    swapped = logits.astype(logits.dtype.newbyteorder())
    for labels in (target, target.astype(target.dtype.newbyteorder())):
        assert xent_array.cross_entropy(swapped, labels) == xent_array.cross_entropy(logits, target)


def test_blocks_cover_every_row_once_in_order():
    for shape in [(), (7,), (3, 4), (2, 3, 4), (5, 1, 3)]:
        for size in range(1, 40):
            numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
            pieces = [numbers[block].ravel() for block in row_blocks(shape, size)]
            np.testing.assert_array_equal(np.concatenate(pieces), numbers.ravel())
            assert max(map(len, pieces)) <= size


def test_slabs_are_for_rows_wider_than_the_budget():
    assert plan((8,), 100, 4, budget=400).slabs == [slice(0, 100)]
    wide = plan((8,), 250, 4, budget=400)
    assert wide.slabs == [slice(0, 100), slice(100, 200), slice(200, 250)]
    assert len(wide.blocks) == 8


MEASURE = """
import sys
import numpy as np
import xent_array
from memory import Watch
library, kind, function = sys.argv[1:]
n, c = 512, 32000
logits = np.random.default_rng(0).standard_normal((n, c), dtype=np.float32)
target = np.zeros(n, dtype=np.int64)
options = {}
if kind == "probabilities":
    target = np.full((n, c), 1 / c, dtype=np.float32)
if kind == "everything":
    target[::2] = -100
    options = dict(label_smoothing=0.1, z_loss=1e-4, softcap=30.0, return_stats=True)
if kind == "many rows":
    logits = logits.reshape(-1, 2)
    target = np.zeros(len(logits), dtype=np.uint8)
    options = dict(on_empty="raise", ignore_index=1, sample_weight=np.ones(len(logits)))
if library == "torch":
    import torch
    logits, target = torch.from_numpy(logits), torch.from_numpy(target)
few = {name: x[:64] if hasattr(x, "shape") else x for name, x in options.items()}
if function == "cross_entropy":
    call = xent_array.cross_entropy
elif function == "backward":
    def call(logits, target, **options):
        loss = xent_array.cross_entropy(logits.requires_grad_(), target, **options)
        (loss if isinstance(loss, torch.Tensor) else loss[0]).backward()
        logits.grad = None
else:
    def call(logits, target, **options):
        xent_array.cross_entropy_and_grad(logits, target, out=logits, **options)
call(logits[:64], target[:64], **few)
with Watch() as watch:
    call(logits, target, **options)
print(watch.peak - watch.before)
"""


def grown(library, kind, function):
    """Mebibytes of anonymous memory that a call takes in a process of its own."""
    command = [sys.executable, "-c", MEASURE, library, kind, function]
    path = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=path)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("library", "kind"),
    [
        *(("numpy", kind) for kind in ("index", "probabilities", "everything", "many rows")),
        *(("torch", kind) for kind in ("index", "probabilities")),  # evaluated by NumPy as well
    ],
)
@pytest.mark.parametrize("function", ["cross_entropy", "cross_entropy_and_grad"])
def test_blocks_alone_are_held(library, kind, function):
    """Anonymous memory grows by less than 32 MiB beside logits of 62 MiB, whatever the options.

    So does it for the gradient in the place of the logits.
    """
    assert grown(library, kind, function) < 32


@pytest.mark.library("torch")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["index", "probabilities"])
def test_backward_takes_the_gradient_and_blocks(kind):
    """torch's own function takes three times the logits."""
    assert grown("torch", kind, "backward") < 512 * 32_000 * 4 / 2**20 + 32
