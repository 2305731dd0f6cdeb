"""What tests/test_ranks.py runs on two ranks: every case trained by both together, and by rank 0 alone.

    torchrun --nproc-per-node 2 tests/ranks_worker.py FOLDER CASE ...

Rank 0 writes FOLDER/found.json: the largest relative differences between the two, and what resuming gives.
"""

import contextlib
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mdrelax import potentials
from mdrelax.compiled.training import CompiledTrainingStep
from mdrelax.forces.forcematching import ForceMatching
from mdrelax.forces.loader import Loader, frames_from_data
from mdrelax.method.relaxation import relax_constraints
from mdrelax.packs.nbody.networks import NBodySEGNN
from mdrelax.packs.nbody.task import Displacement, Systems
from mdrelax.packs.smoke.run import windows_of
from mdrelax.packs.smoke.sizes import build_network
from mdrelax.packs.smoke.task import Forecast
from mdrelax.runs.config import load_config
from mdrelax.runs.inputs import load_parts
from mdrelax.runs.untrained import untrained
from mdrelax.training.checkpoint import load_checkpoint
from mdrelax.training.ranks import ALONE, Ranks, joined
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig
from mdrelax.training.trainer import Progress, Trainer
from small_runs import clusters, document, write_frames
from toy_regression import Stop

CUTOFF = 2.1  # Angstrom: between the hydrogens of a cluster, so that structures differ in their edges
STEPS = 20
TRAINING = {  # four batches an epoch, of 5, 5, 5 and 1 structures: one rank has no part of the last
    "steps": STEPS, "batch_size": 5, "validate_every": 8, "dtype": "float64", "ema": 0.9, "warmup_steps": 2,
    "learning_rate": 0.01,
}  # fmt: skip
OFF = {"schedule": "off"}
SEGNN = {"name": "segnn", "arguments": {"channels": 4, "n_layers": 2}}
FORCES: dict[str, dict[str, Any]] = {
    "equiformer, relaxed": {},
    "equiformer, standard": {"relaxation": OFF},
    "segnn, relaxed, in micro-batches": {
        "potential": SEGNN, "training": {"micro_batch_size": 2}, "relaxation": {"penalty_rows": 7},
    },
    "segnn, standard": {"potential": SEGNN, "relaxation": OFF},
    "equiformer, relaxed, compiled": {"training": {"compile": True}},
    "equiformer, standard, compiled for common edges": {
        "training": {"compile": True, "batch_size": 4}, "potential": {"cutoff": 4.0}, "relaxation": OFF,
    },
}  # fmt: skip
NBODY: dict[str, dict[str, Any]] = {
    "n-body, relaxed": {"penalty_rows": 7},
    "n-body, weight penalty": {"penalty": "weight", "weight": 0.1},
    "n-body, standard": OFF,
}
SMOKE: dict[str, dict[str, Any]] = {"smoke, relaxed": {}, "smoke, standard": OFF}


def force_field(name: str, folder: Path, ranks: Ranks, listener: Any = lambda progress: None) -> Trainer:
    """A trainer of force matching on labelled clusters."""
    sections = FORCES[name]
    potential = {"cutoff": CUTOFF, **sections.get("potential", {})}
    training = {**TRAINING, **sections.get("training", {})}
    relaxation = {"schedule": "triangle", "initial_std": 0.05, **sections.get("relaxation", {})}
    data = {"train": 16, "validation": 5, "test": 0}
    source = next(place / "clusters.extxyz" for place in folder.parents if (place / "clusters.extxyz").is_file())
    config = load_config(document(source, data=data, potential=potential, training=training, relaxation=relaxation))
    parts = load_parts(config.data)
    train, validation = (
        frames_from_data(part, cutoff=config.potential.cutoff) for part in (parts.train, parts.validation)
    )
    model = untrained(config, train, parts.isolated_energies, potentials, None).force_field
    if config.relaxation.schedule != "off":
        relax_constraints(model, initial_std=0.05, generator=torch.Generator().manual_seed(ranks.rank))
    loader = Loader(train, batch_size=config.training.batch_size, seed=0)
    task = ForceMatching(loader, validation, config.training, compiler=CompiledTrainingStep)
    return Trainer(
        model, task, training=config.training, relaxation=config.relaxation, folder=folder, listener=listener,
        ranks=ranks,
    )  # fmt: skip


def nbody(name: str, folder: Path, ranks: Ranks, listener: Any = lambda progress: None) -> Trainer:
    """A trainer of the N-body network on random systems; each rank begins with other weights, but for rank 0's."""
    generator = torch.Generator().manual_seed(0)
    x, v, d = torch.randn(3, 21, 5, 3, generator=generator, dtype=torch.float64)
    systems = Systems(x, v, torch.randn(21, 5, generator=generator, dtype=torch.float64).sign(), d)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ranks.rank)
        model = NBodySEGNN(channels=4, n_layers=2).double()
    relaxation = RelaxationConfig(**{"schedule": "triangle", **NBODY[name]})
    if relaxation.schedule != "off":
        relax_constraints(model, initial_std=0.05, generator=torch.Generator().manual_seed(ranks.rank))
    task = Displacement(systems.take(slice(0, 16)), systems.take(slice(16, None)), batch_size=5, noise=0.1)
    settings = OptimisationConfig(**TRAINING)
    return Trainer(model, task, training=settings, relaxation=relaxation, folder=folder, listener=listener, ranks=ranks)


