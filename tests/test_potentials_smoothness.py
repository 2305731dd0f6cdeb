"""The contract, continued: forces are smooth where symmetry makes vectors vanish, as phonons and cold crystals need.

A layer that divides such a vector by its own size turns a displacement d into d / sqrt(d^2 + eps): force constants then
grow without bound as d shrinks, and no test error shows it. Everything is float64 unless a law says otherwise, with the
shaken networks of ``potential_cases``: they have no reason to be harmonic, so the laws are about how force constants
change as the displacement goes to zero. Networks that were trained keep them to 3 % up to 0.03 A: ``bench smoothness``.
"""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor

from mdrelax.forces.forcefield import ForceField
from mdrelax.structures.graph import Edges, Graph, edge_vectors
from molecules import ELEMENTS, batch_of, graph_of, normal
from potential_cases import CASES, force_field_of

DIRECTION = np.array([0.6, -0.48, 0.64])  # a unit vector along nothing in particular
SMOOTH = [name for name, case in CASES.items() if case.smooth]
ROUGH = [name for name, case in CASES.items() if not case.smooth]


def _benzene_with_a_guest() -> Atoms:
    ring = molecule("C6H6")
    return Atoms("O", [ring.positions.mean(0)]) + ring


CRYSTALS = {
    "fcc": bulk("C", "fcc", a=3.6, cubic=True),
    "diamond": bulk("C", "diamond", a=3.57, cubic=True),
    "hcp": bulk("C", "hcp", a=2.5, c=4.1) * (2, 2, 1),
}
SITES = CRYSTALS | {  # of the first atom
    "the C of CH4": molecule("CH4"),
    "the C of CO2": molecule("CO2"),
    "the centre of benzene": _benzene_with_a_guest(),
}


def _moved(atoms: Atoms, distance: float) -> Atoms:
    """The first atom moved so far along ``DIRECTION``."""
    copied = atoms.copy()
    copied.positions[0] += distance * DIRECTION
    return copied


def _force_constants(model: ForceField, atoms: Atoms, distance: float) -> np.ndarray:
    """(N, 3): minus the central difference of all forces, for the first atom along ``DIRECTION``."""
    ahead, behind = (model(graph_of(_moved(atoms, sign * distance))).forces.numpy() for sign in (1, -1))
    return -(ahead - behind) / (2 * distance)


def _change(model: ForceField, atoms: Atoms, distance: float) -> float:
    """How much force constants at a distance differ from those at 1e-4 A, relative to the largest of them."""
    near, far = (_force_constants(model, atoms, d) for d in (1e-4, distance))
    return float(np.linalg.norm(far - near, axis=1).max() / np.linalg.norm(near, axis=1).max())


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", SMOOTH)
def test_force_constants_do_not_depend_on_a_small_displacement(name: str, site: str) -> None:
    """From 1e-4 to 1e-3 A they change by less than 1 %: by the fourth derivatives times d^2, no more."""
    assert _change(force_field_of(name), SITES[site], 1e-3) < 0.01


@pytest.mark.parametrize("name", SMOOTH)
def test_force_constants_change_with_the_square_of_the_displacement(name: str) -> None:
    """From 1e-3 to 3e-3 A the change grows ninefold, as that of an analytic function; the sixth order bends it."""
    near, far = (_change(force_field_of(name), SITES["the C of CH4"], d) for d in (1e-3, 3e-3))
    assert 8 * near - 1e-6 < far < 10 * near + 1e-6


@pytest.mark.parametrize("name", ROUGH)
def test_the_published_norms_break_this_law(name: str) -> None:
    """Even with the mildest eps that was in use, 1e-2: the law can fail."""
    assert _change(force_field_of(name), SITES["the C of CH4"], 1e-3) > 0.01


@pytest.mark.parametrize("name", CASES)
def test_a_network_says_whether_it_is_smooth(name: str) -> None:
    """``roughness`` is None, or half a sentence with the remedy."""
    found = force_field_of(name).roughness
    assert found is None if CASES[name].smooth else "potential.arguments.norm: joint" in found


