"""Labels: units and signs that a file does not say, labels that some frames lack, and what the report tells."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, io
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.units import Bohr, GPa, Hartree, kcal, kJ, mol

import mdrelax
from mdrelax.datasets import check_frames, load_atoms, load_frames
from mdrelax.forces.loader import frames_from_data
from mdrelax.runs.config import load_config
from mdrelax.runs.inputs import load_parts
from small_runs import CRYSTAL_CUTOFF, NETWORK, crystals, document, write_frames

ADJUSTMENT = 1e-6  # CODATA 2014 (ASE) against 2018, and eight digits in a text file


def crystal(**labels: object) -> Atoms:
    """A strained crystal; labels go to the columns if they have a row for each atom, else to the comment line."""
    atoms = crystals(1)[0]
    for name in ("REF_energy", "REF_stress"):
        atoms.info.pop(name)
    del atoms.arrays["REF_forces"]
    for key, value in labels.items():
        table = atoms.arrays if np.shape(value) == (len(atoms), 3) else atoms.info
        table[key] = value
    return atoms


def right() -> tuple[float, np.ndarray, np.ndarray, float]:
    """Energy, forces, stress and volume of ``crystal``."""
    atoms = crystals(1)[0]
    return atoms.info["REF_energy"], atoms.arrays["REF_forces"], atoms.info["REF_stress"], atoms.get_volume()


ENERGY, FORCES, STRESS, VOLUME = right()


def written(folder: Path, *frames: Atoms) -> Path:
    """An extxyz file of some frames."""
    return write_frames(folder / "x.extxyz", list(frames))


# --- units and signs ---


@pytest.mark.parametrize(
    ("factors", "units"),
    [
        ((Hartree, Hartree / Bohr), {"energy_unit": "Hartree", "forces_unit": "Hartree/Bohr"}),
        ((1.0, kcal / mol), {"forces_unit": "kcal/mol/A"}),
        ((Hartree, 1.0), {"energy_unit": "Ha", "forces_unit": "eV/A"}),
        ((kJ / mol, kJ / mol / 10), {"energy_unit": "kJ/mol", "forces_unit": "kJ/(mol nm)"}),
        ((kcal / mol, kcal / mol), {"energy_unit": "kcal"}),
    ],
)
def test_forces_have_a_unit_of_their_own(tmp_path, factors, units):
    """ORCA, CP2K and Psi4 print Hartree/Bohr next to positions in Angstrom; without a name it is energy/length."""
    atoms = crystal(REF_energy=ENERGY / factors[0], REF_forces=FORCES / factors[1])
    frames = load_frames(written(tmp_path, atoms), **units)
    assert frames.data[0].energy.item() == pytest.approx(ENERGY, rel=ADJUSTMENT)
    np.testing.assert_allclose(frames.data[0].forces.numpy(), FORCES, atol=ADJUSTMENT)
    assert all(unit in str(frames.report) for unit in units.values())


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (STRESS, {}),
        (STRESS / GPa, {"stress_unit": "GPa"}),
        (-STRESS / GPa * 10, {"stress_unit": "kbar", "stress_sign": "opposite"}),
        (STRESS / Hartree * Bohr**3, {"stress_unit": "Ha/Bohr^3"}),
        (STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] / GPa, {"stress_unit": "gpa"}),
    ],
    ids=["eV/A^3", "GPa", "VASP's kbar", "Hartree/Bohr^3", "Voigt, GPa"],
)
def test_stress_has_a_unit_and_a_sign_of_its_own(tmp_path, value, options):
    """Whatever the program: eV/A^3, positive under tension."""
    atoms = crystal(REF_energy=ENERGY, REF_stress=value)
    frame = load_frames(written(tmp_path, atoms), **options).data[0]
    np.testing.assert_allclose(frame.stress[0].numpy(), STRESS, atol=1e-8)


@pytest.mark.parametrize("key", ["virial", "REF_virials", "dft_virial", "Virials"])
def test_a_virial_becomes_a_stress(tmp_path, key):
    """stress = -virial / volume, in any unit of energy; QUIP's, GPUMD's and MACE's keys hold virials."""
    atoms = crystal(REF_energy=ENERGY / Hartree, **{key: -STRESS * VOLUME / Hartree})
    frames = load_frames(written(tmp_path, atoms), stress_key=key, energy_unit="Ha")
    np.testing.assert_allclose(frames.data[0].stress[0].numpy(), STRESS, atol=1e-8)
    assert f"note: stress = -`{key}` / volume." in str(frames.report)
    other = load_frames(written(tmp_path, atoms), stress_key=key, energy_unit="eV", stress_unit="Ha")
    np.testing.assert_allclose(other.data[0].stress[0].numpy(), STRESS, atol=1e-8)


