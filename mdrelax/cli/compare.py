"""`mdrelax compare`: paired runs of several arms, and a report on them."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdrelax.cli.ending import resumes
from mdrelax.cli.options import (
    Arms,
    Jobs,
    Launcher,
    OnlyReport,
    Override,
    RanksOfRun,
    Seeds,
    Slurm,
    Threads,
    workers,
)  # fmt: skip
from mdrelax.cli.output import tell_table, write_text

if TYPE_CHECKING:
    import pandas as pd

    from mdrelax.analysis.studies.run_files import Done, Run

QUICK = [  # short but meaningful runs
    "training.epochs=null", "training.steps=300", "training.validate_every=100", "training.warmup_steps=20",
    "training.ema=0.98", "training.compile=false", "potential.preset=tiny", "md_picoseconds=0.05",
    "data.validation=20", "data.test=50",
]  # fmt: skip
THETAS = [k / 10 for k in range(10, -1, -1)]


@resumes
def compare(
    config: Annotated[str, typer.Argument(help="A YAML file, a preset such as rmd17-ethanol, or data.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: runs/compare-NAME, with --quick runs/compare-NAME-quick.")
    ] = None,
    arms: Arms = "standard,relaxed",
    seeds: Seeds = "0,1,2",
    override: Override = None,
    jobs: Jobs = 0,
    threads: Threads = 1,
    ranks: RanksOfRun = 1,
    launcher: Launcher = "local",
    slurm: Slurm = None,
    quick: Annotated[bool, typer.Option(help="In miniature: two seeds of a few hundred steps, in minutes.")] = False,
    only_report: OnlyReport = False,
) -> None:
    """Train arms that differ in chosen keys only, with the same seeds, data and steps, and report the differences."""
    from mdrelax.analysis.studies.forces import STUDY
    from mdrelax.analysis.studies.study import split_arms
    from mdrelax.base.files import locked_folder
    from mdrelax.cli.train import run_name
    from mdrelax.runs.inputs import open_config, whole_numbers

    changes = [*(QUICK if quick else []), *(override or [])]
    base = open_config(config, changes).model_dump(mode="json")
    numbers = [0, 1] if quick else whole_numbers("--seeds", seeds)
    runs = STUDY.plan(base, arms=split_arms(arms), seeds=numbers)
    folder = out or Path("runs") / f"compare-{run_name(config)}{'-quick' if quick else ''}"
    crew = workers(folder, jobs=jobs, threads=threads, ranks=ranks, launcher=launcher, slurm=slurm)
    with contextlib.nullcontext() if only_report else locked_folder(folder):
        typer.echo(f"{len(runs)} runs in {folder}")
        try:
            if not only_report:
                STUDY.run(runs, folder, **crew._asdict(), tell=typer.echo)
        finally:  # also if some failed or the user interrupts: report the others
            _write(folder, runs)


def _write(folder: Path, runs: "list[Run]") -> None:
    """Tables and report of the finished runs; prints the verdict and the files."""
    from mdrelax.analysis.studies.forces import FORCES, STUDY
    from mdrelax.analysis.studies.forces_report import unstable, write_report
    from mdrelax.analysis.studies.measures import verdict
    from mdrelax.base.provenance import command_line

    done = STUDY.finished(runs, folder)
    if not done:
        typer.echo("No run of this plan has finished yet; the same command resumes it.")
        return
    names = {each.run.name for each in done}
    unfinished = [run.name for run in runs if run.name not in names]
    written = STUDY.write(folder, done, unfinished=unfinished, command=command_line())
    path = write_report(folder, done, written, planned=len(runs), gaps=_gaps(folder, done), command=command_line())
    part = written.summary.judged_by.iloc[0]
    errors = [f"{part}_{name}" for name in ("forces", "forces_std", "energy", "energy_std")]
    shown = written.summary[["arm", "seeds", *errors, "cpu_minutes"]]
    tell_table(shown, ".2f", missing="")
    typer.echo(verdict(written.summary, FORCES))
    if broken := unstable(written.table):
        typer.echo(f"UNSTABLE in NVE (exploded, or a bond broke): {', '.join(broken)}.")
    typer.echo(f"Report: {path}")


def _gaps(folder: Path, done: "list[Done]") -> "dict[str, list[pd.DataFrame]]":
    """The projection gap of every finished relaxed run; each is measured once and stored in its folder."""
    import pandas as pd

    from mdrelax import potentials
    from mdrelax.runs.checkpoints import projection_gap

    gaps: dict[str, list[pd.DataFrame]] = {}
    for run, _ in done:
        place = folder / run.name
        if not (place / "layers.csv").is_file():
            continue
        path = place / "projection_gap.csv"
        if not path.is_file():
            write_text(path, projection_gap(place, THETAS, potentials).to_csv(index=False))
        gaps.setdefault(run.factors["arm"], []).append(pd.read_csv(path))
    return gaps
