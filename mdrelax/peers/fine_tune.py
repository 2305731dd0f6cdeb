"""Fine-tuning of a peer: load -> fit references -> relax -> train -> project -> save -> reload -> prove.

The file that is written is the peer's own format. It is loaded again by the peer's own tools before its symmetry and
its errors are measured, so that what is reported belongs to the file.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from ase import Atoms
from pydantic import Field, model_validator
from torch import nn

from mdrelax.base.files import locked_folder, write_atomically
from mdrelax.base.provenance import environment
from mdrelax.base.sections import Section
from mdrelax.base.seeds import generator
from mdrelax.datasets import load as load_data
from mdrelax.datasets import to_atoms
from mdrelax.peers.peer import PEERS, StoredPeer, open_stored_peer
from mdrelax.peers.proof import PeerProof, require_proof, symmetry_errors
from mdrelax.peers.task import Labelled, PeerTask, energy_offsets, errors_of
from mdrelax.training.folders import RESULTS, enter
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig, refuse_keep, relax
from mdrelax.training.trainer import FitResult, Progress, Trainer

__all__ = ["FineTuned", "PeerFineTuning", "fine_tune_peer"]

SETTINGS = "fine-tune.yaml"
MEASURED = 3  # structures of the proof
MOST_REFERENCES = 20  # structures that references are fitted to
Tell = Callable[[str], None]


class PeerFineTuning(Section):
    """All settings of a fine-tuning."""

    peer: str = Field(description="sevenn or mace.")
    model: str = Field(description="A name that the package knows, such as 7net-0, or one of its files.")
    data: str = Field(description="Labelled structures: a file, or the name of a data set.")
    largest: int | None = Field(None, ge=1, description="Leave out structures with more atoms; none: keep all.")
    validation: int = Field(10, ge=1, description="Validation structures, drawn at random; the others are trained on.")
    energy_weight: float = Field(1.0, ge=0, description="Weight of the energy per atom.")
    forces_weight: float = Field(1.0, ge=0, description="Weight of the forces.")
    stress_weight: float = Field(0.0, ge=0, description="Weight of the stress.")
    training: OptimisationConfig
    relaxation: RelaxationConfig = RelaxationConfig()

    @model_validator(mode="after")
    def _possible(self) -> Self:
        refuse_keep(self.relaxation, what="a force field")
        if self.training.dtype != "float32":
            raise ValueError(
                f"a peer is trained in its own precision: leave out `training.dtype`, got {self.training.dtype}"
            )
        if self.peer not in PEERS:
            raise ValueError(f"there is no peer `{self.peer}`: {', '.join(sorted(PEERS))}")
        return self


class FineTuned(NamedTuple):
    """The result: the file, its proof and the content of results.json."""

    model_file: Path
    proof: PeerProof
    results: dict[str, Any]


def fine_tune_peer(
    settings: PeerFineTuning,
    folder: Path,
    *,
    restart: bool = False,
    tell: Tell = lambda line: None,
    listener: Callable[[Progress], None] = lambda progress: None,
) -> FineTuned:
    """Train a peer's network further, relaxed unless the schedule is off, and write a file of its own kind.

    The energies of the elements are fitted to the training structures before the first step and after the last one.

    ``restart`` resumes from the folder's last checkpoint, if there is one. Raises ``ConfigError`` for a folder with a
    run of other settings (or of these, without ``restart``), ``ValueError`` for data without energies and forces, and
    ``CertificateError`` if the projected network is less equivariant than the original; then no file is written.
    """
    with locked_folder(folder):
        resume = enter(settings, folder, restart=restart, file=SETTINGS)
        peer = open_stored_peer(settings.peer)
        if peer.PICKLED:
            tell(f"Files of {settings.peer} are pickles: loading one runs the code in it. Load only what you trust.")
        model, train, validation = peer.load(settings.model), *_data(settings)
        some = [each.atoms for each in validation[:MEASURED]]
        original = symmetry_errors(peer.calculator(model), some)
        offsets = _fit_references(peer, model, train)
        before = errors_of(peer, model, validation)
        tell(f"{len(train)} training and {len(validation)} validation structures.")
        tell(_said("As loaded, with references fitted", before))
        fit = _train(settings, peer, model, train, validation, folder, resume=resume, tell=tell, listener=listener)
        network = _original_form(peer.load(settings.model), fit.model)
        last = _fit_references(peer, network, train)
        offsets = {number: offset + last[number] for number, offset in offsets.items()}
        return _finish(settings, peer, network, fit, validation, original, before, offsets, folder, tell)


def _fit_references(peer: StoredPeer, model: nn.Module, train: list[Labelled]) -> dict[int, float]:
    """Move the energy of each element to the labels of some training structures; returns by how much (eV)."""
    offsets = energy_offsets(peer, model.eval(), train[:MOST_REFERENCES])
    peer.shift_energies(model, offsets)
    return offsets


def _original_form(model: nn.Module, trained: nn.Module) -> nn.Module:
    """The network as it was loaded, with the weights of a projected copy.

    A copy of a network with compiled parts has classes, and buffers for their constants, of its own.
    """
    state = trained.state_dict()
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def _data(settings: PeerFineTuning) -> tuple[list[Labelled], list[Labelled]]:
    """Training and validation structures."""
    frames = [to_atoms(frame) for frame in load_data(settings.data)]
    frames = [atoms for atoms in frames if settings.largest is None or len(atoms) <= settings.largest]
    labelled = [_labelled(atoms) for atoms in frames if "REF_energy" in atoms.info and "REF_forces" in atoms.arrays]
    if len(labelled) <= settings.validation:
        raise ValueError(
            f"`{settings.data}` has {len(labelled)} structures with energies and forces"
            f"{f' and at most {settings.largest} atoms' if settings.largest else ''}: more than `validation` "
            f"({settings.validation}) are needed."
        )
    order = torch.randperm(len(labelled), generator=generator(settings.training.seed, "split")).tolist()
    chosen = [labelled[k] for k in order]
    return chosen[settings.validation :], chosen[: settings.validation]


def _labelled(atoms: Atoms) -> Labelled:
    stress = atoms.info.get("REF_stress")
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    forces = np.asarray(atoms.arrays["REF_forces"], dtype=np.float64)
    return Labelled(bare, float(atoms.info["REF_energy"]), forces, None if stress is None else np.asarray(stress))


def _train(
    settings: PeerFineTuning, peer: StoredPeer, model: nn.Module, train: list[Labelled], validation: list[Labelled],
    folder: Path, *, resume: bool, tell: Tell, listener: Callable[[Progress], None],
) -> FitResult[nn.Module]:  # fmt: skip
    """Relax, train and project."""
    training, own = settings.training, settings.relaxation
    placement = relax(model, own, seed=training.seed)
    if placement is not None:
        tell(str(placement))
    weights = (settings.energy_weight, settings.forces_weight, settings.stress_weight)
    task = PeerTask(
        peer, train, validation, batch_size=training.batch_size, seed=training.seed, rotate=training.rotate,
        weights=weights,
    )  # fmt: skip
    trainer = Trainer(model, task, training=training, relaxation=own, folder=folder, listener=listener)
    if resume:
        trainer.resume()
        tell(f"Resumed at step {trainer.step} of {trainer.n_steps}.")
    return trainer.run()


def _finish(
    settings: PeerFineTuning, peer: StoredPeer, network: nn.Module, fit: FitResult[nn.Module],
    validation: list[Labelled], original: Any,
    before: tuple[float, float], offsets: dict[int, float], folder: Path, tell: Tell,
) -> FineTuned:  # fmt: skip
    """Save, load again as anybody would, prove, and keep the file only if the proof passes."""
    path = folder / ("model.pth" if settings.peer == "sevenn" else "model.model")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        written = str(Path(place) / path.name)
        peer.save(network, written, source=settings.model)
        again = peer.load(written).eval()
        some = [each.atoms for each in validation[:MEASURED]]
        projected = symmetry_errors(peer.calculator(again), some)
        proof = require_proof(PeerProof(peer.symmetry(again), original, projected, len(some), fit.layers))
        os.replace(written, path)
    after = errors_of(peer, again, validation)
    results = {
        "settings": settings.model_dump(mode="json"), "steps": fit.steps, "best_step": fit.best_step,
        "seconds": fit.seconds, "cpu_seconds": fit.cpu_seconds, "energy_offsets_eV": offsets,
        "before": _named(before), "after": _named(after), "proof": proof.to_dict(),
        "environment": environment(device=settings.training.device, seed=settings.training.seed),
    }  # fmt: skip
    write_atomically(folder / RESULTS, json.dumps(results, indent=2).encode())
    tell(_said("Fine-tuned, as loaded from its file", after))
    worst = [each.worst(reflections=proof.symmetry == "E(3)") for each in (original, projected)]
    who = f"{proof.symmetry} in {settings.peer}'s calculator"
    tell(f"{who}: largest error {worst[1]:.1e}, the original's {worst[0]:.1e}.")
    tell(f"Model: {path} (a file of {settings.peer}{', a pickle' if peer.PICKLED else ''})")
    return FineTuned(path, proof, results)


def _named(errors: tuple[float, float]) -> dict[str, float]:
    return {"energy_mae_meV_per_atom": errors[0], "forces_mae_meV_per_A": errors[1]}


def _said(who: str, errors: tuple[float, float]) -> str:
    return f"{who}: validation errors {errors[0]:.1f} meV/atom, forces {errors[1]:.1f} meV/A."
