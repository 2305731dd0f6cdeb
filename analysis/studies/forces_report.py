"""The page of a comparison of force fields: report.html and figures/*.png of a folder of paired runs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mdrelax.analysis import figures
from mdrelax.analysis.drawing import WIDTH, NothingToDrawError, fit_axes, has_numbers, panels, shared_legend, styled
from mdrelax.analysis.html import embedded, write_page
from mdrelax.analysis.report import read_run
from mdrelax.analysis.studies.arm_figures import arm_rows, arm_style, count, in_order, seed_curves
from mdrelax.analysis.studies.forces import FORCES, STUDY
from mdrelax.analysis.studies.measures import verdict
from mdrelax.analysis.studies.run_files import Done, draw
from mdrelax.analysis.studies.study import Written
from mdrelax.base.provenance import portable

__all__ = ["projection_gaps", "simulations", "unstable", "write_report"]

GAPS = {"forces": "validation force MAE (meV/Å)", "energy": "validation energy MAE (meV)"}
BEHAVIOUR = {
    "nve_drift": "|NVE drift| (meV/atom/ps)",
    "net_force": "net force (meV/Å)",
    "net_torque": "net torque (meV)",
}


def write_report(
    folder: Path,
    done: Sequence[Done],
    written: Written,
    *,
    planned: int,
    gaps: Mapping[str, Sequence[pd.DataFrame]],
    command: str,
) -> Path:
    """Write figures/*.png and report.html of the finished runs; ``gaps``: the tables of ``projection_gaps`` by arm."""
    table, summary = written.table, written.summary
    seed = done[0].run.factors["seed"]
    shown = {each.run.factors["arm"]: read_run(folder / each.run.name)
             for each in done if each.run.factors["seed"] == seed}  # fmt: skip
    drawings = STUDY.drawings(folder, done, table)
    drawings |= {"projection_gap": partial(projection_gaps, gaps), "simulations": partial(simulations, table)}
    for arm in in_order(shown):
        predictions, certificate = shown[arm].predictions, shown[arm].certificate
        if predictions is not None:
            drawings[f"parity_{arm}"] = partial(figures.parity, predictions)
        if certificate is not None:
            drawings[f"spectra_{arm}"] = partial(figures.symmetry_spectra, certificate)
    images = {path.stem: embedded(content) for path, content in draw(drawings, folder / "figures").items()}
    config = done[0].run.config
    return write_page(
        folder / "report.html",
        "compare.html.j2",
        title=folder.resolve().name,
        verdict=verdict(summary, FORCES),
        unstable=unstable(table),
        facts=[
            Path(config["data"]["source"]).name,
            f"{config['potential']['name']} {config['potential']['preset']}",
            f"{int(table.steps.max()):,} steps",
            f"{len(done)} of {planned} runs finished",
        ],
        judged=summary.judged_by.iloc[0],
        errors=STUDY.rows(summary),
        summary=summary.to_dict("records"),
        runs=table.to_dict("records"),
        images=images,
        arms=in_order(shown),
        spectra_seed=seed,
        config=yaml.safe_dump(config, sort_keys=False),
        command=portable(command),
    )


def unstable(table: pd.DataFrame) -> list[str]:
    """The names of the runs whose dynamics exploded or broke a bond."""
    return [f"{row.arm}-{row.seed}" for row in table[table.unstable].itertuples()]


@styled
def projection_gaps(gaps: Mapping[str, Sequence[pd.DataFrame]]) -> Figure:
    """Validation error of the last, unprojected networks against theta; single runs thin, the mean of each arm thick.

    A table has the columns ``theta``, ``forces`` (meV/A) and ``energy`` (meV). At theta = 0 the network is equivariant.
    """
    known = {arm: tables for arm, tables in gaps.items() if tables}
    if not known:
        raise NothingToDrawError("No arm was relaxed: there is nothing to project.")
    figure, axes = panels(2, "")
    arms = in_order(known)
    for ax, (name, label) in zip(axes, GAPS.items(), strict=True):
        for arm in arms:
            colour, marker = arm_style(arm, arms)
            curves = [table.set_index("theta")[name] for table in known[arm]]
            seed_curves(ax, curves, colour, label=f"{arm} ({count(len(curves), 'seed')})", marker=marker)
        ax.set(xlabel="θ of the last checkpoint, free maps kept", title=label, xlim=(1.02, -0.02))
        fit_axes([ax])
    shared_legend(figure)
    return figure


@styled
def simulations(table: pd.DataFrame) -> Figure:
    """Energy drift of the NVE runs, net force and net torque on test frames: a dot per run, a bar for the mean."""
    shown = {name: label for name, label in BEHAVIOUR.items() if has_numbers(table, name)}
    arms = in_order(table.arm) if len(table) else []
    figure, axes = panels(len(shown), "no run has an NVE drift, net force or torque", height=1.4 + 0.4 * len(arms))
    figure.set_figwidth(WIDTH)
    for number, (ax, (name, label)) in enumerate(zip(axes, shown.items(), strict=True)):
        arm_rows(ax, {arm: table.loc[table.arm == arm, name].abs() for arm in arms})
        ax.set(xlabel=label, xlim=(0, 1.1 * (table[name].abs().max() or 1.0)))
        ax.set_yticklabels(arms if number == 0 else [])
        ax.xaxis.set_major_locator(MaxNLocator(3))
    return figure
