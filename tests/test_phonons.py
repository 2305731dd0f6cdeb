"""Phonons by phonopy against ase.phonons, elastic constants and the laws of heat; exact against finite differences."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.phonons import Phonons

from lennard_jones import CUTOFF, lj_calculator, lj_force_field, with_ase
from mdrelax.analysis.geometry import relax
from mdrelax.analysis.phonon_properties import (
    band_table,
    density_of_states,
    describe_imaginary,
    find_imaginary,
    lowest_frequency,
    mesh_size,
    sample_mesh,
    sound_velocities,
    thermal_properties,
)
from mdrelax.analysis.phonons import (
    drift,
    exact_force_constants,
    finite_force_constants,
    make_phonopy,
    primitive_cell,
    require_phonopy,
    supercell_size,
)
from mdrelax.engines.hessian import hessian
from molecules import graph_of

phonopy = pytest.importorskip("phonopy")

THZ_PER_EV = units._e / units._hplanck * 1e-12


def exact(atoms: Atoms, size: tuple[int, int, int]) -> "phonopy.Phonopy":
    """Phonopy with the exact force constants of Lennard-Jones, symmetrised."""
    phonon = make_phonopy(atoms, size)
    exact_force_constants(phonon, lj_calculator())
    phonon.symmetrize_force_constants(show_drift=False)
    return phonon


@pytest.fixture(scope="module")
def copper() -> Atoms:
    """The primitive fcc cell of Lennard-Jones, relaxed."""
    return relax(bulk("Cu", a=3.8), lj_calculator(), fmax=1e-8, cell=True).atoms


@pytest.fixture(scope="module")
def phonon(copper: Atoms) -> "phonopy.Phonopy":
    """Its phonons in a supercell wider than twice the cut-off."""
    return exact(copper, (6, 6, 6))


# --- force constants ---


@pytest.mark.parametrize("name", ["Al", "Cu"])
def test_bands_are_those_of_ase_phonons(tmp_path: Path, name: str) -> None:
    """ASE's own phonon code with EMT and the same displacements: equal at the wave vectors that the supercell holds."""
    atoms, size, delta = bulk(name), (4, 4, 4), 0.01
    theirs = Phonons(atoms, EMT(), supercell=size, delta=delta, name=str(tmp_path / "phonons"))
    theirs.run()
    theirs.read(acoustic=True)
    q = np.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.5], [0.25, 0.25, 0.0], [0.25, 0.5, 0.75], [0.25, 0, 0]])
    ours = make_phonopy(atoms, size)
    assert finite_force_constants(ours, EMT(), delta=delta) < 6  # symmetry needs fewer displacements
    ours.symmetrize_force_constants(show_drift=False)
    wanted = np.sort(THZ_PER_EV * theirs.band_structure(q, verbose=False), axis=1)
    np.testing.assert_allclose(ours.run_qpoints(q).frequencies, wanted, rtol=2e-3)
    assert wanted.min() > 1.0


@pytest.mark.parametrize("make", [lambda: bulk("Cu", a=3.7), lambda: bulk("Cu", "hcp", a=2.6, c=4.3)])
def test_exact_force_constants_are_those_of_displacements(make) -> None:
    """Automatic differentiation against small displacements (1e-3 A), one and two atoms in the primitive cell.

    Symmetry spares most directions: the rows of the Hessian itself, all of them, say the same.
    """
    one, other = make_phonopy(make(), (4, 4, 3)), make_phonopy(make(), (4, 4, 3))
    assert exact_force_constants(one, lj_calculator()) < 3 * len(one.primitive)
    finite_force_constants(other, lj_calculator(), delta=1e-3)
    cell = one.supercell
    atoms = Atoms(cell.symbols, cell=cell.cell, scaled_positions=cell.scaled_positions, pbc=True)
    rows = hessian(lj_force_field(), graph_of(atoms, CUTOFF), one.primitive.p2s_map)  # (P, 3, S, 3)
    np.testing.assert_allclose(one.force_constants, rows.transpose(0, 2, 1, 3), atol=1e-5)
    assert one.force_constants.shape == other.force_constants.shape == (len(one.primitive), len(one.supercell), 3, 3)
    np.testing.assert_allclose(one.force_constants, other.force_constants, atol=2e-4)
    assert np.abs(one.force_constants).max() > 1.0


