"""`mdrelax compare`: arms differ in their own keys only, are paired by seed, and the report says what was found."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from command_line import mdrelax
from mdrelax import potentials
from mdrelax.analysis.drawing import NothingToDrawError
from mdrelax.analysis.studies.arm_figures import errors_of_arms
from mdrelax.analysis.studies.forces import FORCES, STUDY
from mdrelax.analysis.studies.forces_report import projection_gaps, simulations, unstable
from mdrelax.analysis.studies.measures import verdict
from mdrelax.analysis.studies.study import split_arms
from mdrelax.base.sections import ConfigError
from mdrelax.runs import jobs
from mdrelax.runs.checkpoints import projection_gap
from mdrelax.training.folders import changed_keys
from small_runs import NETWORK, clusters, document, write_frames

BASE: dict[str, Any] = {"data": {"source": "sample:ethanol"}, "training": {"steps": 10}}


def test_arms_of_a_seed_differ_in_their_own_keys_only() -> None:
    """Same data, seed, optimiser and steps; seeds come first, so that a first pair is there early."""
    runs = STUDY.plan(
        BASE, arms=["standard", "relaxed", "mine:relaxation.peak=0.3;relaxation.penalty=weight"], seeds=[3, 4]
    )
    assert [run.name for run in runs] == ["standard-3", "relaxed-3", "mine-3", "standard-4", "relaxed-4", "mine-4"]
    standard, relaxed, mine = (run.config for run in runs[:3])
    assert changed_keys(standard, relaxed) == ["relaxation.schedule: off -> triangle"]
    assert changed_keys(relaxed, mine) == ["relaxation.peak: 1.0 -> 0.3", "relaxation.penalty: activation -> weight"]
    assert changed_keys(standard, runs[3].config) == ["training.seed: 3 -> 4"]


def test_a_comma_within_brackets_does_not_end_an_arm() -> None:
    """Lists are values too."""
    text = "standard,fast:training.betas=[0.95,0.99];relaxation.where=[a,b],relaxed"
    assert split_arms(text) == ["standard", "fast:training.betas=[0.95,0.99];relaxation.where=[a,b]", "relaxed"]


@pytest.mark.parametrize(
    ("arms", "seeds", "words"),
    [
        (["relaxd"], [0], "no arm `relaxd`.*relaxed"),
        ([], [0], "at least one arm"),
        (["relaxed", "relaxed"], [0], "each once"),
        (["relaxed"], [0, 0], "each once"),
        (["mine:relaxation.peek=1"], [0], "Unknown config key `relaxation.peek`"),
        (["standard", "relaxed", "relaxed-activation"], [0], "`relaxed` and `relaxed-activation` are the same run"),
        (["standard", "mine:relaxation.schedule=off;relaxation.peak=0.5"], [0], "are the same run"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_before_it_starts(arms: list[str], seeds: list[int], words: str) -> None:
    """One sentence with the remedy."""
    with pytest.raises(ConfigError, match=words):
        STUDY.plan(BASE, arms=arms, seeds=seeds)


def table(standard: list[float], relaxed: list[float]) -> pd.DataFrame:
    """Made-up runs with these test force errors, seed by seed."""
    rows = [
        {"arm": arm, "seed": seed, "test_forces": error, "test_energy": error / 2, "validation_forces": error,
         "validation_energy": error, "cpu_seconds": 60.0, "peak_MB": 500.0, "n_parameters": 7, "nve_drift": -0.1,
         "unstable": False, "net_force": 1e-12, "net_torque": 1e-4}
        for seed, pair in enumerate(zip(standard, relaxed, strict=True))
        for arm, error in zip(("standard", "relaxed"), pair, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_differences_are_paired_by_seed_with_students_interval() -> None:
    """Two seeds that differ by 1 and 2: mean 1.5, and a wide interval (t = 12.7 for one degree of freedom)."""
    summary = STUDY.summarize(table([10.0, 20.0], [9.0, 18.0])).set_index("arm")
    row = summary.loc["relaxed"]
    assert (row.test_forces, row.forces_minus_first, row.pairs) == (13.5, -1.5, 2)
    half = 12.706204736 * math.sqrt(0.5) / math.sqrt(2)
    assert [row.forces_minus_first_low, row.forces_minus_first_high] == pytest.approx([-1.5 - half, -1.5 + half])
    assert row.worst_nve_drift == 0.1
    assert math.isnan(summary.loc["standard"].forces_minus_first)


@pytest.mark.parametrize(
    ("relaxed", "words"),
    [
        ([9.0, 9.0001, 9.0], "10.0 % lower.*excludes zero"),
        ([9.0, 12.0, 9.0], "includes zero"),
        ([11.0], "10.0 % higher.*may be chance"),
    ],
)
def test_the_verdict_says_how_much_and_how_sure(relaxed: list[float], words: str) -> None:
    """Percent of the first arm's error, and whether the interval holds zero."""
    found = verdict(STUDY.summarize(table([10.0] * len(relaxed), relaxed)), FORCES)
    assert pd.Series(found).str.contains(words).all(), found


