"""Memory of a worker, in MB: its size, its limit, and the release of free memory.

An implementation that needs more memory than there is must be dropped from the case without affecting anything else on
the machine. So before every step a worker limits itself to a share of the free memory, and if memory runs out
nevertheless, it is the first process to be ended.
"""

import ctypes
import gc
import sys
from pathlib import Path

__all__ = ["available", "go_first", "limit", "peak", "release", "reset_peak", "resident"]

SHARE = 0.7  # of the free memory: what a worker may allocate in addition
PROCESS, MACHINE = Path("/proc/self"), Path("/proc/meminfo")  # Linux only


def peak() -> float:
    """The largest resident size since ``reset_peak``; on systems other than Linux since the start."""
    return _of_process("VmHWM")


def resident() -> float:
    """The present resident size; on systems other than Linux the largest."""
    return _of_process("VmRSS")


def reset_peak() -> None:
    """Reset ``peak``."""
    if PROCESS.exists():
        (PROCESS / "clear_refs").write_text("5")


def release() -> None:
    """Return free memory of the process to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def available() -> float:
    """The memory that programs can still allocate; 0 if the system does not report it."""
    return _field(MACHINE, "MemAvailable") if MACHINE.exists() else 0.0


def go_first() -> None:
    """Let the system end this process before any other if the machine runs out of memory."""
    if PROCESS.exists():
        (PROCESS / "oom_score_adj").write_text("1000")


def limit(most: float) -> None:
    """Limit this process to ``most`` (0: any) and to its share of the memory that is free now.

    Beyond it, allocations fail and the library raises. Linux only.
    """
    free = available()
    if not free:
        return
    import resource

    allowed = _of_process("VmData") + SHARE * free
    soft = int(1e6 * (min(most, allowed) if most else allowed))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _of_process(field: str) -> float:
    if PROCESS.exists():
        return _field(PROCESS / "status", field)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _field(table: Path, name: str) -> float:
    """A line like `VmRSS:   1234 kB` of one of the kernel's tables."""
    (line,) = (line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6
