"""Frames: labelled structures as PyTorch Geometric data, with the report of where their labels came from.

Each frame is a ``torch_geometric.data.Data`` with these attributes (labels that a file does not have are absent):

| attribute | shape, type | unit |
| --- | --- | --- |
| z | (N,) int64 | atomic number |
| pos | (N, 3) float64 | Angstrom |
| cell | (1, 3, 3) float64, rows are lattice vectors, zeros for molecules | Angstrom |
| pbc | (1, 3) bool | - |
| energy | (1,) float64 | eV |
| forces | (N, 3) float64 | eV/Angstrom |
| stress | (1, 3, 3) float64, ASE's sign (tension positive) | eV/Angstrom^3 |
| config_type | str | - |
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch_geometric.data import Data

__all__ = ["Frames", "LabelReport", "data_hash", "make_frame", "require_finite", "summarize", "to_atoms"]

HASHED = ("z", "pos", "cell", "pbc", "energy", "forces", "stress")
PER_ATOM = ("forces", "positions")


class LabelReport(NamedTuple):
    """What a loader found in a file and took from it; ``print`` shows it as lines for the user."""

    source: str
    keys: dict[str, str]  # label -> the key in the file that it was read from
    n_frames: int
    n_isolated: int
    elements: tuple[str, ...]
    energy_unit: str  # of the file
    length_unit: str  # of the file
    energy_range: tuple[float, float] | None  # eV
    largest_force: float | None  # eV/Angstrom
    unused_keys: tuple[str, ...] = ()
    units_assumed: tuple[str, ...] = ()  # those of the two units that neither the user nor the format named

    def __str__(self) -> str:
        taken = ", ".join(f"{label} from `{key}`" for label, key in self.keys.items()) or "no labels"
        isolated = f" and {self.n_isolated} isolated atoms" if self.n_isolated else ""
        lines = [
            f"{self.source}: {self.n_frames} frames{isolated} of {', '.join(self.elements)}",
            f"  labels: {taken} ({self._units()})",
        ]
        if self.energy_range:
            lines.append("  energy: {:.4f} to {:.4f} eV".format(*self.energy_range))
        if self.largest_force is not None:
            lines.append(f"  largest force: {self.largest_force:.4f} eV/Angstrom")
        if self.unused_keys:
            lines.append(f"  not used: {', '.join(self.unused_keys)}")
        return "\n".join(lines)

    def _units(self) -> str:
        named = [unit for unit in (self.energy_unit, self.length_unit) if unit not in self.units_assumed]
        clauses = {"the file's units": named, "units assumed": self.units_assumed}
        return "; ".join(f"{title}: {', '.join(units)}" for title, units in clauses.items() if units)


class Frames(NamedTuple):
    """The content of one data file: frames, energies of isolated atoms by atomic number (eV), and the report."""

    data: list[Data]
    isolated_energies: dict[int, float]
    report: LabelReport


def make_frame(
    numbers: np.ndarray,
    positions: np.ndarray,
    *,
    energy: float | None = None,
    forces: np.ndarray | None = None,
    stress: np.ndarray | None = None,
    cell: np.ndarray | None = None,
    pbc: Sequence[bool] | np.ndarray = (False, False, False),
    config_type: str = "default",
) -> Data:
    """One frame out of arrays in eV and Angstrom: positions and forces (N, 3), cell and stress (3, 3).

    The tensors are copies. The cell of a structure that is periodic nowhere is dropped (zeros).
    """
    periodic = torch.tensor(np.array(pbc, dtype=bool)).reshape(1, 3)
    box = cell if cell is not None and bool(periodic.any()) else np.zeros((3, 3))
    frame = Data(
        z=torch.tensor(np.asarray(numbers), dtype=torch.int64),
        pos=torch.tensor(np.asarray(positions), dtype=torch.float64),
        cell=torch.tensor(np.asarray(box), dtype=torch.float64).reshape(1, 3, 3),
        pbc=periodic,
        config_type=config_type,
    )
    if energy is not None:
        frame.energy = torch.tensor([float(energy)], dtype=torch.float64)
    if forces is not None:
        frame.forces = torch.tensor(np.asarray(forces), dtype=torch.float64)
    if stress is not None:
        frame.stress = torch.tensor(np.asarray(stress), dtype=torch.float64).reshape(1, 3, 3)
    return frame


def to_atoms(frame: Data) -> Atoms:
    """The frame as ASE atoms; its labels become ``REF_energy``, ``REF_forces`` and ``REF_stress`` (eV, Angstrom)."""
    atoms = Atoms(frame.z.numpy(), frame.pos.numpy(), cell=frame.cell[0].numpy(), pbc=frame.pbc[0].numpy())
    atoms.info["config_type"] = frame.config_type
    if "energy" in frame:
        atoms.info["REF_energy"] = float(frame.energy)
    if "forces" in frame:
        atoms.arrays["REF_forces"] = frame.forces.numpy().copy()
    if "stress" in frame:
        atoms.info["REF_stress"] = frame.stress[0].numpy().copy()
    return atoms


def summarize(data: Sequence[Data]) -> tuple[tuple[str, ...], tuple[float, float] | None, float | None]:
    """Elements, energy range (eV) and the largest force (eV/Angstrom) of some frames, as a report shows them."""
    numbers = sorted({int(z) for frame in data for z in frame.z.unique()})
    energies = [float(frame.energy) for frame in data if "energy" in frame]
    forces = [float(frame.forces.norm(dim=1).max()) for frame in data if "forces" in frame]
    return (
        tuple(chemical_symbols[z] for z in numbers),
        (min(energies), max(energies)) if energies else None,
        max(forces) if forces else None,
    )


def require_finite(label: str, values: np.ndarray, *, source: str, frame: int | None = None) -> None:
    """Raise ``ValueError`` that names the first frame (and atom) where ``values`` is NaN or infinite.

    ``values`` belongs to one frame when ``frame`` is given, and has a leading axis of frames otherwise.
    """
    finite = np.isfinite(values)
    if finite.all():
        return
    where = [int(k) for k in np.argwhere(~finite)[0]]
    value = np.asarray(values)[tuple(where)]
    index = where.pop(0) if frame is None else frame
    atom = f", atom {where[0]}" if label in PER_ATOM else ""
    raise ValueError(
        f"`{source}` has a {label} value of {value} in frame {index}{atom} (counted from 0); "
        "remove the frame or compute its label again."
    )


def data_hash(data: Sequence[Data]) -> str:
    """The sha256 of geometry, labels and order of the frames: equal if and only if the data is the same."""
    digest = hashlib.sha256()
    for frame in data:
        for name in HASHED:
            if name in frame:
                array = frame[name].numpy()
                digest.update(f"{name}{array.shape}{array.dtype.newbyteorder('<').str}".encode())
                digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
        digest.update(f"config_type={frame.config_type};".encode())
    return digest.hexdigest()
