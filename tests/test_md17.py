"""MD17, rMD17 and MD22 files: converted once, labels chosen openly, wrong files named."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units as ase_units

from mdrelax.datasets import load_frames, make_frame, to_atoms
from mdrelax.datasets.md17 import RMD17_MAX_TRAIN, load_md17, warn_about_md17_noise

WATER = np.array([8, 1, 1], dtype=np.uint8)
ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8)


def rmd17_file(folder: Path, n_frames: int = 4, **changes: np.ndarray | None) -> Path:
    """A tiny file in rMD17's layout; ``changes`` replaces arrays, ``None`` leaves one out."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray | None] = {
        "nuclear_charges": WATER,
        "coords": rng.normal(size=(n_frames, 3, 3)),
        "energies": rng.normal(size=n_frames) - 100.0,
        "forces": rng.normal(size=(n_frames, 3, 3)),
        "old_indices": np.arange(n_frames),
        "old_energies": rng.normal(size=n_frames) - 100.0,
        "old_forces": rng.normal(size=(n_frames, 3, 3)),
        **changes,
    }
    path = folder / "rmd17_water.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def sgdml_file(folder: Path, numbers: np.ndarray = WATER, **extra: object) -> Path:
    """A tiny file in sGDML's layout, energies as a column, as MD17 has them."""
    rng = np.random.default_rng(1)
    positions, energies, forces = (
        rng.normal(size=(2, *shape)) for shape in ((len(numbers), 3), (1,), (len(numbers), 3))
    )
    path = folder / "md17.npz"
    np.savez(path, z=numbers, R=positions, E=energies, F=forces, **extra)
    return path


def test_rmd17_is_converted_from_kcal_mol_to_ev(tmp_path):
    """ASE's own kcal/mol is the outside truth; 1e-7 covers its CODATA 2014 against our 2018 constants."""
    path = rmd17_file(tmp_path)
    frames = load_md17(path)
    with np.load(path) as arrays:
        factor = ase_units.kcal / ase_units.mol
        np.testing.assert_allclose(frames.data[2].energy.item(), arrays["energies"][2] * factor, rtol=1e-7)
        np.testing.assert_allclose(frames.data[2].forces.numpy(), arrays["forces"][2] * factor, rtol=1e-7)
        np.testing.assert_array_equal(frames.data[2].pos.numpy(), arrays["coords"][2])


def test_a_frame_has_the_promised_shapes_and_types(tmp_path):
    """The table at the top of ``frames.py``."""
    frame = load_md17(rmd17_file(tmp_path)).data[0]
    assert frame.z.dtype == torch.int64
    assert frame.z.tolist() == [8, 1, 1]
    shapes = {name: tuple(frame[name].shape) for name in ("pos", "cell", "pbc", "energy", "forces")}
    assert shapes == {"pos": (3, 3), "cell": (1, 3, 3), "pbc": (1, 3), "energy": (1,), "forces": (3, 3)}
    assert frame.pos.dtype == frame.energy.dtype == frame.forces.dtype == torch.float64
    assert not frame.pbc.any()
    assert "stress" not in frame


def test_original_labels_are_taken_on_demand_with_a_warning(tmp_path):
    """``labels="original"`` reads the old labels of the same frames, and says that they are noisy."""
    path = rmd17_file(tmp_path)
    with pytest.warns(UserWarning, match="noise"):
        original = load_md17(path, labels="original")
    revised = load_md17(path)
    assert original.report.keys == {"energy": "old_energies", "forces": "old_forces"}
    assert not torch.equal(original.data[0].energy, revised.data[0].energy)
    assert torch.equal(original.data[0].pos, revised.data[0].pos)


def test_sgdml_files_are_read_whatever_the_shape_of_their_energies(tmp_path):
    """MD17 keeps energies as a column (F, 1)."""
    frames = load_md17(sgdml_file(tmp_path))
    assert [frame.energy.shape for frame in frames.data] == [(1,), (1,)]
    assert frames.report.keys == {"energy": "E", "forces": "F"}


def test_units_declared_by_an_sgdml_file_are_kept(tmp_path):
    """A file that declares eV is not multiplied by kcal/mol; an explicit unit wins over the declaration."""
    path = sgdml_file(tmp_path, e_unit="eV", r_unit="Ang")
    with np.load(path) as arrays:
        energy = arrays["E"][0, 0]
    assert load_md17(path).data[0].energy.item() == energy
    assert load_md17(path, energy_unit="meV").data[0].energy.item() == pytest.approx(energy / 1000, rel=1e-14)


