"""The inputs of a training run: its config, its folder and its data."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from ase import Atoms
from torch_geometric.data import Data

from mdrelax import datasets
from mdrelax.base.files import write_atomically
from mdrelax.base.names import nearest_name
from mdrelax.base.provenance import environment
from mdrelax.base.sections import ConfigError, apply_overrides, load, read_yaml
from mdrelax.datasets import Frames, LabelOptions, Split
from mdrelax.forces.loader import Batch
from mdrelax.forces.settings import STRESS_WEIGHT
from mdrelax.runs.config import Config, DataConfig, load_config
from mdrelax.runs.config_changes import read_saved
from mdrelax.structures.graph import Graph
from mdrelax.training.folders import begun_already, changed_keys, refuse_changes

MOST_NEIGHBOURS = 1000  # per atom
IN_MEMORY = "memory"  # `data.source` for structures passed in memory
LENGTHS = ("steps", "epochs")  # keys of `training`; the length may grow when a run is resumed
MAY_CHANGE = ("md_picoseconds",)  # keys that may change when a run is resumed; none of them affects a number


class Parts(NamedTuple):
    """The data of a run."""

    train: list[Data]
    validation: list[Data]
    test: list[Data]
    isolated_energies: dict[int, float]
    split: Split
    report: str


def open_config(source: str, overrides: Sequence[str]) -> Config:
    """A config from a YAML file, a preset or the name of data, which has the defaults; raises ``ConfigError``."""
    if is_data(source, overrides):
        return load_config({"data": {"source": source}}, overrides=overrides)
    if Path(source).is_file():
        return load_config(_document(source), overrides=overrides)
    folder = resources.files("mdrelax") / "presets"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if source not in names:
        raise ConfigError(
            f"There is no config file `{source}`, no data file and no preset of that name; "
            f"{nearest_name(source, names)}"
        )
    with resources.as_file(folder / f"{source}.yaml") as path:
        return load_config(read_yaml(path), overrides=overrides)


def _document(path: str) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except ConfigError as error:
        hint = "" if _is_yaml(path) else " If it holds structures, name their format: `-r data.format=ase`."
        raise ConfigError(f"{error}{hint}") from error


def _is_yaml(path: str) -> bool:
    return Path(path).suffix.lower() in (".yaml", ".yml")


def is_data(source: str, overrides: Sequence[str]) -> bool:
    """True for the name of a data set or file in place of a config, also a file whose format an override names."""
    named = Path(source).is_file() and any(override.startswith("data.format=") for override in overrides)
    return datasets.is_source(source) or (named and not _is_yaml(source))


def recipe_of(config: Config) -> str:
    """Network, optimiser, length and split of a config in one sentence."""
    potential, training, data = config.potential, config.training, config.data
    network = f"{potential.name} `{potential.preset}` with cut-off {potential.cutoff:g} A"
    network = network if potential.start is None else f"the network of `{potential.start}`"
    steps = f"{training.steps:,} steps" if training.epochs is None else f"{training.epochs:,} epochs"
    edges = "" if training.max_edges is None else f" and {training.max_edges:,} edges"
    relaxed = "never relaxed" if config.relaxation.schedule == "off" else f"relaxed ({config.relaxation.schedule})"
    if (own := config.pretrain) is not None:
        first = own.steps_of(training.steps or 0)
        steps += f", {first:,} of them to pre-train on {own.frames:,} frames labelled with {own.method},"
    rest = "the rest" if data.test is None else f"{data.test:g}"
    return (
        f"{network}, {relaxed}; {training.optimizer} at {training.learning_rate:g}, {steps} of up to "
        f"{training.batch_size} structures{edges}; split {data.train:g} to train, {data.validation:g} to validate, "
        f"{rest} to test, drawn with seed {data.seed}"
    )


def resolve(config: Config | Mapping[str, Any] | str | Path, data: Sequence[Atoms] | str | Path | None) -> Config:
    """A config from a checked config, a document, a file or a preset; ``data`` is its source.

    Raises ``ConfigError``.
    """
    if not isinstance(config, str | Path | Config | Mapping):
        raise ConfigError(
            f"A config is a dict, a YAML file or a preset such as ethanol-tiny, got {type(config).__name__}."
        )
    if not isinstance(data, str | Path | Sequence | None) or any(not isinstance(a, Atoms) for a in _in_memory(data)):
        raise ConfigError(
            f"Data are a list of `ase.Atoms`, a file, or a data set's name, got {type(data).__name__} {data!r:.60}."
        )
    if isinstance(config, str | Path):
        config = open_config(str(config), [])
    document = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
    if data is not None:
        source = str(data) if isinstance(data, str | Path) else IN_MEMORY
        document["data"] = {**(document.get("data") or {}), "source": source}
    return load_config(document)


def _in_memory(data: Sequence[Atoms] | str | Path | None) -> Sequence[Atoms]:
    return () if data is None or isinstance(data, str | Path) else data


def whole_numbers(option: str, text: str) -> list[int]:
    """The whole numbers of a comma-separated option; raises ``ConfigError`` for anything else."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"`{option}` wants whole numbers separated by commas, got `{text}`.") from error


