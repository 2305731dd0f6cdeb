"""The calculator against ASE's Lennard-Jones: numbers, cache, batches, and the tools of ASE that sit on it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from lennard_jones import EPSILON, SIGMA, assert_like_ase, cluster, crystal, lj_calculator, lj_force_field, with_ase
from mdrelax.engines.ase import MDRelaxCalculator


@pytest.mark.parametrize("make", [cluster, crystal, lambda: bulk("Cu"), lambda: Atoms("Ar")])
def test_results_are_those_of_ase_lennard_jones(make: Callable[[], Atoms]) -> None:
    """Energy, forces and stress agree with ASE's implementation: clusters, crystals, primitive cells, one atom."""
    atoms = make()
    atoms.calc = lj_calculator()
    assert_like_ase(atoms)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, False), (False, False, False)])
def test_partly_periodic_cells_agree_with_ase(pbc: tuple[bool, bool, bool]) -> None:
    """Only the periodic directions repeat."""
    atoms = crystal()
    atoms.pbc = pbc
    atoms.calc = lj_calculator()
    assert_like_ase(atoms)


def test_stress_is_the_derivative_of_the_energy() -> None:
    """Voigt stress equals central differences of the energy under strain (strains of 1e-5: error about 1e-9 eV/A^3)."""
    atoms = crystal()
    atoms.calc = lj_calculator()
    numerical = calculate_numerical_stress(atoms, eps=1e-5, voigt=True)
    np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-8)
    assert np.abs(numerical).max() > 1e-2


