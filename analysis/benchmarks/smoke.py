"""Speed of RSteer: a training step in the published form, in ours, and relaxed, timed in turns; memory in processes.

A step is the rollout's loss of a batch and its backward pass, to the gradients of all weights; relaxed with penalty.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mdrelax.analysis.benchmarks.plain_rsteer import PlainRSteer, plain_step
from mdrelax.base.allocator import keep_freed_memory, peak_memory
from mdrelax.base.names import nearest_name
from mdrelax.base.sections import ConfigError
from mdrelax.method.penalty import penalty
from mdrelax.method.relaxation import is_relaxed, relax_constraints, set_theta
from mdrelax.packs.smoke.sizes import Preset, build_network
from mdrelax.packs.smoke.task import Frames, rollout_loss

__all__ = ["FORMS", "smoke_times", "step_memory"]

FORMS = ("published form", "standard", "relaxed")
GRID = 64
N_IN = 10
PARTS = {"published": 1}  # windows at a time, as in the recipes; others: 4


def _network(form: str, preset: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network("rsteer", preset, "C4", n_in=N_IN, size=(GRID, GRID))
    if form == "published form":
        return PlainRSteer(network)  # type: ignore[arg-type]
    if form == "relaxed":
        relax_constraints(network, generator=torch.Generator().manual_seed(0))
        set_theta(network, 0.5)
    return network


def _batch(size: int, n_frames: int) -> Frames:
    stream = torch.Generator().manual_seed(1)
    shapes = ((size, n, 2, GRID, GRID) for n in (N_IN, n_frames))
    return Frames(*(torch.randn(shape, generator=stream) for shape in shapes))


def _step(model: nn.Module, batch: Frames, preset: str) -> Tensor:
    model.zero_grad(set_to_none=True)
    if isinstance(model, PlainRSteer):
        return plain_step(model, *batch)
    loss = rollout_loss(model, batch, part=PARTS.get(preset, 4))
    if is_relaxed(model):
        loss = loss + 0.01 * penalty(model, kind="weight")
    loss.backward()
    return loss.detach()


def step_memory(form: str, preset: str, *, batch_size: int, n_frames: int) -> float:
    """MB that a step adds to the largest resident size of a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_growth, form, preset, batch_size, n_frames).result()


def _growth(form: str, preset: str, size: int, n_frames: int) -> float:
    keep_freed_memory()
    model, batch = _network(form, preset), _batch(size, n_frames)
    before = peak_memory()
    _step(model, batch, preset)
    return peak_memory() - before


def smoke_times(
    preset: str = "published", *, batch_size: int = 16, n_frames: int = 6, repeats: int = 5,
    tell: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:  # fmt: skip
    """Median and quartiles of processor seconds, and the memory of a step in MB, one row per form.

    Raises ``ConfigError`` for an unknown preset.
    """
    if preset not in get_args(Preset):
        raise ConfigError(f"There is no preset `{preset}`; {nearest_name(preset, get_args(Preset))}")
    keep_freed_memory()
    models, batch = {form: _network(form, preset) for form in FORMS}, _batch(batch_size, n_frames)
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for model in models.values():
        _step(model, Frames(batch.inputs[:1], batch.targets[:1]), preset)  # allocates, and reads the libraries
    for k in range(repeats):
        for form, model in models.items():
            start = time.process_time()
            _step(model, batch, preset)
            seconds[form].append(time.process_time() - start)
        tell(f"{k + 1}/{repeats}: " + ", ".join(f"{form} {times[-1]:.3g} s" for form, times in seconds.items()))
    rows = []
    for form, times in seconds.items():
        low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
        rows.append({"form": form, "seconds_lower_quartile": low, "seconds": middle, "seconds_upper_quartile": high})
        rows[-1]["step_MB"] = step_memory(form, preset, batch_size=batch_size, n_frames=n_frames)
        rows[-1]["n_parameters"] = sum(p.numel() for p in models[form].parameters())
    table = pd.DataFrame(rows)
    table["speed_up"] = table["seconds"].iloc[0] / table["seconds"]
    table["memory_ratio"] = table["step_MB"] / table["step_MB"].iloc[0]
    table["cost_of_relaxation"] = table["seconds"] / table["seconds"].iloc[1]
    return table
