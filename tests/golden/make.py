"""Make golden files of every format of the installed version, and note what they say when they are read.

    PYTHONPATH=.:tests python tests/golden/make.py tests/golden/2026-11

The folder must not exist: golden files are never made again, so that files of every version stay readable. A version
that changes a format gets a folder of its own. It needs the extra `generate`.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ase.calculators.emt import EMT

from golden_readings import GENERATED, LIBRARY, READINGS, normal, reading
from mdrelax import potentials
from mdrelax.analysis.studies.nbody import write_study
from mdrelax.compiled.files import DOCUMENT, FORMAT_VERSION, FROM_THE_MODEL, _digest
from mdrelax.datasets.generate import generate
from mdrelax.engines import md
from mdrelax.engines.md import run_md
from mdrelax.forces.physics import Physics
from mdrelax.method.certificate import Certificate, certificate_of
from mdrelax.method.relaxation import relax_constraints, relaxed_layers
from mdrelax.modelfile import load_model
from mdrelax.packs.modelnet.model_file import save_network
from mdrelax.packs.modelnet.sizes import build_network as point_network
from mdrelax.packs.modelnet.task import score_error
from mdrelax.packs.nbody.run import NBodyRun, run_nbody
from mdrelax.packs.smoke.model_file import FlowHeader, save_flow
from mdrelax.packs.smoke.sizes import build_network as flow_network
from mdrelax.packs.smoke.task import commutation_error
from mdrelax.runs.config import load_config
from mdrelax.runs.train import run_training
from molecules import water
from nbody_runs import write_run
from small_runs import clusters, document, write_frames
from untrained_models import ARGUMENTS, saved

SMALL = {
    "equiformer": ARGUMENTS,
    "segnn": {"channels": 4, "lmax": 1, "n_layers": 2, "n_basis": 4, "cutoff": 4.0},
    "equiformer-pytorch": {"dim": [4, 4], "depth": 1, "heads": 1, "dim_head": [4, 4], "radial_hidden": 8, "n_basis": 4,
                           "cutoff": 4.0},
}  # fmt: skip
TRAINING = {"steps": 12, "batch_size": 4, "validate_every": 4, "warmup_steps": 2, "learning_rate": 0.01, "ema": 0.9,
            "optimizer": "sgd"}  # fmt: skip
NETWORK = {
    "irreps": "4x0e+2x1o", "n_blocks": 1, "n_heads": 2, "n_features": 4, "expansion": 1, "nonlinear_messages": False,
    "radial_basis": "bessel", "n_basis": 4, "radial_hidden": 4,
}  # fmt: skip


class Stop(BaseException):
    """What ends a run in the middle."""


def stop_at(step: int) -> Callable[..., None]:
    """A listener that ends a run after a step."""

    def listen(progress: Any, *others: Any) -> None:
        if getattr(progress, "step", progress) >= step:
            raise Stop

    return listen


def force_fields(folder: Path) -> None:
    """A model file of each kind of network, the first with nuclear repulsion."""
    for name, arguments in SMALL.items():
        physics = Physics(zbl=1.0) if name == "equiformer" else Physics()
        path = folder / f"force-field-{name}.safetensors"
        saved(path, 1, 8, potential=name, arguments=arguments, binding=-0.5, physics=physics)


def point_clouds(folder: Path) -> None:
    """A model file of a point-cloud network."""
    model = seeded(partial(point_network, "vn-pointnet", "tiny", 3)).eval()
    points = normal(2, 24, 3)
    certificate = certificate_of(
        model, lambda dtype: score_error(model, points, dtype=dtype), symmetry="O(3)", n_structures=2
    )
    save_network(
        folder / "point-clouds.safetensors", model, network="vn-pointnet", preset="tiny", classes=("a", "b", "c"),
        n_points=24, certificate=certificate,
    )  # fmt: skip


def flows(folder: Path) -> None:
    """Model files of two flow networks: projected, and with the free maps that it keeps."""
    for name in ("exact", "kept"):
        built = FlowHeader("equiv", "tiny", "C4", True, n_in=10, size=(8, 8), sampling="centres", dtype="float32")
        model = seeded(lambda built=built: flow_network(*built.names(), **built.arguments())).eval()
        if name == "kept":
            relax_constraints(model, initial_std=0.01, generator=torch.Generator().manual_seed(1))
            for layer in relaxed_layers(model).values():
                layer.set_theta(0.5)
        errors = [commutation_error(model, normal(1, 10, 2, 8, 8), dtype=t) for t in (torch.float64, torch.float32)]
        certificate = Certificate("none" if name == "kept" else "C4", *errors, 1, [])
        save_flow(folder / f"flow-{name}.safetensors", model, built, certificate=certificate)


def seeded(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A network with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def runs(folder: Path) -> None:
    """Run folders of force fields: a relaxed one, one that was interrupted, and the model files of a committee."""
    write_frames(folder / "frames.extxyz", clusters(20))
    parts = {"train": 12, "validation": 4, "test": 4}
    content = document(Path("frames.extxyz"), data=parts, training=TRAINING, potential={"arguments": NETWORK})
    run_training(load_config(content), folder / "relaxed", potentials)
    with contextlib.suppress(Stop):
        run_training(load_config(content), folder / "interrupted", potentials, listener=stop_at(9))
    content["training"] = {**TRAINING, "seed": 1}
    with tempfile.TemporaryDirectory() as scratch:
        other = run_training(load_config(content), Path(scratch), potentials).model_file
        for number, member in enumerate([folder / "relaxed" / "model.safetensors", other]):
            place = folder / "committee" / f"member-{number}"
            place.mkdir(parents=True)
            shutil.copy(member, place)


def nbody(folder: Path) -> None:
    """A relaxed run of the N-body benchmark, and a study of made-up numbers."""
    training = {"epochs": 2, "batch_size": 4, "learning_rate": 0.002, "validate_every": 2, "warmup_steps": 0}
    relaxation = {"schedule": "triangle", "initial_std": 0.01, "penalty_rows": 16}
    sizes = {"n_train": 8, "n_validation": 4, "n_test": 4, "n_layers": 1, "channels": 2}
    run_nbody(NBodyRun(arm="relaxed", training=training, relaxation=relaxation, **sizes), folder / "nbody")
    for seed, (standard, relaxed) in enumerate([(5.0e-3, 4.6e-3), (5.4e-3, 4.9e-3)]):
        write_run(folder / "study", "standard", seed, standard)
        write_run(folder / "study", "relaxed", seed, relaxed)
    write_study(folder / "study", command="mdrelax bench nbody --arms standard,relaxed")
    shutil.rmtree(folder / "study" / "figures")


def journal(folder: Path) -> None:
    """The journal of a data set of H2 with all its labels, killed before the file was written."""

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("labelling", total):
            raise Stop

    with contextlib.suppress(Stop):
        generate("H2", folder / "hydrogen.extxyz", settings=GENERATED, progress=progress)


def compiled(folder: Path) -> None:
    """A compiled package with its document, and in place of the library a few bytes that are none."""
    model = load_model(folder / "force-field-equiformer.safetensors")
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION, "elements": list(model.force_field.elements),
        "reference_energies": model.force_field.reference_energies.tolist(),
        "scale": model.force_field.scale.item(), "binding": model.force_field.binding.item(),
        "physics": model.force_field.physics._asdict(), "cutoff": model.force_field.cutoff, "dtype": "float32",
        "takes_table": False, "n_rounds": 1, "roughness": None, "source": model.header["content"],
        "built_for": {"torch": "golden"}, "threads": 1, "parity": {},
        **{name: model.header[name] for name in FROM_THE_MODEL},
    }  # fmt: skip
    with zipfile.ZipFile(folder / "compiled.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/aotinductor/model/code.so", LIBRARY)
        header["sha256"] = _digest(archive, header)
        archive.writestr(f"model/{DOCUMENT}", json.dumps(header))


def dynamics(folder: Path) -> None:
    """A simulation that was stopped: log, trajectory and state."""
    atoms = water()
    atoms.calc = EMT()
    with contextlib.suppress(Stop):
        run_md(
            atoms, trajectory=folder / "md.extxyz", log=folder / "md.csv", restart=folder / "md.restart",
            temperature_K=300, duration_ps=0.02, log_interval=3, trajectory_interval=5, seed=4, progress=stop_at(12),
        )  # fmt: skip


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder: files that name others name them without their folders."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main(folder: Path) -> None:
    """Make everything, and note what it says."""
    torch.set_num_threads(1)
    folder = folder.resolve()
    folder.mkdir()
    with mock.patch.object(md, "SAVE_SECONDS", 0.0), inside(folder):  # a state after every step
        for make in (force_fields, point_clouds, flows, runs, nbody, journal, compiled, dynamics):
            make(folder)
        noted = {}
        for name in READINGS:
            with tempfile.TemporaryDirectory() as scratch:
                noted[name] = reading(name, folder, Path(scratch))
    (folder / "numbers.json").write_text(json.dumps(noted, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
