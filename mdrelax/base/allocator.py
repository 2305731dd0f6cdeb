"""Memory: how much a process has held, and that what one step frees stays in it for the next one.

After each step the C library (glibc) hands the largest free block back to the system, and the next step gets its pages
again, one fault and one clearing each. A training step frees all it used, so that costs a tenth to a third of its time.
"""

import ctypes
import math
from functools import cache
from pathlib import Path

__all__ = ["keep_freed_memory", "peak_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's numbers of the two parameters, from malloc.h
NEVER = -1
LARGEST = 32 << 20  # bytes; blocks up to here come from the heap, which is kept (glibc allows no more)


@cache
def keep_freed_memory() -> bool:
    """Let the process keep what it frees, up to what it needed at most; True where the C library can be asked.

    Training and the calculator call this. It changes no number, and does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; TypeError: Windows
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, NEVER))


def peak_memory() -> float:
    """The largest resident size of this process so far, in MB; NaN where the system has no /proc (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return float(line.split()[1]) * 1.024e-3
