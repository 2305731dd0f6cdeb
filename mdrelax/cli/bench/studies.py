"""`mdrelax bench nbody` and `rmd17`: reproduce the comparisons of the literature on this machine."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdrelax.cli.ending import resumes
from mdrelax.cli.options import (
    Arms,
    Compile,
    Epochs,
    Jobs,
    Launcher,
    Molecules,
    OnlyReport,
    Override,
    RanksOfRun,
    ResultsFolder,
    Rmd17Folder,
    Seeds,
    Slurm,
    Threads,
    Workers,
    workers,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable

    from mdrelax.analysis.studies.run_files import Run
    from mdrelax.analysis.studies.study import PackStudy
    from mdrelax.training.trainer import Progress

QUICK = [  # in miniature: eight short but meaningful runs, two minutes on two cores
    "training.epochs=60", "training.batch_size=50", "training.validate_every=15", "training.warmup_steps=20",
    "training.ema=0.99", "n_validation=200", "n_test=200",
]  # fmt: skip


@resumes
def nbody(
    out: Annotated[Path, typer.Option(help="Folder of the study: a folder per run, tables and figures.")] = Path(
        "runs/nbody"
    ),
    arms: Annotated[str, typer.Option(help="Comma-separated: standard, relaxed, relaxed-weight, ...")] = (
        "standard,relaxed"
    ),
    seeds: Seeds = "0,1,2",
    layers: Annotated[str, typer.Option(help="Comma-separated numbers of layers.")] = "4",
    train_sizes: Annotated[str, typer.Option(help="Comma-separated numbers of training trajectories.")] = "3000",
    epochs: Epochs = None,
    recipe: Annotated[
        str, typer.Option(help="tuned (ours, found on validation data), published, or ace, that of arXiv 2505.13631.")
    ] = "tuned",
    override: Override = None,
    jobs: Jobs = 0,
    threads: Threads = 1,
    ranks: RanksOfRun = 1,
    launcher: Launcher = "local",
    slurm: Slurm = None,
    compile: Compile = None,
    quick: Annotated[bool, typer.Option(help="The whole study in miniature, in a few minutes.")] = False,
) -> None:
    """Train standard and relaxed SEGNN on the N-body task; write tables, figures and statistics."""
    from mdrelax.analysis.studies import nbody as study
    from mdrelax.runs.inputs import whole_numbers

    crew = workers(out, jobs=jobs, threads=threads, ranks=ranks, launcher=launcher, slurm=slurm)
    base: dict[str, Any] = {**study.recipe(recipe), "compile": has_compiler() if compile is None else compile}
    numbers = whole_numbers("--seeds", seeds)
    levels = {"n_layers": whole_numbers("--layers", layers), "n_train": whole_numbers("--train-sizes", train_sizes)}
    changes = changes_of(QUICK if quick else [], epochs, override)
    if quick:
        base["compile"] = bool(compile)
        numbers, levels = numbers[:1], {"n_layers": [1, 2], "n_train": [200, 400]}
    runs = study.STUDY.plan(base, arms=arms.split(","), seeds=numbers, levels=levels, overrides=changes)
    run_pack_study(study, runs, out, crew)


@resumes
def nbody_run(folder: Annotated[Path, typer.Argument(help="A prepared run folder with its run.yaml.")]) -> None:
    """One run of the N-body benchmark, from its folder's run.yaml."""
    from mdrelax.packs.nbody.run import NBodyRun, run_nbody
    from mdrelax.training.folders import load_run

    run_nbody(load_run(NBodyRun, folder), folder, listener=say_validation)


def say_validation(progress: "Progress") -> None:
    """Print the row of metrics.csv after a validation."""
    if progress.row is not None:
        typer.echo(f"step {progress.step}/{progress.n_steps} {json.dumps(progress.row)}")


