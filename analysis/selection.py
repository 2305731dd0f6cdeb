"""Selection: the candidates from whose labels a committee would learn most.

    next = argmax over candidates k of   spread_k * min over chosen c of |f_k - f_c|

begins with the largest spread. spread_k is the largest spread of a force in the structure, f_k the mean over its atoms
of the first member's features, next to its composition; so that the chosen ones are both uncertain and far apart
(the greedy k-centre of Sener and Savarese, arXiv 1708.00489, weighted by the spread).
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from ase import Atoms

from mdrelax.engines.committee import CommitteeCalculator
from mdrelax.structures.graph import collate
from mdrelax.structures.neighbors import build_graph

__all__ = ["descriptors", "farthest_uncertain", "select"]

Array = npt.NDArray[np.float64]

BATCH = 32


def select(
    calculator: CommitteeCalculator,
    candidates: Sequence[Atoms],
    number: int,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[int], Array]:
    """The places of ``number`` candidates, in the order chosen, and the largest force spread (M,) of all in eV/A.

    Raises ``ValueError`` for fewer candidates than that, and the errors of the calculator.
    """
    if not 1 <= number <= len(candidates):
        raise ValueError(f"`--n` must lie between 1 and the {len(candidates)} candidates, got {number}.")
    spread: list[float] = []
    for start in range(0, len(candidates), BATCH):
        results = calculator.calculate_many(candidates[start : start + BATCH], batch_size=BATCH)
        spread += [float(result["forces_spread"].max()) for result in results]
        progress(len(spread), len(candidates))
    return farthest_uncertain(np.array(spread), descriptors(calculator, candidates), number), np.array(spread)


def descriptors(calculator: CommitteeCalculator, structures: Sequence[Atoms]) -> Array:
    """One row per structure: the mean features of its atoms by the first member, and its composition in atoms."""
    field, rows = calculator.members[0], []
    for start in range(0, len(structures), BATCH):
        chunk = structures[start : start + BATCH]
        graph = collate([build_graph(a.positions, a.numbers, a.cell.array, a.pbc, field.cutoff) for a in chunk]).to(
            calculator.device
        )
        features = field.features(graph).double()
        kinds = torch.nn.functional.one_hot(field.species_of(graph.numbers), len(field.elements)).double()
        of_atoms = torch.cat([features, kinds], dim=1)
        summed = of_atoms.new_zeros(graph.n_graphs, of_atoms.shape[1]).index_add(0, graph.batch, of_atoms)
        counts = torch.bincount(graph.batch, minlength=graph.n_graphs).unsqueeze(1)
        summed[:, : features.shape[1]] /= counts
        rows.append(summed.cpu().numpy())
    return np.concatenate(rows)


def farthest_uncertain(spread: Array, points: Array, number: int) -> list[int]:
    """The greedy choice of ``number`` of M candidates by their spread (M,) and descriptors (M, C); see the module."""
    chosen = [int(np.argmax(spread))]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < number:
        worth = spread * distance
        worth[chosen] = -np.inf
        chosen.append(int(np.argmax(worth)))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen
