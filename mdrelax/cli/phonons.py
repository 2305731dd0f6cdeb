"""`mdrelax phonons`: bands, density of states, sound velocities and heat capacity of a crystal, through phonopy."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdrelax.cli.geometries import (
    Delta,
    Fmax,
    Method,
    ModelFile,
    Overwrite,
    Relax,
    bare_structure,
    check_options,
    double_precision,
    geometry,
    provenance,
    smoothness,
)
from mdrelax.cli.output import refuse, tell_table, write_text
from mdrelax.cli.simulate import refuse_existing

if TYPE_CHECKING:
    import pandas as pd
    from ase import Atoms
    from phonopy import Phonopy

    from mdrelax.engines.ase import MDRelaxCalculator

Size = tuple[int, int, int]


def phonons(
    model: ModelFile,
    structure: Annotated[Path, typer.Argument(help="A crystal that ASE reads; the last of several.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/phonons-STRUCTURE.")] = None,
    supercell: Annotated[
        str | None, typer.Option(help="Such as 3,3,3; default: at least 10 A and twice the cut-off wide.")
    ] = None,
    relax: Relax = True,
    fmax: Fmax = 1e-4,
    method: Method = "exact",
    delta: Delta = 0.01,
    mesh: Annotated[str | None, typer.Option(help="Of the density of states, such as 20,20,20.")] = None,
    path: Annotated[str | None, typer.Option(help="Of the bands, such as GXU,KGL; default: the lattice's.")] = None,
    temperature: Annotated[str, typer.Option(help="K, first,last,step of thermal.csv.")] = "0,1000,10",
    overwrite: Overwrite = False,
) -> None:
    """Relax a crystal and compute its phonons; imaginary modes are reported. Needs the extra `phonons`."""
    from mdrelax.analysis.phonon_properties import check_path
    from mdrelax.analysis.phonons import drift, make_phonopy, moving_atom, require_phonopy, supercell_atoms

    folder = out or Path("runs") / f"phonons-{structure.stem}"
    check_options(method=method, delta=delta, fmax=fmax)
    repeats = None if supercell is None else _three("--supercell", supercell)
    points = None if mesh is None else _three("--mesh", mesh)
    temperatures = _range(temperature)
    if not overwrite:
        refuse_existing(folder / "phonons.json")
    _require(require_phonopy)
    atoms = bare_structure(structure)
    _refuse_molecules(atoms, structure)
    calculator = double_precision(model)
    found = geometry(atoms, calculator, relax=relax, fmax=fmax, cell=calculator.force_field.conservative)
    repeats = repeats or _default_supercell(found.atoms, calculator)
    phonon = make_phonopy(found.atoms, repeats)
    check_path(phonon, path)
    n_displacements = _force_constants(phonon, calculator, method=method, delta=delta)
    before = drift(phonon)
    stiffness = smoothness(supercell_atoms(phonon), calculator, moving_atom(phonon))
    phonon.symmetrize_force_constants(show_drift=False)
    typer.echo(
        f"{len(phonon.primitive)} atoms in the primitive cell, {len(phonon.supercell)} in the supercell. The force "
        f"constants violated the acoustic sum rule by {before:.1e} eV/A^2; now they satisfy it."
    )
    summary = provenance(model, structure, found, method=method, delta=delta) | {
        "supercell": list(repeats), "atoms_in_primitive_cell": len(phonon.primitive),
        "atoms_in_supercell": len(phonon.supercell), "displacements": n_displacements,
        "cell_A": found.atoms.cell.tolist(), "stiffness": stiffness, "acoustic_sum_rule_violation_eV_per_A2": before,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    _analyse(folder, phonon, summary, path=path, mesh=points, temperatures=temperatures)
    typer.echo(f"Tables, picture, and phonopy_params.yaml for phonopy: {folder}")


def _three(option: str, text: str) -> Size:
    """Three whole numbers from a text such as 3,3,3."""
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        refuse(f"`{option}` must be three whole numbers > 0 such as 3,3,3, got {text!r}.")
    a, b, c = (int(part) for part in parts)
    return a, b, c


def _range(text: str) -> list[float]:
    """The temperatures of a text such as 0,1000,10."""
    try:
        first, last, step = (float(part) for part in text.split(","))
    except ValueError:
        first = last = step = math.nan
    if not (0 <= first <= last < math.inf and 0 < step < math.inf):
        refuse(f"`--temperature` must be first,last,step in K such as 0,1000,10, none below 0, got {text!r}.")
    return [first + k * step for k in range(int((last - first) / step + 1e-9) + 1)]


def _require(check: Any) -> None:
    try:
        check()
    except ImportError as error:
        refuse(str(error))


def _refuse_molecules(atoms: "Atoms", path: Path) -> None:
    if not atoms.pbc.all():
        raise ValueError(
            f"`{path}` is not periodic in three directions (pbc = {atoms.pbc.tolist()}), and `mdrelax phonons` is for "
            "crystals: use `mdrelax vibrations` for a molecule; give a slab a cell with vacuum and pbc = True."
        )


def _default_supercell(atoms: "Atoms", calculator: "MDRelaxCalculator") -> Size:
    from mdrelax.analysis.phonons import supercell_size

    size = supercell_size(atoms, calculator.force_field.cutoff)
    typer.echo(
        f"Supercell {','.join(map(str, size))}, the smallest that is 10 A and twice the cut-off of "
        f"{calculator.force_field.cutoff:g} A wide; see with `--supercell` whether a larger one changes the bands."
    )
    return size


def _force_constants(phonon: "Phonopy", calculator: "MDRelaxCalculator", *, method: str, delta: float) -> int:
    """Set them; returns the number of displacements."""
    from mdrelax.analysis.phonons import exact_force_constants, finite_force_constants

    if method == "finite":
        return finite_force_constants(phonon, calculator, delta=delta)
    return exact_force_constants(phonon, calculator)


def _analyse(
    folder: Path, phonon: "Phonopy", summary: dict[str, Any], *, path: str | None, mesh: Size | None,
    temperatures: list[float],
) -> None:  # fmt: skip
    """Tables and figure; the JSON is written last, so that its presence marks a complete folder."""
    import numpy as np

    from mdrelax.analysis import drawing, harmonic_figures
    from mdrelax.analysis import phonon_properties as properties
    from mdrelax.analysis.phonons import primitive_cell

    bands = properties.band_table(phonon, path)
    points = mesh or properties.mesh_size(phonon)
    properties.sample_mesh(phonon, points)
    dos = properties.density_of_states(phonon)
    thermal = properties.thermal_properties(phonon, np.array(temperatures))
    sound = properties.sound_velocities(phonon, bands)
    imaginary = properties.find_imaginary(phonon, bands)
    for name, table in {"bands": bands, "dos": dos, "thermal": thermal, "sound": sound}.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False))
    phonon.save(str(folder / "phonopy_params.yaml"), settings={"force_constants": True})
    formula = primitive_cell(phonon).get_chemical_formula(empirical=True)
    title = f"phonons of {formula}"
    drawing.save(folder / "phonons.png", lambda: harmonic_figures.bands_and_dos(bands, dos, title=title))
    summary |= {
        "mesh": list(points),
        "lowest_frequency_THz": properties.lowest_frequency(phonon, bands),
        "highest_frequency_THz": float(bands.filter(like="_THz").to_numpy().max()),
        "sound": json.loads(sound.to_json(orient="records")),
        "imaginary": [mode._asdict() for mode in imaginary],
    }
    write_text(folder / "phonons.json", json.dumps(summary, indent=2))
    _tell(summary, sound, properties.describe_imaginary(imaginary))


def _tell(summary: dict[str, Any], sound: "pd.DataFrame", imaginary: list[str]) -> None:
    low, high = summary["lowest_frequency_THz"], summary["highest_frequency_THz"]
    typer.echo(f"Frequencies from {low:.3f} to {high:.3f} THz.")
    if len(sound):
        typer.echo("Sound, m/s (linearity 1: straight branches at Gamma):")
        tell_table(sound)
    for sentence in imaginary or ["No imaginary modes."]:
        typer.echo(sentence)
