"""Loader: labelled structures -> batches, in an order that depends on the seed and the step only.

Nothing random is kept between steps: the order of an epoch follows from (seed, epoch), the rotations of a batch from
(seed, step). A resumed run therefore sees what an uninterrupted one sees, with no generator to save.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mdrelax.base.places import frame_name, naming
from mdrelax.base.seeds import generator
from mdrelax.forces.loss import Targets
from mdrelax.structures.graph import Graph, collate
from mdrelax.structures.neighbors import build_graph
from mdrelax.structures.rotate import random_rotations, rotate

__all__ = [
    "Batch",
    "Loader",
    "distinct_elements",
    "frames_from_data",
    "join",
    "part_of_batch",
    "rotate_batch",
    "split_batch",
]


class Batch(NamedTuple):
    """A graph and its labels; one structure (a frame) or several."""

    graph: Graph
    targets: Targets
    weights: Tensor | None = None  # (G,) of the structures in the loss; None: all 1

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        return Batch(self.graph.to(device), Targets(*(tensor.to(device) for tensor in self.targets)), weights)


def frames_from_data(
    data: Iterable[Any], *, cutoff: float, check: Callable[[Tensor], object] = lambda numbers: None
) -> list[Batch]:
    """PyG data (see ``mdrelax.datasets.frames``) as single-structure batches with their neighbour lists.

    Edges are searched once, here; ``cutoff`` is in Angstrom. Missing labels become NaN. Raises ``ValueError`` that
    names the frame (by ``place``, else by its number) whose structure has no graph, or whose atomic numbers (N,)
    ``check`` refuses, for instance ``ForceField.species_of``.
    """
    frames = []
    for number, item in enumerate(data):
        with naming(item.place if "place" in item else frame_name(number)):
            graph = build_graph(item.pos, item.z, item.cell[0], item.pbc[0], cutoff=cutoff)
            check(graph.numbers)
        missing = torch.full((), torch.nan, dtype=torch.float64)
        targets = Targets(
            item.energy.reshape(1) if "energy" in item else missing.expand(1),
            item.forces if "forces" in item else missing.expand(len(item.z), 3),
            item.stress if "stress" in item else missing.expand(1, 3, 3),
        )
        weight = torch.tensor([item.weight], dtype=torch.float64) if "weight" in item else None
        frames.append(Batch(graph, targets, weight))
    return frames


def join(frames: Sequence[Batch]) -> Batch:
    """Join several frames into one batch."""
    columns = zip(*(frame.targets for frame in frames), strict=True)
    weights = None
    if any(frame.weights is not None for frame in frames):
        known = [torch.ones_like(f.targets.energy) if f.weights is None else f.weights for f in frames]
        weights = torch.cat(known)
    targets = Targets(*(torch.cat(column) for column in columns))
    return Batch(collate([frame.graph for frame in frames]), targets, weights)


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """The structures of a batch in parts of a given number; ``join`` is the inverse."""
    n = batch.graph.n_graphs
    return [batch] if n <= size else _cut(batch, [*range(0, n, size), n])


def part_of_batch(batch: Batch, structures: slice) -> Batch:
    """Some consecutive structures of a batch."""
    first, end, _ = structures.indices(batch.graph.n_graphs)
    return batch if end - first == batch.graph.n_graphs else _cut(batch, [first, end])[0]


def _cut(batch: Batch, bounds: Sequence[int]) -> list[Batch]:
    """The structures from each bound up to the next; edges are sorted by target."""
    graph, targets = batch.graph, batch.targets
    graphs = torch.tensor(bounds, device=graph.batch.device)
    atoms = torch.searchsorted(graph.batch, graphs)
    edges = torch.searchsorted(graph.edge_index[1].contiguous(), atoms)
    parts = []
    for (g, g_end), (a, a_end), (e, e_end) in zip(*(pairwise(x.tolist()) for x in (graphs, atoms, edges)), strict=True):
        part = Graph(
            graph.positions[a:a_end], graph.numbers[a:a_end], graph.cell[g:g_end],
            graph.edge_index[:, e:e_end] - a, graph.edge_shift[e:e_end], graph.batch[a:a_end] - g,
        )  # fmt: skip
        labels = Targets(targets.energy[g:g_end], targets.forces[a:a_end], targets.stress[g:g_end])
        parts.append(Batch(part, labels, None if batch.weights is None else batch.weights[g:g_end]))
    return parts


def rotate_batch(batch: Batch, *, seed: int, step: int) -> Batch:
    """Rotate each structure and its labels by its own random rotation, drawn from (seed, step)."""
    rotations = random_rotations(batch.graph.n_graphs, generator(seed, "rotations", step)).to(batch.graph.positions)
    forces = (rotations[batch.graph.batch] @ batch.targets.forces.unsqueeze(2)).squeeze(2)
    stress = rotations @ batch.targets.stress @ rotations.mT
    return batch._replace(
        graph=rotate(batch.graph, rotations), targets=batch.targets._replace(forces=forces, stress=stress)
    )


class Loader:
    """Batches limited by the number of frames (``batch_size``) and, if ``max_edges`` is given, of edges.

    ``positions(epoch)`` is the plan of an epoch: lists of frame numbers. A frame with more than ``max_edges`` edges
    makes a batch of its own. Raises ``ValueError`` for an empty data set and budgets below 1.
    """

    def __init__(
        self,
        frames: Sequence[Batch],
        *,
        batch_size: int,
        max_edges: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        if not frames:
            raise ValueError("There are no frames to make batches of.")
        if batch_size < 1 or (max_edges is not None and max_edges < 1):
            raise ValueError(f"`batch_size` and `max_edges` must be at least 1, got {batch_size} and {max_edges}.")
        self.frames, self.batch_size, self.max_edges = frames, batch_size, max_edges
        self.seed, self.shuffle = seed, shuffle
        self.n_edges = [frame.graph.edge_index.shape[1] for frame in frames]

    @property
    def limited_by_edges(self) -> bool:
        """Whether ``max_edges`` can end a batch before ``batch_size`` does."""
        return self.max_edges is not None and self.batch_size * max(self.n_edges) > self.max_edges

    def order(self, epoch: int) -> list[int]:
        """The frames' order in an epoch."""
        if not self.shuffle:
            return list(range(len(self.frames)))
        return torch.randperm(len(self.frames), generator=generator(self.seed, "order", epoch)).tolist()

    def positions(self, epoch: int) -> list[list[int]]:
        """The frame numbers of each batch of an epoch."""
        order = self.order(epoch)
        if self.max_edges is None or not self.limited_by_edges:
            return [order[k : k + self.batch_size] for k in range(0, len(order), self.batch_size)]
        starts, load = [0], 0
        for place, frame in enumerate(order):
            full = place - starts[-1] == self.batch_size or load + self.n_edges[frame] > self.max_edges
            if full and place > starts[-1]:
                starts.append(place)
                load = 0
            load += self.n_edges[frame]
        return [order[a:b] for a, b in pairwise([*starts, len(order)])]

    def batches(self, epoch: int, *, start: int = 0) -> Iterable[Batch]:
        """The batches of an epoch from number ``start`` on."""
        for frames in self.positions(epoch)[start:]:
            yield join([self.frames[k] for k in frames])

    def n_steps(self, epochs: int) -> int:
        """The number of batches in a number of epochs."""
        if not self.limited_by_edges:
            return epochs * len(self.positions(0))
        return sum(len(self.positions(epoch)) for epoch in range(epochs))


def distinct_elements(numbers: Sequence[Tensor]) -> tuple[int, ...]:
    """The distinct atomic numbers of several structures, in rising order."""
    return tuple(sorted({int(z) for each in numbers for z in each.unique()}))
