"""A study says what its runs say: tables against numbers worked out by hand, the interval against scipy's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mdrelax.analysis.drawing import NothingToDrawError
from mdrelax.analysis.studies import study as engine
from mdrelax.analysis.studies.measures import paired_difference
from mdrelax.analysis.studies.nbody import PUBLISHED, STUDY, finished_runs, write_study
from mdrelax.base.provenance import software_versions
from mdrelax.base.sections import ConfigError
from mdrelax.packs.nbody.run import NBodyRun
from mdrelax.training.folders import load_run
from nbody_runs import EXACT, write_run

STANDARD, RELAXED = (5.0e-3, 5.4e-3, 5.8e-3), (4.6e-3, 4.9e-3, 5.5e-3)
COMMAND = "mdrelax bench nbody --arms standard,relaxed"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three seeds of two arms."""
    for seed in range(3):
        write_run(tmp_path, "standard", seed, STANDARD[seed])
        write_run(tmp_path, "relaxed", seed, RELAXED[seed])
    return tmp_path


def _document(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "study.json").read_text())


def _table(*rows: tuple[str, int, float], n_layers: int = 4) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["arm", "seed", "test_mse"]).assign(n_layers=n_layers, n_train=3000)


# --- tables ---


def test_the_summary_is_what_the_seeds_say(study):
    """Means, sample standard deviations, and the paired difference with its t interval, worked out on paper.

    Relaxed - standard is -0.4, -0.5, -0.3 (times 1e-3): mean -0.4, deviation 0.1, and t(0.975; 2) = 4.30265.
    """
    write_study(study)
    table = pd.read_csv(study / "summary.csv")
    assert table["arm"].tolist() == ["standard", "relaxed"]
    assert (table[["n_layers", "n_train", "seeds"]] == [4, 3000, 3]).all(axis=None)
    np.testing.assert_allclose(table["test_mse"], [5.4e-3, 5.0e-3])
    np.testing.assert_allclose(table["test_mse_std"], [0.4e-3, np.sqrt(0.21) * 1e-3])
    np.testing.assert_allclose(table["validation_mse"], [0.9 * 5.4e-3, 0.9 * 5.0e-3])
    np.testing.assert_allclose(table["cpu_minutes"], [1.1, 1.1])  # (60 + 66 + 72) / 3 seconds
    assert table["pairs"].tolist() == [0, 3]
    half = 4.302652730 * 0.1e-3 / np.sqrt(3)
    standard, relaxed = table.filter(like="mse_minus_first").to_numpy()
    assert np.isnan(standard).all()
    np.testing.assert_allclose(relaxed, [-0.4e-3, 0.1e-3, -0.4e-3 - half, -0.4e-3 + half])


def test_every_run_has_its_row(study):
    """runs.csv holds each run once, those to be compared side by side."""
    write_study(study)
    table = pd.read_csv(study / "runs.csv")
    assert table["arm"].tolist() == ["standard"] * 3 + ["relaxed"] * 3
    assert table["seed"].tolist() == [0, 1, 2] * 2
    np.testing.assert_allclose(table["test_mse"], [*STANDARD, *RELAXED])
    np.testing.assert_allclose(table["equivariance_error"], max(EXACT.values()))


def test_the_interval_is_scipys():
    """The confidence interval of ``ttest_rel``, whatever the number of pairs, over the common seeds only."""
    generator = np.random.default_rng(0)
    for n in (2, 3, 8):
        a, b = generator.normal(5, 1, (2, n))
        rows = [("standard", seed, a[seed]) for seed in range(n)] + [("relaxed", seed, b[seed]) for seed in range(n)]
        lonely = [("standard", 98, 100.0), ("relaxed", 99, -100.0)]
        found = paired_difference(_table(*rows, *lonely), "test_mse", "relaxed", "standard")
        expected = stats.ttest_rel(b, a).confidence_interval(0.95)
        assert found["pairs"] == n
        assert found["mean"] == pytest.approx((b - a).mean())
        assert (found["low"], found["high"]) == pytest.approx(tuple(expected))


