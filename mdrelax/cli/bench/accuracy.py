"""`mdrelax bench accuracy`: our networks and other packages', trained for the same CPU time on the same frames."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdrelax.cli.bench.studies import has_compiler, train_and_tell
from mdrelax.cli.ending import resumes
from mdrelax.cli.options import Compile, Jobs, Molecules, OnlyReport, Override, ResultsFolder, Rmd17Folder, Seeds

if TYPE_CHECKING:
    from mdrelax.analysis.benchmarks.accuracy import AccuracyRun, Inputs

QUICK_MODELS = "equiformer-tiny,mace,nequip,tensornet,painn"
QUICK_HOURS = 0.002  # CPU-hours


@resumes
def accuracy(
    data: Rmd17Folder = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/accuracy"),
    results: ResultsFolder = None,
    molecules: Molecules = "ethanol,aspirin",
    budgets: Annotated[str, typer.Option(help="Comma-separated CPU-hours of a run.")] = "0.25,1,4",
    models: Annotated[
        str, typer.Option(help="Comma-separated: equiformer-small, segnn-tiny:relaxed, ..., or other packages'.")
    ] = "equiformer-small,equiformer-tiny,mace,nequip,tensornet,painn",
    seeds: Seeds = "0",
    override: Override = None,
    venvs: Annotated[
        Path, typer.Option(envvar="MDRELAX_PEERS", help="Folder with a virtual environment for each other package.")
    ] = Path(".peers"),
    jobs: Jobs = 0,
    compile: Compile = None,
    times: Annotated[
        bool,
        typer.Option(help="Train nothing: time MD steps of the models, in turns; with --compile ours compiled, too."),
    ] = False,
    quick: Annotated[bool, typer.Option(help="In miniature on the shipped ethanol, in a few minutes.")] = False,
    only_report: OnlyReport = False,
) -> None:
    """Train our networks and other packages' for the same CPU time; compare errors, MD steps and parameters."""
    from mdrelax.analysis.benchmarks import accuracy as benchmark
    from mdrelax.analysis.benchmarks.accuracy_report import write_accuracy
    from mdrelax.runs.inputs import numbers_of, whole_numbers

    place = results or out / "results"
    if only_report:
        train_and_tell(lambda: None, lambda: write_accuracy(place), f"Results in {place}", folder=out)
        return
    hours, names = [QUICK_HOURS] if quick else numbers_of("--budgets", budgets), molecules.split(",")
    names = ["ethanol"] if quick else names
    chosen = (QUICK_MODELS if quick else models).split(",")
    runs = benchmark.planned(names, chosen, hours, whole_numbers("--seeds", seeds)[: 1 if quick else None])
    compiled = not quick and (has_compiler() if compile is None else compile)
    sizes = benchmark.QUICK if quick else benchmark.Sizes()
    inputs = benchmark.Inputs(data, venvs, sizes, compiled, override or [], sample=quick)

    def work() -> None:
        if not times:
            _train(runs, out, place, inputs, jobs)
        if times or quick:
            _time(names, chosen, place, venvs, quick=quick, compiled=bool(compile))

    def write() -> list[Path]:
        only_times = times and not benchmark.read_results(place)
        return sorted(place.glob("times-*.json")) if only_times else write_accuracy(place)

    said = "MD steps" if times else f"{len(runs)} runs in {out}"
    train_and_tell(work, write, f"{said}, results in {place}", folder=out)


def _train(runs: "list[AccuracyRun]", out: Path, results: Path, inputs: "Inputs", jobs: int) -> None:
    from mdrelax.analysis.benchmarks.accuracy import run_all
    from mdrelax.base.provenance import command_line
    from mdrelax.runs.jobs import cores

    run_all(runs, out, results, inputs, jobs=jobs or cores(), command=command_line(), tell=typer.echo)


def _time(molecules: list[str], models: list[str], results: Path, venvs: Path, *, quick: bool, compiled: bool) -> None:
    from mdrelax.analysis.benchmarks.accuracy_times import measure_times
    from mdrelax.analysis.benchmarks.interleaved import Rules
    from mdrelax.analysis.benchmarks.speed import memory_rules
    from mdrelax.base.provenance import command_line

    repeats, seconds = (5, 2.0) if quick else (50, 20.0)
    rules = Rules(repeats=repeats, seconds=seconds, dtype="float32", **memory_rules())
    measure_times(
        molecules, models, results, venvs=venvs, rules=rules, command=command_line(), compiled=compiled, tell=typer.echo
    )
