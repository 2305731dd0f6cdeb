"""ForceField: per-atom energies of a potential -> total energy, forces and stress.

    E   = sum_i ( E_ref(Z_i) + scale * e_i )
    F_k = -dE/dx_k            sigma = (1 / V) sum_edges r (x) dE/dr

With ``exact_lone_atoms`` the network's output for an atom without neighbours is subtracted from e_i, so that a lone
atom has exactly its reference energy: dissociation curves end there, and atomisation energies are right. What atoms are
bound by on average then has to come from somewhere else than a constant: from

    E_bound,i = binding * (1 - exp(-sum_j (1 - r_ij^2 / cutoff^2)^3))

which is nearly constant among the neighbours of a molecule or a solid, and goes to zero smoothly as they leave.

Nuclear repulsion at short range is added where ``Physics.zbl`` asks for it, see ``mdrelax.forces.physics``.

A potential is a function of the edge vectors r only, so both derivatives follow from one gradient with respect to r.
The stress is the derivative with respect to a homogeneous strain over the volume, in ASE's sign (tension positive).

The network's own part, energies and dE/dr, is ``Potential.energies_and_gradient``; ``ForceField.finish`` converts them
to energies in eV, forces and stress, and is shared by every engine.

A potential that is not ``conservative`` predicts forces itself (``energies_and_forces``): F_k = scale * f_k. They are
not the gradient of an energy, so energy is not conserved, forces need not sum to zero, and there is no stress.
"""

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mdrelax.base.ambient import is_disturbed, undisturbed
from mdrelax.forces.physics import LEARNT_ALONE, Physics, repulsion
from mdrelax.forces.potential import Potential
from mdrelax.structures.graph import Edges, Graph, edge_vectors

__all__ = [
    "ForceField",
    "Magnitudes",
    "Prediction",
    "UnknownElementError",
    "fit_reference_energies",
]

ATOMIC_NUMBERS = frozenset(range(1, 119))
SMALLEST_MAGNITUDE = 1e-6  # eV and eV/A: of atoms without neighbours no force is summed


