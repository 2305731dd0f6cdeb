"""`mdrelax vibrations`: frequencies, normal modes and zero-point energy of a molecule."""

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
    from ase import Atoms

    from mdrelax.analysis.vibrations import NormalModes


def vibrations(
    model: ModelFile,
    structure: Annotated[Path, typer.Argument(help="A molecule that ASE reads; the last of several.")],
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/vibrations-STRUCTURE.")] = None,
    relax: Relax = True,
    fmax: Fmax = 1e-4,
    method: Method = "exact",
    delta: Delta = 0.01,
    temperature: Annotated[float, typer.Option(min=0, help="K, of the harmonic thermochemistry.")] = 298.15,
    overwrite: Overwrite = False,
) -> None:
    """Relax a molecule and compute its vibrations: wavenumbers, modes, zero-point energy; reports imaginary modes."""
    from mdrelax.analysis.vibrations import exact_vibrations, finite_vibrations, normal_modes, write_hessian

    folder = out or Path("runs") / f"vibrations-{structure.stem}"
    check_options(method=method, delta=delta, fmax=fmax)
    if not 0 <= temperature < math.inf:
        refuse(f"`--temperature` must be >= 0 K and finite, got {temperature}.")
    if not overwrite:
        refuse_existing(folder / "vibrations.json")
    atoms = bare_structure(structure)
    _refuse_crystals(atoms, structure)
    calculator = double_precision(model)
    found = geometry(atoms, calculator, relax=relax, fmax=fmax)
    data = (
        exact_vibrations(found.atoms, calculator)
        if method == "exact"
        else finite_vibrations(found.atoms, calculator, delta=delta)
    )
    modes = normal_modes(data)
    summary = provenance(model, structure, found, method=method, delta=delta) | _results(modes, temperature)
    summary["stiffness"] = smoothness(found.atoms, calculator)
    folder.mkdir(parents=True, exist_ok=True)
    write_hessian(data, folder / "hessian.json")
    _write(folder, modes, summary)
    _tell(modes, summary)
    typer.echo(f"Tables, modes and picture: {folder}")


def _refuse_crystals(atoms: "Atoms", path: Path) -> None:
    if atoms.pbc.any():
        raise ValueError(
            f"`{path}` is periodic (pbc = {atoms.pbc.tolist()}), and `mdrelax vibrations` is for molecules: use "
            "`mdrelax phonons`, or write the molecule without a cell."
        )
    if len(atoms) < 2:
        raise ValueError(f"`{path}` holds {len(atoms)} atom(s): vibrations need at least two.")


def _results(modes: "NormalModes", temperature: float) -> dict[str, Any]:
    from mdrelax.analysis.vibrations import describe_imaginary, harmonic_thermochemistry

    return {
        "wavenumbers_per_cm": modes.vibrations.tolist(),
        "translations_and_rotations_per_cm": modes.wavenumbers[~modes.is_vibration].tolist(),
        "zero_point_energy_eV": modes.zero_point_energy,
        "thermochemistry": harmonic_thermochemistry(modes, temperature),
        "imaginary": describe_imaginary(modes),
    }


def _write(folder: Path, modes: "NormalModes", summary: dict[str, Any]) -> None:
    """All results except the Hessian; the JSON is written last, so that its presence marks a complete folder."""
    from mdrelax.analysis import drawing, harmonic_figures
    from mdrelax.analysis.vibrations import mode_table, write_modes

    write_text(folder / "vibrations.csv", mode_table(modes).to_csv(index=False))
    write_modes(modes, folder / "modes.xyz")
    title = f"vibrations of {summary['formula']}"
    drawing.save(folder / "vibrations.png", lambda: harmonic_figures.sticks(modes.vibrations, title=title))
    write_text(folder / "vibrations.json", json.dumps(summary, indent=2))


def _tell(modes: "NormalModes", summary: dict[str, Any]) -> None:
    from mdrelax.analysis.vibrations import mode_table

    tell_table(mode_table(modes), ".2f")
    thermo = summary["thermochemistry"]
    entropy, heat_capacity = (1000 * thermo[name] for name in ("entropy_eV_per_K", "heat_capacity_eV_per_K"))
    typer.echo(
        f"Zero-point energy {summary['zero_point_energy_eV']:.4f} eV. At {thermo['temperature_K']:g} K, vibrations "
        f"only: energy {thermo['vibrational_energy_eV']:.4f} eV, entropy {entropy:.4f} meV/K, heat capacity "
        f"{heat_capacity:.4f} meV/K."
    )
    for sentence in summary["imaginary"]:
        typer.echo(sentence)
