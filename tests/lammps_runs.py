"""Runs of LAMMPS with a model: structures as data files, the command under `mpirun`, and what it wrote."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from blueprint import ROOT
from mdrelax.analysis.benchmarks.structures import water_box
from untrained_models import ARGUMENTS

CUTOFF = 3.0  # Angstrom
NETWORKS: dict[str, dict[str, Any]] = {  # of at least two rounds of messages
    "equiformer": {**ARGUMENTS, "n_blocks": 2, "cutoff": CUTOFF},
    "segnn": {"channels": 4, "lmax": 1, "n_layers": 2, "cutoff": CUTOFF, "n_basis": 4, "average_neighbors": 5.0},
    "equiformer-pytorch": {
        "dim": (8, 4), "depth": 1, "heads": 2, "dim_head": 4, "radial_hidden": 8, "cutoff": CUTOFF,
        "average_neighbors": 5.0,
    },
}  # fmt: skip
SYMBOLS = ["H", "O"]
FIX = "fix mdrelax all external pf/callback 1 1\n"
NKTV2P = {"metal": 1602176.5, "real": 68568.415}  # LAMMPS' own: pressure times volume to energy
COLUMNS = "id type x y z fx fy fz c_e c_s[*]"
OUTPUT = f"""\
compute e all pe/atom
compute s all stress/atom NULL virial
compute v all pressure NULL virial
thermo_style custom step pe vol c_v[*]
thermo_modify format float %.17g norm no
dump d all custom 1 frames {COLUMNS}
dump_modify d format float %.17g sort id
"""


def liquid() -> Atoms:
    """Eight molecules of water, periodic; the box is about two cut-offs wide."""
    atoms = water_box(2)
    atoms.rattle(0.05, seed=1)
    return atoms


def skewed() -> Atoms:
    """Three atoms in a triclinic cell, about as wide as the cut-off: each sees several images."""
    atoms = water_box(1)
    atoms.set_cell([[3.1, 0, 0], [0.9, 2.9, 0], [-0.7, 0.6, 3.3]], scale_atoms=True)
    return atoms


def slab() -> Atoms:
    """Periodic in the plane only."""
    atoms = liquid()
    atoms.pbc = [True, True, False]
    atoms.cell[2, 2] = 12.0
    return atoms


def droplet() -> Atoms:
    """Open: two molecules in one corner of a large box, so that other ranks have no atoms."""
    atoms = liquid()[:6]
    atoms.pbc, atoms.cell = False, np.diag([24.0, 20.0, 20.0])
    return atoms


def many() -> Atoms:
    """64 molecules of water, periodic."""
    atoms = water_box(4)
    atoms.rattle(0.05, seed=1)
    return atoms


STRUCTURES = {"liquid": liquid, "skewed": skewed, "slab": slab, "droplet": droplet, "many": many}


class Ended(NamedTuple):
    """A run that has ended."""

    code: int
    log: str
    err: str
    folder: Path

    def frame(self, atoms: Atoms, number: int = -1) -> tuple[Atoms, np.ndarray]:
        """A frame of the dump as atoms with the cell of that moment, and its other columns."""
        blocks = (self.folder / "frames").read_text().split("ITEM: TIMESTEP")[1:]
        header, _, rows = blocks[number].partition("ITEM: ATOMS")
        bounds = np.array([line.split() for line in header.splitlines()[-3:]], dtype=float)
        table = np.array([line.split() for line in rows.splitlines()[1:]], dtype=float)
        return Atoms([SYMBOLS[int(k) - 1] for k in table[:, 1]], table[:, 2:5], cell=_cell(bounds), pbc=atoms.pbc), (
            table[:, 5:]
        )

    def thermo(self) -> np.ndarray:
        """The rows of all thermo tables: step, pe, vol, virial pressures."""
        rows = re.findall(r"^\s+\d+(?:\s+[-+\d.e]+){8}\s*$", self.log, re.MULTILINE)
        return np.array([row.split() for row in rows], dtype=float)


def _cell(bounds: np.ndarray) -> np.ndarray:
    """Lattice vectors from LAMMPS' bounding box, (3, 2) or with tilts (3, 3)."""
    if bounds.shape[1] == 2:
        return np.diag(bounds[:, 1] - bounds[:, 0])
    (xy, xz, yz), low, high = bounds[:, 2], bounds[:, 0], bounds[:, 1]
    x = high[0] - max(0, xy, xz, xy + xz) - (low[0] - min(0, xy, xz, xy + xz))
    y = high[1] - max(0, yz) - (low[1] - min(0, yz))
    return np.array([[x, 0, 0], [xy, y, 0], [xz, yz, high[2] - low[2]]])


def write_data(path: Path, atoms: Atoms) -> None:
    """A LAMMPS data file of the structure, without any rounding; its cell must be lower triangular."""
    (x, _, _), (xy, y, _), (xz, yz, z) = atoms.cell.array.tolist()
    sides = "".join(f"0 {side!r} {a}lo {a}hi\n" for side, a in zip((x, y, z), "xyz", strict=True))
    tilt = f"{xy!r} {xz!r} {yz!r} xy xz yz\n" if any((xy, xz, yz)) else ""
    rows = "".join(
        f"{k} {SYMBOLS.index(symbol) + 1} {' '.join(map(repr, position))}\n"
        for k, (symbol, position) in enumerate(zip(atoms.symbols, atoms.positions.tolist(), strict=True), 1)
    )
    masses = "\nMasses\n\n1 1.008\n2 15.999\n"
    path.write_text(f"water\n\n{len(atoms)} atoms\n2 atom types\n{sides}{tilt}{masses}\nAtoms # atomic\n\n{rows}")


def setting(atoms: Atoms, units: str = "metal", before: str = "") -> str:
    """The beginning of an input, up to the model's fix."""
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    return f"units {units}\natom_style atomic\nboundary {boundary}\n{before}read_data data\n{FIX}"


def command(folder: Path, model: Path, ranks: int, *options: str, elements: str = "H,O") -> list[str]:
    """The command line of a run in a folder that holds `in.lmp`."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    kind = "--compiled" if model.suffix == ".pt2" else "--model"
    return [
        str(mpirun), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "mdrelax.engines.lammps", "-in", "in.lmp",
        kind, str(model), "--elements", elements, "-screen", "none", *options,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """One thread per rank, and this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(
    folder: Path, atoms: Atoms, text: str, model: Path, *options: str, ranks: int = 1, elements: str = "H,O"
) -> Ended:
    """Run an input for a structure, which is its file `data`; the network is float64."""
    write_data(folder / "data", atoms)
    (folder / "in.lmp").write_text(text)
    line = command(folder, model, ranks, "--dtype", "float64", *options, elements=elements)
    ended = subprocess.run(
        line, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    log = folder / "log.lammps"
    return Ended(ended.returncode, log.read_text() if log.exists() else "", ended.stderr, folder)
