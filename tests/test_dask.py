"""dask: lazy, cut in any way, of lengths not known yet, on any scheduler, and in little memory."""

import subprocess
import sys

import numpy as np
import pytest

import xent_array

from arrays import BENCHMARKS, set_budget

da = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")

pytestmark = pytest.mark.library("dask")

RNG = np.random.default_rng(31)
LOGITS = RNG.normal(size=(12, 3, 10)) * 3
TARGET = RNG.integers(0, 10, (12, 3))
TARGET[3, 1] = -100
PROBABILITIES = RNG.dirichlet(np.ones(10), size=(12, 3))
OPTIONS = {
    "plain": {},
    "everything": {
        "weight": RNG.random(10),
        "label_smoothing": 0.1,
        "sample_weight": RNG.random((12, 1)),
        "where": RNG.random((12, 3)) > 0.3,
        "z_loss": 0.1,
        "logit_scale": -1.5,
    },
    "lazy scalars": {
        "label_smoothing": np.asarray(0.2),
        "logit_scale": np.asarray(0.5),
        "denominator": np.asarray(7.0),
    },
    "softcap": {"softcap": 2.0},
}
CHUNKS = {
    "whole": (12, 3, 10),
    "rows": (5, 2, 10),
    "classes": (12, 3, 3),
    "both": (5, 3, (1, 4, 5)),
    "ones": (1, 1, 1),
    "empty ones": ((5, 0, 7), 3, (3, 0, 7)),
}
TARGETS = pytest.mark.parametrize("target", [TARGET, PROBABILITIES], ids=["index", "probabilities"])


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def lazy(options):
    return {n: da.asarray(x) if isinstance(x, np.ndarray) else x for n, x in options.items()}


