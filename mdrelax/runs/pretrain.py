"""Pre-training: a first stage on frames that xTB labels, before the second one on the user's own data.

    sample and label -> train on the labels -> fit scale and references again -> fine-tune on the user's data

Sampling starts from the training frames only: no label of the first stage comes from a validation or test frame. The
first stage is a run like any other, in a folder of the run:

| file | content |
| --- | --- |
| pretrain/frames.extxyz | the labelled frames (eV, Angstrom), the bursts one after the other |
| pretrain/train.txt, validation.txt | frame numbers; the last bursts validate |
| pretrain/labels.json | method, settings, numbers and cost of the labels; written last |
| pretrain/config.yaml, ... | the run on them, see ``mdrelax.runs.train`` |

Both stages share the steps and the settings of ``training``. The relaxation is part of the first stage unless
``pretrain.relaxed`` says otherwise: it is to ease the way from random weights, which the first stage goes, and its
free maps would take the fine-tuning away from a network that is good already.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms
from torch_geometric.data import Data

from mdrelax import datasets
from mdrelax.base.files import write_atomically
from mdrelax.base.sections import ConfigError
from mdrelax.datasets.bursts import (
    BurstSettings,
    LabelledBursts,
    burst_key,
    check_starts,
    label_bursts,
    starts_from,
)
from mdrelax.datasets.extxyz import write_extxyz
from mdrelax.datasets.structure_files import read_structures
from mdrelax.runs.config import Config, DataConfig, PretrainConfig
from mdrelax.runs.continued import exact_lone_atoms, isolated_references
from mdrelax.runs.inputs import Parts, check_labels, load_parts

__all__ = [
    "LABELS",
    "PRETRAIN",
    "Pretrained",
    "first_stage",
    "label_frames",
    "read_pretrained",
    "require_same_starts",
    "second_stage",
]

PRETRAIN = "pretrain"  # the folder of the first stage in that of the run
LABELS = "labels.json"
VALIDATION_SHARE, MOST_VALIDATION = 0.05, 500  # of the labelled frames
REPORTS = 10  # lines on the progress of the labels
SAME_PLACE = 4  # decimals of Angstrom to which geometries are compared


class Pretrained(NamedTuple):
    """The network of a finished first stage, and what it was trained on."""

    model: Path
    facts: dict[str, Any]  # for results.json

    @property
    def summary(self) -> str:
        """The facts in words, to follow "the network was"."""
        facts = self.facts
        return (
            f"pre-trained for {facts['steps']:,} steps on {facts['frames']:,} frames labelled with {facts['method']} "
            f"({facts['temperature_K']:g} K bursts from {facts['starts']:,} geometries)"
        )


# --- settings of the stages ---


def first_stage(config: Config, place: Path) -> Config:
    """The config of the first stage in its folder, whose labels are there."""
    own = _own(config)
    labels = _read_labels(place)
    document = config.model_dump(mode="json") | {
        "pretrain": None, "standard_baseline": False, "md_picoseconds": 0.0, "reference_energies": "fit",
        "exact_lone_atoms": exact_lone_atoms(config),
    }  # fmt: skip
    document["data"] = DataConfig(
        source=str(place / "frames.extxyz"),
        energy_unit="eV",
        length_unit="Angstrom",
        train_indices=str(place / "train.txt"),
        validation_indices=str(place / "validation.txt"),
    ).model_dump(mode="json")
    document["physics"] |= {"dispersion_in_labels": True}  # xTB has its own
    document["training"] |= {"steps": own.steps_of(config.training.steps or 0), "committee": 1}
    if labels["stresses"] == 0 and config.training.stress_weight:
        document["training"]["stress_weight"] = 0.0
    if own.relaxed == "fine-tuning":
        document["relaxation"]["schedule"] = "off"
    return Config.model_validate(document)


def second_stage(config: Config) -> Config:
    """The config of a run, for its second stage: the remaining steps, the smaller rate; itself without ``pretrain``."""
    own, training, relaxation = config.pretrain, config.training, config.relaxation
    if own is None:
        return config
    steps = training.steps or 0
    rate = training.learning_rate * own.learning_rate_fraction
    training = training.model_copy(update={"steps": steps - own.steps_of(steps), "learning_rate": rate})
    if own.relaxed == "pre-training":
        relaxation = relaxation.model_copy(update={"schedule": "off"})
    return config.model_copy(update={"training": training, "relaxation": relaxation})


def _own(config: Config) -> PretrainConfig:
    if config.pretrain is None:
        raise ValueError("This run has no `pretrain`: it has one stage only.")
    return config.pretrain


# --- labels ---


def label_frames(
    config: Config,
    place: Path,
    data: Sequence[Atoms] | None = None,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Sample and label the frames of the first stage in its folder ``place``, unless they are there.

    Args:
        config: The settings of the run.
        place: The folder of the first stage.
        data: Labelled structures that replace ``config.data.source``.
        tell: Called with one line per tenth of the frames.

    Raises ``ConfigError`` without tblite, for frames that the method cannot label, for further geometries that are
    validation or test frames, and for labels that the second stage lacks.
    """
    own, settings, parts = _own(config), _settings(config), load_parts(config.data, data)
    _check_second_stage(config, parts)
    starts = _starts(own, parts)
    key = {"key": burst_key(starts, settings), "frames": own.frames}
    if (place / LABELS).is_file() and key.items() <= _read_labels(place).items():
        return
    tell(
        f"Pre-training: {own.frames:,} frames are sampled from {len(starts):,} geometries at {own.temperature:g} K and "
        f"labelled with {own.method}."
    )
    try:
        found = label_bursts(starts, own.frames, settings=settings, progress=_reporter(tell), tell=tell)
    except ImportError as error:
        raise ConfigError(f"`pretrain.method: {own.method}` cannot be used here: {error}") from error
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror or error} MDRELAX_CACHE names another folder for labels."
        ) from error
    _write(place, found, {**key, "starts": len(starts), "settings": settings._asdict()})


