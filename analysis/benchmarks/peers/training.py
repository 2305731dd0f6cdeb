"""Training of a peer within a budget of CPU time: `python -m peers.mace_training FOLDER`, in the peer's environment.

| file in the folder | content |
| --- | --- |
| task.json | ``data`` (path of an .npz), ``budget`` (CPU seconds), ``seed`` |
| checkpoint.pt | the state after the last validation; a run that was killed resumes from it |
| predictions.npz | ``energies`` (G,) eV and ``forces`` (G, n, 3) eV/A of the test frames, by the selected network |
| trained.json | CPU seconds, steps, epochs, parameters, validation loss, recipe and versions; written last |

The data are G frames of one molecule in eV and Angstrom: ``numbers`` (n,), ``train_positions`` (G, n, 3),
``train_energies`` (G,), ``train_forces`` (G, n, 3), likewise ``validation_``, and ``test_positions``: test labels are
not given to a worker.

The packages' own trainers count epochs, and their schedules wait for epochs without improvement. Neither can be held to
a given CPU time, so model, loss, optimiser and batches are the package's, and the loop is this one: progress is the
fraction of the budget that was spent, and the learning rate follows it. CPU time counts from the first step, with
compilation (TorchScript's too), validation and averaging; imports, reading of data and the test are not part of it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms
from torch import Tensor, nn

__all__ = ["Frames", "Molecule", "Recipe", "Setup", "labelled_atoms", "main"]

VALIDATIONS = 50  # in a run at most,
VALIDATION_SHARE = 0.05  # of the budget at most
PARENT = "MDRELAX_PARENT"  # environment variable: the process that waits for this run
LONGEST_WARM_UP = 0.05  # of the budget
FITTED = 200  # training frames that the constant of the energies is fitted to
EVALUATED = 10  # frames at once, in validation and test

Array = npt.NDArray[np.float64]


class Frames(NamedTuple):
    """Frames of a molecule; energies are relative to the mean of the training frames."""

    positions: Array  # (G, n, 3), A
    energies: Array  # (G,), eV; zeros without labels
    forces: Array  # (G, n, 3), eV/A


class Molecule(NamedTuple):
    """The data of a run."""

    numbers: npt.NDArray[np.int64]  # (n,)
    train: Frames
    validation: Frames
    test: Frames  # without labels
    mean_energy: float  # of the training frames, eV: in single precision the energies themselves have steps of 0.2 meV


class Recipe(NamedTuple):
    """How a network is trained; a rate at progress p, from 0 to 1, is ``rates[0] * (rates[1] / rates[0]) ** p``.

    ``stage_two`` is the progress at which a second stage with a loss of its own begins, at the rate ``rates[1]``.
    """

    network: str
    batch_size: int
    rates: tuple[float, float]
    optimizer: str
    loss: str
    source: str  # where it is recommended
    ema: float = 0.0  # of the weights; 0: none
    warmup_steps: int = 0
    gradient_clip: float = 0.0  # of the norm; 0: none
    stage_two: float = 1.0

    def rate(self, progress: float, step: int) -> float:
        """The learning rate of a step."""
        first, last = self.rates
        shape = last if progress >= self.stage_two else first * (last / first) ** (progress / self.stage_two)
        return shape * min(1.0, max((step + 1) / max(1, self.warmup_steps), progress / LONGEST_WARM_UP))


class Setup(NamedTuple):
    """A package's network and everything that trains it. A batch is whatever ``collate`` returns for some frames."""

    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    frames: Callable[[Frames], list[Any]]
    collate: Callable[[Sequence[Any]], Any]
    loss: Callable[[Any, int], Tensor]  # of a batch in stage 1 or 2
    predict: Callable[[Any], tuple[Tensor, Tensor]]  # energies (G,) and forces (G n, 3)
    unit: float = 1.0  # eV in the package's unit of energy