def test_one_pair_has_a_difference_and_no_interval():
    """A single seed says nothing of the spread; other depths are no partners; without a standard arm there are none."""
    both = pd.concat([_table(("standard", 0, 5.0), ("egnn", 0, 7.0)), _table(("egnn", 0, 1.0), n_layers=2)])
    summary = STUDY.summarize(both.assign(validation_mse=both["test_mse"], cpu_seconds=1.0))
    assert summary["pairs"].tolist() == [0, 1, 0]
    row = summary.iloc[1]
    assert (row["arm"], row["n_layers"], row["mse_minus_first"]) == ("egnn", 4, 2.0)
    assert row[["mse_minus_first_std", "mse_minus_first_low", "mse_minus_first_high"]].isna().all()
    assert summary["mse_minus_first"].isna().tolist() == [True, False, True]


def test_a_study_without_standard_arm_can_be_written(tmp_path):
    """A comparison that cannot be made is left empty."""
    write_run(tmp_path, "egnn", 0, 7e-3)
    write_study(tmp_path)
    table = pd.read_csv(tmp_path / "summary.csv")
    assert (table["pairs"].tolist(), table["mse_minus_first"].isna().all()) == ([0], True)
    assert (
        "| egnn |      4 |    3000 |     1 |            7.00 |                       |"
        in (tmp_path / "study.md").read_text()
    )


