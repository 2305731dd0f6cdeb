"""`mdrelax compare`: paired runs of several arms, and one report about them."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

    from mdrelax.analysis.studies.compare import PairedRun

QUICK = [  # a miniature that learns something
    "training.epochs=null", "training.steps=300", "training.validate_every=100", "training.warmup_steps=20",
    "training.ema=0.98", "training.compile=false", "potential.preset=tiny", "md_picoseconds=0.05",
    "data.validation=20", "data.test=50",
]  # fmt: skip
THETAS = [k / 10 for k in range(10, -1, -1)]


def compare(
    config: Annotated[str, typer.Argument(help="A YAML file or the name of a preset, such as rmd17-ethanol.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: runs/compare-NAME, of --quick runs/compare-NAME-quick.")
    ] = None,
    arms: Annotated[
        str,
        typer.Option(
            help="Comma-separated; the first is compared with. standard, relaxed, relaxed-weight, relaxed-fold, ... or "
            "your own, name:key=value;key=value."
        ),
    ] = "standard,relaxed",
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds, each a run of every arm.")] = "0,1,2",
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value for all arms.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Runs side by side, one thread each; 0: one a core.")] = 0,
    quick: Annotated[bool, typer.Option(help="In miniature: two seeds of a few hundred steps, in minutes.")] = False,
    only_report: Annotated[bool, typer.Option(help="Train nothing: write tables and report of what there is.")] = False,
) -> None:
    """Train arms that differ in chosen keys only, with the same seeds, data and steps, and report what differs.

    Killed at any time, the same command goes on.
    """
    from mdrelax.analysis.studies.compare import plan, run_all, split_arms
    from mdrelax.base.files import locked_folder
    from mdrelax.runs.inputs import open_config, whole_numbers
    from mdrelax.runs.jobs import cores

    changes = [*(QUICK if quick else []), *(override or [])]
    base = open_config(config, changes).model_dump(mode="json")
    numbers = [0, 1] if quick else whole_numbers("--seeds", seeds)
    runs = plan(base, arms=split_arms(arms), seeds=numbers)
    folder = out or Path("runs") / f"compare-{Path(config).stem}{'-quick' if quick else ''}"
    with contextlib.nullcontext() if only_report else locked_folder(folder):
        typer.echo(f"{len(runs)} runs in {folder}")
        try:
            if not only_report:
                run_all({folder / run.name: run.config for run in runs}, jobs=jobs or cores(), tell=typer.echo)
        finally:  # also where some failed, or the user stops: what the others found is not lost
            _write(folder, runs)


def _write(folder: Path, runs: "list[PairedRun]") -> None:
    """Tables and report of what has finished; says the verdict and the files."""
    from mdrelax.analysis.studies.compare import read_results, write_tables
    from mdrelax.analysis.studies.compare_report import unstable, verdict, write_report
    from mdrelax.base.provenance import command_line

    finished = [run for run in runs if read_results(folder / run.name, run.config) is not None]
    if not finished:
        typer.echo("No run of this plan has finished yet; the same command goes on.")
        return
    command = command_line()
    table, summary = write_tables(folder, runs, command=command)
    path = write_report(folder, runs, table, summary, gaps=_gaps(folder, finished), command=command)
    errors = [f"{summary.judged_by.iloc[0]}_{name}" for name in ("forces", "forces_std", "energy", "energy_std")]
    shown = summary[["arm", "seeds", *errors, "cpu_minutes"]]
    typer.echo(shown.to_string(index=False, float_format=lambda value: f"{value:.2f}", na_rep=""))
    typer.echo(verdict(summary))
    if names := unstable(table):
        typer.echo(f"UNSTABLE in NVE (exploded, or a bond broke): {', '.join(names)}.")
    typer.echo(f"Report: {path}")


def _gaps(folder: Path, finished: "list[PairedRun]") -> "dict[str, list[pd.DataFrame]]":
    """The projection gap of every relaxed run among the finished ones; each is measured once and kept in its folder."""
    import pandas as pd

    from mdrelax import potentials
    from mdrelax.base.files import write_atomically
    from mdrelax.runs.checkpoints import projection_gap

    gaps: dict[str, list[pd.DataFrame]] = {}
    for run in finished:
        place = folder / run.name
        if not (place / "layers.csv").is_file():
            continue
        path = place / "projection_gap.csv"
        if not path.is_file():
            write_atomically(path, projection_gap(place, THETAS, potentials).to_csv(index=False).encode())
        gaps.setdefault(run.arm, []).append(pd.read_csv(path))
    return gaps
