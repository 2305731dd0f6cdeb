"""The accuracy benchmark: what is planned, that all models get the same frames, what is stored, and its page.

Other packages are played by a script that speaks their workers' protocol; tests/test_accuracy_peers.py has real ones.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from command_line import mdrelax
from mdrelax.analysis.benchmarks import accuracy, accuracy_times
from mdrelax.analysis.benchmarks.accuracy import AccuracyRun, Inputs, Sizes, planned, read_results, run_all
from mdrelax.analysis.benchmarks.accuracy_report import pareto, pareto_figure, runs_table, summary_table, write_accuracy
from mdrelax.analysis.benchmarks.interleaved import Rules
from mdrelax.analysis.drawing import NothingToDrawError
from mdrelax.base.sections import ConfigError
from speed_workers import answering

SIZES = Sizes(20, 10, 15)
FRAMES = "ethanol-sample-20-10-15-0"

# A package's environment: its Python is called as `python -m peers.MODULE FOLDER`. It predicts the mean energy of the
# training frames and no forces. A file FAIL makes it fail, as a kill would.
WORKER = """#!{python}
import json, sys
from pathlib import Path
import numpy as np

folder, venv = Path(sys.argv[-1]), Path(__file__).parents[1]
task = json.loads((folder / "task.json").read_text())
(venv / "calls").open("a").write(folder.name + "\\n")
if (venv / "FAIL").exists():
    sys.exit("out of luck")
data = np.load(task["data"])
assert not {{"test_energies", "test_forces"}} & set(data.files)
positions = data["test_positions"]
np.savez(folder / "predictions.npz", energies=np.full(len(positions), data["train_energies"].mean()),
         forces=np.zeros_like(positions))
(folder / "trained.json").write_text(json.dumps({{
    "cpu_seconds": 1.3 * task["budget"], "steps": 7, "epochs": 3.5, "best_step": 7, "n_parameters": 1000,
    "validation_loss": 1.0, "recipe": {{"source": "nowhere"}}, "versions": {{"torch": "1"}}}}))
"""


def installed(venvs: Path, *names: str) -> Path:
    """Environments of made-up packages."""
    for name in names:
        python = venvs / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(WORKER.format(python=sys.executable))
        python.chmod(0o755)
    return venvs


def calls(venvs: Path, name: str) -> list[str]:
    """The runs that the worker of an environment was started for."""
    path = venvs / name / "calls"
    return path.read_text().split() if path.is_file() else []


def run(tmp_path: Path, models: list[str], *, said: list[str] | None = None, **changes: Any) -> Path:
    """The benchmark on shipped ethanol; returns the folder of results."""
    inputs = Inputs(None, tmp_path / "venvs", SIZES, sample=True)._replace(**changes)
    tell = (lambda line: None) if said is None else said.append
    runs = planned(["ethanol"], models, [0.5], [0])
    run_all(runs, tmp_path / "runs", tmp_path / "results", inputs, jobs=2, command="mdrelax bench accuracy", tell=tell)
    return tmp_path / "results"


def test_short_budgets_come_first_and_models_of_a_setting_are_together() -> None:
    """A first comparison is there early; a run's name says what it is."""
    runs = planned(["ethanol", "aspirin"], ["equiformer-small:relaxed", "mace"], [0.25, 4], [0])
    assert [r.budget_hours for r in runs] == [0.25] * 4 + [4] * 4
    assert [r.name for r in runs[:2]] == ["ethanol-equiformer-small-relaxed-0.25h-0", "ethanol-mace-0.25h-0"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"molecules": ["etanol"]}, "no molecule `etanol`; did you mean `ethanol`"),
        ({"models": ["mase"]}, "no model `mase`; did you mean `mace`"),
        ({"models": ["equiformer-huge"]}, "no preset `huge`"),
        ({"models": ["mace", "mace"]}, "at least one model, each once"),
        ({"budgets": [0.25, -1]}, "above 0, got -1"),
    ],
)
def test_a_benchmark_that_cannot_be_is_refused(change: dict[str, Any], sentence: str) -> None:
    """Before anything is trained, with what is known."""
    with pytest.raises(ValueError, match=sentence):
        planned(**{"molecules": ["ethanol"], "models": ["mace"], "budgets": [1.0], "seeds": [0], **change})


