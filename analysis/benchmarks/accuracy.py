"""The accuracy benchmark: our networks and those of other packages, trained for the same CPU time on the same frames.

Every run is a process with one thread: a peer's in its own environment (``peers.training``), ours by
``accuracy_worker``. A worker gets training and validation frames with labels and test frames without; it writes its
predictions, and this module computes all errors. The result of a finished run is one small file
MOLECULE-MODEL-BUDGETh-SEED.json; runs with a file are skipped.

| model | network | recipe |
| --- | --- | --- |
| equiformer-small, ... | a potential and its preset; ``:relaxed`` at the end: relaxed | `rmd17-ethanol` |
| mace, nequip, tensornet, painn | as in the speed benchmark | in ``peers.X_training``, with its source |
"""

import json
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mdrelax import datasets
from mdrelax.analysis.benchmarks.accuracy_worker import config_of
from mdrelax.analysis.benchmarks.implementations import (
    Implementation,
    implementations,
    mdrelax_implementation,
    thread_settings,
)
from mdrelax.analysis.studies.rmd17 import MOLECULES, data_keys
from mdrelax.analysis.tables import read_json, read_optional
from mdrelax.base.files import whole_file, write_atomically
from mdrelax.base.names import nearest_name
from mdrelax.base.provenance import environment
from mdrelax.base.sections import ConfigError
from mdrelax.forces.metrics import Predictions, errors
from mdrelax.potentials import POTENTIALS, preset
from mdrelax.runs.jobs import Job, run_side_by_side, start_process

__all__ = ["MOST_OF_BUDGET", "PEERS", "QUICK", "AccuracyRun", "Inputs", "Sizes", "implementation", "is_peer", "planned",
           "read_results", "run_all", "timed"]  # fmt: skip

HOUR = 3600.0  # s
MOST_OF_BUDGET = 1.1  # a run that used more is told of
WORKER = ("-m", "mdrelax.analysis.benchmarks.accuracy_worker")
RESULT, PREDICTIONS, TASK = "trained.json", "predictions.npz", "task.json"


class PeerModel(NamedTuple):
    """A network of another package: its name in the speed benchmark, the module that trains it, its cut-off."""

    timed: str
    module: str
    cutoff: float = 5.0  # A


PEERS = {
    "mace": PeerModel("mace-128", "mace_training"),
    "nequip": PeerModel("nequip-l2", "nequip_training"),
    "tensornet": PeerModel("torchmdnet-tensornet", "torchmdnet_training", 4.5),
    "painn": PeerModel("painn-128", "schnetpack_training"),
}


class Sizes(NamedTuple):
    """Numbers of frames; ``test`` None: all of the test file."""

    train: int = 950
    validation: int = 50
    test: int | None = None


QUICK = Sizes(50, 20, 50)  # of the shipped ethanol


class AccuracyRun(NamedTuple):
    """A network trained once."""

    molecule: str
    model: str
    budget_hours: float  # of CPU time
    seed: int  # of the weights, the order of batches, and the split into training and validation

    @property
    def name(self) -> str:
        """Of its folder and of its result file."""
        return f"{self.molecule}-{self.model.replace(':', '-')}-{self.budget_hours:g}h-{self.seed}"


class Inputs(NamedTuple):
    """What the benchmark is made from."""

    data: Path | None  # folder with rmd17_MOLECULE_{train,test}_01.npz; none: fetched trajectories
    venvs: Path  # of the peers
    sizes: Sizes = Sizes()
    compiled: bool = False  # our training step
    overrides: Sequence[str] = ()  # of our recipe, section.key=value
    sample: bool = False  # the shipped ethanol instead


def is_peer(model: str) -> bool:
    """Whether a model is another package's."""
    return model in PEERS


def planned(
    molecules: Sequence[str], models: Sequence[str], budgets: Sequence[float], seeds: Sequence[int]
) -> list[AccuracyRun]:
    """Every combination, short budgets first, so that a first comparison is there early; raises ``ConfigError``."""
    for noun, values in {"molecule": molecules, "model": models, "budget": budgets, "seed": seeds}.items():
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"Name at least one {noun}, each once.")
    for molecule in molecules:
        if molecule not in MOLECULES:
            raise ConfigError(f"The benchmark has no molecule `{molecule}`; {nearest_name(molecule, MOLECULES)}")
    for model in models:
        _check_model(model)
    if wrong := [budget for budget in budgets if budget <= 0]:
        raise ConfigError(f"`--budgets` are CPU-hours of a run, above 0, got {wrong[0]:g}.")
    return [AccuracyRun(m, model, b, s) for b in budgets for s in seeds for m in molecules for model in models]


