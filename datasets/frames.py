"""Frames: labelled structures as PyTorch Geometric data, with a report on the origin of their labels.

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
| weight | float, in the loss; where the file has a `config_weight` | - |
| place | str, such as "frame 7 of `x.extxyz`"; where the frame was read from a file | - |
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import vesin
from ase import Atoms
from ase.data import chemical_symbols
from torch_geometric.data import Data

from mdrelax.base.places import frame_name
from mdrelax.structures.crowding import neighbours_expected

__all__ = [
    "Frames",
    "LabelReport",
    "check_structure",
    "data_hash",
    "make_frame",
    "min_distance",
    "place_of",
    "report_on",
    "require_finite",
    "shortened",
    "to_atoms",
    "volume",
]

FARTHEST = 1e6  # Angstrom; as in `structures.neighbors`
NEIGHBOUR_RADIUS = 4.0  # Angstrom; only the nearest pair is wanted
PLENTY = 200.0  # neighbours per atom, among which the nearest surely is
THINNEST = 0.05  # Angstrom; a thinner periodic cell is unphysical in any unit
CLOSE = 0.5  # Angstrom; H-H, the shortest bond, is 0.74
DENSE = 1.0  # Angstrom^3 for an atom; diamond has 5.7
NEAREST = 0.01  # Angstrom; closer atoms coincide
DENSE_ATOMS = 100  # up to here all distances are computed at once
HASHED = ("z", "pos", "cell", "pbc", "energy", "forces", "stress")
PER_ATOM = ("forces", "positions")


class LabelReport(NamedTuple):
    """The content of a file and the labels that were read; ``print`` shows it as lines for the user."""

    source: str
    keys: dict[str, str]  # label -> its key in the file
    counts: dict[str, int]  # label -> frames that have it
    n_frames: int
    n_isolated: int
    elements: tuple[str, ...]
    periodic: dict[str, int]  # periodic directions, "abc", "ab", ..., "" for open frames -> frames
    units: tuple[str, ...]  # of the file: energy, length, and others that the user named
    energy_range: tuple[float, float] | None  # eV
    largest_force: float | None  # eV/Angstrom
    shortest_distance: tuple[float, str] | None  # Angstrom, and the frame
    unused_keys: tuple[str, ...] = ()
    units_assumed: tuple[str, ...] = ()  # those of the units that neither the user nor the format named
    notes: tuple[str, ...] = ()  # sentences about what was converted or left out

    def __str__(self) -> str:
        taken = ", ".join(f"{label} from `{key}`" for label, key in self.keys.items()) or "no labels"
        isolated = f" and {self.n_isolated} isolated atoms" if self.n_isolated else ""
        lines = [
            f"{self.source}: {self.n_frames} frames{isolated} of {', '.join(self.elements)}",
            f"  labels: {taken} ({self._units()})",
        ]
        if self.counts:
            lines.append("  frames with " + ", ".join(f"{label}: {count}" for label, count in self.counts.items()))
        lines.append(f"  periodicity: {self._periodicity()}")
        if self.energy_range:
            lines.append("  energy: {:.4f} to {:.4f} eV".format(*self.energy_range))
        if self.largest_force is not None:
            lines.append(f"  largest force: {self.largest_force:.4f} eV/Angstrom")
        if self.shortest_distance is not None:
            lines.append("  shortest distance: {:.3f} Angstrom, in {}".format(*self.shortest_distance))
        if self.unused_keys:
            lines.append(f"  not used: {shortened(self.unused_keys)}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _units(self) -> str:
        named = [unit for unit in self.units if unit not in self.units_assumed]
        clauses = {"the file's units": named, "units assumed": self.units_assumed}
        return "; ".join(f"{title}: {', '.join(units)}" for title, units in clauses.items() if units)

    def _periodicity(self) -> str:
        clauses = [
            f"{count} of {self.n_frames} frames are {f'periodic along {axes}' if axes else 'open'}"
            for axes, count in sorted(self.periodic.items(), reverse=True)
        ]
        return ", ".join(clauses)

    @property
    def energy_unit(self) -> str:
        """The file's unit of energy."""
        return self.units[0]

    @property
    def length_unit(self) -> str:
        """The file's unit of length."""
        return self.units[1]


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
    place: str | None = None,
) -> Data:
    """One frame out of arrays in eV and Angstrom: positions and forces (N, 3), cell and stress (3, 3).

    The tensors are copies. The cell of an open structure is dropped (zeros), and so is the stress of a structure
    without a volume. ``place`` names the frame in messages, for instance ``frame 7 of `x.extxyz```.
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
    if place is not None:
        frame.place = place
    if energy is not None:
        frame.energy = torch.tensor([float(energy)], dtype=torch.float64)
    if forces is not None:
        frame.forces = torch.tensor(np.asarray(forces), dtype=torch.float64)
    if stress is not None and volume(frame) > 0:
        frame.stress = torch.tensor(np.asarray(stress), dtype=torch.float64).reshape(1, 3, 3)
    return frame


def to_atoms(frame: Data) -> Atoms:
    """The frame as ASE atoms; its labels become ``REF_energy``, ``REF_forces`` and ``REF_stress`` (eV, Angstrom)."""
    atoms = Atoms(frame.z.numpy(), frame.pos.numpy(), cell=frame.cell[0].numpy(), pbc=frame.pbc[0].numpy())
    atoms.info["config_type"] = frame.config_type
    if "weight" in frame:
        atoms.info["config_weight"] = frame.weight
    if "energy" in frame:
        atoms.info["REF_energy"] = float(frame.energy)
    if "forces" in frame:
        atoms.arrays["REF_forces"] = frame.forces.numpy().copy()
    if "stress" in frame:
        atoms.info["REF_stress"] = frame.stress[0].numpy().copy()
    return atoms


def volume(frame: Data) -> float:
    """The volume of the cell in Angstrom^3, |det(cell)|; 0 if a frame has none.

    A slab has a volume if its cell has a third vector: the stress of a partly periodic structure refers to it.
    """
    return abs(float(torch.linalg.det(frame.cell[0])))


def place_of(frame: Data, index: int) -> str:
    """The name of a frame in messages: where it was read, else its position in a list."""
    return frame.place if "place" in frame else frame_name(index)


def report_on(
    data: Sequence[Data],
    *,
    source: str,
    keys: dict[str, str],
    units: tuple[str, ...],
    n_isolated: int = 0,
    unused_keys: tuple[str, ...] = (),
    units_assumed: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    nearest: float = NEAREST,
) -> LabelReport:
    """The report on frames that a loader has read (eV, Angstrom), of a file whose ``units`` and ``keys`` are given.

    Raises ``ValueError`` that names the frame whose atoms are closer than ``nearest`` (Angstrom).
    """
    counts = {label: sum(label in frame for frame in data) for label in keys}
    axes = Counter("".join(np.array(list("abc"))[frame.pbc[0].numpy()]) for frame in data)
    energies = [float(frame.energy) for frame in data if "energy" in frame]
    forces = [float(frame.forces.norm(dim=1).max()) for frame in data if "forces" in frame]
    distances = [(d, place_of(f, k)) for k, f in enumerate(data) if (d := min_distance(f)) == d]  # NaN: no pair
    if distances and min(distances)[0] < nearest:
        distance, place = min(distances)
        raise ValueError(
            f"Two atoms of {place} lie at one point or are an image of each other ({distance:.2g} Angstrom apart); "
            "move or remove one of them, and check the cell and the unit of length."
        )
    return LabelReport(
        source=source,
        keys=keys,
        counts=counts,
        n_frames=len(data),
        n_isolated=n_isolated,
        elements=tuple(chemical_symbols[z] for z in sorted({int(z) for frame in data for z in frame.z.unique()})),
        periodic=dict(axes),
        units=units,
        energy_range=(min(energies), max(energies)) if energies else None,
        largest_force=max(forces) if forces else None,
        shortest_distance=min(distances) if distances else None,
        unused_keys=unused_keys,
        units_assumed=units_assumed,
        notes=(*notes, *_suspicions(data, distances)),
    )


def _suspicions(data: Sequence[Data], distances: list[tuple[float, str]]) -> list[str]:
    """Sentences on the closest atoms and the densest cell, if they are denser than matter."""
    notes = []
    if distances and min(distances)[0] < CLOSE:
        notes.append(
            "Atoms of {1} are only {0:.3g} Angstrom apart: is the unit of length right?".format(*min(distances))
        )
    filled = [(volume(f) / len(f.z), place_of(f, k)) for k, f in enumerate(data) if bool(f.pbc.all())]
    if filled and min(filled)[0] < DENSE:
        notes.append(
            "The cell of {1} has only {0:.3g} Angstrom^3 for each atom: is it the right cell?".format(*min(filled))
        )
    return notes


def min_distance(frame: Data) -> float:
    """The shortest distance between two atoms, periodic images included (Angstrom).

    NaN for a single atom, and if a periodic structure has no pair within 4 Angstrom.
    """
    if not bool(frame.pbc.any()) and len(frame.pos) <= DENSE_ATOMS:
        return float(torch.pdist(frame.pos).min()) if len(frame.pos) > 1 else float("nan")
    positions, cell, pbc = frame.pos.numpy(), frame.cell[0].numpy(), frame.pbc[0].numpy()
    radius = NEIGHBOUR_RADIUS  # in a dense structure (lengths in nm, say) this sphere would hold thousands
    while neighbours_expected(positions, cell, pbc, radius) > PLENTY:
        radius *= 0.8
    (distances,) = vesin.NeighborList(cutoff=radius, full_list=False).compute(positions, cell, pbc, "d")
    return float(distances.min()) if len(distances) else float("nan")


def shortened(names: Sequence[str], most: int = 12) -> str:
    """A list of names of bounded length: a file can have thousands of keys, and keys of any length."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:40]}..." for name in names[:most]) + more