def test_exact_force_constants_keep_the_sum_rule_by_themselves(copper: Atoms) -> None:
    """A shift of the crystal costs no force: violated by rounding only; displacements violate it more."""
    phonon = make_phonopy(copper, (3, 3, 3))
    with pytest.raises(ValueError, match="no force constants yet"):
        drift(phonon)
    exact_force_constants(phonon, lj_calculator())
    assert drift(phonon) < 1e-12


def test_conventional_and_primitive_cells_have_the_same_phonons(copper: Atoms) -> None:
    """The primitive cell is found by symmetry, so that bands are not folded: three branches from four atoms."""
    lattice = 2**0.5 * np.linalg.norm(copper.cell[0])
    one, other = exact(copper, (6, 6, 6)), exact(bulk("Cu", a=lattice, cubic=True), (3, 3, 3))
    assert len(primitive_cell(other)) == 1
    own, theirs = (band_table(p, "GXL").filter(like="_THz").to_numpy() for p in (one, other))
    assert theirs.shape[1] == 3
    assert np.abs(own.max(0) - theirs.max(0)).max() < 0.05  # other supercells interpolate a little differently
    assert np.abs(own[-1] - theirs[-1]).max() < 0.05


@pytest.mark.parametrize("cutoff", [3.0, 6.5])
def test_the_supercell_is_the_smallest_that_is_wide_enough(cutoff: float) -> None:
    """10 A and twice the cut-off between opposite faces, and no longer so with one repetition less."""
    atoms = bulk("CO", "rocksalt", a=4.0)
    atoms.set_cell([[3.0, 0, 0], [1.5, 2.5, 0], [0.3, 0.4, 7.0]])
    size = supercell_size(atoms, cutoff)
    wanted = max(10.0, 2 * cutoff)
    widths = 1 / np.linalg.norm(np.linalg.inv(atoms.cell.array), axis=0)
    assert all(n * width >= wanted > (n - 1) * width for n, width in zip(size, widths, strict=True))


# --- what follows from them ---


def test_sound_has_the_velocities_of_the_elastic_constants(copper: Atoms, phonon: "phonopy.Phonopy") -> None:
    """Along a cube axis sqrt(C11 / rho) and twice sqrt(C44 / rho), with C from ASE's own stress (to 1 %)."""
    crystal = with_ase(bulk("Cu", a=2**0.5 * np.linalg.norm(copper.cell[0]), cubic=True))
    start, strain = crystal.cell.array.copy(), 1e-3
    slopes = []
    for tensor in (np.diag([1.0, 0, 0]), np.array([[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]])):
        sides = []
        for sign in (1, -1):
            crystal.set_cell(start @ (np.eye(3) + sign * strain * tensor), scale_atoms=True)
            sides.append(crystal.get_stress())
        slopes.append((sides[0] - sides[1]) / (2 * strain))
    c11, c44 = slopes[0][0], slopes[1][3]
    density = 4 * crystal.get_masses()[0] / np.linalg.det(start)
    metres_per_second = np.sqrt(units._e / units._amu)  # of sqrt(eV / amu)
    sound = sound_velocities(phonon, band_table(phonon)).set_index("towards")
    assert sound.loc["X", "fastest_m_per_s"] == pytest.approx(np.sqrt(c11 / density) * metres_per_second, rel=0.01)
    for name in ("slowest_m_per_s", "middle_m_per_s"):
        assert sound.loc["X", name] == pytest.approx(np.sqrt(c44 / density) * metres_per_second, rel=0.01)
    assert (sound.linearity - 1).abs().max() < 0.01


