"""Freed memory stays in the process: a second large step causes no page faults."""

import subprocess
import sys
from pathlib import Path

import pytest

from mdrelax.base.allocator import keep_freed_memory

STEPS = """
import resource, torch
from mdrelax.base.allocator import keep_freed_memory

def step():
    tensors = [torch.ones(1 << 18) for _ in range(100)]  # 100 MiB in blocks of 1 MiB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
step()
counts = []
for _ in range(6):
    before = faults()
    step()
    counts.append(faults() - before)
print(min(counts))
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="this C library is not glibc")
def test_a_step_that_needs_what_the_last_one_freed_causes_no_page_faults():
    """25,600 pages of 4 KiB, which as a rule all fault without the setting; some hundreds may come from elsewhere,
    and thousands where the system takes idle pages away: hence the fewest of six steps.

    In a process of its own, since the setting is for good.
    """
    run = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 1000


TOLD_NOT_TO = """
from lennard_jones import lj_force_field
from mdrelax.base.allocator import keep_freed_memory
from mdrelax.engines.ase import MDRelaxCalculator

changed = []
for keep in (False, True):
    MDRelaxCalculator(lj_force_field(), keep_memory=keep)
    changed.append(keep_freed_memory.cache_info().currsize)
print(changed)
"""


def test_a_calculator_leaves_the_process_alone_where_it_is_told_to() -> None:
    """In a process of its own, in which nobody has changed the setting before."""
    command = [sys.executable, "-c", TOLD_NOT_TO]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    assert run.stdout.strip() == "[0, 1]"
