"""What the C library does with the memory of batches, on both sides. It knows nothing of what lies there."""

from __future__ import annotations

import ctypes
import functools

TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX = -1, -3, -8
"""Numbers of glibc's parameters (malloc.h)."""


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep what a batch leaves, instead of giving it back to the system.

    The next batch asks for the same again. glibc unmaps blocks of that size, and a new one is faulted in page
    by page: on a small teacher up to half of the time. What other C libraries do, stays.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
    mallopt(MMAP_THRESHOLD, 2**30)
    # A thread's own arena is cut into heaps of 64 MB, which go back to the system one by one all the same.
    mallopt(ARENA_MAX, 1)
