"""`mdrelax data check`: each way in which a file is wrong is named, and nothing is named in files that are right."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from torch_geometric.data import Data

from command_line import mdrelax
from mdrelax.cli import DATA
from mdrelax.datasets import check_frames, load, load_frames, make_frame, to_atoms
from mdrelax.datasets.bonds import stiffnesses
from mdrelax.datasets.consistency import agreement_of_forces, agreement_of_stress
from mdrelax.datasets.extxyz import write_extxyz
from mdrelax.datasets.near_pairs import near_pairs
from spoilt_data import ANY_DATA, BOHR, CRYSTALS, HARTREE, MOLECULES, Spoiler, copper_aluminium, lennard_jones, scaled

TWELVE = {  # the acceptance list: a way of being wrong -> how a file of molecules or crystals is made so
    "unit of energy": "energies in Hartree",
    "unit of length": "lengths in Bohr",
    "unit of force": "forces in Hartree/Bohr",
    "unit of stress": "stress in GPa",
    "sign of forces": "gradients",
    "sign of stress": "stress of the other sign",
    "shuffled labels": "shuffled labels",
    "duplicated frames": "duplicates",
    "lost cell": "no cell at all",
    "mixed references": "half the energies of another method",
    "one outlier": "one energy too high",
    "wrong Z": "a wrong element in one frame",
}


def ethanol() -> list[Data]:
    """The first 120 frames of the shipped sample."""
    return load("sample:ethanol")[:120]


@pytest.fixture(scope="module")
def sound() -> dict[str, list[Data]]:
    """Data that are right: molecules by DFT, crystals of two elements by EMT."""
    return {"ethanol": ethanol(), "copper-aluminium": copper_aluminium()}


def failed(data: list[Data]) -> dict[str, str]:
    """The checks that failed, with their sentences."""
    table = check_frames(data)
    bad = table[~table["passed"]]
    return dict(zip(bad["check"], bad["message"], strict=True))


def spoilt(data: list[Data], spoil: Spoiler) -> list[Data]:
    """A copy of the frames with a fault."""
    copies = [frame.clone() for frame in data]
    spoil(copies)
    return copies


@pytest.mark.parametrize("way", [*ANY_DATA, *MOLECULES])
def test_each_fault_of_molecules_is_named(sound, way):
    """One of the checks that are meant for it says so, in a whole sentence."""
    spoil, checks = {**ANY_DATA, **MOLECULES}[way]
    found = failed(spoilt(sound["ethanol"], spoil))
    assert checks & found.keys(), f"{way}: only {found}"
    assert all(sentence.endswith(".") and len(sentence) < 500 for sentence in found.values())


@pytest.mark.parametrize("way", [*ANY_DATA, *CRYSTALS])
def test_each_fault_of_crystals_is_named(sound, way):
    """Likewise with cells, stress and alloys."""
    spoil, checks = {**ANY_DATA, **CRYSTALS}[way]
    found = failed(spoilt(sound["copper-aluminium"], spoil))
    assert checks & found.keys(), f"{way}: only {found}"


@pytest.mark.parametrize("n", [4, 17])
def test_frames_with_the_labels_of_others_are_named(n):
    """Energy and forces of some frames of 32 in turn: forces of another geometry have a torque about this one."""
    frames = load("sample:ethanol")[:32]
    order = np.random.default_rng(0).permutation(32)[:n]
    swapped = list(frames)
    for here, there in zip(order, np.roll(order, 1), strict=True):
        swapped[here] = frames[here].clone()
        swapped[here].energy, swapped[here].forces = frames[there].energy, frames[there].forces
    assert failed(frames) == {}
    found = failed(swapped)
    assert {"no cell lost", "forces agree with energies"} <= found.keys()
    places = {int(re.findall(r"\d+", frames[k].place)[0]) for k in order}
    named = re.findall(r"\d+", found["no cell lost"].partition("Frames ")[2].partition(" and ")[0])
    assert set(map(int, named)) <= places


def test_the_twelve_ways_are_all_tested():
    """The list that the check was built for."""
    assert len(TWELVE) == 12
    assert set(TWELVE.values()) <= {*ANY_DATA, *CRYSTALS}


@pytest.mark.parametrize("make", [ethanol, copper_aluminium, lennard_jones])
def test_nothing_is_named_in_sound_data(make: Callable[[], list[Data]]):
    """Nor in the whole sample (see test_datasets) and in the published sets (below)."""
    assert failed(make()) == {}


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "rmd17/rmd17_aspirin_train_01.npz",
        "rmd17/rmd17_malonaldehyde_test_01.npz",
        "rmd17/rmd17_uracil_train_01.npz",
        "silicon/silicon_test.extxyz",
    ],
)
def test_nothing_is_named_in_published_data(shared_data, name):
    """Aspirin has 21 atoms and few near frames, malonaldehyde a proton that is shared, silicon vacancies."""
    assert failed(load(shared_data / name)) == {}


def scan() -> list[Data]:
    """One atom of a molecule moved in steps of 0.01 Angstrom, labelled by ASE's EMT."""
    frames = []
    for k in range(25):
        atoms = molecule("CH3CH2OH")
        atoms.positions[0, 0] += 0.01 * (k - 12)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        frames.append(make_frame(atoms.numbers, atoms.positions, energy=energy, forces=forces))
    return frames


