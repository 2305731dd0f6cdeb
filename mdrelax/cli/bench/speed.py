"""`mdrelax bench speed`, `operators` and `backbones`: step times of each network and of other packages."""

from pathlib import Path
from typing import Annotated

import typer

from mdrelax.cli.options import Override
from mdrelax.cli.output import PRECISIONS, keep_table, one_of, refuse, tell_table


def speed(
    out: Annotated[Path, typer.Option(help="Folder for speed.csv, speed.json and speed.png.")] = Path("runs/speed"),
    cases: Annotated[
        str, typer.Option(help="Comma-separated names, * allowed: ethanol-b8, aspirin-*, md-*, nbody, import.")
    ] = "*",
    implementations: Annotated[
        str,
        typer.Option(
            "--implementations",
            "--contestants",
            help="Comma-separated names, * allowed: equiformer-*, *:relaxed, mace-128, ...",
        ),
    ] = "*",
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Time other packages too (`make peers`).")] = True,
    venvs: Annotated[
        Path, typer.Option(envvar="MDRELAX_PEERS", help="Folder with a virtual environment for each peer.")
    ] = Path(".peers"),
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each implementation that are timed, in turns.")] = 15,
    seconds: Annotated[
        float,
        typer.Option(min=0, help="An implementation stops after so many seconds of timed steps, not before three."),
    ] = 20.0,
    longest: Annotated[float, typer.Option(min=0, help="Seconds without a response that end a case.")] = 300.0,
    memory: Annotated[
        float | None,
        typer.Option(min=0, help="GB that an implementation may use, at most 70 % of the memory free otherwise."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each implementation; default: from the environment.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Time compiled networks too.")] = False,
    list_names: Annotated[bool, typer.Option("--list", help="Name the cases and implementations, and stop.")] = False,
) -> None:
    """Time training and MD steps of our networks and of other packages, all in turns in one run."""
    from mdrelax.analysis.benchmarks import implementations as who
    from mdrelax.analysis.benchmarks import speed as benchmark
    from mdrelax.analysis.benchmarks.interleaved import Rules
    from mdrelax.base.provenance import command_line

    settings = who.thread_settings(threads)
    chosen = who.implementations(
        implementations.split(","), peers=peers, venvs=venvs, compiled=compile, settings=settings
    )
    what = who.cases(cases.split(","))
    if list_names:
        typer.echo("cases: " + ", ".join(case.name for case in what))
        typer.echo("implementations: " + ", ".join(each.name for each in chosen))
        return
    one_of("--dtype", dtype, PRECISIONS)
    rules = Rules(repeats=repeats, seconds=seconds, dtype=dtype, **benchmark.memory_rules(memory))

    def write(result: benchmark.Speed) -> list[Path]:
        return benchmark.write_speed(result, out, command=command_line())

    result = benchmark.measure(
        what, chosen, rules=rules, settings=settings, longest=longest, tell=typer.echo, keep=write
    )
    typer.echo(benchmark.printed(result))
    for path in write(result):
        typer.echo(path)


def operators(
    out: Annotated[Path, typer.Option(help="Folder for operators.csv and operators.json.")] = Path("runs/speed"),
    case: Annotated[str, typer.Option(help="A training or MD case of `bench speed`.")] = "aspirin-b8",
    implementations: Annotated[
        str,
        typer.Option(
            "--implementations", "--contestants", help="Comma-separated names of our networks in `bench speed`."
        ),
    ] = ("equiformer-md17:plain,equiformer-md17"),
) -> None:
    """Show which torch operations a step spends its time on, in the plain e3nn form and the fast one."""
    from mdrelax.analysis.benchmarks.operators import operator_table

    table = operator_table(implementations.split(","), _case(case))
    tell_table(table, ".3g")
    keep_table(table, out, work=f"{case} of `bench speed`", name="operators")


def backbones(
    out: Annotated[Path, typer.Option(help="Folder for backbones.csv and backbones.json.")] = Path("runs/speed"),
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each kind that are timed, in turns.")] = 15,
    batch_size: Annotated[int, typer.Option(min=1, help="Ethanol molecules in a training step.")] = 5,
) -> None:
    """Time training and MD steps of every potential on ethanol, standard and relaxed."""
    from mdrelax.analysis.benchmarks.backbones import backbone_times

    table = backbone_times(batch_size=batch_size, repeats=repeats, tell=typer.echo)
    typer.echo(table.round(2).to_string())
    work = (
        f"energies and forces of {batch_size} ethanol molecules, squared errors, backward, Adam; or one MD step of one"
    )
    keep_table(table.reset_index(), out, work=work, name="backbones")


def ranks(
    source: Annotated[str, typer.Option(help="The molecule to train on: a file, or a name such as rmd17:aspirin.")] = (
        "rmd17:aspirin"
    ),
    out: Annotated[Path, typer.Option(help="Folder for ranks.csv and ranks.json.")] = Path("runs/speed"),
    processes: Annotated[int, typer.Option("--ranks", min=2, help="Number of processes to compare with one.")] = 2,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each process.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Number of trainings of each kind, in turns.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each training.")] = 10,
    override: Override = None,
) -> None:
    """Time training steps of one process and of several by torchrun: `small`, relaxed, batches of 32 molecules."""
    from mdrelax.analysis.benchmarks.ranks import ranks_config, time_ranks
    from mdrelax.runs.config import load_config
    from mdrelax.runs.inputs import load_parts

    config = ranks_config(source, steps=steps, overrides=override or [])
    load_parts(load_config(config).data)  # what it refuses is refused before processes start
    table = time_ranks(config, ranks=processes, rounds=rounds, threads=threads, tell=typer.echo)
    tell_table(table)
    size, name = config["training"]["batch_size"], config["potential"]["preset"]
    work = f"training steps of `{name}`, {size} structures of {Path(source).name}; {steps} steps in each round"
    keep_table(table, out, work=work, name="ranks")


def hessians(
    out: Annotated[Path, typer.Option(help="Folder for hessians.csv and hessians.json.")] = Path("runs/speed"),
    repeats: Annotated[int, typer.Option(min=1, help="Number of repetitions, in turns.")] = 5,
) -> None:
    """Time rows of Hessians: by automatic differentiation, and by central differences of the forces."""
    from mdrelax.analysis.benchmarks.hessians import hessian_times

    table = hessian_times(repeats=repeats, tell=typer.echo)
    work = "rows of the Hessian of untrained networks, float64: exact, and by central differences of the forces"
    keep_table(table, out, work=work, name="hessians")


def _case(name: str) -> str:
    from mdrelax.analysis.benchmarks.implementations import CASES
    from mdrelax.base.names import nearest_name

    known = [each for each, case in CASES.items() if case.kind in ("training", "md")]
    if name not in known:
        refuse(f"There is no case `{name}` to profile; {nearest_name(name, known)}")
    return name
