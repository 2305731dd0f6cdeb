"""Options shared by several subcommands, declared once, and the workers of a study that some of them describe."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
Rmd17Folder = Annotated[
    Path | None,
    typer.Option(help="Folder with rmd17_MOLECULE_train_01.npz and _test_01.npz; default: fetched trajectories."),
]
ResultsFolder = Annotated[
    Path | None, typer.Option(help="Folder of result files and tables; runs that have one there are not repeated.")
]
Molecules = Annotated[str, typer.Option(help="Comma-separated: ethanol, malonaldehyde, uracil, aspirin.")]
Seeds = Annotated[str, typer.Option(help="Comma-separated seeds; each arm runs with each seed in each setting.")]
Override = Annotated[list[str] | None, typer.Option("-r", help="section.key=value for all runs, any number of times.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the training set; the default is the recipe's.")]
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

LABEL_OPTIONS = {  # of ``mdrelax.datasets.load_frames``
    "format": "extxyz, md17 or ase, if the file's ending does not tell.",
    "labels": "rMD17 files: `revised` or `original` labels.",
    "energy_key": "extxyz: the key of the energies.",
    "forces_key": "extxyz: the key of the forces.",
    "stress_key": "extxyz: the key of the stress.",
    "energy_unit": "The file's unit of energy.",
    "length_unit": "The file's unit of length.",
    "forces_unit": "The file's unit of force, if not energy/length.",
    "stress_unit": "extxyz: the unit of stress, such as GPa, if not energy/length^3.",
    "forces_sign": "extxyz: `opposite` if the file's forces are gradients.",
    "stress_sign": "extxyz: `opposite` if compression is positive.",
}


def with_label_options(verb: Callable[..., None]) -> Callable[..., None]:
    """The subcommand with all ``LABEL_OPTIONS``, whose values it receives as the dict ``reading``."""
    own = inspect.signature(verb)
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(help=text)],
        )
        for name, text in LABEL_OPTIONS.items()
    ]
    kept = [parameter for name, parameter in own.parameters.items() if name != "reading"]
    signature = own.replace(parameters=[*kept, *options])

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        reading = {name: given.pop(name) for name in LABEL_OPTIONS}
        verb(**given, reading=reading)

    setattr(command, "__signature__", signature)  # noqa: B010 - where typer reads the options
    command.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return command


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