class Run:
    """A training run: its state, and the loop over it."""

    def __init__(self, setup: Setup, molecule: Molecule, *, budget: float, seed: int, folder: Path) -> None:
        self.setup, self.budget, self.seed, self.folder = setup, budget, seed, folder
        self.train = setup.frames(molecule.train)
        self.validation = _groups(setup, setup.frames(molecule.validation))
        self.step = self.best_step = self.checked = 0  # checked: the step of the last validation,
        self.checked_at = 0.0  # and its CPU second
        self.best = [0.0, float("inf")]  # stage, validation loss
        self.average = {name: p.detach().clone() for name, p in setup.model.named_parameters()}
        self.chosen = self.average
        self.spent, self.started = 0.0, time.process_time()
        self.cost_of_step = self.cost_of_validation = 0.0

    def seconds(self) -> float:
        """CPU seconds since the first step, without interruptions."""
        return self.spent + time.process_time() - self.started

    def fit(self) -> None:
        """Train until the next step and a last validation would exceed the budget."""
        while self.step == 0 or self.seconds() + self.cost_of_step + self.cost_of_validation < self.budget:
            _end_with_parent()
            before = self.seconds()
            progress = min(1.0, before / self.budget)
            self._step(progress)
            self.cost_of_step = self.seconds() - before if self.step > 3 else 0.0  # the first ones compile
            if self.seconds() - self.checked_at >= self._interval():
                self._validate(progress)
                self._save()
        if self.checked != self.step:
            self._validate(min(1.0, self.seconds() / self.budget))
            self._save()

    def _interval(self) -> float:
        """CPU seconds between validations."""
        return max(self.budget / VALIDATIONS, self.cost_of_validation / VALIDATION_SHARE)

    def _step(self, progress: float) -> None:
        setup, recipe = self.setup, self.setup.recipe
        for group in setup.optimizer.param_groups:
            group["lr"] = recipe.rate(progress, self.step)
        setup.model.train()
        setup.optimizer.zero_grad(set_to_none=True)
        loss = setup.loss(setup.collate(self._next()), self._stage(progress))
        loss.backward()
        if recipe.gradient_clip:
            torch.nn.utils.clip_grad_norm_(setup.model.parameters(), recipe.gradient_clip)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}")
        setup.optimizer.step()
        self.step += 1
        decay = min(recipe.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in setup.model.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)

    def _stage(self, progress: float) -> int:
        return 2 if progress >= self.setup.recipe.stage_two else 1

    def _next(self) -> list[Any]:
        """The frames of the next batch; the order follows from seed and epoch. A last part is left out."""
        size = min(self.setup.recipe.batch_size, len(self.train))
        epoch, number = divmod(self.step, len(self.train) // size)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.train))
        return [self.train[i] for i in order[number * size : (number + 1) * size]]

    def epochs(self) -> float:
        """Passes over the training frames."""
        size = min(self.setup.recipe.batch_size, len(self.train))
        return self.step / (len(self.train) // size)

    def _validate(self, progress: float) -> None:
        """Keep the averaged weights if their validation loss is the smallest of this stage."""
        before, stage = self.seconds(), self._stage(progress)
        with self.weights(self.average):
            loss = float(np.mean([self.setup.loss(batch, stage).item() for batch in self.validation]))
        if stage > self.best[0] or loss < self.best[1]:
            self.best, self.best_step = [stage, loss], self.step
            self.chosen = {name: value.clone() for name, value in self.average.items()}
        self.checked, self.checked_at = self.step, self.seconds()
        self.cost_of_validation = self.checked_at - before

    @contextmanager
    def weights(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the context the network is in evaluation mode and has these weights."""
        own = {name: p.detach().clone() for name, p in self.setup.model.named_parameters()}
        self._load(weights)
        self.setup.model.eval()
        try:
            yield
        finally:
            self._load(own)

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.setup.model.named_parameters():
                parameter.copy_(weights[name])

    # --- a killed run resumes ---

    def _save(self) -> None:
        state = {
            "weights": self.setup.model.state_dict(), "optimizer": self.setup.optimizer.state_dict(),
            "average": self.average, "chosen": self.chosen, "step": self.step, "checked": self.checked,
            "checked_at": self.checked_at, "cost_of_validation": self.cost_of_validation,
            "best": self.best, "best_step": self.best_step, "spent": self.seconds(),
        }  # fmt: skip
        part = self.folder / "checkpoint.part"
        torch.save(state, part)
        part.replace(self.folder / "checkpoint.pt")

    def resume(self) -> None:
        """Continue from the checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if path.is_file():
            state = torch.load(path, weights_only=True)
            self.setup.model.load_state_dict(state.pop("weights"))
            self.setup.optimizer.load_state_dict(state.pop("optimizer"))
            vars(self).update(state)
            self.started = time.process_time()


def _end_with_parent() -> None:
    """The runs of a killed study do not continue in the folders that the repeated command uses."""
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        raise SystemExit("the process that started this run has ended")


def _groups(setup: Setup, frames: Sequence[Any]) -> list[Any]:
    return [setup.collate(frames[k : k + EVALUATED]) for k in range(0, len(frames), EVALUATED)]


def read_molecule(path: Path) -> Molecule:
    """The data of a run."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    mean = float(arrays["train_energies"].mean())

    def part(name: str) -> Frames:
        positions = arrays[f"{name}_positions"]
        energies = arrays.get(f"{name}_energies", np.full(len(positions), mean)) - mean
        return Frames(positions, energies, arrays.get(f"{name}_forces", np.zeros_like(positions)))

    return Molecule(arrays["numbers"], part("train"), part("validation"), part("test"), mean)


def labelled_atoms(molecule: Molecule, frames: Frames) -> list[Atoms]:
    """ASE's atoms with the labels ``REF_energy`` (info, eV) and ``REF_forces`` (arrays, eV/A)."""
    found = []
    for positions, energy, forces in zip(*frames, strict=True):
        atoms = Atoms(molecule.numbers, positions)
        atoms.info["REF_energy"] = float(energy)
        atoms.arrays["REF_forces"] = forces
        found.append(atoms)
    return found


def evaluated(run: Run, frames: Frames) -> tuple[Array, Array]:
    """Energies (G,) and forces (G, n, 3) of some frames by the selected network, eV and eV/A."""
    setup, energies, forces = run.setup, [], []
    with run.weights(run.chosen):
        for batch in _groups(setup, setup.frames(frames)):
            energy, force = setup.predict(batch)
            energies.append(energy.detach().double().flatten().numpy())
            forces.append(force.detach().double().numpy())
    whole = np.concatenate(forces).reshape(frames.positions.shape)
    return setup.unit * np.concatenate(energies), setup.unit * whole


def predictions(run: Run, molecule: Molecule) -> tuple[Array, Array]:
    """Energies (G,) in eV and forces (G, n, 3) in eV/A of the test frames.

    The constant of the energies is that which fits training frames, as in our own runs: while the weights move, the
    mean of all energies wanders by more than the energies scatter about it.
    """
    known = Frames(*(array[:FITTED] for array in molecule.train))
    shift = float(np.mean(known.energies - evaluated(run, known)[0]))
    energies, forces = evaluated(run, molecule.test)
    return energies + shift + molecule.mean_energy, forces


def main(prepare: Callable[[Molecule, int], Setup], packages: Sequence[str]) -> None:
    """The run in the folder that the command names; ``prepare(molecule, seed)`` builds the network."""
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    molecule = read_molecule(Path(task["data"]))
    setup = prepare(molecule, task["seed"])
    run = Run(setup, molecule, budget=task["budget"], seed=task["seed"], folder=folder)
    run.resume()
    run.fit()
    seconds = run.seconds()
    energies, forces = predictions(run, molecule)
    np.savez(folder / "predictions.npz", energies=energies, forces=forces)
    found = {
        "cpu_seconds": seconds, "steps": run.step, "epochs": run.epochs(), "best_step": run.best_step,
        "n_parameters": sum(p.numel() for p in setup.model.parameters() if p.requires_grad),
        "validation_loss": run.best[1], "recipe": setup.recipe._asdict(),
        "versions": {name: metadata.version(name) for name in packages},
    }  # fmt: skip
    part = folder / "trained.part"
    part.write_text(json.dumps(found, indent=1))
    part.replace(folder / "trained.json")
