"""Memory of a worker, in MB: what it holds, what it may take, and how it gives back what it does not need.

An implementation that wants more than there is must lose its case, and nothing else on the machine may suffer. So
before every step a worker limits itself to a share of what is free then, and should memory run out all the same, it
goes first.
"""

import ctypes
import gc
import sys
from pathlib import Path

__all__ = ["available", "go_first", "limit", "peak", "release", "reset_peak", "resident"]

SHARE = 0.7  # of the free memory: what may be taken beside what is held
PROCESS, MACHINE = Path("/proc/self"), Path("/proc/meminfo")  # Linux only


def peak() -> float:
    """The largest resident size since ``reset_peak``; elsewhere than on Linux since the start."""
    return _of_process("VmHWM")


def resident() -> float:
    """The present resident size; elsewhere than on Linux the largest."""
    return _of_process("VmRSS")


def reset_peak() -> None:
    """Begin a new ``peak``."""
    if PROCESS.exists():
        (PROCESS / "clear_refs").write_text("5")


def release() -> None:
    """Give what is free inside the process back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def available() -> float:
    """What programs could still take; 0 where the system does not say."""
    return _field(MACHINE, "MemAvailable") if MACHINE.exists() else 0.0


def go_first() -> None:
    """Should the machine run out of memory, the system ends this process before any other."""
    if PROCESS.exists():
        (PROCESS / "oom_score_adj").write_text("1000")


def limit(most: float) -> None:
    """Let this process hold no more than ``most`` (0: any) and take no more than its share of what is free now.

    Beyond it the system refuses and the library raises. Linux only.
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
