"""Generating a data set: sampled, labelled, resumable, with its provenance."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, io
from ase.build import bulk, molecule
from ase.units import Hartree

from mdrelax.datasets.extxyz import load_extxyz, read_atoms
from mdrelax.datasets.generate import GenerateSettings, generate, starting_geometry
from mdrelax.datasets.journal import Journal
from mdrelax.datasets.labelling import make_labeller
from mdrelax.datasets.sample import provenance

ROOT = Path(__file__).resolve().parents[1]
QUICK = GenerateSettings(n_frames=3, interval_fs=10.0, equilibration_fs=20.0, seed=3)

# Runs jobs {folder: [steps, ...]}: for each number a child process that kills itself like kill -9 after so many frames
# or labels, and leaves the line that it was writing; then, after a copy of the journal, a child that finishes.
SCRIPT = """
import json, os, shutil, signal, sys
from pathlib import Path
from mdrelax.datasets.generate import GenerateSettings, generate

def run(folder, steps):
    left = [steps]

    def progress(stage, done, total):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        generate("H2O", folder / "water.extxyz", settings=settings, progress=progress)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == (signal.SIGKILL if steps else 0), status

settings = GenerateSettings(**json.loads(sys.argv[1]))
for name, kills in json.loads(sys.argv[2]).items():
    folder = Path(name)
    folder.mkdir()
    for steps in kills:
        run(folder, steps)
        with (folder / "water.extxyz.journal").open("a") as file:
            file.write('{"kind": "fra')
        shutil.copy(folder / "water.extxyz.journal", folder / "copy.journal")
    run(folder, 0)