def test_states_are_counted_and_heat_is_classical_when_hot(phonon: "phonopy.Phonopy") -> None:
    """Three states an atom; 3 kB an atom at high temperature; at 0 K half a quantum of each mode and no entropy."""
    sample_mesh(phonon, mesh_size(phonon))
    dos = density_of_states(phonon)
    assert np.trapezoid(dos.dos_per_THz, dos.frequency_THz) == pytest.approx(3.0, rel=0.01)
    heat = thermal_properties(phonon, np.array([0.0, 5000.0]))
    assert heat.heat_capacity_eV_per_K[1] == pytest.approx(3 * units.kB, rel=1e-3)
    mean = np.trapezoid(dos.dos_per_THz * dos.frequency_THz, dos.frequency_THz)
    assert heat.free_energy_eV[0] == pytest.approx(0.5 * mean / THZ_PER_EV, rel=0.01)
    assert heat.entropy_eV_per_K[0] == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="Temperatures must be >= 0 K"):
        thermal_properties(phonon, np.array([-1.0]))


def test_the_path_is_the_lattices_own(phonon: "phonopy.Phonopy") -> None:
    """fcc: from Gamma, with three silent branches there; distances in 1/A, segment after segment."""
    table = band_table(phonon)
    names = table[table.label != ""]
    assert names.label.tolist()[:4] == ["G", "X", "X", "W"]
    assert names.label.iloc[-1] == "X"
    gamma = table[table.label == "G"].filter(like="_THz").to_numpy()
    np.testing.assert_allclose(gamma, 0.0, atol=1e-3)
    edge = names[names.label == "X"].iloc[0].distance_per_A
    lattice = 2**0.5 * np.linalg.norm(phonon.primitive.cell[0])
    assert edge == pytest.approx(2 * np.pi / lattice, rel=1e-6)  # Gamma to X
    assert table.branch_3_per_cm.max() == pytest.approx(table.branch_3_THz.max() * 33.35641, rel=1e-6)
    assert band_table(phonon, "GL").label.tolist()[-1] == "L"
    with pytest.raises(ValueError, match=r"`--path` names Q, and the lattice has G, K, L, U, W, X"):
        band_table(phonon, "GQ")
    with pytest.raises(ValueError, match="two different points"):
        band_table(phonon, "G")


def test_imaginary_modes_are_named_with_their_wave_vector(phonon: "phonopy.Phonopy") -> None:
    """A simple cubic Lennard-Jones crystal shears without resistance; the fcc crystal has no imaginary mode."""
    cubic = relax(bulk("Cu", "sc", a=2.6), lj_calculator(), fmax=1e-6, cell=True).atoms
    unstable = exact(cubic, (5, 5, 5))
    bands = band_table(unstable)
    sample_mesh(unstable, (8, 8, 8))
    found = find_imaginary(unstable, bands)
    assert found[0].frequency_THz == pytest.approx(lowest_frequency(unstable, bands), abs=1e-6)
    assert {mode.label for mode in found} & {"X", "M", "R"}
    assert all(mode.atoms == ["Cu0"] for mode in found)
    sentences = describe_imaginary(found)
    assert "i THz at q = " in sentences[0]
    assert any("at q = X = (0, 0.5, 0)" in sentence for sentence in sentences)
    sample_mesh(phonon, (8, 8, 8))
    assert find_imaginary(phonon, band_table(phonon)) == []


def test_phonopy_goes_on_with_the_file(tmp_path: Path, phonon: "phonopy.Phonopy") -> None:
    """``phonopy_params.yaml`` holds cells and force constants: phonopy's own loader has the same frequencies."""
    path = tmp_path / "phonopy_params.yaml"
    phonon.save(str(path), settings={"force_constants": True})
    again = phonopy.load(str(path), log_level=0)
    q = np.array([[0.1, 0.2, 0.3], [0.5, 0.0, 0.5]])
    np.testing.assert_allclose(again.run_qpoints(q).frequencies, phonon.run_qpoints(q).frequencies, rtol=1e-6)


# --- what is refused ---


def test_a_missing_phonopy_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "phonopy", None)
    with pytest.raises(ImportError, match=r"pip install 'mdrelax\[phonons\]'"):
        require_phonopy()


def test_an_impossible_displacement_is_refused(copper: Atoms) -> None:
    """Zero, negative, not a number."""
    for delta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`delta` must be a displacement"):
            finite_force_constants(make_phonopy(copper, (2, 2, 2)), lj_calculator(), delta=delta)
