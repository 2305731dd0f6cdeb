"""A training step of the published networks against their plain form: at least twice as fast, in half the memory."""

import copy
import subprocess
import sys
import time

import pytest
from torch import Tensor, nn
from torch.nn import functional

from command_line import ROOT, shell
from mdrelax.base.allocator import keep_freed_memory
from mdrelax.datasets.modelnet import load_modelnet
from mdrelax.packs.modelnet.networks import VNDGCNN, VNPointNet
from vector_neuron_oracle import PlainVNDGCNN, PlainVNPointNet

FORMS = {"vn-pointnet": (VNPointNet, PlainVNPointNet, 24), "vn-dgcnn": (VNDGCNN, PlainVNDGCNN, 16)}
MEMORY = """
import sys
sys.path.insert(0, {tests!r})
from test_modelnet_speed import FORMS, batch, step
from mdrelax.base.allocator import keep_freed_memory, peak_memory
keep_freed_memory()
own, plain, size = FORMS[{name!r}]
model, given = own(8), batch(size)
model = plain(model) if {is_plain} else model
before = peak_memory()
step(model, *given)
print(peak_memory() - before)
"""


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Clouds of 300 points, as published, and their labels."""
    test = load_modelnet(n_points=300).test
    return test.points[:size], test.labels[:size]


def step(model: nn.Module, points: Tensor, labels: Tensor) -> float:
    """Forward and backward pass; returns the processor time in s."""
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    functional.cross_entropy(model(points), labels).backward()
    return time.process_time() - start


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_step_takes_half_the_time_of_the_plain_form(name: str):
    """In turns in one process, the best of four of each: a busy machine slows both."""
    own, plain, size = FORMS[name]
    keep_freed_memory()
    model, given = own(8), batch(size)
    twin = plain(copy.deepcopy(model))
    times = [(step(model, *given), step(twin, *given)) for _ in range(5)][1:]
    ours, theirs = (min(column) for column in zip(*times, strict=True))
    assert ours < theirs / 2, f"{ours:.2f} s against {theirs:.2f} s"


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_step_takes_half_the_memory_of_the_plain_form(name: str):
    """Growth of the largest resident size (Linux) in a process of its own."""
    peaks = []
    for is_plain in (False, True):
        script = MEMORY.format(tests=str(ROOT / "tests"), name=name, is_plain=is_plain)
        _, environment = shell()
        said = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        peaks.append(float(said.stdout.split()[-1]))
    assert peaks[0] < peaks[1] / 2, f"{peaks[0]:.0f} MB against {peaks[1]:.0f} MB"
