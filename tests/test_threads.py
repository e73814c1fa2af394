"""Threads that share the blocks of a call."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import xent_array
from xent_array import _threads

from arrays import set_budget

SETTINGS = _threads.SETTINGS


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_item_is_taken_once(threads):
    taken = []
    _threads.for_each(taken.append, range(1000), threads)
    assert sorted(taken) == list(range(1000))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_reaches_the_caller_and_ends_the_others(threads):
    begun = []

    def work(item):
        begun.append(item)
        if item == 5:
            raise KeyError(item)

    with pytest.raises(KeyError, match="5"):
        _threads.for_each(work, range(100_000), threads)
    assert len(begun) < 100_000


def test_an_exception_of_another_thread_reaches_the_caller():
    caller, met = threading.current_thread(), threading.Barrier(2)

    def work(_):
        met.wait(timeout=60)  # an item for each of the two
        if threading.current_thread() is not caller:
            raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        _threads.for_each(work, range(2), 2)


def test_calls_within_calls_and_beside_each_other():
    """Nobody waits for a thread that has not begun, so nobody waits for ever."""
    counts = []

    def outer(_):
        inner = []
        _threads.for_each(inner.append, range(10), 4)
        counts.append(len(inner))

    callers = [
        threading.Thread(target=_threads.for_each, args=(outer, range(20), 4)) for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert counts == [10] * 160


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({SETTINGS[0]: "3", SETTINGS[1]: "5"}, 3),
        ({SETTINGS[1]: "5"}, 5),
        ({SETTINGS[1]: "4,2"}, 4),
        ({SETTINGS[1]: "many"}, None),
        ({}, None),
    ],
)
def test_settings(settings, expected, monkeypatch):
    """Without one that is a positive number there is a thread for each processor."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    assert _threads.available() == (expected or processors or os.cpu_count())


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_setting_that_is_no_number_of_threads(value, monkeypatch):
    monkeypatch.setenv(SETTINGS[0], value)
    with pytest.raises(ValueError, match=f"{SETTINGS[0]} must be a positive whole number, got"):
        _threads.available()


@pytest.mark.parametrize("classes", [7, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_the_same_whatever_the_number_of_threads(classes, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((500, classes)).astype(dtype)
    target = rng.integers(0, classes, 500)
    set_budget(monkeypatch, 8000)
    results = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv(SETTINGS[0], threads)
        loss, grad = xent_array.cross_entropy_and_grad(logits, target, label_smoothing=0.1)
        results.append((loss.tobytes(), grad.tobytes()))
    assert len(set(results)) == 1


def test_a_warning_is_no_business_of_a_thread(monkeypatch):
    """NumPy's settings for them hold in one thread."""
    set_budget(monkeypatch, 64)
    monkeypatch.setenv(SETTINGS[0], "4")
    logits = np.full((200, 8), np.inf)
    assert np.isnan(xent_array.cross_entropy(logits, np.zeros(200, int)))


@pytest.mark.parametrize("layout", ["rows", "class axis first", "rows apart"])
@pytest.mark.parametrize("classes", [7, 300])
def test_threads_share_the_rows_of_a_kernel(classes, layout, monkeypatch):
    host = pytest.importorskip("xent_array._kernels.host")
    rng = np.random.default_rng(0)
    z, target = rng.standard_normal((40, 20, classes)), rng.integers(0, classes, (40, 20))
    z, target = (z[:, 3:], target[:, 3:]) if layout == "rows apart" else (z, target)
    z, axis = (np.moveaxis(z, 2, 0).copy(), 0) if layout == "class axis first" else (z, 2)
    alone = xent_array.cross_entropy(z, target, axis=axis, return_stats=True, reduction="none")
    monkeypatch.setattr(host, "_SHARE_BYTES", 5000)
    monkeypatch.setenv(SETTINGS[0], "3")
    shared = xent_array.cross_entropy(z, target, axis=axis, return_stats=True, reduction="none")
    for one, other in zip((alone[0], *alone[1]), (shared[0], *shared[1]), strict=True):
        np.testing.assert_array_equal(one, other)


FORK = """
import os
import numpy as np
import xent_array
logits, target = np.zeros((20_000, 500), np.float32), np.zeros(20_000, int)
before = xent_array.cross_entropy(logits, target)
child = os.fork()
if not child:
    os._exit(0 if xent_array.cross_entropy(logits, target) == before else 1)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_has_threads_of_its_own():
    environment = {**os.environ, SETTINGS[0]: "3"}
    done = subprocess.run([sys.executable, "-c", FORK], env=environment, timeout=120, check=False)
    assert done.returncode == 0


def test_a_system_without_more_threads(monkeypatch):
    """The call waits for the thread that began, and does the rest itself."""
    _threads._forget()
    monkeypatch.setenv(SETTINGS[0], "4")
    start, left = threading.Thread.start, [1]

    def start_one(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    caller, done = threading.current_thread(), []

    def work(item):
        time.sleep(0.001 if threading.current_thread() is caller else 0.2)
        done.append(item)

    _threads.for_each(work, range(5), 4)
    assert sorted(done) == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    _threads._forget()


def test_an_interrupt_waits_for_those_at_work():
    """Memory that another thread writes to may be given back once the call has ended."""
    started, done = threading.Event(), []

    def work(item):
        if threading.current_thread() is threading.main_thread():
            started.wait(10)
            raise KeyboardInterrupt
        started.set()
        time.sleep(0.2)
        done.append(item)

    with pytest.raises(KeyboardInterrupt):
        _threads.for_each(work, range(100), 2)
    assert len(done) == 1
