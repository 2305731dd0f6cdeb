"""``python -m mdrelax.runs.ranked N COMMAND``: a command on N ranks of this machine, by torchrun.

It ends with the study that started it, as a run on one process does, and its ranks end with it.
"""

import os
import sys
from collections.abc import Sequence

from mdrelax.runs.jobs import PARENT, end_with_parent

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run a command on as many ranks as the first argument says."""
    from torch.distributed import run

    n_ranks, *command = arguments
    end_with_parent()
    if PARENT in os.environ:
        os.environ[PARENT] = str(os.getpid())
    run.main(["--standalone", "--nproc-per-node", n_ranks, "--no-python", *command])


if __name__ == "__main__":
    main(sys.argv[1:])