def nbody_md(
    model: Annotated[Path, typer.Argument(help="A model file trained on nbody:SYSTEM.")],
    out: Annotated[Path, typer.Option(help="Folder for dynamics.csv, dynamics.json and dynamics.png.")] = Path(
        "runs/nbody-md"
    ),
    system: Annotated[str, typer.Option(help="charged, gravity or springs.")] = "charged",
    starts: Annotated[int, typer.Option(min=1, help="Trajectories; no start is in a training set.")] = 10,
    duration: Annotated[float, typer.Option(min=0, help="Length in the simulator's unit of time (10.18 fs).")] = 2.0,
) -> None:
    """Simulate particles with a trained force field and with the exact potential, and compare."""
    from mdrelax.analysis.studies.nbody_dynamics import write_comparison
    from mdrelax.base.provenance import command_line
    from mdrelax.engines.ase import MDRelaxCalculator

    calculator = MDRelaxCalculator.from_file(model)
    for line in write_comparison(calculator, system, out, n_starts=starts, duration=duration, command=command_line()):
        typer.echo(line)


@resumes
def rmd17(
    data: Rmd17Folder = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/rmd17"),
    results: ResultsFolder = None,
    molecules: Molecules = "ethanol,malonaldehyde,uracil,aspirin",
    arms: Arms = "standard,relaxed",
    seeds: Seeds = "0,1",
    override: Override = None,
    jobs: Jobs = 0,
    threads: Threads = 1,
    ranks: RanksOfRun = 1,
    launcher: Launcher = "local",
    slurm: Slurm = None,
    compile: Compile = None,
    only_report: OnlyReport = False,
) -> None:
    """Train standard and relaxed networks on rMD17, an hour or more per run; compare with published errors."""
    from mdrelax.analysis.studies import rmd17 as study
    from mdrelax.analysis.studies.study import split_arms
    from mdrelax.base.provenance import command_line
    from mdrelax.runs.inputs import open_config, whole_numbers

    place = results or out / "results"
    if only_report:
        _tell_study(study.write_study(place))
        return
    crew = workers(out, jobs=jobs, threads=threads, ranks=ranks, launcher=launcher, slurm=slurm)
    runs = study.study_of(data).plan(
        open_config("rmd17-ethanol", []).model_dump(mode="json"),
        arms=split_arms(arms), seeds=whole_numbers("--seeds", seeds), levels={"molecule": molecules.split(",")},
        overrides=[f"training.compile={has_compiler() if compile is None else compile}", *(override or [])],
    )  # fmt: skip

    def train() -> None:
        study.run_study(runs, out, place, **crew._asdict(), command=command_line(), tell=typer.echo)

    train_and_tell(
        train, lambda: study.write_study(place), f"{len(runs)} runs in {out}, their results in {place}", folder=out
    )


def changes_of(quick: list[str], epochs: int | None, override: list[str] | None) -> list[str]:
    """The changes to a recipe, later ones win: those of ``--quick``, ``--epochs`` and ``-r``."""
    return [*quick, *([f"training.epochs={epochs}"] if epochs else []), *(override or [])]


def run_pack_study(study: "PackStudy", runs: "list[Run]", folder: Path, crew: Workers) -> None:
    """Train the unfinished runs of a task pack's study in a folder, then write and print tables and figures."""
    from mdrelax.base.provenance import command_line

    def train() -> None:
        study.STUDY.refuse_mixtures(runs, study.finished_runs(folder)[0])
        study.STUDY.run(runs, folder, **crew._asdict(), tell=typer.echo)

    def write() -> list[Path]:
        return study.write_study(folder, command=command_line())

    train_and_tell(train, write, f"{len(runs)} runs in {folder}", folder=folder)


def report_pack_study(study: "PackStudy", folder: Path) -> None:
    """Write and print tables and figures of the finished runs in a folder, without training any."""
    train_and_tell(lambda: None, lambda: study.write_study(folder), f"Runs in {folder}", folder=folder)


def train_and_tell(
    train: "Callable[[], None]", write: "Callable[[], list[Path]]", first_line: str, *, folder: Path
) -> None:
    """Train in the study's folder, then write and print tables and figures."""
    from mdrelax.base.files import locked_folder

    with locked_folder(folder):
        typer.echo(first_line)
        try:
            train()
        except RuntimeError:  # some failed; report the others
            with contextlib.suppress(ValueError):
                write()
            raise
        _tell_study(write())


def _tell_study(paths: "list[Path]") -> None:
    """The text of the report, which is the first of the files, and their names."""
    typer.echo("\n" + paths[0].read_text(encoding="utf-8"))
    for path in paths:
        typer.echo(path)


def has_compiler() -> bool:
    """Whether this machine can compile a training step."""
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))