def test_runs_without_test_frames_are_judged_by_validation_frames() -> None:
    """A search keeps the test frames to itself; table, verdict and figure say which frames they speak of."""
    runs = table([10.0, 20.0], [9.0, 18.0]).assign(test_forces=math.nan, test_energy=math.nan)
    summary = STUDY.summarize(runs)
    assert list(summary.judged_by) == ["validation", "validation"]
    assert summary.set_index("arm").loc["relaxed"].forces_minus_first == -1.5
    assert verdict(summary, FORCES).startswith("relaxed's validation force MAE is 10.0 % lower")
    assert errors_of_arms(runs, STUDY.measures).axes[0].get_xlabel() == "validation force MAE (meV/Å)"
    assert list(STUDY.summarize(table([1.0], [1.0])).judged_by) == ["test", "test"]


def test_the_figures_show_every_run() -> None:
    """Test errors as dots joined by seed, behaviour in three panels, and one curve a run where theta goes to 0."""
    runs = table([10.0, 20.0], [9.0, 18.0])
    axes = errors_of_arms(runs, STUDY.measures).axes
    dots = [line for line in axes[0].lines if line.get_linestyle() == "None"]
    assert [sorted(line.get_xdata()) for line in dots] == [[10.0, 20.0], [9.0, 18.0]]
    assert len(simulations(runs).axes) == 3
    gap = pd.DataFrame({"theta": [1.0, 0.0], "forces": [20.0, 10.0], "energy": [4.0, 2.0]})
    left = projection_gaps({"relaxed": [gap, gap + 1]}).axes[0]
    assert [list(line.get_ydata()) for line in left.lines][:2] == [[20.0, 10.0], [21.0, 11.0]]
    with pytest.raises(NothingToDrawError):
        projection_gaps({})


def test_what_failed_is_named_and_what_is_finished_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of another config is not taken for this one."""
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.01)
    runs = STUDY.plan(BASE, arms=["standard"], seeds=[0])
    failing = STUDY._replace(command=["false"])
    with pytest.raises(RuntimeError, match="failed: standard-0"):
        failing.run(runs, tmp_path, jobs=1)
    place = tmp_path / "standard-0"
    errors = {"forces_mae_meV_per_A": 1.0, "energy_mae_meV": 1.0}
    (place / "results.json").write_text(json.dumps({"validation": errors, "cpu_seconds": 60}))
    (place / "config.yaml").write_text(yaml.safe_dump(runs[0].config))
    assert not STUDY.finished(runs, tmp_path)  # the report is written last
    (place / "report.html").write_text("")
    failing.run(runs, tmp_path, jobs=1)
    changed = STUDY.plan(BASE, arms=["standard"], seeds=[0], overrides=["training.steps=11"])
    with pytest.raises(RuntimeError, match="failed"):
        failing.run(changed, tmp_path, jobs=1)
    assert not STUDY.finished(changed, tmp_path)
    with pytest.raises(ValueError, match="contains no finished run"):
        STUDY.write(tmp_path, STUDY.finished(changed, tmp_path))
    (place / "results.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        STUDY.finished(runs, tmp_path)


def test_dynamics_that_exploded_is_not_passed_over() -> None:
    """Its drift is no number, so that a mean would not show it; table, summary and page name the run."""
    found = [
        STUDY.row({"md": {"drift_meV_per_atom_per_ps": math.nan, "exploded": True, "broken_bond": None}}),
        STUDY.row({"md": {"drift_meV_per_atom_per_ps": 0.1, "exploded": False, "broken_bond": [0, 1]}}),
        STUDY.row({"md": {"drift_meV_per_atom_per_ps": 0.1, "exploded": False, "broken_bond": None}}),
        STUDY.row({"md": None}),
    ]
    assert [row["unstable"] for row in found] == [True, True, False, False]
    runs = table([1.0, 2.0], [1.0, 2.0])
    runs.loc[3, ["unstable", "nve_drift"]] = [True, math.nan]
    assert STUDY.summarize(runs).unstable.tolist() == [0, 1]
    assert unstable(runs) == ["relaxed-1"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two arms and two seeds of a network that trains in seconds, by the command."""
    folder = tmp_path_factory.mktemp("compare")
    source = write_frames(folder / "frames.xyz", clusters(34))
    training = {"steps": 4, "batch_size": 4, "validate_every": 2, "warmup_steps": 1}
    config = document(source, training=training, potential={"arguments": NETWORK})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    said = mdrelax("compare", folder / "config.yaml", "--out", folder / "out", "--seeds", "0,1")
    assert said.code == 0, said.err
    return folder / "out", said.out


