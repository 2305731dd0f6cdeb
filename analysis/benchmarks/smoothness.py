"""Smoothness: force constants of trained networks at a site of high symmetry, against the displacement.

    k(d) = -(F(d) - F(-d)) / (2 d)

of one atom moved by d along a cube's edge in a perfect fcc crystal of copper. It must not depend on d while d is small:
phonons, elastic constants and cold crystals depend on it, and no test error shows it. Networks are trained on 34 frames
of 32 atoms, rattled by 0.003 to 0.1 A and labelled by ASE's EMT potential, whose own k is the reference.

| file | content |
| --- | --- |
| copper.extxyz | the frames |
| NETWORK-NORM-SEED/ | the training runs |
| smoothness.csv, .json | a row per network: k(d) in eV/A^2, test error, float32 errors of forces that vanish |
| smoothness.png | k(d) of all networks |
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, WIDTH, styled
from mdrelax.analysis.smoothness import finite_product
from mdrelax.analysis.studies import forces
from mdrelax.analysis.studies.run_files import Done
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.runs.jobs import ONE_THREAD_EACH, Start

__all__ = ["DISPLACEMENTS", "NETWORKS", "copper_frames", "draw_smoothness", "force_constants", "train_on_copper"]

DISPLACEMENTS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # A
N_FRAMES = 34
RATTLES = (0.003, 0.1)  # A, the smallest and the largest
SEPARABLE = "norm: separable, norm_eps: 1.0e-2"  # the former default
NETWORKS = {  # arguments of the preset `tiny`
    "equiformer": "",
    "equiformer:separable": SEPARABLE,
    "segnn": "",
    "segnn:joint": "norm: joint",
    "equiformer-pytorch": "",
    "equiformer-pytorch:separable": SEPARABLE,
}
RECIPE = {  # Muon; 28 frames to learn, 3 to choose the best step, 3 to test
    "data": {"train": 28, "validation": 3, "test": 3},
    "potential": {"preset": "tiny", "cutoff": 5.0},
    "relaxation": {"schedule": "off"},
    "training": {"energy_weight": 1.0, "validate_every": 100, "optimizer": "muon", "learning_rate": 5e-3,
                 "betas": [0.98, 0.99], "batch_size": 2},
}  # fmt: skip
STUDY = forces.STUDY._replace(
    title="smoothness benchmark",
    arms={
        name: (f"potential.name={name.partition(':')[0]}", f"potential.arguments={{{arguments}}}")
        for name, arguments in NETWORKS.items()
    },
    own_arms=False,
)


def copper() -> Atoms:
    """32 atoms of fcc copper at ASE's lattice constant, at rest."""
    return bulk("Cu", cubic=True) * (2, 2, 2)


def copper_frames(seed: int = 0) -> list[Atoms]:
    """The labelled frames, with normal noise of 0.003 to 0.1 A, in equal ratios, on every coordinate."""
    rng = np.random.default_rng(seed)
    frames = []
    for amplitude in np.geomspace(*RATTLES, N_FRAMES):
        atoms = copper()
        atoms.positions += rng.normal(scale=amplitude, size=atoms.positions.shape)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return frames


def force_constants(
    calculator: Calculator, atoms: Atoms, displacements: Sequence[float] = DISPLACEMENTS, *, atom: int = 0
) -> np.ndarray:
    """k(d) in eV/A^2 of one atom of ``atoms`` along x, for each displacement d in A."""
    direction = np.zeros((len(atoms), 3))
    direction[atom, 0] = 1.0
    return np.array([finite_product(atoms, calculator, direction, d)[atom, 0] for d in displacements])


def train_on_copper(
    folder: Path,
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int,
    jobs: int,
    start: Start = ONE_THREAD_EACH,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Done]:
    """Train the runs that are not finished in ``folder``; raises ``ConfigError`` for an unknown network."""
    source = folder / "copper.extxyz"
    changes = [f"data.source={source.resolve()}", f"training.steps={steps}"]
    runs = STUDY.plan(RECIPE, arms=names, seeds=seeds, overrides=changes)
    folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        write(source, copper_frames())
    STUDY.run(runs, folder, jobs=jobs, start=start, tell=tell)
    return STUDY.finished(runs, folder)


def smoothness_table(folder: Path, trained: Sequence[Done]) -> pd.DataFrame:
    """One row for EMT and one for each network of ``train_on_copper``; columns as in the module's table."""
    crystal = copper()
    rows: list[dict[str, Any]] = [{"network": "EMT", **_columns(force_constants(EMT(), crystal))}]
    for run, results in trained:
        model = folder / run.name / "model.safetensors"
        exact, single = (MDRelaxCalculator.from_file(model, dtype=dtype) for dtype in ("float64", "float32"))
        crystal.calc = single
        rows.append(
            {
                "network": run.factors["arm"],
                "seed": run.factors["seed"],
                **_columns(force_constants(exact, crystal)),
                "force_mae_meV_per_A": results["test"]["forces_mae_meV_per_A"],
                "float32_force_eV_per_A": float(np.abs(crystal.get_forces()).max()),
                "cpu_minutes": results["cpu_seconds"] / 60,
            }
        )
    return pd.DataFrame(rows)


def _columns(constants: np.ndarray) -> dict[str, float]:
    return {f"k({d:g} A)": float(k) for d, k in zip(DISPLACEMENTS, constants, strict=True)}


@styled
def draw_smoothness(table: pd.DataFrame) -> Figure:
    """k(d) against d on a log scale, EMT in black; values far from EMT's are outside the figure."""
    figure = Figure(figsize=(0.7 * WIDTH, 3.4), layout="constrained")
    ax = figure.add_subplot()
    colours = dict(zip(NETWORKS, (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE), strict=True))
    columns = list(_columns(np.zeros(len(DISPLACEMENTS))))
    for row in table.to_dict("records"):
        emt, first = row["network"] == "EMT", row.get("seed") in (None, 0) or row["network"] == "EMT"
        style: dict[str, Any] = (
            {"color": BLACK, "linestyle": "--"} if emt else {"color": colours[row["network"]], "marker": "o"}
        )
        label = ("EMT, reference" if emt else row["network"]) if first else None
        ax.plot(DISPLACEMENTS, [row[c] for c in columns], label=label, markersize=4, **style)
    right = table.loc[table.network == "EMT", columns].to_numpy(dtype=float).max()
    low, high = np.nanmin(table[columns]), np.nanmax(table[columns])
    ylim = (max(0.98 * min(low, 0.95 * right), -right), min(1.02 * max(high, 1.05 * right), 3 * right))
    ax.set(xscale="log", ylim=ylim, xlabel="displacement d (A)", ylabel="k(d) (eV/A^2)")
    ax.set_title("force constant of an atom in perfect fcc copper")
    ax.legend()
    return figure