def test_all_models_get_the_same_frames_without_test_labels(tmp_path: Path) -> None:
    """One file for all models of a molecule and seed; its parts are disjoint (the worker refuses test labels)."""
    installed(tmp_path / "venvs", "mace", "schnetpack")
    run(tmp_path, ["mace", "painn"])
    tasks = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").glob("*/task.json"))]
    assert len(tasks) == 2
    assert {task["data"] for task in tasks} == {str(tmp_path / "runs" / "data" / f"{FRAMES}.npz")}
    assert {(task["budget"], task["seed"]) for task in tasks} == {(1800.0, 0)}
    with np.load(tasks[0]["data"]) as data:
        parts = {name: data[f"{name}_positions"] for name in ("train", "validation", "test")}
    assert tuple(len(part) for part in parts.values()) == SIZES
    every = np.concatenate([part.reshape(len(part), -1) for part in parts.values()])
    assert len(np.unique(every, axis=0)) == sum(SIZES)
    assert len(parts["train"][0]) == 9


def test_errors_are_computed_here_from_predictions(tmp_path: Path) -> None:
    """Zero forces: the MAE is the mean size of the labels' components, in meV/A; energies from the training mean."""
    installed(tmp_path / "venvs", "mace")
    (found,) = read_results(run(tmp_path, ["mace"]))
    with np.load(tmp_path / "runs" / "data" / f"{FRAMES}-labels.npz") as labels:
        size, energies = 1e3 * np.abs(labels["forces"]).mean(), labels["energies"]
    with np.load(tmp_path / "runs" / "data" / f"{FRAMES}.npz") as data:
        offsets = 1e3 * np.abs(energies - data["train_energies"].mean())
    assert found["test"]["forces_mae_meV_per_A"] == pytest.approx(size)
    assert found["test"]["energy_mae_meV"] == pytest.approx(offsets.mean())
    assert found["test_frames"] == 15
    assert (found["model"], found["steps"], found["recipe"]["source"]) == ("mace", 7, "nowhere")
    assert found["command"] == "mdrelax bench accuracy"
    assert found["environment"]["threads"] == 1


def test_a_run_above_its_budget_is_told_of(tmp_path: Path) -> None:
    """The script claims 1.3 times the budget; a tenth is tolerated. Table and line say so."""
    installed(tmp_path / "venvs", "mace")
    said: list[str] = []
    results = run(tmp_path, ["mace"], said=said)
    assert "30 % above its budget" in said[-1]
    write_accuracy(results)
    assert "more than 1.1 of their budget: ethanol mace 0.5 h (1.30)" in (results / "accuracy.md").read_text()


def test_a_package_that_is_not_installed_is_left_out_with_one_line(tmp_path: Path) -> None:
    """The others are trained nevertheless."""
    installed(tmp_path / "venvs", "schnetpack")
    said: list[str] = []
    results = run(tmp_path, ["mace", "painn"], said=said)
    assert [line for line in said if "mace" in line] == ["mace is left out, it is not installed (`make peers`)"]
    assert [found["model"] for found in read_results(results)] == ["painn"]


def test_the_same_command_resumes_and_repeats_nothing(tmp_path: Path) -> None:
    """One of two fails; again, only that one is started; a third time, and in another folder, none."""
    venvs = installed(tmp_path / "venvs", "mace", "schnetpack")
    (venvs / "mace" / "FAIL").touch()
    with pytest.raises(RuntimeError, match=r"ethanol-mace-0\.5h-0.*out of luck"):
        run(tmp_path, ["mace", "painn"])
    (venvs / "mace" / "FAIL").unlink()
    results = run(tmp_path, ["mace", "painn"])
    assert {found["model"] for found in read_results(results)} == {"mace", "painn"}
    run(tmp_path, ["mace", "painn"])
    assert (calls(venvs, "mace"), calls(venvs, "schnetpack")) == (
        ["ethanol-mace-0.5h-0"] * 2,
        ["ethanol-painn-0.5h-0"],
    )


def test_results_and_folders_of_other_settings_are_refused(tmp_path: Path) -> None:
    """Other frames or another recipe of ours in the folder of results; a run's folder with another task."""
    installed(tmp_path / "venvs", "mace", "schnetpack")
    results = run(tmp_path, ["mace"])
    with pytest.raises(ConfigError, match=r"ethanol-mace-0\.5h-0\.json.*other settings \(frames: \[20, 10, 15\]\)"):
        run(tmp_path, ["painn"], sizes=Sizes(20, 10, 5))
    stored = results / "ethanol-mace-0.5h-0.json"
    document = json.loads(stored.read_text())
    stored.unlink()
    with pytest.raises(ConfigError, match="a run with another task"):
        run(tmp_path, ["mace"], sizes=Sizes(20, 10, 5))
    own = {**document, "model": "equiformer-tiny", "budget_hours": 4.0}
    (results / "ethanol-equiformer-tiny-4h-0.json").write_text(json.dumps(own))
    with pytest.raises(ConfigError, match=r"tiny-4h-0\.json.*other settings \(overrides: \[\]\)"):
        run(tmp_path, ["equiformer-tiny"], overrides=["training.batch_size=9"])


def test_a_recipe_that_cannot_be_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """An override of ours is checked before the other packages' runs are started."""
    venvs = installed(tmp_path / "venvs", "mace")
    with pytest.raises(ConfigError, match="batch_sise"):
        run(tmp_path, ["mace", "equiformer-tiny"], overrides=["training.batch_sise=3"])
    assert calls(venvs, "mace") == []


def test_data_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """Before anything is trained."""
    installed(tmp_path / "venvs", "mace")
    with pytest.raises(ConfigError, match=r"lacks rmd17_ethanol_train_01\.npz"):
        run(tmp_path, ["mace"], data=tmp_path, sample=False)
    with pytest.raises(ConfigError, match="ethanol has 650 training frames, 700 are needed"):
        run(tmp_path, ["mace"], sizes=Sizes(650, 50, 5))


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Results of two molecules, three models, two budgets, two seeds; ethanol was timed."""
    results = tmp_path / "results"
    results.mkdir()
    sizes = {"equiformer-small": 300_000, "mace": 600_000, "painn": 590_000}
    for k, model in enumerate(sizes):
        for each in planned(["ethanol", "aspirin"], [model], [0.25, 1], [0, 1]):
            error = (4 + 2 * k + each.seed) / each.budget_hours
            document = {
                **each._asdict(), "cpu_seconds": 3600 * each.budget_hours, "budget_used": 1.0, "steps": 10, "epochs": 2,
                "n_parameters": sizes[model], "test": {
                    "forces_mae_meV_per_A": error, "forces_rmse_meV_per_A": 2 * error, "energy_mae_meV": 1.0,
                    "energy_rmse_meV": 1.5,
                },
            }  # fmt: skip
            (results / f"{each.name}.json").write_text(json.dumps(document))
    return results


TIMES = {"equiformer-small": 20.0, "mace": 50.0, "equiformer-small:compiled": 3.5}


def timed(results: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """The timing run with made-up workers."""
    monkeypatch.setattr(accuracy_times, "timed", lambda model, venvs: accuracy.implementation("equiformer-tiny", venvs)
                        ._replace(name=model, kinds=("md",)))  # fmt: skip
    start = answering(TIMES, [])
    accuracy_times.measure_times(
        ["ethanol", "uracil"], ["equiformer-small:relaxed", "equiformer-small", "mace"], results, venvs=results,
        rules=Rules(repeats=3), command="mdrelax", compiled=True, tell=said.append,
        start=lambda worker, longest: start(worker),
    )  # fmt: skip


def test_times_are_stored_with_their_ratio_to_the_reference(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MACE is the reference where it was timed; a molecule that is no case of the speed benchmark is told of."""
    said: list[str] = []
    timed(stored, monkeypatch, said)
    table = runs_table(stored).set_index(["molecule", "model"])
    assert set(table.loc[("ethanol", "equiformer-small"), "ms"]) == {20.0}
    assert set(table.loc[("ethanol", "equiformer-small"), "ms_ratio"]) == {0.4}
    assert set(table.loc[("ethanol", "equiformer-small"), "ms_compiled"]) == {3.5}
    assert table.loc[("ethanol", "mace"), "ms_compiled"].isna().all()
    assert table.loc[("ethanol", "painn"), "ms"].isna().all()
    assert table.loc[("aspirin", "mace"), "ms"].isna().all()
    assert "MD steps of uracil are not timed: `bench speed` has no such case." in said


