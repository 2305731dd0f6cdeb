"""Seeds: one independent random stream for each (seed, purpose, index), whatever is drawn from the others.

The full state of a generator is the SHAKE-256 digest of the three, so two of them never begin alike: the order of
frames of epoch 7 has nothing in common with the rotations of step 7. (``torch.Generator().manual_seed`` keeps 32 bits
of its seed, too few to tell a long run's steps apart.)

Streams older than this module keep their seeds, because published data and splits came out of them: the initial
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
    "angles",  # axes of the rotations that `audit` turns by a known angle
    "dropout",  # what a network draws in a training step from torch's own generators
    "dynamics",  # momenta and thermostat of molecular dynamics
    "free maps",  # initial free maps
    "noise",  # deviates added to the input of a training batch
    "operations",  # symmetry operations that equivariance is measured with
    "order",  # order of the frames in an epoch
    "rotations",  # rotations of a training batch
    "structures",  # structures made up where none are given
]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

STATE_WORDS = 624  # of the Mersenne twister, 32 bits each
STATE_START = 24  # where they stand in torch's state, 8 bytes each, after its seed and counters


def generator(seed: int, purpose: Purpose, index: int = 0) -> torch.Generator:
    """A torch generator on the CPU; ``index`` counts what is drawn once each: epochs, steps, ...

    Raises ``ValueError`` for an unknown purpose, naming the nearest one.
    """
    return torch.Generator().set_state(_torch_state(seed, purpose, index))


def numpy_generator(seed: int, purpose: Purpose, index: int = 0) -> np.random.Generator:
    """The same for numpy: another stream than that of ``generator`` with the same arguments."""
    return np.random.default_rng(int.from_bytes(_digest(seed, purpose, index, 32), "little"))


@contextmanager
def default_stream(
    seed: int, purpose: Purpose, index: int = 0, *, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Inside the ``with`` statement torch's own generators draw from a stream: those of the CPU and of ``device``.

    For code that takes no generator, such as ``nn.Dropout``. Afterwards they stand where they stood before.
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
    return hashlib.shake_256(f"mdrelax/{purpose}/{int(seed)}/{int(index)}".encode()).digest(n_bytes)
