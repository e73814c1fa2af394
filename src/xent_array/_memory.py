"""Fresh memory for large results, as the operating system gives it."""

from __future__ import annotations

import ctypes
import mmap
import sys

#: Bytes of a result from which on it is given huge pages, as in NumPy.
_WORTH_HUGE_PAGES = 1 << 22


def advise_huge_pages(address: int, size: int) -> None:
    """Have Linux take huge pages for so many bytes of memory, as NumPy does for its own.

    Of pages of 4 KiB, taking and clearing one after the other costs more than a gradient does.
    """
    if sys.platform != "linux" or size < _WORTH_HUGE_PAGES:
        return
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None:
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        length = address + size - start
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