def test_the_page_has_a_row_per_model_and_budget(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over seeds with their spread, the smallest error of a budget first."""
    timed(stored, monkeypatch, [])
    names = [path.name for path in write_accuracy(stored)]
    assert names == ["accuracy.md", "runs.csv", "summary.csv", "accuracy.png"]
    text = (stored / "accuracy.md").read_text()
    assert text.index("## ethanol") < text.index("## aspirin")
    first = next(line for line in text.splitlines() if line.startswith("| equiformer-small"))
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[1:4] == ["0.25", "2", "18.00 +- 2.83 (36.00)"]
    assert cells[-3:] == ["20.0", "0.40", "3.5"]
    assert "the ratio is to mace in the same timing run" in text
    assert len(pd.read_csv(stored / "runs.csv")) == 24
    assert len(pd.read_csv(stored / "summary.csv")) == 12


def test_the_figure_has_three_panels_for_each_molecule(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Error against MD step, training and parameters; what was not timed says so."""
    timed(stored, monkeypatch, [])
    figure = pareto_figure(summary_table(runs_table(stored)))
    assert [ax.get_xlabel() for ax in figure.axes] == ["MD step (ms)", "training (CPU-hours)", "parameters"] * 2
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["ethanol", "", "", "aspirin", "", ""]
    assert [len(ax.texts) for ax in figure.axes] == [0, 0, 0, 1, 0, 0]
    front = figure.axes[2].lines[-1].get_xydata()
    assert front[0].tolist() == [300_000, 4.5], "the smallest and the best at once"
    with pytest.raises(NothingToDrawError):
        pareto_figure(pd.DataFrame())


def test_the_pareto_front_keeps_what_no_other_beats() -> None:
    """Cheaper or better; of equal costs the better one; a cost that is not known is left out."""
    costs, errors = np.array([3.0, 1.0, 2.0, 2.0, np.nan]), np.array([1.0, 5.0, 6.0, 4.0, 0.1])
    assert pareto(costs, errors).tolist() == [1, 3, 0]


def test_only_report_writes_the_page_of_what_is_there(stored: Path) -> None:
    """By the command; without any result it says so."""
    said = mdrelax("bench", "accuracy", "--only-report", "--results", stored, "--out", stored.parent / "out")
    assert said.code == 0, said.err
    assert "accuracy.png" in said.out
    empty = stored.parent / "empty"
    nothing = mdrelax("bench", "accuracy", "--only-report", "--results", empty, "--out", stored.parent / "out")
    assert nothing.code != 0
    assert "no finished run of the accuracy benchmark" in nothing.err


@pytest.mark.slow
def test_quick_goes_from_nothing_to_a_page(tmp_path: Path) -> None:
    """Ours alone where no other package is installed: trained within its budget, better than no forces, timed."""
    said = mdrelax("bench", "accuracy", "--quick", "--out", tmp_path / "out", "--venvs", tmp_path / "none")
    assert said.code == 0, said.err
    assert said.out.count("is left out, it is not installed") == 8, "four packages, trained and timed"
    (found,) = read_results(tmp_path / "out" / "results")
    assert AccuracyRun(*(found[key] for key in AccuracyRun._fields)).name == "ethanol-equiformer-tiny-0.002h-0"
    assert 0.3 < found["budget_used"] < 1.5  # a few seconds, on a machine that may be busy
    assert found["test"]["forces_mae_meV_per_A"] < 500
    table = pd.read_csv(tmp_path / "out" / "results" / "runs.csv")
    assert table.ms_ratio.tolist() == [1.0]