def _check_model(model: str) -> None:
    """Raise ``ConfigError`` for an unknown model."""
    network, _, form = model.partition(":")
    potential, _, size = network.rpartition("-")
    if model in PEERS:
        return
    known = [*PEERS, *(f"{name}-{size}" for name in POTENTIALS for size in ("tiny", "small"))]
    if potential not in POTENTIALS or form not in ("", "relaxed"):
        raise ConfigError(f"The benchmark has no model `{model}`; {nearest_name(network, known)}")
    preset(potential, size)  # raises


def implementation(model: str, venvs: Path) -> Implementation:
    """The process that trains a model, but for the folder at the end of its command."""
    found = _in_speed(model, venvs)
    command = (found.command[0], "-m", f"peers.{PEERS[model].module}") if model in PEERS else (sys.executable, *WORKER)
    return found._replace(command=command)


def timed(model: str, venvs: Path) -> Implementation:
    """The process that times MD steps of a model, as in the speed benchmark."""
    found = _in_speed(model, venvs)
    return found._replace(cutoff=PEERS[model].cutoff) if model in PEERS else found._replace(counted=False)


def _in_speed(model: str, venvs: Path) -> Implementation:
    """A model as the speed benchmark starts it, with one thread."""
    settings = thread_settings(1)
    if model not in PEERS:
        return mdrelax_implementation(model, settings)
    (found,) = implementations([PEERS[model].timed], peers=True, venvs=venvs, settings=settings)
    return found._replace(name=model)


# --- runs ---


