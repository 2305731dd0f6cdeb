"""`mdrelax bench`: the benchmarks of the literature, run again on this machine."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mdrelax.training import Progress

app = typer.Typer(help="Benchmarks: N-body (the paper's) and speed.", no_args_is_help=True)

QUICK = ["training.epochs=40", "training.validate_every=30", "n_validation=200", "n_test=200"]  # a miniature


@app.command()
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
    epochs: Annotated[int | None, typer.Option(help="Passes over the training set; the published number is 1000.")] = (
        None
    ),
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value, any number of times.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs side by side, one thread each; 0: one a core.")] = 0,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile; default: where a C++ compiler is.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="The whole thing in miniature, in a few minutes.")] = False,
) -> None:
    """Train SEGNN on the N-body task, standard against relaxed: tables, figures, statistics."""
    from mdrelax.analysis.benchmarks.nbody_grid import Grid, plan, recipe, run_all

    base: dict[str, Any] = {**recipe(), "compile": _has_compiler() if compile is None else compile}
    grid = Grid(arms.split(","), _numbers("--seeds", seeds), _numbers("--layers", layers),
                _numbers("--train-sizes", train_sizes))  # fmt: skip
    changes = [*(QUICK if quick else []), *([f"training.epochs={epochs}"] if epochs else []), *(override or [])]
    if quick:
        base["compile"] = bool(compile)
        grid = grid._replace(seeds=grid.seeds[:1], layers=(1, 2), train_sizes=(200, 400))
    runs = plan(grid, base=base, overrides=changes)
    typer.echo(f"{len(runs)} runs in {out}")
    run_all(runs, out, jobs=jobs or _cores(), tell=typer.echo)
    write_study(out)


@app.command(hidden=True)
def nbody_run(folder: Annotated[Path, typer.Argument(help="A prepared run folder with its run.yaml.")]) -> None:
    """One run of the N-body benchmark, from its folder's run.yaml."""
    from mdrelax.analysis.benchmarks.nbody_run import load_run, run_nbody

    def listen(progress: "Progress") -> None:
        if progress.row is not None:
            typer.echo(f"step {progress.step}/{progress.n_steps} {json.dumps(progress.row)}")

    run_nbody(load_run(folder), folder, listener=listen)


def write_study(folder: Path) -> None:
    """Tables and figures of the finished runs in a folder."""
    from mdrelax.analysis.benchmarks.nbody_grid import collect, summarize

    table = collect(folder)
    typer.echo(summarize(table).to_string(index=False))


def _numbers(option: str, text: str) -> list[int]:
    from mdrelax.config import ConfigError

    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"`{option}` wants whole numbers separated by commas, got `{text}`.") from error


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
