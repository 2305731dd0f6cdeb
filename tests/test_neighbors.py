"""Neighbour lists against ASE's, on every cell that users have."""

import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule, nanotube
from ase.neighborlist import neighbor_list

from mdrelax.structures.crowding import MOST_NEIGHBOURS, neighbours_expected
from mdrelax.structures.graph import Graph, edge_vectors
from mdrelax.structures.neighbors import VerletList, build_graph

CUTOFF = 5.0


def _shifted_slab() -> Atoms:
    slab = fcc111("Cu", (2, 2, 3), vacuum=5.0)
    slab.positions += [3.3, 40.0, -70.0]
    return slab


def _slab_without_third_vector() -> Atoms:
    slab = fcc111("Cu", (2, 2, 3), vacuum=5.0)
    slab.cell[2] = 0.0
    return slab


def _rattled(pbc: tuple[bool, bool, bool], zero: tuple[int, ...] = ()) -> Atoms:
    atoms = bulk("Cu") * (3, 3, 3)
    atoms.rattle(0.3, seed=1)
    atoms.cell[list(zero)] = 0.0
    atoms.pbc = pbc
    return atoms


CASES = {
    "water, dummy cell of 1 A, open": Atoms(molecule("H2O"), cell=[1, 1, 1], pbc=False),
    "water, no cell": molecule("H2O"),
    "one atom, no cell": Atoms("H"),
    "two atoms 10 A apart": Atoms("H2", [[0, 0, 0], [0, 0, 10]]),
    "no atoms": Atoms(),
    "slab": fcc111("Cu", (2, 2, 3), vacuum=5.0),
    "slab far outside its cell": _shifted_slab(),
    "slab without third vector": _slab_without_third_vector(),
    "one atom in a primitive cell": bulk("Cu"),
    "a wire": _rattled((False, True, False), zero=(0, 2)),
    "open in the middle": _rattled((True, False, True)),
    "open first, no first vector": _rattled((False, True, True), zero=(0,)),
    "a cloud of 150 atoms": Atoms("C150", np.random.default_rng(0).uniform(0, 12, (150, 3))),
    "two atoms nearly on one place": Atoms("H2", [[0, 0, 0], [0, 0, 1e-5]]),
}
# Edge counts written down in the project's list of neighbour-list edge cases.
COUNTS = {
    "water, dummy cell of 1 A, open": 6,
    "water, no cell": 6,
    "one atom, no cell": 0,
    "two atoms 10 A apart": 0,
    "no atoms": 0,
    "slab": 360,
    "slab far outside its cell": 360,
    "slab without third vector": 360,
    "one atom in a primitive cell": 42,
}


def _graph(atoms: Atoms, cutoff: float = CUTOFF) -> Graph:
    return build_graph(atoms.positions, atoms.numbers, atoms.cell, atoms.pbc, cutoff)


def _edges(graph: Graph) -> set[tuple[int, ...]]:
    source, target = graph.edge_index
    return {tuple(row) for row in torch.cat([target[:, None], source[:, None], graph.edge_shift.long()], 1).tolist()}


@pytest.mark.parametrize("name", CASES)
def test_edges_are_those_of_ase(name: str) -> None:
    """The set of (target, source, shift) is that of ASE's neighbour list, and no edge comes twice."""
    atoms = CASES[name]
    graph = _graph(atoms)
    i, j, shift = neighbor_list("ijS", atoms, CUTOFF)
    assert _edges(graph) == set(zip(i.tolist(), j.tolist(), *shift.T.tolist(), strict=True))
    assert graph.edge_index.shape[1] == len(i) == COUNTS.get(name, len(i))


