"""`mdrelax fine-tune --peer`: train another package's network further and write a file that its own tools load."""

from pathlib import Path
from typing import Any

import typer

DEFAULTS: dict[str, Any] = {  # of a short fine-tuning; each can be replaced with -r
    "training": {
        "batch_size": 2, "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 10,
        "ema": 0.95, "validate_every": 50,
    },
    "relaxation": {"penalty_rows": 32},
}  # fmt: skip


def fine_tune_peer(
    peer: str, model: str, data: str, out: Path, *, steps: int, rank: int, standard: bool, override: list[str],
    restart: bool,
) -> None:  # fmt: skip
    """Train a network of another package further, project it, and write a file that its own tools load."""
    import torch

    from mdrelax.base.ambient import undisturbed
    from mdrelax.base.sections import load
    from mdrelax.peers import fine_tune

    relaxation = {**DEFAULTS["relaxation"], "rank": rank or None, **({"schedule": "off"} if standard else {})}
    training = {**DEFAULTS["training"], "steps": steps}
    document = {"peer": peer, "model": model, "data": data, "training": training, "relaxation": relaxation}
    settings = load(fine_tune.PeerFineTuning, document, overrides=override)
    with undisturbed(torch.device(settings.training.device)):
        fine_tune.fine_tune_peer(settings, out, restart=restart, tell=typer.echo, listener=_say)


def _say(progress: Any) -> None:
    if progress.row is not None:
        row = progress.row
        typer.echo(
            f"step {progress.step}/{progress.n_steps}: theta {row['theta']:.2f}, validation "
            f"{row['val_energy_mae_meV_per_atom']:.1f} meV/atom, {row['val_forces_mae_meV_per_A']:.1f} meV/A"
        )
