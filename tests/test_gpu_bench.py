"""The benchmark of GPUs, without one: what it would measure, and how it tells of it."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from arrays import BENCHMARKS

pytestmark = [pytest.mark.library("torch"), pytest.mark.either_way]

SCRIPT = BENCHMARKS / "gpu.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so(bench):
    if any(gpu.there() for gpu in (bench.Torch(), bench.Cupy())):
        pytest.skip("a GPU is there")
    before = bench.PAGE.read_bytes()
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "no GPU that torch or CuPy can use: nothing was measured\n"
    assert done.stdout == ""
    assert bench.PAGE.read_bytes() == before


@pytest.fixture
def on_processor(bench, monkeypatch):
    """torch on the processor, which compiles nothing and whose clock is a constant."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)

    class Processor(bench.Torch):
        device = "cpu"

        def describe(self):
            return "a processor"

        def times(self, call, count):
            for _ in range(count):
                call()
            return [1e-3] * count

        def peak(self, call):
            return 1 << 20

        def wait(self):
            pass

    return Processor()


def test_all_passes_agree_and_are_told(bench, on_processor, monkeypatch):
    problem = bench.Problem(1000, 500, "float32")
    monkeypatch.setattr(bench, "PROBLEMS", [problem])
    told = bench.measured(on_processor, quick=True)
    losses = ("F.cross_entropy", "portable", "kernels")
    names = (*losses, *(f"{name}, compiled" for name in losses))
    passes = [f"{name}: {passage}" for name in names for passage in (bench.LOSS, bench.GRADIENT)]
    at_once = [f"{name}, at once: loss and gradient" for name in ("portable", "kernels")]
    for row in ("copy: copy", *passes, *at_once):
        assert told.count(f"| {row} | ") == 2  # of the problem and of the overhead
    assert "| copy: copy | 1.000 | 0.00 | 100% | 1 |" in told
    assert "| kernels: loss and gradient | 1.000 | 0.00 | 100% | 1 |" in told


def test_a_projection_is_measured_beside_its_products(bench, on_processor, monkeypatch):
    monkeypatch.setattr(bench, "PROJECTION", (20, 8, 50))
    told = bench.projected(on_processor)
    for name in (
        "its three products alone",
        "F.linear and F.cross_entropy",
        "linear_cross_entropy",
    ):
        assert f"| {name} | 1.0 | 1 |" in told


def test_losses_that_disagree_are_not_timed(bench, on_processor, monkeypatch):
    monkeypatch.setattr(bench.xent_array, "cross_entropy", lambda logits, target: logits.sum())
    with pytest.raises(ValueError, match=r"portable, loss: .* is not"):
        list(bench.race(on_processor, bench.Problem(10, 5, "float32"), 1))


def test_the_page_has_a_place_for_it(bench):
    page = bench.PAGE.read_text("utf-8")
    once = bench.with_section(page, "some tables\n")
    assert bench.with_section(once, "other tables\n") == once.replace("some tables", "other tables")
    assert all(part in page for part in once.split("some tables\n"))
