"""Plausibility: whether lengths, elements, cells and forces of a data set are physical.

Lengths are compared with covalent radii (Cordero et al. 2008, doi 10.1039/b801115j), forces with the stiffness of bonds
(``bonds``). Limits are wide enough for all of chemistry and narrow enough for a unit: Bohr for Angstrom is a factor of
1.9, kcal/mol for eV one of 23.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import vesin
from ase.data import chemical_symbols, covalent_radii
from torch_geometric.data import Data

from mdrelax.datasets.bonds import Stiffness, bonds_of
from mdrelax.datasets.frames import volume
from mdrelax.datasets.structure_files import spread

__all__ = ["Finding", "check_density", "check_elements", "check_lengths", "check_stiffness"]

NOBLE = {2, 10, 18, 36, 54}  # no bonds to measure
NEVER_BOUND = {2, 10, 18}
NEAREST_RANGE = (0.66, 1.6)  # nearest neighbours, in sums of covalent radii: N2 has 0.77, aluminium 1.18
REACH = 2.6  # sums of covalent radii, as far as neighbours are searched
STIFFNESS_RANGE = (8.0, 1000.0)  # eV Angstrom, K r^3: 40 to 150 in molecules, metals and silicon, 18 in sodium
CORRELATED, UNCORRELATED = 0.5, 0.25  # of forces with bond lengths: 0.7 to 0.98 in real data
ORGANIC = {1, 6, 7, 8, 9, 15, 16, 17, 35, 53}
MOST_BONDS = {1: 2.3, 6: 4.3, 7: 4.3, 8: 3.3, 9: 2.3}  # mean over the frames; proton transfer gives H two
DENSEST = 0.4  # volume per atom, in spheres of the covalent radius: close-packed metals have 1.2
SAMPLED = 100  # frames, spread over the data
FREQUENT = 0.2  # share of frames with the same elements at each atom, from which on they are usual
MAJORITY = 0.6  # share of the frames with usual elements, from which on the others are suspected
SIMILAR = 0.3  # Angstrom, root mean square of distances or displacements

LENGTHS = {"Bohr": 1.89, "nm": 0.1, "pm": 100.0}  # 1 Angstrom in other units


class Finding(NamedTuple):
    """The result of a check: indices of the frames concerned, a message, and whether it failed."""

    frames: list[int]
    sentence: str
    failed: bool


PASSED = Finding([], "", failed=False)


def check_lengths(data: Sequence[Data]) -> Finding:
    """The nearest neighbours of each element are about a bond away."""
    ratios: dict[int, list[float]] = {}
    for frame in spread(data, SAMPLED):
        if len(frame.z) > 1 and bool(frame.pos.isfinite().all()):
            for z, ratio in zip(frame.z.tolist(), _nearest(frame), strict=True):
                ratios.setdefault(z, []).append(ratio)
    typical = {z: float(np.median(values)) for z, values in ratios.items() if z not in NOBLE}
    wrong = {z: r for z, r in typical.items() if not NEAREST_RANGE[0] < r < NEAREST_RANGE[1]}
    if not wrong:
        return PASSED
    named = ", ".join(f"{chemical_symbols[z]} {_times(r)}" for z, r in sorted(wrong.items()))
    middle = float(np.median(list(typical.values())))
    unit = next((u for u, size in LENGTHS.items() if 0.7 < middle / size < 1.35), None)
    guess = f"`length_unit: {unit}`?" if unit else "`length_unit`"
    return Finding(
        [],
        f"Distances do not fit the elements: nearest neighbours, in sums of covalent radii, of {named}. (a) The unit "
        f"of length is another ({guess}), (b) atomic numbers are wrong (indices of types?), or (c) the cell is wrong.",
        failed=True,
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if np.isfinite(ratio) else f"over {REACH}"


def _nearest(frame: Data) -> np.ndarray:
    """Each atom's distance from its nearest neighbour, in sums of covalent radii (N,)."""
    radii = covalent_radii[frame.z.numpy()]
    reach = 2 * REACH * radii.max()
    if bool(frame.pbc.all()):  # a dense cell has thousands of atoms within reach
        reach = min(reach, max(4 * (volume(frame) / len(frame.z)) ** (1 / 3), 0.05))
    search = vesin.NeighborList(cutoff=float(reach), full_list=True)
    i, j, distance = search.compute(frame.pos.numpy(), frame.cell[0].numpy(), frame.pbc[0].numpy(), "ijd")
    nearest = np.full(len(radii), np.inf)
    np.minimum.at(nearest, i, distance / (radii[i] + radii[j]))
    return nearest


def check_elements(data: Sequence[Data]) -> Finding:
    """Elements have chemically possible bonds, and frames of one shape have the same elements."""
    strangers = _strangers(data)
    if strangers:
        return Finding(
            strangers,
            "The geometry is that of the other frames, but elements differ at some atoms: wrong atomic numbers, or "
            "atoms in another order.",
            failed=True,
        )
    mean = _mean_bonds(data)
    noble = sorted(chemical_symbols[z] for z in NEVER_BOUND if mean.get(z, 0.0) > 0.5)
    crowded = sorted(chemical_symbols[z] for z, most in MOST_BONDS.items() if mean.get(z, 0.0) > most)
    if noble or (crowded and set(mean) <= ORGANIC):
        return Finding(
            [],
            f"{', '.join(noble or crowded)} has more bonds than it can have: atomic numbers are wrong (shifted, "
            "exchanged, or indices of types), or the unit of length is.",
            failed=True,
        )
    return PASSED


