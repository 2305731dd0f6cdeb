"""Metrics: against numbers worked out by hand and against numpy's own functions."""

import numpy as np
import pytest
import torch
from ase.units import kcal, mol
from torch_geometric.data import Data

from mdrelax.forces.metrics import (
    Labels,
    Predictions,
    error_percentiles,
    errors,
    errors_by_element,
    labels_of,
    load_predictions,
    mean_baseline,
)

H, C, O = 1, 6, 8  # noqa: E741


def _two_structures() -> Predictions:
    """CO and H: energies off by +2 and -1 eV, forces off by 0.1, -0.2 and 0.3 eV/A in every component."""
    off = np.array([0.1, -0.2, 0.3])[:, None]  # one error an atom
    forces = np.arange(9.0).reshape(3, 3)
    energy = np.array([-3.0, -1.0])
    return Predictions(
        np.array([C, O, H]), np.array([2, 1]), energy, energy + np.array([2.0, -1.0]), forces, forces + off
    )


def _random(seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    n_atoms = np.array([3, 5, 4])
    arrays = [rng.normal(size=shape) for shape in [(3,), (3,), (12, 3), (12, 3), (3, 3, 3), (3, 3, 3)]]
    return Predictions(rng.choice([H, C], 12), n_atoms, *arrays)


def test_errors_are_those_worked_out_by_hand() -> None:
    """|2|, |-1| eV: MAE 1,500 meV and (2/2 + 1/1)/2 = 1,000 meV/atom; forces (0.1 + 0.2 + 0.3)/3 = 200 meV/A."""
    table = errors(_two_structures())
    assert table["energy_mae_meV"] == pytest.approx(1500)
    assert table["energy_rmse_meV"] == pytest.approx(1000 * np.sqrt(2.5))
    assert table["energy_mae_meV_per_atom"] == pytest.approx(1000)
    assert table["energy_rmse_meV_per_atom"] == pytest.approx(1000)
    assert table["forces_mae_meV_per_A"] == pytest.approx(200)
    assert table["forces_rmse_meV_per_A"] == pytest.approx(1000 * np.sqrt((0.01 + 0.04 + 0.09) / 3))
    assert "stress_mae_meV_per_A3" not in table


def test_force_and_stress_errors_run_over_components() -> None:
    """The mean over all 3N (9G) numbers, as ``numpy.mean`` takes it, and not over the atoms' norms."""
    p = _random()
    table = errors(p)
    assert table["forces_mae_meV_per_A"] == pytest.approx(1000 * np.mean(np.abs(p.forces_pred - p.forces_true)))
    assert table["stress_rmse_meV_per_A3"] == pytest.approx(
        1000 * np.sqrt(np.mean((p.stress_pred - p.stress_true) ** 2))
    )
    norms = np.linalg.norm(p.forces_pred - p.forces_true, axis=1)
    assert table["forces_mae_meV_per_A"] < 1000 * norms.mean()


def test_kcal_columns_are_the_same_errors_in_ases_unit() -> None:
    """ASE (CODATA 2014) knows the size of a kcal/mol; the constants of CODATA 2018 differ by less than 1e-7."""
    table = errors(_random())
    for kind in ("mae", "rmse"):
        energy, forces = table[f"energy_{kind}_meV"], table[f"forces_{kind}_meV_per_A"]
        assert table[f"energy_{kind}_kcal_per_mol"] == pytest.approx(energy / 1000 / (kcal / mol), rel=1e-7)
        assert table[f"forces_{kind}_kcal_per_mol_per_A"] == pytest.approx(forces / 1000 / (kcal / mol), rel=1e-7)


def test_missing_labels_are_left_out_and_wrong_predictions_are_not() -> None:
    """A NaN reference is no label; a NaN prediction is a broken model, and its error says so."""
    p = _two_structures()
    unlabelled = p._replace(energy_true=np.array([np.nan, -1.0]))
    assert errors(unlabelled)["energy_mae_meV"] == pytest.approx(1000)
    assert errors(unlabelled)["energy_mae_meV_per_atom"] == pytest.approx(1000)
    broken = p._replace(energy_pred=np.array([np.nan, -1.0]))
    assert np.isnan(errors(broken)["energy_mae_meV"])
    nothing = p._replace(forces_true=np.full((3, 3), np.nan))
    assert not any(name.startswith("forces") for name in errors(nothing))


def test_each_element_has_its_own_force_error() -> None:
    """The three atoms of the example are three elements, with errors 0.3, 0.1 and 0.2 eV/A."""
    table = errors_by_element(_two_structures()).set_index("element")
    assert table.forces_mae_meV_per_A.to_dict() == pytest.approx({"H": 300, "C": 100, "O": 200})
    assert table.reference_rms_meV_per_A["C"] == pytest.approx(1000 * np.sqrt((0 + 1 + 4) / 3))
    assert table.n_atoms.tolist() == [1, 1, 1]


def test_element_errors_add_up_to_the_whole() -> None:
    """Weighted with the numbers of atoms, the elements' MAE give the MAE of all."""
    p = _random()
    table = errors_by_element(p)
    whole = np.average(table.forces_mae_meV_per_A, weights=table.n_atoms)
    assert whole == pytest.approx(errors(p)["forces_mae_meV_per_A"])


def test_percentiles_are_numpys() -> None:
    """One row a quantity, in meV/atom, meV/A and meV/A^3."""
    p = _random()
    table = error_percentiles(p).set_index("quantity")
    sizes = 1000 * np.abs(p.forces_pred - p.forces_true)
    assert table.loc["forces", ["p50", "p99", "max"]].tolist() == pytest.approx(
        [np.median(sizes), np.quantile(sizes, 0.99), sizes.max()]
    )
    assert table.unit.to_dict() == {"energy": "meV/atom", "forces": "meV/A", "stress": "meV/A^3"}


def test_mean_baseline_predicts_the_mean_of_the_composition() -> None:
    """Trained on two CO (order of atoms free) and one H2: CO gets its mean, forces one vector for all atoms."""
    numbers = np.array([C, O, O, C, H, H])
    forces = np.arange(18.0).reshape(6, 3)
    train = Labels(numbers, np.array([2, 2, 2]), np.array([-10.0, -12.0, -3.0]), forces)
    test = Labels(np.array([H, H, C, O]), np.array([2, 2]), np.array([-2.0, -9.0]), np.zeros((4, 3)))
    predicted = mean_baseline(train, test)
    np.testing.assert_allclose(predicted.energy_pred, [-3.0, -11.0])
    np.testing.assert_allclose(predicted.forces_pred, np.tile([7.5, 8.5, 9.5], (4, 1)))
    assert errors(predicted)["energy_mae_meV"] == pytest.approx(1500)


def test_mean_baseline_adds_elements_up_for_an_unseen_composition() -> None:
    """H has -1 eV and O has -5 eV in H2, O2 and H2O, which least squares find; OH is then -6 eV."""
    train = Labels(np.array([H, H, O, O, H, H, O]), np.array([2, 2, 3]), np.array([-2.0, -10.0, -7.0]))
    test = Labels(np.array([O, H]), np.array([2]), np.array([-6.5]))
    np.testing.assert_allclose(mean_baseline(train, test).energy_pred, [-6.0])


def test_mean_baseline_refuses_what_it_has_not_seen() -> None:
    """An unknown element and forces without training forces are sentences, not zeros."""
    train = Labels(np.array([H, H]), np.array([2]), np.array([-2.0]))
    with pytest.raises(ValueError, match=r"elements \['O'\] that the training set lacks"):
        mean_baseline(train, Labels(np.array([O, H]), np.array([2]), np.array([-6.0])))
    with pytest.raises(ValueError, match="test set has forces, but the training set has none"):
        mean_baseline(train, Labels(np.array([H]), np.array([1]), np.array([-1.0]), np.zeros((1, 3))))


def test_labels_are_collected_from_structures() -> None:
    """Structure after structure; a label that only some have is NaN in the others, one that none has is None."""
    first = Data(z=torch.tensor([C, O]), energy=torch.tensor([-3.0]), forces=torch.ones(2, 3, dtype=torch.float64))
    second = Data(z=torch.tensor([H]), energy=torch.tensor([-1.0]))
    labels = labels_of([first, second])
    assert labels.numbers.tolist() == [C, O, H]
    assert labels.n_atoms.tolist() == [2, 1]
    assert labels.energy.tolist() == [-3.0, -1.0]
    assert labels.forces is not None
    np.testing.assert_array_equal(labels.forces, [[1.0] * 3, [1.0] * 3, [np.nan] * 3])
    assert labels.stress is None


def test_predictions_that_do_not_fit_together_are_refused() -> None:
    """Shapes are compared before any broadcasting could hide a mistake."""
    p = _two_structures()
    with pytest.raises(ValueError, match="`n_atoms` adds up to 4, but `numbers` has 3"):
        errors(p._replace(n_atoms=np.array([2, 2])))
    with pytest.raises(ValueError, match=r"`energy_true` and `energy_pred` must both have shape \(2,\)"):
        errors(p._replace(energy_pred=np.zeros((2, 1))))
    with pytest.raises(ValueError, match="`forces_true` and `forces_pred` must both"):
        errors(p._replace(forces_pred=None))


def test_predictions_come_back_from_their_file(tmp_path) -> None:
    """What was written is read; a file that lacks an array names it."""
    p = _two_structures()
    arrays = {name: array for name, array in p._asdict().items() if array is not None}
    np.savez(tmp_path / "whole.npz", **arrays)
    np.testing.assert_equal(load_predictions(tmp_path / "whole.npz")._asdict(), p._asdict())
    del arrays["energy_pred"]
    np.savez(tmp_path / "part.npz", **arrays)
    with pytest.raises(ValueError, match="lacks the arrays energy_pred, which `mdrelax train` writes"):
        load_predictions(tmp_path / "part.npz")
