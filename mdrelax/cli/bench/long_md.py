"""`mdrelax bench long-md`: NVE and NPT over long times with trained networks, compiled and not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdrelax.cli.ending import resumes
from mdrelax.cli.options import Jobs, OnlyReport
from mdrelax.cli.output import refuse, write_text

if TYPE_CHECKING:
    from mdrelax.analysis.benchmarks.long_md import Inputs
    from mdrelax.analysis.benchmarks.long_run import LongRun


@resumes
def long_md(
    data: Annotated[
        Path | None, typer.Option(help="Folder with rmd17_MOLECULE_train_01.npz and _test_01.npz; default: fetched.")
    ] = None,
    silicon: Annotated[Path | None, typer.Option(help="extxyz of silicon with forces and stress.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="SYSTEM=FILE: do not train the network of this crystal.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for data, models and runs; everything in it resumes.")] = Path(
        "runs/long-md"
    ),
    results: Annotated[Path | None, typer.Option(help="Folder of result files; default: OUT/results.")] = None,
    systems: Annotated[str, typer.Option(help="Comma-separated; default: ten molecules and silicon.")] = "",
    temperatures: Annotated[str, typer.Option(help="Comma-separated whole numbers, K.")] = "300,500",
    picoseconds: Annotated[float, typer.Option("--ps", help="Length of compiled NVE runs.")] = 100.0,
    plain_ps: Annotated[float, typer.Option(help="Length of NVE runs that are not compiled.")] = 100.0,
    npt_ps: Annotated[float, typer.Option(help="Length of the NPT run.")] = 20.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each training.")] = 2000,
    jobs: Jobs = 1,
    quick: Annotated[
        bool,
        typer.Option(help="The chain in miniature, in a minute, with hardly trained networks."),
    ] = False,
    only_report: OnlyReport = False,
) -> None:
    """Run MD for 100 ps and check energy, bonds, centre of mass, angular momentum, memory and open files."""
    from mdrelax.analysis.benchmarks import long_md as study
    from mdrelax.runs.inputs import whole_numbers
    from mdrelax.runs.jobs import cores

    place = results or out / "results"
    if not only_report:
        chosen = systems.split(",") if systems else [*study.MOLECULES, "silicon"]
        degrees = [float(t) for t in whole_numbers("--temperatures", temperatures)]
        if quick:
            chosen, degrees, steps, picoseconds, plain_ps, npt_ps = list(study.QUICK), [300.0], 30, 0.02, 0.02, 0.02
        runs = study.planned(
            chosen, degrees, ps=picoseconds, plain_ps=plain_ps, npt_ps=npt_ps, compiled=not quick
        )  # fmt: skip
        models = dict(_pair(text) for text in model or [])
        _run(runs, out, place, study.Inputs(data, silicon, models, steps, jobs or cores()))
    text = study.page(study.read_results(place))
    write_text(place / "long-md.md", text)
    typer.echo(text)


def _run(runs: "list[LongRun]", out: Path, results: Path, inputs: "Inputs") -> None:
    from mdrelax.analysis.benchmarks.long_md import run_all
    from mdrelax.base.files import locked_folder
    from mdrelax.base.provenance import command_line
    from mdrelax.runs.jobs import ONE_THREAD_EACH

    with locked_folder(out):
        run_all(runs, out, results, inputs, start=ONE_THREAD_EACH, command=command_line(), tell=typer.echo)


def _settings(text: str) -> "LongRun":
    """The settings of a run; raises ``ConfigError``."""
    from pydantic import TypeAdapter, ValidationError

    from mdrelax.analysis.benchmarks.long_run import LongRun

    try:
        return TypeAdapter(LongRun).validate_json(text)
    except ValidationError as error:
        reason = error.errors()[0]
        place = "".join(f"{name}: " for name in reason["loc"])
        refuse(
            "`SETTINGS` must be the settings of one run as JSON, which `mdrelax bench long-md` makes, got "
            f"`{text}` ({place}{reason['msg'][:1].lower()}{reason['msg'][1:]})."
        )


def _pair(text: str) -> tuple[str, Path]:
    """System and file of a `--model`; raises ``ConfigError``."""
    name, equals, path = text.partition("=")
    if not equals or not Path(path).is_file():
        refuse(f"`--model` wants SYSTEM=FILE with the name of a model file, got `{text}`.")
    return name, Path(path)


@resumes
def long_md_run(
    settings: Annotated[str, typer.Argument(help="The settings as JSON.")],
    model: Annotated[Path, typer.Argument(help="A model file, .pt2 if the settings say so.")],
    structure: Annotated[Path, typer.Argument(help="The structure to begin with.")],
    folder: Annotated[Path, typer.Argument(help="The folder of the run.")],
) -> None:
    """One run of `mdrelax bench long-md`."""
    import json

    from mdrelax.analysis.benchmarks.long_run import long_run
    from mdrelax.base.files import locked_folder

    run = _settings(settings)
    with locked_folder(folder):
        result = long_run(run, model, structure, folder)
    typer.echo(json.dumps({key: value for key, value in result.items() if key != "environment"}))