@pytest.mark.parametrize("key", ["virial", "virials", "REF_virial", "REF_virials"])
def test_the_usual_keys_of_a_virial_are_found(tmp_path, key):
    """After those of a stress."""
    atoms = crystal(REF_energy=ENERGY, **{key: -STRESS * VOLUME})
    frames = load_frames(written(tmp_path, atoms))
    assert frames.report.keys["stress"] == key
    np.testing.assert_allclose(frames.data[0].stress[0].numpy(), STRESS, atol=1e-8)
    both = load_frames(written(tmp_path, crystal(REF_energy=ENERGY, REF_stress=STRESS, **{key: np.eye(3)})))
    assert both.report.keys["stress"] == "REF_stress"


def test_a_virial_of_the_other_sign_and_a_virial_in_a_pressure_unit(tmp_path):
    """The first is declared, the second refused."""
    path = written(tmp_path, crystal(REF_energy=ENERGY, virial=STRESS * VOLUME))
    frame = load_frames(path, stress_sign="opposite").data[0]
    np.testing.assert_allclose(frame.stress[0].numpy(), STRESS, atol=1e-8)
    with pytest.raises(ValueError, match="`stress_unit: GPa` is no energy unit, but `virial` is a virial"):
        load_frames(path, stress_unit="GPa")


@pytest.mark.parametrize(
    ("key", "options"), [("gradient", {}), ("dft_gradients", {}), ("my_forces", {"forces_sign": "opposite"})]
)
def test_gradients_become_forces(tmp_path, key, options):
    """By their name, or because the caller says so."""
    path = written(tmp_path, crystal(REF_energy=ENERGY, **{key: -FORCES}))
    frames = load_frames(path, forces_key=key, **options)
    np.testing.assert_allclose(frames.data[0].forces.numpy(), FORCES, atol=ADJUSTMENT)
    assert "note: " in str(frames.report)


def test_a_config_declares_units_and_signs(tmp_path):
    """Under `data`, as the command line and the functions do."""
    atoms = crystals(3)
    for frame in atoms:
        frame.info["REF_energy"] /= Hartree
        frame.arrays["REF_forces"] *= -Bohr / Hartree
        frame.info["REF_stress"] *= -1 / GPa
    keys = {"energy_unit": "Ha", "forces_unit": "Ha/a0", "forces_sign": "opposite", "stress_unit": "GPa"}
    keys |= {"stress_sign": "opposite", "train": 1, "validation": 1}
    settings = load_config(document(written(tmp_path, *atoms), data=keys)).data.model_copy(update={"test": 1})
    parts = load_parts(settings)
    expected = {frame.info["REF_energy"]: frame for frame in crystals(3)}
    for frame in (*parts.train, *parts.validation, *parts.test):
        atoms = min(expected.items(), key=lambda item: abs(item[0] - frame.energy.item()))[1]
        np.testing.assert_allclose(frame.forces.numpy(), atoms.arrays["REF_forces"], atol=1e-5)
        np.testing.assert_allclose(frame.stress[0].numpy(), atoms.info["REF_stress"], atol=1e-7)


# --- labels that some frames lack ---


def mixed() -> list[Atoms]:
    """Twelve crystals with stress, of which two lack energies and two forces; six clusters with a stress of zero."""
    frames = crystals(12)
    for atoms in frames[:2]:
        del atoms.info["REF_energy"]
    for atoms in frames[2:4]:
        del atoms.arrays["REF_forces"]
    for k in range(6):
        cluster = Atoms("Cu3", [[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0]])
        cluster.rattle(0.05, seed=k)
        cluster.calc = EMT()
        labels = {"REF_energy": cluster.get_potential_energy(), "REF_stress": np.zeros((3, 3))}
        frame = Atoms("Cu3", cluster.positions, info=labels)
        frame.arrays["REF_forces"] = cluster.get_forces()
        frames.append(frame)
    return frames


def test_each_frame_keeps_the_labels_that_it_has(tmp_path):
    """The report counts them; a stress without a volume is no label."""
    frames = load_frames(written(tmp_path, *mixed()))
    for label, count in {"energy": 16, "forces": 16, "stress": 12}.items():
        assert sum(label in frame for frame in frames.data) == count
    report = str(frames.report)
    assert "frames with energy: 16, forces: 16, stress: 12" in report
    assert "12 of 18 frames are periodic along abc, 6 of 18 frames are open" in report
    assert "note: 6 frames without a volume have a stress, which is left out." in report
    missing = [int(batch.targets.energy.isnan()) for batch in frames_from_data(frames.data, cutoff=CRYSTAL_CUTOFF)]
    assert missing == [1, 1] + [0] * 16


