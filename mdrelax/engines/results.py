"""Results: what every ASE calculator of this package does with structures and predictions.

A result is a dict with ASE's names, of one structure: energies in eV, forces in eV/A, stress in eV/A^3 (Voigt).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mdrelax.forces.dispersion import D3
from mdrelax.forces.forcefield import ForceField, Prediction
from mdrelax.method.relaxation import relaxed_layers
from mdrelax.modelfile import frozen_copy
from mdrelax.structures.graph import Graph
from mdrelax.structures.neighbors import build_graph

__all__ = [
    "Results",
    "UnprojectedModelError",
    "add_dispersion",
    "arrays_of",
    "changes",
    "check_structure",
    "graph_of_one",
    "has_volume",
    "own_copy",
    "refuse_relaxed",
    "split_prediction",
]

Results = dict[str, Any]
Arrays = tuple[npt.NDArray, npt.NDArray, npt.NDArray, npt.NDArray]


class UnprojectedModelError(ValueError):
    """A model that was not projected to exact equivariance, or not certified."""


def changes(old: Atoms | None, atoms: Atoms) -> list[str]:
    """The names of ASE's changes between two structures, bitwise; all of them if there is no old one."""
    if old is None:
        return list(all_changes)
    pairs = {
        "positions": (old.positions, atoms.positions),
        "numbers": (old.numbers, atoms.numbers),
        "cell": (old.cell.array, atoms.cell.array),
        "pbc": (old.pbc, atoms.pbc),
    }
    return [name for name, (before, now) in pairs.items() if not np.array_equal(before, now)]


def check_structure(structure: Atoms | None, properties: Sequence[str]) -> Atoms:
    """The structure to calculate; raises ``ValueError`` if it is missing or empty.

    Raises ``PropertyNotImplementedError`` if the stress of a system without volume is requested.
    """
    if structure is None:
        raise ValueError("A calculation needs a structure: pass `atoms`, or set `atoms.calc` and use `atoms`.")
    _refuse_empty(structure)
    if "stress" in properties and not has_volume(structure):
        raise PropertyNotImplementedError(
            f"Stress needs a cell with a volume, got the lattice vectors {structure.cell.array.tolist()} A; energy "
            "and forces are available."
        )
    return structure


def graph_of_one(atoms: Atoms, force_field: ForceField, device: str | torch.device) -> Graph:
    """The graph of one of many structures, of known elements."""
    _refuse_empty(atoms)
    graph = build_graph(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, force_field.cutoff)
    force_field.species_of(graph.numbers.to(device))
    return graph


def has_volume(atoms: Atoms) -> bool:
    """True for a cell of three independent vectors, as in training and in ASE's own calculators.

    The stress is the derivative of the energy with strain over |det(cell)|, also of a slab that is periodic in two
    directions only.
    """
    return int(atoms.cell.rank) == 3


def split_prediction(prediction: Prediction, sizes: Sequence[int], volumes: Sequence[bool]) -> list[Results]:
    """The results of each structure in a batch; stress for those with a volume."""
    energy, energies, forces = (tensor.cpu().numpy() for tensor in prediction[:3])
    stress = None if prediction.stress is None else prediction.stress.cpu().numpy()
    results: list[Results] = []
    end = 0
    for number, (size, volume) in enumerate(zip(sizes, volumes, strict=True)):
        start, end = end, end + size
        total = float(energy[number])
        result: Results = {"energy": total, "free_energy": total}
        result |= {"energies": energies[start:end].copy(), "forces": forces[start:end].copy()}
        if volume and stress is not None:
            result["stress"] = full_3x3_to_voigt_6_stress(stress[number])
        results.append(result)
    return results


def add_dispersion(d3: D3 | None, atoms: Atoms, result: Results, *, energies: bool) -> None:
    """Add the dispersion of a structure to its result, if there is any; that of each atom only with ``energies``.

    Without it the atoms' energies, which would not add up, are removed.
    """
    if d3 is None:
        return
    found = d3(*arrays_of(atoms))
    for name in ("energy", "free_energy"):
        result[name] += found.energy
    result["forces"] += found.forces
    if "stress" in result and found.stress is not None:
        result["stress"] += full_3x3_to_voigt_6_stress(found.stress)
    if energies:
        result["energies"] += d3.energies(*arrays_of(atoms))
    else:
        del result["energies"]


def arrays_of(atoms: Atoms) -> Arrays:
    """Numbers, positions, cell and pbc."""
    return atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc


def own_copy(force_field: ForceField, dtype: str | None, device: str | torch.device) -> ForceField:
    """A frozen copy in evaluation mode, in the given precision, on the given device.

    Raises ``ValueError`` for a device that cannot be used and an unknown ``dtype``.
    """
    own = frozen_copy(force_field, dtype)
    try:
        return own.to(device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"The device `{device}` cannot be used here ({reason}); take `cpu`.") from error


def refuse_relaxed(force_field: ForceField) -> None:
    """Raise ``UnprojectedModelError`` for a model that still has free maps."""
    relaxed = list(relaxed_layers(force_field))
    if relaxed:
        raise UnprojectedModelError(
            f"The model still has {len(relaxed)} relaxed layers (the first: `{relaxed[0]}`), so its forces are not "
            "equivariant; call `project(model)` first."
        )


def _refuse_empty(atoms: Atoms) -> None:
    if not isinstance(atoms, Atoms):
        raise TypeError(f"A structure is an `ase.Atoms`, got {type(atoms).__name__}; read a file with `ase.io.read`.")
    if len(atoms) == 0:
        raise ValueError("The structure has no atoms; an energy needs at least one.")
