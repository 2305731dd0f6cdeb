"""ForceField: per-atom energies of a potential -> total energy, forces and stress.

    E   = sum_i ( E_ref(Z_i) + scale * e_i )
    F_k = -dE/dx_k            sigma = (1 / V) sum_edges r (x) dE/dr

A potential is a function of the edge vectors r only, so both derivatives come from one gradient with respect to r. The
stress is the derivative with respect to a homogeneous strain divided by the volume, in ASE's sign (tension positive).

The network's own part, energies and dE/dr, is the function ``energies_and_gradient``; a compiled potential brings a
method of that name in its place, and everything else stays here.

A potential with ``direct_forces`` gives forces itself (``energies_and_forces``): F_k = scale * f_k. They are
the gradient of nothing, so energy is not conserved, forces need not sum to zero, and there is no stress.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mdrelax.structures.graph import Graph, edge_vectors

__all__ = [
    "ForceField",
    "Magnitudes",
    "Potential",
    "Prediction",
    "UnknownElementError",
    "energies_and_gradient",
    "fit_reference_energies",
]

SMALLEST_MAGNITUDE = 1e-6  # eV and eV/A: of atoms without neighbours no force is summed
Raw = tuple[Tensor, Tensor, Tensor | None]  # energies (N,) without references, forces (N, 3), stress (G, 3, 3)
Network = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # see ``ForceField.network_output``


class Potential(Protocol):
    """What every network keeps: a smooth function of species and edge vectors, zero influence beyond the cut-off.

    | argument | shape | unit |
    | --- | --- | --- |
    | species | (N,) int64, index into the force field's elements | - |
    | edge_index | (2, E) int64, source and target, sorted by target | - |
    | edge_vectors | (E, 3) | Angstrom |
    | returned energies | (N,) | the force field's scale (eV after scaling) |

    A network that works on ``graph.neighbor_table`` says ``takes_table = True`` and takes it as an optional fourth
    argument: its width depends on the structure, so that a compiled network cannot make it.
    """

    cutoff: float  # Angstrom

    def __call__(self, species: Tensor, edge_index: Tensor, edge_vectors: Tensor) -> Tensor:
        """Energies of the atoms, see the table."""
        ...


class Prediction(NamedTuple):
    """Energies in eV, forces in eV/A, stress in eV/A^3 (ASE's sign); float64."""

    energy: Tensor  # (G,)
    energies: Tensor  # (N,)
    forces: Tensor  # (N, 3)
    stress: Tensor | None  # (G, 3, 3), zero for graphs without a cell

    def detach(self) -> "Prediction":
        """The same numbers without their history."""
        return Prediction(*(None if tensor is None else tensor.detach() for tensor in self))  # type: ignore[arg-type]

    @classmethod
    def join(cls, parts: Sequence["Prediction"]) -> "Prediction":
        """The predictions of several batches as those of one."""
        columns = zip(*parts, strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


class Magnitudes(NamedTuple):
    """How large the terms are that a prediction is the sum of: what its rounding, and any other error, compares with.

    They do not vanish where forces do by symmetry, nor grow with reference energies.
    """

    energy: Tensor  # (G,) eV: sum over atoms of |scale * e_i|
    forces: Tensor  # () eV/A: root mean square over atoms of the sum over their edges of |dE/dr|


class UnknownElementError(ValueError):
    """An element that the model was not trained on."""


class ForceField(nn.Module):
    """A potential with its elements, reference energies and scale: everything that makes a number in eV.

    ``reference_energies`` (eV, one an element) and ``scale`` (eV) are kept in float64 whatever the network's dtype.
    ``conservative`` says whether forces are the gradient of the energy; not so for a potential with direct forces.
    """

    species: Tensor
    reference_energies: Tensor
    scale: Tensor

    def __init__(
        self,
        potential: nn.Module,
        *,
        elements: tuple[int, ...],
        reference_energies: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not elements or list(elements) != sorted(set(elements)):
            raise ValueError(f"`elements` must be distinct atomic numbers in rising order, got {elements}.")
        self.potential = potential
        self.elements = elements
        self.conservative = not getattr(potential, "direct_forces", False)
        species = torch.full((max(elements) + 2,), -1)  # the last place stands for every number that is no index
        species[list(elements)] = torch.arange(len(elements))
        references = torch.zeros(len(elements)) if reference_energies is None else reference_energies
        self.register_buffer("species", species, persistent=False)
        self.register_buffer("reference_energies", references.double())
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float64))

    @property
    def cutoff(self) -> float:
        """The potential's cut-off radius in Angstrom."""
        return float(self.potential.cutoff)  # type: ignore[arg-type]

    @property
    def roughness(self) -> str | None:
        """Why the energy is not smooth, as the second half of a sentence; None where it is."""
        return getattr(self.potential, "roughness", None)

    @property
    def dtype(self) -> torch.dtype:
        """The network's floating-point type."""
        return next(chain(self.potential.parameters(), self.potential.buffers())).dtype

    def to_dtype(self, dtype: torch.dtype) -> "ForceField":
        """Cast the network in place; reference energies and scale stay float64."""
        self.potential.to(dtype)
        return self

    def forward(
        self, graph: Graph, *, stress: bool = False, create_graph: bool = False, network: Network | None = None
    ) -> Prediction:
        """Energy, forces and (on request) stress of each structure.

        ``create_graph=True`` keeps the result differentiable, as training on forces needs. Works under ``no_grad``.
        ``network`` takes the place of ``network_output`` (compiled code for training, ``mdrelax.compiled.training``).
        Raises ``UnknownElementError`` for an element the model does not know, ``ValueError`` when stress is asked of
        direct forces.
        """
        species = self._species(graph.numbers)
        if self.conservative:
            network = network or partial(self.network_output, create_graph=create_graph)
            energies, forces, tension = self._from_gradient(graph, species, network, stress=stress)
        else:
            energies, forces, tension = self._direct(graph, species, stress=stress, create_graph=create_graph)
        energies = energies + self.reference_energies[species]
        energy = energies.new_zeros(graph.n_graphs).index_add_(0, graph.batch, energies)
        result = Prediction(energy, energies, forces, tension)
        return result if create_graph else result.detach()

    def magnitudes(self, graph: Graph) -> Magnitudes:
        """The sizes of the terms that energies and forces of the structures are summed from, at least 1e-6 eV, eV/A.

        Of direct forces, which are not summed, the root mean square.
        """
        species = self._species(graph.numbers)
        if self.conservative:
            vectors = edge_vectors(graph)
            raw, slope = self.network_output(species, graph.edge_index, vectors.to(self.dtype))
            sizes = (self.scale * slope.double()).norm(dim=1)  # (E,)
            at_atoms = sizes.new_zeros(len(species)).index_add_(0, graph.edge_index.flatten(), sizes.repeat(2))
            energies = self.scale * raw.double()
        else:
            energies, forces, _ = self._direct(graph, species, stress=False, create_graph=False)
            at_atoms = forces.flatten()
        sizes_of_energies = energies.detach().abs()
        energy = sizes_of_energies.new_zeros(graph.n_graphs).index_add_(0, graph.batch, sizes_of_energies)
        forces_size = at_atoms.detach().square().mean().sqrt()
        return Magnitudes(energy.clamp(min=SMALLEST_MAGNITUDE), forces_size.clamp(min=SMALLEST_MAGNITUDE))

    def network_output(self, *arguments: Tensor, create_graph: bool = False) -> tuple[Tensor, Tensor]:
        """What the network itself gives: energies (N,) and their gradient by the edge vectors (E, 3), without scale.

        The arguments are those of ``Potential``, vectors in the network's dtype.
        """
        if (compiled := getattr(self.potential, "energies_and_gradient", None)) is None:
            return energies_and_gradient(self.potential, *arguments, create_graph=create_graph)
        if create_graph:
            raise ValueError("A compiled potential cannot be trained: train the network it was made from.")
        return compiled(*arguments)

    def _from_gradient(self, graph: Graph, species: Tensor, network: Network, *, stress: bool) -> Raw:
        """Forces and stress as derivatives of the energy."""
        vectors = edge_vectors(graph)
        raw, slope = network(species, graph.edge_index, vectors.to(self.dtype))
        gradient = self.scale * slope.double()
        tension = _stress(graph, vectors, gradient) if stress else None
        return self.scale * raw.double(), _forces(graph, gradient), tension

    def _direct(self, graph: Graph, species: Tensor, *, stress: bool, create_graph: bool) -> Raw:
        """Forces as the potential gives them."""
        if stress:
            raise ValueError(
                "This model predicts forces directly (`forces: direct`), so it has no stress; set the stress weight to "
                "0, or train with `forces: gradient`."
            )
        potential: Any = self.potential
        with torch.set_grad_enabled(create_graph):
            vectors = edge_vectors(graph).to(self.dtype)
            raw, forces = potential.energies_and_forces(species, graph.edge_index, vectors)
            return self.scale * raw.double(), self.scale * forces.double(), None

    def _species(self, numbers: Tensor) -> Tensor:
        species = self.species[numbers.clamp(-1, len(self.species) - 1)]  # -1 is the last place, too
        if (species < 0).any():
            unknown = sorted(set(numbers[species < 0].tolist()))
            raise UnknownElementError(
                f"Atomic numbers {unknown} are unknown to this model, which was trained on {list(self.elements)}; "
                "train on data with these elements or remove the atoms."
            )
        return species


def energies_and_gradient(
    potential: Callable[..., Tensor],
    species: Tensor,
    edge_index: Tensor,
    edge_vectors: Tensor,
    *table: Tensor,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """Energies (N,) of the atoms and their sum's gradient (E, 3) by the edge vectors; arguments as in ``Potential``."""
    with torch.enable_grad():
        vectors = edge_vectors.detach().requires_grad_()
        energies = potential(species, edge_index, vectors, *table)
        return energies, _gradient(energies, vectors, create_graph)


def _gradient(energies: Tensor, vectors: Tensor, create_graph: bool) -> Tensor:
    """dE/dr of each edge, (E, 3); zeros where there are no edges."""
    if not energies.requires_grad or vectors.shape[0] == 0:
        return torch.zeros_like(vectors)
    (gradient,) = torch.autograd.grad(energies.sum(), vectors, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(vectors) if gradient is None else gradient


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

    The minimum-norm solution is taken where compositions do not tell the elements apart (one molecule only). Structures
    with a NaN energy are left out; without any energy the references are zero.
    """
    known = ~energies.isnan()
    if not known.any():
        return torch.zeros(len(elements), dtype=torch.float64)
    counts = torch.stack([torch.stack([(z == element).sum() for element in elements]) for z in numbers]).double()
    return torch.linalg.lstsq(counts[known], energies.double()[known, None], driver="gelsd").solution[:, 0]