def test_a_run_learns_from_the_labels_that_exist(tmp_path):
    """Energies, forces and stress, each where it is known: every number of the run is finite."""
    sections = {"data": {"train": 12, "validation": 3, "test": 3, "seed": 1}, "training": {"stress_weight": 0.1}}
    config = document(
        written(tmp_path, *mixed()), potential={"cutoff": CRYSTAL_CUTOFF, "arguments": dict(NETWORK)}, **sections
    )
    mdrelax.train(config, folder=tmp_path / "run")
    table = np.genfromtxt(tmp_path / "run" / "metrics.csv", delimiter=",", names=True)
    assert np.isfinite(np.array(table.tolist())).all()


def test_a_slab_has_a_stress_and_a_slab_without_a_third_vector_has_none(tmp_path):
    """The volume is that of the cell, |det|, where there is one."""
    slab = fcc111("Cu", (1, 1, 3), vacuum=6.0)
    slab.pbc = (True, True, False)
    slab.info = {"REF_energy": 1.0, "REF_stress": 0.01 * np.eye(3)}
    flat = slab.copy()
    flat.cell[2] = 0.0
    first, second = load_frames(written(tmp_path, slab, flat)).data
    assert "stress" in first
    assert "stress" not in second


def test_a_virial_without_a_volume_is_no_label(tmp_path):
    """It cannot be divided by nothing."""
    water = molecule("H2O")
    water.info.update(REF_energy=1.0, virial=np.eye(3))
    frames = load_frames(written(tmp_path, crystal(REF_energy=ENERGY, virial=-STRESS * VOLUME), water))
    assert ["stress" in frame for frame in frames.data] == [True, False]


def _drop_all(frames: list[Atoms]) -> None:
    frames[2].info.clear()
    del frames[2].arrays["REF_forces"]


def _other_energy(frames: list[Atoms]) -> None:
    frames[2].info["energy"] = frames[2].info.pop("REF_energy")


def _other_forces(frames: list[Atoms]) -> None:
    frames[2].arrays["dft_f"] = frames[2].arrays.pop("REF_forces")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_drop_all, r"no label under `REF_energy` or `REF_forces` or `REF_stress` in frame 2 of `x.extxyz`"),
        (
            _other_energy,
            r"no energy under `REF_energy` in frame 2 of `x.extxyz`; keys found: REF_forces, REF_stress, en",
        ),
        (_other_forces, r"no forces under `REF_forces` in frame 2 of `x.extxyz`; keys found: REF_energy.*dft_f"),
    ],
)
def test_a_label_under_another_key_is_not_taken_for_a_missing_one(tmp_path, spoil, sentence):
    """One key for the whole file: a frame that names its labels otherwise is refused, not trained on without them."""
    frames = crystals(4)
    spoil(frames)
    with pytest.raises(ValueError, match=sentence):
        load_frames(written(tmp_path, *frames))


def test_a_structure_that_has_no_graph_is_named_by_its_place_in_the_file(tmp_path):
    """Not by its place in a shuffled training set; without a file, by its number."""
    data = load_frames(written(tmp_path, *crystals(9))).data
    data[7].pos[2] = data[7].pos[1]
    with pytest.raises(ValueError, match=r"^Frame 7 of `x.extxyz`: Atoms 1 and 2 lie at one point"):
        frames_from_data(data[::-1], cutoff=CRYSTAL_CUTOFF)
    del data[7].place
    with pytest.raises(ValueError, match=r"^Frame 1: Atoms 1 and 2 lie at one point"):
        frames_from_data(data[::-1], cutoff=CRYSTAL_CUTOFF)


# --- what a comment line may say ---


@pytest.mark.parametrize(
    "spelling", ["IsolatedAtom", "isolated_atom", "isolatedatom", "ISOLATED_ATOM", "Isolated atom"]
)
def test_isolated_atoms_are_known_in_every_spelling(tmp_path, spelling):
    """MACE's, QUIP's, and those of people."""
    atoms = [Atoms(s, info={"config_type": spelling, "REF_energy": e}) for s, e in (("H", -13.6), ("Cu", -2.0))]
    frames = load_frames(written(tmp_path, *atoms, *crystals(2)))
    assert frames.isolated_energies == {1: -13.6, 29: -2.0}
    assert len(frames.data) == 2


