"""`mdrelax data convert` and `mdrelax data split`: labelled structures as one extxyz, or as one for each part."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdrelax.cli.simulate import refuse_existing

if TYPE_CHECKING:
    from mdrelax.datasets import Frames

Sources = Annotated[list[str], typer.Argument(help="Files, folders, patterns or names of data sets.")]
Reading = Annotated[
    list[str] | None,
    typer.Option("-r", help="data.key=value as for `mdrelax train`, such as data.energy_unit=Ha, any number of times."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]


def convert(
    sources: Sources,
    output: Annotated[Path, typer.Option("--output", "-o", help="The extxyz to write.")],
    reading: Reading = None,
    overwrite: Overwrite = False,
) -> None:
    """Write labelled structures of any format as one extxyz in eV and Angstrom, with the keys REF_energy, ..."""
    from mdrelax.datasets.extxyz import write_extxyz

    if not overwrite:
        refuse_existing(output)
    frames = _read(sources, reading)
    atoms = [*_isolated(frames), *_atoms(frames)]
    write_extxyz(output, atoms)
    typer.echo(f"{len(atoms)} structures written to {output}")


def split(
    sources: Sources,
    out: Annotated[Path, typer.Option(help="Folder for train.extxyz, validation.extxyz and test.extxyz.")],
    train: Annotated[float, typer.Option(min=0, help="Training frames: a number, or a fraction below 1.")] = 0.8,
    validation: Annotated[float, typer.Option(min=0, help="Validation frames, likewise.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed; a run with the same `data.seed` and sizes has the same parts.")] = 0,
    reading: Reading = None,
    overwrite: Overwrite = False,
) -> None:
    """Split labelled structures at random; the isolated atoms go with the training frames, the rest is the test set."""
    import numpy as np

    from mdrelax import datasets
    from mdrelax.datasets.extxyz import write_extxyz

    paths = {name: out / f"{name}.extxyz" for name in ("train", "validation", "test")}
    if not overwrite:
        refuse_existing(*paths.values())
    frames = _read(sources, reading)
    sizes = [size if size < 1 else int(size) for size in (train, validation)]
    parts = datasets.random_split(
        len(frames.data), train=sizes[0], valid=sizes[1], generator=np.random.default_rng(seed)
    )
    atoms = _atoms(frames)
    out.mkdir(parents=True, exist_ok=True)
    for path, places, lone in zip(paths.values(), parts, (_isolated(frames), [], []), strict=True):
        if places:
            write_extxyz(path, [*lone, *(atoms[k] for k in places)])
            typer.echo(f"{len(places)} frames written to {path}")


def _read(sources: list[str], reading: list[str] | None) -> "Frames":
    from mdrelax import datasets
    from mdrelax.runs.inputs import reading_options

    options = reading_options(sources, reading or [])
    frames = datasets.load_frames(sources, **options)
    typer.echo(frames.report)
    return frames


def _atoms(frames: "Frames") -> list:
    from mdrelax import datasets

    return [datasets.to_atoms(frame) for frame in frames.data]


def _isolated(frames: "Frames") -> list:
    """The isolated atoms, which are no frames."""
    from ase import Atoms

    return [
        Atoms(numbers=[number], info={"config_type": "IsolatedAtom", "REF_energy": energy})
        for number, energy in frames.isolated_energies.items()
    ]