def test_the_command_writes_tables_and_one_page(compared: tuple[Path, str]) -> None:
    """Every number of the tables comes from the runs' own results; the page holds its pictures."""
    folder, said = compared
    assert "relaxed's force MAE is" in said
    runs = pd.read_csv(folder / "runs.csv")
    assert list(runs.arm) == ["standard", "relaxed"] * 2
    for _, row in runs.iterrows():
        results = json.loads((folder / f"{row.arm}-{row.seed}" / "results.json").read_text())
        assert row.test_forces == pytest.approx(results["test"]["forces_mae_meV_per_A"])
        assert row.net_force < 1e-9  # meV/A: forces are antisymmetric over edges, in float64
    stored = json.loads((folder / "compare.json").read_text())
    assert stored["unfinished"] == []
    assert {run["config"]["data"]["source"] for run in stored["runs"]} == {"frames.xyz"}  # no path of a machine
    assert [run["name"] for run in stored["runs"]] == ["standard-0", "relaxed-0", "standard-1", "relaxed-1"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png") >= 6
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_projection_gap_ends_at_the_projected_error(compared: tuple[Path, str]) -> None:
    """At theta = 0 the last checkpoint's network is the projected one of the last validation (drop)."""
    folder, _ = compared
    gap = pd.read_csv(folder / "relaxed-0" / "projection_gap.csv")
    assert list(gap.theta) == [k / 10 for k in range(10, -1, -1)]
    last = pd.read_csv(folder / "relaxed-0" / "metrics.csv").iloc[-1]
    assert gap.forces.iloc[-1] == pytest.approx(last.val_forces_mae_meV_per_A, rel=1e-6)
    with pytest.raises(ValueError, match="relaxed"):
        projection_gap(folder / "standard-0", [1.0], potentials)


def test_finished_runs_are_not_trained_again(compared: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again, and only the report: no process is started."""
    folder, _ = compared
    config = folder.parent / "config.yaml"

    def refuse(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(jobs.Processes, "__call__", refuse)
    for extra in ([], ["--only-report"]):
        assert mdrelax("compare", config, "--out", folder, "--seeds", "0,1", *extra).code == 0
    wrong = mdrelax("compare", config, "--out", folder, "--seeds", "0,one")
    assert (wrong.code, "whole numbers" in wrong.err) == (2, True)
    assert mdrelax("compare", config, "--out", folder, "--jobs", "-1").code == 2


@pytest.mark.slow
def test_the_miniature_takes_less_than_four_minutes(tmp_path: Path) -> None:
    """`mdrelax compare --quick` on the embedded set: four runs, tables and report."""
    import time

    start = time.monotonic()
    said = mdrelax("compare", "ethanol-tiny", "--quick", "--out", tmp_path)
    assert said.code == 0, said.err
    assert time.monotonic() - start < 240
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 4
    assert json.loads((tmp_path / "compare.json").read_text())["unfinished"] == []