class Prediction(NamedTuple):
    """Energies in eV, forces in eV/A, stress in eV/A^3 (ASE's sign); float64."""

    energy: Tensor  # (G,)
    energies: Tensor  # (N,)
    forces: Tensor  # (N, 3)
    stress: Tensor | None  # (G, 3, 3), zero for graphs without a cell

    def detach(self) -> "Prediction":
        """The same numbers, detached."""
        return Prediction(*(None if tensor is None else tensor.detach() for tensor in self))  # type: ignore[arg-type]

    @classmethod
    def join(cls, parts: Sequence["Prediction"]) -> "Prediction":
        """The predictions of several batches as those of one."""
        columns = zip(*parts, strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


class Magnitudes(NamedTuple):
    """The sizes of the terms that a prediction is summed from, to which rounding and other errors are relative.

    Those of the network and of the repulsion.

    They do not vanish if forces vanish by symmetry, nor grow with reference energies.
    """

    energy: Tensor  # (G,) eV: sum over atoms of |scale * e_i|, and the repulsion
    forces: Tensor  # () eV/A: root mean square over atoms of the sum over their edges of |dE/dr|


class UnknownElementError(ValueError):
    """An element that the model was not trained on."""


class ForceField(nn.Module):
    """A potential with its elements, reference energies and scale: all that is needed for energies in eV.

    ``reference_energies`` (eV, one per element) and ``scale`` (eV) are kept in float64 whatever the network's dtype.
    ``binding`` is the mean binding energy of an atom in eV, see above. ``exact_lone_atoms`` costs a second, tiny
    evaluation of the network; ``with_folded_lone_atoms`` is free of it. ``physics`` names the terms that are not
    learnt: the repulsion is part of every prediction, the dispersion is added by calculators
    (``mdrelax.forces.dispersion``).

    Raises ``TypeError`` for a network that is not a ``Potential``, ``ValueError`` for elements out of order and for
    repulsion beside direct forces.
    """

    species: Tensor
    numbers: Tensor
    reference_energies: Tensor
    scale: Tensor
    binding: Tensor
    potential: Potential

    def __init__(
        self,
        potential: Potential,
        *,
        elements: tuple[int, ...],
        reference_energies: Tensor | None = None,
        scale: float = 1.0,
        binding: float = 0.0,
        exact_lone_atoms: bool = False,
        physics: Physics = LEARNT_ALONE,
    ) -> None:
        super().__init__()
        if not isinstance(potential, Potential):
            raise TypeError(
                f"`potential` must be a `mdrelax.forces.potential.Potential`, got a `{type(potential).__name__}`; "
                "derive the network from that class."
            )
        if not elements or list(elements) != sorted(set(elements) & ATOMIC_NUMBERS):
            raise ValueError(
                f"`elements` must be distinct atomic numbers, 1 to 118, in rising order, got {elements!s:.100}."
            )
        if physics.zbl and not potential.conservative:
            raise ValueError(
                f"`physics.zbl: {physics.zbl:g}` adds an energy, but this network predicts forces directly; train with "
                "`potential.arguments.forces: gradient`, or without the repulsion."
            )
        self.potential = potential
        self.elements, self.exact_lone_atoms, self.physics = elements, exact_lone_atoms, physics
        species = torch.full((max(elements) + 2,), -1)  # the last entry is for all numbers that are not an element's
        species[list(elements)] = torch.arange(len(elements))
        references = torch.zeros(len(elements)) if reference_energies is None else reference_energies
        self.register_buffer("species", species, persistent=False)
        self.register_buffer("numbers", torch.tensor(elements), persistent=False)
        self.register_buffer("reference_energies", references.double())
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))
        self.register_buffer("binding", torch.tensor(binding, dtype=torch.float64))

    def with_potential(self, potential: Potential) -> "ForceField":
        """A force field with the same elements, reference energies and scale around another form of the network."""
        return ForceField(
            potential,
            elements=self.elements,
            reference_energies=self.reference_energies,
            scale=self.scale.item(),
            binding=self.binding.item(),
            exact_lone_atoms=self.exact_lone_atoms,
            physics=self.physics,
        ).to(self.scale.device)

    @torch.no_grad()
    def with_folded_lone_atoms(self) -> "ForceField":
        """A copy with the same energies, to rounding, whose reference energies hold what is subtracted otherwise."""
        folded = copy.deepcopy(self)
        if self.exact_lone_atoms:
            folded.reference_energies -= self.scale * self._lone_atoms().double()
            folded.exact_lone_atoms = False
        return folded

    @torch.no_grad()
    def unfold_lone_atoms(self) -> None:
        """Turn ``exact_lone_atoms`` on in place, with the same energies, to rounding: the way back, to train on."""
        if not self.exact_lone_atoms:
            self.reference_energies += self.scale * self._lone_atoms().double()
            self.exact_lone_atoms = True

    def _lone_atoms(self) -> Tensor:
        """The network's output (n_elements,) for an atom of each element without neighbours."""
        species = torch.arange(len(self.elements), device=self.species.device)
        nothing = species.new_zeros(2, 0)
        return self.potential(species, Edges(nothing, nothing.new_zeros(0, 3, dtype=self.dtype)))

    @property
    def cutoff(self) -> float:
        """The potential's cut-off radius in Angstrom."""
        return self.potential.cutoff

    @property
    def conservative(self) -> bool:
        """Whether forces are the gradient of the energy."""
        return self.potential.conservative

    @property
    def roughness(self) -> str | None:
        """Why the energy is not smooth, as the second half of a sentence; None if it is smooth."""
        return self.potential.roughness

    @property
    def dtype(self) -> torch.dtype:
        """The network's floating-point type."""
        return next(chain(self.potential.parameters(), self.potential.buffers())).dtype

    def to_dtype(self, dtype: torch.dtype) -> "ForceField":
        """Cast the network in place; reference energies and scale stay float64."""
        self.potential.to(dtype)
        return self

    def forward(self, graph: Graph, *, stress: bool = False, create_graph: bool = False) -> Prediction:
        """Energy, forces and (on request) stress of each structure.

        ``create_graph=True`` keeps the result differentiable, as training on forces needs. Works under ``no_grad``.
        Raises ``UnknownElementError`` for an element the model does not know, ``ValueError`` if stress is requested
        with direct forces. Numbers do not depend on ``torch.inference_mode`` and ``torch.autocast`` around the call.
        """
        if is_disturbed(graph.positions.device):
            with undisturbed(graph.positions.device):
                return self(graph.clone(), stress=stress, create_graph=create_graph)
        species, vectors = self.species_of(graph.numbers), edge_vectors(graph)
        edges = Edges(graph.edge_index, vectors.to(self.dtype))
        if not self.conservative:
            return self._direct(graph, species, edges, stress=stress, create_graph=create_graph)
        energies, gradient = self.potential.energies_and_gradient(species, edges, create_graph=create_graph)
        if self.exact_lone_atoms:
            with torch.set_grad_enabled(create_graph):
                energies = energies - self._lone_atoms()[species]
        result = self.finish(graph, species, vectors, energies, gradient, stress=stress)
        return result if create_graph else result.detach()

    def features(self, graph: Graph) -> Tensor:
        """Invariant features (N, C) of the atoms in the network's dtype, from which the energies are read.

        Equal environments have equal features: distances between them compare environments. Raises ``ValueError`` for a
        network without features (a compiled one), ``UnknownElementError`` as a prediction does.
        """
        if is_disturbed(graph.positions.device):
            with undisturbed(graph.positions.device):
                return self.features(graph.clone())
        with torch.no_grad():
            edges = Edges(graph.edge_index, edge_vectors(graph).to(self.dtype))
            return self.potential.features(self.species_of(graph.numbers), edges)

    def finish(
        self, graph: Graph, species: Tensor, vectors: Tensor, energies: Tensor, gradient: Tensor, *, stress: bool
    ) -> Prediction:
        """The prediction for whole structures whose network output has already been computed by an engine.

        An engine with ghosts, which has no ``Graph``, calls ``in_eV`` and adds up forces and virial itself.

        Args:
            graph: The structures.
            species: (N,) as ``species_of`` returns them.
            vectors: (E, 3) float64, the edge vectors in Angstrom.
            energies: (N,), as ``Potential.energies_and_gradient`` returns them.
            gradient: (E, 3), likewise.
            stress: Whether to compute the stress.
        """
        energies, gradient = self.in_eV(species, graph.edge_index, vectors, energies, gradient)
        tension = _stress(graph, vectors, gradient) if stress else None
        return _prediction(graph, energies, _forces(graph, gradient), tension)

    def in_eV(
        self, species: Tensor, edge_index: Tensor, vectors: Tensor, energies: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energies in eV, references, binding and repulsion included, and their gradient in eV/A; float64.

        ``energies`` (n_local,) and ``gradient`` (E, 3) as in ``Potential``, ``edge_index`` (2, E), ``vectors`` (E, 3)
        in Angstrom and float64. Edges may start or end at ghosts, whose numbers are n_local and more; ``species``
        (N,) are those of all atoms, ghosts included. ``exact_lone_atoms`` plays no part here: a model that was loaded
        has it folded into its references.
        """
        n_local = len(energies)
        total = self.scale * energies.double() + self.reference_energies[species[:n_local]]
        slope = self.scale * gradient.double()
        if self.binding:
            bound, by_vectors = bound_share(edge_index[1], vectors, n_local, self.cutoff)
            total, slope = total + self.binding * bound, slope + self.binding * by_vectors
        if self.physics.zbl:
            repelled, by_vectors = self._repulsion(species, edge_index, vectors, n_local)
            total, slope = total + repelled, slope + by_vectors
        return total, slope

    def _repulsion(self, species: Tensor, edge_index: Tensor, vectors: Tensor, n_local: int) -> tuple[Tensor, Tensor]:
        """Energies (n_local,) and gradient (E, 3), see ``mdrelax.forces.physics.repulsion``."""
        reach, cutoff = self.physics.zbl, self.cutoff
        return repulsion(self.numbers[species], edge_index, vectors, n_local=n_local, reach=reach, cutoff=cutoff)

    def species_of(self, numbers: Tensor) -> Tensor:
        """Indices (N,) into ``elements`` of atomic numbers (N,); raises ``UnknownElementError``."""
        species = self.species[numbers.clamp(-1, len(self.species) - 1)]  # -1 is the last entry, too
        if (species < 0).any():
            unknown = sorted(set(numbers[species < 0].tolist()))
            raise UnknownElementError(
                f"Atomic numbers {unknown} are unknown to this model, which was trained on {list(self.elements)}; "
                "train on data with these elements or remove the atoms."
            )
        return species

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As torch's; models and checkpoints of older versions have no ``binding``, which was zero."""
        state_dict.setdefault(f"{prefix}binding", torch.zeros((), dtype=torch.float64))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def magnitudes(self, graph: Graph) -> Magnitudes:
        """The sizes of the terms that energies and forces of the structures are summed from, at least 1e-6 eV, eV/A.

        For direct forces, which are not summed, their root mean square.
        """
        if is_disturbed(graph.positions.device):
            with undisturbed(graph.positions.device):
                return self.magnitudes(graph.clone())
        species, vectors = self.species_of(graph.numbers), edge_vectors(graph)
        edges = Edges(graph.edge_index, vectors.to(self.dtype))
        repelled, by_vectors = self._repulsion(species, graph.edge_index, vectors, len(species))
        if self.conservative:
            raw, slope = self.potential.energies_and_gradient(species, edges)
            sizes = (self.scale * slope.double()).norm(dim=1) + by_vectors.norm(dim=1)  # (E,)
            at_atoms = sizes.new_zeros(len(species)).index_add_(0, graph.edge_index.flatten(), sizes.repeat(2))
        else:
            with torch.no_grad():
                raw, forces = self.potential.energies_and_forces(species, edges)
            at_atoms = (self.scale * forces.double()).flatten()
        sizes_of_energies = (self.scale * raw.double()).detach().abs() + repelled
        energy = sizes_of_energies.new_zeros(graph.n_graphs).index_add_(0, graph.batch, sizes_of_energies)
        forces_size = at_atoms.detach().square().mean().sqrt()
        return Magnitudes(energy.clamp(min=SMALLEST_MAGNITUDE), forces_size.clamp(min=SMALLEST_MAGNITUDE))

    def _direct(self, graph: Graph, species: Tensor, edges: Edges, *, stress: bool, create_graph: bool) -> Prediction:
        """The prediction with the potential's own forces."""
        if stress:
            raise ValueError(
                "This model predicts forces directly (`forces: direct`), so it has no stress; set the stress weight to "
                "0, or train with `forces: gradient`."
            )
        with torch.set_grad_enabled(create_graph):
            energies, forces = self.potential.energies_and_forces(species, edges)
            if self.exact_lone_atoms:
                energies = energies - self._lone_atoms()[species]
            energies = self.scale * energies.double() + self.reference_energies[species]
            return _prediction(graph, energies, self.scale * forces.double(), None)


def bound_share(target: Tensor, vectors: Tensor, n_atoms: int, cutoff: float) -> tuple[Tensor, Tensor]:
    """The share 1 - exp(-u) in [0, 1) of each atom (N,) that is bound, and its derivative (E, 3) by the edge vectors.

    u is the sum over an atom's edges of (1 - r^2 / cutoff^2)^3, which is zero with two derivatives at the cut-off.
    Edges into atoms beyond the first ``n_atoms`` count for nothing.
    """
    inside = (1 - vectors.square().sum(1) / cutoff**2).clamp(min=0) * (target < n_atoms)
    target = target.clamp(max=n_atoms - 1)
    free = torch.exp(-vectors.new_zeros(n_atoms).index_add(0, target, inside**3))
    return 1 - free, (free[target] * inside**2 * (-6 / cutoff**2)).unsqueeze(1) * vectors


def _prediction(graph: Graph, energies: Tensor, forces: Tensor, stress: Tensor | None) -> Prediction:
    """Energies of the atoms summed over each structure."""
    energy = energies.new_zeros(graph.n_graphs).index_add_(0, graph.batch, energies)
    return Prediction(energy, energies, forces, stress)


def _forces(graph: Graph, gradient: Tensor) -> Tensor:
    """F_i = sum over edges into i of dE/dr, minus the sum over edges out of i: net force zero by construction."""
    source, target = graph.edge_index
    zeros = gradient.new_zeros(len(graph.numbers), 3)
    return zeros.index_add_(0, target, gradient).index_add_(0, source, gradient, alpha=-1)


def _stress(graph: Graph, vectors: Tensor, gradient: Tensor) -> Tensor:
    """(G, 3, 3) symmetric stress in eV/A^3; zero where the cell has no volume."""
    outer = vectors.unsqueeze(2) * gradient.unsqueeze(1)  # (E, 3, 3)
    virial = outer.new_zeros(graph.n_graphs, 3, 3).index_add(0, graph.batch[graph.edge_index[1]], outer)
    volume = torch.linalg.det(graph.cell).abs()[:, None, None]
    symmetric = (virial + virial.transpose(1, 2)) / 2
    return torch.where(volume > 0, symmetric / volume.clamp(min=1e-30), torch.zeros_like(symmetric))


def fit_reference_energies(numbers: list[Tensor], energies: Tensor, elements: tuple[int, ...]) -> Tensor:
    """Least-squares energy of each element (eV, float64) over structures with the given total energies (eV).

    If the compositions do not distinguish the elements (one molecule only), the minimum-norm solution is returned.
    Structures with a NaN energy are left out; without any energy the references are zero.
    """
    known = ~energies.isnan()
    if not known.any():
        return torch.zeros(len(elements), dtype=torch.float64)
    counts = torch.stack([torch.stack([(z == element).sum() for element in elements]) for z in numbers]).double()
    return torch.linalg.lstsq(counts[known], energies.double()[known, None], driver="gelsd").solution[:, 0]
