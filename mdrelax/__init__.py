"""mdrelax: interatomic potentials trained with relaxed equivariance and projected back to exact symmetry.

The names below are loaded when they are first used: `import mdrelax` and `mdrelax --help` stay fast.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A checkout keeps the rooms potentials/, datasets/ and analysis/ beside this package; a wheel nests them inside.
if not (Path(__file__).parent / "potentials").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from mdrelax.engines.ase import MDRelaxCalculator
    from mdrelax.forces.forcefield import ForceField
    from mdrelax.forces.symmetry import certify, equivariance_error
    from mdrelax.method.certificate import Certificate
    from mdrelax.method.penalty import penalty, record_inputs
    from mdrelax.method.projection import project
    from mdrelax.method.relaxation import relax_constraints, set_theta
    from mdrelax.method.schedule import Schedule
    from mdrelax.modelfile import load_model, save_model

__all__ = [
    "Certificate",
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
]
__version__ = "0.1.0"

_HOMES = {
    "Certificate": "method.certificate",
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
}


def __getattr__(name: str) -> Any:
    """The public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module `mdrelax` has no attribute `{name}`")
    return getattr(import_module(f"mdrelax.{_HOMES[name]}"), name)
