"""Options shared by several subcommands, declared once, and the workers of a study that some of them describe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from mdrelax.runs.jobs import Start

Arms = Annotated[
    str,
    typer.Option(
        help="Comma-separated; the first is compared with. standard, relaxed, relaxed-weight, relaxed-fold, ... or "
        "your own, name:key=value;key=value."
    ),
]
Seeds = Annotated[str, typer.Option(help="Comma-separated seeds; each arm runs with each seed in each setting.")]
Override = Annotated[list[str] | None, typer.Option("-r", help="section.key=value for all runs, any number of times.")]
Jobs = Annotated[int, typer.Option(min=0, help="Number of parallel runs; 0: one per core, on Slurm all of them.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each run, on each of its ranks.")]
RanksOfRun = Annotated[int, typer.Option("--ranks", min=1, help="Processes that train each run together.")]
Launcher = Annotated[
    str, typer.Option(help="local: runs are processes of this machine; slurm: jobs in a queue (extra `slurm`).")
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE of sbatch for each job, any number of times: partition=cpu, time=600 (minutes), ..."),
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="torch.compile; default: if there is a C++ compiler.")
]
OnlyReport = Annotated[bool, typer.Option(help="Train nothing: write tables and report of the finished runs.")]

MOST_JOBS = 10_000  # in a queue at once


class Workers(NamedTuple):
    """How the runs of a study are started, and how many at a time."""

    jobs: int
    start: "Start"


def workers(folder: Path, *, jobs: int, threads: int, ranks: int, launcher: str, slurm: list[str] | None) -> Workers:
    """The workers that the options of a study in ``folder`` describe.

    Raises ``ConfigError`` for invalid options, and if torchrun, mpirun or srun started this command several times.
    """
    from mdrelax.base.sections import ConfigError
    from mdrelax.runs.jobs import Processes, cores
    from mdrelax.runs.slurm import SlurmJobs
    from mdrelax.training.ranks import launched

    if launched()[1] > 1:
        raise ConfigError(
            "A study starts the processes of its runs itself: run this command without torchrun; `--ranks N` trains "
            "each run on N processes."
        )
    if launcher not in ("local", "slurm"):
        raise ConfigError(f"`--launcher` must be local or slurm, got `{launcher}`.")
    if slurm and launcher != "slurm":
        raise ConfigError("`--slurm` has no effect on processes of this machine; add `--launcher slurm`.")
    if launcher == "slurm":
        start = SlurmJobs(folder / "submitit", threads=threads, ranks=ranks, options=slurm or [])
        return Workers(jobs or MOST_JOBS, start)
    return Workers(jobs or max(1, cores() // (threads * ranks)), Processes(threads=threads, ranks=ranks))
