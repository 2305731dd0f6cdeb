"""Normal modes against analytic frequencies, ASE's own, and the laws of harmonic thermodynamics."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read
from ase.vibrations import VibrationsData

from lennard_jones import EPSILON, SIGMA, lj_calculator
from mdrelax.analysis.geometry import NotRelaxedError, bare, relax, what_broke
from mdrelax.analysis.vibrations import (
    NormalModes,
    describe_imaginary,
    exact_vibrations,
    finite_vibrations,
    harmonic_thermochemistry,
    mode_table,
    normal_modes,
    write_modes,
)

LENGTH = 2 ** (1 / 6) * SIGMA  # A, of a Lennard-Jones pair


def dimer() -> Atoms:
    """Two argon atoms at the minimum."""
    return Atoms("Ar2", [[0, 0, 0], [0, 0, LENGTH]])


def exact(atoms: Atoms, *, relaxed: bool = True) -> NormalModes:
    """The modes of Lennard-Jones, of the relaxed structure or as it stands."""
    calculator = lj_calculator()
    found = relax(atoms, calculator, fmax=1e-8).atoms if relaxed else atoms
    return normal_modes(exact_vibrations(found, calculator))


def emt(atoms: Atoms) -> tuple[VibrationsData, NormalModes]:
    """ASE's effective-medium potential, whose molecules vibrate as well as any, relaxed."""
    found = relax(atoms, EMT(), fmax=1e-6).atoms
    data = finite_vibrations(found, EMT(), delta=1e-3)
    return data, normal_modes(data)


def per_cm(stiffness: float, mass: float) -> float:
    """The wavenumber of sqrt(k / m), for eV/A^2 and amu, by SI units."""
    omega = np.sqrt(stiffness * units._e * 1e20 / (mass * units._amu))
    return omega / (2 * np.pi * units._c * 100)


def test_a_pair_vibrates_at_the_analytic_frequency() -> None:
    """omega = sqrt(k / mu) with k = 72 epsilon / r^2, exact to rounding, by differences to 1e-4."""
    stiffness, reduced = 72 * EPSILON / LENGTH**2, dimer().get_masses()[0] / 2
    wanted = per_cm(stiffness, reduced)
    assert exact(dimer(), relaxed=False).vibrations == pytest.approx([wanted], rel=1e-9)
    finite = normal_modes(finite_vibrations(dimer(), lj_calculator(), delta=1e-3))
    assert finite.vibrations == pytest.approx([wanted], rel=1e-4)


def test_masses_of_the_structure_are_used() -> None:
    """Four times the mass, half the frequency: isotopes are set with ``set_masses``, and ``bare`` keeps them."""
    heavy = dimer()
    heavy.set_masses(4 * heavy.get_masses())
    assert exact(heavy).vibrations == pytest.approx(exact(dimer()).vibrations / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "rigid"),
    [
        (lambda: molecule("H2O"), {"translation": 3, "rotation": 3, "vibration": 3}),
        (lambda: molecule("C2H2"), {"translation": 3, "rotation": 2, "vibration": 7}),
        (lambda: molecule("N2"), {"translation": 3, "rotation": 2, "vibration": 1}),
    ],
)
def test_a_molecule_has_six_rigid_motions_and_a_linear_one_five(make: Callable[[], Atoms], rigid: dict) -> None:
    """They come first, cost no energy at the minimum (below 5 / cm: differences), and the rest are vibrations."""
    _, modes = emt(make())
    assert Counter(modes.kinds) == rigid
    assert np.abs(modes.wavenumbers[~modes.is_vibration]).max() < 5.0
    assert np.all(np.diff(modes.vibrations) >= 0)


def test_at_a_minimum_the_frequencies_are_those_of_ase() -> None:
    """The projection changes nothing where forces are zero: ASE's wavenumbers, and its zero-point energy."""
    data, modes = emt(molecule("H2O"))
    theirs = np.sort(data.get_frequencies().real)[-3:]
    np.testing.assert_allclose(modes.vibrations, theirs, rtol=1e-5)
    assert modes.zero_point_energy == pytest.approx(
        data.get_zero_point_energy(), abs=4e-4
    )  # they count what rotations have
    assert modes.zero_point_energy == pytest.approx(0.5 * units.invcm * modes.vibrations.sum(), rel=1e-12)


