"""Seeds: one random stream for each (seed, purpose, index), independent of all others.

The full state of a generator is the SHAKE-256 digest of the three, so no two streams coincide: the order of
frames in epoch 7 has nothing in common with the rotations of step 7. (``torch.Generator().manual_seed`` keeps only
32 bits of its seed, too few for the steps of a long run.)

Streams older than this module keep their seeds, because published data and splits were made with them: the initial
weights (``torch.manual_seed(seed)``), random splits (``default_rng(seed)``), simulated N-body systems
(``default_rng([seed, part])``) and sampled geometries (``default_rng([seed, frame])``).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, get_args

import numpy as np
import torch

from mdrelax.base.names import nearest_name

__all__ = ["PURPOSES", "Purpose", "default_stream", "generator", "numpy_generator"]

Purpose = Literal[
    "angles",  # axes of the rotations by known angles in `audit`
    "dropout",  # numbers that a network draws from torch's own generators in a training step
    "dynamics",  # momenta and thermostat of molecular dynamics
    "free maps",  # initial free maps
    "new weights",  # initial weights beside those of a model file
    "noise",  # noise added to the input of a training batch
    "operations",  # symmetry operations for measuring equivariance
    "order",  # order of the frames in an epoch
    "plumes",  # inflow places of the graded plumes
    "points",  # points drawn on a mesh, or out of a cloud
    "poses",  # orientations in which validation and test shapes stand
    "rotations",  # rotations of a training batch
    "split",  # shapes held out for validation
    "structures",  # structures generated if none are given
]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

STATE_WORDS = 624  # of the Mersenne twister, 32 bits each
STATE_START = 24  # their position in torch's state, 8 bytes each, after its seed and counters


def generator(seed: int, purpose: Purpose, index: int = 0) -> torch.Generator:
    """A torch generator on the CPU; ``index`` numbers the epoch, step, ... that the numbers are drawn for.

    Raises ``ValueError`` for an unknown purpose, naming the nearest one.
    """
    return torch.Generator().set_state(_torch_state(seed, purpose, index))


def numpy_generator(seed: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """The same for numpy; its stream differs from that of ``generator`` with the same arguments."""
    return np.random.default_rng(int.from_bytes(_digest(seed, purpose, index, 32), "little"))


@contextmanager
def default_stream(
    seed: int, purpose: Purpose, index: int = 0, *, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Inside the ``with`` statement torch's own generators draw from a stream: those of the CPU and of ``device``.

    For code that takes no generator, such as ``nn.Dropout``. Afterwards their previous state is restored.
    """
    device = torch.device(device)
    gpus = []
    if device.type == "cuda":
        gpus = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=gpus):
        for gpu in gpus:
            word = int.from_bytes(_digest(seed, purpose, index, 8), "little", signed=True)
            torch.cuda.default_generators[gpu].manual_seed(word)
        torch.set_rng_state(_torch_state(seed, purpose, index))
        yield


def _torch_state(seed: int, purpose: str, index: int) -> torch.Tensor:
    """The state of a torch generator on the CPU at the start of a stream."""
    words = np.frombuffer(_digest(seed, purpose, index, 4 * STATE_WORDS), dtype="<u4").astype(np.uint64)
    state = _seeded_state().clone()
    state[STATE_START : STATE_START + 8 * STATE_WORDS] = torch.from_numpy(words.view(np.uint8))
    return state


@cache
def _seeded_state() -> torch.Tensor:
    return torch.Generator().manual_seed(0).get_state()


def _digest(seed: int, purpose: str, index: int, n_bytes: int) -> bytes:
    if purpose not in PURPOSES:
        raise ValueError(f"Unknown purpose `{purpose}` of random numbers; {nearest_name(purpose, PURPOSES)}")
    if seed != int(seed):
        raise ValueError(f"A seed must be a whole number, got {seed}.")
    return hashlib.shake_256(f"mdrelax/{purpose}/{int(seed)}/{int(index)}".encode()).digest(n_bytes)
