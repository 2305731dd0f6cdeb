"""The report of a comparison: report.html and figures/*.png of a folder of paired runs, from ``compare``'s tables."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from mdrelax.analysis import figures
from mdrelax.analysis.drawing import save
from mdrelax.analysis.html import embedded, render
from mdrelax.analysis.report import read_run
from mdrelax.analysis.studies.arm_figures import RunTables, in_order, learning_curves, lie_derivatives
from mdrelax.analysis.studies.compare import PairedRun
from mdrelax.analysis.studies.compare_figures import errors_of_arms, projection_gaps, simulations
from mdrelax.base.files import write_atomically
from mdrelax.base.provenance import portable

__all__ = ["unstable", "verdict", "write_report"]

VALIDATION = ("val_forces_mae_meV_per_A", "validation force MAE (meV/Å), projected network")


def write_report(
    folder: Path,
    runs: Sequence[PairedRun],
    table: pd.DataFrame,
    summary: pd.DataFrame,
    *,
    gaps: Mapping[str, Sequence[pd.DataFrame]],
    command: str,
) -> Path:
    """Write figures/*.png and report.html; ``table`` and ``summary`` as ``compare`` makes them.

    ``gaps`` are the tables of ``compare_figures.projection_gaps`` by arm.
    """
    finished = [run for run in runs if ((table.arm == run.arm) & (table.seed == run.seed)).any()]
    first_seed = finished[0].seed
    shown = {run.arm: read_run(folder / run.name) for run in finished if run.seed == first_seed}
    drawings = _drawings(folder, finished, table, gaps)
    drawings |= {f"parity_{arm}": partial(figures.parity, run.predictions)
                 for arm, run in shown.items() if run.predictions is not None}  # fmt: skip
    drawings |= {f"spectra_{arm}": partial(figures.symmetry_spectra, run.certificate)
                 for arm, run in shown.items() if run.certificate is not None}  # fmt: skip
    images = _draw(drawings, folder / "figures")
    arms = in_order(shown)
    page = render(
        "compare.html.j2",
        title=folder.resolve().name,
        verdict=verdict(summary),
        unstable=unstable(table),
        facts=_facts(finished, len(runs), table),
        first=summary.arm.iloc[0],
        judged=summary.judged_by.iloc[0],
        summary=summary.to_dict("records"),
        runs=table.to_dict("records"),
        images=images,
        spectra=[arm for arm in arms if f"spectra_{arm}" in images],
        parities=[arm for arm in arms if f"parity_{arm}" in images],
        spectra_seed=first_seed,
        config=yaml.safe_dump(finished[0].config, sort_keys=False),
        command=portable(command),
    )
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


def verdict(summary: pd.DataFrame) -> str:
    """One sentence for each arm after the first: how its force error compares, and whether chance explains it."""
    first, sentences = summary.iloc[0], []
    kind = "" if first.judged_by == "test" else f"{first.judged_by} "
    for _, row in summary.iloc[1:].iterrows():
        difference = row.get("forces_minus_first")
        if difference is None or pd.isna(difference):
            sentences.append(f"{row.arm} has no finished pair with {first.arm}.")
            continue
        share = 100 * abs(difference) / first[f"{first.judged_by}_forces"]
        direction = "lower" if difference < 0 else "higher"
        words = f"{row.arm}'s {kind}force MAE is {share:.1f} % {direction} than {first.arm}'s"
        low, high = row.forces_minus_first_low, row.forces_minus_first_high
        if pd.isna(low):
            sentences.append(f"{words}; one pair of runs, so this may be chance.")
        else:
            sure = low > 0 or high < 0
            sentences.append(f"{words}; the 95 % interval of the difference {'excludes' if sure else 'includes'} zero.")
    return " ".join(sentences)


def unstable(table: pd.DataFrame) -> list[str]:
    """The names of the runs whose dynamics exploded or broke a bond."""
    return [f"{row.arm}-{row.seed}" for row in table[table.unstable].itertuples()]


def _facts(finished: Sequence[PairedRun], planned: int, table: pd.DataFrame) -> list[str]:
    data, network = finished[0].config["data"], finished[0].config["potential"]
    return [
        Path(data["source"]).name,
        f"{network['name']} {network['preset']}",
        f"{int(table.steps.max()):,} steps",
        f"{len(finished)} of {planned} runs finished",
    ]


def _drawings(
    folder: Path, runs: Sequence[PairedRun], table: pd.DataFrame, gaps: Mapping[str, Sequence[pd.DataFrame]]
) -> dict[str, Callable[[], Figure]]:
    tables = []
    for run in runs:
        layers = folder / run.name / "layers.csv"
        metrics = pd.read_csv(folder / run.name / "metrics.csv")
        tables.append(RunTables(run.arm, run.seed, metrics, pd.read_csv(layers) if layers.is_file() else None))
    return {
        "errors": partial(errors_of_arms, table),
        "learning_curves": partial(learning_curves, tables, *VALIDATION),
        "projection_gap": partial(projection_gaps, gaps),
        "lie_derivatives": partial(lie_derivatives, tables),
        "simulations": partial(simulations, table),
    }


def _draw(drawings: Mapping[str, Callable[[], Figure]], folder: Path) -> dict[str, Any]:
    """Every figure that has something to show, as a file and embedded; older pictures are removed."""
    for path in folder.glob("*.png"):
        path.unlink()
    images = {}
    for name, draw in drawings.items():
        if (content := save(folder / f"{name}.png", draw)) is not None:
            images[name] = embedded(content)
    return images
