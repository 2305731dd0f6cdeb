"""Verbs about finished models: audit (check the certificate again), project, export, predict, info."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdrelax.cli.structures import read_structures

if TYPE_CHECKING:
    from ase import Atoms


def info(
    model: Annotated[Path | None, typer.Argument(help="A model file; none: the installation.")] = None,
) -> None:
    """Show what a model file says of itself, or the versions that are installed."""
    import json

    from mdrelax.modelfile import load_model
    from mdrelax.provenance import software_versions

    if model is None:
        typer.echo("\n".join(f"{name} {version}" for name, version in software_versions().items()))
    else:
        typer.echo(json.dumps(load_model(model).header, indent=2))


def audit(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    data: Annotated[
        str | None,
        typer.Argument(help="Structures that it is measured on, labels not needed; none: embedded or random ones."),
    ] = None,
    structures: Annotated[int, typer.Option(help="How many of them, spread over the file.")] = 8,
    operations: Annotated[int, typer.Option(help="Operations of each kind.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the operations.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Write the new certificate as JSON.")] = None,
) -> None:
    """Measure a model's equivariance anew, independently of the certificate in its file, and compare."""
    import json

    from mdrelax.graph import collate
    from mdrelax.modelfile import load_model
    from mdrelax.neighbors import build_graph
    from mdrelax.projection import LARGEST_ERROR_FLOAT32, LARGEST_ERROR_FLOAT64, certify, require

    loaded = load_model(model)
    elements = loaded.force_field.elements
    chosen = _made_for(elements, structures, seed) if data is None else _spread(_read(data), structures)
    cutoff = loaded.force_field.cutoff
    graph = collate([build_graph(a.positions, a.numbers, a.cell.array, a.pbc, cutoff=cutoff) for a in chosen])
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
    typer.echo(f"PASSED: under {LARGEST_ERROR_FLOAT64:.0e} in float64 and {LARGEST_ERROR_FLOAT32:.0e} in float32.")


def _read(data: str) -> "list[Atoms]":
    """The structures of a file, of an embedded sample or of a fetched set."""
    from mdrelax.datasets import load, to_atoms

    if Path(data).is_file() and not data.endswith(".npz"):
        return read_structures(Path(data))
    return [to_atoms(frame) for frame in load(data)]


def _spread(frames: "list[Atoms]", number: int) -> "list[Atoms]":
    """So many of the structures, the first and the last among them."""
    import numpy as np

    chosen = np.unique(np.linspace(0, len(frames) - 1, min(number, len(frames))).round().astype(int))
    return [frames[k] for k in chosen]


def _made_for(elements: tuple[int, ...], number: int, seed: int) -> "list[Atoms]":
    """Structures that a model knows: the embedded ethanol, else shaken crystals of one element, else clusters."""
    from ase.data import chemical_symbols

    if {1, 6, 8} <= set(elements):
        typer.echo("No data were named: measured on the embedded sample:ethanol.")
        return _spread(_read("sample:ethanol"), number)
    names = ", ".join(chemical_symbols[z] for z in elements)
    crystals = _shaken_crystals(names, number, seed) if len(elements) == 1 else []
    what = "shaken crystals" if crystals else "random clusters"
    typer.echo(f"No data were named: measured on {what} of {names}, seed {seed}.")
    return crystals or _random_clusters(elements, number, seed)


def _shaken_crystals(symbol: str, number: int, seed: int) -> "list[Atoms]":
    """Eight cells of the element's own lattice, every atom displaced; none where ASE knows no lattice."""
    import numpy as np
    from ase.build import bulk

    try:
        perfect = bulk(symbol) * (2, 2, 2)
    except (ValueError, RuntimeError):  # ASE's words for a lattice it does not know or cannot build
        return []
    rng = np.random.default_rng(seed)
    crystals = [perfect.copy() for _ in range(number)]
    for atoms in crystals:
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    return crystals


def _random_clusters(elements: tuple[int, ...], number: int, seed: int) -> "list[Atoms]":
    """Clusters of 12 atoms of the given elements on a shaken grid of 2 Angstrom: no clashes, no symmetry."""
    import numpy as np
    from ase import Atoms

    rng = np.random.default_rng(seed)
    grid = 2.0 * np.stack(np.meshgrid(range(3), range(2), range(2), indexing="ij"), axis=-1).reshape(-1, 3)
    return [Atoms(rng.choice(elements, 12), grid + rng.uniform(-0.3, 0.3, grid.shape)) for _ in range(number)]


def project(
    run: Annotated[Path, typer.Argument(help="A run folder with a checkpoint, finished or not.")],
    output: Annotated[Path, typer.Option(help="The model file to write.")] = Path("model.safetensors"),
) -> None:
    """Project the best network of a run's last checkpoint, certify it and write a model file."""
    from mdrelax.cli.run import project_checkpoint

    certificate = project_checkpoint(run, output)
    typer.echo(f"Certificate passed ({certificate.symmetry}); model: {output}")


def export(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    to: Annotated[
        str, typer.Option(help="pt2: compiled to machine code; loading it RUNS the code in the file.")
    ] = "pt2",
    out: Annotated[Path | None, typer.Option(help="The file to write; the default is the model's name, .pt2.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64; the default is the model's own.")] = "",
) -> None:
    """Compile a model for this machine (minutes, a C++ compiler): the same numbers, checked here, at more speed.

    A .pt2 file holds machine code, which runs when the file is loaded: load only files that you made or trust.
    """
    import time

    from mdrelax.config import ConfigError
    from mdrelax.deploy import export_model, file_hash
    from mdrelax.modelfile import load_model

    if to != "pt2":
        raise ConfigError(f"`--to` must be pt2, got {to!r}.")
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
    output: Annotated[Path, typer.Argument(help="The extxyz to write.")],
) -> None:
    """Write structures with mdrelax_energy, mdrelax_forces and, for cells, mdrelax_stress beside what they carry."""
    from ase.stress import voigt_6_to_full_3x3_stress

    from mdrelax.calculator import MDRelaxCalculator
    from mdrelax.datasets import write_predictions

    structures = read_structures(data)
    results = MDRelaxCalculator.from_file(model).calculate_many(structures)
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
