"""Bursts: labels are those of the method they name, made once, in an order that nothing changes."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from mdrelax.base.files import locked_file
from mdrelax.datasets import bursts, load_atoms, make_frame
from mdrelax.datasets.bursts import BurstSettings, burst_key, check_starts, label_bursts, starts_from
from mdrelax.datasets.journal import packed, unpacked

tblite = pytest.importorskip("tblite.ase")

QUICK = BurstSettings(burst_frames=3, interval_fs=4.0, seed=3)


def waters(n: int) -> list[Atoms]:
    """Rattled water molecules."""
    found = [molecule("H2O") for _ in range(n)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.05, seed=seed)
    return found


def journal_of(folder: Path) -> Path:
    """The only journal in a folder."""
    (path,) = folder.glob("*.journal")
    return path


@pytest.mark.parametrize(("method", "charge"), [("GFN2-xTB", 0), ("GFN1-xTB", 0), ("GFN2-xTB", 1)])
def test_the_labels_of_a_frame_are_tblites_own(tmp_path, method, charge):
    """Called here directly for one frame; an SCF that starts from the last frame's charges ends within 1e-3 of it.

    tblite converges the energy to 1e-6 Ha = 3e-5 eV. With a charge, water is a doublet: tblite is told so.
    """
    starts = waters(2)
    for atoms in starts:
        atoms.info["charge"] = charge
    found = label_bursts(starts, 5, settings=QUICK._replace(method=method), folder=tmp_path)
    for atoms in found.frames[1:4]:
        own = Atoms(atoms.numbers, atoms.positions)
        own.calc = tblite.TBLite(method=method, verbosity=0, charge=charge, multiplicity=1 + charge)
        assert atoms.info["REF_energy"] == pytest.approx(own.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(atoms.arrays["REF_forces"], own.get_forces(), atol=1e-3)
        assert atoms.info.get("charge", 0) == charge


def test_a_crystal_has_tblites_stress_and_keeps_its_cell(tmp_path):
    """Silicon in a cubic cell; atoms move, the cell does not. Tolerance as above, over 160 A^3."""
    start = bulk("Si", cubic=True)
    start.rattle(0.03, seed=0)
    (_, atoms) = label_bursts([start], 2, settings=QUICK._replace(interval_fs=1.0), folder=tmp_path).frames
    own = Atoms(atoms.numbers, atoms.positions, cell=start.cell, pbc=True)
    own.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
    np.testing.assert_allclose(atoms.info["REF_stress"], own.get_stress(voigt=False), atol=1e-5)
    np.testing.assert_array_equal(atoms.cell, start.cell)
    assert abs(atoms.positions - start.positions).max() > 1e-4


def test_every_geometry_is_a_frame_before_one_has_a_second_burst(tmp_path):
    """The first frame of its first burst; later bursts from it begin with a frame that has moved."""
    starts = waters(2)
    found = label_bursts(starts, 9, settings=QUICK, folder=tmp_path)
    assert found.bursts == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    unmoved = [
        k for k, atoms in enumerate(found.frames) if any((atoms.positions == start.positions).all() for start in starts)
    ]
    assert unmoved == [0, 3]


def test_labels_are_made_once_and_more_of_them_are_added(tmp_path, monkeypatch):
    """The same frames bit for bit out of the cache, without any burst; a larger number makes only those that lack."""
    first = label_bursts(waters(2), 5, settings=QUICK, folder=tmp_path)
    made: list[int] = []
    burst = bursts._burst
    monkeypatch.setattr(bursts, "_burst", lambda turn, k, settings: made.append(k) or burst(turn, k, settings))
    again = label_bursts(waters(2), 5, settings=QUICK, folder=tmp_path)
    assert not made
    for a, b in zip(first.frames, again.frames, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        np.testing.assert_array_equal(a.arrays["REF_forces"], b.arrays["REF_forces"])
    assert again.cpu_seconds == first.cpu_seconds > 0
    more = label_bursts(waters(2), 8, settings=QUICK, folder=tmp_path)
    assert made == [2]
    np.testing.assert_array_equal(more.frames[4].positions, first.frames[4].positions)


def test_what_decides_a_label_decides_its_key():
    """Geometry, charge, cell and each setting; not the folder nor the number of frames."""
    starts, charged = waters(2), waters(2)
    charged[1].info["charge"] = 1
    moved = [waters(1)[0], molecule("H2O")]
    keys = [burst_key(s, QUICK) for s in (starts, charged, moved, starts[:1], starts[::-1])]
    keys += [burst_key(starts, QUICK._replace(**{name: value})) for name, value in {
        "method": "GFN1-xTB", "temperature": 300.0, "burst_frames": 4, "interval_fs": 5.0, "timestep_fs": 0.5,
        "friction_per_fs": 0.02, "seed": 4}.items()]  # fmt: skip
    assert len(set(keys)) == len(keys) == 5 + len(BurstSettings._fields)
    assert burst_key(waters(2), QUICK) == keys[0]


class _Killed(Exception):
    pass


def test_interrupted_bursts_resume_as_if_never_stopped(tmp_path):
    """Stopped after the second burst, with a torn line behind it; sums over threads may differ by 1e-6 after 12 fs."""

    def kill(done: int, total: int) -> None:
        if done >= 6:
            raise _Killed

    with pytest.raises(_Killed):
        label_bursts(waters(3), 12, settings=QUICK, folder=tmp_path / "a", progress=kill)
    with journal_of(tmp_path / "a").open("a") as file:
        file.write('{"kind": "bur')
    resumed = label_bursts(waters(3), 12, settings=QUICK, folder=tmp_path / "a")
    whole = label_bursts(waters(3), 12, settings=QUICK, folder=tmp_path / "b")
    assert resumed.bursts == whole.bursts
    for a, b in zip(resumed.frames, whole.frames, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-6)
        np.testing.assert_allclose(a.arrays["REF_forces"], b.arrays["REF_forces"], atol=1e-5)


def test_a_second_process_waits_for_the_labels_of_the_first(tmp_path, monkeypatch):
    """A thread holds the lock for a moment; the other says whom it waits for, once, and then goes on."""
    monkeypatch.setattr(bursts, "WAIT_SECONDS", 0.05)
    label_bursts(waters(1), 1, settings=QUICK, folder=tmp_path)
    held, said = threading.Event(), []

    def hold() -> None:
        with locked_file(journal_of(tmp_path)):
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    found = label_bursts(waters(1), 2, settings=QUICK, folder=tmp_path, tell=said.append)
    thread.join()
    assert len(found.frames) == 2
    assert len(said) == 1
    assert said[0].startswith("Waiting for the labels of the same frames: ")


def test_a_burst_ends_before_a_frame_of_enormous_forces(tmp_path, monkeypatch):
    """Two hydrogens at 0.2 A push each other with 350 eV/A: burst 0, which begins there, has no frame.

    The next one begins 1 fs later, when they are apart. Where no burst has a frame, there is a sentence.
    """
    close, settings = Atoms("H2", [[0, 0, 0], [0, 0, 0.2]]), QUICK._replace(burst_frames=1, interval_fs=1.0)
    assert label_bursts([close], 1, settings=settings, folder=tmp_path).bursts == [1]
    monkeypatch.setattr(bursts, "LARGEST_FORCE", 1e-6)
    with pytest.raises(RuntimeError, match="no frame in 20 bursts one after the other"):
        label_bursts(waters(1), 5, settings=settings, folder=tmp_path)


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (make_frame([95, 1], np.eye(3)[:2] * 2), "it has Am, and the method knows H to Rn only"),
        (
            make_frame([6, 6], np.eye(3)[:2], cell=9 * np.eye(3), pbc=(True, True, False)),
            "it is periodic along ab only, and tblite would repeat it along all three",
        ),
    ],
)
def test_frames_that_the_method_does_not_know_are_named(frame, sentence):
    """With the remedy."""
    with pytest.raises(ValueError, match=f"GFN2-xTB cannot label [Ff]rame 1.*{sentence}"):
        check_starts([make_frame([1, 1], np.eye(3)[:2]), frame], "GFN2-xTB")


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        ({"charge": 0.5}, "its charge is 0.5, which is no whole number of electrons"),
        ({"spin": 2}, "its spin is 2, and pre-training labels the state of lowest spin, with 0 unpaired electrons"),
        ({"multiplicity": 3}, "its spin is 3"),
        ({"charge": 1, "spin": 0}, "its spin is 0, .* with 1 unpaired electrons"),
    ],
)
def test_charges_and_spins_that_cannot_be_labelled_are_named(info, sentence):
    """The frame and its value; a file's charge and spin are those of the loader."""
    atoms = molecule("H2O")
    atoms.info |= info
    data = load_atoms([atoms], labelled=False).data
    with pytest.raises(ValueError, match=sentence):
        check_starts(data, "GFN2-xTB")


