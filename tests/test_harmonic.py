"""Vibrations beside those of a reference: superposition, pairing by overlap, files, and levels of theory."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.vibrations import VibrationsData

from mdrelax.analysis.geometry import relax
from mdrelax.analysis.harmonic import Reference, compare, errors, level_of_theory, read_reference, relaxed_level
from mdrelax.analysis.superposition import superpose
from mdrelax.analysis.vibrations import NormalModes, finite_vibrations, mode_table, normal_modes


@pytest.fixture(scope="module")
def hessian() -> VibrationsData:
    """Ethanol in ASE's effective-medium potential, at its minimum."""
    return finite_vibrations(relax(molecule("CH3CH2OH"), EMT(), fmax=1e-4).atoms, EMT())


@pytest.fixture(scope="module")
def modes(hessian: VibrationsData) -> NormalModes:
    """Its normal modes."""
    return normal_modes(hessian)


def moved(atoms: Atoms, order: np.ndarray, turn: np.ndarray) -> Atoms:
    """The same molecule in another order, place and orientation."""
    other = atoms[order]
    other.positions = other.positions @ turn + 3.0
    return other


def turn(seed: int, *, mirrored: bool) -> np.ndarray:
    """A seeded rotation, or a rotation with a reflection."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * (-1 if (np.linalg.det(q) < 0) != mirrored else 1)


# --- superposition ---


@pytest.mark.parametrize("name", ["CH3CH2OH", "C6H6", "CH4", "NH3", "CO2", "CH3COOH"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_molecule_is_found_again_in_any_place_and_order(name: str, mirrored: bool) -> None:
    """Shuffled, turned, shifted and mirrored: it lies on itself again, tops and linear molecules too."""
    atoms = molecule(name)
    order = np.random.default_rng(1).permutation(len(atoms))
    placed = superpose(atoms, moved(atoms, order, turn(2, mirrored=mirrored)))
    assert placed.largest < 1e-6
    np.testing.assert_array_equal(atoms.numbers[order][placed.order], atoms.numbers)
    np.testing.assert_allclose(placed.rotation @ placed.rotation.T, np.eye(3), atol=1e-12)


def test_the_distance_is_that_of_the_atom_that_moved() -> None:
    """A hydrogen on the other side is far away, however little it weighs; other elements are refused."""
    one, other = molecule("CH3CH2OH"), molecule("CH3CH2OH")
    other.positions[3] += [0, 0, 1.5]
    placed = superpose(one, other)
    assert 1.0 < placed.largest < 1.6
    assert placed.distance < 0.4
    with pytest.raises(ValueError, match="not the same molecule"):
        superpose(one, molecule("CH3OCH3")[:-1])


# --- pairing ---


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_model_equals_itself_in_another_order_and_place(hessian: VibrationsData, mirrored: bool) -> None:
    """The Hessian of the shuffled, turned molecule: no difference, and every mode overlaps with its own."""
    n = len(hessian.get_atoms())
    order, rotation = np.random.default_rng(4).permutation(n), turn(3, mirrored=mirrored)
    turned = np.einsum("iajb,ac,bd->icjd", hessian.get_hessian()[order][:, :, order], rotation, rotation)
    other = normal_modes(VibrationsData(moved(hessian.get_atoms(), order, rotation), turned))
    found = compare(normal_modes(hessian), Reference("turned", other.vibrations, other))
    assert found.table.difference_per_cm.abs().max() < 1e-6
    assert found.table.overlap.min() > 1 - 1e-6
    assert errors(found)["paired_by"] == "overlap"
    assert errors(found)["mae_per_cm"] < 1e-6


def test_modes_that_changed_places_are_paired_by_their_motion(modes: NormalModes) -> None:
    """The model has two bends the other way round: in order the error is small and wrong, by overlap it is found."""
    swapped = modes.wavenumbers.copy()
    swapped[[-1, -2]] = swapped[[-2, -1]] + 40.0
    found = compare(modes, Reference("swapped", *_sorted(modes, swapped)))
    gap = modes.vibrations[-1] - modes.vibrations[-2]
    assert np.sort(found.table.difference_per_cm.to_numpy())[[0, -1]] == pytest.approx([-gap - 40, gap - 40])
    assert found.table.overlap.min() > 1 - 1e-9


def _sorted(modes: NormalModes, wavenumbers: np.ndarray) -> tuple[np.ndarray, NormalModes]:
    """Modes with other wavenumbers, from the lowest to the highest again."""
    rigid = int((~modes.is_vibration).sum())
    order = np.concatenate([np.arange(rigid), rigid + np.argsort(wavenumbers[rigid:])])
    own = modes._replace(wavenumbers=wavenumbers[order], vectors=modes.vectors[order])
    return own.vibrations, own


def test_other_conformers_and_bare_numbers_are_paired_in_order(modes: NormalModes) -> None:
    """Overlaps mean nothing there: the column is empty, and the errors say how modes were paired."""
    far = modes.atoms.copy()
    far.positions[3] += [0, 0, 1.5]
    for reference in (
        Reference("far", modes.vibrations + 10, modes._replace(atoms=far)),
        Reference("table", modes.vibrations + 10, None),
    ):
        found = compare(modes, reference)
        assert found.table.overlap.isna().all()
        assert errors(found)["paired_by"] == "order"
        assert errors(found)["mean_error_per_cm"] == pytest.approx(-10)
        assert errors(found)["lowest_overlap"] is None
    with pytest.raises(ValueError, match="has 20 vibrations and the model 21"):
        compare(modes, Reference("short", modes.vibrations[1:], None))


def test_the_largest_error_is_named_with_its_vibration(modes: NormalModes) -> None:
    """With its sign, and where the reference has it."""
    other = modes.vibrations.copy()
    other[20] += 77.0
    found = errors(compare(modes, Reference("r", other, None)))
    assert found["largest_error_per_cm"] == pytest.approx(-77)
    assert found["largest_error_at_per_cm"] == pytest.approx(other[20])
    assert found["mae_per_cm"] == pytest.approx(77 / 21)


# --- references ---


def test_references_are_read_from_tables_and_hessians(tmp_path: Path, hessian: VibrationsData, modes: NormalModes):
    """A column in 1/cm, with or without the six nearest to zero; the table of `mdrelax vibrations`; ASE's JSON."""
    pd.DataFrame({"cm-1": modes.vibrations[::-1]}).to_csv(tmp_path / "own.csv", index=False)
    pd.DataFrame({"freq (cm^-1)": modes.wavenumbers}).to_csv(tmp_path / "all.csv", index=False)
    mode_table(modes).to_csv(tmp_path / "vibrations.csv", index=False)
    hessian.write(str(tmp_path / "ase.json"))
    for name in ("own.csv", "all.csv", "vibrations.csv", "ase.json"):
        found = read_reference(tmp_path / name, 9)
        assert found.wavenumbers == pytest.approx(modes.vibrations, abs=1e-6), name
        assert (found.modes is not None) == (name == "ase.json")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "THz\n1\n", "must have one column with cm in its name"),
        ("a.csv", "cm-1,cm-1 b\n1,2\n", "must have one column"),
        ("a.csv", "cm-1\n100i\n", "write 100i as -100"),
        ("a.json", "no", "neither JSON nor a CSV"),
        ("a.json", "{}", "contains no vibrations"),
    ],
)
def test_a_file_without_vibrations_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    """With what was looked for."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_reference(tmp_path / name, 3)


class Silent(Calculator):
    """Fails when it is asked."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012


