"""Time the kernels of a GPU beside a copy of its memory and the losses of others.

``python benchmarks/gpu.py`` takes torch and CuPy, whichever has a GPU, and those of the other
losses that are installed. It prints what it measures, and puts the tables on the page of
benchmarks; ``--quick`` measures less, and leaves the page alone. Without a GPU nothing is measured.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import xent_array
from xent_array import _kernels

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"

#: Where the tables are kept for those who make the page anew.
TABLES = Path(__file__).with_name("gpu.md")

#: What the page has of a GPU stands between these lines.
BEGIN, END = "<!-- measured on a GPU -->\n", "<!-- until here -->\n"

#: Calls that are timed, after some that are not; fewer where they would take longer, in seconds.
ROUNDS, FIRST, LONGEST = 30, 5, 0.5

#: Bytes that are written before every call: that takes longer than the host takes for a call.
WORK = 1 << 31

#: How far the loss of one may be from that of another, relatively.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}

#: How often a pass must take all logits from memory, or to it.
COPY, LOSS, GRADIENT = "copy", "loss", "loss and gradient"
TRAFFIC = {COPY: 2, LOSS: 1, GRADIENT: 2}

Call = Callable[[], Any]


class Problem(NamedTuple):
    """So many rows of so many classes."""

    rows: int
    classes: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.rows} rows of {self.classes} classes, {self.dtype}"

    def bytes(self) -> int:
        """What the logits take."""
        return self.rows * self.classes * (4 if self.dtype == "float32" else 2)


PROBLEMS = [
    Problem(rows, classes, dtype)
    for rows, classes in ((8192, 32_000), (8192, 50_257), (8192, 128_256))
    for dtype in ("float32", "bfloat16")
]

#: So small that what counts is how long the call itself takes.
TINY = Problem(1024, 1000, "float32")

#: Rows, features and classes of a projection, whose logits need not be held.
PROJECTION = (8192, 4096, 128_256)


class Figure(NamedTuple):
    """What one contestant took for one pass over a problem."""

    library: str
    problem: Problem
    contestant: str
    passage: str
    seconds: float
    peak: int  # bytes, beside the logits

    def speed(self) -> float:
        """Terabytes a second, of what the pass must take from memory and to it."""
        return TRAFFIC[self.passage] * self.problem.bytes() / self.seconds / 1e12


class Gpu(ABC):
    """A library that has a GPU."""

    name: str

    @abstractmethod
    def there(self) -> bool: ...

    @abstractmethod
    def describe(self) -> str:
        """Name the GPU and what drives it."""

    @abstractmethod
    def data(self, problem: Problem) -> tuple[Any, Any]:
        """Make standard normal logits and a target."""

    @abstractmethod
    def calls(self, logits: Any, target: Any) -> Iterator[tuple[str, str, Call]]:
        """Prepare each contestant's calls, by its name and the pass; they return a loss."""

    @abstractmethod
    def times(self, call: Call, count: int) -> list[float]:
        """Time so many calls on the device, which has other work before each of them.

        So the host is ahead of it, as where a model is trained; what a call takes there is measured
        apart. And no call finds the logits in the device's cache.
        """

    @abstractmethod
    def peak(self, call: Call) -> int:
        """Find how much memory a call takes at most."""

    @abstractmethod
    def wait(self) -> None: ...


