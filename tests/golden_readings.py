"""What the golden files say when they are read: one function for each format, each returning plain numbers.

`tests/golden/make.py` stores the numbers next to the files, and tests/test_golden.py compares every later reading.
"""

import importlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from ase.io import read
from torch import Tensor

from mdrelax import potentials
from mdrelax.analysis.studies import nbody as study
from mdrelax.compiled import files as compiled_files
from mdrelax.compiled import load_compiled
from mdrelax.datasets import load
from mdrelax.datasets.generate import GenerateSettings, generate
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.committee import CommitteeCalculator
from mdrelax.engines.md_files import read_state
from mdrelax.modelfile import load_model
from mdrelax.packs.arm_runs import read_result
from mdrelax.packs.modelnet.model_file import load_network
from mdrelax.packs.nbody.networks import NBodySEGNN
from mdrelax.packs.nbody.run import NBodyRun
from mdrelax.packs.smoke.model_file import load_flow
from mdrelax.runs.checkpoints import open_checkpoint, project_checkpoint
from mdrelax.runs.config import load_config
from mdrelax.runs.config_changes import read_saved
from mdrelax.runs.train import run_training
from mdrelax.training.checkpoint import load_checkpoint
from mdrelax.training.folders import load_run
from mdrelax.training.trainer import CHECKPOINT_DEFAULTS, CHECKPOINT_KEYS
from small_runs import clusters

GENERATED = GenerateSettings(n_frames=2, interval_fs=1.0, equilibration_fs=1.0, seed=1)
LIBRARY = b"no library: nothing of a golden file is run"


