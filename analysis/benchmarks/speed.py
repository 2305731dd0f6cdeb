"""Speed of the N-body training step: our SEGNN against its plain e3nn form, relaxed against standard.

Every contestant does the same work: forward, mean squared error, backward and an Adam step at batch 100 (500 particles,
2,000 edges). They are timed in turns within one process, so that a busy machine disturbs all of them alike; medians and
their ratios are what to quote. The plain e3nn form stands for the published code, which is written like it.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from mdrelax.analysis.benchmarks.segnn_e3nn import E3nnNBodySEGNN
from mdrelax.checkpoint import write_atomically
from mdrelax.potentials.segnn import NBodySEGNN
from mdrelax.projection import project
from mdrelax.provenance import environment
from mdrelax.relaxation import PenaltyKind, penalty, relax_constraints, set_theta

__all__ = ["nbody_step_times", "time_in_turns", "write_speed"]

PLAIN = "plain e3nn"
WARM_UP = 3
BATCH, PARTICLES = 100, 5
NBODY_WORK = f"forward, MSE, backward, Adam; batch {BATCH} of {PARTICLES} particles"


class Contestant(NamedTuple):
    """A network with the penalty of its training, or none."""

    name: str
    model: nn.Module
    penalty: PenaltyKind | None = None


def nbody_step_times(
    *,
    repeats: int = 15,
    dtype: torch.dtype = torch.float32,
    penalty_rows: int | None = 64,
    compile: bool = False,
    tell: Callable[[str], None] = lambda name: None,
) -> pd.DataFrame:
    """Milliseconds a training step: median, quartiles, and ratios to the plain form and to our standard network.

    With ``compile`` every network of ours is timed once more through torch.compile (which needs a C++ compiler).
    """
    contestants = list(_contestants(dtype, compiled=False))
    if compile:
        contestants += _contestants(dtype, compiled=True)
    batch = _batch(dtype)
    steps = {each.name: _step(each, batch, penalty_rows) for each in contestants}
    table = time_in_turns(steps, repeats=repeats, tell=tell)
    n_parameters = {each.name: sum(p.numel() for p in each.model.parameters()) for each in contestants}
    return _with_ratios(table, n_parameters)


def time_in_turns(
    steps: Mapping[str, Callable[[], object]], *, repeats: int, tell: Callable[[str], None] = lambda name: None
) -> pd.DataFrame:
    """Milliseconds a call of each step, warmed up and then called in turns: median and quartiles, a row each."""
    for name, step in steps.items():
        tell(name)
        for _ in range(WARM_UP):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    table = pd.DataFrame(times).quantile([0.25, 0.5, 0.75]).T
    table.columns = pd.Index(["ms_lower_quartile", "ms_median", "ms_upper_quartile"])
    return table


def write_speed(
    table: pd.DataFrame, folder: Path, *, command: str, work: str = NBODY_WORK, name: str = "speed"
) -> list[Path]:
    """{name}.csv, and {name}.json with the machine, the versions and the command beside the numbers."""
    record = {
        "command": command,
        "work": work,
        "environment": environment(device="cpu", seed=0),
        "networks": json.loads(table.to_json(orient="index")),
    }
    write_atomically(folder / f"{name}.csv", table.to_csv().encode())
    write_atomically(folder / f"{name}.json", json.dumps(record, indent=2).encode())
    return [folder / f"{name}.csv", folder / f"{name}.json"]


def _contestants(dtype: torch.dtype, *, compiled: bool) -> Iterable[Contestant]:
    """The plain form (never compiled here: e3nn scripts its own code), and ours in its four states."""
    if not compiled:
        yield Contestant(PLAIN, E3nnNBodySEGNN.from_fast(NBodySEGNN()).to(dtype))
    kinds: list[tuple[str, PenaltyKind | None]] = [
        ("standard", None), ("relaxed, activation penalty", "activation"), ("relaxed, weight penalty", "weight"),
        ("projected", None),
    ]  # fmt: skip
    for name, kind in kinds:
        model = NBodySEGNN()
        if name != "standard":
            relax_constraints(model)
            set_theta(model, 0.5)
        if name == "projected":
            project(model, how="fold")
        model.to(dtype).train()
        if compiled:
            model.compile(dynamic=False)
        yield Contestant(name + (", compiled" if compiled else ""), model, kind)


def _batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, v, d = (torch.randn(BATCH, PARTICLES, 3, generator=generator, dtype=dtype) for _ in range(3))
    return x, v, torch.randn(BATCH, PARTICLES, generator=generator, dtype=dtype).sign(), d


def _step(each: Contestant, batch: tuple[Tensor, Tensor, Tensor, Tensor], rows: int | None) -> Callable[[], None]:
    optimizer = torch.optim.Adam(each.model.parameters(), lr=1e-5, fused=True)
    *inputs, target = batch

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = (each.model(*inputs) - target).square().mean()
        if each.penalty is not None:
            loss = loss + 0.01 * penalty(each.model, kind=each.penalty, rows=rows)
        loss.backward()
        optimizer.step()

    return step


def _with_ratios(table: pd.DataFrame, n_parameters: dict[str, int]) -> pd.DataFrame:
    compiled = table.index.str.endswith(", compiled")
    reference = [table.ms_median["standard, compiled" if late else "standard"] for late in compiled]
    return table.assign(
        n_parameters=pd.Series(n_parameters),
        times_faster_than_plain=table.ms_median[PLAIN] / table.ms_median,
        ratio_to_standard=table.ms_median / reference,
    ).rename_axis("network")
