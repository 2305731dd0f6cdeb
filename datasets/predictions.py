"""Predictions: write frames with a model's predictions in addition to the references, which are not changed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from torch_geometric.data import Data

from mdrelax.datasets.extxyz import write_extxyz
from mdrelax.datasets.frames import to_atoms

__all__ = ["write_predictions"]


def write_predictions(
    path: str | Path,
    frames: Sequence[Atoms] | Sequence[Data],
    *,
    energies: Sequence[float] | np.ndarray,
    forces: Sequence[np.ndarray] | None = None,
    stresses: Sequence[np.ndarray] | None = None,
) -> Path:
    """Write an extxyz with ``mdrelax_energy`` (eV), ``mdrelax_forces`` (eV/A) and ``mdrelax_stress`` (eV/A^3).

    One energy, (N, 3) forces and (3, 3) stress per frame, as numpy arrays or tensors. The given frames are not
    changed, nor are their labels, calculator results included. The file replaces ``path`` atomically. Raises
    ``ValueError`` if numbers of frames or atoms disagree.
    """
    path = Path(path)
    columns = {"mdrelax_energy": energies, "mdrelax_forces": forces, "mdrelax_stress": stresses}
    for key, values in columns.items():
        if values is not None and len(values) != len(frames):
            raise ValueError(f"`{key}` has {len(values)} entries for {len(frames)} frames.")
    written = [_copy(frame) if isinstance(frame, Atoms) else to_atoms(frame) for frame in frames]
    for index, atoms in enumerate(written):
        atoms.info["mdrelax_energy"] = float(energies[index])
        if forces is not None:
            atoms.arrays["mdrelax_forces"] = _forces(forces[index], len(atoms), index)
        if stresses is not None:
            atoms.info["mdrelax_stress"] = np.array(stresses[index], dtype=np.float64).reshape(3, 3)
    write_extxyz(path, written)
    return path


def _copy(atoms: Atoms) -> Atoms:
    """A copy that keeps the calculator's results, which ``Atoms.copy`` drops."""
    copy = atoms.copy()
    if atoms.calc is not None:
        copy.calc = SinglePointCalculator(copy, **atoms.calc.results)
    return copy


def _forces(values: np.ndarray, n_atoms: int, index: int) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.shape != (n_atoms, 3):
        raise ValueError(f"The forces of frame {index} must have shape ({n_atoms}, 3), got {array.shape}.")
    return array
