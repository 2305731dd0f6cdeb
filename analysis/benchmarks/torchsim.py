"""torch-sim: steps per second of many molecules at once, next to ASE one by one, of the same untrained network."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch_sim
from ase import units
from ase.md.verlet import VelocityVerlet

from mdrelax.analysis.benchmarks.lammps import untrained_model
from mdrelax.analysis.benchmarks.structures import ELEMENTS, ethanol, shaken
from mdrelax.base.seeds import numpy_generator
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.md import thermal_momenta
from mdrelax.engines.torchsim import MDRelaxModel

__all__ = ["batching_gain"]

STEP = 0.5 * units.fs


def batching_gain(folder: Path, *, copies: int, steps: int, repeats: int, dtype: str) -> pd.DataFrame:
    """NVE of ethanol molecules: a row per engine, with the median time of ``repeats`` runs, in turns."""
    folder.mkdir(parents=True, exist_ok=True)
    model = untrained_model(folder / "tiny.safetensors", ELEMENTS)
    molecules, rng = shaken(ethanol(), copies), numpy_generator(0, "dynamics")
    for atoms in molecules:
        atoms.set_momenta(thermal_momenta(atoms, 300.0, rng))
        atoms.cell = np.eye(3)  # torch-sim inverts it
    batched = MDRelaxModel.from_file(model, dtype=getattr(torch, dtype), compute_stress=False)
    state = torch_sim.io.atoms_to_state(molecules, torch.device("cpu"), getattr(torch, dtype))
    state.momenta = torch.from_numpy(np.concatenate([atoms.get_momenta() for atoms in molecules])).to(state.positions)
    start, step = torch_sim.nve(batched, dt=torch.tensor(STEP).to(state.positions), kT=torch.tensor(0.0))
    moving = start(state)
    calculator = MDRelaxCalculator.from_file(model, dtype=dtype)
    integrators = []
    for atoms in molecules:
        atoms.calc = calculator
        integrators.append(VelocityVerlet(atoms, STEP))
    seconds: dict[str, list[float]] = {"ase": [], "torch-sim": []}
    for _ in range(repeats):
        begun = time.perf_counter()
        for integrator in integrators:
            integrator.run(steps)
        middle = time.perf_counter()
        for _ in range(steps):
            moving = step(moving)
        seconds["ase"].append(middle - begun)
        seconds["torch-sim"].append(time.perf_counter() - middle)
    rows = []
    for engine, measured in seconds.items():
        rate = copies * steps / float(np.median(measured))
        rows.append({"engine": engine, "molecules": copies, "molecule_steps_per_s": rate})
    table = pd.DataFrame(rows)
    table["gain"] = table.molecule_steps_per_s / table.molecule_steps_per_s[0]
    return table
