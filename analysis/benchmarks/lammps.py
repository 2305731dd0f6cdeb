"""LAMMPS: cost of a step with a model for boxes of water on several ranks, and its energy drift next to ASE's.

Costs are those of an untrained `tiny` Equiformer, which cost what a trained one costs; drifts are those of a much
smaller one, unless a model file is named.
Everything runs in processes of its own, as a user would start it.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from mdrelax.analysis.benchmarks.structures import water_box
from mdrelax.base import o3
from mdrelax.base.files import write_atomically
from mdrelax.base.seeds import numpy_generator
from mdrelax.compiled import file_hash
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.md import energy_drift, thermal_momenta
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import certify
from mdrelax.modelfile import save_model
from mdrelax.potentials import build_potential, preset
from mdrelax.structures.neighbors import build_graph
from mdrelax.training.folders import refuse_changes

__all__ = ["costs", "drifts", "on_paper", "untrained_model", "write_water"]

FEMTOSECONDS = 1.0  # untrained networks have no stiff bonds
MINIATURE: dict[str, Any] = {"irreps": "8x0e+4x1o", "n_features": 8, "n_basis": 4}
NEAR = 3.0  # Angstrom, its cut-off: about a dozen neighbours
TEMPERATURE = 300.0  # K
SCALE = 0.1  # eV: forces of an untrained network near those at room temperature
INPUT = """\
units metal
atom_style atomic
{start}
neighbor {skin} bin
fix mdrelax all external pf/callback 1 1
fix move all nve
timestep {picoseconds}
thermo_style custom step pe ke etotal temp
thermo_modify format float %.12g norm no
thermo {every}
run {steps}
"""
SKIN = 0.5  # Angstrom: fewer ghosts than with LAMMPS' default of 2, lists are made every 10 or 20 steps


def _input(start: str, *, every: int, steps: int) -> str:
    return INPUT.format(start=start, skin=SKIN, picoseconds=FEMTOSECONDS / 1000, every=every, steps=steps)


def untrained_model(path: Path, elements: Sequence[int] = (1, 8), *, cutoff: float = 5.0, **changes: Any) -> Path:
    """A model file of a seeded `tiny` Equiformer, with ``changes``; raises ``OSError`` if it cannot be written."""
    arguments = {**preset("equiformer", "tiny"), "cutoff": cutoff, "average_neighbors": 50.0, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_potential("equiformer", len(elements), arguments)
    model = ForceField(network, elements=tuple(elements), scale=SCALE).eval()
    atoms = water_box(1)
    numbers = np.resize(elements, len(atoms))
    graph = build_graph(atoms.positions, numbers, atoms.cell.array, False, cutoff)
    certificate = certify(model, graph, n_operations=1)
    return save_model(path, model, potential="equiformer", arguments=arguments, certificate=certificate)


def write_water(path: Path, side: int) -> Atoms:
    """A box of ``side``^3 molecules at 300 K, as a LAMMPS data file with velocities; returns it."""
    atoms = water_box(side)
    atoms.set_momenta(thermal_momenta(atoms, TEMPERATURE, numpy_generator(0, "dynamics")))
    masses = dict(zip(atoms.symbols, atoms.get_masses().tolist(), strict=True))
    x, y, z = atoms.cell.lengths().tolist()
    velocities = (atoms.get_velocities() * 1000 * units.fs).tolist()  # A/ps
    kinds = [["H", "O"].index(symbol) + 1 for symbol in atoms.symbols]
    places = "".join(
        f"{k} {t} {a!r} {b!r} {c!r}\n"
        for k, (t, (a, b, c)) in enumerate(zip(kinds, atoms.positions.tolist(), strict=True), 1)
    )
    speeds = "".join(f"{k} {a!r} {b!r} {c!r}\n" for k, (a, b, c) in enumerate(velocities, 1))
    head = f"water\n\n{len(atoms)} atoms\n2 atom types\n0 {x!r} xlo xhi\n0 {y!r} ylo yhi\n0 {z!r} zlo zhi\n"
    text = (
        f"{head}\nMasses\n\n1 {masses['H']!r}\n2 {masses['O']!r}\n\nAtoms # atomic\n\n{places}\nVelocities\n\n{speeds}"
    )
    write_atomically(path, text.encode())
    return atoms


def costs(
    sides: Sequence[int],
    ranks: Sequence[int],
    folder: Path,
    *,
    steps: int,
    options: Sequence[str],
    tell: Callable[[str], None],
) -> pd.DataFrame:
    """A row per box and number of ranks: time per atom and step, where it goes, ghosts, memory.

    Raises ``RuntimeError`` with the last line of a run that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = untrained_model(folder / "tiny.safetensors")
    rows = []
    for side in sides:
        write_water(folder / f"water-{side}.data", side)
        for n in ranks:
            text = _input(f"read_data water-{side}.data", every=steps, steps=steps)
            report = _run(folder, text, model, n, options)
            rows.append({"atoms": 3 * side**3, "ranks": n, **_row(report["ranks"])})
            tell(", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
    return pd.DataFrame(rows)


def _row(ranks: list[dict[str, float]]) -> dict[str, float]:
    """The columns of the table from the report of a run."""
    total = {name: sum(rank[name] for rank in ranks) for name in ranks[0]}
    wall = max(rank["wall"] for rank in ranks)
    used = len(ranks) * wall
    return {
        "us_per_atom_step": 1e6 * wall / ranks[0]["steps"] / total["local"],
        "outside_network_%": 100 * (1 - total["network"] / used),
        "exchange_%": 100 * total["exchange"] / used,
        "neighbours_%": 100 * total["prepare"] / used,
        "ghosts_per_atom": total["ghosts"] / total["local"],
        "remote_per_atom": total["remote"] / total["local"],
        "edges_per_atom": total["edges"] / total["local"],
        "memory_GiB": total["memory_MiB"] / 1024,
    }


def _run(folder: Path, text: str, model: Path, ranks: int, options: Sequence[str]) -> dict[str, Any]:
    """Run an input in a folder; returns its report."""
    write_atomically(folder / "in.lmp", text.encode())
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if mpirun is None:
        raise RuntimeError("There is no `mpirun`: pip install 'mdrelax[lammps]'.")
    command = [
        mpirun,
        "-n",
        str(ranks),
        sys.executable,
        "-m",
        "mpi4py",
        "-m",
        "mdrelax.engines.lammps",
        "-in",
        "in.lmp",
    ]
    command += [
        "--model",
        str(model.resolve()),
        "--elements",
        "H,O",
        "--report",
        "report.json",
        "-screen",
        "none",
        *options,
    ]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("mdrelax")] or ended.stderr.splitlines()
        raise RuntimeError(f"LAMMPS ended with code {ended.returncode}: {lines[0] if lines else 'without a word'}")
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


