"""What a trajectory tells: bonds and temperatures, on frames made by hand."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule

from mdrelax.analysis.trajectory import bonds, broken_bonds, temperatures


def _stretched(factor: float, time_fs: float) -> Atoms:
    """Water with its first O-H bond stretched."""
    atoms = molecule("H2O")
    atoms.positions[1] = atoms.positions[0] + factor * (atoms.positions[1] - atoms.positions[0])
    atoms.info["time_fs"] = time_fs
    return atoms


@pytest.mark.parametrize(("name", "count"), [("CH3CH2OH", 8), ("C6H6", 12), ("H2O", 2), ("H", 0)])
def test_bonds_are_those_of_the_structural_formula(name: str, count: int) -> None:
    """Ethanol has 8 bonds, benzene 12, water 2, an atom none."""
    assert len(bonds(molecule(name))) == count


def test_silicon_has_four_bonds_an_atom_through_the_cell() -> None:
    """Bonds through the periodic boundary count: 8 atoms, 4 bonds each, every bond shared by two."""
    pairs = bonds(bulk("Si", cubic=True) * (2, 2, 2))
    np.testing.assert_array_equal(np.bincount(pairs.ravel()), 4)


def test_first_broken_bond_is_found_with_its_frame_and_time() -> None:
    """Stretching to 1.4 holds at factor 1.5, 1.6 does not: the frame, its time, the pair and the lengths are named."""
    frames = [_stretched(factor, 10.0 * n) for n, factor in enumerate((1.0, 1.4, 1.6, 1.9))]
    broken = broken_bonds(frames, frames[0])
    assert broken is not None
    assert (broken.frame, broken.time_fs, broken.atoms) == (2, 20.0, (0, 1))
    assert broken.length == pytest.approx(1.6 * broken.reference_length)
    assert broken_bonds(frames[:2], frames[0]) is None
    assert broken_bonds(frames, frames[0], factor=2.0) is None


def test_positions_that_are_not_numbers_count_as_broken() -> None:
    """An exploded frame is found, not passed over."""
    frame = molecule("H2O")
    frame.positions[2] = np.nan
    broken = broken_bonds([molecule("H2O"), frame], molecule("H2O"))
    assert broken is not None
    assert (broken.frame, broken.atoms) == (1, (0, 2))
    assert np.isnan(broken.time_fs)


def test_wrapped_atoms_break_no_bond() -> None:
    """An atom that leaves the cell on one side and comes back on the other keeps its bonds."""
    reference = bulk("Si", cubic=True) * (2, 2, 2)
    moved = reference.copy()
    moved.positions += [1.3, -2.1, 0.4]
    moved.wrap()
    assert np.abs(moved.positions - reference.positions).max() > 5.0
    assert broken_bonds([moved], reference, factor=1.01) is None


def test_other_atoms_and_senseless_factors_are_refused() -> None:
    """Frames must hold the atoms of the reference, and a factor of 1 or less would break every bond."""
    with pytest.raises(ValueError, match="Frame 0 contains other atoms"):
        broken_bonds([molecule("CH4")], molecule("H2O"))
    with pytest.raises(ValueError, match="`factor` must be > 1"):
        broken_bonds([], molecule("H2O"), factor=1.0)


def test_temperature_counts_what_moves() -> None:
    """1 eV of kinetic energy in an atom of a water molecule: 2 E / (3 kB) in NVE, 2 E / (9 kB) with a thermostat."""
    atoms = molecule("H2O")
    mass = atoms.get_masses()[0]
    atoms.set_momenta([[np.sqrt(2 * mass), 0, 0], [0, 0, 0], [0, 0, 0]])
    assert temperatures([atoms, atoms]) == pytest.approx([2 / (3 * units.kB)] * 2)
    assert temperatures([atoms], ensemble="nvt") == pytest.approx([2 / (9 * units.kB)])