class Torch(Gpu):
    """torch, its own loss eager and compiled, and the kernels of others on its tensors."""

    name, device = "torch", "cuda"

    def there(self) -> bool:
        if importlib.util.find_spec("torch") is None:
            return False
        import torch

        return torch.cuda.is_available()

    def describe(self) -> str:
        import torch

        gpu = torch.cuda.get_device_properties(0)
        memory = f"{gpu.total_memory / 2**30:.0f} GiB"
        return f"{gpu.name}, {memory}, CUDA {torch.version.cuda}, torch {torch.__version__}"

    def data(self, problem: Problem) -> tuple[Any, Any]:
        import torch

        torch.manual_seed(0)
        shape, dtype = (problem.rows, problem.classes), getattr(torch, problem.dtype)
        logits = torch.randn(shape, dtype=dtype, device=self.device)
        return logits, torch.randint(problem.classes, shape[:1], device=self.device)

    def calls(self, logits: Any, target: Any) -> Iterator[tuple[str, str, Call]]:
        import torch

        room = torch.empty_like(logits)
        yield "copy", COPY, functools.partial(room.copy_, logits)
        del room
        leaf = logits.detach().requires_grad_()

        def backward(loss_of: Callable[[Any, Any], Any]) -> Any:
            loss = loss_of(leaf, target)
            loss.backward()
            leaf.grad = None
            return loss.detach()

        for name, loss_of in self.losses():
            yield name, LOSS, functools.partial(loss_of, logits, target)
            yield name, GRADIENT, functools.partial(backward, loss_of)
        at_once = xent_array.cross_entropy_and_grad
        for name, engine in ENGINES:
            yield f"{name}, at once", GRADIENT, engine(lambda: at_once(logits, target)[0])

    def projections(self) -> Iterator[tuple[str, Call]]:
        """Prepare the products that a projection and its loss must take, and who takes them."""
        import torch

        rows, features, classes = PROJECTION
        half = {"dtype": torch.bfloat16, "device": self.device}
        torch.manual_seed(0)
        x = torch.randn(rows, features, **half).requires_grad_()
        weight = (torch.randn(classes, features, **half) / features**0.5).requires_grad_()
        target = torch.randint(classes, (rows,), device=self.device)

        def products() -> None:
            with torch.no_grad():
                logits = x @ weight.T
                logits @ weight
                logits.T @ x

        def backward(loss: Any) -> None:
            loss.backward()
            x.grad = weight.grad = None

        def held() -> None:
            logits = torch.nn.functional.linear(x, weight)
            backward(torch.nn.functional.cross_entropy(logits, target))

        yield "its three products alone", products
        yield "F.linear and F.cross_entropy", held
        ours = xent_array.linear_cross_entropy
        yield "linear_cross_entropy", lambda: backward(ours(x, weight, target))

    def losses(self) -> Iterator[tuple[str, Callable[[Any, Any], Any]]]:
        """Take the losses that are installed, ours last."""
        import torch

        plain = torch.nn.functional.cross_entropy
        yield "F.cross_entropy", plain
        torch.compiler.reset()
        yield "F.cross_entropy, compiled", torch.compile(plain, dynamic=False)
        if importlib.util.find_spec("liger_kernel") is not None:
            from liger_kernel.transformers import LigerCrossEntropyLoss

            # It writes the gradient over the logits, here over a copy of them.
            liger = LigerCrossEntropyLoss()
            yield "Liger and a copy", lambda logits, target: liger(logits.clone(), target)
        if importlib.util.find_spec("quack") is not None:
            from quack.cross_entropy import cross_entropy

            yield "quack", cross_entropy
        ours = xent_array.cross_entropy
        # Two of them: torch keeps what it has compiled by the code, and would take it for both.
        own = [lambda z, t: ours(z, target=t), lambda z, t: ours(z, target=t)]
        for (name, engine), alone in zip(ENGINES, own, strict=True):
            yield name, engine(ours)
            yield f"{name}, compiled", engine(torch.compile(alone, dynamic=False))

    def times(self, call: Call, count: int) -> list[float]:
        import torch

        work = torch.empty(WORK, dtype=torch.uint8, device=self.device)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for begin, end in events:
            work.zero_()
            begin.record()
            call()
            end.record()
        self.wait()
        return [begin.elapsed_time(end) / 1e3 for begin, end in events]

    def peak(self, call: Call) -> int:
        import torch

        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.wait()
        return int(torch.cuda.max_memory_allocated()) - before

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()


class Cupy(Gpu):
    """CuPy, whose arrays have no loss but ours."""

    name = "CuPy"

    def there(self) -> bool:
        if importlib.util.find_spec("cupy") is None:
            return False
        import cupy

        return bool(cupy.is_available())

    def describe(self) -> str:
        import cupy

        gpu = cupy.cuda.runtime.getDeviceProperties(0)
        memory = f"{gpu['totalGlobalMem'] / 2**30:.0f} GiB"
        cuda = cupy.cuda.runtime.runtimeGetVersion()
        release = f"CUDA {cuda // 1000}.{cuda % 1000 // 10}"
        return f"{gpu['name'].decode()}, {memory}, {release}, CuPy {cupy.__version__}"

    def data(self, problem: Problem) -> tuple[Any, Any]:
        import cupy

        shape, dtype = (problem.rows, problem.classes), problem.dtype
        if dtype == "bfloat16":
            import ml_dtypes

            dtype = ml_dtypes.bfloat16
        random = cupy.random.default_rng(0)
        logits = random.standard_normal(shape, dtype="float32").astype(dtype, copy=False)
        return logits, random.integers(0, problem.classes, shape[:1])

    def calls(self, logits: Any, target: Any) -> Iterator[tuple[str, str, Call]]:
        import cupy

        room = cupy.empty_like(logits)
        yield "copy", COPY, functools.partial(cupy.copyto, room, logits)
        del room
        at_once = xent_array.cross_entropy_and_grad
        for name, engine in ENGINES:
            yield name, LOSS, engine(lambda: xent_array.cross_entropy(logits, target))
            yield f"{name}, at once", GRADIENT, engine(lambda: at_once(logits, target)[0])

    def times(self, call: Call, count: int) -> list[float]:
        import cupy

        work = cupy.empty(WORK, "uint8")
        events = [[cupy.cuda.Event() for _ in range(2)] for _ in range(count)]
        for begin, end in events:
            work.fill(0)
            begin.record()
            call()
            end.record()
        self.wait()
        return [cupy.cuda.get_elapsed_time(begin, end) / 1e3 for begin, end in events]

    def peak(self, call: Call) -> int:
        import cupy

        pool = cupy.get_default_memory_pool()
        self.wait()
        pool.free_all_blocks()
        before = pool.total_bytes()
        call()
        self.wait()
        return int(pool.total_bytes()) - before

    def wait(self) -> None:
        import cupy

        cupy.cuda.Device().synchronize()


