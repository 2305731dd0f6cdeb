"""A study of a new task is a table: a toy task goes from plan to figures with nothing of its own but its ``Study``."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from mdrelax.analysis.studies.arm_figures import errors_of_arms
from mdrelax.analysis.studies.measures import Factor, Measure, mean, minus_first, plain, verdict
from mdrelax.analysis.studies.run_files import Done, draw, read_results
from mdrelax.analysis.studies.study import Study
from mdrelax.base.sections import ConfigError, apply_overrides
from mdrelax.runs import jobs

# --- the toy task: a classifier that is right more often the larger it is, and by 2 % more when it is relaxed ---

PROGRAM = """
import json, sys, yaml
from pathlib import Path
place = Path(sys.argv[1])
config = yaml.safe_load((place / "run.yaml").read_text())
seed, relaxed = config["training"]["seed"], config["relaxed"]
accuracy = 0.80 + 0.01 * config["depth"] + (0.02 + 0.001 * seed) * relaxed + 0.003 * seed
rows = [f"{step},{0.5 * relaxed},{accuracy - 1 / step}" for step in (10, 20)]
(place / "metrics.csv").write_text("\\n".join(["step,theta,val_accuracy", *rows]))
found = {"test": {"accuracy": accuracy}, "validation": {"accuracy": accuracy + 0.01}, "cpu_seconds": 120.0}
(place / "results.json").write_text(json.dumps(found))
"""
ACCURACY = Measure("accuracy", "accuracy", "%", scale=100.0, higher_is_better=True)


def _start(place: Path, config: Mapping[str, Any]) -> Sequence[str]:
    place.mkdir(parents=True, exist_ok=True)
    (place / "run.yaml").write_text(yaml.safe_dump(dict(config)))
    return [str(place)]


TOY = Study(
    title="toy study",
    arms={"standard": ("relaxed=false",), "relaxed": ()},
    measures=(ACCURACY,),
    columns={
        "test_accuracy": "test.accuracy",
        "validation_accuracy": "validation.accuracy",
        "cpu_seconds": "cpu_seconds",
        "steps": "steps",
    },
    resolve=lambda base, changes: apply_overrides(base, changes),
    read=lambda place, config: read_results(place / "results.json", ["test", "validation", "cpu_seconds"]),
    start=_start,
    command=(sys.executable, "-c", PROGRAM),
    factors={
        "model": Factor(known=("small", "large"), keys=lambda name: [f"width={len(name)}"]),
        "depth": Factor(("layer", "layers")),
    },
    name="{model}-{depth}-{arm}-{seed}",
    shown={
        "model": plain("model"),
        "depth": plain("depth"),
        "arm": plain("arm"),
        "accuracy, %": mean(ACCURACY),
        "minus {first}": minus_first(ACCURACY),
    },
    curve=("val_accuracy", "validation accuracy", 1.0),
)

# --- what follows is the same for every task ---

BASE = {"width": 0, "training": {"steps": 20}, "relaxed": True}
LEVELS = {"model": ["small", "large"], "depth": [1, 2]}


def _plan(**changes: Any) -> Any:
    return TOY.plan(BASE, **{"arms": ["standard", "relaxed"], "seeds": [0, 1], "levels": LEVELS, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Done]]:
    """All sixteen runs, by the program."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "POLL_SECONDS", 0.02)
        TOY.run(_plan(), folder, jobs=2)
    return folder, TOY.ordered(TOY.finished(_plan(), folder))


