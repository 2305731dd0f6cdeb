"""`mdrelax bench smoothness`: force constants of trained networks where symmetry makes vectors vanish."""

import warnings
from pathlib import Path
from typing import Annotated

import typer

from mdrelax.cli.ending import resumes
from mdrelax.cli.options import Jobs, Launcher, RanksOfRun, Seeds, Slurm, Threads, workers
from mdrelax.cli.output import keep_table, tell_table


@resumes
def smoothness(
    out: Annotated[Path, typer.Option(help="Folder for the runs, smoothness.csv, .json and .png.")] = Path(
        "runs/smoothness"
    ),
    networks: Annotated[
        str, typer.Option(help="Comma-separated; `:separable` is the published layer norm, `:joint` the smooth one.")
    ] = "equiformer,equiformer:separable,segnn,segnn:joint,equiformer-pytorch,equiformer-pytorch:separable",
    seeds: Seeds = "0",
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1000,
    jobs: Jobs = 0,
    threads: Threads = 1,
    ranks: RanksOfRun = 1,
    launcher: Launcher = "local",
    slurm: Slurm = None,
) -> None:
    """Train networks on EMT copper and measure k(d) = -F/d in the perfect crystal, which must not depend on d."""
    from mdrelax.analysis.benchmarks import smoothness as benchmark
    from mdrelax.analysis.drawing import save
    from mdrelax.base.files import locked_folder
    from mdrelax.modelfile import RoughPotentialWarning
    from mdrelax.runs.inputs import whole_numbers

    crew = workers(out, jobs=jobs, threads=threads, ranks=ranks, launcher=launcher, slurm=slurm)
    with locked_folder(out):
        trained = benchmark.train_on_copper(
            out, networks.split(","), seeds=whole_numbers("--seeds", seeds), steps=steps, **crew._asdict(),
            tell=typer.echo,
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RoughPotentialWarning)  # roughness is the measured quantity
        table = benchmark.smoothness_table(out, trained)
    tell_table(table)
    work = f"{steps} steps on {benchmark.N_FRAMES} frames of 32 Cu atoms labelled by EMT; k in eV/A^2"
    keep_table(table, out, work=work, name="smoothness")
    save(out / "smoothness.png", lambda: benchmark.draw_smoothness(table))
    typer.echo(out / "smoothness.png")
