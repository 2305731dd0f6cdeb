"""``python -m mdrelax.analysis.benchmarks.ranks_worker CONFIG FOLDER TIMES``: a short training, its steps timed.

A rank of it, if torchrun starts it. The seconds of each step go to the JSON file TIMES.
"""

import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mdrelax import potentials
from mdrelax.base.sections import read_yaml
from mdrelax.runs.config import load_config
from mdrelax.runs.experiment import run_folder
from mdrelax.runs.train import Potentials
from mdrelax.training.ranks import joined
from mdrelax.training.settings import relax
from mdrelax.training.trainer import Trainer

__all__ = ["WARM_UP", "command", "main"]

WARM_UP = 3  # steps that are not timed


def command(config: Path, folder: Path, times: Path) -> list[str]:
    """The words that start this module."""
    return [sys.executable, "-m", "mdrelax.analysis.benchmarks.ranks_worker", str(config), str(folder), str(times)]


def main(arguments: Sequence[str]) -> None:
    """Train; the first steps and the last one, which ends with a validation, are left out."""
    config_path, folder, times = map(Path, arguments)
    experiment = Potentials(load_config(read_yaml(config_path)), potentials)
    ends: list[float] = []
    with joined() as ranks, run_folder(folder, ranks) as own:
        experiment.enter(own, restart=False)
        with ranks.in_turn():
            model = experiment.prepare(own, resume=False, tell=lambda line: None)
        relax(model, experiment.relaxation, seed=experiment.training.seed)
        Trainer(
            model, experiment.task(model), training=experiment.training, relaxation=experiment.relaxation, folder=own,
            listener=lambda progress: ends.append(time.perf_counter()), ranks=ranks,
        ).run()  # fmt: skip
        if ranks.first:
            seconds = [after - before for before, after in itertools.pairwise(ends)]
            times.write_text(json.dumps(seconds[WARM_UP - 1 : -1]))


if __name__ == "__main__":
    main(sys.argv[1:])
