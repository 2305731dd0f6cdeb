"""MDRelaxCalculator: a projected model as an ASE calculator.

    atoms.calc = MDRelaxCalculator.from_file("model.safetensors")  # compile=True: slow start, faster steps
    atoms.calc = MDRelaxCalculator.from_compiled("model.pt2")  # from `mdrelax export`; RUNS THE CODE in the file

Energies in eV, forces in eV/A, stress in eV/A^3 (ASE's sign and Voigt order xx, yy, zz, yz, xz, xy). Only a model that
is exactly equivariant may drive a simulation, so a model with relaxed layers, or without its certificate, is refused.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms

from mdrelax.compiled import compile_force_field, load_compiled
from mdrelax.engines.calculators import ModelCalculator, refuse_other_devices
from mdrelax.engines.hessian import hessian, hessian_products
from mdrelax.engines.results import (
    Results,
    UnprojectedModelError,
    arrays_of,
    check_structure,
    split_prediction,
)
from mdrelax.forces.forcefield import ForceField
from mdrelax.modelfile import load_model
from mdrelax.structures.graph import Graph

__all__ = ["MDRelaxCalculator", "UnprojectedModelError"]

NOT_CONSERVATIVE = (
    "This model predicts forces directly (`forces: direct`): they are not the gradient of its energy, so an NVE run "
    "drifts and there is no stress. Train with `forces: gradient` for simulations."
)


class MDRelaxCalculator(ModelCalculator):
    """Energy, free energy, per-atom energies, forces and (for cells with a volume) stress.

    ``dtype`` is the network's precision, ``"float32"`` or ``"float64"``; ``None`` keeps the model's own. ``skin``
    (Angstrom) is the reach of the Verlet list beyond the cut-off. The force field is copied: later training does not
    change the calculator. One calculator may serve several ``Atoms``.

    A model with direct forces warns that they are not conservative, and has no stress. Dispersion (``D3``) that the
    model asks for is added to all results; per-atom energies then cost a second pass of it when they are requested.

    With ``keep_memory`` the first calculator changes one setting of the whole process: the C library (glibc) retains
    the memory that a step frees for the next one, up to the peak so far, instead of returning it to the system. Steps
    are a tenth to a third faster, and no result changes. With ``False`` the process is not changed. Nothing else
    outside the calculator is changed: neither torch's default dtype, nor its threads, nor any random generator.

    Raises ``UnprojectedModelError`` for a model with relaxed layers, ``ValueError`` for a device or ``dtype`` that
    cannot be used, ``ImportError`` if the model's dispersion needs a library that is missing. Calculations raise
    ``ValueError`` for no atoms, positions that are not finite, coinciding atoms and singular periodic cells,
    ``UnknownElementError`` for an element without training data, and ``PropertyNotImplementedError`` for the stress of
    a system without volume.
    """

    def __init__(
        self,
        force_field: ForceField,
        *,
        dtype: str | None = None,
        device: str | torch.device = "cpu",
        skin: float = 0.5,
        certificate: Any = None,
        keep_memory: bool = True,
    ) -> None:
        super().__init__([force_field], dtype=dtype, device=device, skin=skin, keep_memory=keep_memory)
        self.certificate = certificate
        if not self.conservative:
            warnings.warn(NOT_CONSERVATIVE, stacklevel=2)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        dtype: str | None = None,
        device: str | torch.device = "cpu",
        skin: float = 0.5,
        compile: bool = False,
        keep_memory: bool = True,
    ) -> "MDRelaxCalculator":
        """The calculator of a finished model file, whose certificate holds; raises the errors of ``load_model``.

        ``compile=True`` compiles the network for this process, which takes a minute or more and needs a C++
        compiler, and raises ``CompileError`` if that fails or the numbers differ (see
        ``mdrelax.compiled.compile_force_field``).
        """
        if compile:
            refuse_other_devices(device)
        model = load_model(path)
        force_field = compile_force_field(model.force_field, dtype=dtype) if compile else model.force_field
        return cls(
            force_field, dtype=dtype, device=device, skin=skin, certificate=model.certificate, keep_memory=keep_memory
        )

    @classmethod
    def from_compiled(
        cls, path: str | Path, *, sha256: str | None = None, skin: float = 0.5, keep_memory: bool = True
    ) -> "MDRelaxCalculator":
        """The calculator of a `.pt2` file, which RUNS THE CODE IN IT: use only files that you made or trust.

        ``sha256`` is the hash of the only file that is accepted. Raises the errors of
        ``mdrelax.compiled.load_compiled``.
        """
        model = load_compiled(path, sha256=sha256)
        return cls(model.force_field, skin=skin, certificate=model.certificate, keep_memory=keep_memory)

    @property
    def force_field(self) -> ForceField:
        """The calculator's own copy of the force field."""
        return self.members[0]

    def get_hessian(self, atoms: Atoms | None = None) -> npt.NDArray[np.float64]:
        """Exact second derivatives (N, 3, N, 3) of the energy with respect to positions, in eV/A^2 and float64.

        ``VibrationsData(atoms, calculator.get_hessian(atoms))`` gives frequencies, ``.reshape(3 * N, 3 * N)`` a
        matrix. Constraints are not considered. Raises ``ValueError`` for models with direct forces and compiled models.
        """
        structure = check_structure(self.atoms if atoms is None else atoms, ())
        found = hessian(self.force_field, self._graph_of(structure).to(self.device))
        return found if self.dispersion is None else found + self.dispersion.hessian(*arrays_of(structure))

    def get_hessian_products(self, atoms: Atoms, directions: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Products (R, N, 3) of the Hessian with directions (R, N, 3), in eV/A^2; errors as in ``get_hessian``."""
        found = hessian_products(self.force_field, self._graph_of(atoms).to(self.device), directions)
        if self.dispersion is None:
            return found
        return found + np.einsum("kalb,rlb->rka", self.dispersion.hessian(*arrays_of(atoms)), np.asarray(directions))

    def _predicted(self, graph: Graph, sizes: Sequence[int], volumes: Sequence[bool]) -> list[Results]:
        return split_prediction(self.force_field(graph, stress=any(volumes)), sizes, volumes)