def normal(*shape: int) -> Tensor:
    """Seeded numbers, for networks that are no force fields."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def energies(path: Path) -> list[float]:
    """eV of three clusters, by the calculator of a model file."""
    results = MDRelaxCalculator.from_file(path).calculate_many(clusters(3, seed=9))
    return [result["energy"] for result in results]


def force_field(folder: Path) -> dict[str, Any]:
    """Energies (eV) by each kind of network, and what the header says of its repulsion."""
    found = {path.stem: energies(path) for path in sorted(folder.glob("force-field-*.safetensors"))}
    header = load_model(folder / "force-field-equiformer.safetensors").header
    return {**found, "zbl": header["physics"]["zbl"], "certificate": header["certificate"]["float64"]["rotation"]}


def committee(folder: Path) -> list[list[float]]:
    """Mean and spread of the energies (eV)."""
    results = CommitteeCalculator.from_file(folder / "committee").calculate_many(clusters(2, seed=9))
    return [[result["energy"], result["energy_std"]] for result in results]


def point_clouds(folder: Path) -> list[Any]:
    """Class probabilities of two clouds."""
    return load_network(folder / "point-clouds.safetensors").probabilities(normal(2, 24, 3)).tolist()


def flows(folder: Path) -> dict[str, Any]:
    """Means of the predicted frames, of an exact network and of one that keeps its free maps."""
    found = {}
    for path in sorted(folder.glob("flow-*.safetensors")):
        frames = load_flow(path).predict(0.1 * normal(1, 10, 2, 8, 8), 2)
        found[path.stem] = frames[0].flatten(1).norm(dim=1).tolist()
    return found


def relaxed_run(folder: Path) -> dict[str, Any]:
    """A finished relaxed run: its results, and the energies of its model file and of its checkpoint, projected."""
    run = folder / "relaxed"
    results = json.loads((run / "results.json").read_text())
    with torch.no_grad():
        norms = [p.norm().item() for p in open_checkpoint(run, potentials).unprojected().parameters()]
    return {
        "results": {"test": results["test"], "best_step": results["best_step"]},
        "metrics": pd.read_csv(run / "metrics.csv")["val_forces_mae_meV_per_A"].tolist(),
        "layers": len(pd.read_csv(run / "layers.csv")),
        "model": energies(run / "model.safetensors"),
        "averages": norms,
    }


def projected_again(folder: Path, scratch: Path) -> list[float]:
    """Energies (eV) of the model that `mdrelax project` makes of the checkpoint."""
    project_checkpoint(folder / "relaxed", scratch / "model.safetensors", potentials)
    return energies(scratch / "model.safetensors")


def resumed_run(folder: Path, scratch: Path) -> dict[str, Any]:
    """A run that was interrupted, resumed in a copy (its data are those of the golden folder)."""
    shutil.copytree(folder / "interrupted", scratch / "interrupted")
    config = load_config(read_saved(scratch / "interrupted" / "config.yaml"))
    outcome = run_training(config, scratch / "interrupted", potentials, restart=True)
    return {"steps": outcome.fit.steps, "model": energies(outcome.model_file)}


def nbody_run(folder: Path) -> dict[str, Any]:
    """A run of the N-body benchmark, which has a checkpoint and no model file."""
    run = folder / "nbody"
    settings, results = load_run(NBodyRun, run), read_result(run)
    state = load_checkpoint(run / "checkpoints" / "last.pt", keys=CHECKPOINT_KEYS, defaults=CHECKPOINT_DEFAULTS)
    network = NBodySEGNN(channels=settings.channels, n_layers=settings.n_layers)
    network.load_state_dict(state["best"]["state"])
    with torch.no_grad():
        moved = network(normal(1, 5, 3), 0.1 * normal(1, 5, 3), normal(1, 5).sign())
    return {"test_mse": results["test_mse"], "arm": settings.arm, "moved": moved[0].tolist()}


def journal(folder: Path, scratch: Path) -> list[float]:
    """Energies (eV) of a data set whose labelling was interrupted at the very end: nothing is labelled again."""
    shutil.copy(folder / "hydrogen.extxyz.journal", scratch)

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a frame of the journal was labelled again")

    module = importlib.import_module("mdrelax.datasets.generate")  # the package has a function of this name
    with mock.patch.object(module, "make_labeller", return_value=never):
        out = generate("H2", scratch / "hydrogen.extxyz", settings=GENERATED)
    return [float(frame.energy) for frame in load(out)]


def study_result(folder: Path, scratch: Path) -> dict[str, Any]:
    """The table of a study, summarised again, and its record with one more command."""
    shutil.copytree(folder / "study", scratch / "study")
    table = pd.read_csv(folder / "study" / "runs.csv")
    study.write_study(scratch / "study", command="mdrelax bench nbody --read")
    document = json.loads((scratch / "study" / "study.json").read_text())
    return {
        "summary": study.STUDY.summarize(table)[["test_mse", "test_mse_std"]].to_numpy().tolist(),
        "same": (scratch / "study" / "runs.csv").read_text() == (folder / "study" / "runs.csv").read_text(),
        "command": document["command"],
    }


def compiled(folder: Path) -> dict[str, Any]:
    """The document of a compiled package, read as on the machine that it was made for; no library is loaded."""
    path = folder / "compiled.pt2"
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(compiled_files.DOCUMENT)]
        built_for = json.loads(archive.read(name))["built_for"]
    with (
        mock.patch.object(compiled_files, "this_machine", return_value=built_for),
        mock.patch.object(compiled_files, "load_library", return_value=None),
    ):
        model = load_compiled(path).force_field
    return {"elements": list(model.elements), "cutoff": model.cutoff, "references": model.reference_energies.tolist()}


def dynamics(folder: Path) -> dict[str, Any]:
    """The log, the trajectory and the state of a simulation that was stopped."""
    settings = json.loads((folder / "md.restart").read_text())["settings"]
    state = read_state(folder / "md.restart", settings)
    assert state is not None
    return {
        "step": state.step,
        "positions": state.positions,
        "total_energy": pd.read_csv(folder / "md.csv")["total_energy_eV"].tolist(),
        "frames": [atoms.info["mdrelax_energy"] for atoms in read(folder / "md.extxyz", ":")],
    }


READINGS: dict[str, Callable[..., Any]] = {
    reading.__name__: reading
    for reading in (
        force_field, committee, point_clouds, flows, relaxed_run, projected_again, resumed_run, nbody_run, journal,
        study_result, compiled, dynamics,
    )
}  # fmt: skip
NEED_SCRATCH = ("projected_again", "resumed_run", "journal", "study_result")


def reading(name: str, folder: Path, scratch: Path) -> Any:
    """What a golden folder says, as JSON has it; ``scratch`` is an empty folder."""
    arguments = (folder, scratch) if name in NEED_SCRATCH else (folder,)
    return json.loads(json.dumps(READINGS[name](*arguments)))


def differences(found: Any, noted: Any, place: str = "") -> list[str]:
    """The places where two readings differ by more than 1e-5 of a number's size (or 1e-6, near zero).

    Other processors and versions round differently: in float32 by some 1e-6 of an energy.
    """
    if isinstance(noted, dict) and isinstance(found, dict) and noted.keys() == found.keys():
        return [line for key in noted for line in differences(found[key], noted[key], f"{place}.{key}")]
    if isinstance(noted, list) and isinstance(found, list) and len(noted) == len(found):
        return [line for k, pair in enumerate(zip(found, noted, strict=True))
                for line in differences(*pair, f"{place}[{k}]")]  # fmt: skip
    if isinstance(noted, float) and isinstance(found, float | int):
        return [] if np.isclose(found, noted, rtol=1e-5, atol=1e-6) else [f"{place}: {found}, noted {noted}"]
    return [] if found == noted else [f"{place}: {found!s:.80}, noted {noted!s:.80}"]
