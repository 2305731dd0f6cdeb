"""Freed memory stays in the process: a second large step causes no page faults."""

import subprocess
import sys

import pytest

from mdrelax.memory import keep_freed_memory

STEPS = """
import resource, sys, torch
from mdrelax.memory import keep_freed_memory

def step():
    tensors = [torch.ones(1 << 18) for _ in range(100)]  # 100 MiB in blocks of 1 MiB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "keep":
    keep_freed_memory()
step()
step()
before = faults()
step()
print(faults() - before)
"""


def faults_of_a_third_step(how: str) -> int:
    """Page faults in a process of its own: the setting is for good."""
    run = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="this C library is not glibc")
def test_a_step_that_needs_what_the_last_one_freed_causes_no_page_faults():
    """25,600 pages of 4 KiB; some hundreds may come from elsewhere. Without the setting they all fault."""
    assert faults_of_a_third_step("keep") < 1000
    assert faults_of_a_third_step("leave") > 10_000
