"""Label your own molecule: sample with GFN2-xTB, label with xTB or DFT, write one extxyz with its provenance.

Two stages, each journaled line by line so that an interrupted run resumes where it stopped:

1. *Sampling.* Langevin dynamics with GFN2-xTB forces (tblite) at a given temperature; one frame every
   ``interval_fs``. Each interval draws its noise from its own seed and starts its own SCF, so a resumed run gives the
   same frames as an uninterrupted one, bit for bit (on one thread: sums over several are not reproducible).
2. *Labelling.* Energies and forces of the frames at the chosen level of theory, e.g. ``GFN2-xTB`` or
   ``PBE/def2-SVP`` (pyscf; density fitting, forces with the response of the grid: exact derivatives).

Isolated atoms in their ground-state multiplicity are labelled the same way (``config_type=IsolatedAtom``).
"""

import datetime
import json
import math
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, io

from mdrelax.base.files import locked_file
from mdrelax.datasets.extxyz import refuse_absurd_counts, write_extxyz
from mdrelax.datasets.journal import Journal
from mdrelax.datasets.labelling import XTB_METHODS, Label, Labeller, make_labeller, xtb_calculator
from mdrelax.datasets.langevin import langevin, thermal_momenta

__all__ = ["GenerateSettings", "generate", "starting_geometry"]

POSITIVE = ("n_frames", "temperature", "interval_fs", "timestep_fs", "friction_per_fs")
Progress = Callable[[str, int, int], None]


class GenerateSettings(NamedTuple):
    """All settings that determine the content of a generated data set.

    ``method`` is ``"GFN2-xTB"``, ``"GFN1-xTB"`` or ``"FUNCTIONAL/BASIS"`` in pyscf's names. Times are in fs,
    the temperature in K.
    """

    n_frames: int = 700
    temperature: float = 500.0
    method: str = "GFN2-xTB"
    interval_fs: float = 100.0
    timestep_fs: float = 0.5
    friction_per_fs: float = 0.01
    equilibration_fs: float = 2000.0
    grid_level: int = 3
    seed: int = 0


