"""`mdrelax bench smoke`: plumes with imperfect symmetry, networks with exact, relaxed and without symmetry."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdrelax.cli.bench.studies import changes_of, report_pack_study, run_pack_study, say_validation
from mdrelax.cli.ending import resumes
from mdrelax.cli.options import Epochs, Jobs, Launcher, OnlyReport, Override, RanksOfRun, Seeds, Slurm, Threads, workers
from mdrelax.cli.output import keep_table, tell_table

if TYPE_CHECKING:
    from mdrelax.analysis.studies.run_files import Run

TABLE = "mlp,conv,equiv,rpp,lift,rsteer,rsteer-relaxed"
QUICK = [  # in miniature: the shipped set and tiny networks
    "preset=tiny", "n_train=null", "n_validation=null", "n_test=24", "training.epochs=30", "training.batch_size=8",
    "training.learning_rate=0.003", "training.validate_every=20", "training.norm_batches=4",
]  # fmt: skip


@resumes
def smoke(
    data: Annotated[
        str, typer.Option(help="Comma-separated sets: files of `mdrelax data generate plume`, or published folders.")
    ] = "sample:plume",
    out: Annotated[Path, typer.Option(help="Folder of the study: a folder per run, tables and figures.")] = Path(
        "runs/smoke"
    ),
    arms: Annotated[
        str, typer.Option(help="Comma-separated; `table` for the rows of the paper, `all` for every one.")
    ] = "table",
    seeds: Seeds = "0",
    levels: Annotated[str, typer.Option(help="Of a graded set: comma-separated levels.")] = "0,1,2,3,4,5,6,7,8,9",
    epochs: Epochs = None,
    recipe: Annotated[str, typer.Option(help="small (for one core) or published.")] = "small",
    override: Override = None,
    jobs: Jobs = 0,
    threads: Threads = 1,
    ranks: RanksOfRun = 1,
    launcher: Launcher = "local",
    slurm: Slurm = None,
    quick: Annotated[bool, typer.Option(help="Every arm in miniature on the shipped set, in a few minutes.")] = False,
    only_report: OnlyReport = False,
) -> None:
    """Train networks to predict plumes; write tables, figures and animations."""
    from mdrelax.analysis.studies import smoke as study
    from mdrelax.runs.inputs import whole_numbers

    if only_report:
        report_pack_study(study, out)
        return
    crew = workers(out, jobs=jobs, threads=threads, ranks=ranks, launcher=launcher, slurm=slurm)
    chosen = list(study.STUDY.arms) if arms == "all" or quick else (TABLE if arms == "table" else arms).split(",")
    changes = changes_of(QUICK if quick else [], epochs, override)
    numbers = whole_numbers("--seeds", seeds)[: 1 if quick else None]
    runs = [
        run
        for source in data.split(",")
        for run in _runs(source, chosen, numbers, whole_numbers("--levels", levels), recipe, changes)
    ]
    run_pack_study(study, runs, out, crew)


def _runs(
    source: str, arms: list[str], seeds: list[int], levels: list[int], size: str, changes: list[str]
) -> "list[Run]":
    """The runs of one set, or of some levels of a graded one; Lift has no form for scalings."""
    from mdrelax.analysis.studies import smoke as study
    from mdrelax.datasets.plume_files import open_plumes
    from mdrelax.packs.recipes import recipe

    kind = open_plumes(source).kind
    base = {**recipe("smoke", kind, size), "data": source}
    own = [arm for arm in arms if kind != "scale" or arm != "lift"]
    runs: list[Run] = []
    for level in levels if kind == "graded" else [None]:
        names = {"set": [study.set_name(source, level)]}
        document = {**base, "level": level}
        runs += study.STUDY.plan(document, arms=own, seeds=seeds, levels=names, overrides=changes)
    return runs


@resumes
def smoke_run(folder: Annotated[Path, typer.Argument(help="A prepared run folder with its run.yaml.")]) -> None:
    """One run of the smoke benchmark, from its folder's run.yaml."""
    from mdrelax.packs.smoke.run import SmokeRun, run_smoke
    from mdrelax.training.folders import load_run

    run_smoke(load_run(SmokeRun, folder), folder, listener=say_validation)


def smoke_speed(
    out: Annotated[Path, typer.Option(help="Folder for smoke.csv and smoke.json.")] = Path("runs/speed"),
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each form that are timed, in turns.")] = 5,
    preset: Annotated[str, typer.Option(help="The network's size: published, small or tiny.")] = "published",
    batch_size: Annotated[int, typer.Option(min=1, help="Windows in a training step.")] = 16,
    frames: Annotated[int, typer.Option(min=1, help="Frames that a step predicts.")] = 6,
) -> None:
    """Time a training step of RSteer: the published form, ours, and relaxed."""
    from mdrelax.analysis.benchmarks.smoke import smoke_times

    table = smoke_times(preset, batch_size=batch_size, n_frames=frames, repeats=repeats, tell=typer.echo)
    tell_table(table, ".4g")
    work = f"a training step of RSteer ({preset}) on {batch_size} windows of 64 x 64 cells, {frames} frames, backward"
    keep_table(table, out, work=work, name="smoke")
