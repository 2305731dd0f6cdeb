"""`mdrelax bench lammps`, `lammps-nve` and `torch-sim`: cost and drift in other engines."""

from pathlib import Path
from typing import Annotated

import typer

from mdrelax.cli.ending import resumes
from mdrelax.cli.output import PRECISIONS, keep_table, one_of, refuse, tell_table


def lammps(
    out: Annotated[Path, typer.Option(help="Folder for lammps.csv, lammps.json and the inputs.")] = Path("runs/lammps"),
    sides: Annotated[str, typer.Option(help="Molecules of water along each side: 6 is 648 atoms, 33 is 107,811.")] = (
        "6,12,18,24,33"
    ),
    ranks: Annotated[str, typer.Option(help="Comma-separated numbers of MPI ranks.")] = "1,2",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed, after one that is not.")] = 5,
    halo: Annotated[str, typer.Option(help="exchange or wide.")] = "exchange",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
) -> None:
    """Measure time, ghosts and memory of LAMMPS with an untrained `tiny` Equiformer, by size and number of ranks."""
    from mdrelax.analysis.benchmarks.lammps import costs
    from mdrelax.runs.inputs import whole_numbers

    boxes, numbers = whole_numbers("--sides", sides), whole_numbers("--ranks", ranks)
    options = ["--halo", one_of("--halo", halo, ("exchange", "wide")), "--dtype", one_of("--dtype", dtype, PRECISIONS)]
    table = costs(boxes, numbers, out, steps=steps, options=options, tell=typer.echo)
    tell_table(table, ".4g")
    work = f"NVE steps of water with an untrained tiny Equiformer, {dtype}, {halo}"
    keep_table(table, out, work=work, name="lammps")


@resumes
def lammps_nve(
    out: Annotated[Path, typer.Option(help="Folder for states, energies and the table; a run in it resumes.")] = Path(
        "runs/lammps-nve"
    ),
    side: Annotated[int, typer.Option(min=1, help="Molecules of water along each side: 12 is 5,184 atoms.")] = 12,
    ranks: Annotated[int, typer.Option(min=1, help="MPI ranks of the LAMMPS run.")] = 2,
    picoseconds: Annotated[float, typer.Option("--ps", min=0, help="Length of each run.")] = 2.0,
    chunk: Annotated[int, typer.Option(min=10, help="Steps between stored states, a multiple of 10.")] = 200,
    model: Annotated[Path | None, typer.Option(help="A model of H and O; default: a small untrained one.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
) -> None:
    """Compare the energy drift of an NVE run of water in LAMMPS with that in ASE, from the same start."""
    from mdrelax.analysis.benchmarks.lammps import drifts

    one_of("--dtype", dtype, PRECISIONS)
    if chunk % 10:
        refuse(f"`--chunk` must be a multiple of 10, got {chunk}.")
    table = drifts(
        side, out, ranks=ranks, picoseconds=picoseconds, chunk=chunk, model=model, dtype=dtype, tell=typer.echo
    )
    tell_table(table, ".4g")
    keep_table(table, out, work=f"NVE of water, {dtype}, 1 fs, from lattice positions at 300 K", name="lammps-nve")


def torch_sim(
    out: Annotated[Path, typer.Option(help="Folder for torch-sim.csv and torch-sim.json.")] = Path("runs/torch-sim"),
    copies: Annotated[int, typer.Option(min=1, help="Ethanol molecules.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="NVE steps of each repetition.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, in turns.")] = 5,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
) -> None:
    """Time NVE of many molecules at once in torch-sim, and one by one in ASE."""
    one_of("--dtype", dtype, PRECISIONS)
    from mdrelax.analysis.benchmarks.torchsim import batching_gain

    table = batching_gain(out, copies=copies, steps=steps, repeats=repeats, dtype=dtype)
    tell_table(table, ".4g")
    work = f"NVE steps of ethanol with an untrained tiny Equiformer, {dtype}"
    keep_table(table, out, work=work, name="torch-sim")


def lammps_paper(
    per_gpu: Annotated[int, typer.Option(min=1, help="Atoms on each GPU.")] = 100_000,
    memory: Annotated[float, typer.Option("--kib", min=0, help="KiB of memory per atom, as in `bench lammps`.")] = (
        150.0
    ),
) -> None:
    """Compute, on paper, ghosts, traffic and memory of 10^6 to 10^9 atoms of water on GPUs."""
    from mdrelax.analysis.benchmarks.lammps import on_paper

    tell_table(on_paper([10**6, 10**7, 10**8, 10**9], per_gpu=per_gpu, memory_KiB=memory), ".3g")
