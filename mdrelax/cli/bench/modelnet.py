"""`mdrelax bench modelnet`: the paper's point clouds, standard and relaxed, with ablations and comparators."""

from pathlib import Path
from typing import Annotated

import typer

from mdrelax.cli.bench.studies import changes_of, report_pack_study, run_pack_study, say_validation
from mdrelax.cli.ending import resumes
from mdrelax.cli.options import (
    Epochs,
    Jobs,
    Launcher,
    OnlyReport,
    Override,
    RanksOfRun,
    Seeds,
    Slurm,
    Threads,
    workers,
)  # fmt: skip

ABLATIONS = "standard,relaxed,relaxed-weight,no-schedule,no-lie-penalty,no-penalty,ace,plain,equi-tuning,equiv-adapt"
QUICK = [  # in miniature: tiny networks and solids made here
    "preset=tiny", "n_points=96", "resample=false", "training.epochs=14", "training.batch_size=24",
    "training.learning_rate=0.01", "training.warmup_steps=10", "training.validate_every=60", "training.ema=0.9",
    "training.norm_batches=8", "n_test=80",
]  # fmt: skip


@resumes
def modelnet(
    data: Annotated[
        str, typer.Option(help="modelnet:solids, a fetched name (modelnet:10, modelnet:40), a folder or a zip file.")
    ] = "modelnet:solids",
    out: Annotated[Path, typer.Option(help="Folder of the study: a folder per run, tables and figures.")] = Path(
        "runs/modelnet"
    ),
    network: Annotated[str, typer.Option(help="vn-pointnet or vn-dgcnn.")] = "vn-pointnet",
    arms: Annotated[str, typer.Option(help="Comma-separated; `all` for every ablation and comparator.")] = (
        "standard,relaxed"
    ),
    seeds: Seeds = "0,1,2",
    lambdas: Annotated[str, typer.Option(help="Comma-separated penalty weights; none: the recipe's.")] = "",
    protocol: Annotated[str, typer.Option(help="Rotations in training/test: z/z, z/SO3 or SO3/SO3.")] = "SO3/SO3",
    epochs: Epochs = None,
    recipe: Annotated[str, typer.Option(help="small (for one core) or published.")] = "small",
    override: Override = None,
    jobs: Jobs = 0,
    threads: Threads = 1,
    ranks: RanksOfRun = 1,
    launcher: Launcher = "local",
    slurm: Slurm = None,
    quick: Annotated[bool, typer.Option(help="Every arm in miniature on solids made here, in a few minutes.")] = False,
    only_report: OnlyReport = False,
) -> None:
    """Train vector-neuron networks on rotated shapes, standard and relaxed; write tables and figures."""
    from mdrelax.analysis.studies import modelnet as study
    from mdrelax.datasets.modelnet import require_modelnet
    from mdrelax.packs.recipes import recipe as shipped
    from mdrelax.runs.inputs import numbers_of, whole_numbers

    if only_report:
        report_pack_study(study, out)
        return
    require_modelnet(data)
    crew = workers(out, jobs=jobs, threads=threads, ranks=ranks, launcher=launcher, slurm=slurm)
    base = {**shipped("modelnet", network, recipe), "data": data, "protocol": protocol}
    numbers = whole_numbers("--seeds", seeds)
    changes = changes_of(QUICK if quick else [], epochs, override)
    if quick:
        numbers, arms = numbers[:1], "all"
    weights = numbers_of("--lambdas", lambdas) if lambdas else [base["relaxation"]["weight"]]
    chosen = ABLATIONS if arms == "all" else arms
    runs = study.STUDY.plan(base, arms=chosen.split(","), seeds=numbers, levels={"penalty": weights}, overrides=changes)
    run_pack_study(study, runs, out, crew)


@resumes
def modelnet_run(folder: Annotated[Path, typer.Argument(help="A prepared run folder with its run.yaml.")]) -> None:
    """One run of the ModelNet benchmark, from its folder's run.yaml."""
    from mdrelax.packs.modelnet.run import ModelNetRun, run_modelnet
    from mdrelax.training.folders import load_run

    run_modelnet(load_run(ModelNetRun, folder), folder, listener=say_validation)