def test_vibrations_are_free_of_rotation_where_forces_remain() -> None:
    """Turned as a whole, a strained molecule feels its forces; its vibrations are still orthogonal to the rotations."""
    atoms = molecule("H2O")
    atoms.rattle(0.1, seed=0)
    modes = normal_modes(finite_vibrations(atoms, EMT()))
    flat = modes.vectors.reshape(9, 9)
    np.testing.assert_allclose(flat @ flat.T, np.eye(9), atol=1e-10)
    momentum = modes.vectors[6:] * np.sqrt(atoms.get_masses())[:, None]
    np.testing.assert_allclose(momentum.sum(1), 0.0, atol=1e-10)
    np.testing.assert_allclose(np.cross(atoms.positions, momentum).sum(1), 0.0, atol=1e-9)


def test_imaginary_modes_of_a_saddle_point_are_named() -> None:
    """Three argon atoms in a row: both bends are imaginary and move the middle atom most; the triangle has none."""
    row = exact(Atoms("Ar3", [[0, 0, k * LENGTH] for k in range(3)]))
    assert len(row.imaginary) == 2
    assert (row.vibrations[:2] < 0).all()
    first, second = describe_imaginary(row)
    assert first.startswith("Mode 6 is imaginary, ")
    assert "i / cm (most moved: Ar1" in first
    assert second.startswith("Mode 7 is imaginary")
    assert mode_table(row).imaginary.tolist() == [False] * 5 + [True] * 2 + [False] * 2
    corners = [[0, 0, 0], [LENGTH, 0, 0], [LENGTH / 2, LENGTH * 0.75**0.5, 0]]
    assert describe_imaginary(exact(Atoms("Ar3", corners))) == []


def test_planar_ammonia_is_the_barrier_of_inversion() -> None:
    """GFN2-xTB: one imaginary mode, the umbrella, in which the hydrogens move; the pyramid has none."""
    calculator = pytest.importorskip("tblite.ase").TBLite(method="GFN2-xTB", verbosity=0)
    corners = [[np.cos(a), np.sin(a), 0.0] for a in 2 * np.pi / 3 * np.arange(3)]
    planar = relax(Atoms("NH3", [[0, 0, 0], *corners]), calculator, fmax=1e-3).atoms
    modes = normal_modes(finite_vibrations(planar, calculator))
    assert len(modes.imaginary) == 1
    assert -1500 < modes.vibrations[0] < -500
    moved = modes.displacements(modes.imaginary[0])
    assert np.abs(moved[:, :2]).max() < 1e-3  # out of the plane
    assert (
        "H1, H2, H3" in describe_imaginary(modes)[0].replace("H1, H3, H2", "H1, H2, H3")
        or "H" in describe_imaginary(modes)[0]
    )
    pyramid = relax(molecule("NH3"), calculator, fmax=1e-3).atoms
    assert normal_modes(finite_vibrations(pyramid, calculator)).imaginary == []


# --- thermochemistry ---


def test_hot_vibrations_are_classical() -> None:
    """kT of energy and kB of heat capacity each, at a temperature far above the quanta."""
    _, modes = emt(molecule("H2O"))
    hot = harmonic_thermochemistry(modes, 1e6)
    assert hot["heat_capacity_eV_per_K"] == pytest.approx(3 * units.kB, rel=1e-4)
    assert hot["vibrational_energy_eV"] == pytest.approx(3 * units.kB * 1e6, rel=1e-4)


def test_cold_vibrations_keep_their_zero_point_energy() -> None:
    """Nothing else at 0 K and at 1 K."""
    _, modes = emt(molecule("H2O"))
    for temperature in (0.0, 1.0):
        cold = harmonic_thermochemistry(modes, temperature)
        assert cold["vibrational_energy_eV"] == pytest.approx(modes.zero_point_energy, rel=1e-12)
        assert cold["entropy_eV_per_K"] == pytest.approx(0.0, abs=1e-12)
        assert cold["heat_capacity_eV_per_K"] == pytest.approx(0.0, abs=1e-12)