@pytest.mark.parametrize("name", CASES)
def test_edge_vectors_are_those_of_ase(name: str) -> None:
    """r = x_j - x_i + S h points from target to source, as ASE's D from i to j; edges are sorted by target."""
    atoms = CASES[name]
    graph = _graph(atoms)
    target = graph.edge_index[1]
    assert (target.diff() >= 0).all()
    i, vectors = neighbor_list("iD", atoms, CUTOFF)
    ours = torch.cat([target[:, None].double(), edge_vectors(graph)], 1).numpy()
    theirs = np.concatenate([i[:, None], vectors], 1)
    # Rounded to 1e-6 A before sorting: the two sum in different orders, 1e-14 A apart.
    order = [np.lexsort(np.round(a, 6).T) for a in (ours, theirs)]
    np.testing.assert_allclose(ours[order[0]], theirs[order[1]], atol=1e-10)


def test_wrapping_atoms_changes_no_vector() -> None:
    """Atoms outside a periodic cell have the neighbours of the wrapped ones."""
    outside = _rattled((True, True, True))
    outside.positions += outside.cell[:].T @ [7, -2, 3]
    wrapped = outside.copy()
    wrapped.wrap()
    lengths = [np.sort(edge_vectors(_graph(atoms)).norm(dim=1).numpy()) for atoms in (outside, wrapped)]
    np.testing.assert_allclose(lengths[0], lengths[1], atol=1e-10)


def test_open_direction_ignores_a_lattice_vector_in_the_plane() -> None:
    """What stands in the cell for an open direction does not matter, be it zero, skew or in the periodic plane."""
    slabs = [_rattled((True, True, False)) for _ in range(3)]
    slabs[1].cell[2] = 0.0
    slabs[2].cell[2] = slabs[2].cell[0] + slabs[2].cell[1]
    first, second, third = (_edges(_graph(slab)) for slab in slabs)
    assert len(first) > 300
    assert first == second == third


