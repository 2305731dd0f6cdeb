"""N-body frames: the particles as atoms, so that potentials can be trained on a known force law.

    frames = load_frames("nbody:charged")       # also nbody:gravity, nbody:springs; as data.source of a config too

Units: 1 of length is 1 Angstrom, 1 of energy 1 eV and 1 of mass 1 amu, so 1 of time is ASE's own unit of it, 10.18 fs:
the simulator's time step of 0.001 is ``timestep=0.001`` in ASE. Every mass is 1, not the element's: ``nbody_atoms``.

| system | species | softening (Angstrom) |
| --- | --- | --- |
| charged | charge +1: sodium, -1: chlorine | 0.2 |
| gravity | hydrogen | 0.1, as in the published simulator |
| springs | sign +1: sodium, -1: chlorine | none is needed |

Charges are softened because the energy -1/r of two opposite ones has no lower bound: among random starts a few pairs
come so close that their energies and forces, which grow without limit, would outweigh all other labels. With
-1/sqrt(r^2 + s^2) no pair has less than -1/s = -5 eV, and the energy is smooth everywhere. The frames come from the
leapfrog of second order in the same softened field, without a clamp, one frame per trajectory, so that frames are
independent and no split leaks. Forces reach as far as the system, so the cut-off of a potential has to as well: of all
pairs of charges 88 in 100 are within 5 Angstrom, and 99 within 9.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from torch_geometric.data import Data

from mdrelax.base.names import nearest_name
from mdrelax.base.places import frame_name
from mdrelax.datasets.array_cache import cached_arrays
from mdrelax.datasets.frames import Frames, make_frame, report_on, require_finite, to_atoms
from mdrelax.datasets.nbody import VERSION, cache_folder
from mdrelax.datasets.nbody_simulator import PROTOCOLS, SYSTEMS, forces, potential_energy, require_system, simulate

__all__ = ["NBODY_PREFIX", "SOFTENING", "SPECIES", "NBodyCalculator", "load_nbody_frames", "nbody_atoms"]

NBODY_PREFIX = "nbody:"
SPECIES = {"charged": {1: 11, -1: 17}, "gravity": {1: 1}, "springs": {1: 11, -1: 17}}  # charge -> atomic number
SOFTENING = {"charged": 0.2, "gravity": 0.1, "springs": 0.0}  # Angstrom
STREAM = 3  # of random numbers; 0 to 2 are those of ``load_nbody``
N_TIMES = 41  # frames 0 to 40 of the simulator: times 0.1 to 4.1


def load_nbody_frames(
    source: str | Path,
    *,
    n_frames: int = 3000,
    n_bodies: int = 5,
    softening: float | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Frames:
    """Frames of ``nbody:SYSTEM`` with exact energies (eV) and forces (eV/Angstrom), each from its own trajectory.

    Frame i of the list is at time 0.1 (1 + i mod 41). ``softening`` (Angstrom) is the system's own unless given.
    Simulated data are stored in ``cache`` (default: the user's cache). Isolated particles have the energy 0. Raises
    ``ValueError`` for an unknown system and for numbers that are out of range.
    """
    name = str(source).removeprefix(NBODY_PREFIX)
    if name not in SYSTEMS:
        known = [f"{NBODY_PREFIX}{system}" for system in SYSTEMS]
        raise ValueError(f"There is no N-body system `{source}`; {nearest_name(f'{NBODY_PREFIX}{name}', known)}")
    _check_request(n_frames, n_bodies, seed)
    softening = _softening(name, softening)
    folder = cache_folder(cache)
    path = folder / f"{name}-v{VERSION}-seed{seed}-frames{n_frames}-bodies{n_bodies}-softening{softening!r}.npz"
    arrays = cached_arrays(path, lambda: _simulated(name, n_frames, n_bodies, softening, seed))
    return _labelled(name, arrays["positions"], arrays["charges"], softening)


def nbody_atoms(frame: Data) -> Atoms:
    """The frame as ASE atoms of mass 1 amu, as the simulator has them; see ``to_atoms`` for the labels."""
    atoms = to_atoms(frame)
    atoms.set_masses(np.ones(len(atoms)))
    return atoms


class NBodyCalculator(Calculator):
    """ASE calculator of the exact energy (eV) and forces (eV/Angstrom) of an N-body system; species encode the charges.

    ``softening`` (Angstrom) has the default of ``load_nbody_frames``. Give the atoms mass 1
    (``nbody_atoms``) to repeat the simulator's trajectories.
    """

    implemented_properties: list[str] = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE's interface)

    def __init__(self, system: str, *, softening: float | None = None) -> None:
        super().__init__()
        self.system = require_system(system)
        self.softening = _softening(system, softening)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results``; raises ``ValueError`` for periodic atoms and for elements that are no particle's."""
        structure = self.atoms if atoms is None else atoms
        if structure is None:
            raise ValueError("`calculate` needs a structure: pass `atoms`, or set `atoms.calc` and ask `atoms`.")
        super().calculate(structure, list(properties), list(system_changes))
        self.results = {}  # so that an error below does not leave the results of another structure
        if structure.pbc.any():
            raise ValueError(f"N-body systems are not periodic, got pbc = {structure.pbc.tolist()}; set it to False.")
        positions, charges = structure.positions, _charges(self.system, structure.numbers)
        energy = float(potential_energy(self.system, positions, charges, softening=self.softening))
        force = forces(self.system, positions, charges, softening=self.softening)
        self.results = {"energy": energy, "free_energy": energy, "forces": force}


def _check_request(n_frames: int, n_bodies: int, seed: int) -> None:
    for name, value, least in (("n_frames", n_frames, 1), ("n_bodies", n_bodies, 2), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")


def _softening(system: str, softening: float | None) -> float:
    """The softening that was given, or the system's own."""
    if softening is None:
        return SOFTENING[system]
    if not 0 <= softening < np.inf:
        raise ValueError(f"`softening` must be 0 or larger (Angstrom), got {softening}.")
    return float(softening)


def _simulated(system: str, n_frames: int, n_bodies: int, softening: float, seed: int) -> dict[str, np.ndarray]:
    """Positions (F, n, 3) and charges (F, n), each at its own time of its own trajectory."""
    protocol = PROTOCOLS[system]._replace(softening=softening, largest_force=None, half_kick=True)
    made = simulate(
        system,
        n_frames,
        generator=np.random.default_rng([seed, STREAM]),
        n_bodies=n_bodies,
        n_steps=N_TIMES * protocol.record_every,
        protocol=protocol,
    )
    rows = np.arange(n_frames)
    return {"positions": made.positions[rows, rows % N_TIMES], "charges": made.charges}


def _labelled(system: str, positions: npt.NDArray[Any], charges: npt.NDArray[Any], softening: float) -> Frames:
    """The frames with their exact labels, and the report."""
    source = f"{NBODY_PREFIX}{system}"
    energies = potential_energy(system, positions, charges, softening=softening)
    every_force = forces(system, positions, charges, softening=softening)
    for label, values in (("positions", positions), ("energy", energies), ("forces", every_force)):
        require_finite(label, values, source=source)
    numbers = np.vectorize(SPECIES[system].__getitem__, otypes=[np.int64])(charges)
    data = [
        make_frame(z, x, energy=e, forces=f, config_type=source, place=frame_name(k, source))
        for k, (z, x, e, f) in enumerate(zip(numbers, positions, energies, every_force, strict=True))
    ]
    keys = {"energy": "V", "forces": "-dV/dx"}
    isolated = dict.fromkeys(SPECIES[system].values(), 0.0)
    report = report_on(
        data, source=source, keys=keys, units=("eV", "Angstrom"), n_isolated=len(isolated), nearest=0.0
    )  # softened
    return Frames(data, isolated, report)


def _charges(system: str, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The charges represented by elements."""
    of = {z: float(charge) for charge, z in SPECIES[system].items()}
    unknown = sorted({int(z) for z in numbers} - of.keys())
    if unknown:
        known = ", ".join(f"{z} for {charge:+g}" for z, charge in of.items())
        raise ValueError(f"Atomic numbers {unknown} represent no particle of `{system}`; known are {known}.")
    return np.array([of[int(z)] for z in numbers])