def _short_waves(model: ForceField, n: int = 512, step: float = 5e-4) -> float:
    """The largest wave shorter than 0.01 A in E'' along a line through methane's C, relative to the size of E''.

    E'' are second differences of the energy. Its slow part, a polynomial of degree 6 over the line's 0.25 A, is taken
    away, and a window keeps the rest from leaking into short waves: they then tell kinks and cusps alone.
    """
    distances = step * (np.arange(n + 2) - (n + 1) / 2)
    energies = model(batch_of(*(_moved(SITES["the C of CH4"], d) for d in distances))).energy.numpy()
    second = np.diff(energies, 2) / step**2
    line = np.linspace(-1, 1, n)
    rest = second - np.polynomial.Polynomial.fit(line, second, 6)(line)
    waves = np.abs(np.fft.rfft(rest * np.hanning(n))) * 4 / n  # amplitudes
    wavelengths = n * step / np.arange(1, len(waves))
    return float(waves[1:][wavelengths < 0.01].max() / np.sqrt((second**2).mean()))


@pytest.mark.parametrize("name", SMOOTH)
def test_the_energy_has_no_structure_finer_than_a_hundredth_of_an_angstrom(name: str) -> None:
    """Waves of E'' shorter than 0.01 A are below 1e-4 of it: rounding, 1e-16 of the energy over the step squared."""
    assert _short_waves(force_field_of(name)) < 1e-4


def test_a_cusp_would_be_seen() -> None:
    """The published norm, at a site where its eps of 1e-5 leaves it a width of a thousandth of an Angstrom."""
    model = copy.deepcopy(force_field_of("equiformer with the published norm"))
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-5
    assert _short_waves(model) > 1e-3


@pytest.mark.parametrize("crystal", CRYSTALS)
@pytest.mark.parametrize("name", SMOOTH)
def test_single_precision_keeps_a_perfect_crystal_at_rest(name: str, crystal: str) -> None:
    """Forces that vanish by symmetry are below 1e-5 eV/A in float32, where a pair of atoms has forces of eV/A."""
    single = copy.deepcopy(force_field_of(name)).to_dtype(torch.float32)
    assert float(single(graph_of(CRYSTALS[crystal] * (2, 1, 1))).forces.abs().max()) < 1e-5


def _energy_of(model: ForceField, graph: Graph, positions: Tensor) -> Tensor:
    species = torch.searchsorted(torch.tensor(ELEMENTS), graph.numbers)
    vectors = edge_vectors(graph._replace(positions=positions))
    return model.scale * model.potential(species, Edges(graph.edge_index, vectors)).sum()


@cache
def _hessian(name: str, site: str) -> Tensor:
    """(3N, 3N) by automatic differentiation."""
    graph = graph_of(SITES[site])
    positions = graph.positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_energy_of(force_field_of(name), graph, positions), positions, create_graph=True)
    rows = [torch.autograd.grad(g, positions, retain_graph=True)[0].flatten() for g in gradient.flatten()]
    return torch.stack(rows)


@pytest.mark.parametrize("site", ["fcc", "the C of CH4"])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_hessian_at_a_symmetric_site_is_symmetric_and_the_numerical_one(name: str, site: str) -> None:
    """To 1e-8 and, for differences of forces over 2e-4 A, to 1e-4 of its largest entry."""
    exact = _hessian(name, site)
    size = float(exact.abs().max())
    assert float((exact - exact.T).abs().max()) < 1e-8 * size
    numerical = torch.from_numpy(_force_constants(force_field_of(name), SITES[site], 1e-4)).flatten()
    along = torch.zeros(len(exact), dtype=torch.float64)
    along[:3] = torch.from_numpy(DIRECTION)
    torch.testing.assert_close(exact @ along, numerical, rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", SMOOTH)
def test_third_derivatives_at_symmetric_sites_are_finite(name: str, site: str) -> None:
    """By automatic differentiation along a random direction of all atoms: no square root of zero is differentiated."""
    graph = graph_of(SITES[site])
    positions = graph.positions.clone().requires_grad_()
    direction = normal(*positions.shape, seed=0)
    derivative = _energy_of(force_field_of(name), graph, positions)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(derivative, positions, create_graph=True)
        derivative = (gradient * direction).sum()
    assert gradient.isfinite().all()
    assert gradient.any()