def test_the_plan_has_every_combination_seeds_outermost_and_arms_beside_each_other() -> None:
    """A factor sets its own key, or the keys that it says, which the user may override; arms change theirs."""
    runs = _plan(overrides=["width=9"])
    assert [run.name for run in runs[:3]] == ["small-1-standard-0", "small-1-relaxed-0", "large-1-standard-0"]
    assert len(runs) == 16
    assert runs[0].config == {
        "width": 9, "depth": 1, "training": {"steps": 20, "seed": 0}, "relaxed": False,
    }  # fmt: skip
    assert _plan()[0].config["width"] == 5
    assert runs[-1].factors == {"model": "large", "depth": 2, "arm": "relaxed", "seed": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"levels": {"model": ["smal"], "depth": [1]}}, "no model `smal`; did you mean `small`"),
        ({"levels": {"model": [], "depth": [1]}}, "at least one model, each once"),
        ({"seeds": [1, 1]}, "at least one seed, each once"),
        ({"arms": ["relaxed", "relaxed"]}, "at least one arm, each once"),
        ({"arms": ["mine:width=3"]}, "no arm `mine:width=3`"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    """The sentence names what is wrong; arms of one's own are for studies that allow them."""
    with pytest.raises(ConfigError, match=words):
        _plan(**changes)


def test_what_is_finished_is_not_run_again(finished: tuple[Path, list[Done]]) -> None:
    """A command that fails is never started; what a run found is told in the measure's unit."""
    folder, done = finished
    assert len(done) == 16
    TOY._replace(command=["false"]).run(_plan(), folder, jobs=1)
    assert TOY._line(done[0].results) == "validation accuracy 82.00 % after 2.0 CPU-min"


def test_the_summary_has_means_spreads_and_paired_differences(finished: tuple[Path, list[Done]]) -> None:
    """Relaxed minus standard is 2.0 % and 2.1 % for the two seeds at every setting; t(0.975; 1) = 12.7062."""
    table = TOY.collect(finished[1])
    assert table.steps.isna().all(), "a place that the results lack"
    summary = TOY.summarize(table)
    order = [("small", 1), ("small", 2), ("large", 1), ("large", 2)]
    assert list(zip(summary.model, summary.depth, strict=True))[::2] == order
    assert list(summary.arm) == ["standard", "relaxed"] * 4
    first, second = summary.iloc[0], summary.iloc[1]
    assert first.test_accuracy == pytest.approx(0.8115)
    assert (first.pairs, second.pairs) == (0, 2)
    assert second.accuracy_minus_first == pytest.approx(0.0205)
    assert second.accuracy_minus_first_high == pytest.approx(0.0205 + 12.7062 * 0.0005, rel=1e-4)
    assert verdict(summary.iloc[:2], ACCURACY) == (
        "relaxed's accuracy (higher is better) is 2.5 % higher than standard's; "
        "the 95 % interval of the difference excludes zero."
    )


def test_page_tables_and_record_are_written(finished: tuple[Path, list[Done]], tmp_path: Path) -> None:
    """The page is the summary in the measure's unit, the record repeats config and results of every run."""
    written = TOY.write(tmp_path, finished[1], unfinished=["small-3-relaxed-0"], command="toy")
    assert [path.name for path in written.paths] == ["study.md", "summary.csv", "runs.csv", "study.json"]
    page = (tmp_path / "study.md").read_text()
    assert page.startswith("# toy study\n\n| model |")
    assert "| 83.20 +- 0.28 | +2.05 [+1.41, +2.69] |" in " ".join(page.split())
    assert page.endswith("Left out, not finished (1): small-3-relaxed-0.\n")
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 16
    run = json.loads((tmp_path / "study.json").read_text())["runs"][0]
    assert (run["name"], run["model"], run["test"]) == ("small-1-standard-0", "small", {"accuracy": 0.81})


def test_the_figures_of_every_study_are_drawn(finished: tuple[Path, list[Done]], tmp_path: Path) -> None:
    """Errors, curves against number factors and learning curves; what has nothing to show is left out."""
    folder, done = finished
    table = TOY.collect(done)
    (tmp_path / "old.png").touch()
    paths = draw(TOY.drawings(folder, done, table), tmp_path)
    assert [path.stem for path in paths] == ["errors", "errors_depth", "learning_curves"]
    assert not (tmp_path / "old.png").exists()
    (ax,) = errors_of_arms(table, TOY.measures, TOY.factors, setting=("large", 2)).axes
    assert ax.get_xlabel() == "test accuracy (%), higher is better, large, 2 layers"
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "standard\n82.15 ± 0.21 (2 seeds)", "relaxed\n84.20 ± 0.28 (2 seeds)",
    ]  # fmt: skip


def test_a_result_of_another_recipe_is_refused(finished: tuple[Path, list[Done]]) -> None:
    """Of the same arm in anything but the seed, of another arm in the budget; other settings are no concern."""
    done = finished[1]
    TOY.refuse_mixtures(_plan(seeds=[5]), done)
    TOY.refuse_mixtures(_plan(overrides=["training.steps=9"], levels={"model": ["small"], "depth": [7]}), done)
    with pytest.raises(ConfigError, match=r"(?s)`small-1-standard-0` is the result.*training\.steps: 20 -> 9"):
        TOY.refuse_mixtures(_plan(overrides=["training.steps=9"]), done)
