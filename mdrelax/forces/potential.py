"""Potential: the base class of every network that predicts per-atom energies.

A potential is a smooth function of species and edge vectors in which nothing beyond the cut-off has any influence.
``mdrelax.testing`` contains the laws that it must satisfy, as functions of a force field.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from mdrelax.structures.graph import Edges

__all__ = ["Potential", "energies_and_gradient"]


class Potential(nn.Module, ABC):
    """Per-atom energies from species and edges.

    | argument | shape | unit |
    | --- | --- | --- |
    | species | (N,) int64, index into the force field's elements | - |
    | edges.index | (2, E) int64, source and target, sorted by target | - |
    | edges.vectors | (E, 3), the network's dtype | Angstrom |
    | returned energies | (n_local,), or (N,) where ``edges.n_local`` is None | the force field's scale, in eV |

    A subclass sets ``cutoff`` and overrides the declarations below that do not hold for it. With domain
    decomposition (``Edges.exchange``) it computes the features of ``edges.computed(species)`` alone and passes the
    features of the edges' sources through ``edges.everywhere``, once per round of messages.
    """

    cutoff: float  # Angstrom
    symmetry: str = "SE(3)"  # the group that the certificate tests; E(3) includes reflections
    relax_where: tuple[str, ...] | None = None  # name patterns of the layers to relax by default; None: every site
    takes_table: bool = False  # uses ``edges.table``, whose width compiled code cannot determine
    conservative: bool = True  # forces are the gradient of the energy; False: ``energies_and_forces`` predicts them
    differentiable_twice: bool = True  # False for code that was compiled with its backward pass
    n_rounds: int | None = None  # an energy depends on atoms up to this many cut-offs away; None: not known
    roughness: str | None = None  # why the energy is not smooth, as the second half of a sentence

    @abstractmethod
    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Energies of the atoms, see the table."""

    def features(self, species: Tensor, edges: Edges) -> Tensor:
        """Invariant features (n_local, C) of the atoms, from which the energies are read.

        Raises ``ValueError`` where a network has none.
        """
        raise ValueError(
            f"`{type(self).__name__}` has no features: use the model file that a compiled model was made from, or "
            "define `features` for a network of your own."
        )

    def energies_and_gradient(
        self, species: Tensor, edges: Edges, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Energies (n_local,) and the gradient (E, 3) of their sum with respect to the edge vectors.

        Compilation replaces this function only; the rest of a force field is unchanged.
        ``create_graph`` keeps both differentiable, as training on forces needs. Works under ``no_grad``.
        """
        return energies_and_gradient(self, species, edges, create_graph=create_graph)

    def energies_and_forces(self, species: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Energies (N,) and directly predicted forces (N, 3); only if ``conservative`` is False."""
        raise NotImplementedError(f"`{type(self).__name__}` predicts no forces: they are the gradient of its energy.")


def energies_and_gradient(
    function: Callable[[Tensor, Edges], Tensor], species: Tensor, edges: Edges, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """The energies that a function returns and the gradient (E, 3) of their sum with respect to the edge vectors.

    Arguments as for ``Potential``. The gradient is zero where there are no edges.
    """
    with torch.enable_grad():
        vectors = edges.vectors.detach().requires_grad_()
        energies = function(species, replace(edges, vectors=vectors))
        nothing_to_do = vectors.shape[0] == 0 and edges.exchange is None  # an exchange waits for every domain
        if nothing_to_do or not energies.requires_grad:
            return energies, torch.zeros_like(vectors)
        (gradient,) = torch.autograd.grad(energies.sum(), vectors, create_graph=create_graph, allow_unused=True)
        return energies, torch.zeros_like(vectors) if gradient is None else gradient
