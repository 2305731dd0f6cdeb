"""`mdrelax audit`: measure the equivariance of a model again, or of a run during training."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdrelax.cli.certificates import say_errors, say_layers
from mdrelax.cli.output import write_text
from mdrelax.cli.packs import audit_pack

if TYPE_CHECKING:
    from ase import Atoms

    from mdrelax.forces.forcefield import ForceField
    from mdrelax.structures.graph import Graph


def audit(
    model: Annotated[
        Path, typer.Argument(help="A model file (.safetensors), a run folder, or a run's checkpoints/last.pt.")
    ],
    data: Annotated[
        str | None,
        typer.Argument(help="Structures to measure on, without labels; default: embedded or random ones."),
    ] = None,
    structures: Annotated[int, typer.Option(min=1, help="Number of structures, spread over the file.")] = 8,
    operations: Annotated[int, typer.Option(min=1, help="Operations of each kind.")] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the operations.")] = 1,
    theta: Annotated[
        float, typer.Option(min=0, help="For a run folder: theta of the free maps; 0: the equivariant part.")
    ] = 1.0,
    output: Annotated[Path | None, typer.Option(help="Write the new certificate as JSON.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json, tables and pictures of every layer.")] = None,
) -> None:
    """Measure equivariance again, independently of the file's own certificate: the whole network and each layer.

    A model file is compared with its certificate, and the command fails if it does not pass. For a run folder, the
    last checkpoint is measured with its free maps at the given theta, and the part that projection removes is printed.
    """
    from mdrelax.packs.registry import pack_of_model

    if (pack := pack_of_model(model)) is not None:
        audit_pack(pack, model, data, number=structures, operations=operations, seed=seed, output=output)
        return
    if model.name == "last.pt" and model.parent.name == "checkpoints":
        model = model.parent.parent
    if model.is_dir():
        force_field, graph, found = _of_run(model, data, structures, operations, seed, theta)
    else:
        force_field, graph, found = _of_file(model, data, structures, operations, seed)
    if output is not None:
        write_text(output, json.dumps(found, indent=2))
    if out is not None:
        _write_details(out, force_field, graph, found, operations, seed)
    if "passed" in found:
        _require(found)


def _of_file(
    path: Path, data: str | None, structures: int, operations: int, seed: int
) -> "tuple[ForceField, Graph, dict[str, Any]]":
    """A finished model compared with its certificate."""
    from mdrelax.forces.symmetry import certify
    from mdrelax.modelfile import load_model

    loaded = load_model(path, certified=False)  # measured here, and refused below
    graph = _graph(loaded.force_field, data, structures, seed)
    fresh = certify(loaded.force_field, graph, layers=loaded.certificate.layers, n_operations=operations, seed=seed)
    say_errors(
        f"{loaded.certificate.symmetry}; largest error relative to the terms summed, {fresh.n_structures} structures",
        {"in the file": loaded.certificate, "measured now": fresh},
    )
    say_layers(fresh.layers)
    return loaded.force_field, graph, fresh.to_dict()


def _of_run(
    folder: Path, data: str | None, structures: int, operations: int, seed: int, theta: float
) -> "tuple[ForceField, Graph, dict[str, Any]]":
    """The last checkpoint of a run with its free maps, compared with its projection."""
    from mdrelax import potentials
    from mdrelax.forces.loader import join
    from mdrelax.forces.symmetry import certify, equivariance_error
    from mdrelax.method.projection import projected_copy
    from mdrelax.method.relaxation import is_relaxed, set_theta
    from mdrelax.runs.checkpoints import open_checkpoint

    run = open_checkpoint(folder, potentials)
    network = run.unprojected()
    if is_relaxed(network):
        set_theta(network, theta)
    graph = join(run.structures[:structures]).graph if data is None else _graph(network, data, structures, seed)
    twin, layers = projected_copy(network, how=run.config.relaxation.projection)
    projected = certify(twin, graph, layers=layers, n_operations=operations, seed=seed)
    errors = {
        name: equivariance_error(network, graph, dtype=dtype, n_operations=operations, seed=seed)
        for name, dtype in _precisions().items()
    }
    free = f"free maps at theta = {theta:g}" if layers else "never relaxed"
    say_errors(
        f"{folder.resolve().name}: last checkpoint, averaged weights; largest error relative to the terms summed",
        {free: errors, "projected": projected},
    )
    say_layers(layers)
    if network.roughness is not None:
        typer.echo(f"The network is not smooth: {network.roughness}.")
    found = {name: error._asdict() for name, error in errors.items()}
    return network, graph, {"theta": theta, **found, "layers": [layer._asdict() for layer in layers],
                            "projected": projected.to_dict()}  # fmt: skip


def _precisions() -> dict[str, Any]:
    import torch

    return {"float64": torch.float64, "float32": torch.float32}


def _require(found: dict[str, Any]) -> None:
    from mdrelax.method.certificate import LARGEST_ERROR_FLOAT32, LARGEST_ERROR_FLOAT64, Certificate, require

    require(Certificate.from_dict(found))
    typer.echo(f"PASSED: under {LARGEST_ERROR_FLOAT64:.0e} in float64 and {LARGEST_ERROR_FLOAT32:.0e} in float32.")


def _write_details(
    folder: Path, force_field: "ForceField", graph: "Graph", found: dict[str, Any], operations: int, seed: int
) -> None:
    """audit.json, layers.csv, angles.csv, and their pictures."""
    from mdrelax.analysis import audit as measure
    from mdrelax.analysis.drawing import save
    from mdrelax.analysis.tables import write_texts

    folder.mkdir(parents=True, exist_ok=True)
    layers = {name: measure.layer_errors(force_field, graph, dtype=dtype, n_operations=operations, seed=seed)
              for name, dtype in _precisions().items()}  # fmt: skip
    angles = measure.angle_errors(force_field, graph, seed=seed)
    table = layers["float64"].merge(layers["float32"], on="layer", suffixes=("_float64", "_float32"))
    contents = {
        "audit.json": json.dumps({**found, "layer_errors": table.to_dict("records")}, indent=2),
        "layers.csv": table.to_csv(index=False),
        "angles.csv": angles.to_csv(index=False),
    }
    write_texts(folder, contents)
    save(folder / "angles.png", lambda: measure.draw_angles(angles))
    if save(folder / "layers.png", lambda: measure.draw_layers(layers["float64"])) is None:
        typer.echo("No layer between irreps was found.")
    else:
        worst = layers["float64"].sort_values("rotation", ascending=False).iloc[0]
        typer.echo(f"Worst of {len(table)} layers: {worst.layer}, {worst.rotation:.1e} of its output (float64)")
    typer.echo(f"Tables and pictures: {folder}")


def _graph(force_field: "ForceField", data: str | None, number: int, seed: int) -> "Graph":
    """The structures to measure on, as one graph."""
    from mdrelax.base.places import frame_name, naming
    from mdrelax.datasets.structure_files import spread
    from mdrelax.structures.graph import collate
    from mdrelax.structures.neighbors import build_graph

    if data is None:
        chosen = list(enumerate(_made_for(force_field.elements, number, seed)))
    else:
        chosen = spread(list(enumerate(_read(data))), number)
    graphs = []
    for place, atoms in chosen:
        with naming(frame_name(place, None if data is None else Path(data).name)):
            graph = build_graph(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, cutoff=force_field.cutoff)
            force_field.species_of(graph.numbers)
            graphs.append(graph)
    return collate(graphs)


def _read(data: str) -> "list[Atoms]":
    """The structures of a file, of an embedded sample or of a fetched set."""
    from mdrelax.datasets import load, to_atoms
    from mdrelax.datasets.structure_files import read_structures

    if Path(data).is_file() and not data.endswith(".npz"):
        return read_structures(Path(data))
    return [to_atoms(frame) for frame in load(data)]


def _made_for(elements: tuple[int, ...], number: int, seed: int) -> "list[Atoms]":
    """Structures of the model's elements: the embedded ethanol, else rattled crystals of one element, else clusters."""
    from ase.data import chemical_symbols

    from mdrelax.datasets.structure_files import spread

    if {1, 6, 8} <= set(elements):
        typer.echo("No data were given: measured on the embedded sample:ethanol.")
        return spread(_read("sample:ethanol"), number)
    names = ", ".join(chemical_symbols[z] for z in elements)
    crystals = _shaken_crystals(names, number, seed) if len(elements) == 1 else []
    what = "rattled crystals" if crystals else "random clusters"
    typer.echo(f"No data were given: measured on {what} of {names}, seed {seed}.")
    return crystals or _random_clusters(elements, number, seed)


def _shaken_crystals(symbol: str, number: int, seed: int) -> "list[Atoms]":
    """Eight cells of the element's lattice with displaced atoms; None if ASE does not know the lattice."""
    from ase.build import bulk

    from mdrelax.base.seeds import numpy_generator

    try:
        perfect = bulk(symbol) * (2, 2, 2)
    except (ValueError, RuntimeError):  # ASE's errors for a lattice it does not know or cannot build
        return []
    rng = numpy_generator(seed, "structures")
    crystals = [perfect.copy() for _ in range(number)]
    for atoms in crystals:
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    return crystals


def _random_clusters(elements: tuple[int, ...], number: int, seed: int) -> "list[Atoms]":
    """Clusters of 12 atoms of the given elements on a rattled grid of 2 Angstrom: no clashes, no symmetry."""
    import numpy as np
    from ase import Atoms

    from mdrelax.base.seeds import numpy_generator

    rng = numpy_generator(seed, "structures")
    grid = 2.0 * np.stack(np.meshgrid(range(3), range(2), range(2), indexing="ij"), axis=-1).reshape(-1, 3)
    return [Atoms(rng.choice(elements, 12), grid + rng.uniform(-0.3, 0.3, grid.shape)) for _ in range(number)]