def check_structure(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, *, source: str, number: int
) -> None:
    """Raise ``ValueError`` that names frame ``number`` of ``source`` if the structure is unusable.

    Numbers (N,) are those of elements, positions (N, 3) finite, and the periodic rows of the cell (3, 3; Angstrom)
    span a length, an area or a volume.
    """
    place = frame_name(number, source)
    if len(numbers) == 0:
        raise ValueError(f"There are no atoms in {place}; remove it.")
    unknown = [int(z) for z in numbers if not 1 <= z < len(chemical_symbols)]
    if unknown:
        raise ValueError(
            f"There is an atom of unknown element (`X`, atomic number {unknown[0]}) in {place}; give each atom an "
            f"element, 1 to {len(chemical_symbols) - 1}."
        )
    require_finite("positions", positions, source=source, frame=number)
    if np.abs(positions).max() > FARTHEST:
        raise ValueError(
            f"Atoms of {place} lie more than {FARTHEST:g} Angstrom from the origin; remove the frame, or mend the unit "
            "of length."
        )
    vectors = cell[np.asarray(pbc, dtype=bool)]  # (number of periodic directions, 3)
    axes = "".join(np.array(list("abc"))[np.asarray(pbc, dtype=bool)])
    if len(vectors) and not (np.isfinite(vectors).all() and np.linalg.matrix_rank(vectors) == len(vectors)):
        raise ValueError(
            f"The cell of {place} is periodic along {axes}, but these lattice "
            "vectors span no volume; write the cell, or set pbc to F."
        )
    thickness = np.linalg.svd(vectors, compute_uv=False).min() if len(vectors) else np.inf
    if thickness < THINNEST:
        raise ValueError(
            f"The cell of {place}, periodic along {axes}, is only {thickness:.2g} Angstrom thick; write the cell in "
            "the unit of length, or set pbc to F."
        )


def require_finite(label: str, values: np.ndarray, *, source: str, frame: int | None = None) -> None:
    """Raise ``ValueError`` that names the first frame (and atom) where ``values`` is NaN or infinite.

    ``values`` belongs to one frame if ``frame`` is given, and has a leading axis of frames otherwise.
    """
    finite = np.isfinite(values)
    if finite.all():
        return
    where = [int(k) for k in np.argwhere(~finite)[0]]
    value = np.asarray(values)[tuple(where)]
    index = where.pop(0) if frame is None else frame
    atom = f", atom {where[0]}" if label in PER_ATOM else ""
    article = "an" if label[0] in "aeiou" else "a"
    raise ValueError(
        f"There is {article} {label} value of {value} in {frame_name(index, source)}{atom}; remove the frame or "
        "compute its label again."
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
