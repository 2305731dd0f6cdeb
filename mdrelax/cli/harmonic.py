"""`mdrelax eval --harmonic`: the vibrations of a model compared with those of a file or of a level of theory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mdrelax.cli.geometries import double_precision, geometry
from mdrelax.cli.output import refuse, write_text

if TYPE_CHECKING:
    from ase import Atoms

    from mdrelax.analysis.harmonic import Level, Reference

Harmonic = Annotated[
    str | None,
    typer.Option(help="Vibrations to compare with: a .json or .csv file, or computed: GFN2-xTB, PBE/def2-SVP, ..."),
]
OF_HARMONIC = ("harmonic.csv", "harmonic.png")
FMAX = 1e-4  # eV/A, of the model's own minimum


class Wanted(NamedTuple):
    """A reference that was read, or the level of theory to compute."""

    name: str
    start: "Atoms"
    read: "Reference | None"
    level: "Level | None"


def wanted_reference(reference: str, start: "Atoms") -> Wanted:
    """The reference of ``--harmonic``, checked before any computation; ``ConfigError`` or ``ValueError`` otherwise."""
    from mdrelax.analysis.geometry import bare
    from mdrelax.analysis.harmonic import level_of_theory, read_reference
    from mdrelax.datasets.labelling import XTB

    if start.pbc.any() or len(start) < 2:
        raise ValueError(
            "`--harmonic` compares the vibrations of a molecule, and the first structure of the data "
            f"({start.symbols}, pbc = {start.pbc.tolist()}) is not one."
        )
    atoms, path = bare(start), Path(reference)
    if path.is_file():
        return Wanted(path.name, atoms, read_reference(path, len(atoms)), None)
    if path.suffix in (".json", ".csv"):
        refuse(f"There is no file `{path}` for `--harmonic`.")
    if reference != XTB and reference.count("/") != 1:
        refuse(
            f"`--harmonic` must name a file (.json, .csv) or a level of theory such as {XTB} or PBE/def2-SVP, got "
            f"{reference!r}."
        )
    try:
        return Wanted(reference, atoms, None, level_of_theory(reference, atoms))
    except ImportError as error:
        refuse(str(error))


def harmonic(folder: Path, model: Path, wanted: Wanted) -> dict[str, Any]:
    """Write harmonic.csv and harmonic.png; returns the errors in 1/cm."""
    from mdrelax.analysis import drawing, harmonic_figures
    from mdrelax.analysis import harmonic as comparison
    from mdrelax.analysis.vibrations import describe_imaginary, exact_vibrations, finite_vibrations, normal_modes

    reference = _reference(folder, wanted)
    calculator = double_precision(model)
    found = geometry(wanted.start, calculator, relax=True, fmax=FMAX)
    exact = calculator.force_field.conservative
    data = exact_vibrations(found.atoms, calculator) if exact else finite_vibrations(found.atoms, calculator)
    modes = normal_modes(data)
    compared = comparison.compare(modes, reference)
    table, errors = compared.table, comparison.errors(compared)
    write_text(folder / "harmonic.csv", table.to_csv(index=False))
    drawing.save(folder / "harmonic.png", lambda: harmonic_figures.frequency_parity(table, reference=reference.name))
    imaginary = describe_imaginary(modes)
    for sentence in imaginary:
        typer.echo(sentence)
    if reference.modes is not None and errors["paired_by"] == "order":
        typer.echo(
            f"Warning: the minima are two conformers (an atom is {compared.distance:.2f} A away), so modes are paired "
            "in order; take data whose first structure is like the reference's."
        )
    typer.echo(
        f"Vibrations against {reference.name}: MAE {errors['mae_per_cm']:.1f} / cm, largest error "
        f"{errors['largest_error_per_cm']:+.1f} / cm at {errors['largest_error_at_per_cm']:.0f} / cm "
        f"({errors['n_vibrations']} modes, paired by {errors['paired_by']})."
    )
    return {"reference": reference.name, **errors, "imaginary": imaginary}


def _reference(folder: Path, wanted: Wanted) -> "Reference":
    from mdrelax.analysis.harmonic import relaxed_level

    if wanted.read is not None:
        return wanted.read
    if wanted.level is None:
        raise ValueError(f"The reference {wanted.name} has neither a file nor a level of theory.")
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    what = f"{wanted.name}: relaxation and {6 * len(wanted.start) + 1} forces"
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed} evaluations"), TimeElapsedColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(what, total=None)
        wanted.level.progress = lambda n: bar.update(task, completed=n)
        reference, path = relaxed_level(wanted.name, wanted.level, wanted.start, folder)
    typer.echo(f"Kept in {path}: `--harmonic {path}` takes it for another model.")
    return reference