def run_all(
    runs: Sequence[AccuracyRun],
    folder: Path,
    results: Path,
    inputs: Inputs,
    *,
    jobs: int,
    command: str,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Train what has no result file in ``results``, and store each result as soon as it is there.

    Peers that are not installed are left out with one line. Raises ``ConfigError`` for missing data and for results of
    another recipe, ``RuntimeError`` naming the runs that failed.
    """
    _refuse_mixtures(runs, results, inputs)
    waiting = [run for run in runs if not (results / f"{run.name}.json").is_file()]
    workers = {model: implementation(model, inputs.venvs) for model in dict.fromkeys(run.model for run in waiting)}
    for model, each in workers.items():
        if not each.installed:
            tell(f"{model} is left out, it is not installed (`make peers`)")
    places = {folder / run.name: run for run in waiting if workers[run.model].installed}
    for place, run in places.items():
        _prepare(place, run, folder, inputs)

    def finished(place: Path) -> str | None:
        found = read_optional(place / RESULT, read_json, remedy="Delete its folder and run again.")
        if found is None:
            return None
        result = _result(place, places[place], folder, inputs, found, command)
        write_atomically(results / f"{places[place].name}.json", (json.dumps(result, indent=1) + "\n").encode())
        return _line(result)

    def start(words: Sequence[str], place: Path) -> Job:
        worker = workers[places[place].model]
        return start_process(words, place, environment=worker.environment, cwd=worker.folder)

    results.mkdir(parents=True, exist_ok=True)
    run_side_by_side(
        list(places), lambda place: [*workers[places[place].model].command, str(place.absolute())],
        finished=finished, jobs=jobs, start=start, tell=tell,
    )  # fmt: skip


def _refuse_mixtures(runs: Sequence[AccuracyRun], results: Path, inputs: Inputs) -> None:
    """Raise ``ConfigError`` if a stored result is of other numbers of frames, or of another recipe of ours."""
    models = {run.model: run for run in runs}
    for found in read_results(results):
        wanted: dict[str, Any] = {"frames": list(inputs.sizes)}
        if found["model"] in models:
            wanted["overrides"] = _overrides(models[found["model"]], inputs)
        if other := {key: found[key] for key in wanted if found[key] != wanted[key]}:
            name = AccuracyRun(*(found[key] for key in AccuracyRun._fields)).name
            raise ConfigError(
                f"`{name}.json` is a result of other settings ({', '.join(f'{k}: {v}' for k, v in other.items())}); "
                "choose another folder for results."
            )


def _overrides(run: AccuracyRun, inputs: Inputs) -> list[str]:
    return [] if is_peer(run.model) else list(inputs.overrides)


def _prepare(place: Path, run: AccuracyRun, folder: Path, inputs: Inputs) -> None:
    """The folder of a run with its task.json; raises ``ConfigError`` if it contains another task."""
    task: dict[str, Any] = {
        "model": run.model, "budget": HOUR * run.budget_hours, "seed": run.seed,
        "data": str(_data(run.molecule, run.seed, folder, inputs).absolute()),
        "overrides": _overrides(run, inputs), "compile": inputs.compiled, "frames": list(inputs.sizes),
    }  # fmt: skip
    if not is_peer(run.model):
        config_of(task, {}, steps=1)  # which refuses overrides before a process is started
    path = place / TASK
    before = read_optional(path, read_json, remedy="Delete its folder and run again.")
    if before is not None and {**before, "data": None, "compile": None} != {**task, "data": None, "compile": None}:
        raise ConfigError(f"`{place}` contains a run with another task; choose another `--out`.")
    write_atomically(path, json.dumps(before or task, indent=1).encode())


def _data(molecule: str, seed: int, folder: Path, inputs: Inputs) -> Path:
    """The frames of a molecule, split with a seed: the file that all models get, and the test labels in another."""
    kind = "sample" if inputs.sample else "fetched" if inputs.data is None else "split01"
    sizes = "-".join("all" if size is None else str(size) for size in inputs.sizes)
    path = folder / "data" / f"{molecule}-{kind}-{sizes}-{seed}.npz"
    if path.is_file():
        return path
    train, test = _frames(molecule, inputs)
    order = np.random.default_rng(seed).permutation(len(train))
    first, wanted = inputs.sizes.train, inputs.sizes.train + inputs.sizes.validation
    if wanted > len(train):
        raise ConfigError(f"{molecule} has {len(train)} training frames, {wanted} are needed.")
    parts = {"train": [train[i] for i in order[:first]], "validation": [train[i] for i in order[first:wanted]]}
    arrays = {f"{p}_{key}": value for p, frames in parts.items() for key, value in _arrays(frames).items()}
    tested = _arrays(test[: inputs.sizes.test])
    _write_npz(_labels(path), tested)
    _write_npz(path, {"numbers": train[0].z.numpy(), **arrays, "test_positions": tested["positions"]})
    return path


def _labels(path: Path) -> Path:
    return path.with_name(f"{path.stem}-labels.npz")


def _frames(molecule: str, inputs: Inputs) -> tuple[list[Any], list[Any]]:
    """All frames to train and validate on, and the test frames."""
    if inputs.sample:
        every = list(datasets.load_frames("sample:ethanol").data)
        n = inputs.sizes.train + inputs.sizes.validation
        return every[:n], every[n:]
    keys = dict(key.split("=", 1) for key in data_keys(inputs.data, molecule))
    first = list(datasets.load_frames(keys["data.source"]).data)
    if (second := keys.get("data.test_source")) is not None:
        return first, list(datasets.load_frames(second).data)
    order = np.random.default_rng(0).permutation(len(first))  # of a trajectory
    chosen = [first[i] for i in order[:2000]]
    return chosen[:1000], chosen[1000:]


def _arrays(frames: Sequence[Any]) -> dict[str, np.ndarray]:
    """Positions (G, n, 3) A, energies (G,) eV, forces (G, n, 3) eV/A."""
    return {
        "positions": np.stack([each.pos.numpy() for each in frames]),
        "energies": np.array([float(each.energy) for each in frames]),
        "forces": np.stack([each.forces.numpy() for each in frames]),
    }


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with whole_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


# --- results ---


def _result(
    place: Path, run: AccuracyRun, folder: Path, inputs: Inputs, found: dict[str, Any], command: str
) -> dict[str, Any]:
    """The content of a result file; errors are computed here, for all models alike."""
    data = _data(run.molecule, run.seed, folder, inputs)
    with np.load(place / PREDICTIONS) as file, np.load(_labels(data)) as labels, np.load(data) as frames:
        n_frames, n_atoms = labels["forces"].shape[:2]
        tested = errors(
            Predictions(
                numbers=np.tile(frames["numbers"], n_frames), n_atoms=np.full(n_frames, n_atoms),
                energy_true=labels["energies"], energy_pred=file["energies"],
                forces_true=labels["forces"].reshape(-1, 3), forces_pred=file["forces"].reshape(-1, 3),
            )
        )  # fmt: skip
    return {
        **run._asdict(), "budget_used": found["cpu_seconds"] / (HOUR * run.budget_hours), **found, "test": tested,
        "frames": list(inputs.sizes), "test_frames": n_frames, "data_sha256": sha256(data.read_bytes()).hexdigest(),
        "overrides": _overrides(run, inputs),
        "command": command, "environment": {**environment(device="cpu", seed=run.seed), "threads": 1},
    }  # fmt: skip


def _line(result: dict[str, Any]) -> str:
    """A finished run in words."""
    tested, used = result["test"], result["budget_used"]
    over = f", {100 * (used - 1):.0f} % above its budget" if used > MOST_OF_BUDGET else ""
    return (
        f"test force MAE {tested['forces_mae_meV_per_A']:.2f} meV/A, energy {tested['energy_mae_meV']:.2f} meV after "
        f"{result['steps']:,} steps, {result['cpu_seconds'] / 60:.1f} CPU-min{over}"
    )


def read_results(results: Path) -> list[dict[str, Any]]:
    """The stored results, by molecule, model, budget and seed."""
    found = [read_json(path) for path in results.glob("*-*h-*.json")]
    return sorted(found, key=lambda r: (list(MOLECULES).index(r["molecule"]), r["model"], r["budget_hours"], r["seed"]))