# --- energy drift ---


def drifts(
    side: int, folder: Path, *, ranks: int, picoseconds: float, chunk: int, model: Path | None, dtype: str,
    tell: Callable[[str], None],
) -> pd.DataFrame:  # fmt: skip
    """NVE of a box of water in LAMMPS and in ASE from the same start; energies are kept every 10 steps.

    Both go on from where an earlier call in this folder was stopped, at most ``chunk`` steps before. A row per engine:
    drift in meV/atom/ps, and the largest deviation from the first total energy in meV/atom. Raises ``ConfigError`` in
    a folder with states of another box, network or precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model or untrained_model(folder / "miniature.safetensors", cutoff=NEAR, **MINIATURE)
    settings = {"side": side, "dtype": dtype, "model": file_hash(model)}
    if (own := folder / "settings.json").is_file():
        before = json.loads(own.read_text(encoding="utf-8"))
        refuse_changes(before, settings, found=f"`{folder}` has states of other settings", choose="`--out`")
    write_atomically(own, json.dumps(settings).encode())
    atoms = write_water(folder / "water.data", side)
    steps = round(picoseconds * 1000 / FEMTOSECONDS)
    rows = []
    for engine, advance in (("lammps", _advance_lammps), ("ase", _advance_ase)):
        log = folder / f"{engine}.csv"
        while (done := _done(log)) < steps:
            found = advance(folder, atoms, model, done, min(chunk, steps - done), ranks, dtype)
            older = pd.read_csv(log) if log.exists() else found[:0]
            table = pd.concat([older, found[found.step > (-1 if older.empty else older.step.max())]])
            write_atomically(log, table.to_csv(index=False).encode())
            tell(f"{engine}: step {table.step.max():.0f} of {steps}")
        table = pd.read_csv(log)
        drift = energy_drift(table.step * FEMTOSECONDS / 1000, table.energy_eV, len(atoms))
        deviation = 1000 * (table.energy_eV - table.energy_eV[0]).abs().max() / len(atoms)
        rows.append({"engine": engine, "atoms": len(atoms), "ps": picoseconds, "drift_meV_per_atom_ps": drift})
        rows[-1] |= {"largest_deviation_meV_per_atom": deviation}
    return pd.DataFrame(rows)


def _done(log: Path) -> int:
    return int(pd.read_csv(log).step.max()) if log.exists() else 0


def _advance_lammps(
    folder: Path, atoms: Atoms, model: Path, done: int, steps: int, ranks: int, dtype: str
) -> pd.DataFrame:
    """``steps`` steps from the restart file of step ``done``."""
    start = f"read_restart at-{done}.restart" if done else "read_data water.data"
    text = _input(start, every=10, steps=steps) + f"write_restart at-{done + steps}.restart\n"
    _run(folder, text, model, ranks, ["--dtype", dtype])
    rows = []
    for line in (folder / "log.lammps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if len(words) == 5 and words[0].isdigit():
            rows.append({"step": int(words[0]), "energy_eV": float(words[3])})
    return pd.DataFrame(rows)


def _advance_ase(
    folder: Path, atoms: Atoms, model: Path, done: int, steps: int, ranks: int, dtype: str
) -> pd.DataFrame:
    """``steps`` steps from the stored positions and momenta of step ``done``."""
    moving = atoms.copy()
    if done:
        with np.load(folder / f"at-{done}.npz") as state:
            moving.positions = state["positions"]
            moving.set_momenta(state["momenta"])
    moving.calc = MDRelaxCalculator.from_file(model, dtype=dtype)
    integrator, rows = VelocityVerlet(moving, FEMTOSECONDS * units.fs), []
    for step in range(done, done + steps + 1, 10):
        if step > done:
            integrator.run(10)
        rows.append({"step": step, "energy_eV": moving.get_total_energy()})
    np.savez(folder / f"at-{done + steps}.npz", positions=moving.positions, momenta=moving.get_momenta())
    return pd.DataFrame(rows)


# --- on paper ---


def on_paper(atoms: Sequence[int], *, per_gpu: int, memory_KiB: float) -> pd.DataFrame:
    """What large boxes of water would need with the `tiny` Equiformer: a row per number of atoms, not measured.

    ``per_gpu`` atoms in a cube on each GPU, of ``memory_KiB`` per atom, as ``costs`` measures it. A halo of width h
    about a cube of side a has (1 + 2 h / a)^3 - 1 atoms per atom; in an exchange, each sends the features of one block.
    """
    sizes = preset("equiformer", "tiny")
    n_blocks, cutoff = int(sizes["n_blocks"]), 5.0
    density = 3 / water_box(1).get_volume()
    side = (per_gpu / density) ** (1 / 3)
    near, wide = ((1 + 2 * (h + SKIN) / side) ** 3 - 1 for h in (cutoff, (n_blocks + 1) * cutoff))
    sent = 4 * 2 * n_blocks * o3.Irreps(sizes["irreps"]).dim * near * per_gpu  # bytes, float32, forward and backward
    rows = [
        {
            "atoms": float(n), "GPUs": math.ceil(n / per_gpu), "remote_per_atom_exchange": near,
            "remote_per_atom_wide": wide, "sent_MB_per_GPU_step": sent / 1e6,
            "memory_GiB_per_GPU": memory_KiB * per_gpu * (1 + near) / 1024**2,
        }
        for n in atoms
    ]  # fmt: skip
    return pd.DataFrame(rows)
