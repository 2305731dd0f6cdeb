"""Figures hold the data they were given: looked up in the axes, not in the pixels."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import NothingToDrawError, scientific
from mdrelax.analysis.figures import (
    equivariance_bars,
    learning_curves,
    md_energy,
    parity,
    schedule_plot,
    symmetry_spectra,
)
from mdrelax.engines.md import LOG_COLUMNS, energy_drift
from mdrelax.forces.metrics import Predictions, errors
from mdrelax.method.certificate import Certificate, EquivarianceError
from mdrelax.method.projection import LayerRecord

STEPS = np.arange(0, 101, 10)
GOOD = EquivarianceError(1e-14, 2e-14, 3e-15, 0.0)


def _metrics(theta: float = 1.0) -> pd.DataFrame:
    """Eleven validations of a run without stress labels."""
    wave = np.exp(-STEPS / 30.0)
    table = {"step": STEPS, "lr": 1e-3 * wave, "theta": theta * (1 - np.abs(STEPS / 50 - 1)), "penalty": theta * wave}
    errors_ = {"val_forces_mae_meV_per_A": 500 * wave, "val_energy_mae_meV_per_atom": 40 * wave}
    return pd.DataFrame({**table, **errors_, "val_stress_mae_meV_per_A3": np.nan})


def _predictions(n_structures: int) -> Predictions:
    rng = np.random.default_rng(0)
    energy, forces = rng.normal(-100, 1, n_structures), rng.normal(size=(2 * n_structures, 3))
    numbers, n_atoms = np.tile([6, 8], n_structures), np.full(n_structures, 2)
    return Predictions(numbers, n_atoms, energy, energy + 0.1, forces, forces - 0.02)


def _certificate(spectra: list[list[float]], float32: EquivarianceError = GOOD, symmetry: str = "E(3)") -> Certificate:
    layers = [LayerRecord(f"potential.blocks.{k}.map", 1.0, 0.5, 0.7, s, 0.0, "dropped") for k, s in enumerate(spectra)]
    return Certificate(symmetry, GOOD, float32, 8, layers)


def _log() -> pd.DataFrame:
    time = np.linspace(0, 2, 41)
    total = -500 + 0.003 * time + 0.001 * np.sin(40 * time)
    table = pd.DataFrame(0.0, index=range(41), columns=list(LOG_COLUMNS))
    return table.assign(time_ps=time, total_energy_eV=total, temperature_K=300 + 20 * np.cos(30 * time))


def _panel(figure: Figure, title: str) -> Axes:
    return next(ax for ax in figure.axes if title in ax.get_title(loc="left"))


def test_learning_curves_hold_both_arms_and_theta() -> None:
    """Solid and dashed curves are the two tables, theta fills up to its own values, the kept model is marked."""
    metrics, standard = _metrics(), _metrics(theta=0.0) * 1.5
    figure = learning_curves(metrics, standard.assign(step=STEPS), best_step=80)
    ax = _panel(figure, "force MAE (meV/Å)")
    lines = {line.get_label(): line for line in ax.lines}
    own, other = lines["this run, validation (projected)"], lines["standard arm, validation"]
    np.testing.assert_array_equal(own.get_xydata(), metrics[["step", "val_forces_mae_meV_per_A"]])
    np.testing.assert_array_equal(other.get_ydata(), standard.val_forces_mae_meV_per_A)
    assert (own.get_linestyle(), other.get_linestyle(), ax.get_yscale()) == ("-", "--", "log")
    assert lines["model kept"].get_xdata().tolist() == [80]
    twin = next(a for a in figure.axes if a is not ax and a.bbox.bounds == ax.bbox.bounds)
    heights = twin.collections[0].get_paths()[0].vertices[:, 1]
    assert set(metrics.theta) == set(heights)


def test_learning_curves_show_only_what_was_measured() -> None:
    """No stress labels, no stress panel; no relaxation, no axis for theta; no errors at all, an error."""
    figure = learning_curves(_metrics(theta=0.0))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["force MAE (meV/Å)", "energy MAE (meV/atom)"]
    with pytest.raises(NothingToDrawError, match="no validation error"):
        learning_curves(pd.DataFrame({"step": STEPS}))


def test_schedule_plot_leaves_out_what_was_always_zero() -> None:
    """The relaxed arm has theta, learning rate and penalty; the standard arm only a learning rate."""
    metrics = _metrics()
    np.testing.assert_array_equal(_panel(schedule_plot(metrics), "θ").lines[0].get_ydata(), metrics.theta)
    assert [ax.get_title(loc="left") for ax in schedule_plot(_metrics(theta=0.0)).axes] == ["learning rate"]


def test_parity_draws_every_point_and_names_the_mae() -> None:
    """Energies are shifted by the mean reference, one and the same for both axes; the titles carry the errors."""
    p = _predictions(50)
    energies, forces = parity(p).axes[:2]
    points = energies.collections[0].get_offsets()
    np.testing.assert_allclose(points, np.stack([p.energy_true, p.energy_pred], axis=1) - p.energy_true.mean())
    assert len(forces.collections[0].get_offsets()) == 300
    assert energies.get_title(loc="left") == f"energy: MAE {errors(p)['energy_mae_meV']:.3g} meV"
    assert forces.get_title(loc="left") == "forces: MAE 20 meV/Å"
    assert forces.get_xlim() == forces.get_ylim()


def test_crowded_parity_counts_every_component() -> None:
    """Above 2,000 points hexagons count them; no component is lost."""
    axes = _panel(parity(_predictions(1000)), "forces")
    assert axes.collections[0].get_array().sum() == 6000


def test_structures_of_different_size_are_compared_per_atom() -> None:
    """Total energies of different molecules would hide every error."""
    p = Predictions(np.array([1, 1, 8]), np.array([1, 2]), np.array([-1.0, -8.0]), np.array([-1.1, -8.0]))
    figure = parity(p)
    assert len(figure.axes) == 1
    assert "(eV/atom)" in figure.axes[0].get_xlabel()
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets()[:, 0], [1.5, -1.5])


def test_spectra_stand_layer_by_j() -> None:
    """Row k is layer k, column J is ||W_J||^2; a J that a layer cannot have is masked, a zero is not."""
    figure = symmetry_spectra(_certificate([[1.0, 1e-3, 0.0], [0.5, 1e-4]]))
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown.filled(np.nan), [[1.0, 1e-3, 0.0], [0.5, 1e-4, np.nan]], atol=1e-200)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0.map", "1.map"]
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["0", "0.0001", "0.001", "0.5", "1"]


def test_spectra_of_maps_that_stayed_zero_can_be_drawn() -> None:
    """Free maps that never moved give a grey picture, none at all an error."""
    figure = symmetry_spectra(_certificate([[0.0, 0.0]]))
    figure.canvas.draw()
    assert {text.get_text() for text in figure.axes[0].texts} == {"0"}
    with pytest.raises(NothingToDrawError, match="nothing was relaxed"):
        symmetry_spectra(_certificate([[]]))


def test_bars_end_at_the_errors_and_change_colour_at_the_limit() -> None:
    """Bars are as long as the errors, the limit is drawn, a failing error looks different, infinity fills the row."""
    figure = equivariance_bars(_certificate([], float32=EquivarianceError(1e-6, 3e-3, float("inf"), 0.0)))
    double, single = figure.axes
    ends = [bar.get_x() + bar.get_width() for bar in double.patches]
    assert ends[:3] == pytest.approx(GOOD[:3])
    assert [line.get_xdata()[0] for line in (double.lines[0], single.lines[0])] == [1e-9, 1e-4]
    passed, failed, infinite, _ = (bar.get_facecolor() for bar in single.patches)
    assert passed != failed == infinite
    assert single.patches[2].get_x() + single.patches[2].get_width() == pytest.approx(single.get_xlim()[1])
    figure.canvas.draw()


def test_symmetries_that_are_not_claimed_are_pale() -> None:
    """An SE(3) network is not judged by reflections."""
    for symmetry, alpha in (("E(3)", 1.0), ("SE(3)", 0.3)):
        bars = equivariance_bars(_certificate([], symmetry=symmetry)).axes[0].patches
        assert [bar.get_alpha() for bar in bars] == [1.0, alpha, 1.0, 1.0]


def test_md_energy_starts_at_zero_and_names_the_drift() -> None:
    """Energies are per atom and relative to the first; the slope in the title is the one ``energy_drift`` gives."""
    log = _log()
    figure = md_energy(log, n_atoms=9)
    curve = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(curve, 1000 * (log.total_energy_eV + 500) / 9, atol=1e-9)
    drift = energy_drift(log.time_ps, log.total_energy_eV, 9)
    assert f"drift {drift:.2g} meV/atom/ps" in figure.axes[0].get_title(loc="left")
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), log.temperature_K)
    assert "(meV)" in md_energy(log).axes[0].get_ylabel()


def test_md_that_exploded_is_drawn_up_to_the_explosion() -> None:
    """Rows that are not finite are left out; nothing left is an error."""
    log = _log()
    log.loc[30:, "total_energy_eV"] = np.nan
    assert len(md_energy(log).axes[0].lines[0].get_ydata()) == 30
    with pytest.raises(NothingToDrawError, match="fewer than two finite rows"):
        md_energy(log.iloc[:1])


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    """Style is the figure's own; the user's settings are as before, also after a failure."""
    before = dict(mpl.rcParams)
    md_energy(_log())
    with pytest.raises(NothingToDrawError):
        schedule_plot(pd.DataFrame({"step": STEPS}))
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("value", "text"), [(3e-14, "3e-14"), (2.5e-7, "2.5e-7"), (0.0, "0"), (float("inf"), "infinite")]
)
def test_small_numbers_are_written_short(value: float, text: str) -> None:
    """Exponents are not padded, and zero is 0."""
    assert scientific(value) == text
