"""Verbs about finished models: audit (check the certificate again), project, predict, info."""

from pathlib import Path
from typing import Annotated

import typer


def info(
    model: Annotated[Path | None, typer.Argument(help="A model file; none: the installation.")] = None,
) -> None:
    """Show what a model file says of itself, or the versions that are installed."""
    import json

    from mdrelax.modelfile import load_model, software_versions

    if model is None:
        typer.echo("\n".join(f"{name} {version}" for name, version in software_versions().items()))
    else:
        typer.echo(json.dumps(load_model(model).header, indent=2))


def audit(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    data: Annotated[
        str, typer.Argument(help="Structures to check it on: a file or sample:ethanol.")
    ] = "sample:ethanol",
    structures: Annotated[int, typer.Option(help="How many of them, spread over the file.")] = 8,
    operations: Annotated[int, typer.Option(help="Operations of each kind.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the operations.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Write the new certificate as JSON.")] = None,
) -> None:
    """Measure a model's equivariance anew, independently of the certificate in its file, and compare."""
    import json

    import numpy as np

    from mdrelax.datasets import load
    from mdrelax.loader import frames_from_data, join
    from mdrelax.modelfile import load_model
    from mdrelax.projection import certify, require

    loaded = load_model(model)
    frames = load(data)
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(structures, len(frames))).round().astype(int))
    graph = join(frames_from_data([frames[k] for k in chosen], cutoff=loaded.force_field.cutoff)).graph
    fresh = certify(loaded.force_field, graph, layers=loaded.certificate.layers, n_operations=operations, seed=seed)
    typer.echo(
        f"{loaded.certificate.symmetry}; largest error relative to the RMS force, {fresh.n_structures} structures"
    )
    typer.echo(f"{'':24s}{'rotation':>12s}{'reflection':>12s}{'translation':>12s}{'permutation':>12s}")
    for name, certificate in (("in the file", loaded.certificate), ("measured now", fresh)):
        for precision in ("float64", "float32"):
            errors = getattr(certificate, precision)
            typer.echo(f"{name + ', ' + precision:24s}" + "".join(f"{value:12.1e}" for value in errors))
    for layer in fresh.layers:
        spectrum = " ".join(f"{value:.2e}" for value in layer.spectrum)
        typer.echo(f"{layer.name}: {layer.how}, ||W|| {layer.norm:.3e}, ||W_J||^2 for J = 0, 1, ...: {spectrum}")
    if output is not None:
        output.write_text(json.dumps(fresh.to_dict(), indent=2))
    require(fresh)
    typer.echo("PASSED: under 1e-9 in float64 and 1e-4 in float32.")


def project(
    run: Annotated[Path, typer.Argument(help="A run folder with a checkpoint, finished or not.")],
    output: Annotated[Path, typer.Option(help="The model file to write.")] = Path("model.safetensors"),
) -> None:
    """Project the best network of a run's last checkpoint, certify it and write a model file."""
    from mdrelax.cli.run import project_checkpoint

    certificate = project_checkpoint(run, output)
    typer.echo(f"Certificate passed ({certificate.symmetry}); model: {output}")


def predict(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    data: Annotated[Path, typer.Argument(help="Structures that ASE reads; labels are not needed.")],
    output: Annotated[Path, typer.Argument(help="The extxyz to write.")],
) -> None:
    """Write structures with mdrelax_energy, mdrelax_forces and, for cells, mdrelax_stress beside what they carry."""
    from ase.stress import voigt_6_to_full_3x3_stress

    from mdrelax.calculator import MDRelaxCalculator
    from mdrelax.datasets import read_atoms, write_predictions

    structures = read_atoms(data)
    results = MDRelaxCalculator.from_file(model).calculate_many(structures)
    stresses = [voigt_6_to_full_3x3_stress(r["stress"]) for r in results if "stress" in r]
    write_predictions(
        output,
        structures,
        energies=[r["energy"] for r in results],
        forces=[r["forces"] for r in results],
        stresses=stresses if len(stresses) == len(structures) else None,
    )
    typer.echo(f"{len(structures)} structures written to {output}")