def _mean_bonds(data: Sequence[Data]) -> dict[int, float]:
    """The mean number of bonds of the atoms of each element, over open frames."""
    bonds: Counter[int] = Counter()
    atoms: Counter[int] = Counter()
    for frame in spread([f for f in data if not bool(f.pbc.any()) and bool(f.pos.isfinite().all())], SAMPLED):
        z = frame.z.numpy()
        pairs, _, _ = bonds_of(frame)
        atoms.update(z.tolist())
        bonds.update(z[pairs.ravel()].tolist())
    return {z: bonds[z] / atoms[z] for z in atoms}


def _strangers(data: Sequence[Data]) -> list[int]:
    """Frames with the shape of a majority of frames, but with other elements at some atoms.

    Alloys share a lattice, so that of periodic frames only single ones are suspected.
    """
    sizes: dict[tuple[int, str], list[int]] = {}
    for index, frame in enumerate(data):
        if bool(frame.pos.isfinite().all()) and bool(frame.cell.isfinite().all()):
            sizes.setdefault((len(frame.z), str(frame.pbc.tolist())), []).append(index)
    found: list[int] = []
    for (n_atoms, _), indices in sizes.items():
        if n_atoms < 2 or len(indices) < 10:
            continue
        counts = Counter(data[k].z.numpy().tobytes() for k in indices)
        usual = {key for key, n in counts.items() if n >= max(FREQUENT * len(indices), 5)}
        if len(usual) == len(counts) or sum(counts[key] for key in usual) < MAJORITY * len(indices):
            continue
        most = 1 if bool(data[indices[0]].pbc.any()) else len(indices)
        same = spread([data[k] for k in indices if data[k].z.numpy().tobytes() in usual], 2 * SAMPLED)
        rare = {key for key, n in counts.items() if key not in usual and n <= most}
        suspects = [k for k in indices if data[k].z.numpy().tobytes() in rare]
        found += [k for k in suspects if min(_difference(data[k], other) for other in same) < SIMILAR]
    return sorted(found)


def _difference(frame: Data, other: Data) -> float:
    """Root mean square difference (Angstrom) of distances in open frames, of displacements in periodic ones."""
    if not bool(frame.pbc.any()):
        i, j = np.triu_indices(len(frame.z), k=1)
        a, b = (np.linalg.norm(f.pos.numpy()[i] - f.pos.numpy()[j], axis=1) for f in (frame, other))
        return float(np.sqrt(((a - b) ** 2).mean()))
    from ase.geometry.cell import complete_cell

    cells = [complete_cell(f.cell[0].numpy()) for f in (frame, other)]
    if abs(cells[0] - cells[1]).max() > 0.1 * abs(cells[0]).max():
        return float("inf")
    moved = frame.pos.numpy() @ np.linalg.inv(cells[0]) - other.pos.numpy() @ np.linalg.inv(cells[1])
    moved = moved - np.round(moved) * frame.pbc[0].numpy()
    moved = (moved - moved.mean(axis=0)) @ cells[0]
    return float(np.sqrt((moved**2).sum(axis=1).mean()))


def check_density(data: Sequence[Data]) -> Finding:
    """No periodic cell is smaller than the atoms in it."""

    def crowded(frame: Data) -> bool:
        spheres = 4 / 3 * np.pi * (covalent_radii[frame.z.numpy()] ** 3).sum()
        return bool(frame.pbc.all()) and volume(frame) < DENSEST * spheres

    frames = [k for k, frame in enumerate(data) if crowded(frame)]
    if not frames:
        return PASSED
    return Finding(
        frames,
        "The cell is smaller than the atoms in it: (a) its lattice vectors are in another unit of length than "
        "Angstrom, (b) it is a stand-in (1 1 1) and pbc should be F, or (c) atomic numbers are wrong.",
        failed=True,
    )


def check_stiffness(found: Sequence[Stiffness]) -> Finding:
    """Forces pull stretched bonds together, as strongly as bonds do."""
    if not found:
        return Finding(
            [], "Not tested: no bonds vary over five or more frames of the same atoms with forces.", failed=False
        )
    correlations = np.array([bond.correlation for bond in found])
    if np.median(correlations) < -CORRELATED:
        sentence = "Forces push stretched bonds apart: they have the sign of gradients (`forces_sign: opposite`)."
        return Finding([], sentence, failed=True)
    if abs(correlations).max() < UNCORRELATED:
        sentence = "Forces do not depend on the lengths of bonds: they are shuffled, or under another key."
        return Finding([], sentence, failed=True)
    scaled = [bond.scaled for bond in found if bond.correlation > CORRELATED]
    typical = float(np.median(scaled)) if scaled else 100.0
    if STIFFNESS_RANGE[0] < typical < STIFFNESS_RANGE[1]:
        return PASSED
    size = "strong" if typical > STIFFNESS_RANGE[1] else "weak"
    return Finding(
        [],
        f"Forces are too {size} for bonds: stiffness times length cubed is {typical:.3g} eV Angstrom, where 40 to 150 "
        "is usual. The unit of energy or of forces is another (`energy_unit`, `forces_unit`), or that of length.",
        failed=True,
    )
