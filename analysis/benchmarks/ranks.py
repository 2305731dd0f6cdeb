"""Ranks: how much faster a network is trained by several processes than by one, with one thread each.

Both are started in turns, round after round, so that a busy machine slows both alike. Each time the whole training step
is timed (batch, network, penalty, optimiser), without the first steps. A round's speed-up is the ratio of its medians.
"""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mdrelax.analysis.benchmarks import ranks_worker
from mdrelax.base.words import last_sentence
from mdrelax.runs.config import load_config
from mdrelax.runs.jobs import job_environment, on_ranks

__all__ = ["ranks_config", "time_ranks"]

RECIPE: dict[str, Any] = {
    "data": {"train": 128, "validation": 4, "test": 0},
    "potential": {"preset": "small"},
    "training": {"batch_size": 32, "max_edges": None, "warmup_steps": 0},
}


def ranks_config(source: str, *, steps: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The config that is trained for some timed steps, with one validation after them.

    Raises ``ConfigError`` for invalid overrides.
    """
    steps += ranks_worker.WARM_UP + 1
    keys = [f"data.source={source}", f"training.steps={steps}", f"training.validate_every={steps}"]
    return load_config(RECIPE, overrides=[*keys, *overrides]).model_dump(mode="json")


def time_ranks(
    config: dict[str, Any],
    *,
    ranks: int,
    rounds: int,
    threads: int = 1,
    tell: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """One row for one process and one for ``ranks``: median times of a step over rounds, and the speed-up.

    Raises ``RuntimeError`` with the last line of a training that failed.
    """
    times: dict[int, list[float]] = {1: [], ranks: []}
    for number in range(rounds):
        for size, medians in times.items():
            medians.append(1e3 * statistics.median(_steps(config, size, threads)))
        tell(f"round {number + 1}/{rounds}: " + ", ".join(f"{n}: {own[-1]:.0f} ms" for n, own in times.items()))
    return pd.DataFrame([_row(size, medians, times[1], threads) for size, medians in times.items()])


def _row(size: int, medians: list[float], alone: list[float], threads: int) -> dict[str, Any]:
    gains = [before / now for before, now in zip(alone, medians, strict=True)]
    return {
        "ranks": size, "threads": threads, "rounds": len(medians), "ms_median": statistics.median(medians),
        "ms_smallest": min(medians), "ms_largest": max(medians), "speed_up": statistics.median(gains),
        "speed_up_smallest": min(gains), "speed_up_largest": max(gains),
    }  # fmt: skip


def _steps(config: dict[str, Any], ranks: int, threads: int) -> list[float]:
    """The seconds of each timed step of a short training in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="mdrelax-") as name:
        folder = Path(name)
        (folder / "given.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        command = on_ranks(ranks_worker.command(folder / "given.yaml", folder / "run", folder / "times.json"), ranks)
        done = subprocess.run(command, env=job_environment(threads), capture_output=True, text=True, check=False)
        if done.returncode:
            words = last_sentence(done.stderr) or last_sentence(done.stdout) or "it said nothing."
            raise RuntimeError(f"The training on {ranks} ranks failed: {words}")
        times: list[float] = json.loads((folder / "times.json").read_text())
    return times