def _check_second_stage(config: Config, parts: Parts) -> None:
    """Refuse now what the second stage would refuse after hours of the first."""
    check_labels(config, parts)
    if config.reference_energies == "isolated":
        isolated_references(parts.isolated_energies, tuple(sorted({int(z) for frame in parts.train for z in frame.z})))


def require_same_starts(config: Config, parts: Parts, place: Path) -> None:
    """Raise ``ConfigError`` if the labels in the folder ``place`` were sampled from other geometries than these."""
    if _read_labels(place)["key"] != burst_key(_starts(_own(config), parts), _settings(config)):
        raise ConfigError(
            f"`{place}` was sampled from other training frames than those of this run: give it the data "
            "that it began with, or choose another `--out`."
        )


def _settings(config: Config) -> BurstSettings:
    own = _own(config)
    return BurstSettings(**{name: getattr(own, name) for name in BurstSettings._fields})


def _starts(own: PretrainConfig, parts: Parts) -> list[Atoms]:
    """The training frames and the further geometries; raises ``ConfigError`` as ``label_frames``."""
    try:
        return starts_from([*parts.train, *_further_starts(own.starts, parts, own.method)], own.method)
    except ValueError as error:
        raise ConfigError(f"`pretrain`: {error}") from error


def _reporter(tell: Callable[[str], None]) -> Callable[[int, int], None]:
    """Tells each tenth of the labels, once."""
    last = 0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if REPORTS * done // total > last:
            last = REPORTS * done // total
            tell(f"Labelled {done:,} of {total:,} frames.")

    return progress


def _further_starts(names: Sequence[str], parts: Parts, method: str) -> list[Data]:
    """The geometries of ``pretrain.starts``; raises ``ValueError`` for one that is a validation or test frame."""
    held_out = {_place_in_space(frame) for frame in (*parts.validation, *parts.test)} if names else set()
    found: list[Data] = []
    for name in names:
        structures = read_structures(Path(name))
        frames = datasets.load_atoms(structures, source=Path(name).name, labelled=False).data
        check_starts(frames, method)
        same = next((k for k, frame in enumerate(frames) if _place_in_space(frame) in held_out), None)
        if same is not None:
            raise ValueError(
                f"frame {same} of `starts: {name}` is a validation or test frame, which the first stage must not see; "
                "leave it out."
            )
        found += frames
    return found


def _place_in_space(frame: Data) -> tuple[bytes, bytes, bytes]:
    """What tells geometries apart: elements, positions and cell."""
    positions, cell = (tensor.round(decimals=SAME_PLACE) + 0.0 for tensor in (frame.pos, frame.cell))
    return frame.z.numpy().tobytes(), positions.numpy().tobytes(), cell.numpy().tobytes()


def _write(place: Path, found: LabelledBursts, facts: dict[str, Any]) -> None:
    """The files of the labels; labels.json last, so that the others are whole where it is there."""
    n_frames = len(found.frames)
    (place / LABELS).unlink(missing_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    write_extxyz(place / "frames.extxyz", found.frames)
    cut = _first_to_validate(found.bursts)
    for name, numbers in (("train", range(cut)), ("validation", range(cut, n_frames))):
        write_atomically(place / f"{name}.txt", "".join(f"{k}\n" for k in numbers).encode())
    facts |= {
        "validation": n_frames - cut,
        "bursts": len(set(found.bursts)),
        "stresses": sum("REF_stress" in atoms.info for atoms in found.frames),
        "cpu_seconds": found.cpu_seconds,
    }
    write_atomically(place / LABELS, json.dumps(facts, indent=1).encode())


def _first_to_validate(bursts: Sequence[int]) -> int:
    """The number of the first frame that validates, where a burst begins if there are several."""
    cut = len(bursts) - max(1, min(MOST_VALIDATION, round(VALIDATION_SHARE * len(bursts))))
    return bursts.index(bursts[cut]) or cut


def _read_labels(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / LABELS).read_text(encoding="utf-8"))
    return found


# --- the finished stage ---


def read_pretrained(config: Config, folder: Path) -> Pretrained | None:
    """The finished first stage of the run in ``folder``, or None."""
    place = folder / PRETRAIN
    model, results, labels = (place / name for name in ("model.safetensors", "results.json", LABELS))
    if not (model.is_file() and results.is_file() and labels.is_file()):
        return None
    known, own = json.loads(results.read_text(encoding="utf-8")), _own(config)
    label = _read_labels(place)
    kept = ("steps", "best_step", "seconds", "cpu_seconds", "n_free_parameters", "validation")
    return Pretrained(
        model,
        {
            "method": own.method, "frames": label["frames"], "starts": label["starts"],
            "temperature_K": own.temperature, "labels_cpu_seconds": label["cpu_seconds"],
            **{name: known[name] for name in kept},
        },
    )  # fmt: skip
