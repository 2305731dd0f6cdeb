"""The networks in a run folder's last checkpoint: projected, or with their free maps; the data are not needed.

Runs of versions without network.json rebuild their network from their data.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mdrelax.base.containers import read_container, rebuilt
from mdrelax.base.states import load_exactly
from mdrelax.forces.dispersion import without_dispersion
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.forcematching import validation_errors
from mdrelax.forces.loader import Batch, frames_from_data
from mdrelax.method.certificate import Certificate, require
from mdrelax.method.projection import LayerRecord
from mdrelax.method.relaxation import set_theta
from mdrelax.modelfile import save_model
from mdrelax.runs.config import Config, load_config
from mdrelax.runs.config_changes import read_saved
from mdrelax.runs.inputs import load_parts
from mdrelax.runs.network import NETWORK_FILE, NetworkFile, Networks, Untrained, read_network
from mdrelax.runs.pretrain import second_stage
from mdrelax.runs.refused import cause_of_failure
from mdrelax.runs.train import MODEL, certified, data_frames, kept_structures, model_card
from mdrelax.runs.untrained import network_arguments, new_force_field
from mdrelax.training.averages import Ema
from mdrelax.training.checkpoint import CheckpointError, load_checkpoint, refuse_impossible
from mdrelax.training.settings import relax
from mdrelax.training.trainer import CHECKPOINT_DEFAULTS, CHECKPOINT_KEYS, TrainingError

__all__ = ["RunCheckpoint", "open_checkpoint", "project_checkpoint", "projection_gap"]


class RunCheckpoint(NamedTuple):
    """A run folder: its config, its network before training, structures to measure it on, and its last state."""

    config: Config
    begun: Untrained
    structures: list[Batch]
    state: dict[str, Any]
    path: Path

    def unprojected(self) -> ForceField:
        """The averaged network with its free maps, in evaluation mode."""
        relax(self.begun.force_field, self.config.relaxation, seed=self.config.training.seed)
        average = Ema(self.begun.force_field, decay=self.config.training.ema)
        try:
            load_exactly(self.begun.force_field, self.state["model"], may_lack=None)
            average.load_state_dict(self.state["ema"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"`{self.path}` belongs to another network than `network.json`.") from error
        average.copy_to(self.begun.force_field)
        return self.begun.force_field.eval()

    def best(self) -> tuple[ForceField, list[LayerRecord]]:
        """The projected network of the best validation, and its layers; raises ``TrainingError`` without one."""
        best = self.state["best"]
        if not best["state"]:
            raise TrainingError(f"No validation of `{self.path}` gave a finite error, so there is no best network.")
        try:
            load_exactly(self.begun.force_field, best["state"], may_lack=None)
            layers = [LayerRecord(**record) for record in best["layers"]]
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"`{self.path}` belongs to another network than `network.json`.") from error
        return self.begun.force_field.eval(), layers


def open_checkpoint(folder: Path, networks: Networks) -> RunCheckpoint:
    """The last checkpoint of a run.

    Raises ``CheckpointError`` if there is none that can be used, and ``ModelFileError`` if its network cannot be built.
    """
    config = second_stage(load_config(read_saved(folder / "config.yaml")))
    path = folder / "checkpoints" / "last.pt"
    state = load_checkpoint(path, keys=CHECKPOINT_KEYS, defaults=CHECKPOINT_DEFAULTS)
    refuse_impossible(state, path)
    found = read_network(folder)
    if found is None:
        begun, structures = _from_data(config, networks)
    else:
        with rebuilt(folder / NETWORK_FILE, found.arguments, state["model"]):
            begun, structures = _from_file(found, networks)
    return RunCheckpoint(config, begun, structures, state, path)


def _from_file(found: NetworkFile, networks: Networks) -> tuple[Untrained, list[Batch]]:
    network = found.build(networks)
    begun = Untrained(network, found.name, found.arguments, found.started_from)
    return begun, frames_from_data(found.structures, cutoff=network.cutoff)


def _from_data(config: Config, networks: Networks) -> tuple[Untrained, list[Batch]]:
    """The same for a run of a version without network.json."""
    parts = load_parts(config.data)
    frames = data_frames(parts, config.potential.cutoff, config.physics.physics())
    arguments = network_arguments(config.potential, frames.train, networks)
    network = new_force_field(config, frames.train, parts.isolated_energies, arguments, networks)
    begun = Untrained(network, config.potential.name, arguments, None)
    return begun, frames_from_data(kept_structures(parts), cutoff=network.cutoff)


def project_checkpoint(folder: Path, output: Path, networks: Networks) -> Certificate:
    """Project and save the best network of the last checkpoint in a run folder; raises on a failed certificate.

    The reference energies are those of a finished run's model, which were fitted after its last step.
    """
    run = open_checkpoint(folder, networks)
    network, layers = run.best()
    _take_references(network, folder, best_step=run.state["best"]["step"])
    certificate = certified(network, run.structures, layers, run.begun)
    require(certificate, cause=cause_of_failure(certificate))
    save_model(
        output, network, potential=run.begun.name, arguments=run.begun.arguments, certificate=certificate,
        card=model_card(run.config, network, best_step=run.state["best"]["step"], results={}, origin=run.begun.origin),
    )  # fmt: skip
    return certificate


def _take_references(network: ForceField, folder: Path, *, best_step: int) -> None:
    """Those of the run's model file, if it is of the same step: its hash tells that they are as they were fitted."""
    path = folder / MODEL
    if path.is_file() and not network.exact_lone_atoms:  # those have been fitted once, and are folded in the file
        header, tensors = read_container(path)
        if header["card"].get("best_step") == best_step and header["elements"] == list(network.elements):
            network.reference_energies.copy_(tensors["reference_energies"])


def projection_gap(folder: Path, thetas: Sequence[float], networks: Networks) -> pd.DataFrame:
    """Validation errors of the last checkpoint's averaged, unprojected network at each theta.

    Columns ``theta``, ``forces`` (meV/A) and ``energy`` (meV). The validation frames are read again. Raises
    ``ValueError`` if nothing was relaxed.
    """
    run = open_checkpoint(folder, networks)
    network = run.unprojected()
    learnt = without_dispersion(load_parts(run.config.data).validation, network.physics.subtracted)
    validation = frames_from_data(learnt, cutoff=network.cutoff)
    rows = []
    for theta in thetas:
        set_theta(network, theta)
        errors = validation_errors(network, validation)
        rows.append((theta, errors["val_forces_mae_meV_per_A"], errors["val_energy_mae_meV"]))
    return pd.DataFrame(rows, columns=["theta", "forces", "energy"])
