"""D3(BJ) dispersion (Grimme et al. 2010 and 2011), computed by the library s-dftd3 (extra ``dispersion``).

    label = E_learnt + E_D3           so a network is trained on label - E_D3, and a calculator adds E_D3 again

(labels without dispersion, ``Physics.dispersion_in_labels = False``, are learnt as they are).

The library sums pairs up to 60 bohr, far beyond a network's cut-off, without its three-body term. It has no tensors:
dispersion is added where whole structures are known, by calculators, and to the predictions of an evaluation.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from ase import units
from ase.cell import Cell

from mdrelax.forces.metrics import Predictions

if TYPE_CHECKING:
    from dftd3.interface import DispersionModel

__all__ = ["D3", "Dispersion", "with_dispersion", "without_dispersion"]

Array = npt.NDArray[np.float64]


class Dispersion(NamedTuple):
    """The dispersion of one structure."""

    energy: float  # eV
    forces: Array  # (N, 3) eV/Angstrom
    stress: Array | None  # (3, 3) eV/Angstrom^3, ASE's sign; None without a volume


class D3:
    """D3 dispersion with Becke-Johnson damping for a functional, such as ``"PBE"``.

    Raises ``ImportError`` with the command that installs the library if it is missing, and ``ValueError`` for a
    functional that it has no parameters for.
    """

    def __init__(self, functional: str) -> None:
        try:
            from dftd3.interface import RationalDampingParam
        except ImportError as error:
            raise ImportError(
                f"The D3 dispersion of this model ({functional}) needs s-dftd3; install it with "
                "`pip install 'mdrelax[dispersion]'`."
            ) from error
        self.functional = functional
        try:
            self._damping = RationalDampingParam(method=functional)
        except RuntimeError as error:
            raise ValueError(
                f"s-dftd3 has no D3(BJ) parameters for `{functional}`; name a functional such as PBE, B3LYP or PBE0."
            ) from error

    def __call__(self, numbers: Array, positions: Array, cell: Array, pbc: Array) -> Dispersion:
        """Energy, forces and stress of a structure in Angstrom: (N,), (N, 3), (3, 3), (3,)."""
        found = _model(numbers, positions, cell, pbc).get_dispersion(self._damping, grad=True)
        volume = abs(float(np.linalg.det(cell)))
        return Dispersion(
            float(found["energy"]) * units.Hartree,
            -found["gradient"] * (units.Hartree / units.Bohr),
            found["virial"] * (units.Hartree / volume) if volume > 0 else None,
        )

    def energies(self, numbers: Array, positions: Array, cell: Array, pbc: Array) -> Array:
        """Energies (N,) in eV of the atoms, half of each of their pairs."""
        pairs = _model(numbers, positions, cell, pbc).get_pairwise_dispersion(self._damping)
        return sum(pairs.values()).sum(axis=1) * units.Hartree

    def hessian(self, numbers: Array, positions: Array, cell: Array, pbc: Array) -> Array:
        """Second derivatives (N, 3, N, 3) of the energy in eV/Angstrom^2."""
        found = _model(numbers, positions, cell, pbc).get_hessian(self._damping)["hessian"]
        return found.reshape(len(numbers), 3, len(numbers), 3) * (units.Hartree / units.Bohr**2)


def _model(numbers: Array, positions: Array, cell: Array, pbc: Array) -> "DispersionModel":
    from dftd3.interface import DispersionModel

    periodic = np.asarray(pbc, dtype=bool)
    lattice = Cell(np.asarray(cell)).complete().array / units.Bohr if periodic.any() else None
    return DispersionModel(
        np.asarray(numbers), np.asarray(positions) / units.Bohr, lattice, periodic if periodic.any() else None
    )


def without_dispersion(frames: Iterable[Any], functional: str | None) -> list[Any]:
    """Labelled frames (``mdrelax.datasets.frames``) whose labels are what remains to be learnt, as copies.

    Without a functional, the frames themselves. Raises as ``D3``.
    """
    if functional is None:
        return list(frames)
    d3 = D3(functional)
    return [_less(frame, _of(frame, d3)) for frame in frames]


def with_dispersion(predictions: Predictions, frames: Sequence[Any], functional: str | None) -> Predictions:
    """Whole labels and predictions from those of ``without_dispersion``; errors are the same."""
    if functional is None:
        return predictions
    d3 = D3(functional)
    parts = [_of(frame, d3) for frame in frames]
    forces = np.concatenate([part.forces for part in parts])
    nothing = np.zeros((3, 3))
    added = {
        "energy": np.array([part.energy for part in parts]),
        "forces": forces,
        "stress": np.stack([nothing if part.stress is None else part.stress for part in parts]),
    }
    fields = [f"{name}_{side}" for name in added for side in ("true", "pred")]
    known = [field for field in fields if getattr(predictions, field) is not None]
    return predictions._replace(**{field: getattr(predictions, field) + added[field[:6]] for field in known})


def _of(frame: Any, d3: D3) -> Dispersion:
    return d3(frame.z.numpy(), frame.pos.numpy(), frame.cell[0].numpy(), frame.pbc[0].numpy())


def _less(frame: Any, part: Dispersion) -> Any:
    less = frame.clone()
    if "energy" in less:
        less.energy = less.energy - part.energy
    if "forces" in less:
        less.forces = less.forces - torch.from_numpy(part.forces)
    if "stress" in less and part.stress is not None:
        less.stress = less.stress - torch.from_numpy(part.stress)
    return less
