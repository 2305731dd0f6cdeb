"""The rMD17 study: what it trains, that finished runs are not repeated, and that its page says what was found."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from command_line import mdrelax
from mdrelax.analysis.studies import rmd17
from mdrelax.analysis.studies.rmd17 import MOLECULES, STUDY, read_study, run_study, write_study
from mdrelax.analysis.studies.run_files import Run
from mdrelax.analysis.studies.study import Study
from mdrelax.base.sections import ConfigError
from mdrelax.training.folders import changed_keys

BASE: dict[str, Any] = {"data": {"source": "sample:ethanol"}, "training": {"steps": 10}}


def planned(
    molecules: Sequence[str] = ("ethanol", "aspirin"), data: Path | None = None, seeds: Any = (1, 0), **changes: Any
) -> list[Run]:
    """Two molecules, two arms, two seeds."""
    settings = {"arms": ["standard", "relaxed"], "seeds": seeds, "levels": {"molecule": molecules}}
    return rmd17.study_of(data).plan(BASE, **{**settings, **changes})


def test_arms_share_the_budget_of_their_molecule() -> None:
    """Seeds outermost, so that every molecule has a pair early; arms of a molecule differ in the relaxation only."""
    runs = planned()
    pairs = [f"{molecule}/{arm}-1" for molecule in ("ethanol", "aspirin") for arm in ("standard", "relaxed")]
    assert [run.name for run in runs[:4]] == pairs
    assert changed_keys(runs[0].config, runs[1].config) == ["relaxation.schedule: off -> triangle"]
    assert [run.config["training"]["steps"] for run in runs[1:3]] == [MOLECULES["ethanol"], MOLECULES["aspirin"]]
    assert runs[2].config["data"]["source"] == "rmd17:aspirin"


def test_a_study_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Before anything is trained."""
    with pytest.raises(ConfigError, match="no molecule `etanol`; did you mean `ethanol`"):
        planned(molecules=["etanol"])
    with pytest.raises(ConfigError, match=r"lacks rmd17_ethanol_train_01\.npz, rmd17_ethanol_test_01\.npz"):
        planned(data=tmp_path)
    for part in ("train", "test"):
        (tmp_path / f"rmd17_ethanol_{part}_01.npz").touch()
    data = planned(data=tmp_path, molecules=["ethanol"])[0].config["data"]
    assert data["test_source"] == str(tmp_path / "rmd17_ethanol_test_01.npz")
    assert data["test"] is None, "all frames of the test file"


def finish(place: Path, config: dict[str, Any], forces: float) -> None:
    """The files of a finished run with this test force error."""
    errors = {"forces_mae_meV_per_A": forces, "energy_mae_meV": forces / 4}
    results = {"validation": errors, "test": errors, "cpu_seconds": 3600.0, "steps": 20, "n_parameters": 7,
               "md": {"drift_meV_per_atom_per_ps": -0.002}, "peak_MB": 500.0}  # fmt: skip
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(results))
    pd.DataFrame({"step": [10, 20], "theta": 0.0, "val_forces_mae_meV_per_A": [9.0, forces]}).to_csv(
        place / "metrics.csv", index=False
    )
    pd.DataFrame({"step": [10, 20], "layer": "a", "norm": [0.2, 0.1]}).to_csv(place / "layers.csv", index=False)
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    (place / "report.html").touch()


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The result files of a study whose training is replaced by made-up runs."""

    def train(self: Study, runs: Sequence[Run], folder: Path, *, jobs: int, start: Any, tell: Any) -> None:
        for k, run in enumerate(runs):
            finish(folder / run.name, run.config, 5.0 - 0.5 * k)
            tell(run.name)

    monkeypatch.setattr(Study, "run", train)
    run_study(planned(), tmp_path / "runs", tmp_path / "results", jobs=1, command="mdrelax bench rmd17")
    return tmp_path / "results"


def test_a_run_with_a_result_file_is_not_repeated(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight runs, eight files; the same plan again trains nothing, a third seed trains four."""
    assert len(read_study(stored)) == 8
    assert read_study(stored)[0].results["layers"] == {"step": [10, 20], "layer": ["a", "a"], "norm": [0.2, 0.1]}
    asked: list[int] = []
    monkeypatch.setattr(Study, "run", lambda self, runs, folder, **_: asked.append(len(runs)))
    for seeds in ([1, 0], [0, 1, 2]):
        run_study(planned(seeds=seeds), stored.parent / "elsewhere", stored, jobs=1, command="")
    assert asked == [0, 4]


def test_results_of_another_recipe_do_not_stand_among_these(stored: Path) -> None:
    """Neither the same run with another peak, nor another seed or arm of another budget."""

    def run(**changes: Any) -> None:
        run_study(planned(**changes), stored.parent / "new", stored, jobs=1, command="")

    with pytest.raises(ConfigError, match=r"(?s)ethanol-relaxed-0\.json.*relaxation\.peak: 1\.0 -> 0\.5"):
        run(overrides=["relaxation.peak=0.5"])
    for changes in ({"seeds": [2]}, {"arms": ["relaxed-weight"]}):
        with pytest.raises(ConfigError, match=r"(?s)ethanol-standard-0\.json.*training\.steps: 50000 -> 100"):
            run(overrides=["training.steps=100"], **changes)


def test_where_a_run_was_compiled_does_not_matter(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study goes on where there is no compiler."""
    monkeypatch.setattr(Study, "run", lambda self, runs, folder, **_: None)
    run_study(planned(overrides=["training.compile=true"]), stored.parent / "new", stored, jobs=1, command="")


def test_a_run_folder_of_another_recipe_is_not_stored_under_this_one(tmp_path: Path) -> None:
    """What was tried with few steps before is no result of the study."""
    (each,) = planned(molecules=["ethanol"], arms=["standard"], seeds=[0])
    (short,) = planned(molecules=["ethanol"], arms=["standard"], seeds=[0], overrides=["training.steps=100"])
    finish(tmp_path / each.name, short.config, 9.0)
    rmd17.store([each], tmp_path, tmp_path / "results", command="")
    assert read_study(tmp_path / "results") == []
    rmd17.store([short], tmp_path, tmp_path / "results", command="")
    assert len(read_study(tmp_path / "results")) == 1


def test_the_page_has_means_spreads_differences_and_published_errors(stored: Path) -> None:
    """Ethanol: standard 5.0 and 3.0, relaxed 4.5 and 2.5; MACE's 0.4 / 2.1 beside them."""
    write_study(stored)
    text = (stored / "study.md").read_text()
    assert "4.00 +- 1.41" in text
    assert "-0.50 [-0.50, -0.50]" in text
    assert "0.4 / 2.1" in text
    assert "5.3 / 7.2" in text, "the published Equiformer's aspirin"
    assert "0.0020" in text
    assert "minus standard" in text
    summary = STUDY.summarize(STUDY.collect(read_study(stored)))
    assert "minus relaxed |" in STUDY.report(summary[summary.arm == "relaxed"])
    assert "0.0020 (2 unstable)" in STUDY.report(summary.assign(unstable=2))
    assert (stored / "study.png").stat().st_size > 10_000


def test_only_report_writes_the_tables_of_what_is_there(stored: Path) -> None:
    """By the command; without any result it says so."""
    said = mdrelax("bench", "rmd17", "--only-report", "--results", stored)
    assert said.code == 0, said.err
    assert "study.md" in said.out
    nothing = mdrelax("bench", "rmd17", "--only-report", "--results", stored / "empty")
    assert nothing.code != 0
    assert "no finished run of the rMD17 study" in nothing.err
