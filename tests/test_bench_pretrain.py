"""The pre-training study: equal budgets, frames of their own for each seed, and the study in miniature."""

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest

from command_line import mdrelax
from mdrelax.analysis.drawing import NothingToDrawError
from mdrelax.analysis.studies import pretrain as study
from mdrelax.analysis.studies.forces import STUDY as FORCES
from mdrelax.analysis.studies.run_files import Done, Run
from mdrelax.analysis.studies.study import Study
from mdrelax.base.sections import ConfigError
from mdrelax.runs.inputs import open_config
from test_results import rows_of


def planned(*overrides: str, **levels: Any) -> list[Run]:
    """The runs of the study with the fetched trajectories."""
    chosen = {"molecule": ["ethanol"], "n_train": [100], **levels}
    return study.STUDY.plan(
        open_config("rmd17-ethanol", []).model_dump(mode="json"),
        arms=study.ARMS, seeds=[0, 1], levels=chosen, overrides=[*study.BASE, *overrides],
    )  # fmt: skip


def test_the_arms_have_equal_budgets() -> None:
    """The steps of the fine-tuning, and those of both stages with as many as the labels cost; nothing else differs."""
    for molecule, n_train in product(("ethanol", "aspirin"), (50, 950)):
        runs = {r.factors["arm"]: r.config for r in planned(molecule=[molecule], n_train=[n_train])[:3]}
        steps = {arm: config["training"].pop("steps") for arm, config in runs.items()}
        labels = round(study.LABEL_STEPS[molecule] * 20_000)
        assert steps == {"scratch": 7000, "scratch-long": 19_000 + labels, "pre-trained": 19_000}
        pretrain = {arm: config.pop("pretrain") for arm, config in runs.items()}
        assert (pretrain["scratch"], pretrain["scratch-long"]) == (None, None)
        assert (pretrain["pre-trained"]["steps"], pretrain["pre-trained"]["frames"]) == (12_000, 20_000)
        assert runs["scratch"] == runs["scratch-long"] == runs["pre-trained"]
        assert runs["scratch"]["data"]["train"] == n_train
        assert runs["scratch"]["data"]["validation"] == 50
        assert runs["scratch"]["data"]["source"] == f"rmd17:{molecule}"
        assert runs["scratch"]["relaxation"]["schedule"] == "off"


def test_each_seed_has_its_own_frames_and_mixtures_are_refused_nevertheless() -> None:
    """The split is drawn with the run's seed; a run of another recipe is no part of the study."""
    runs = planned()
    assert [(run.config["data"]["seed"], run.config["training"]["seed"]) for run in runs] == [(0, 0)] * 3 + [(1, 1)] * 3
    assert {run.config["pretrain"]["seed"] for run in runs if run.config["pretrain"]} == {0, 1}
    done = [Done(run, {}) for run in runs]
    study.STUDY.refuse_mixtures(runs, done)
    other = planned("training.batch_size=9")
    with pytest.raises(ConfigError, match=r"training\.batch_size: 5 -> 9"):
        study.STUDY.refuse_mixtures(other, done)


def test_a_study_without_pre_training_is_refused() -> None:
    """There would be nothing to compare."""
    with pytest.raises(ConfigError, match="compares runs with and without `pretrain`"):
        planned("pretrain=null")


def test_the_cost_of_a_run_is_that_of_all_its_parts() -> None:
    """Labels and both stages, also in `mdrelax compare`; another run has its own."""
    plain = {"steps": 7, "cpu_seconds": 5.0, "validation": {}}
    before = {"steps": 12, "cpu_seconds": 8.0, "labels_cpu_seconds": 2.5}
    assert (FORCES.row(plain)["steps"], FORCES.row(plain)["cpu_seconds"]) == (7, 5.0)
    whole = FORCES.row({**plain, "pretrained": before})
    assert (whole["steps"], whole["cpu_seconds"]) == (19, 15.5)


def test_learning_curves_are_drawn_on_logarithmic_axes() -> None:
    """A panel per molecule, in the order of the study; a line per arm through the means over seeds."""
    rows = [
        {"molecule": molecule, "arm": arm, "n_train": n, "seed": seed, "test_forces": 1000 / n + seed}
        for molecule, arm, n, seed in product(("aspirin", "ethanol"), study.ARMS, (50, 100, 950), (0, 1))
    ]
    figure = study.learning_curve(pd.DataFrame(rows))
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") or ax.get_title() for ax in panels] == ["ethanol", "aspirin"]
    for ax in panels:
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert ax.lines[0].get_ydata() == pytest.approx([20.5, 10.5, 1000 / 950 + 0.5])
    with pytest.raises(NothingToDrawError):
        study.learning_curve(pd.DataFrame(rows)[:0])
    assert mpl.rcParams["axes.spines.top"]  # the user's settings are as before


def test_quick_is_the_study_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm at two sizes of the shipped ethanol, one seed, not compiled; further options still count."""
    asked: list[Run] = []

    def record(self: Study, runs: list[Run], folder: Path, **crew: Any) -> None:
        asked.extend(runs)
        raise RuntimeError("nothing was run")

    monkeypatch.setattr(Study, "run", record)
    said = mdrelax("bench", "pretrain", "--quick", "--out", tmp_path, "--seeds", "5,6", "-r", "pretrain.frames=100")
    assert (said.code, said.last_line) == (1, "RuntimeError: nothing was run")
    assert {(r.factors["arm"], r.factors["n_train"], r.factors["seed"]) for r in asked} == set(
        product(study.ARMS, (20, 50), (5,))
    )
    for run in asked:
        assert run.config["data"]["source"] == "sample:ethanol"
        assert not run.config["training"]["compile"]
        assert run.config["pretrain"] is None or run.config["pretrain"]["frames"] == 100


@pytest.mark.slow
def test_quick_goes_from_nothing_to_a_figure_in_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six runs; with 20 frames the pre-trained network beats the one trained from scratch; 3 CPU-minutes at most."""
    pytest.importorskip("tblite")
    monkeypatch.setenv("MDRELAX_CACHE", str(tmp_path / "cache"))
    said = mdrelax("bench", "pretrain", "--quick", "--out", tmp_path / "study")
    assert said.code == 0, said.err
    runs = pd.read_csv(tmp_path / "study" / "runs.csv")
    assert len(runs) == 6
    errors = runs[runs["n_train"] == 20].set_index("arm")["test_forces"]
    assert errors["pre-trained"] < errors["scratch"]
    assert (tmp_path / "study" / "figures" / "learning_curve.png").is_file()
    rows = [row[1:6] for row in rows_of((tmp_path / "study" / "study.md").read_text())]
    assert ("ethanol", "20", "pre-trained", "1", "150") in rows
    again = mdrelax("bench", "pretrain", "--only-report", "--out", tmp_path / "study")
    assert again.code == 0, again.err
    assert runs["cpu_seconds"].sum() < 180