@TARGETS
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_any_chunks(target, chunks, options):
    """Loss, statistics and gradient are those of the arrays in one piece."""
    for reduction in ("none", "mean", "sum"):
        if "denominator" in options and reduction != "mean":
            continue
        keywords = {"axis": -1, "reduction": reduction, "return_stats": True}
        expected = xent_array.cross_entropy_and_grad(LOGITS, target, **keywords, **options)
        ours = xent_array.cross_entropy_and_grad(
            da.from_array(LOGITS, chunks),
            da.from_array(target, (4, 2, 10)[: target.ndim]),
            **keywords,
            **lazy(options),
        )
        for x, y in zip((*ours[:2], *ours[2]), (*expected[:2], *expected[2]), strict=True):
            assert isinstance(x, da.Array)
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            np.testing.assert_allclose(x.compute(), y, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_class_axis(axis):
    logits = da.from_array(np.moveaxis(LOGITS, -1, axis), 4)
    target = da.from_array(TARGET, 5)
    loss, grad = xent_array.cross_entropy_and_grad(logits, target, axis=axis)
    expected = xent_array.cross_entropy_and_grad(LOGITS, TARGET, axis=-1)
    np.testing.assert_allclose(loss.compute(), expected[0], rtol=1e-13)
    np.testing.assert_allclose(
        np.moveaxis(grad.compute(), axis, -1), expected[1], rtol=1e-12, atol=1e-16
    )


def never(block):
    raise AssertionError("computed")


@TARGETS
def test_nothing_is_computed_while_the_graph_is_built(target):
    z, t = (da.from_array(x, 4).map_blocks(never, dtype=x.dtype, meta=x) for x in (LOGITS, target))
    for reduction in ("none", "mean", "sum"):
        options = {"axis": -1, "reduction": reduction, "label_smoothing": 0.1}
        xent_array.cross_entropy(z, t, return_stats=True, **options)
        _, grad = xent_array.cross_entropy_and_grad(z, t, **options)
    for function in (xent_array.softmax, xent_array.log_softmax, xent_array.logsumexp):
        function(z)
    with pytest.raises(AssertionError, match="computed"):
        grad.compute()


def test_unknown_lengths():
    """Rows chosen by a condition: how many there are is known only when they are computed."""
    kept = LOGITS[:, 0, 0] > 0
    rows, target = LOGITS[:, 0], TARGET[:, 0]
    z = da.from_array(rows, (5, 4))
    mask = z[:, 0] > 0
    z, t = z[mask], da.from_array(target, 5)[mask]
    assert np.isnan(z.shape[0])
    for reduction in ("none", "mean", "sum"):
        loss, grad = xent_array.cross_entropy_and_grad(z, t, reduction=reduction)
        expected = xent_array.cross_entropy_and_grad(rows[kept], target[kept], reduction=reduction)
        np.testing.assert_allclose(loss.compute(), expected[0], rtol=1e-13)
        np.testing.assert_allclose(grad.compute(), expected[1], rtol=1e-12, atol=1e-16)
    with pytest.raises(ValueError, match="logits must have a known number of classes"):
        xent_array.cross_entropy(z, t, axis=0)


def test_bad_targets_are_nan():
    """Nothing is looked at, so nothing raises; asked to look, it says that it cannot."""
    target = np.where(TARGET[0, 0] == TARGET, 1003, TARGET)
    z, t = da.from_array(LOGITS, 5), da.from_array(target, 5)
    losses = xent_array.cross_entropy(z, t, axis=-1, reduction="none").compute()
    np.testing.assert_array_equal(np.isnan(losses), target == 1003)
    _, grad = xent_array.cross_entropy_and_grad(z, t, axis=-1, reduction="sum")
    np.testing.assert_array_equal(np.isnan(grad.compute()).all(axis=-1), target == 1003)
    for options, text in (
        ({"check": True}, "check=True must"),
        ({"on_empty": "raise"}, "on_empty"),
    ):
        with pytest.raises(ValueError, match=text):
            xent_array.cross_entropy(z, t, axis=-1, **options)


def test_warnings_of_numpy_are_silenced_in_the_chunks():
    z = LOGITS.copy()
    z[0], z[1, :, 0], z[2] = -np.inf, np.inf, np.nan
    z = da.from_array(z, (5, 3, 4))
    for function in (xent_array.softmax, xent_array.log_softmax, xent_array.logsumexp):
        assert np.isnan(function(z).compute()).any()
    loss, grad = xent_array.cross_entropy_and_grad(z, da.from_array(TARGET, 5), axis=-1)
    assert np.isnan(loss.compute())
    assert np.isnan(grad.compute()).any()


def test_blocks_within_a_chunk(monkeypatch):
    set_budget(monkeypatch, 8 * 40)
    test_any_chunks(TARGET, CHUNKS["both"], OPTIONS["everything"])


def test_chunks_of_other_arrays_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    z = da.from_array(LOGITS[:, 0], 5).map_blocks(sparse.csr_matrix)
    with pytest.raises(TypeError, match="logits must have chunks of NumPy or CuPy arrays, got chu"):
        xent_array.cross_entropy(z, da.from_array(TARGET[:, 0], 5))


def test_masked_chunks_are_refused():
    """Their masks would be lost, or not, by how chunks are cut."""
    masked = np.ma.masked_less(LOGITS[:, 0], 0)
    z = da.from_array(masked, 5, asarray=False)
    with pytest.raises(TypeError, match=r"got chunks of numpy\.MaskedArray: map them to arrays"):
        xent_array.cross_entropy(z, da.from_array(TARGET[:, 0], 5))


def test_out_is_refused():
    z = da.from_array(LOGITS, 5)
    with pytest.raises(ValueError, match="out cannot be written to: it is traced, lazy or"):
        xent_array.cross_entropy_and_grad(z, da.from_array(TARGET, 5), axis=-1, out=z)


@pytest.mark.parametrize("processes", [False, True])
def test_a_cluster(processes):
    """The graph travels to workers, threads of this process or processes of their own."""
    distributed = pytest.importorskip("distributed")
    z, t = da.from_array(LOGITS, (5, 3, 4)), da.from_array(TARGET, 5)
    options = OPTIONS["everything"]
    loss, grad = xent_array.cross_entropy_and_grad(z, t, axis=-1, **lazy(options))
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=processes, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        dask.config.set(scheduler="dask.distributed"),
    ):
        ours = dask.compute(loss, grad)
    for x, y in zip(
        ours, xent_array.cross_entropy_and_grad(LOGITS, TARGET, axis=-1, **options), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("chunks", "scheduler"), [("256x32000", "threads"), ("1024x4000", "cluster")]
)
def test_memory_does_not_grow_with_the_logits(chunks, scheduler):
    """2 GB of logits made chunk by chunk are reduced in a few hundred MB."""
    command = [sys.executable, str(BENCHMARKS / "lazy_memory.py"), "2", chunks, scheduler]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak = next(line for line in done.stdout.splitlines() if line.startswith("peak"))
    assert float(peak.split()[1]) < 390