def generate(
    source: str | Path,
    out: str | Path,
    *,
    settings: GenerateSettings | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Write ``out`` (extxyz; eV, eV/Angstrom) with labelled frames of the molecule ``source``; resumes earlier work.

    ``source`` is a file that ASE reads or a name that ASE knows ("CH3CH2OH"). ``progress(stage, done, total)`` is
    called after each frame. Raises ``ImportError`` if the extra ``generate`` is missing, ``ValueError`` on
    impossible settings and if a journal next to ``out`` was made with other settings, ``InUseError`` while another
    process generates ``out``.
    """
    settings = GenerateSettings() if settings is None else settings
    _check(settings)
    with locked_file(Path(out)):
        return _generate(source, Path(out), settings, progress)


def _generate(source: str | Path, out: Path, settings: GenerateSettings, progress: Progress) -> Path:
    """``generate`` with checked settings, after locking ``out`` and its journal."""
    start = starting_geometry(source)
    symbols = sorted(set(start.symbols))
    labeller = make_labeller(settings.method, symbols=symbols, grid_level=settings.grid_level)
    header = {
        "settings": settings._asdict(),
        "start": start.positions.tolist(),
        "symbols": start.get_chemical_formula(),
    }
    journal = Journal(out.with_name(out.name + ".journal"), header)
    frames = list(_sample(start, settings, journal, progress))
    isolated = [Atoms(symbol, [[0.0, 0.0, 0.0]]) for symbol in symbols]
    todo = isolated + frames  # the order of rows `label`
    labels = list(_label(todo, labeller, journal, progress))
    _write(out, todo, labels, n_isolated=len(isolated), provenance=_provenance(settings, source))
    journal.path.unlink()
    return out


def starting_geometry(source: str | Path) -> Atoms:
    """The molecule to sample: read from a file if ``source`` is one, else built from a name that ASE knows.

    Raises ``ValueError`` if it is neither, and for a periodic structure.
    """
    atoms = _read_one(Path(source)) if Path(source).is_file() else _by_name(str(source))
    if atoms.pbc.any():
        raise ValueError(f"`{source}` is periodic; `data generate` labels single molecules in vacuum.")
    return atoms


def _read_one(path: Path) -> Atoms:
    refuse_absurd_counts(path)
    try:
        atoms = io.read(path)
    except Exception as error:  # ASE's readers raise anything on a broken file
        raise ValueError(
            f"ASE cannot read a geometry from `{path}` ({type(error).__name__}: {error!s:.200})."
        ) from error
    return atoms if isinstance(atoms, Atoms) else atoms[-1]


def _by_name(name: str) -> Atoms:
    from ase.build import molecule

    try:
        return molecule(name)
    except KeyError as error:
        raise ValueError(
            f"`{name}` is neither a file nor a molecule that ASE knows by name; give a geometry file (xyz, cif, ...) "
            "or a name out of `ase.collections.g2.names`, such as CH3CH2OH."
        ) from error


def _check(settings: GenerateSettings) -> None:
    for name in POSITIVE:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` must be > 0 and finite, got {value}.")
    if settings.timestep_fs > settings.interval_fs:
        raise ValueError(
            f"`timestep_fs` must not exceed `interval_fs`, got {settings.timestep_fs} and {settings.interval_fs}."
        )
    if not 0 <= settings.equilibration_fs < math.inf:
        raise ValueError(f"`equilibration_fs` must be >= 0 and finite, got {settings.equilibration_fs}.")
    if settings.grid_level not in range(10):
        raise ValueError(f"`grid_level` must be one of pyscf's 0 (coarse) to 9 (fine), got {settings.grid_level}.")
    if settings.method not in XTB_METHODS and settings.method.count("/") != 1:
        raise ValueError(
            f"`method` must be {', '.join(XTB_METHODS)} or FUNCTIONAL/BASIS such as PBE/def2-SVP, got "
            f"{settings.method!r}."
        )


# --- sample ---


def _sample(start: Atoms, settings: GenerateSettings, journal: Journal, progress: Progress) -> Iterator[Atoms]:
    """Frames ``interval_fs`` apart; yields those in the journal first, then continues from the last one."""
    done = journal.rows("frame")
    atoms = start.copy()
    for row in done:
        atoms.positions[:], momenta = row["positions"], row["momenta"]
        atoms.set_momenta(np.array(momenta))
        yield Atoms(atoms.numbers, atoms.positions)
    for index in range(len(done), settings.n_frames):
        atoms.calc = xtb_calculator()  # a new one: an SCF that starts from an earlier one would not resume bit for bit
        rng = np.random.default_rng([settings.seed, index])
        if index == 0:
            _equilibrate(atoms, settings, rng)
        _move(atoms, settings, rng, settings.interval_fs)
        state = {"positions": atoms.positions.tolist(), "momenta": atoms.get_momenta().tolist()}
        journal.add({"kind": "frame", "index": index, **state})
        progress("sampling", index + 1, settings.n_frames)
        yield Atoms(atoms.numbers, atoms.positions)


def _equilibrate(atoms: Atoms, settings: GenerateSettings, rng: np.random.Generator) -> None:
    """Relax to the nearest minimum, draw momenta from the Maxwell-Boltzmann distribution, run to equilibrium."""
    from ase.optimize import BFGS

    BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    atoms.set_momenta(thermal_momenta(atoms, settings.temperature, rng))
    _move(atoms, settings, rng, settings.equilibration_fs)


def _move(atoms: Atoms, settings: GenerateSettings, rng: np.random.Generator, duration_fs: float) -> None:
    langevin(
        atoms, duration_fs=duration_fs, temperature=settings.temperature, timestep_fs=settings.timestep_fs,
        friction_per_fs=settings.friction_per_fs, rng=rng,
    )  # fmt: skip


# --- label ---


def _label(frames: list[Atoms], labeller: Labeller, journal: Journal, progress: Progress) -> Iterator[Label]:
    """Labels of all frames; yields those in the journal first."""
    done = journal.rows("label")
    for row in done:
        yield row["energy"], np.array(row["forces"])
    for index in range(len(done), len(frames)):
        energy, forces = labeller(frames[index])
        journal.add({"kind": "label", "index": index, "energy": energy, "forces": forces.tolist()})
        progress("labelling", index + 1, len(frames))
        yield energy, forces


# --- write ---


def _provenance(settings: GenerateSettings, source: str | Path) -> dict[str, Any]:
    packages = ("ase", "numpy", "tblite") + (() if settings.method in XTB_METHODS else ("pyscf",))
    return {
        "made_with": "mdrelax data generate",
        "source": Path(source).name,
        **settings._asdict(),
        "sampling": "Langevin dynamics, GFN2-xTB",
        "units": "eV, Angstrom, eV/Angstrom",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _write(out: Path, frames: list[Atoms], labels: list[Label], *, n_isolated: int, provenance: dict[str, Any]) -> None:
    """One extxyz, isolated atoms first; the first frame carries the provenance as a JSON string."""
    for index, (atoms, (energy, forces)) in enumerate(zip(frames, labels, strict=True)):
        atoms.info["REF_energy"] = energy
        atoms.info["config_type"] = "IsolatedAtom" if index < n_isolated else "langevin"
        atoms.arrays["REF_forces"] = forces
    frames[0].info["provenance"] = json.dumps(provenance)
    write_extxyz(out, frames)
