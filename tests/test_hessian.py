"""The exact Hessian against differences of forces and analytic force constants, molecules and crystals."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import nn

from lennard_jones import EPSILON, SIGMA, cluster, crystal, lj_calculator, lj_force_field, with_ase
from mdrelax.engines import hessian as module
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.hessian import hessian, hessian_products
from mdrelax.forces.forcefield import ForceField
from molecules import ELEMENTS, batch_of, ethanol, graph_of, tiny_equiformer, tiny_equiformer_pytorch, tiny_segnn
from molecules import crystal as co_crystal

STEP = 1e-3  # A; the error of central differences is its square times the fourth derivative


def by_differences(atoms: Atoms, rows: list[int]) -> np.ndarray:
    """-dF/dx (R, 3, N, 3) by central differences of the forces of ``atoms.calc``, which may be anyone's."""
    found = np.zeros((len(rows), 3, len(atoms), 3))
    for number, row in enumerate(rows):
        for axis in range(3):
            sides = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.positions[row, axis] += sign * STEP
                sides.append(moved.get_forces().copy())
            found[number, axis] = -(sides[0] - sides[1]) / (2 * STEP)
    return found


@pytest.mark.parametrize("make", [cluster, crystal, lambda: bulk("Cu"), lambda: bulk("Cu", cubic=True) * (2, 2, 2)])
def test_the_hessian_is_that_of_ase_lennard_jones(make: Callable[[], Atoms]) -> None:
    """Differences of ASE's own forces, to the error of the differences (1e-4 of stiffnesses of order 10 eV/A^2).

    In the primitive cell every image of the atom moves with it, so that its Hessian is zero.
    """
    atoms = make()
    rows = [0, len(atoms) - 1]
    found = lj_calculator().get_hessian(atoms)
    wanted = by_differences(with_ase(atoms), rows)
    np.testing.assert_allclose(found[rows], wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()))
    assert np.abs(found).max() > 0.1 or len(atoms) == 1


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "equiformer": tiny_equiformer,
    "segnn": tiny_segnn,
    "equiformer-pytorch": tiny_equiformer_pytorch,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("make", [ethanol, co_crystal])
def test_the_hessian_of_a_network_is_that_of_its_forces(name: str, make: Callable[[], Atoms]) -> None:
    """Exact against central differences (3e-4 of the largest entry: their own error); symmetric; rows sum to zero."""
    atoms = make()
    atoms.rattle(0.05, seed=3)
    atoms.calc = MDRelaxCalculator(ForceField(NETWORKS[name](), elements=ELEMENTS))
    n = len(atoms)
    found = atoms.calc.get_hessian(atoms)
    size = np.abs(found).max()
    np.testing.assert_allclose(found[[0, n - 1]], by_differences(atoms, [0, n - 1]), atol=3e-4 * size)
    matrix = found.reshape(3 * n, 3 * n)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12 * size)
    np.testing.assert_allclose(found.sum(axis=2), 0.0, atol=1e-12 * size)  # a translation costs no force


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_one_by_one_and_many_at_once_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows share passes in small structures only; numbers and order are those of ``rows`` either way."""
    field, graph = ForceField(NETWORKS[name](), elements=ELEMENTS), graph_of(ethanol())
    together = hessian(field, graph, [7, 0])
    monkeypatch.setattr(module, "ROWS_TIMES_EDGES", 1)
    np.testing.assert_allclose(hessian(field, graph, [7, 0]), together, atol=1e-13 * np.abs(together).max())
    np.testing.assert_allclose(hessian(field, graph)[[7, 0]], together, atol=1e-13 * np.abs(together).max())


def test_products_are_those_of_the_matrix() -> None:
    """H u without H: random directions, and a shape that does not fit."""
    field, graph = lj_force_field(), graph_of(cluster())
    directions = np.random.default_rng(0).normal(size=(4, 6, 3))
    wanted = np.einsum("iajb,rjb->ria", hessian(field, graph), directions)
    np.testing.assert_allclose(hessian_products(field, graph, directions), wanted, atol=1e-12 * np.abs(wanted).max())
    with pytest.raises(
        ValueError, match=r"`directions` must be real numbers of shape \(R, 6, 3\), got float64 of shape \(4, 3\)"
    ):
        hessian_products(field, graph, directions[:, 0])


def test_a_float32_model_is_differentiated_in_float64() -> None:
    """The Hessian of a float32 calculator is that of its weights in float64; the model keeps its precision."""
    atoms = cluster()
    single = lj_calculator(dtype="float32")
    np.testing.assert_allclose(single.get_hessian(atoms), lj_calculator().get_hessian(atoms), rtol=1e-6, atol=1e-7)
    assert single.force_field.dtype == torch.float32


def test_a_pair_has_the_analytic_force_constant() -> None:
    """k = 72 epsilon / r^2 at the minimum of Lennard-Jones, opposite between the two atoms, nothing sideways."""
    length = 2 ** (1 / 6) * SIGMA
    found = hessian(lj_force_field(), graph_of(Atoms("Ar2", [[0, 0, 0], [0, 0, length]])))
    stiffness = 72 * EPSILON / length**2
    assert found[0, 2, 0, 2] == pytest.approx(stiffness, rel=1e-12)
    assert found[0, 2, 1, 2] == pytest.approx(-stiffness, rel=1e-12)
    np.testing.assert_allclose(found[:, :2], 0.0, atol=1e-12)


def test_atoms_without_neighbours_have_no_force_constants() -> None:
    """Zeros of the right shape where there are no edges."""
    apart = Atoms("Ar2", [[0, 0, 0], [0, 0, 50.0]])
    assert not lj_calculator().get_hessian(apart).any()
    assert lj_calculator().get_hessian(Atoms("Ar")).shape == (1, 3, 1, 3)


def test_what_has_no_hessian_is_refused_with_a_sentence() -> None:
    """Direct forces, compiled models, batches, rows that are no atoms, no atoms."""
    direct = ForceField(tiny_equiformer_pytorch(forces="direct"), elements=ELEMENTS)
    with pytest.raises(ValueError, match="no gradient of an energy"):
        hessian(direct, graph_of(ethanol()))
    compiled = lj_force_field()
    compiled.potential.differentiable_twice = False
    with pytest.raises(ValueError, match="A compiled model has no second derivatives"):
        hessian(compiled, graph_of(Atoms("Ar")))
    with pytest.raises(ValueError, match="one structure at a time, got a batch of 2"):
        hessian(lj_force_field(), batch_of(Atoms("Ar"), Atoms("Ar")))
    with pytest.raises(ValueError, match=r"`rows` must be atoms from 0 to 0, got \[1\]"):
        hessian(lj_force_field(), graph_of(Atoms("Ar")), [1])
    with pytest.raises(ValueError, match="has no atoms"):
        lj_calculator().get_hessian(Atoms())
    with pytest.raises(ValueError, match="pass `atoms`"):
        lj_calculator().get_hessian()
