"""mdrelax: interatomic potentials trained with relaxed equivariance and projected back to exact symmetry.

The names below are loaded on first use, so that `import mdrelax` and `mdrelax --help` stay fast.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout, potentials/, datasets/ and analysis/ stand next to this package, which contains links to them; in a
# wheel they are nested in it. This finds them where git makes no links.
if not (Path(__file__).parent / "potentials").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from ase import Atoms

    from mdrelax.engines.ase import MDRelaxCalculator
    from mdrelax.engines.committee import CommitteeCalculator
    from mdrelax.forces.forcefield import ForceField
    from mdrelax.forces.symmetry import certify, equivariance_error
    from mdrelax.method.certificate import Certificate
    from mdrelax.method.penalty import penalty, record_inputs
    from mdrelax.method.projection import project
    from mdrelax.method.relaxation import relax_constraints, set_theta
    from mdrelax.method.schedule import Schedule
    from mdrelax.modelfile import load_model, save_model
    from mdrelax.runs.committee import train_committee
    from mdrelax.runs.config import Config
    from mdrelax.runs.train import Outcome
    from mdrelax.training.trainer import Progress

__all__ = [
    "Certificate",
    "CommitteeCalculator",
    "ForceField",
    "MDRelaxCalculator",
    "Schedule",
    "certify",
    "equivariance_error",
    "load_model",
    "penalty",
    "project",
    "record_inputs",
    "relax_constraints",
    "save_model",
    "set_theta",
    "train",
    "train_committee",
]
__version__ = "0.1.0"

_HOMES = {
    "Certificate": "method.certificate",
    "CommitteeCalculator": "engines.committee",
    "ForceField": "forces.forcefield",
    "MDRelaxCalculator": "engines.ase",
    "Schedule": "method.schedule",
    "certify": "forces.symmetry",
    "equivariance_error": "forces.symmetry",
    "load_model": "modelfile",
    "penalty": "method.penalty",
    "project": "method.projection",
    "record_inputs": "method.penalty",
    "relax_constraints": "method.relaxation",
    "save_model": "modelfile",
    "set_theta": "method.relaxation",
    "train_committee": "runs.committee",
}


def __getattr__(name: str) -> Any:
    """The public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module `mdrelax` has no attribute `{name}`")
    return getattr(import_module(f"mdrelax.{_HOMES[name]}"), name)


def train(
    config: "Config | Mapping[str, Any] | str | Path",
    data: "Sequence[Atoms] | str | Path | None" = None,
    *,
    folder: str | Path,
    restart: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    listener: "Callable[[Progress], None]" = lambda progress: None,
) -> "Outcome":
    """Train, project, certify, save and test a potential, as `mdrelax train` does without its MD and report.

    Args:
        config: The settings: a dict with the sections of docs/training.md, a YAML file or the name of a preset.
        data: Labelled structures (ASE atoms; eV and Angstrom unless the config names units), a file, or the name of
            a data set. It replaces ``data.source`` of the config, which is used by default.
        folder: The run folder: checkpoints, metrics, ``network.json``, ``model.safetensors``, ``results.json``.
        restart: Resume from the last checkpoint in the folder, if there is one; the result is that of a run that
            was never stopped. By default a folder that contains a run is refused.
        tell: Called with each line of the log.
        listener: Called after every step; an exception in it ends the run, which can be resumed.

    Returns the model (``fit.model``), its ``certificate``, the errors (``results``) and the ``model_file``. Raises
    ``ConfigError`` for invalid settings, ``ValueError`` for invalid data and ``CertificateError`` if the network is not
    equivariant, each with the remedy.

        frames = ase.io.read("mine.extxyz", ":")
        run = mdrelax.train({"training": {"steps": 2000}}, frames, folder="runs/mine")
        print(run.results["test"]["forces_mae_meV_per_A"])
        atoms.calc = mdrelax.MDRelaxCalculator.from_file(run.model_file)
    """
    from mdrelax import potentials
    from mdrelax.runs.inputs import resolve
    from mdrelax.runs.train import run_training

    structures = None if data is None or isinstance(data, (str, Path)) else data
    return run_training(
        resolve(config, data), Path(folder), potentials, restart=restart, data=structures, tell=tell, listener=listener
    )
