"""Memory: the size of the process, its open files, and reuse of freed memory by the next step.

After each step the C library (glibc) returns the largest free block to the system, and the next step faults in and
clears its pages again. A training step frees all the memory it used, so this costs a tenth to a third of its time.
"""

import ctypes
import math
import os
from functools import cache
from pathlib import Path

__all__ = ["keep_freed_memory", "open_files", "peak_memory", "resident_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's numbers of the two parameters, from malloc.h
NEVER = -1
LARGEST = 32 << 20  # bytes; blocks up to here come from the heap, which is kept (glibc allows no more)


@cache
def keep_freed_memory() -> bool:
    """Let the process retain freed memory, up to its peak; returns True if the C library supports this.

    Called by training and the calculator. It changes no results, and does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; TypeError: Windows
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, NEVER))


def peak_memory() -> float:
    """The largest resident size of this process so far, in MB; NaN on systems without /proc (other than Linux)."""
    return _status("VmHWM")


def resident_memory() -> float:
    """The resident size of this process now, in MB; NaN on systems without /proc (other than Linux)."""
    return _status("VmRSS")


def open_files() -> float:
    """The number of files, pipes and sockets that this process has open; NaN on systems without /proc."""
    place = Path("/proc/self/fd")
    return float(len(os.listdir(place)) - 1) if place.is_dir() else math.nan  # listing opens one itself


def _status(name: str) -> float:
    """A size in /proc/self/status in MB; NaN without it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(name)]
    return float(line.split()[1]) * 1.024e-3
