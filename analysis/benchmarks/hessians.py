"""The cost of a Hessian, by automatic differentiation and by central differences of the forces, timed in turns.

Untrained networks in float64, which are as fast as trained ones. Rows of a Hessian are timed: all of them for
a molecule, those of the two atoms of a primitive cell for a crystal, whose other rows are images of these.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mdrelax.engines.hessian import hessian
from mdrelax.forces.forcefield import ForceField
from mdrelax.potentials import build_potential, preset
from mdrelax.structures.graph import Graph
from mdrelax.structures.neighbors import build_graph

__all__ = ["NETWORKS", "STRUCTURES", "finite_rows", "hessian_times"]

NETWORKS = (("equiformer", "tiny"), ("equiformer", "small"), ("segnn", "small"), ("equiformer-pytorch", "tiny"))
STRUCTURES: dict[str, tuple[Callable[[], Atoms], int]] = {  # and number of atoms whose rows are computed
    "ethanol": (lambda: molecule("CH3CH2OH"), 9),
    "C60": (lambda: molecule("C60"), 4),
    "silicon, 64 atoms": (lambda: bulk("Si", cubic=True) * (2, 2, 2), 2),
}
CUTOFF = 5.0  # A
DELTA = 0.01  # A


def finite_rows(force_field: ForceField, atoms: Atoms, n_rows: int, delta: float = DELTA) -> torch.Tensor:
    """Rows (n_rows, 3, N, 3) of the Hessian in eV/A^2 by central differences of the forces."""
    rows = []
    for atom in range(n_rows):
        for axis in range(3):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * delta
                forces.append(force_field(_graph(moved)).forces)
            rows.append((forces[1] - forces[0]) / (2 * delta))
    return torch.stack(rows).unflatten(0, (n_rows, 3))


def hessian_times(
    *, networks: Sequence[tuple[str, str]] = NETWORKS, repeats: int = 5, tell: Callable[[str], None] = lambda line: None
) -> pd.DataFrame:
    """Median seconds of both ways and the median of their ratios, one row per network and structure."""
    table = []
    for name, size in networks:
        for structure, (build, n_rows) in STRUCTURES.items():
            atoms = build()
            force_field, graph = _untrained(name, size, atoms), _graph(atoms)
            pairs = [_pair(force_field, atoms, graph, n_rows) for _ in range(repeats + 1)][1:]  # the first warms up
            exact, finite = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            table.append((f"{name} {size}", structure, 3 * n_rows, exact, finite, ratio))
            tell(f"{name} {size}, {structure}: exact {exact:.2f} s, finite {finite:.2f} s")
    return pd.DataFrame(table, columns=["network", "structure", "rows", "exact_s", "finite_s", "finite_over_exact"])


def _pair(force_field: ForceField, atoms: Atoms, graph: Graph, n_rows: int) -> tuple[float, float]:
    """Seconds of the exact rows and of the finite ones."""
    start = time.perf_counter()
    hessian(force_field, graph, range(n_rows))
    middle = time.perf_counter()
    finite_rows(force_field, atoms, n_rows)
    return middle - start, time.perf_counter() - middle


def _untrained(name: str, size: str, atoms: Atoms) -> ForceField:
    elements = tuple(sorted(set(atoms.numbers.tolist())))
    arguments = {**preset(name, size), "cutoff": CUTOFF}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_potential(name, len(elements), arguments)
    return ForceField(network, elements=elements).to_dtype(torch.float64).eval().requires_grad_(False)


def _graph(atoms: Atoms) -> Graph:
    return build_graph(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, CUTOFF)
