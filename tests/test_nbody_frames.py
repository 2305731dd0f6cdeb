"""N-body frames: exact labels, read back by the calculator; dynamics in ASE are those of the simulator."""

import numpy as np
import pytest
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from mdrelax.datasets import NBodyCalculator, check_frames, load_frames, load_nbody_frames, nbody_atoms
from mdrelax.datasets.nbody import PROTOCOLS, SYSTEMS, potential_energy, simulate
from mdrelax.datasets.nbody_frames import SOFTENING, SPECIES


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is written into the user's cache."""
    monkeypatch.setenv("MDRELAX_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_labels_are_the_calculators(system):
    """The species alone say the charges: energies and forces come back to rounding."""
    for frame in load_frames(f"nbody:{system}", n_frames=50).data:
        atoms = nbody_atoms(frame)
        atoms.calc = NBodyCalculator(system)
        assert atoms.get_potential_energy() == pytest.approx(frame.energy.item(), abs=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), frame.forces.numpy(), atol=1e-12)
        assert set(frame.z.tolist()) <= set(SPECIES[system].values())


@pytest.mark.parametrize("system", SYSTEMS)
def test_forces_are_the_negative_gradient_of_the_calculators_energy(system):
    """Central differences of 1e-5 Angstrom by ASE's own energy calls."""
    atoms = nbody_atoms(load_frames(f"nbody:{system}", n_frames=3).data[2])
    atoms.calc = NBodyCalculator(system)
    found, start = atoms.get_forces().copy(), atoms.positions.copy()
    for particle, component in np.ndindex(5, 3):
        energies = []
        for sign in (1, -1):
            atoms.positions = start
            atoms.positions[particle, component] += sign * 1e-5
            energies.append(atoms.get_potential_energy())
        assert found[particle, component] == pytest.approx(-(energies[0] - energies[1]) / 2e-5, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_dynamics_in_ase_repeat_the_simulator(system):
    """Masses of 1 amu and the step 0.001 in ASE's unit of time: positions, velocities and energy drift agree."""
    protocol = PROTOCOLS[system]._replace(softening=SOFTENING[system], largest_force=None, half_kick=True)
    own = simulate(system, 1, generator=np.random.default_rng(3), n_steps=500, protocol=protocol)
    first, last = 0, 4
    numbers = [SPECIES[system][int(charge)] for charge in own.charges[0]]
    atoms = Atoms(numbers, own.positions[0, first], masses=np.ones(5), calculator=NBodyCalculator(system))
    atoms.set_velocities(own.velocities[0, first])
    before = atoms.get_total_energy()
    VelocityVerlet(atoms, timestep=0.001).run(400)
    np.testing.assert_allclose(atoms.positions, own.positions[0, last], atol=1e-9)
    np.testing.assert_allclose(atoms.get_velocities(), own.velocities[0, last], atol=1e-9)
    potential = potential_energy(system, own.positions, own.charges[:, None], softening=SOFTENING[system])[0]
    total = potential + 0.5 * (own.velocities[0] ** 2).sum(axis=(1, 2))
    assert atoms.get_total_energy() - before == pytest.approx(total[last] - total[first], abs=1e-9)
    assert abs(total[last] - total[first]) < 1e-3


def test_atoms_of_a_frame_have_mass_one():
    """Sodium and chlorine are names of charges, not of masses."""
    atoms = nbody_atoms(load_frames("nbody:charged", n_frames=1).data[0])
    assert atoms.get_masses().tolist() == [1.0] * 5
    assert set(atoms.symbols) <= {"Na", "Cl"}


def test_the_report_says_what_the_frames_are():
    """Source, labels, units and range; isolated particles have no energy."""
    frames = load_frames("nbody:charged", n_frames=60)
    report = frames.report
    energies = [frame.energy.item() for frame in frames.data]
    assert (report.source, report.n_frames, report.elements) == ("nbody:charged", 60, ("Na", "Cl"))
    assert report.energy_range == (min(energies), max(energies))
    assert report.largest_force == max(frame.forces.norm(dim=1).max().item() for frame in frames.data)
    assert (report.energy_unit, report.length_unit, report.units_assumed) == ("eV", "Angstrom", ())
    assert frames.isolated_energies == {11: 0.0, 17: 0.0}
    assert {frame.config_type for frame in frames.data} == {"nbody:charged"}
    assert "energy from `V`, forces from `-dV/dx`" in str(report)


def test_frames_are_balanced_and_bounded():
    """No net force, and no energy below that of six pairs of opposite charges at one point (-5 eV a pair)."""
    frames = load_frames("nbody:charged", n_frames=200).data
    checks = check_frames(frames).set_index("check")
    assert checks.loc["no net force", "passed"]
    assert min(frame.energy.item() for frame in frames) > -30.0


def test_each_frame_is_from_a_trajectory_and_a_time_of_its_own():
    """Frame i is at time 0.1 (1 + i mod 41) of trajectory i; fewer frames are the first of more."""
    frames = load_nbody_frames("nbody:springs", n_frames=45, seed=2).data
    protocol = PROTOCOLS["springs"]._replace(largest_force=None, half_kick=True)
    own = simulate("springs", 45, generator=np.random.default_rng([2, 3]), n_steps=4100, protocol=protocol)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.pos.numpy(), own.positions[i, i % 41])
    fewer = load_nbody_frames("nbody:springs", n_frames=4, seed=2).data
    assert all((a.pos == b.pos).all() for a, b in zip(fewer, frames, strict=False))