def test_atomic_energies_sum_to_the_energy_and_free_energy_is_energy() -> None:
    """``energies`` is a decomposition of ``energy``, reference energies included."""
    atoms = cluster()
    atoms.calc = lj_calculator()
    energy = atoms.get_potential_energy()
    assert atoms.get_potential_energies().sum() == pytest.approx(energy, abs=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == energy


# --- no stale results ---


def test_every_change_of_the_structure_gives_new_results() -> None:
    """Positions, cell (with and without atoms), numbers, pbc and number of atoms: each time ASE's numbers."""
    atoms = crystal()
    atoms.calc = lj_calculator(skin=1.0)
    changes = [
        lambda: atoms.rattle(0.01, seed=2),
        lambda: atoms.rattle(0.4, seed=3),
        lambda: atoms.set_cell(atoms.cell[:] * 1.02, scale_atoms=True),
        lambda: atoms.set_cell(atoms.cell[:] * 1.02, scale_atoms=False),
        lambda: atoms.set_atomic_numbers([18] * len(atoms)),
        lambda: atoms.set_pbc([True, False, True]),
        lambda: atoms.set_pbc(True),
        lambda: atoms.pop(0),
        lambda: atoms.translate([30.0, -20.0, 10.0]),
        lambda: atoms.wrap(),
    ]
    for change in changes:
        change()
        assert_like_ase(atoms)


def test_one_calculator_serves_several_structures() -> None:
    """Results follow the structure that asks, in any order."""
    calculator = lj_calculator()
    structures = [cluster(1), crystal(1), cluster(2), Atoms("H"), crystal(1)]
    for atoms in structures:
        atoms.calc = calculator
    for _ in range(2):
        for atoms in structures:
            assert_like_ase(atoms)


def test_unchanged_structures_are_not_computed_again() -> None:
    """Asking twice, or changing charges and magnetic moments that the model does not read, costs no evaluation."""
    atoms = crystal()
    atoms.calc = lj_calculator()
    calls = []
    atoms.calc.force_field.register_forward_hook(lambda *_: calls.append(1))
    atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_stress()
    atoms.set_initial_charges(np.ones(len(atoms)))
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    atoms.get_potential_energy()
    assert len(calls) == 1


def test_results_handed_out_do_not_alias_the_cache() -> None:
    """Writing into returned forces does not change what the calculator says next."""
    atoms = cluster()
    atoms.calc = lj_calculator()
    before = atoms.get_forces().copy()
    atoms.get_forces()[:] = 7.0
    np.testing.assert_array_equal(atoms.get_forces(), before)


def test_later_training_does_not_change_the_calculator() -> None:
    """The calculator owns a copy; the model keeps its mode, precision and gradients."""
    force_field = lj_force_field().train()
    atoms = cluster()
    atoms.calc = MDRelaxCalculator(force_field, dtype="float32")
    before = atoms.get_potential_energy()
    with torch.no_grad():
        force_field.potential.epsilon.mul_(2)  # type: ignore[operator, union-attr]
    atoms.calc.reset()
    assert atoms.get_potential_energy() == before
    assert force_field.training
    assert force_field.dtype == torch.float64
    assert all(parameter.requires_grad for parameter in force_field.parameters())


# --- precision, batches, and ASE's tools ---


def test_float32_network_agrees_with_float64() -> None:
    """Single precision changes forces by rounding only: 1e-5 eV/A beside forces of order 1 eV/A."""
    single, double = crystal(), crystal()
    single.calc, double.calc = lj_calculator(dtype="float32"), lj_calculator(dtype="float64")
    np.testing.assert_allclose(single.get_forces(), double.get_forces(), atol=1e-5)
    assert single.get_forces().dtype == np.float64
    assert not np.array_equal(single.get_forces(), double.get_forces())


def test_a_batch_is_one_by_one() -> None:
    """``calculate_many`` gives the results of single calls, stress where there is a volume, whatever the batch size."""
    structures = [cluster(1), crystal(1), Atoms("H"), crystal(2), cluster(2)]
    calculator = lj_calculator()
    for batch_size in (1, 2, 32):
        for atoms, result in zip(structures, calculator.calculate_many(structures, batch_size=batch_size), strict=True):
            alone = atoms.copy()
            alone.calc = lj_calculator()
            alone.get_forces()
            assert result.keys() == alone.calc.results.keys()
            assert ("stress" in result) == bool(atoms.pbc.all())
            for name, value in alone.calc.results.items():
                np.testing.assert_allclose(result[name], value, atol=1e-11)
    assert calculator.calculate_many([]) == []
    with pytest.raises(ValueError, match="Frame 1: The structure has no atoms"):
        calculator.calculate_many([Atoms("H"), Atoms()])
    with pytest.raises(ValueError, match="`batch_size` must be >= 1"):
        calculator.calculate_many(structures, batch_size=0)


def test_cell_relaxation_reaches_zero_stress() -> None:
    """ASE's ``FrechetCellFilter`` finds the lattice constant that ASE's own Lennard-Jones has no stress at."""
    atoms = bulk("Cu", a=3.7)
    atoms.calc = lj_calculator()
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=100)
    other = with_ase(atoms)
    np.testing.assert_allclose(other.get_stress(), 0.0, atol=1e-5)
    assert not np.allclose(atoms.cell[:], bulk("Cu", a=3.7).cell[:], atol=1e-2)


def test_vibrations_of_a_dimer_have_the_analytic_frequency(tmp_path: Path) -> None:
    """k = 72 epsilon / r^2 at the minimum r of Lennard-Jones; ASE's vibrations find sqrt(k / mu)."""
    length = 2 ** (1 / 6) * SIGMA
    dimer = Atoms("Ar2", [[0, 0, 0], [0, 0, length]])
    dimer.calc = lj_calculator()
    vibrations = Vibrations(dimer, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    energies = vibrations.get_energies()  # eV, hbar omega
    stiffness = 72 * EPSILON / length**2  # eV/A^2
    omega = np.sqrt(2 * stiffness / dimer.get_masses()[0])  # 1 / ASE time
    hbar = units._hbar * units.J * units.s
    # 1e-4 relative: central differences with steps of 1e-3 A in an anharmonic well.
    assert energies[-1].real == pytest.approx(hbar * omega, rel=1e-4)
    assert np.abs(energies[:5]).max() < 0.02 * energies[-1].real
