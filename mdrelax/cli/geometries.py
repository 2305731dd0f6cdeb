"""What the harmonic analyses share: the one structure they are of, its relaxation, and the options that cannot be."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdrelax.cli.output import refuse

if TYPE_CHECKING:
    from ase import Atoms

    from mdrelax.analysis.geometry import Relaxed
    from mdrelax.engines.ase import MDRelaxCalculator

ModelFile = Annotated[Path, typer.Argument(help="A model file (.safetensors).")]
Relax = Annotated[bool, typer.Option(help="Relax the geometry first.")]
Fmax = Annotated[float, typer.Option(help="eV/A: relaxed when no force is larger.")]
Method = Annotated[str, typer.Option(help="exact (automatic differentiation) or finite (central differences).")]
Delta = Annotated[float, typer.Option(help="A: displacements of `--method finite`.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace older results in the folder.")]

METHODS = ("exact", "finite")
LARGE_FORCE = 1e-3  # eV/A: a geometry that is not relaxed is warned of from here on


def check_options(*, method: str, delta: float, fmax: float) -> None:
    """Raise ``ConfigError`` for options that cannot be, before anything takes time."""
    if method not in METHODS:
        refuse(f"`--method` must be exact or finite, got {method!r}.")
    if not 0 < delta <= 0.5:
        refuse(f"`--delta` must be a displacement in A, > 0 and at most 0.5, got {delta}.")
    if not 0 < fmax < math.inf:
        refuse(f"`--fmax` must be a force > 0 in eV/A, got {fmax}.")


def one_structure(path: Path) -> "Atoms":
    """The structure of a file; of several, the last, which is said."""
    from mdrelax.datasets.structure_files import last_structure

    last, number = last_structure(path)
    if number > 1:
        typer.echo(f"`{path}` has {number} structures; the last one is taken.")
    return last


def bare_structure(path: Path) -> "Atoms":
    """``one_structure`` without labels and constraints."""
    from mdrelax.analysis.geometry import bare

    return bare(one_structure(path))


def double_precision(model: Path) -> "MDRelaxCalculator":
    """The calculator in float64: differences and tight relaxations need the digits."""
    from mdrelax.engines.ase import MDRelaxCalculator

    return MDRelaxCalculator.from_file(model, dtype="float64")


def geometry(
    atoms: "Atoms", calculator: "MDRelaxCalculator", *, relax: bool, fmax: float, cell: bool = False
) -> "Relaxed":
    """The relaxed geometry, or the given one with a warning if its forces are large; prints either."""
    from mdrelax.analysis import geometry as geometries

    if relax:
        found = geometries.relax(atoms, calculator, fmax=fmax, cell=cell)
        what = "positions and cell" if cell else "positions"
        typer.echo(f"Relaxed {what} in {found.steps} steps; largest force {found.largest_force:.1e} eV/A.")
        if not atoms.pbc.any() and (broken := geometries.what_broke(found.atoms, atoms)):
            typer.echo(broken)
        return found
    own = geometries.bare(atoms)
    own.calc = calculator
    force = geometries.largest_force(own)
    if force > LARGE_FORCE:
        typer.echo(
            f"Warning: not relaxed, and the largest force is {force:.2g} eV/A; a harmonic analysis is meant for "
            "a geometry without forces."
        )
    return geometries.Relaxed(own, force, 0)


def smoothness(atoms: "Atoms", calculator: "MDRelaxCalculator", direction: Any = None) -> dict[str, float]:
    """The stiffness along one direction at zero and over 0.02 A; a warning where they differ. Empty: direct forces."""
    from mdrelax.analysis.smoothness import describe_roughness, random_direction, stiffness

    if not calculator.force_field.conservative:
        return {}
    found = stiffness(atoms, calculator, random_direction(len(atoms)) if direction is None else direction)
    if sentence := describe_roughness(found):
        typer.echo(sentence)
    return {
        "at_zero_eV_per_A2": found.at_zero,
        "displaced_eV_per_A2": found.displaced,
        "displacement_A": found.displacement,
    }


def provenance(model: Path, structure: Path, found: "Relaxed", *, method: str, delta: float) -> dict[str, Any]:
    """What the JSON of both verbs begins with: the command, versions, model, structure and how it was treated."""
    from mdrelax.base.provenance import command_line, environment
    from mdrelax.modelfile import load_model

    return {
        "command": command_line(),
        "environment": environment(device="cpu", seed=0),
        "model": model.name,
        "model_content": load_model(model).header["content"],
        "structure": structure.name,
        "formula": found.atoms.get_chemical_formula(),
        "method": method,
        "delta_A": delta if method == "finite" else None,
        "relaxation_steps": found.steps,
        "largest_force_eV_per_A": found.largest_force,
        "energy_eV": float(found.atoms.get_potential_energy()),
    }