def test_dense_search_and_cell_lists_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both searches give the same graph bit for bit, order included."""
    atoms = Atoms("C80", np.random.default_rng(3).uniform(0, 9, (80, 3)))
    dense = _graph(atoms)
    monkeypatch.setattr("mdrelax.structures.neighbors.DENSE_ATOMS", 0)
    for ours, theirs in zip(dense, _graph(atoms), strict=True):
        assert torch.equal(ours, theirs)


def test_graph_keeps_the_cell_and_shares_no_memory() -> None:
    """Lattice vectors are kept as given; later changes of the atoms leave the graph alone."""
    slab = _slab_without_third_vector()
    graph = _graph(slab)
    np.testing.assert_array_equal(graph.cell[0].numpy(), slab.cell[:])
    before = graph.positions.clone()
    slab.positions += 1.0
    slab.numbers[:] = 1
    assert torch.equal(graph.positions, before)
    assert (graph.numbers == 29).all()


def test_tensors_and_arrays_give_the_same_graph() -> None:
    """Data sets hold tensors, cells as (1, 3, 3): the graph is that of the numpy arrays, always float64 and int64."""
    atoms = bulk("Cu")
    tensors = build_graph(
        torch.tensor(atoms.positions).requires_grad_(),
        torch.tensor(atoms.numbers, dtype=torch.int32),
        torch.tensor(atoms.cell[:])[None],
        torch.tensor([[True, True, True]]),
        CUTOFF,
    )
    for ours, theirs in zip(tensors, _graph(atoms), strict=True):
        assert torch.equal(ours, theirs)
    dtypes = [tensor.dtype for tensor in tensors]
    assert dtypes == [torch.float64, torch.int64, torch.float64, torch.int64, torch.float64, torch.int64]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cutoff": 0.0}, "`cutoff` must be a length > 0"),
        ({"cutoff": -1.0}, "got -1.0"),
        ({"cutoff": float("nan")}, "`cutoff` must be a length > 0"),
        ({"cutoff": float("inf")}, "`cutoff` must be a length > 0"),
        ({"positions": [[0, 0, 0], [0, 0, np.nan], [0, 1, 0]]}, r"Positions of atoms \[1\] \(of 3\) are NaN"),
        ({"positions": [[0, 0, np.inf], [0, 0, 1], [0, 1, 0]]}, r"Positions of atoms \[0\]"),
        ({"positions": np.zeros((2, 3))}, r"shape \(N, 3\) with N = 3"),
        ({"positions": np.zeros((3, 3)).ravel()}, r"got \(9,\)"),
        ({"cell": np.full((3, 3), np.nan)}, "`cell` must be finite"),
        ({"cell": [1, 2, 3]}, r"`cell` must have shape \(3, 3\)"),
        ({"pbc": [True, False]}, "`pbc` must be one or three booleans"),
        ({"pbc": True}, "periodic along a, b, c"),
        ({"pbc": [True, False, True], "cell": np.diag([4.0, 4.0, 0.0])}, "periodic along a, c.*singular cell"),
        ({"pbc": True, "cell": [[4, 0, 0], [0, 4, 0], [4, 4, 1e-9]]}, "linearly dependent"),
        ({"pbc": True, "cell": 1e200 * np.eye(3)}, "of lengths up to 1e"),
        ({"cutoff": 1e6}, "at most 1000 Angstrom"),
        ({"positions": [[0, 0, 0], [1e10, 0, 0], [0, 1, 0]]}, r"atoms \[1\] \(of 3\) lie more than 1e\+06 A"),
        *(({"numbers": [8, 1, z]}, "from 1 to 118, got") for z in (0, -8, 8.7, 119, 1e30, np.nan, "H", None, 1j)),
    ],
)
def test_impossible_input_is_one_sentence(changes: dict, sentence: str) -> None:
    """Each impossible argument raises ``ValueError`` that names it, instead of a wrong list."""
    water = molecule("H2O")
    arguments = {"positions": water.positions, "numbers": water.numbers, "cutoff": CUTOFF} | changes
    with pytest.raises(ValueError, match=sentence):
        build_graph(**arguments)


@pytest.mark.parametrize("direction", ["all", "one", "open"])
@pytest.mark.parametrize("length", [0.3, 0.1, 0.01, 1e-6, 1e-30])
def test_a_structure_in_another_unit_is_refused_before_it_is_searched(length: float, direction: str) -> None:
    """A cell of 0.1 A took a minute and gigabytes, one of 0.01 A for ever; open clouds and thin cells do alike."""
    atoms = bulk("Cu", cubic=True) if direction != "open" else bulk("Cu", cubic=True) * (12, 12, 12)
    atoms.pbc = direction != "open"
    scale = np.array([1, 1, length * 0.01] if direction == "one" else 3 * [length]) / 3.6
    atoms.set_cell(atoms.cell * scale[:, None], scale_atoms=True)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"neighbours each within 5 A.*check the unit|lattice vectors there"):
        VerletList(4.5, skin=0.5).graph(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
    assert time.monotonic() - start < 1.0


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu"), bulk("C"), bulk("Si", cubic=True) * (3, 3, 3), fcc111("Cu", (3, 3, 20), vacuum=8.0),
        nanotube(6, 0, length=3), graphene(),
    ],
    ids=str,
)  # fmt: skip
def test_the_estimate_of_neighbours_is_right_to_a_factor_of_two(atoms: Atoms) -> None:
    """Crystals, a thick slab, a tube and a sheet: none of them is near the limit."""
    atoms.pbc = atoms.cell.any(axis=1) & atoms.pbc
    expected = neighbours_expected(atoms.positions, atoms.cell.array, atoms.pbc, 5.0)
    graph = build_graph(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, 5.0)
    found = graph.edge_index.shape[1] / len(atoms)
    assert 0.5 < expected / found < 2.0
    assert expected < MOST_NEIGHBOURS / 20


@pytest.mark.parametrize(
    ("moved", "pbc"),
    [([0, 0, 0], False), ([0, 0, 0], True), ([12.0, -8.0, 4.0], True), ([0, 4.0, 0], (False, True, False))],
)
def test_atoms_at_one_point_are_named(moved: list[float], pbc: object) -> None:
    """Directly or through the images of a cell of 4 A, by both ways to a graph; one lattice vector off is no clash."""
    positions = np.array([[0.1, 0.2, 0.3], [1.7, 0.2, 0.3], [2.0, 1.9, 0.3], [1.7, 0.2, 0.3]])
    positions[3] += moved
    arguments = (positions, [8, 1, 1, 1], 4.0 * np.eye(3), pbc)
    for build in (lambda: build_graph(*arguments, cutoff=3.0), lambda: VerletList(3.0).graph(*arguments)):
        with pytest.raises(ValueError, match="Atoms 1 and 3 lie at one point"):
            build()
    positions[3] = positions[1] + [0, 0, 1e-3]
    assert build_graph(*arguments, cutoff=3.0).edge_index.shape[1] > 0


def test_cutoff_left_out_is_an_error() -> None:
    """There is no default cut-off that could be taken silently."""
    with pytest.raises(ValueError, match="`cutoff` must be a length > 0"):
        build_graph(np.zeros((1, 3)), [1])


# --- Verlet list ---


@pytest.mark.parametrize(
    "name", ["water, no cell", "slab without third vector", "one atom in a primitive cell", "a wire"]
)
def test_verlet_list_equals_a_fresh_build_along_a_random_walk(name: str) -> None:
    """Every graph on the way is that of ``build_graph`` bit for bit, with fewer searches than steps."""
    atoms = CASES[name].copy()
    rng = np.random.default_rng(5)
    verlet = VerletList(CUTOFF, skin=0.6)
    for _ in range(60):
        atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        walked = verlet.graph(atoms.positions, atoms.numbers, atoms.cell, atoms.pbc)
        for ours, theirs in zip(walked, _graph(atoms), strict=True):
            assert torch.equal(ours, theirs)
    assert 2 <= verlet.searches < 40


def test_verlet_list_finds_atoms_that_come_from_beyond_the_cutoff() -> None:
    """Two atoms that approach from outside become neighbours in the step in which they are."""
    verlet = VerletList(3.0, skin=1.0)
    for distance in np.arange(6.0, 2.0, -0.05):
        graph = verlet.graph([[0, 0, 0], [0, 0, distance]], [1, 1])
        assert graph.edge_index.shape[1] == (2 if distance < 3.0 else 0)
    assert verlet.searches < 12


def test_verlet_list_follows_cell_pbc_and_numbers() -> None:
    """A change of anything but small moves is a new search; nothing of the old structure remains."""
    verlet = VerletList(CUTOFF, skin=2.0)
    atoms = bulk("Cu")
    changes = [
        lambda: atoms.set_cell(atoms.cell * 1.01),
        lambda: atoms.set_pbc([True, True, False]),
        lambda: atoms.set_atomic_numbers([79]),
        lambda: atoms.extend(Atoms("H", [[0.1, 0, 1]])),
    ]
    for number, change in enumerate(changes, 1):
        change()
        graph = verlet.graph(atoms.positions, atoms.numbers, atoms.cell, atoms.pbc)
        for ours, theirs in zip(graph, _graph(atoms), strict=True):
            assert torch.equal(ours, theirs)
        assert verlet.searches == number


def test_verlet_list_recovers_from_an_error() -> None:
    """After a structure that was refused the list works on, without the remains of either."""
    verlet = VerletList(CUTOFF)
    water = molecule("H2O")
    first = verlet.graph(water.positions, water.numbers)
    with pytest.raises(ValueError, match="singular cell"):
        verlet.graph(water.positions, water.numbers, pbc=True)
    assert torch.equal(verlet.graph(water.positions, water.numbers).edge_index, first.edge_index)


def test_skin_must_not_be_negative() -> None:
    """A negative skin would lose neighbours."""
    with pytest.raises(ValueError, match="`skin` must be a length >= 0"):
        VerletList(CUTOFF, skin=-0.1)
