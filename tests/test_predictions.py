"""Written predictions: beside the references, which stay as they were."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, io
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from mdrelax.datasets.extxyz import load_extxyz, read_atoms
from mdrelax.datasets.frames import to_atoms
from mdrelax.datasets.predictions import write_predictions


def written(folder: Path, *frames: Atoms) -> Path:
    """An extxyz file of some frames with REF_ labels."""
    for atoms in frames:
        atoms.info["REF_energy"] = -1.5
        atoms.arrays["REF_forces"] = np.arange(3.0 * len(atoms)).reshape(-1, 3) / 7
    io.write(folder / "data.extxyz", list(frames), format="extxyz")
    return folder / "data.extxyz"


def test_predictions_stand_beside_untouched_references(tmp_path):
    """REF_ labels, calculator results and the frames handed in stay as they were (8 digits in the text)."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = SinglePointCalculator(atoms, energy=-7.0, forces=np.full((4, 3), 0.25))
    path = written(tmp_path, atoms)
    frames = read_atoms(path)
    forces, stress = np.full((4, 3), 0.125), np.diag([1.0, 2.0, 3.0])
    out = write_predictions(tmp_path / "out.extxyz", frames, energies=[-9.0], forces=[forces], stresses=[stress])
    assert "mdrelax_energy" not in frames[0].info
    result = read_atoms(out)[0]
    assert result.info["mdrelax_energy"] == -9.0
    np.testing.assert_array_equal(result.arrays["mdrelax_forces"], forces)
    np.testing.assert_array_equal(result.info["mdrelax_stress"], stress)
    assert result.info["REF_energy"] == -1.5
    np.testing.assert_allclose(result.arrays["REF_forces"], atoms.arrays["REF_forces"], atol=1e-8)
    assert result.get_potential_energy() == -7.0
    assert (result.get_forces() == 0.25).all()
    assert load_extxyz(out).data[0].energy.item() == -1.5  # predictions are never taken for labels


def test_predictions_for_data_keep_its_labels(tmp_path):
    """Frames out of a loader can be written, too, and read again."""
    data = load_extxyz(written(tmp_path, molecule("H2O"), bulk("Si"))).data
    out = write_predictions(tmp_path / "out.extxyz", data, energies=torch.tensor([1.0, 2.0]))
    again = load_extxyz(out).data
    for before, after in zip(data, again, strict=True):
        for name in ("z", "pbc", "energy"):
            assert torch.equal(before[name], after[name])
        torch.testing.assert_close(before.pos, after.pos, atol=1e-8, rtol=0)
        torch.testing.assert_close(before.forces, after.forces, atol=1e-8, rtol=0)
    np.testing.assert_allclose(to_atoms(data[1]).cell.array, bulk("Si").cell.array, atol=1e-7)


@pytest.mark.parametrize("fault", ["disk", "writer"])
def test_predictions_that_cannot_be_written_leave_the_old_file(tmp_path, monkeypatch, fault):
    """The file is synced before it takes the old one's place; a full disk or a failing writer leaves no rest."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    write_predictions(tmp_path / "out.extxyz", [molecule("H2O")], energies=[1.0])
    monkeypatch.setattr(*((os, "fsync") if fault == "disk" else (io, "write")), fail)
    with pytest.raises(OSError, match="could not be written"):
        write_predictions(tmp_path / "out.extxyz", [molecule("H2O")], energies=[2.0])
    assert [path.name for path in tmp_path.iterdir()] == ["out.extxyz"]
    assert read_atoms(tmp_path / "out.extxyz")[0].info["mdrelax_energy"] == 1.0


def test_predictions_of_the_wrong_number_or_size_are_refused(tmp_path):
    """A shifted list would put every number beside another frame."""
    frames = [molecule("H2O"), molecule("CH4")]
    with pytest.raises(ValueError, match="1 entries for 2 frames"):
        write_predictions(tmp_path / "out.extxyz", frames, energies=[1.0])
    with pytest.raises(ValueError, match=r"frame 1 must have shape \(5, 3\), got \(3, 3\)"):
        write_predictions(tmp_path / "out.extxyz", frames, energies=[1.0, 2.0], forces=[np.zeros((3, 3))] * 2)
    assert not (tmp_path / "out.extxyz").exists()
