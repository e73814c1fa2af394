"""Anonymous memory of this process while something runs, read from /proc (Linux).

Another process takes the samples. Compiled code may keep Python's lock for as long as it runs, and
no thread of this process would get to look.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


def anonymous_mib(process: int | str = "self") -> float:
    """Anonymous memory of a process: what it took, files mapped aside."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
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

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid())]
        pipe = subprocess.PIPE
        self._sampler = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._sampler.stdout.readline()  # from here on it watches
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        last = anonymous_mib()
        sampled, _ = self._sampler.communicate()  # it ends when its input does
        self.peak = max(self.peak, last, float(sampled))


def sample(process: int) -> None:
    """Watch another process until the input ends; print the greatest of the samples."""
    peak = anonymous_mib(process)
    print("watching", flush=True)
    while not select.select([sys.stdin], [], [], 0.0005)[0]:
        peak = max(peak, anonymous_mib(process))
    print(peak)


if __name__ == "__main__":
    sample(int(sys.argv[1]))