def smoke(name: str, folder: Path, ranks: Ranks, listener: Any = lambda progress: None) -> Trainer:
    """A trainer of relaxed steerable convolutions, which have a constraint of their own, on the shipped plumes."""
    data = windows_of("sample:plume")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(ranks.rank)
        model = build_network("rsteer", "tiny", "C4", n_in=data.split.n_in, size=data.plumes.shape[2:]).double()
    relaxation = RelaxationConfig(**{"schedule": "triangle", **SMOKE[name]})
    if relaxation.schedule != "off":
        relax_constraints(model, initial_std=0.05, generator=torch.Generator().manual_seed(ranks.rank))
    task = Forecast(
        data.plumes, data.split, train=data.train[:15], validation=data.validation[:5], batch_size=5, rotate=True,
        part=2, dtype=torch.float64,
    )  # fmt: skip
    settings = OptimisationConfig(**TRAINING)
    return Trainer(model, task, training=settings, relaxation=relaxation, folder=folder, listener=listener, ranks=ranks)


class Normed(nn.Module):
    """A network with a batch norm that maps vectors to vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5).double()

    def forward(self, positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        """Displacements (M, n, 3)."""
        return positions * self.norm(velocities.norm(dim=2)).unsqueeze(2)


def statistics(folder: Path, ranks: Ranks) -> list[Tensor]:
    """The running mean and variance that the validated network gets, estimated on three batches."""
    subject = nbody("n-body, standard", folder, ranks)
    own = Trainer(
        Normed(), subject.task, training=subject.settings, relaxation=subject.relaxation, folder=folder, ranks=ranks
    )
    norm = own.projected()[0].norm
    return [norm.running_mean, norm.running_var]


def trace(trainer: Trainer) -> dict[str, Tensor]:
    """The gradients of all steps, the weights at the end, and the table."""
    gradients = []
    step = trainer._apply_gradient

    def record() -> None:
        gradients.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]))
        step()

    parameters = list(trainer.model.parameters())
    trainer._apply_gradient = record
    table = trainer.run().metrics.drop(columns="time_s").dropna(axis="columns")
    return {
        "gradient of the first step": gradients[0],
        "gradient of the last step": gradients[-1],
        "weights": torch.cat([p.detach().flatten() for p in parameters]),
        **{column: torch.tensor(table[column].to_numpy(dtype=float)) for column in table},
    }


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the larger of the norm and a millionth."""
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-6)).item()


def compare(name: str, folder: Path, ranks: Ranks) -> dict[str, float] | None:
    """The differences between both trainings of a case."""
    build: Callable[..., Trainer] = force_field if name in FORCES else smoke if name in SMOKE else nbody
    together = trace(build(name, folder / "together", ranks))
    if not ranks.first:
        return None
    alone = trace(build(name, folder / "alone", ALONE))
    return {key: difference(together[key], alone[key]) for key in alone}


def resume(folder: Path, ranks: Ranks) -> dict[str, Any] | None:
    """A run on both ranks is stopped at step 11 and resumed on both, and by rank 0 alone from step 8."""

    def stop(progress: Progress) -> None:
        if progress.step == 11:
            raise Stop

    build = partial(force_field, "equiformer, relaxed")
    for place, listener in (("whole", lambda progress: None), ("parts", stop)):
        with contextlib.suppress(Stop):
            build(folder / place, ranks, listener).run()
    again = build(folder / "parts", ranks)
    again.resume()
    begun = again.step
    if ranks.first:
        alone = build(folder / "parts", ALONE)
        alone.resume()
    again.run()
    if not ranks.first:
        return None
    whole, parts = (load_checkpoint(folder / place / "checkpoints" / "last.pt") for place in ("whole", "parts"))
    alone.run()
    weights = [torch.cat([t.flatten() for t in state["model"].values()]) for state in (whole, parts)]
    return {
        "begun at": begun,
        "same bits": all(torch.equal(tensor, parts["model"][name]) for name, tensor in whole["model"].items()),
        "alone": difference(torch.cat([t.flatten() for t in alone.model.state_dict().values()]), weights[0]),
    }


def main(folder: Path, names: list[str]) -> None:
    """All cases in one process group."""
    with joined() as ranks:
        if ranks.first:
            write_frames(folder / "clusters.extxyz", clusters(21))
        ranks.share(None)
        found: dict[str, Any] = {}
        for name in names:
            if name == "resume":
                found[name] = resume(folder / "resume", ranks)
            elif name == "statistics":
                pairs = zip(statistics(folder, ranks), statistics(folder, ALONE), strict=True)
                found[name] = [difference(ours, theirs) for ours, theirs in pairs]
            else:
                found[name] = compare(name, folder / name.replace(", ", "-"), ranks)
        if ranks.first:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
