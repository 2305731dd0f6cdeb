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
from ase.calculators.calculator import Calculator, all_changes

from mdrelax.base.allocator import keep_freed_memory
from mdrelax.base.places import frame_name, naming
from mdrelax.compiled import compile_force_field, load_compiled
from mdrelax.engines.hessian import hessian, hessian_products
from mdrelax.engines.results import (
    Results,
    add_dispersion,
    arrays_of,
    changes,
    check_structure,
    graph_of_one,
    has_volume,
    own_copy,
    split_prediction,
)
from mdrelax.forces.dispersion import D3
from mdrelax.forces.forcefield import ForceField
from mdrelax.method.relaxation import relaxed_layers
from mdrelax.modelfile import load_model
from mdrelax.structures.graph import Graph, collate
from mdrelax.structures.neighbors import VerletList

__all__ = ["MDRelaxCalculator", "UnprojectedModelError", "refuse_relaxed"]

NOT_CONSERVATIVE = (
    "This model predicts forces directly (`forces: direct`): they are not the gradient of its energy, so an NVE run "
    "drifts and there is no stress. Train with `forces: gradient` for simulations."
)


class UnprojectedModelError(ValueError):
    """A model that was not projected to exact equivariance, or not certified."""


class MDRelaxCalculator(Calculator):
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

    # ASE's interface: mutable, and declared on the instance.
    implemented_properties: list[str] = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    ignored_changes: set[str] = {"initial_charges", "initial_magmoms"}  # noqa: RUF012 (the model does not read these)

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
        super().__init__()
        if keep_memory:
            keep_freed_memory()
        refuse_relaxed(force_field)
        self.force_field = own_copy(force_field, dtype, device)
        self.device = device
        self.certificate = certificate
        if not force_field.conservative:
            self.implemented_properties = [name for name in self.implemented_properties if name != "stress"]
            warnings.warn(NOT_CONSERVATIVE, stacklevel=2)
        self.neighbors = VerletList(force_field.cutoff, skin)
        functional = force_field.physics.dispersion
        self.dispersion = None if functional is None else D3(functional)

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
        if compile and torch.device(device).type != "cpu":
            raise ValueError(f"Models are compiled for the CPU only, got the device `{device}`; leave out `compile`.")
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
    def members(self) -> list[ForceField]:
        """The force field, as the only member of a committee."""
        return [self.force_field]

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """The changes since the last calculation, bitwise: ASE's comparison costs more than a small network."""
        return changes(self.atoms, atoms)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Calculate all properties of ``atoms`` into ``self.results``; ASE's cache decides when this is called."""
        structure = check_structure(self.atoms if atoms is None else atoms, properties)
        self.atoms = structure.copy()  # reference of ``check_state``
        self.results = {}  # so that an error below does not leave the results of another structure
        graph = self._graph_of(structure)
        (self.results,) = self._evaluate(graph, [structure], energies="energies" in properties)

    def calculate_many(
        self, structures: Sequence[Atoms], *, batch_size: int = 32, source: str | None = None
    ) -> list[Results]:
        """The results of many structures, ``batch_size`` per pass of the network; a dict for each.

        Leaves the cache alone. Errors as in ``calculate``, each begins with "Frame 7: ", counted from 0, or with
        "Frame 7 of `x.extxyz`: " if ``source`` names the file of the structures.
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be >= 1, got {batch_size}.")
        results: list[Results] = []
        for start in range(0, len(structures), batch_size):
            chunk = structures[start : start + batch_size]
            graphs = []
            for number, atoms in enumerate(chunk, start):
                with naming(frame_name(number, source)):
                    graphs.append(graph_of_one(atoms, self.force_field, self.device))
            results += self._evaluate(collate(graphs), chunk, energies=True)
        return results

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

    def _graph_of(self, atoms: Atoms) -> Graph:
        return self.neighbors.graph(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)

    def _evaluate(self, graph: Graph, structures: Sequence[Atoms], *, energies: bool) -> list[Results]:
        """The results of each structure; with dispersion, those of its atoms only on request."""
        volumes = [self.force_field.conservative and has_volume(atoms) for atoms in structures]
        prediction = self.force_field(graph.to(self.device), stress=any(volumes))
        results = split_prediction(prediction, [len(atoms) for atoms in structures], volumes)
        for atoms, result in zip(structures, results, strict=True):
            add_dispersion(self.dispersion, atoms, result, energies=energies)
        return results


def refuse_relaxed(force_field: ForceField) -> None:
    """Raise ``UnprojectedModelError`` for a model that still has free maps."""
    relaxed = list(relaxed_layers(force_field))
    if relaxed:
        raise UnprojectedModelError(
            f"The model still has {len(relaxed)} relaxed layers (the first: `{relaxed[0]}`), so its forces are not "
            "equivariant; call `project(model)` first."
        )
