"""`mdrelax bench hessians`: both ways give the same rows, and the table says what they cost."""

import numpy as np
import pytest
from ase.build import molecule

from mdrelax.analysis.benchmarks import hessians
from mdrelax.engines.hessian import hessian


def test_both_ways_give_the_same_rows() -> None:
    """To the third derivatives that central differences of 0.01 A leave: 1 % of the largest entry."""
    atoms = molecule("CH3CH2OH")
    force_field = hessians._untrained("equiformer", "tiny", atoms)
    exact = hessian(force_field, hessians._graph(atoms), range(2))
    finite = hessians.finite_rows(force_field, atoms, 2).numpy()
    assert exact.shape == finite.shape == (2, 3, 9, 3)
    np.testing.assert_allclose(finite, exact, rtol=0, atol=1e-2 * np.abs(exact).max())


def test_the_table_has_a_row_for_each_network_and_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive times, and their ratio."""
    monkeypatch.setattr(hessians, "STRUCTURES", {"water": (lambda: molecule("H2O"), 3)})
    heard: list[str] = []
    (row,) = hessians.hessian_times(networks=[("segnn", "tiny")], repeats=1, tell=heard.append).to_dict("records")
    assert (row["network"], row["structure"], row["rows"]) == ("segnn tiny", "water", 9)
    assert row["finite_over_exact"] == pytest.approx(row["finite_s"] / row["exact_s"])
    assert heard[0].startswith("segnn tiny, water: exact 0.")
