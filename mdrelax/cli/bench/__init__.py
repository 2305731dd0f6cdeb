"""`mdrelax bench`: reproduce the benchmarks of the literature on this machine."""

import typer

from mdrelax.cli.bench import accuracy, engines, long_md, modelnet, pretrain, smoke, smoothness, speed, studies

app = typer.Typer(
    help="Benchmarks: N-body, ModelNet and smoke (the paper's), rMD17, pre-training, accuracy and speed.",
    no_args_is_help=True,
)
app.command()(accuracy.accuracy)
app.command()(modelnet.modelnet)
app.command(hidden=True)(modelnet.modelnet_run)
app.command()(smoke.smoke)
app.command(hidden=True)(smoke.smoke_run)
app.command()(smoke.smoke_speed)
app.command()(studies.nbody)
app.command(hidden=True)(studies.nbody_run)
app.command()(studies.nbody_md)
app.command()(studies.rmd17)
app.command()(pretrain.pretrain)
app.command()(speed.speed)
app.command()(speed.operators)
app.command()(speed.backbones)
app.command()(speed.ranks)
app.command()(speed.hessians)
app.command()(smoothness.smoothness)
app.command()(long_md.long_md)
app.command(hidden=True)(long_md.long_md_run)
app.command()(engines.lammps)
app.command()(engines.lammps_nve)
app.command()(engines.lammps_paper)
app.command()(engines.torch_sim)