def without_kernels(call: Callable[..., Any]) -> Callable[..., Any]:
    """Have array code do what a call asks for."""

    def switched_off(*args: Any) -> Any:
        with _kernels.disabled():
            return call(*args)

    return switched_off


#: Ours, by array code and by kernels where there are any.
ENGINES: list[tuple[str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = [
    ("portable", without_kernels),
    ("kernels", lambda call: call),
]


def race(gpu: Gpu, problem: Problem, rounds: int) -> Iterator[Figure]:
    """Measure all contestants on the same data, once their losses agree."""
    logits, target = gpu.data(problem)
    expected = None
    for contestant, passage, call in gpu.calls(logits, target):
        for _ in range(FIRST):
            found = call()
        enough = max(3, min(rounds, int(LONGEST / gpu.times(call, 1)[0])))
        if passage != COPY:
            loss = float(found)
            expected = loss if expected is None else expected
            if not math.isclose(loss, expected, rel_tol=TOLERANCE[problem.dtype]):
                raise ValueError(f"{contestant}, {passage}: {loss} is not {expected}")
        del found
        seconds = statistics.median(gpu.times(call, enough))
        yield Figure(gpu.name, problem, contestant, passage, seconds, gpu.peak(call))


def overheads(gpu: Gpu, repeats: int) -> Iterator[tuple[str, str, float]]:
    """Time calls that are over on the device before they are on the host."""
    for contestant, passage, call in gpu.calls(*gpu.data(TINY)):
        for _ in range(FIRST):
            call()
        gpu.wait()
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        yield contestant, passage, (time.perf_counter() - begin) / repeats
        gpu.wait()


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a table as Markdown has it."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def of_problem(figures: list[Figure]) -> str:
    """Write what was measured on one problem."""
    copy = next(figure.speed() for figure in figures if figure.passage == COPY)
    rows = [
        [
            f"{figure.contestant}: {figure.passage}",
            f"{figure.seconds * 1e3:.3f}",
            f"{figure.speed():.2f}",
            f"{figure.speed() / copy:.0%}",
            f"{figure.peak / 2**20:.0f}",
        ]
        for figure in figures
    ]
    head = ["", "ms", "TB/s", "of the copy's speed", "memory at its peak, MiB"]
    return f"{figures[0].library}, {figures[0].problem}:\n\n{table(head, rows)}"


def measured(gpu: Gpu, *, quick: bool) -> str:
    """Measure a library, and print and return what was found."""
    parts = [f"Measured on {gpu.describe()}, xent_array {xent_array.__version__}.\n"]
    print(parts[0])
    for problem in PROBLEMS[:2] if quick else PROBLEMS:
        parts.append(of_problem(list(race(gpu, problem, 3 if quick else ROUNDS))))
        print(parts[-1])
    rows = [
        [f"{contestant}: {passage}", f"{seconds * 1e6:.0f}"]
        for contestant, passage, seconds in overheads(gpu, 10 if quick else 200)
    ]
    parts.append(f"{gpu.name}, {TINY}, on the host:\n\n{table(['', 'µs'], rows)}")
    print(parts[-1])
    if isinstance(gpu, Torch) and not quick:
        parts.append(projected(gpu))
        print(parts[-1])
    return "\n".join(parts)


def projected(gpu: Torch) -> str:
    """Measure a projection and its loss, and return the table."""
    rows = []
    for contestant, call in gpu.projections():
        for _ in range(2):
            call()
        seconds = statistics.median(gpu.times(call, 5))
        rows.append([contestant, f"{seconds * 1e3:.1f}", f"{gpu.peak(call) / 2**20:.0f}"])
    count, features, classes = PROJECTION
    title = f"{count} rows of {features} features, {classes} classes, bfloat16, with gradients"
    return f"torch, {title}:\n\n{table(['', 'ms', 'memory at its peak, MiB'], rows)}"


def with_section(page: str, section: str) -> str:
    """Put what was measured in its place on the page."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}{section}{END}{after}"


EXPLAINED = """\
TB/s are those of the bytes that a pass must move:
the logits once for a loss, twice with its gradient and for a copy.
Times are medians, by the events of the device, which has other work before each call,
so that the host is ahead of it;
memory is what a call takes beside its arguments.

"""


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="measure less, write nothing")
    quick = parser.parse_args().quick
    found = [gpu for gpu in (Torch(), Cupy()) if gpu.there()]
    if not found:
        sys.exit("no GPU that torch or CuPy can use: nothing was measured")
    section, apart = EXPLAINED, ""
    for gpu in found:
        section, apart = f"{section}{apart}{measured(gpu, quick=quick)}", "\n"
        if not quick:  # what was found stays, should the next library fail
            TABLES.write_text(section, "utf-8")
            PAGE.write_text(with_section(PAGE.read_text("utf-8"), section), "utf-8")


if __name__ == "__main__":
    main()