def numbers_of(option: str, text: str) -> list[float]:
    """The finite numbers of a comma-separated option; raises ``ConfigError`` for anything else."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(map(math.isfinite, found)):
        raise ConfigError(f"`{option}` wants finite numbers separated by commas, got `{text}`.")
    return found


def check_folder(config: Config, folder: Path, *, restart: bool) -> str | None:
    """A sentence to print if the folder contains a run that is made longer, else None.

    Raises ``ConfigError`` if the folder contains a run and ``restart`` is off, or a run whose config differs in more
    than a greater number of steps (or epochs). A run that ended before its first checkpoint (a mistake in the config, a
    missing file) does not count.
    """
    saved = folder / "config.yaml"
    has_model, has_checkpoint = ((folder / name).exists() for name in ("model.safetensors", "checkpoints/last.pt"))
    begun = any(
        path
        for name in ("member-*", "pretrain", "member-*/pretrain")
        for path in folder.glob(f"{name}/checkpoints/last.pt")
    )
    if not (saved.exists() and (has_checkpoint or has_model or begun)):
        return None
    if not restart:
        raise begun_already(folder)
    if has_model and not has_checkpoint:
        raise ConfigError(
            f"`{folder}` is finished, but has no checkpoint (`checkpoints/last.pt`) any more: training it again would "
            "replace its model. Use the model, or choose another `--out`."
        )
    old, new = (
        {key: value for key, value in document.items() if key not in MAY_CHANGE}
        for document in (read_saved(saved), config.model_dump(mode="json"))
    )
    changed = {line.partition(":")[0] for line in changed_keys(old, new)}
    for unit in LENGTHS:
        before, now = (document["training"].get(unit) for document in (old, new))
        if changed == {f"training.{unit}"} and before is not None and now is not None and now > before:
            return (
                f"The run of {before:,} {unit} is continued to {now:,}: theta and the learning rate follow the new "
                "length from here on, so the result is not that of one run of this length."
            )
    refuse_changes(old, new, found=f"`{folder}` was made with another config", choose="`--out`")
    return None


def prepare_folder(config: Config, folder: Path, *, restart: bool) -> bool:
    """Make or re-enter the run folder; True if there is a checkpoint to resume from. Raises as ``check_folder``."""
    check_folder(config, folder, restart=restart)
    document = config.model_dump(mode="json")
    write_atomically(folder / "config.yaml", yaml.safe_dump(document, sort_keys=False).encode())
    made = environment(device=config.training.device, seed=config.training.seed)
    write_atomically(folder / "env.json", json.dumps(made, indent=2).encode())
    return restart and (folder / "checkpoints" / "last.pt").exists()


def load_parts(settings: DataConfig, data: Sequence[Atoms] | None = None) -> Parts:
    """Read the data (or use the labelled ``data`` of the caller) and split them.

    Raises ``ValueError`` and ``FileNotFoundError`` with the remedy.
    """
    options = {key: getattr(settings, key) for key in ("labels", *LabelOptions.__annotations__)}
    frames = _all_frames(settings, data, options)
    report, apart = str(frames.report), None
    if settings.test_source is not None:
        apart = datasets.load_frames(settings.test_source, format=settings.format, **options)
        report += f"\n{apart.report}"
    split = _split(settings, len(frames.data), separate_test=apart is not None)
    test = [frames.data[k] for k in split.test]
    if apart is not None:
        test = apart.data[: _n_of_test_file(settings.test, len(apart.data))]
    train = [frames.data[k] for k in split.train]
    train = _weighed(train, settings.weights)
    names = [settings.source] if isinstance(settings.source, str) else settings.source
    if any(name.startswith("rmd17:") or (settings.format or name).endswith(("md17", ".npz")) for name in names):
        datasets.warn_about_md17_noise(train)
    return Parts(train, [frames.data[k] for k in split.valid], test, frames.isolated_energies, split, report)


def reading_options(sources: Sequence[str], overrides: Sequence[str]) -> dict[str, Any]:
    """The options of ``datasets.load_frames`` in overrides ``data.key=value`` of a config; raises ``ConfigError``."""
    document = apply_overrides({"data": {"source": list(sources)}}, overrides)
    if unknown := sorted(document.keys() - {"data"}):
        raise ConfigError(f"Only keys of `data` say how to read a file, got `{unknown[0]}`: write `-r data.key=value`.")
    settings = load(DataConfig, document["data"], place="data")
    return {key: getattr(settings, key) for key in ("format", "labels", *LabelOptions.__annotations__)}


def _weighed(frames: list[Data], weights: Mapping[str, float]) -> list[Data]:
    """The training frames with their weights times those of their kind, without those of weight 0.

    Raises ``ConfigError`` for a kind that no frame is, and if all weights are 0.
    """
    kinds = {frame.config_type for frame in frames}
    unknown = sorted(weights.keys() - kinds)
    if unknown:
        raise ConfigError(
            f"`data.weights` names the config_type `{unknown[0]}`, which no training frame has; "
            f"{nearest_name(unknown[0], kinds)}"
        )
    for frame in frames:
        if frame.config_type in weights:
            frame.weight = weights[frame.config_type] * (frame.weight if "weight" in frame else 1.0)
    kept = [frame for frame in frames if "weight" not in frame or frame.weight > 0]
    if not kept:
        raise ConfigError("All training frames have the weight 0; give some of them a weight in `data.weights`.")
    return kept


def _all_frames(settings: DataConfig, data: Sequence[Atoms] | None, options: dict[str, Any]) -> Frames:
    if data is not None:
        return datasets.load_atoms(data, **{key: value for key, value in options.items() if key != "labels"})
    if settings.source == IN_MEMORY:
        raise ConfigError(
            "The data of this run were passed in memory: continue it from Python, with `mdrelax.train(..., "
            "data=..., restart=True)`."
        )
    return datasets.load_frames(settings.source, format=settings.format, **options)


def _split(settings: DataConfig, n_frames: int, *, separate_test: bool) -> Split:
    generator = np.random.default_rng(settings.seed)
    _check_indices(settings)
    if settings.train_indices is not None:
        n_indices = len(datasets.read_indices(settings.train_indices))
        valid = settings.validation_indices or _size(settings.validation, n_indices)
        return datasets.index_split(
            n_frames, train=settings.train_indices, valid=valid, test=settings.test_indices or (), generator=generator
        )
    test = 0 if separate_test else settings.test
    train, validation = (_some(size, n_frames) for size in (settings.train, settings.validation))
    return datasets.random_split(n_frames, train=train, valid=validation, test=test, generator=generator)


def _some(size: int | float, n_frames: int) -> int | float:
    """A fraction as it is, or 1 if it would be no frame at all."""
    return 1 if 0 < size < 1 and _size(size, n_frames) == 0 else size


def _check_indices(settings: DataConfig) -> None:
    """Refuse index files or sizes that would be ignored: both could leak test frames."""
    if settings.train_indices is None and (settings.validation_indices or settings.test_indices):
        raise ConfigError(
            "`data.validation_indices` and `data.test_indices` need `data.train_indices` as well, so that no frame "
            "is in two parts; name that file too, or leave them out."
        )
    if settings.test_indices is not None and settings.test_source is not None:
        raise ConfigError("Test frames come from `data.test_source` or `data.test_indices`; leave one of them out.")
    if settings.train_indices is not None and settings.test is not None and settings.test_source is None:
        raise ConfigError(
            "With `data.train_indices`, name the test frames with `data.test_indices`, not `data.test`, which is "
            f"{settings.test}; leave it out (null)."
        )


def _n_of_test_file(size: int | float | None, n_frames: int) -> int:
    """The number of frames of ``data.test_source`` to use; raises ``ConfigError`` for more than it has, or for none."""
    wanted = n_frames if size is None else _size(size, n_frames)
    if not 1 <= wanted <= n_frames:
        raise ConfigError(
            f"`data.test: {size}` asks for {wanted} of the {n_frames} frames of `data.test_source`; take 1 to "
            f"{n_frames}, or leave it out (null) to take all."
        )
    return wanted


def _size(size: int | float, n_frames: int) -> int:
    """A count, or a fraction of a number of frames, rounded down."""
    return int(size * n_frames + 1e-9) if isinstance(size, float) else size


def check_cutoff(frames: Sequence[Batch], cutoff: float) -> float:
    """The mean number of neighbours per atom within the cut-off (Angstrom) in the training frames.

    Raises ``ConfigError`` for a cut-off within which there is no neighbour at all, or more than a network can take.
    """
    edges = sum(frame.graph.edge_index.shape[1] for frame in frames)
    neighbours = edges / sum(len(frame.graph.numbers) for frame in frames)
    if neighbours > MOST_NEIGHBOURS:
        raise ConfigError(
            f"`potential.cutoff: {cutoff:g}` gives {neighbours:,.0f} neighbours per atom, where potentials take 10 to "
            "100 and memory grows with them; 4 to 6 A is usual."
        )
    nearest = math.inf if edges else min(_shortest_distance(frame.graph) for frame in frames)
    if nearest < math.inf:
        raise ConfigError(
            f"`potential.cutoff: {cutoff:g}` is below every distance in the training frames, of which the shortest is "
            f"{nearest:.2f} A: nothing could be learnt. 4 to 6 A is usual; check `data.length_unit`, too."
        )
    return neighbours


def _shortest_distance(graph: Graph) -> float:
    """The shortest distance in Angstrom between two atoms of one cell, or along a lattice vector; infinite of none."""
    between = torch.cdist(graph.positions, graph.positions).fill_diagonal_(torch.inf)
    lengths = graph.cell.flatten(0, 1).norm(dim=1)
    return float(torch.cat([between.flatten(), lengths[lengths > 0]]).min())


def with_stress_weight(config: Config, parts: Parts, *, conservative: bool) -> Config:
    """The config with a stress weight, by default ``STRESS_WEIGHT`` if a training frame has a stress.

    A network that is not ``conservative`` has no stress.
    """
    if config.training.stress_weight is not None:
        return config
    counts = conservative and any("stress" in frame for frame in parts.train)
    training = config.training.model_copy(update={"stress_weight": STRESS_WEIGHT if counts else 0.0})
    return config.model_copy(update={"training": training})


def check_labels(config: Config, parts: Parts) -> None:
    """Refuse, before training, data that would fail afterwards or lack labels.

    Raises ``ConfigError`` for a stress weight without stress, ``ValueError`` for elements that only validation or test
    frames have.
    """
    known = {int(z) for frame in parts.train for z in frame.z}
    for name, frames in (("validation", parts.validation), ("test", parts.test)):
        unknown = sorted({int(z) for frame in frames for z in frame.z} - known)
        if unknown:
            raise ValueError(
                f"The {name} frames have atomic numbers {unknown}, which no training frame has: train on more frames, "
                "or take another `data.seed`."
            )
    if config.training.stress_weight and not any("stress" in frame for frame in parts.train):
        raise ConfigError(
            f"`training.stress_weight` is {config.training.stress_weight}, but no training frame has a stress: name "
            "its key with `data.stress_key`, or set the weight to 0."
        )
