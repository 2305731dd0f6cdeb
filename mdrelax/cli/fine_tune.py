"""`mdrelax fine-tune`: train another package's network further and write a file that its own tools load."""

from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULTS: dict[str, Any] = {  # of a short fine-tuning; each can be replaced with -r
    "training": {
        "batch_size": 2, "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 10,
        "ema": 0.95, "validate_every": 50,
    },
    "relaxation": {"penalty_rows": 32},
}  # fmt: skip


def fine_tune(
    model: Annotated[str, typer.Argument(help="A name that the package knows, such as 7net-0, or one of its files.")],
    data: Annotated[str, typer.Argument(help="Labelled structures: a file, or the name of a data set.")],
    peer: Annotated[str, typer.Option(help="The package of the network: sevenn or mace.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/fine-tuned"),
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 200,
    rank: Annotated[int | None, typer.Option(help="Rank of the free maps where that saves parameters; 0: dense.")] = 16,
    standard: Annotated[bool, typer.Option("--standard", help="Do not relax the constraint.")] = False,
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value, any number of times.")] = None,
    restart: Annotated[str, typer.Option(help="`auto` resumes from the last checkpoint; `never` refuses.")] = "never",
) -> None:
    """Train a network of another package further, relaxed, project it, and write a file that its own tools load."""
    import torch

    from mdrelax.base.ambient import undisturbed
    from mdrelax.base.sections import ConfigError, load
    from mdrelax.peers.fine_tune import PeerFineTuning, fine_tune_peer

    if restart not in ("auto", "never"):
        raise ConfigError(f"`--restart` must be auto or never, got {restart!r}.")
    relaxation = {**DEFAULTS["relaxation"], "rank": rank or None, **({"schedule": "off"} if standard else {})}
    training = {**DEFAULTS["training"], "steps": steps}
    document = {"peer": peer, "model": model, "data": data, "training": training, "relaxation": relaxation}
    settings = load(PeerFineTuning, document, overrides=override or [])
    with undisturbed(torch.device(settings.training.device)):
        fine_tune_peer(settings, out, restart=restart == "auto", tell=typer.echo, listener=_say)


def _say(progress: Any) -> None:
    if progress.row is not None:
        row = progress.row
        typer.echo(
            f"step {progress.step}/{progress.n_steps}: theta {row['theta']:.2f}, validation "
            f"{row['val_energy_mae_meV_per_atom']:.1f} meV/atom, {row['val_forces_mae_meV_per_A']:.1f} meV/A"
        )