def test_a_level_of_theory_is_computed_once(tmp_path: Path) -> None:
    """GFN2-xTB water: near its experimental 1595, 3657 and 3756 / cm (to 150 / cm), then read from the file."""
    pytest.importorskip("tblite")
    start = molecule("H2O")
    found, path = relaxed_level("GFN2-xTB", level_of_theory("GFN2-xTB", start), start, tmp_path)
    assert found.wavenumbers == pytest.approx([1595, 3657, 3756], abs=150)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    again, _ = relaxed_level("GFN2-xTB", Silent(), start, tmp_path)
    np.testing.assert_array_equal(again.wavenumbers, found.wavenumbers)
    assert read_reference(path, 3).wavenumbers == pytest.approx(found.wavenumbers)
    other = start.copy()
    other.rattle(0.1)
    with pytest.raises(NotImplementedError):
        relaxed_level("GFN2-xTB", Silent(), other, tmp_path)


def test_an_interrupted_level_of_theory_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was computed before a stop is not computed again, half a file of it is."""
    pytest.importorskip("tblite")
    start, level, calls = molecule("H2O"), level_of_theory("GFN2-xTB", molecule("H2O")), []
    label = level.labeller

    def counted(atoms: Atoms):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return label(atoms)

    monkeypatch.setattr(level, "labeller", counted)
    with pytest.raises(KeyboardInterrupt):
        relaxed_level("GFN2-xTB", level, start, tmp_path)
    (forces,) = tmp_path.glob("*-forces")
    done = len([part for part in forces.glob("*.json") if part.stat().st_size])
    assert 0 < done < 19
    found, _ = relaxed_level("GFN2-xTB", level, start, tmp_path)
    assert len(calls) == 15 + 19 - done  # 6 N displacements and the minimum itself
    (tmp_path / "other").mkdir()
    whole, _ = relaxed_level("GFN2-xTB", level_of_theory("GFN2-xTB", start), start, tmp_path / "other")
    np.testing.assert_allclose(found.wavenumbers, whole.wavenumbers, atol=0.1)
