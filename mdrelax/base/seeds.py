"""Seeds: one stream of random numbers for each purpose, index and seed of a run, and none that two of them share.

Whatever is random at step k of a run follows from its seed, the purpose and k alone. Nothing has to be saved: a resumed
run draws what an uninterrupted one draws.
"""

import hashlib
from typing import Literal

import torch

__all__ = ["Purpose", "generator"]

Purpose = Literal["free maps", "noise", "order", "rotations"]


def generator(seed: int, purpose: Purpose, index: int = 0) -> torch.Generator:
    """A generator on the CPU, seeded with 63 bits of the SHA-256 of its arguments.

    ``index`` counts what the purpose repeats: epochs for the order of frames, steps for rotations and noise. Weights
    are not drawn from it: layers initialise themselves from torch's global generator, which is seeded with the run's
    seed and restored.

    >>> int(torch.randint(1000, (), generator=generator(0, "order", 3)))
    756
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
