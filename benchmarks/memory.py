"""Anonymous memory of this process while something runs, read from /proc (Linux)."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self


def anonymous_mib() -> float:
    """Anonymous memory of this process: what it took, files mapped aside."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


class Watch:
    """Samples the memory every half millisecond while the body of a ``with`` statement runs.

    Attributes
    ----------
    before, peak : float
        Mebibytes when it began, and at most since.
    """

    def __init__(self) -> None:
        self.before = self.peak = anonymous_mib()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def _sample(self) -> None:
        while not self._done.wait(0.0005):
            self.peak = max(self.peak, anonymous_mib())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.peak = max(self.peak, anonymous_mib())
        self._done.set()
        self._thread.join()