def test_softening_is_the_users_to_choose():
    """It decides trajectories and labels, and the calculator takes it too; each softening has its own file."""
    soft, softer = (load_frames("nbody:charged", n_frames=1, softening=s).data[0] for s in (0.5, 1.0))
    assert soft.energy.item() != softer.energy.item()
    atoms = nbody_atoms(softer)
    atoms.calc = NBodyCalculator("charged", softening=1.0)
    assert atoms.get_potential_energy() == pytest.approx(softer.energy.item(), abs=1e-12)


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("nbody:charge", {}, "no N-body system `nbody:charge`; did you mean `nbody:charged`"),
        ("nbody:gravity", {"n_frames": 0}, "`n_frames` must be at least 1, got 0"),
        ("nbody:gravity", {"n_bodies": 1}, "`n_bodies` must be at least 2, got 1"),
        ("nbody:gravity", {"seed": -1}, "`seed` must be at least 0, got -1"),
        ("nbody:gravity", {"softening": -0.1}, r"`softening` must be 0 or larger \(Angstrom\), got -0.1"),
        ("nbody:gravity", {"n_frame": 3}, "no option `n_frame`; did you mean `n_frames`"),
    ],
)
def test_impossible_requests_are_refused_with_a_sentence(source, options, sentence):
    """The value, what is allowed, and the nearest name."""
    with pytest.raises(ValueError, match=sentence):
        load_frames(source, **options)


def test_the_calculator_refuses_what_is_no_nbody_system():
    """Unknown elements, periodic cells and unknown systems; no stale result is left behind."""
    atoms = Atoms("NaCl", [[0, 0, 0], [0, 0, 2.0]], calculator=NBodyCalculator("charged"))
    assert atoms.get_potential_energy() == pytest.approx(-1 / np.sqrt(4.04))
    atoms.numbers[1] = 6
    with pytest.raises(ValueError, match=r"\[6\] represent no particle of `charged`; known are 11 for \+1, 17 for -1"):
        atoms.get_potential_energy()
    assert atoms.calc.results == {}
    atoms.numbers[1] = 17
    atoms.pbc = True
    with pytest.raises(ValueError, match="not periodic"):
        atoms.get_forces()
    with pytest.raises(ValueError, match="did you mean `springs`"):
        NBodyCalculator("spring")
