"""One study: arms, seeds and other factors give runs, which are planned, run, collected, summarised and compared.

The study of a task is a ``Study``: its arms, factors, measures and columns, a function that reads the result of a run,
and the command that trains it. All arms of a setting and seed share data, split, order of batches, initial weights,
optimiser and number of steps; only their own keys differ. Runs are resumable and run in parallel.

| file | content |
| --- | --- |
| runs.csv | one row per run: its factors, and the study's columns |
| summary.csv | one row per setting and arm: mean and spread over seeds, paired difference from the first arm |
| study.json | commands, and config and results of every run, to check every number with |
| study.md | the summary as text |
| figures/*.png | all figures that are not empty |
"""

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd
from matplotlib.figure import Figure

from mdrelax.analysis.markdown import markdown
from mdrelax.analysis.studies.arm_figures import (
    RunTables,
    errors_against,
    errors_of_arms,
    in_order,
    learning_curves,
    lie_derivatives,
)
from mdrelax.analysis.studies.measures import Cell, Factor, Measure, judged_by, main_setting, paired_difference
from mdrelax.analysis.studies.run_files import Config, Done, Results, Run, recipe, record
from mdrelax.analysis.tables import read_optional, write_texts
from mdrelax.base.names import nearest_name
from mdrelax.base.provenance import portable
from mdrelax.base.sections import ConfigError
from mdrelax.runs.jobs import ONE_THREAD_EACH, Start, run_side_by_side
from mdrelax.training.folders import changed_keys, refuse_changes

__all__ = ["PackStudy", "Study", "Written", "split_arms"]

Drawings = dict[str, Callable[[], Figure]]


class Written(NamedTuple):
    """What ``Study.write`` wrote."""

    paths: list[Path]
    table: pd.DataFrame  # one row per run
    summary: pd.DataFrame  # one row per setting and arm