@pytest.mark.parametrize("info", [{}, {"spin": 0}, {"multiplicity": 1}, {"charge": 1, "spin": 1}, {"charge": -1.0}])
def test_lowest_spins_pass_in_either_notation(info):
    """As unpaired electrons or as multiplicity; the charge goes to the calculator."""
    atoms = molecule("H2O")
    atoms.info |= info
    (start,) = starts_from(load_atoms([atoms], labelled=False).data, "GFN2-xTB")
    assert start.info["charge"] == info.get("charge", 0)


def test_lone_atoms_are_no_starts():
    """They cannot move; without anything else there is nothing to sample."""
    lone, water = make_frame([8], np.zeros((1, 3))), make_frame([1, 1], np.eye(3)[:2])
    assert len(starts_from([lone, water], "GFN2-xTB")) == 1
    with pytest.raises(ValueError, match="nothing to sample"):
        starts_from([lone], "GFN2-xTB")


def test_packed_numbers_keep_every_bit():
    """Also those that decimal text of 15 digits would not."""
    numbers = np.random.default_rng(0).normal(size=(3, 2, 3)) * 1e-7
    np.testing.assert_array_equal(unpacked(packed(numbers), 3, -1, 3), numbers)


def test_labelled_frames_are_read_back_from_a_file(tmp_path):
    """Energies and forces have keys that the loader takes; eight digits in the text."""
    found = label_bursts(waters(1), 2, settings=QUICK, folder=tmp_path)
    write(tmp_path / "frames.extxyz", found.frames)
    data = load_atoms(found.frames).data
    assert data[1].energy.item() == found.frames[1].info["REF_energy"]
    np.testing.assert_allclose(data[1].forces, found.frames[1].arrays["REF_forces"])
