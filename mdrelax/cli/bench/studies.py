"""`mdrelax bench nbody` and `rmd17`: the comparisons of the literature, run again on this machine."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mdrelax.training.trainer import Progress

QUICK = [  # a miniature: eight runs that learn something, in two minutes on two cores
    "training.epochs=60", "training.batch_size=50", "training.validate_every=15", "training.warmup_steps=20",
    "training.ema=0.99", "n_validation=200", "n_test=200",
]  # fmt: skip


def nbody(
    out: Annotated[Path, typer.Option(help="Folder of the study: a folder a run, tables and figures.")] = Path(
        "runs/nbody"
    ),
    arms: Annotated[str, typer.Option(help="Comma-separated: standard, relaxed, relaxed-weight, ...")] = (
        "standard,relaxed"
    ),
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds, each a run of every arm.")] = "0,1,2",
    layers: Annotated[str, typer.Option(help="Comma-separated numbers of layers.")] = "4",
    train_sizes: Annotated[str, typer.Option(help="Comma-separated numbers of training trajectories.")] = "3000",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set; the default is the recipe's.")] = (
        None
    ),
    recipe: Annotated[str, typer.Option(help="tuned (ours, found on validation data) or published.")] = "tuned",
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value, any number of times.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Runs side by side, one thread each; 0: one a core.")] = 0,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; default: where a C++ compiler is.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="The whole thing in miniature, in a few minutes.")] = False,
) -> None:
    """Train SEGNN on the N-body task, standard against relaxed: tables, figures, statistics."""
    from mdrelax.analysis.studies import nbody_grid
    from mdrelax.analysis.studies.nbody_grid import Grid, plan, run_all
    from mdrelax.base.files import locked_folder
    from mdrelax.runs.inputs import whole_numbers
    from mdrelax.runs.jobs import cores

    base: dict[str, Any] = {**nbody_grid.recipe(recipe), "compile": _has_compiler() if compile is None else compile}
    grid = Grid(arms.split(","), whole_numbers("--seeds", seeds), whole_numbers("--layers", layers),
                whole_numbers("--train-sizes", train_sizes))  # fmt: skip
    changes = [*(QUICK if quick else []), *([f"training.epochs={epochs}"] if epochs else []), *(override or [])]
    if quick:
        base["compile"] = bool(compile)
        grid = grid._replace(seeds=grid.seeds[:1], layers=(1, 2), train_sizes=(200, 400))
    runs = plan(grid, base=base, overrides=changes)
    with locked_folder(out):
        typer.echo(f"{len(runs)} runs in {out}")
        try:
            run_all(runs, out, jobs=jobs or cores(), tell=typer.echo)
        except RuntimeError:  # some failed; what the others found is not lost
            with contextlib.suppress(ValueError):
                _write_study(out)
            raise
        _write_study(out)


def nbody_run(folder: Annotated[Path, typer.Argument(help="A prepared run folder with its run.yaml.")]) -> None:
    """One run of the N-body benchmark, from its folder's run.yaml."""
    from mdrelax.packs.nbody.run import load_run, run_nbody

    def listen(progress: "Progress") -> None:
        if progress.row is not None:
            typer.echo(f"step {progress.step}/{progress.n_steps} {json.dumps(progress.row)}")

    run_nbody(load_run(folder), folder, listener=listen)


def nbody_md(
    model: Annotated[Path, typer.Argument(help="A model file trained on nbody:SYSTEM.")],
    out: Annotated[Path, typer.Option(help="Folder for dynamics.csv, dynamics.json and dynamics.png.")] = Path(
        "runs/nbody-md"
    ),
    system: Annotated[str, typer.Option(help="charged, gravity or springs.")] = "charged",
    starts: Annotated[int, typer.Option(help="Trajectories, each from a start that no training set holds.")] = 10,
    duration: Annotated[float, typer.Option(help="Length in the simulator's unit of time (10.18 fs).")] = 2.0,
) -> None:
    """Move particles with a trained force field and with the simulator, and compare."""
    from mdrelax.analysis.studies.nbody_dynamics import write_comparison
    from mdrelax.base.provenance import command_line
    from mdrelax.engines.ase import MDRelaxCalculator

    calculator = MDRelaxCalculator.from_file(model)
    for line in write_comparison(calculator, system, out, n_starts=starts, duration=duration, command=command_line()):
        typer.echo(line)


def rmd17(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with rmd17_MOLECULE_train_01.npz and _test_01.npz; default: fetched trajectories."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("runs/rmd17"),
    results: Annotated[
        Path | None, typer.Option(help="Folder of result files and tables; runs that have one there are not repeated.")
    ] = None,
    molecules: Annotated[str, typer.Option(help="Comma-separated: ethanol, malonaldehyde, uracil, aspirin.")] = (
        "ethanol,malonaldehyde,uracil,aspirin"
    ),
    arms: Annotated[str, typer.Option(help="As in `mdrelax compare`.")] = "standard,relaxed",
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds, each a run of every arm and molecule.")] = "0,1",
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value for all runs.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Runs side by side, one thread each; 0: one a core.")] = 0,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; default: where a C++ compiler is.")
    ] = None,
    only_report: Annotated[bool, typer.Option(help="Train nothing: write the tables of the result files.")] = False,
) -> None:
    """Train on molecules of rMD17, standard against relaxed, an hour a run and more: tables beside published errors."""
    from mdrelax.analysis.studies.compare import split_arms
    from mdrelax.analysis.studies.rmd17 import plan_study, run_study, write_study
    from mdrelax.base.files import locked_folder
    from mdrelax.base.provenance import command_line
    from mdrelax.runs.inputs import open_config, whole_numbers
    from mdrelax.runs.jobs import cores

    place = results or out / "results"
    base = open_config("rmd17-ethanol", []).model_dump(mode="json")
    if not only_report:
        runs = plan_study(
            base, molecules=molecules.split(","), arms=split_arms(arms), seeds=whole_numbers("--seeds", seeds),
            data=data,
            overrides=[f"training.compile={_has_compiler() if compile is None else compile}", *(override or [])],
        )  # fmt: skip
        with locked_folder(out):
            typer.echo(f"{len(runs)} runs in {out}, their results in {place}")
            try:
                run_study(runs, out, place, jobs=jobs or cores(), command=command_line(), tell=typer.echo)
            except RuntimeError:  # some failed; what the others found is not lost
                with contextlib.suppress(ValueError):
                    write_study(place)
                raise
    _tell_study(place, write_study(place))


def _write_study(folder: Path) -> None:
    """Tables and figures of the finished runs in a folder; says the summary and the files."""
    from mdrelax.analysis.studies.nbody_study import write_study
    from mdrelax.base.provenance import command_line

    _tell_study(folder, write_study(folder, command=command_line()))


def _tell_study(folder: Path, paths: "Sequence[Path]") -> None:
    typer.echo("\n" + (folder / "study.md").read_text(encoding="utf-8"))
    for path in paths:
        typer.echo(path)


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))
