"""Experiment: the parts of a run; and ``run``, the only path from settings to a certified network in a folder.

    enter -> prepare -> relax -> train -> project -> certify -> evaluate -> export

Force fields (``mdrelax.runs.train``) and the task packs (``mdrelax.packs``) are experiments; locks, resuming, parameter
counts, measured cost and the order of the steps are implemented here only. So is what several ranks have to agree on:
all of them call ``run`` with the same experiment, and only the first one touches the folder.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from mdrelax.base.allocator import peak_memory
from mdrelax.base.ambient import default_float32, undisturbed
from mdrelax.base.files import locked_folder, write_atomically
from mdrelax.base.provenance import environment
from mdrelax.base.sections import ConfigError, Section
from mdrelax.method.certificate import Certificate
from mdrelax.method.controllers import Ace
from mdrelax.training.folders import RESULTS, changed_keys
from mdrelax.training.ranks import Ranks, joined, use_gpu
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig, relax
from mdrelax.training.trainer import FitResult, Progress, Task, Trainer

__all__ = ["Experiment", "Finished", "check_device", "run", "run_folder", "seeded", "write_results"]

Model = TypeVar("Model", bound=nn.Module)


class Finished(NamedTuple, Generic[Model]):
    """A run that was trained, projected, measured and tested."""

    fit: FitResult[Model]
    certificate: Certificate
    results: dict[str, Any]  # the content of results.json


class Experiment(Protocol[Model]):
    """The settings of a run and the steps specific to its kind; ``run`` calls the methods in this order."""

    @property
    def settings(self) -> Section:
        """All settings, which every rank must have alike."""

    @property
    def training(self) -> OptimisationConfig:
        """How the network is optimised."""

    @property
    def relaxation(self) -> RelaxationConfig:
        """How the constraint is relaxed."""

    def enter(self, folder: Path, *, restart: bool) -> bool:
        """Write the settings into the run folder; True if there is a checkpoint to resume from.

        Raises ``ConfigError`` for a folder that contains another run, or this one if ``restart`` is off.
        """

    def prepare(self, folder: Path, *, resume: bool, tell: Callable[[str], None]) -> Model:
        """Read the data and build the untrained network, without free maps, from the run's seed (``seeded``)."""

    def task(self, model: Model) -> Task[Model]:
        """The training task; ``model`` is the network of ``prepare``, relaxed by now."""

    def certify(self, fit: FitResult[Model]) -> Certificate:
        """Measure the equivariance of the projected network on some of the data."""

    def evaluate(self, fit: FitResult[Model], folder: Path) -> dict[str, Any]:
        """The errors on validation and test data, and anything else that belongs in results.json."""

    def export(self, folder: Path, finished: Finished[Model]) -> None:
        """Write the model file, if this kind of run has one; raises ``CertificateError`` for a refused network."""


def run(
    experiment: Experiment[Model],
    folder: Path,
    *,
    restart: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    listener: Callable[[Progress], None] = lambda progress: None,
) -> Finished[Model]:
    """Train, project, certify, evaluate and export an experiment in ``folder``.

    Args:
        experiment: The experiment to run.
        folder: The run folder, locked during the run.
        restart: Resume from the folder's last checkpoint, if there is one.
        tell: Called with one line per stage.
        listener: Called after every step; an exception in it ends the run, which can be resumed.

    Of processes that torchrun started, each trains on its part of every batch and returns the same result; only the
    first one writes, and calls ``tell`` and ``listener``.

    Raises ``InUseError`` while another process trains in the folder, ``ConfigError`` for settings that cannot be used,
    ``CertificateError`` for a network that is not equivariant, ``LostRankError`` if another rank ended, and the errors
    of the experiment's own methods.
    """
    device = experiment.training.device
    with joined() as ranks, run_folder(folder, ranks) as own:
        _require_agreement(experiment, ranks)
        use_gpu(device, ranks)
        check_device(device)
        if not ranks.first:
            tell, listener = (lambda line: None), (lambda progress: None)
        with undisturbed(torch.device(device)), torch.enable_grad():
            return _run_in(experiment, own, ranks, restart=restart, tell=tell, listener=listener)


@contextlib.contextmanager
def run_folder(folder: Path, ranks: Ranks) -> Iterator[Path]:
    """The locked run folder on the first rank; on others a temporary one, with copies of its settings and results."""
    with contextlib.ExitStack() as stack:
        if ranks.first:
            stack.enter_context(locked_folder(folder))
        texts = ranks.share({} if ranks.size == 1 else _texts(folder))
        if ranks.first:
            yield folder
            return
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mdrelax-rank-")))
        for name, text in texts.items():
            (own / name).write_bytes(text)
        yield own