"""
# A run makes 3 frames, then 5 labels: H, O and the frames.
KILLS = {"never": [], "late": [7], "sampling": [1, 6], "sampling_twice": [1, 1, 5], "labelling": [4, 3]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of runs that were killed at different moments; on one thread, as sums over several vary."""
    pytest.importorskip("tblite")
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in KILLS}
    jobs = {str(folders[name]): kills for name, kills in KILLS.items()}
    command = [sys.executable, "-c", SCRIPT, json.dumps(QUICK._asdict()), json.dumps(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, timeout=300)
    return folders


@pytest.fixture
def water(runs: dict[str, Path]) -> Path:
    """Three frames of water from an uninterrupted run."""
    return runs["never"] / "water.extxyz"


def test_generated_data_is_labelled_by_the_method_it_names(water):
    """Energy and forces are those of GFN2-xTB, called here directly (8 digits in the text: 1e-6 eV)."""
    tblite = pytest.importorskip("tblite.ase")
    frames = load_extxyz(water)
    assert len(frames.data) == 3
    assert frames.report.keys == {"energy": "REF_energy", "forces": "REF_forces"}
    for atoms in read_atoms(water)[-3:]:
        reference = atoms.copy()
        reference.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
        assert atoms.info["REF_energy"] == pytest.approx(reference.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(atoms.arrays["REF_forces"], reference.get_forces(), atol=1e-5)


def test_isolated_atoms_lie_above_the_molecule(water):
    """The atomization energy of water is about 10 eV: positive, and within 5 eV of it with GFN2-xTB."""
    frames = load_extxyz(water)
    assert set(frames.isolated_energies) == {1, 8}
    atoms = 2 * frames.isolated_energies[1] + frames.isolated_energies[8]
    assert atoms - frames.data[0].energy.item() == pytest.approx(10.0, abs=5.0)


def test_frames_differ_and_stay_centred(water):
    """Sampling moves, and the centre of mass does not."""
    frames = read_atoms(water)[-3:]
    assert all(abs(a.positions - b.positions).max() > 0.01 for a, b in pairwise(frames))
    centres = [atoms.get_center_of_mass() for atoms in frames]
    np.testing.assert_allclose(centres, centres[0:1] * 3, atol=1e-6)


def test_provenance_is_written_into_the_file(water):
    """Method, settings, units and versions travel with the data; the journal is gone."""
    found = provenance(water)
    assert QUICK._asdict().items() <= found.items()
    assert {"made_with", "source", "units", "date", "ase", "tblite"} <= set(found)
    assert [path.name for path in water.parent.iterdir()] == ["water.extxyz"]


@pytest.mark.parametrize("name", ["sampling", "sampling_twice", "labelling"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(runs, water, name):
    """kill -9 while sampling or labelling: the resumed frames are the uninterrupted ones, bit for bit.

    The journal keeps positions and momenta with all their digits; the eight of the file would hide a difference. "late"
    is killed once, when all frames had been sampled in one go.
    """
    resumed = frames_of(runs[name] / "copy.journal")
    assert len(resumed) == 3
    assert resumed == frames_of(runs["late"] / "copy.journal")
    ours, theirs = read_atoms(runs[name] / "water.extxyz"), read_atoms(water)
    assert all((a.positions == b.positions).all() for a, b in zip(ours, theirs, strict=True))
    assert [a.info["REF_energy"] for a in ours] == pytest.approx([b.info["REF_energy"] for b in theirs], abs=1e-9)


def frames_of(journal: Path) -> list[dict]:
    """The sampled frames in a journal, positions and momenta with all digits."""
    whole = journal.read_text().splitlines()[:-1]  # the last line is torn
    return [row for row in map(json.loads, whole) if row["kind"] == "frame"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_frames": 0}, "`n_frames` must be > 0"),
        ({"temperature": -5.0}, "`temperature` must be > 0 and finite, got -5.0"),
        ({"temperature": float("nan")}, "`temperature` must be > 0"),
        ({"interval_fs": 0.0}, "`interval_fs` must be > 0"),
        ({"timestep_fs": 50.0}, "`timestep_fs` must not exceed `interval_fs`"),
        ({"equilibration_fs": -1.0}, "`equilibration_fs` must be >= 0"),
        ({"grid_level": 11}, "`grid_level` must be one of"),
        ({"method": "PBE"}, "must be GFN2-xTB, GFN1-xTB or FUNCTIONAL/BASIS .* got 'PBE'"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, changes, sentence):
    """Nothing is written."""
    with pytest.raises(ValueError, match=sentence):
        generate("H2O", tmp_path / "out.extxyz", settings=QUICK._replace(**changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["PBEE/def2-SVP", "PBE/def3-SVP"])
def test_an_unknown_level_of_theory_is_refused_before_sampling(tmp_path, method):
    """Hours of sampling are not spent before a typing error shows."""
    pytest.importorskip("pyscf")
    with pytest.raises(ValueError, match=f"pyscf does not know `{method}`"):
        generate("H2O", tmp_path / "out.extxyz", settings=QUICK._replace(method=method))
    assert not list(tmp_path.iterdir())


def test_an_element_without_tabulated_spin_is_refused():
    """The energy of an isolated atom depends on its spin, which is not guessed."""
    with pytest.raises(ValueError, match="ground-state spin of an isolated Fe atom"):
        make_labeller("GFN2-xTB", symbols=["Fe"])


def test_starting_geometries_come_from_files_and_names(tmp_path):
    """A file that ASE reads, or a molecule that ASE knows."""
    io.write(tmp_path / "mine.xyz", molecule("CH4"))
    np.testing.assert_allclose(starting_geometry(tmp_path / "mine.xyz").positions, molecule("CH4").positions, atol=1e-7)
    assert starting_geometry("CH3CH2OH").get_chemical_formula() == "C2H6O"


def test_impossible_starts_are_refused(tmp_path):
    """Neither file nor name, a periodic structure, a broken file."""
    with pytest.raises(ValueError, match="neither a file nor a molecule"):
        starting_geometry("ethanoll")
    io.write(tmp_path / "silicon.extxyz", bulk("Si"))
    with pytest.raises(ValueError, match="is periodic"):
        starting_geometry(tmp_path / "silicon.extxyz")
    (tmp_path / "broken.xyz").write_text("3\n\nO 0 0\n")
    with pytest.raises(ValueError, match="cannot be read as extxyz"):
        starting_geometry(tmp_path / "broken.xyz")


def test_a_journal_of_other_settings_is_refused(tmp_path):
    """Rows of two runs never mix."""
    row = {"kind": "frame", "index": 0}
    Journal(tmp_path / "journal", {"seed": 1}).add(row)
    assert Journal(tmp_path / "journal", {"seed": 1}).rows("frame") == [row]
    with pytest.raises(ValueError, match="other settings"):
        Journal(tmp_path / "journal", {"seed": 2})


@pytest.mark.parametrize("numbers", [(0, 1, 1), (0, 2), (1, 0), (0, None), (None,)])
def test_a_journal_that_two_processes_wrote_is_refused(tmp_path, numbers):
    """Its labels would be those of other frames: rows are numbered, and each number stands once, in its place."""
    path = tmp_path / "j"
    journal = Journal(path, {"a": 1})
    for index in numbers:
        journal.add({"kind": "label"} | ({} if index is None else {"index": index}))
    with pytest.raises(ValueError, match="was not written by one process"):
        Journal(path, {"a": 1}).rows("label")


def test_a_torn_header_starts_a_journal_anew(tmp_path):
    """Killed in the middle of the very first line."""
    (tmp_path / "journal").write_text('{"kind": "hea')
    Journal(tmp_path / "journal", {"seed": 1})
    assert Journal(tmp_path / "journal", {"seed": 1}).lines == [{"kind": "header", "seed": 1}]


@pytest.mark.parametrize("content", ["hello\n", "[1, 2]\n", "7\n", "[" * 5000 + "\n"])
def test_a_file_that_is_no_journal_is_refused(tmp_path, content):
    """Another file of that name is not overwritten."""
    (tmp_path / "journal").write_text(content)
    with pytest.raises(ValueError, match="is not a journal"):
        Journal(tmp_path / "journal", {"seed": 1})
    assert (tmp_path / "journal").read_text() == content


def test_dft_labels_are_exact_derivatives(tmp_path):
    """Forces of PBE/STO-3G are minus the derivative of the energy, grid response included.

    Central differences of 0.002 Angstrom err by about 1e-5 relative; the SCF (1e-9 Ha) by 1e-5 eV/Angstrom.
    """
    pytest.importorskip("pyscf")
    label = make_labeller("PBE/STO-3G", symbols=["H", "O"], grid_level=1)
    water = molecule("H2O")
    water.rattle(0.05, seed=1)
    _, forces = label(water)
    for atom, axis in ((0, 2), (1, 1)):
        energies = []
        for sign in (1, -1):
            moved = water.copy()
            moved.positions[atom, axis] += sign * 0.002
            energies.append(label(moved)[0])
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / 0.004, abs=2e-4)


def test_dft_data_is_generated_with_isolated_atoms(tmp_path):
    """H2 in STO-3G: the atom is a doublet, near the exact -13.6 eV, and the molecule is bound by about 4.5 eV."""
    pytest.importorskip("pyscf")
    pytest.importorskip("tblite")
    settings = QUICK._replace(n_frames=2, method="PBE/STO-3G", grid_level=1)
    frames = load_extxyz(generate("H2", tmp_path / "h2.extxyz", settings=settings))
    assert len(frames.data) == 2
    assert frames.isolated_energies[1] == pytest.approx(-13.6, abs=1.5)
    binding = 2 * frames.isolated_energies[1] - min(frame.energy.item() for frame in frames.data)
    assert binding == pytest.approx(4.5, abs=2.0)
    assert provenance(tmp_path / "h2.extxyz")["method"] == "PBE/STO-3G"


def test_a_single_atom_is_labelled_in_its_ground_state():
    """Oxygen is a triplet: with PBE it lies more than 1 eV below the closed-shell singlet, and feels no force."""
    dft = pytest.importorskip("pyscf.dft")
    gto = pytest.importorskip("pyscf.gto")
    energy, forces = make_labeller("PBE/STO-3G", symbols=["O"], grid_level=1)(Atoms("O"))
    singlet = dft.RKS(gto.M(atom="O 0 0 0", basis="STO-3G", verbose=0), xc="PBE").kernel()
    assert energy < singlet * Hartree - 1.0
    assert not forces.any()
