"""`mdrelax data select`: the structures from whose labels a committee would learn most."""

from pathlib import Path
from typing import Annotated

import typer

from mdrelax.cli.output import refuse
from mdrelax.cli.simulate import refuse_existing


def select(
    model: Annotated[Path, typer.Argument(help="The run folder of a committee.")],
    candidates: Annotated[Path, typer.Argument(help="Structures that ASE reads, such as a trajectory.")],
    n: Annotated[int, typer.Option(help="Number of structures to select.")] = 50,
    output: Annotated[Path, typer.Option(help="The extxyz to write, in the order of the selection.")] = Path(
        "selected.extxyz"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Select structures to label next: where the committee's forces spread most, and far apart from each other."""
    from rich.progress import Progress

    from mdrelax.analysis.selection import select as choose
    from mdrelax.datasets.extxyz import write_extxyz
    from mdrelax.datasets.structure_files import read_structures
    from mdrelax.engines.committee import CommitteeCalculator

    if not model.is_dir():
        refuse(f"`{model}` is no folder: name the run folder of a committee (`training.committee`).")
    if not overwrite:
        refuse_existing(output)
    structures = read_structures(candidates)
    calculator = CommitteeCalculator.from_file(model)
    with Progress(transient=True) as bar:
        task = bar.add_task("candidates", total=None)
        places, spread = choose(
            calculator, structures, n, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    chosen = [structures[k].copy() for k in places]
    for atoms, place in zip(chosen, places, strict=True):
        atoms.info |= {"candidate": place, "mdrelax_forces_spread": float(spread[place])}
    write_extxyz(output, chosen)
    typer.echo(
        f"{n} of {len(structures)} candidates written to {output}. Largest spread of a force: "
        f"{spread[places].mean():.3g} eV/A on average over them, {spread.mean():.3g} eV/A over all."
    )