def _texts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for kind in ("json", "yaml") for path in folder.glob(f"*.{kind}")}


def _require_agreement(experiment: Experiment[Model], ranks: Ranks) -> None:
    """Raise ``ConfigError`` if this rank has other settings than rank 0, or if there are more ranks than structures."""
    own = experiment.settings.model_dump(mode="json")
    if changed := changed_keys(ranks.share(own), own):
        raise ConfigError(
            f"Rank {ranks.rank} has another config than rank 0 (rank 0 -> rank {ranks.rank}); start all ranks with the "
            "same one:\n  " + "\n  ".join(changed)
        )
    if experiment.training.batch_size < ranks.size:
        error = ConfigError(
            f"`training.batch_size` is {experiment.training.batch_size}, fewer structures than there are ranks, "
            f"{ranks.size}: take a larger batch, or fewer ranks."
        )
        raise ranks.one_sentence(error)


def _require_same_data(folder: Path, ranks: Ranks) -> None:
    """Raise ``ConfigError`` if this rank has read or split other data than rank 0."""
    path = folder / "split.json"
    own = path.read_text() if path.is_file() else None
    if ranks.share(own) != own:
        raise ConfigError(
            f"Rank {ranks.rank} has read other data than rank 0 (their hashes in split.json differ): give every "
            "machine the same files."
        )


def _run_in(
    experiment: Experiment[Model],
    folder: Path,
    ranks: Ranks,
    *,
    restart: bool,
    tell: Callable[[str], None],
    listener: Callable[[Progress], None],
) -> Finished[Model]:
    """``run`` in a folder that is locked."""
    training = experiment.training
    with ranks.in_turn():
        resume = experiment.enter(folder, restart=restart)
    resume = ranks.share(resume)
    with ranks.in_turn():  # the first one fetches or makes the data
        model = experiment.prepare(folder, resume=resume, tell=tell)
    _require_same_data(folder, ranks)
    n_parameters = sum(p.numel() for p in model.parameters())
    placement = relax(model, experiment.relaxation, seed=training.seed)
    tell(f"{n_parameters:,} parameters." if placement is None else str(placement))
    trainer = Trainer(
        model, experiment.task(model), training=training, relaxation=experiment.relaxation, folder=folder,
        listener=listener, ranks=ranks,
    )  # fmt: skip
    if ranks.size > 1:
        tell(f"{ranks.size} ranks, each with its part of every batch.")
    if resume:
        trainer.resume()
        tell(f"Resumed at step {trainer.step} of {trainer.n_steps}.")
    fit = trainer.run()
    n_free = 0 if placement is None else placement.n_free
    theta_at_end = trainer.controller.theta_at_end() if placement is not None else 0.0
    if isinstance(trainer.controller, Ace):
        tell(f"ACE: {trainer.controller.in_words()}.")
    facts = {
        "n_parameters": n_parameters, "n_free_parameters": n_free, "theta_at_end": theta_at_end, "ranks": ranks.size
    }  # fmt: skip
    finished = _finish(experiment, fit, folder, facts) if ranks.first else None
    certified: Any = ranks.share(None if finished is None else finished[1:])
    return Finished(fit, *certified)


def _finish(
    experiment: Experiment[Model], fit: FitResult[Model], folder: Path, facts: dict[str, Any]
) -> Finished[Model]:
    """Certify, evaluate and export the trained network; ``facts`` are further entries of results.json."""
    training = experiment.training
    certificate = experiment.certify(fit)
    results = {
        **facts, "steps": fit.steps, "best_step": fit.best_step, "seconds": fit.seconds,
        "cpu_seconds": fit.cpu_seconds, "peak_MB": peak_memory(), "certificate": certificate.to_dict(),
        "environment": environment(device=training.device, seed=training.seed), **experiment.evaluate(fit, folder),
    }  # fmt: skip
    write_results(folder, results)
    finished = Finished(fit, certificate, results)
    experiment.export(folder, finished)
    return finished


def seeded(build: Callable[[], Model], seed: int) -> Model:
    """The network that ``build`` returns with torch's generator set to a seed; its state is restored afterwards."""
    with torch.random.fork_rng(devices=[]), default_float32():
        torch.manual_seed(seed)
        return build()


def check_device(device: str) -> None:
    """Raise ``ConfigError`` for a device that this machine or this torch does not have."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"`training.device: {device}` cannot be used here ({first}); take `cpu`.") from error


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json atomically."""
    write_atomically(folder / RESULTS, json.dumps(results, indent=2).encode())
