"""Figures of arms hold the numbers of the runs: looked up in the axes, not in the pixels."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import NothingToDrawError
from mdrelax.analysis.studies.arm_figures import (
    ARM_STYLES,
    RunTables,
    arm_style,
    errors_against,
    errors_of_arms,
    in_order,
    learning_curves,
    lie_derivatives,
)
from mdrelax.analysis.studies.measures import main_setting
from mdrelax.analysis.studies.nbody import MSE, STUDY
from mdrelax.packs.nbody.run import ARMS
from mdrelax.packs.smoke import run as smoke
from nbody_runs import LAYERS, STEPS, THETA, layers, metrics

VALIDATION = ("val_mse", "validation MSE (10⁻³), projected network")


def _table() -> pd.DataFrame:
    """Two arms and seeds at depths 1, 2, 4 with 3,000 trajectories, and at depth 4 with 300; a third arm once."""
    settings = [(1, 3000), (2, 3000), (4, 3000), (4, 300)]
    rows = [
        {"arm": arm, "seed": seed, "n_layers": n, "n_train": size, "test_mse": 1e-3 * (base + seed) / n}
        for arm, base in (("standard", 6.1), ("relaxed", 5.1))
        for seed in (0, 1)
        for n, size in settings
    ]
    return pd.DataFrame([*rows, {"arm": "egnn", "seed": 0, "n_layers": 4, "n_train": 3000, "test_mse": 7e-3}])


def _against(table: pd.DataFrame, by: str) -> Figure:
    return errors_against(table, by, MSE, STUDY.factors)


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def _means(ax: Axes, arm: str) -> np.ndarray:
    """The points of an arm's means: the line with its marker."""
    return next(line for line in ax.lines if line.get_marker() == ARM_STYLES[arm][1]).get_xydata()


def _titles(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes if ax.get_title(loc="left")]


@pytest.mark.parametrize("arms", [ARMS, smoke.ARMS], ids=["nbody", "smoke"])
def test_every_arm_has_a_look_of_its_own(arms: dict[str, Any]) -> None:
    """In one figure no two arms have the same colour and marker, and they stand in the order of the study."""
    assert set(arms) <= set(ARM_STYLES)
    assert len({ARM_STYLES[arm] for arm in arms}) == len(arms)


def test_arms_that_are_not_listed_have_looks_too() -> None:
    """They come after the listed ones, in their own order, and no two alike."""
    arms = in_order(["mine", "relaxed", "other", "mine", "standard"])
    assert arms == ["standard", "relaxed", "mine", "other"]
    assert len({arm_style(arm, arms) for arm in arms}) == 4


def test_errors_against_depth_are_means_with_their_spread() -> None:
    """Means of the seeds times 1000, bars of one deviation each way, and every seed a dot; one depth is no curve."""
    figure = _against(_table(), "n_layers")
    (ax,) = figure.axes
    assert (_titles(figure), ax.get_xlabel()) == (["3,000 training trajectories"], "layers")
    assert ax.get_ylabel() == "test MSE (10⁻³)"
    assert ax.get_xticks().tolist() == [1, 2, 4]
    assert _legend(figure) == ["standard", "relaxed"]
    for arm, base in (("standard", 6.6), ("relaxed", 5.6)):
        points = _means(ax, arm)
        np.testing.assert_allclose(points[:, 1], [base, base / 2, base / 4])
        np.testing.assert_allclose(points[:, 0], [1, 2, 4], atol=0.1)
        bars = next(c for c in ax.collections if to_rgba(ARM_STYLES[arm][0]) == tuple(c.get_color()[0]))
        ends = np.array([path.vertices[:, 1] for path in bars.get_paths()])
        np.testing.assert_allclose(np.ptp(ends, axis=1), 2 * np.sqrt(0.5) / np.array([1, 2, 4]))
    dots = np.concatenate([line.get_ydata() for line in ax.lines if line.get_marker() == "."])
    in_panel = _table().query("n_train == 3000 and arm != 'egnn'")
    np.testing.assert_allclose(np.sort(dots), np.sort(1e3 * in_panel.test_mse))
    low, high = ax.get_ylim()
    assert low < dots.min() < dots.max() < high


def test_errors_against_data_have_a_log_axis_and_stand_beside_each_other() -> None:
    """Ticks are the sizes; arms are moved apart, evenly on the log axis."""
    (ax,) = _against(_table(), "n_train").axes
    assert (ax.get_xscale(), ax.get_title(loc="left")) == ("log", "4 layers")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["300", "3,000"]
    left, right = _means(ax, "standard")[:, 0], _means(ax, "relaxed")[:, 0]
    assert (left < right).all()
    np.testing.assert_allclose(right[0] / left[0], right[1] / left[1])