def test_close_atoms_and_dense_cells_are_named_when_they_are_read(tmp_path):
    """They can be meant (a repulsive wall is trained on such frames), so they are no error; `data check` finds them."""
    near, dense = crystals(2)
    near.positions[1] = near.positions[0] + [0.3, 0.0, 0.0]
    dense.set_cell(0.4 * dense.cell.array)
    report = str(load_frames(written(tmp_path, *crystals(3), near, dense)).report)
    assert "note: Atoms of frame 3 of `x.extxyz` are only 0.3 Angstrom apart" in report
    assert "note: The cell of frame 4 of `x.extxyz` has only 0.7" in report
    assert "shortest distance: 0.300 Angstrom, in frame 3 of `x.extxyz`" in report
    plain = str(load_frames(written(tmp_path, *crystals(3))).report)
    assert "note" not in plain


def test_lone_atoms_that_are_not_marked_are_mentioned(tmp_path):
    """They are ordinary frames; whoever meant reference energies is told."""
    report = load_frames(written(tmp_path, Atoms("H", info={"REF_energy": -13.6}), *crystals(2))).report
    assert "1 frames are single atoms without config_type=IsolatedAtom" in str(report)


@pytest.mark.parametrize(
    ("symbol", "sentence"),
    [
        ("D", "unknown element `D` in frame 1 of `x.xyz`; write deuterium and tritium as H."),
        ("Qq", "unknown element `Qq` in frame 1 of `x.xyz`; write chemical symbols."),
        ("Cu1", "unknown element `Cu1` in frame 1 of `x.xyz`; write chemical symbols."),
        ("x" * 5000, "unknown element `Xxxxxx"),
    ],
)
def test_an_unknown_symbol_is_a_short_sentence(tmp_path, symbol, sentence):
    """It names element and frame, and is no longer for a longer symbol."""
    path = tmp_path / "x.xyz"
    path.write_text(f"1\nenergy=1\nH 0 0 0\n1\nenergy=1\n{symbol} 0 0 0\n")
    with pytest.raises(ValueError, match="unknown element") as caught:
        load_frames(path)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 250


def test_bare_energies_in_comments_are_a_short_sentence(tmp_path):
    """As in sGDML's xyz files: thousands of numbers are not listed as thousands of keys."""
    path = tmp_path / "x.xyz"
    path.write_text("".join(f"1\n-97208.{k:04d}\nH 0 0 0\n" for k in range(2000)))
    with pytest.raises(ValueError, match=r"hold a bare number, such as `-97208.0000`; .* write `energy=-97208.0000`"):
        load_frames(path)
    path.write_text("".join(f"1\nkey{'x' * k}{k}=1\nH 0 0 0\n" for k in range(100)))
    with pytest.raises(ValueError, match="and 88 more") as caught:
        load_frames(path)
    assert len(str(caught.value)) < 1000


def test_charge_and_spin_that_differ_are_mentioned(tmp_path):
    """A network sees elements and positions: the same geometry would have two energies, and `data check` says so."""
    frames = [crystal(REF_energy=ENERGY + k, charge=k, multiplicity=1) for k in range(2)]
    read = load_frames(written(tmp_path, *frames, *crystals(4)[1:]))
    assert "Charge differs between frames (0, 1), but a network sees elements only." in str(read.report)
    assert "Spin" not in str(read.report)
    failed = check_frames(read.data).set_index("check").loc["equal geometries have equal labels"]
    assert not failed["passed"]
    assert "charge" in failed["message"]


def test_atoms_in_memory_are_read_as_a_file_is():
    """Same rules, same messages; a cell in `info` that would be lost is refused."""
    atoms = crystals(3)
    assert torch.equal(load_atoms(atoms).data[1].energy, torch.tensor([atoms[1].info["REF_energy"]]).double())
    lost = Atoms("Cu2", [[0, 0, 0], [1.8, 1.8, 0]], info={"cell": 3.6 * np.eye(3), "REF_energy": 1.0})
    with pytest.raises(ValueError, match="`cell` of frame 3 of `memory` is no cell that can be read"):
        load_atoms([*atoms, lost])


def test_a_trajectory_of_ase_is_read(tmp_path):
    """In ASE's units: nothing is assumed."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.calc = EMT()
    energy = atoms.get_potential_energy()
    io.write(tmp_path / "x.traj", atoms)
    frames = load_frames(tmp_path / "x.traj")
    assert frames.data[0].energy.item() == energy
    assert "(the file's units: eV, Angstrom)" in str(frames.report)