def energy_volume_curve() -> list[Data]:
    """Perfect copper crystals from 94 to 106 % of the lattice constant: no forces at all."""
    frames = []
    for size in np.linspace(0.94, 1.06, 15):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(size * atoms.cell.array, scale_atoms=True)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        labels["stress"] = atoms.get_stress(voigt=False)
        frames.append(make_frame(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc, **labels))
    return frames


def test_a_scan_along_one_coordinate_is_enough():
    """Forces per Bohr and gradients are named in 25 frames of one moved atom; the frames themselves pass."""
    assert failed(scan()) == {}
    for spoil in (scaled(forces=BOHR), scaled(forces=-1.0), scaled(energy=1 / HARTREE)):
        assert "forces agree with energies" in failed(spoilt(scan(), spoil))


@pytest.mark.parametrize("way", ["stress in GPa", "stress in kbar", "stress of the other sign", "virials"])
def test_an_energy_volume_curve_tells_the_stress(way):
    """Without any force: the work of the stress is all there is."""
    assert failed(energy_volume_curve()) == {}
    assert "stress agrees with energies" in failed(spoilt(energy_volume_curve(), CRYSTALS[way][0]))


def test_twelve_frames_are_enough_for_the_signs(sound):
    """Small files are files, too; of fewer frames than these nothing wrong is said."""
    few = sound["copper-aluminium"][:12]
    assert failed(few) == {}
    for way, check in (
        ("gradients", "forces fit the bonds"),
        ("stress of the other sign", "stress agrees with energies"),
    ):
        assert check in failed(spoilt(few, {**ANY_DATA, **CRYSTALS}[way][0]))


@pytest.mark.parametrize("n", [2, 4, 6, 8])
def test_nothing_is_named_in_a_few_sound_frames(sound, n):
    """Too few pairs fix no factor: those are untried, in ten files each."""
    for start in range(0, 40 - n, 4):
        assert failed(sound["copper-aluminium"][start : start + n]) == {}


def test_the_factors_are_those_of_the_units(sound):
    """k_F of forces per Bohr is 1.89 times that of forces per Angstrom, whatever the anharmonicity (1e-6)."""
    plain = agreement_of_forces(near_pairs(sound["ethanol"]))
    bohr = agreement_of_forces(near_pairs(spoilt(sound["ethanol"], scaled(forces=BOHR))))
    assert bohr.factor / plain.factor == pytest.approx(1 / BOHR, rel=1e-6)
    assert 0.75 < plain.factor < 1.2