def test_a_grid_has_a_panel_for_each_value_of_the_other_variable() -> None:
    """Two depths times two sizes: two panels with one error axis."""
    grid = pd.concat([_table().query("n_layers < 4").assign(n_train=size) for size in (3000, 300)])
    figure = _against(grid, "n_layers")
    assert _titles(figure) == ["300 training trajectories", "3,000 training trajectories"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_wide_errors_have_a_log_axis_and_narrow_ones_have_not() -> None:
    """5.0 against 5.5 on a log axis would have no tick; 1 against 50 on a linear one would hide the small."""
    narrow = _table().assign(test_mse=lambda t: 1e-3 * (5 + 0.1 * t.n_layers))
    assert _against(narrow, "n_layers").axes[0].get_yscale() == "linear"
    wide = _table().assign(test_mse=lambda t: 1e-3 * t.n_layers**3)
    assert _against(wide, "n_layers").axes[0].get_yscale() == "log"


def test_a_single_depth_is_no_curve() -> None:
    """One value of the variable, or no runs; and a variable that is none is named."""
    for table in (_table().query("n_layers == 2"), pd.DataFrame()):
        with pytest.raises(NothingToDrawError, match="no two values of n_layers"):
            _against(table, "n_layers")
    with pytest.raises(ValueError, match="`by` must be n_layers or n_train, got `seed`"):
        _against(_table(), "seed")


def test_learning_curves_are_the_seeds_and_their_mean() -> None:
    """Seeds thin, mean thick, in the arm's colour; a single seed is its own mean. theta is filled."""
    runs = [RunTables("standard", seed, metrics(1e-3 * (seed + 1))) for seed in (0, 1)]
    runs.append(RunTables("relaxed", 0, metrics(1e-3, relaxed=True), layers()))
    figure = learning_curves(runs, *VALIDATION, scale=1e3)
    ax, twin = figure.axes
    assert _legend(figure) == ["standard (2 seeds)", "relaxed (1 seed)", "θ of relaxed (right axis)"]
    first, second, mean, relaxed = ax.lines
    falling = 1 + 100 / STEPS
    for line, level in ((first, 1.0), (second, 2.0), (mean, 1.5), (relaxed, 1.0)):
        np.testing.assert_allclose(line.get_xydata(), np.stack([STEPS, level * falling], axis=1))
    assert first.get_linewidth() < mean.get_linewidth()
    assert [line.get_color() for line in ax.lines] == [ARM_STYLES[a][0] for a in ("standard",) * 3 + ("relaxed",)]
    assert set(twin.collections[0].get_paths()[0].vertices[:, 1]) == {0.0, *THETA}
    assert "(10⁻³), projected network" in ax.get_ylabel()


def test_learning_curves_of_several_settings_have_a_panel_each_on_one_scale() -> None:
    """Molecules beside each other: their names are the titles, and equal heights are equal errors."""
    runs = [RunTables("standard", 0, metrics(level), panel=name) for name, level in (("ethanol", 1.0), ("uracil", 9.0))]
    figure = learning_curves(runs, *VALIDATION)
    assert _titles(figure) == ["ethanol", "uracil"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert _legend(figure) == ["standard"]


def test_learning_curves_without_relaxation_have_no_theta() -> None:
    """Nothing relaxed, no right axis; nothing at all, an error."""
    assert len(learning_curves([RunTables("egnn", 0, metrics())], *VALIDATION).axes) == 1
    with pytest.raises(NothingToDrawError, match="no run has a validation error"):
        learning_curves([], *VALIDATION)


def test_lie_derivatives_have_a_line_a_layer_and_a_row_an_arm() -> None:
    """Activations on the left (the root of the mean square), weights in the middle, means over seeds, theta behind."""
    runs = [RunTables("relaxed", seed, metrics(relaxed=True), layers(1.0 + seed)) for seed in (0, 1)]
    runs += [RunTables("relaxed-weight", 0, metrics(relaxed=True), layers(0.1)), RunTables("standard", 0, metrics())]
    runs.append(RunTables("constant-drop", 0, metrics(relaxed=True), layers()))
    figure = lie_derivatives(runs)
    assert _titles(figure)[:2] == ["relaxed: at activations", "relaxed: of the weights"]
    assert len(_titles(figure)) == 6
    for title, scale in (("relaxed: ", 1.5), ("relaxed-weight: ", 0.1)):
        for quantity, factor in (("at activations", 2), ("of the weights", 1)):
            ax = next(ax for ax in figure.axes if ax.get_title(loc="left") == title + quantity)
            assert len(ax.lines) == len(LAYERS)
            for k, line in enumerate(ax.lines):  # theta is 0 at the last step, where a log axis has no point
                np.testing.assert_allclose(line.get_ydata(), factor * scale * (k + 1) * THETA[:-1])
            twin = next(a for a in figure.axes if a is not ax and a.bbox.bounds == ax.bbox.bounds)
            assert THETA.max() in twin.collections[0].get_paths()[0].vertices[:, 1]
    assert _legend(figure) == ["at activations (mean over rows)", "of the weights", "θ (right axis)"]


def test_layers_are_named_beside_their_values_where_theta_was_largest() -> None:
    """Names without what they share, in the style of their lines; the two marks are the values at step 50."""
    figure = lie_derivatives([RunTables("relaxed", 0, metrics(relaxed=True), layers())])
    lines, _, peak = (ax for ax in figure.axes if ax.get_title(loc="left"))
    assert peak.get_title(loc="left") == "θ largest (step 50)"
    assert [label.get_text() for label in peak.get_yticklabels()] == [
        "0.update_1",
        "0.update_2",
        "1.update_1",
        "1.update_2",
    ]
    pairs = [line for line in peak.lines if len(line.get_xdata()) == 2]
    for k, (pair, line) in enumerate(zip(pairs, lines.lines, strict=True)):
        np.testing.assert_allclose(pair.get_xydata(), [[2 * (k + 1), k], [k + 1, k]])
        assert pair.get_linestyle() == line.get_linestyle()
        assert to_rgba(pair.get_color()) == to_rgba(line.get_color())
    assert len({(line.get_linestyle(), to_rgba(line.get_color())) for line in lines.lines}) == len(LAYERS)


def test_a_constant_theta_is_largest_at_the_end() -> None:
    """That is when it is projected; and without a relaxed run there is nothing to see."""
    constant = metrics(relaxed=True).assign(theta=1.0)
    figure = lie_derivatives([RunTables("constant-fold", 0, constant, layers())])
    assert "θ largest (step 100)" in _titles(figure)
    figure.canvas.draw()
    with pytest.raises(NothingToDrawError, match="nothing was relaxed"):
        lie_derivatives([RunTables("standard", 0, metrics())])


def test_the_overview_has_a_row_an_arm_at_the_setting_of_most_runs() -> None:
    """Every seed a point, mean and deviation in the label, published errors as named dashed lines."""
    assert main_setting(_table(), list(STUDY.factors)) == (4, 3000)
    figure = errors_of_arms(_table(), [MSE], STUDY.factors, published={"EGNN": 7.1e-3, "SEGNN": 5.6e-3})
    (ax,) = figure.axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["standard\n1.65 ± 0.18 (2 seeds)", "relaxed\n1.40 ± 0.18 (2 seeds)", "egnn\n7.00 (1 seed)"]
    points = [line for line in ax.lines if line.get_marker() in {marker for _, marker in ARM_STYLES.values()}]
    np.testing.assert_allclose(np.concatenate([line.get_xdata() for line in points]), [1.525, 1.775, 1.275, 1.525, 7])
    dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([7.1, 5.6])
    assert [text.get_text() for text in ax.texts] == [" EGNN 7.1", " SEGNN 5.6"]
    assert ax.get_xlabel() == "test MSE (10⁻³), 4 layers, 3,000 training trajectories"
    figure.canvas.draw()


def test_the_overview_of_another_setting_or_of_none() -> None:
    """Settings can be named; one without runs is an error."""
    figure = errors_of_arms(_table(), [MSE], STUDY.factors, setting=(1, 3000))
    assert figure.axes[0].get_xlabel().endswith("1 layer, 3,000 training trajectories")
    assert not figure.axes[0].texts
    for table, setting in ((_table(), (9, 3000)), (pd.DataFrame(), None)):
        with pytest.raises(NothingToDrawError):
            errors_of_arms(table, [MSE], STUDY.factors, setting=setting)


def test_a_legend_of_all_arms_stays_on_the_page() -> None:
    """Seven arms do not fit into one row: their legend has several."""
    table = pd.concat([_table().query("arm == 'relaxed'").assign(arm=arm) for arm in ARMS])
    figure = _against(table, "n_layers")
    figure.canvas.draw()
    box, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert len(_legend(figure)) == len(ARMS)