class Study(NamedTuple):
    """The part of a study that is specific to a task."""

    title: str
    arms: Mapping[str, Sequence[str]]  # section.key=value that each changes
    measures: Sequence[Measure]
    columns: Mapping[str, str | Callable[[Results], Any]]  # of runs.csv: place in the results, as test.mae, or a rule
    resolve: Callable[[Config, Sequence[str]], dict[str, Any]]  # base and changes -> config; raises ConfigError
    read: Callable[[Path, Config], Results | None]  # the results of a run in its folder; None: not finished
    start: Callable[[Path, Config], Sequence[str]]  # prepares a run's folder; returns the words that follow `command`
    command: Sequence[str] = (sys.executable, "-m", "mdrelax", "train")
    factors: Mapping[str, Factor] = {}
    name: str = "{arm}-{seed}"  # of a run's folder
    first: str | None = None  # the arm that others are compared with; none: the first of each setting
    own_arms: bool = False  # whether users may define their own arms
    budget: Sequence[str] = ("data", "training.steps")  # keys that all arms of a setting share
    seeds: Sequence[str] = ()  # keys that follow the seed of a run, beside `training.seed`
    aggregates: Mapping[str, tuple[str, Callable[["pd.Series[Any]"], Any]]] = {}  # of summary.csv: column and rule
    shown: Mapping[str, Cell] = {}  # header of a column, with {first} and {judged}, and its cells
    notes: Callable[[pd.DataFrame], Sequence[str]] = lambda summary: ()  # below the table, with {first}
    curve: tuple[str, str, float] = ("", "", 1.0)  # of metrics.csv: column, label, scale
    page: str | None = "study.md"
    record: str | None = "study.json"

    # --- plan and run ---

    def plan(
        self,
        base: Config,
        *,
        arms: Sequence[str],
        seeds: Sequence[int],
        levels: Mapping[str, Sequence[Any]] | None = None,
        overrides: Sequence[str] = (),
    ) -> list[Run]:
        """Every combination, seeds outermost, so that a first comparison is there early; ``levels`` are the factors'.

        An arm is a name of ``arms`` or, with ``own_arms``, ``name:key=value;key=value``. Raises ``ConfigError`` for an
        unknown arm or value, one that is named twice, an invalid config, two identical arms, and if
        there is nothing to run.
        """
        changes, levels = dict(self._arm(text) for text in arms), levels or {}
        for noun, values in {"arm": arms, "seed": seeds, **levels}.items():
            if not values or len(changes if noun == "arm" else set(values)) < len(values):
                raise ConfigError(f"Name at least one {noun}, each once.")
            known = self.factors[noun].known if noun in levels else ()
            for value in values:
                if known and value not in known:
                    raise ConfigError(f"The study has no {noun} `{value}`; {nearest_name(value, known)}")
        runs = [
            self._run(base, dict(zip(levels, reversed(setting), strict=True)), arm, seed, overrides)
            for seed, *setting, arm in product(seeds, *reversed(list(levels.values())), changes.items())
        ]
        for one, other in combinations(runs[: len(changes)], 2):
            if not changed_keys(one.config, other.config):
                names = " and ".join(f"`{run.factors['arm']}`" for run in (one, other))
                raise ConfigError(f"The arms {names} are the same run with this config; name one.")
        return runs

    def _arm(self, text: str) -> tuple[str, Sequence[str]]:
        name, colon, keys = text.partition(":")
        if colon and self.own_arms:
            return name, keys.split(";")
        if text not in self.arms:
            own = " One of your own is written name:key=value;key=value." if self.own_arms else ""
            raise ConfigError(f"There is no arm `{text}`; {nearest_name(text, self.arms)}{own}")
        return text, self.arms[text]

    def _run(
        self, base: Config, setting: Config, arm: tuple[str, Sequence[str]], seed: int, overrides: Sequence[str]
    ) -> Run:
        before, after = list(overrides), [f"training.seed={seed}", *arm[1]]
        for name, value in setting.items():
            if keys := self.factors[name].keys:
                before = [*keys(value), *before]
            else:
                after.append(f"{name}={value}")
        factors = {**setting, "arm": arm[0], "seed": seed}
        return Run(self.name.format(**factors).replace(":", "-"), factors, self.resolve(base, [*before, *after]))

    def run(
        self,
        runs: Sequence[Run],
        folder: Path,
        *,
        jobs: int,
        start: Start = ONE_THREAD_EACH,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Train the unfinished runs, ``jobs`` at a time, by default as processes with one thread each.

        Raises as ``run_side_by_side``.
        """
        configs = {folder / run.name: run.config for run in runs}
        words = {place: self.start(place, config) for place, config in configs.items()}

        def finished(place: Path) -> str | None:
            found = self.read(place, configs[place])
            return None if found is None else self._line(found)

        run_side_by_side(
            list(configs), lambda p: [*self.command, *words[p]], finished=finished, jobs=jobs, start=start, tell=tell
        )

    def _line(self, results: Results) -> str:
        """The result of a finished run as a line."""
        row = self.row(results)
        errors = [f"{m.label} {m.text(row[f'validation_{m.name}'])} {m.unit}".strip() for m in self.measures]
        return f"validation {', '.join(errors)} after {row['cpu_seconds'] / 60:.1f} CPU-min"

    def finished(self, runs: Sequence[Run], folder: Path) -> list[Done]:
        """The finished ones of some runs, with their results."""
        found = ((run, self.read(folder / run.name, run.config)) for run in runs)
        return [Done(run, results) for run, results in found if results is not None]

    def refuse_mixtures(self, runs: Sequence[Run], done: Sequence[Done]) -> None:
        """Raise ``ConfigError`` if a finished run has another recipe than the runs planned in its setting.

        Runs of one arm share everything but the seed and whether they are compiled, runs of all arms the ``budget``.
        """
        for old in done:
            same_setting = [run for run in runs if self._setting(run) == self._setting(old.run)]
            same_arm = [run for run in same_setting if run.factors["arm"] == old.run.factors["arm"]]
            if same_setting:
                shared = self._recipe if same_arm else self._shared_by_arms
                new = (same_arm or same_setting)[0].config
                found = f"`{old.run.name}` is the result of another config"
                refuse_changes(shared(old.run.config), shared(new), found=found, choose="folder for results")

    def _setting(self, run: Run) -> tuple[Any, ...]:
        return tuple(run.factors[name] for name in self.factors)

    def _recipe(self, config: Config) -> dict[str, Any]:
        return recipe(config, seeds=self.seeds)

    def _shared_by_arms(self, config: Config) -> dict[str, Any]:
        known = self._recipe(config)
        return {key: _at(known, key) for key in self.budget}

    # --- collect and summarise ---

    def row(self, results: Results) -> dict[str, Any]:
        """The columns of a run; NaN for missing results."""
        return {
            name: _at(results, rule, math.nan) if isinstance(rule, str) else rule(results)
            for name, rule in self.columns.items()
        }

    def collect(self, done: Sequence[Done]) -> pd.DataFrame:
        """One row per run, in the order given."""
        return pd.DataFrame([{**each.run.factors, **self.row(each.results)} for each in done])

    def ordered(self, done: Sequence[Done]) -> list[Done]:
        """The runs sorted by setting, arm and seed, so that runs to be compared are adjacent."""
        arms = in_order(each.run.factors["arm"] for each in done)

        def place(each: Done) -> tuple[Any, ...]:
            values = zip(self.factors.values(), self._setting(each.run), strict=True)
            setting = [factor.known.index(value) if factor.known else value for factor, value in values]
            return (*setting, arms.index(each.run.factors["arm"]), each.run.factors["seed"])

        return sorted(done, key=place)

    def summarize(self, table: pd.DataFrame) -> pd.DataFrame:
        """One row per setting and arm, in the order of ``collect``'s table: means, spreads, paired differences.

        A measure has its mean and sample standard deviation (``_std``; NaN for one seed) on test and validation data.
        ``NAME_minus_first``, ``_std``, ``_low`` and ``_high`` are its ``paired_difference`` from the first arm, over
        ``pairs`` common seeds, on the data that ``judged_by`` names.
        """
        part, rows = judged_by(table, self.measures), []
        for setting, runs in self._settings(table):
            first = self.first or runs["arm"].iloc[0]
            for arm, own in runs.groupby("arm", sort=False):
                row: dict[str, Any] = {**setting, "arm": arm, "seeds": len(own), "judged_by": part}
                for name in (f"{p}_{m.name}" for p in ("test", "validation") for m in self.measures):
                    row[name], row[f"{name}_std"] = own[name].mean(), own[name].std()
                row["cpu_minutes"] = own["cpu_seconds"].mean() / 60
                row |= {name: rule(own[of]) for name, (of, rule) in self.aggregates.items() if of in own}
                for measure in self.measures:
                    row |= _minus_first(runs, measure.name, part, str(arm), first)
                rows.append(row)
        return pd.DataFrame(rows)

    def _settings(self, table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        """The rows of each setting, in the order of the table."""
        names = list(self.factors)
        for setting, rows in table.groupby(names, sort=False) if names else [((), table)]:
            yield dict(zip(names, setting, strict=True)), rows

    # --- write ---

    def rows(self, summary: pd.DataFrame) -> list[list[str]]:
        """The summary as text: the header, and one row per setting and arm."""
        words = {"first": self.first_arm(summary), "judged": summary["judged_by"].iloc[0]}
        cells = {title.format(**words): cell for title, cell in self.shown.items()}  # equal titles are one column
        return [list(cells), *([cell(row) for cell in cells.values()] for row in summary.to_dict("records"))]

    def first_arm(self, summary: pd.DataFrame) -> str:
        """The name of the arm that others are compared with; `first arm` if settings differ in it."""
        names = {self.first or str(rows["arm"].iloc[0]) for _, rows in self._settings(summary)}
        return names.pop() if len(names) == 1 else "first arm"

    def report(self, summary: pd.DataFrame, *, unfinished: Sequence[str] = ()) -> str:
        """The text of study.md."""
        notes = [note.format(first=self.first_arm(summary)) for note in self.notes(summary)]
        if unfinished:
            notes.append(f"Left out, not finished ({len(unfinished)}): {', '.join(unfinished)}.")
        return "\n\n".join([f"# {self.title}", markdown(self.rows(summary)), *notes]) + "\n"

    def write(
        self, folder: Path, done: Sequence[Done], *, unfinished: Sequence[str] = (), command: str = ""
    ) -> Written:
        """Page, tables and record of finished runs; ``command`` is added to those already recorded for the folder.

        Raises ``ValueError`` without any run, and if one occurs twice.
        """
        if not done:
            begun = f": {len(unfinished)} have begun" if unfinished else ""
            raise ValueError(f"`{folder}` contains no finished run of the {self.title}{begun}.")
        table = self.collect(done)
        twice = table.duplicated([*self.factors, "arm", "seed"])
        if twice.any():
            which = ", ".join(f"{name} {table.loc[twice, name].iloc[0]}" for name in [*self.factors, "arm", "seed"])
            raise ValueError(f"`{folder}` contains the run with {which} twice; move the copy somewhere else.")
        summary = self.summarize(table)
        contents = {} if self.page is None else {self.page: self.report(summary, unfinished=unfinished)}
        contents |= {"summary.csv": summary.to_csv(index=False), "runs.csv": table.to_csv(index=False)}
        if self.record is not None:
            contents[self.record] = record(folder / self.record, done, unfinished, summary, portable(command))
        return Written(write_texts(folder, contents), table, summary)

    def drawings(
        self, folder: Path, done: Sequence[Done], table: pd.DataFrame, *, published: Mapping[str, float] | None = None
    ) -> Drawings:
        """The figures of every study, by name; curves are those of the setting with most arms and runs."""
        shown, curves = main_setting(table, list(self.factors)), []
        for run in (each.run for each in done if self._setting(each.run) == shown):
            places = (folder / run.name / name for name in ("metrics.csv", "layers.csv"))
            metrics, layers = (read_optional(place, pd.read_csv, remedy="Delete it to do without.") for place in places)
            if metrics is not None:
                curves.append(RunTables(run.factors["arm"], run.factors["seed"], metrics, layers))
        column, label, scale = self.curve
        against: Drawings = {
            f"errors_{name}": partial(errors_against, table, name, self.measures[0], self.factors)
            for name, factor in self.factors.items() if not factor.known
        }  # fmt: skip
        return {
            "errors": partial(errors_of_arms, table, self.measures, self.factors, published=published),
            **against,
            "learning_curves": partial(learning_curves, curves, column, label, scale=scale),
            "lie_derivatives": partial(lie_derivatives, curves),
        }


class PackStudy(Protocol):
    """A module with the study of a task pack."""

    @property
    def STUDY(self) -> Study:
        """The part that is specific to the task."""

    def finished_runs(self, folder: Path) -> tuple[list[Done], list[str]]:
        """Every finished run below a folder, and the names of unfinished ones."""

    def write_study(self, folder: Path, *, command: str = "") -> list[Path]:
        """Tables, record and figures of the finished runs below a folder; returns the paths written."""


def split_arms(text: str) -> list[str]:
    """The arms in a comma-separated list; a comma within brackets, as in ``training.betas=[0.9,0.99]``, is no end."""
    return re.split(r",(?![^\[]*\])", text)


def _at(document: Mapping[str, Any], place: str, default: Any = None) -> Any:
    """The value at a path such as test.forces_mae."""
    found: Any = document
    for key in place.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return default if found is None else found


def _minus_first(runs: pd.DataFrame, name: str, part: str, arm: str, first: str) -> dict[str, float]:
    """The columns of a paired difference; NaN for the first arm."""
    found = dict.fromkeys(("mean", "std", "low", "high"), math.nan) | {"pairs": 0}
    if arm != first:
        found |= paired_difference(runs, f"{part}_{name}", arm, first)
    names = {"": "mean", "_std": "std", "_low": "low", "_high": "high"}
    return {"pairs": found["pairs"], **{f"{name}_minus_first{end}": found[key] for end, key in names.items()}}