def test_the_page_has_the_numbers_in_units_of_a_thousandth(study):
    """Mean +- deviation, and the difference with its interval; columns line up."""
    write_study(study)
    lines = (study / "study.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[2] == ["standard", "4", "3000", "3", "5.40 +- 0.40", "", "1.1"]
    assert cells[3] == ["relaxed", "4", "3000", "3", "5.00 +- 0.46", "-0.40 [-0.65, -0.15]", "1.1"]
    assert len({len(line) for line in table}) == 1
    assert "Left out" not in "".join(lines)


# --- study.json ---


def test_the_record_has_the_config_and_the_results_of_every_run(study):
    """As they stand in its folder, and what was varied beside its name."""
    write_study(study, command=COMMAND)
    document = _document(study)
    assert len(document["runs"]) == 6
    for run in document["runs"]:
        assert run["config"] == load_run(NBodyRun, study / run["name"]).model_dump(mode="json")
        result = json.loads((study / run["name"] / "results.json").read_text())
        assert {key: run[key] for key in result.keys() - {"run"}} == {k: v for k, v in result.items() if k != "run"}
    own = document["runs"][3]
    assert [own[key] for key in ("arm", "n_layers", "n_train", "seed")] == ["relaxed", 4, 3000, 0]
    assert own["config"]["relaxation"]["schedule"] == "triangle"
    assert {"test_mse", "validation_mse", "best_step", "steps", "seconds", "cpu_seconds", "n_parameters"} <= own.keys()
    assert own["equivariance_error_float64"] == EXACT
    assert software_versions().items() <= own["environment"].items()
    assert own["environment"]["date"] == "2026-01-01T00:00:00+00:00"


def test_commands_are_kept_in_their_order(tmp_path):
    """A study may grow by several commands; one that is given again moves to the end."""
    write_run(tmp_path, "egnn", 0, 7e-3)
    for command in (COMMAND, "mdrelax bench nbody --arms egnn", "", COMMAND):
        write_study(tmp_path, command=command)
    assert _document(tmp_path)["command"] == COMMAND
    assert _document(tmp_path)["earlier_commands"] == ["mdrelax bench nbody --arms egnn"]


def test_no_path_of_a_machine_is_kept(tmp_path):
    """Absolute paths, of the data and in the command, lose everything but their last name."""
    data = tmp_path / "some where" / "npy"
    write_run(tmp_path / "out", "standard", 0, 5e-3, data=str(data))
    write_study(tmp_path / "out", command=f"mdrelax bench nbody --out {tmp_path}/out -r 'data={data}' --jobs 2")
    assert _document(tmp_path / "out")["command"] == "mdrelax bench nbody --out out -r data=npy --jobs 2"
    assert _document(tmp_path / "out")["runs"][0]["config"]["data"] == "npy"
    assert str(tmp_path) not in (tmp_path / "out" / "study.json").read_text()


# --- figures, and what is missing ---


def test_only_figures_with_something_to_show_are_written(study):
    """One depth and one size: no curve against either; a second depth brings one. An old picture does not stay."""
    paths = write_study(study)
    assert [path.name for path in paths[:4]] == ["study.md", "summary.csv", "runs.csv", "study.json"]
    names = [path.relative_to(study).as_posix() for path in paths[4:]]
    assert names == [f"figures/{name}.png" for name in ("errors", "learning_curves", "lie_derivatives")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[4:])
    extra = write_run(study, "standard", 0, 6e-3, n_layers=2)
    assert study / "figures" / "errors_n_layers.png" in write_study(study)
    shutil.rmtree(extra)
    write_study(study)
    assert not (study / "figures" / "errors_n_layers.png").exists()


@pytest.mark.parametrize(("other", "shown"), [({}, True), ({"n_train": 400}, False), ({"data": "gravity"}, False)])
def test_published_numbers_stand_beside_the_same_task_only(tmp_path, monkeypatch, other, shown):
    """Another data set or training set is not what was published."""
    seen = []

    def record(*_: Any, published: dict[str, float]) -> None:
        seen.append(published)
        raise NothingToDrawError

    monkeypatch.setattr(engine, "errors_of_arms", record)
    write_run(tmp_path, "standard", 0, 5e-3, **other)
    write_study(tmp_path)
    assert seen == [PUBLISHED if shown else {}]


def test_tables_that_are_gone_cost_their_figures_only(study):
    """Numbers come from results.json alone."""
    for path in study.glob("*/metrics.csv"):
        path.unlink()
    assert [path.stem for path in write_study(study)[4:]] == ["errors"]


def test_unfinished_runs_are_left_out_and_counted(study):
    """A run that is still training has a folder and no result."""
    write_run(study, "standard", 3, 9e-3, finished=False)
    write_study(study)
    assert len(pd.read_csv(study / "runs.csv")) == 6
    assert _document(study)["unfinished"] == ["standard-layers4-train3000-seed3"]
    assert "Left out, not finished (1): standard-layers4-train3000-seed3." in (study / "study.md").read_text()


def test_runs_of_another_recipe_do_not_stand_among_these(study):
    """A comparison of batch sizes is no comparison of arms; other depths may have recipes of their own."""
    done, _ = finished_runs(study)
    base = {"training": {"steps": 100, "validate_every": 10}}

    def check(*overrides: str, arm: str = "relaxed", n_layers: int = 4) -> None:
        levels = {"n_layers": [n_layers], "n_train": [3000]}
        STUDY.refuse_mixtures(STUDY.plan(base, arms=[arm], seeds=[7], levels=levels, overrides=overrides), done)

    check("compile=true")
    check("training.learning_rate=0.1", n_layers=2)
    with pytest.raises(ConfigError, match=r"(?s)relaxed-layers4-train3000-seed0.*training\.learning_rate"):
        check("training.learning_rate=0.1")
    with pytest.raises(ConfigError, match=r"(?s)-seed0.*training\.batch_size: \d+ -> 64"):
        check("training.batch_size=64", arm="egnn")
    check("relaxation.peak=0.5", arm="egnn")


def test_a_folder_without_finished_runs_is_an_error(tmp_path):
    """Nothing at all, a folder that does not exist, and runs that have only begun."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"contains no finished run of the N-body benchmark\.$"):
            write_study(folder)
    write_run(tmp_path, "standard", 0, 5e-3, finished=False)
    with pytest.raises(ValueError, match="benchmark: 1 have begun"):
        write_study(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results.json", "{", "results.json` cannot be read"),
        ("results.json", '{"run": {}}', "results.json` lacks environment, .*test_mse"),
        ("metrics.csv", "", "metrics.csv` cannot be read"),
    ],
)
def test_a_broken_file_is_named(study, name, text, message):
    """The sentence says which, and what to do."""
    (study / "relaxed-layers4-train3000-seed1" / name).write_text(text)
    with pytest.raises(ValueError, match=f"relaxed-layers4-train3000-seed1/{message}") as caught:
        write_study(study)
    assert not isinstance(caught.value, ConfigError)


def test_a_copied_run_does_not_count_twice(study):
    """A seed that counts twice would make the spread smaller."""
    shutil.copytree(study / "relaxed-layers4-train3000-seed1", study / "copy")
    with pytest.raises(ValueError, match=r"n_layers 4, n_train 3000, arm relaxed, seed 1 twice"):
        write_study(study)