def test_heat_capacity_and_entropy_are_derivatives() -> None:
    """C = dU/dT and S = -dF/dT, by differences of 1 K."""
    _, modes = emt(molecule("H2O"))
    low, middle, high = (harmonic_thermochemistry(modes, t) for t in (599.0, 600.0, 601.0))
    slope = (high["vibrational_energy_eV"] - low["vibrational_energy_eV"]) / 2
    assert middle["heat_capacity_eV_per_K"] == pytest.approx(slope, rel=1e-4)
    assert middle["entropy_eV_per_K"] == pytest.approx((low["free_energy_eV"] - high["free_energy_eV"]) / 2, rel=1e-4)


# --- files, and what is refused ---


def test_modes_are_written_for_viewers(tmp_path: Path) -> None:
    """One frame per vibration with its displacements, the largest of them 1; ASE reads them back."""
    _, modes = emt(molecule("H2O"))
    write_modes(modes, tmp_path / "modes.xyz")
    frames = read(tmp_path / "modes.xyz", ":")
    assert [frame.info["mode_number"] for frame in frames] == [7, 8, 9]
    assert [frame.info["wavenumber_per_cm"] for frame in frames] == pytest.approx(modes.vibrations)
    assert [np.linalg.norm(frame.arrays["mode"], axis=1).max() for frame in frames] == pytest.approx([1.0] * 3)


def test_relaxation_leaves_the_structure_and_says_when_it_fails() -> None:
    """A copy is relaxed; too few steps, and a force that is none, are errors with a sentence."""
    start = Atoms("Ar2", [[0, 0, 0], [0, 0, 1.2 * LENGTH]])
    found = relax(start, lj_calculator(), fmax=1e-6)
    assert found.atoms.get_distance(0, 1) == pytest.approx(LENGTH, abs=1e-6)
    assert start.get_distance(0, 1) == 1.2 * LENGTH
    assert found.largest_force <= 1e-6
    with pytest.raises(NotRelaxedError, match="after 1 steps, and `fmax` is 1e-08"):
        relax(start, lj_calculator(), fmax=1e-8, steps=1)
    with pytest.raises(ValueError, match="`fmax` must be a force > 0"):
        relax(start, lj_calculator(), fmax=float("nan"))


def test_a_bond_that_relaxation_broke_is_named() -> None:
    """With its lengths before and after."""
    start, far = molecule("H2"), molecule("H2")
    far.positions[1] += [0, 0, -3]
    assert what_broke(far, start).startswith("Relaxation broke the bond H0-H1: 3.74 A, before 0.74 A.")
    assert what_broke(start, start) == ""


def test_a_bare_structure_has_neither_constraints_nor_labels() -> None:
    """Elements, positions, cell, pbc and masses stay."""
    atoms = molecule("H2O")
    atoms.calc, atoms.info["label"] = EMT(), 1
    atoms.set_constraint(FixAtoms([0]))
    atoms.arrays["forces"] = np.ones((3, 3))
    atoms.set_masses(atoms.get_masses() + 1)
    copy = bare(atoms)
    assert copy.calc is None
    assert not copy.info
    assert not copy.constraints
    assert set(copy.arrays) == {"numbers", "positions", "masses"}
    np.testing.assert_array_equal(copy.get_masses(), atoms.get_masses())


@pytest.mark.parametrize("delta", [0.0, -0.01, 0.6, float("nan")])
def test_an_impossible_displacement_is_refused(delta: float) -> None:
    """Zero, negative, larger than a bond can bear, not a number."""
    with pytest.raises(ValueError, match="`delta` must be a displacement"):
        finite_vibrations(dimer(), lj_calculator(), delta=delta)


def test_atoms_and_temperatures_that_cannot_be_are_refused() -> None:
    """One atom does not vibrate; there is nothing below 0 K."""
    with pytest.raises(ValueError, match="Ar has no vibrations"):
        normal_modes(VibrationsData(Atoms("Ar"), np.zeros((1, 3, 1, 3))))
    with pytest.raises(ValueError, match="`temperature` must be >= 0 K"):
        harmonic_thermochemistry(exact(dimer()), -1.0)
