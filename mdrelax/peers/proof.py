"""Proof: a projected peer is as equivariant as the original, measured by the peer's own calculator.

For random operations g of structures x, with forces F and energy E,

    max |F(g x) - g F(x)| / F_rms        |E(g x) - E(x)| / |E(x)|        the larger of the two counts

These are errors of rounding in the peer's own precision, which its tables of Clebsch-Gordan coefficients may limit even
in float64; hence they are compared with those of the original network, not with an absolute limit alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from ase import Atoms
from ase.calculators.calculator import Calculator

from mdrelax.method.certificate import LARGEST_ERROR_FLOAT32, CertificateError, EquivarianceError
from mdrelax.method.projection import LayerRecord

__all__ = ["PeerProof", "require_proof", "symmetry_errors", "turned"]

SMALLEST_FORCE = 1e-2  # eV/A: of structures at rest
TIMES_ORIGINAL = 3.0  # rounding differs from network to network
Array = npt.NDArray[np.float64]


class PeerProof(NamedTuple):
    """The errors of both networks under rotations, reflections, translations and permutations."""

    symmetry: str  # "E(3)", or "SE(3)" (no reflections)
    original: EquivarianceError
    projected: EquivarianceError
    n_structures: int
    layers: list[LayerRecord]

    @property
    def limit(self) -> float:
        """1e-4, or three times the original's error if that is larger."""
        return max(LARGEST_ERROR_FLOAT32, TIMES_ORIGINAL * self.original.worst(reflections=self.symmetry == "E(3)"))

    @property
    def passed(self) -> bool:
        """Whether the projected network is within the limit."""
        return self.projected.worst(reflections=self.symmetry == "E(3)") <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers for JSON."""
        return {
            "symmetry": self.symmetry, "original": self.original._asdict(), "projected": self.projected._asdict(),
            "limit": self.limit, "n_structures": self.n_structures, "passed": self.passed,
            "layers": [layer._asdict() for layer in self.layers],
        }  # fmt: skip


def require_proof(proof: PeerProof) -> PeerProof:
    """The proof if it passed; raises ``CertificateError`` with both errors otherwise."""
    if proof.passed:
        return proof
    reflections = proof.symmetry == "E(3)"
    raise CertificateError(
        f"The projected network is not {proof.symmetry}-equivariant: largest relative error "
        f"{proof.projected.worst(reflections=reflections):.1e}, where the original has "
        f"{proof.original.worst(reflections=reflections):.1e} and {proof.limit:.0e} is allowed."
    )


def turned(atoms: Atoms, matrix: Array) -> Atoms:
    """A copy in another pose: positions and cell x -> g x; arrays and info are those of the original."""
    copy = atoms.copy()
    copy.set_cell(np.asarray(atoms.cell) @ matrix.T, scale_atoms=False)
    copy.positions = atoms.positions @ matrix.T
    return copy


def symmetry_errors(
    calculator: Calculator, structures: Sequence[Atoms], *, n_operations: int = 2, seed: int = 0
) -> EquivarianceError:
    """The largest relative errors of energies and forces over structures and random operations."""
    stream, errors = np.random.default_rng(seed), []
    for atoms in structures:
        energy, forces = _evaluate(calculator, atoms)
        scale = max(np.sqrt(np.mean(forces**2)), SMALLEST_FORCE)
        for _ in range(n_operations):
            q = np.linalg.qr(stream.normal(size=(3, 3)))[0]
            rotation, order, moved = q * np.linalg.det(q), stream.permutation(len(atoms)), atoms.copy()
            moved.positions += stream.normal(size=3)
            tried = [
                (turned(atoms, rotation), forces @ rotation.T),
                (turned(atoms, -rotation), -forces @ rotation.T),
                (moved, forces),
                (atoms[order], forces[order]),
            ]
            errors.append([_error(_evaluate(calculator, each), energy, expected, scale) for each, expected in tried])
    return EquivarianceError(*np.max(errors, axis=0).tolist())


def _evaluate(calculator: Calculator, atoms: Atoms) -> tuple[float, Array]:
    twin = atoms.copy()
    twin.calc = calculator
    return float(twin.get_potential_energy()), np.asarray(twin.get_forces(), dtype=np.float64)


def _error(found: tuple[float, Array], energy: float, forces: Array, scale: float) -> float:
    worst = max(abs(found[0] - energy) / abs(energy), float(np.abs(found[1] - forces).max()) / scale)
    return worst if np.isfinite(worst) else float("inf")
