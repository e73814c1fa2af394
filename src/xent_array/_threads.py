"""Threads that take the blocks of one call: as many as there are processors, made once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

T = TypeVar("T")

#: The settings that say how many threads a call may use, the first that is there.
SETTINGS = ("XENT_ARRAY_NUM_THREADS", "OMP_NUM_THREADS")

_NONE_LEFT = object()

_making = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def available() -> int:
    """How many threads a call may use: what a setting says, else one for each processor."""
    for name in SETTINGS:
        # OpenMP takes one number for each level of nesting; there is only one level here.
        setting = os.environ.get(name, "").partition(",")[0].strip()
        if setting.isdecimal() and int(setting):
            return int(setting)
        if setting and name == SETTINGS[0]:  # what is wrong with OpenMP's is OpenMP's to say
            raise ValueError(f"{name} must be a positive whole number, got {setting!r}")
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_each(function: Callable[[T], object], items: Iterable[T], threads: int) -> None:
    """Call `function` on every item, on that many threads, the caller's among them.

    The caller takes items like the others, and waits for those that are at an item, not for threads
    that have not begun: so calls may come from several threads, and from within a call. An
    exception ends the others after the item they are at, and is raised here; so does an interrupt,
    lest memory that they write to be given back before.
    """
    work = _Work(function, items)
    _start(work.help, threads - 1)
    try:
        work.run()
    finally:
        work.finish()


class _Work:
    """Items that several threads take one by one."""

    def __init__(self, function: Callable[[T], object], items: Iterable[T]) -> None:
        self._function = function
        self._items: Iterator[T] = iter(items)
        self._changing = threading.Condition()
        self._helpers = 0  # how many threads are at work beside the caller's
        self._errors: list[BaseException] = []

    def run(self) -> None:
        try:
            while (item := self._take()) is not _NONE_LEFT:
                self._function(item)
        except BaseException as error:
            self._errors.append(error)
            self._items = iter(())

    def help(self) -> None:
        """The same on another thread than the caller's."""
        with self._changing:
            self._helpers += 1
        self.run()
        with self._changing:
            self._helpers -= 1
            self._changing.notify_all()

    def finish(self) -> None:
        """Wait for all that are at work; raise what one of them met, or an interrupt meanwhile."""
        while True:
            try:
                with self._changing:
                    self._changing.wait_for(lambda: not self._helpers)
                break
            except KeyboardInterrupt as interrupt:
                self._errors.append(interrupt)
                self._items = iter(())
        for error in self._errors:
            raise error

    def _take(self) -> Any:
        with self._changing:
            return next(self._items, _NONE_LEFT)


def _start(task: Callable[[], None], threads: int) -> None:
    """Start the task on threads of the pool, or on fewer where no more are to be had."""
    pool = _shared_pool() if threads > 0 else None
    try:
        for _ in range(threads):
            pool.submit(task)  # type: ignore[union-attr]
    except RuntimeError:  # the interpreter shuts down, or the system has no more threads
        return


def _shared_pool() -> ThreadPoolExecutor:
    global _pool  # noqa: PLW0603
    with _making:
        if _pool is None:
            # It brings more modules than all of this package, which a program may never need.
            from concurrent.futures import ThreadPoolExecutor

            _pool = ThreadPoolExecutor(max(available() - 1, 1), "xent_array")
        return _pool


def _forget() -> None:
    """A forked process has none of its parent's threads: its first call makes a pool of its own."""
    global _making, _pool
    _making, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
