"""The command `mdrelax` on one of several ranks, on one of which something fails.

torchrun --nproc-per-node 2 tests/ranks_fault.py FAULT RANK train ...
"""

import errno
import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from mdrelax.cli import main
from mdrelax.forces.forcematching import ForceMatching
from mdrelax.training import trainer

STEP = 9  # in which it happens: two steps after a checkpoint
loss = ForceMatching.loss


def raises(self: Any, model: Any, batch: Any, *, step: int, **part: Any) -> tuple[Tensor, list[Tensor]]:
    """An error of ours."""
    if step == STEP:
        raise trainer.TrainingError(f"Rank {os.environ['RANK']} has a headache.")
    return loss(self, model, batch, step=step, **part)


def overflows(self: Any, model: Any, batch: Any, *, step: int, **part: Any) -> tuple[Tensor, list[Tensor]]:
    """A loss that is not a number."""
    value, numbers = loss(self, model, batch, step=step, **part)
    return value * (float("nan") if step == STEP else 1.0), numbers


def disk_is_full(path: Path, content: bytes) -> None:
    """The error of ``write_atomically``."""
    raise OSError(errno.ENOSPC, f"`{path}` could not be written (No space left on device); an older one is unchanged.")


def spoil(fault: str) -> None:
    """Let it happen in this process."""
    if fault == "raise":
        ForceMatching.loss = raises
    elif fault == "nan":
        ForceMatching.loss = overflows
    elif fault == "full":
        trainer.write_atomically = disk_is_full
    elif fault == "config":
        sys.argv += ["-r", "training.learning_rate=0.02"]
    elif fault == "data":
        sys.argv += ["-r", "data.seed=3"]


if __name__ == "__main__":
    fault, rank = sys.argv[1:3]
    del sys.argv[1:3]
    if os.environ["RANK"] == rank:
        spoil(fault)
    main()
