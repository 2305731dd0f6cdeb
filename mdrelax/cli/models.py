"""Subcommands for finished models: project, export, predict, info."""

from pathlib import Path
from typing import Annotated

import typer

from mdrelax.cli.output import refuse


def info(
    model: Annotated[Path | None, typer.Argument(help="A model file; default: the installation.")] = None,
) -> None:
    """Show the header of a model file, or the installed versions."""
    import json

    from mdrelax.base.containers import read_header
    from mdrelax.base.provenance import software_versions
    from mdrelax.modelfile import load_model
    from mdrelax.packs.registry import pack_of_model

    if model is None:
        typer.echo("\n".join(f"{name} {version}" for name, version in software_versions().items()))
    else:
        header = read_header(model) if pack_of_model(model) else load_model(model).header
        typer.echo(json.dumps(header, indent=2))


def project(
    run: Annotated[Path, typer.Argument(help="A run folder with a checkpoint, finished or not.")],
    output: Annotated[Path, typer.Option(help="The model file to write.")] = Path("model.safetensors"),
) -> None:
    """Project the best network of a run's last checkpoint, certify it and write a model file."""
    from mdrelax import potentials
    from mdrelax.runs.checkpoints import project_checkpoint

    certificate = project_checkpoint(run, output, potentials)
    typer.echo(f"Certificate passed ({certificate.symmetry}); model: {output}")


def export(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    to: Annotated[
        str, typer.Option(help="pt2: compiled to machine code; loading it RUNS the code in the file.")
    ] = "pt2",
    out: Annotated[Path | None, typer.Option(help="The file to write; the default is the model's name, .pt2.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64; the default is the model's own.")] = "",
) -> None:
    """Compile a model for this machine (takes minutes, needs a C++ compiler): same numbers, checked, but faster.

    A .pt2 file contains machine code, which runs when the file is loaded: load only files that you made or trust.
    """
    import time

    from mdrelax.compiled import export_model, file_hash
    from mdrelax.modelfile import load_model

    if to != "pt2":
        refuse(f"`--to` must be pt2, got {to!r}.")
    output = model.with_suffix(".pt2") if out is None else out
    start = time.perf_counter()
    header = export_model(load_model(model), output, dtype=dtype or None)
    parity = header["parity"]
    typer.echo(
        f"Compiled in {time.perf_counter() - start:.0f} s, {header['dtype']}. Largest differences from the model, "
        f"relative: energies {parity['energies']:.1e}, their gradient {parity['gradient']:.1e}."
    )
    typer.echo(f"SHA-256: {file_hash(output)}")
    typer.echo(f"Loading the file runs its code; use: MDRelaxCalculator.from_compiled({str(output)!r})")


def predict(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    data: Annotated[Path, typer.Argument(help="Structures that ASE reads; labels are not needed.")],
    output: Annotated[Path, typer.Argument(help="The extxyz to write; of plumes an npz, of shapes a csv.")],
    number: Annotated[int | None, typer.Option(min=1, help="Frames to predict (plumes) or shapes to classify.")] = None,
) -> None:
    """Add mdrelax_energy, mdrelax_forces and, for cells, mdrelax_stress to structures and write them.

    Networks of other tasks continue plumes, or classify the test shapes of a set.
    """
    from ase.stress import voigt_6_to_full_3x3_stress

    from mdrelax.datasets import write_predictions
    from mdrelax.datasets.structure_files import read_structures
    from mdrelax.engines.ase import MDRelaxCalculator
    from mdrelax.packs.registry import pack_of_model

    if (pack := pack_of_model(model)) is not None:
        typer.echo(pack.predict(model, str(data), output, number=number))
        return
    structures = read_structures(data)
    results = MDRelaxCalculator.from_file(model).calculate_many(structures, source=data.name)
    for atoms, result in zip(structures, results, strict=True):
        if "stress" in result:
            atoms.info["mdrelax_stress"] = voigt_6_to_full_3x3_stress(result["stress"])
    write_predictions(
        output,
        structures,
        energies=[r["energy"] for r in results],
        forces=[r["forces"] for r in results],
    )
    typer.echo(f"{len(structures)} structures written to {output}")