def test_factors_are_one_where_the_energy_is_quadratic():
    """The trapezoid rule is exact: energies, forces and stress of a harmonic crystal agree to rounding (1e-6)."""
    rng = np.random.default_rng(0)
    base = copper_aluminium()[0]
    frames = []
    for _ in range(30):
        frame = base.clone()
        strain = rng.normal(scale=1e-3, size=(3, 3))
        strain = torch.tensor((strain + strain.T) / 2)
        moved = torch.tensor(rng.normal(scale=1e-3, size=(4, 3)))
        moved = moved - moved.mean(dim=0)
        frame.cell = base.cell @ (torch.eye(3).double() + strain)
        volume = torch.linalg.det(base.cell[0]).abs()
        frame.energy = (2.5 * moved.square().sum() + 0.4 * volume * strain.square().sum()).reshape(1)
        frame.pos = (base.pos + moved) @ (torch.eye(3).double() + strain)
        frame.forces = -5.0 * moved
        frame.stress = 0.8 * strain[None]
        frames.append(frame)
    kinds = near_pairs(frames)
    assert agreement_of_forces(kinds).factor == pytest.approx(1.0, abs=0.01)  # displacements are those at fixed strain
    assert agreement_of_stress(kinds).factor == pytest.approx(1.0, abs=0.01)


def test_bonds_have_the_stiffness_of_bonds(sound):
    """O-H in ethanol: a harmonic wavenumber of about 3,700 / cm, so 48 eV/A^2 for the reduced mass of OH (20 %)."""
    found = {bond.elements: bond for bond in stiffnesses(sound["ethanol"])}
    wavenumber = 3700 * 100 * 2.998e8 * 2 * np.pi  # 1/s
    mass = 16 * 1 / 17 * 1.6605e-27  # kg
    expected = mass * wavenumber**2 / 16.022  # J/m^2 = N/m; 1 eV/A^2 is 16.022 N/m
    assert found[1, 8].stiffness == pytest.approx(expected, rel=0.2)
    assert found[1, 8].length == pytest.approx(0.97, abs=0.02)


def test_sentences_name_the_unit_and_the_option(sound):
    """Who reads one knows what to try."""
    found = failed(spoilt(sound["ethanol"], scaled(energy=1 / HARTREE)))
    assert "`energy_unit`" in found["forces agree with energies"]
    assert "Hartree" in found["forces agree with energies"]
    found = failed(spoilt(sound["ethanol"], scaled(pos=1 / BOHR)))
    assert "`length_unit: Bohr`" in found["lengths fit the elements"]
    found = failed(spoilt(sound["copper-aluminium"], CRYSTALS["stress in GPa"][0]))
    assert "GPa" in found["stress agrees with energies"]
    found = failed(spoilt(sound["ethanol"], ANY_DATA["gradients"][0]))
    assert "`forces_sign: opposite`" in found["forces fit the bonds"]


def test_the_command_reports_and_the_remedy_cures(tmp_path, sound):
    """Forces in Hartree/Bohr are named, and no longer once they are declared: in a file, by its exit code."""
    data = spoilt(sound["ethanol"], scaled(forces=BOHR / HARTREE))
    write_extxyz(tmp_path / "orca.extxyz", [to_atoms(frame) for frame in data])
    said = mdrelax("data", "check", tmp_path / "orca.extxyz")
    assert said.code == DATA
    assert "FAILED  forces agree with energies: Between near frames energies change by" in said.out
    assert "ok      no atoms too near" in said.out
    cured = mdrelax("data", "check", tmp_path / "orca.extxyz", "--forces-unit", "Ha/Bohr")
    assert cured.code == 0, cured.out
    assert "untried stress agrees with energies: Not tested: there is no stress." in cured.out


def test_frames_are_named_by_their_place_in_the_file(tmp_path, sound):
    """Isolated atoms count, too."""
    data = spoilt(sound["ethanol"][:20], lambda frames: frames[7].forces[0].add_(1.0))
    atoms = [to_atoms(frame) for frame in data]
    lone = atoms[0][:1]
    lone.info = {"config_type": "IsolatedAtom", "REF_energy": -1000.0}
    write_extxyz(tmp_path / "x.extxyz", [lone, *atoms])
    table = check_frames(load_frames(tmp_path / "x.extxyz").data).set_index("check")
    assert table.loc["no net force", "frames"] == [7]
    assert table.loc["no net force", "message"].endswith("Frame 8 of `x.extxyz`.")