def test_original_md17_molecules_warn_about_their_noise(tmp_path):
    """The ten molecules of MD17 at DFT level warn; other molecules and coupled-cluster labels do not."""
    with pytest.warns(UserWarning, match="numerical noise"):
        load_md17(sgdml_file(tmp_path, ETHANOL))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_md17(sgdml_file(tmp_path, WATER))
        load_md17(sgdml_file(tmp_path, ETHANOL, theory="CCSD(T)"))


def test_revised_labels_of_an_original_file_are_refused(tmp_path):
    """They are not in it."""
    with pytest.raises(ValueError, match="no revised labels"):
        load_md17(sgdml_file(tmp_path), labels="revised")


def test_more_than_a_thousand_training_frames_of_rmd17_warn():
    """The authors of rMD17 ask for at most 1,000; other data may be larger."""
    frame = make_frame(WATER, np.zeros((3, 3)), config_type="rmd17")
    with pytest.warns(UserWarning, match="at most 1000"):
        warn_about_md17_noise([frame] * (RMD17_MAX_TRAIN + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about_md17_noise([frame] * RMD17_MAX_TRAIN)
        warn_about_md17_noise([make_frame(WATER, np.zeros((3, 3)))] * (RMD17_MAX_TRAIN + 1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"forces": None}, "lacks forces; keys found: coords, energies, nuclear_charges"),
        ({"forces": np.zeros((4, 2, 3))}, r"must be \(4, 3, 3\)"),
        ({"coords": np.zeros((0, 3, 3)), "energies": np.zeros(0), "forces": np.zeros((0, 3, 3))}, "holds no frames"),
        ({"energies": np.array([1.0, 2.0, np.nan, 4.0])}, "energy value of nan in frame 2"),
        (
            {"forces": np.where(np.arange(36).reshape(4, 3, 3) == 13, np.inf, 0.0)},
            "forces value of inf in frame 1 of `.*`, atom 1;",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_fault(tmp_path, changes, sentence):
    """Missing keys list what was found; bad numbers are named by frame and atom."""
    with pytest.raises(ValueError, match=sentence):
        load_md17(rmd17_file(tmp_path, **changes))


def test_a_misspelt_unit_names_the_nearest(tmp_path):
    """Units are never guessed."""
    with pytest.raises(ValueError, match="did you mean `kcal/mol`"):
        load_md17(rmd17_file(tmp_path), energy_unit="kcal/mole")


def test_unknown_labels_are_refused(tmp_path):
    """Only revised and original exist."""
    with pytest.raises(ValueError, match="revised or original, got `new`"):
        load_md17(rmd17_file(tmp_path), labels="new")


def test_a_truncated_file_is_one_clear_error(tmp_path):
    """A download that broke off, an empty file and a text file all end in one sentence."""
    path = rmd17_file(tmp_path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"hello\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as an npz file"):
            load_md17(path)


def test_pickled_objects_are_refused(tmp_path):
    """An npz that holds Python objects could run code when read."""
    path = rmd17_file(tmp_path, energies=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="pickled objects"):
        load_md17(path)


def test_a_missing_file_is_named(tmp_path):
    """No file, no traceback out of numpy."""
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load_md17(tmp_path / "nothing.npz")


@pytest.mark.data
@pytest.mark.parametrize("molecule", ["aspirin", "ethanol", "malonaldehyde", "uracil"])
def test_real_rmd17_agrees_with_an_independent_method(shared_data, molecule):
    """Forces of GFN2-xTB, another method in another program, have the same sign and size.

    The methods differ by some 30 % of the RMS force, which leaves a correlation above 0.9 and a slope within 15 % of 1;
    a wrong sign or unit (kcal/mol is 0.043 eV) misses both.
    """
    tblite = pytest.importorskip("tblite.ase")
    data = load_frames(shared_data / "rmd17" / f"rmd17_{molecule}_train_01.npz").data
    assert len(data) == 1000
    ours, theirs = [], []
    for frame in data[:10]:
        atoms = to_atoms(frame)
        atoms.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
        ours.append(frame.forces.numpy().ravel())
        theirs.append(atoms.get_forces().ravel())
    a, b = np.concatenate(ours), np.concatenate(theirs)
    assert np.corrcoef(a, b)[0, 1] > 0.9
    assert a @ b / (b @ b) == pytest.approx(1.0, abs=0.15)
