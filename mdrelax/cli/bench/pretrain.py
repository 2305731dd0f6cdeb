"""`mdrelax bench pretrain`: what pre-training on xTB labels is worth, for few and for many DFT frames."""

from pathlib import Path
from typing import Annotated, Any

import typer

from mdrelax.cli.bench.studies import has_compiler, report_pack_study, run_pack_study
from mdrelax.cli.ending import resumes
from mdrelax.cli.options import (
    Compile,
    Jobs,
    Launcher,
    Molecules,
    OnlyReport,
    Override,
    RanksOfRun,
    Rmd17Folder,
    Seeds,
    Slurm,
    Threads,
    workers,
)  # fmt: skip

QUICK = [  # in miniature: the shipped frames and the smallest network
    "data.source=sample:ethanol", "data.validation=20", "data.test=100", "potential.preset=tiny", "training.steps=150",
    "pretrain.steps=100", "pretrain.frames=200", "pretrain.burst_frames=10", "training.validate_every=25",
    "training.warmup_steps=10", "training.ema=0.99", "training.learning_rate=0.005",
]  # fmt: skip


@resumes
def pretrain(
    data: Rmd17Folder = None,
    out: Annotated[Path, typer.Option(help="Folder of the study: a folder per run, tables and figure.")] = Path(
        "runs/pretrain"
    ),
    molecules: Molecules = "ethanol,malonaldehyde,uracil,aspirin",
    sizes: Annotated[str, typer.Option(help="Comma-separated numbers of DFT frames to train on.")] = (
        "50,100,200,450,950"
    ),
    arms: Annotated[str, typer.Option(help="Comma-separated: scratch, scratch-long, pre-trained.")] = (
        "scratch,scratch-long,pre-trained"
    ),
    seeds: Seeds = "0",
    override: Override = None,
    jobs: Jobs = 0,
    threads: Threads = 1,
    ranks: RanksOfRun = 1,
    launcher: Launcher = "local",
    slurm: Slurm = None,
    compile: Compile = None,
    quick: Annotated[bool, typer.Option(help="In miniature on the shipped ethanol, in a few minutes.")] = False,
    only_report: OnlyReport = False,
) -> None:
    """Train with and without pre-training on xTB labels, at equal budgets; write learning curves, table and figure."""
    from mdrelax.analysis.studies import pretrain as study
    from mdrelax.runs.inputs import open_config, whole_numbers

    if only_report:
        report_pack_study(study, out)
        return
    crew = workers(out, jobs=jobs, threads=threads, ranks=ranks, launcher=launcher, slurm=slurm)
    compiled = not quick and (has_compiler() if compile is None else compile)
    levels: dict[str, list[Any]] = {"molecule": molecules.split(","), "n_train": whole_numbers("--sizes", sizes)}
    if quick:
        levels = {"molecule": ["ethanol"], "n_train": [20, 50]}
    runs = study.study_of(None if quick else data).plan(
        open_config("rmd17-ethanol", []).model_dump(mode="json"),
        arms=arms.split(","), seeds=whole_numbers("--seeds", seeds)[: 1 if quick else None], levels=levels,
        overrides=[*study.BASE, f"training.compile={compiled}", *(QUICK if quick else []), *(override or [])],
    )  # fmt: skip
    run_pack_study(study, runs, out, crew)
