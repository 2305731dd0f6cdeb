"""`mdrelax fine-tune`: train a finished model further, on more data or another level of theory, without a config."""

from pathlib import Path
from typing import Annotated

import typer

from mdrelax.cli.output import refuse
from mdrelax.cli.train import train


def fine_tune(
    model: Annotated[str, typer.Argument(help="A model file (.safetensors), or with --peer a name such as 7net-0.")],
    data: Annotated[str, typer.Argument(help="Labelled structures: a file, or the name of a data set.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME of the data, -tuned.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; default: 2000, with --peer 200.")] = None,
    relax: Annotated[bool, typer.Option("--relax", help="Relax the constraint, also of a standard model.")] = False,
    references: Annotated[
        str, typer.Option(help="Reference energies: fit, isolated (those of the data's lone atoms) or keep.")
    ] = "fit",
    freeze: Annotated[list[str] | None, typer.Option(help="Name pattern of weights that do not move.")] = None,
    slow: Annotated[list[str] | None, typer.Option(help="PATTERN=FRACTION of the learning rate.")] = None,
    replay: Annotated[Path | None, typer.Option(help="Data that the model shall not forget: a fifth of each.")] = None,
    peer: Annotated[str | None, typer.Option(help="The package of the network, sevenn or mace, if another.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="Peer: rank of free maps where it saves parameters; 0: dense.")] = 16,
    standard: Annotated[bool, typer.Option("--standard", help="Peer: do not relax the constraint.")] = False,
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value, any number of times.")] = None,
    restart: Annotated[str, typer.Option(help="`auto` resumes from the last checkpoint; `never` refuses.")] = "never",
) -> None:
    """Train a model further on other data: new elements, another level of theory, or simply more frames.

    The config that this writes, fine-tune.yaml in the run folder, is one for `mdrelax train`. With --peer the network
    is another package's: it is relaxed, trained, projected, and written as a file that its own tools load.
    """
    import yaml

    from mdrelax.base.files import write_atomically
    from mdrelax.cli.fine_tune_peer import fine_tune_peer
    from mdrelax.runs.fine_tune import fine_tuning

    if restart not in ("auto", "never"):
        refuse(f"`--restart` must be auto or never, got {restart!r}.")
    folder = out or Path("runs") / f"{Path(data).name.partition('.')[0].replace(':', '-')}-tuned"
    if peer is not None:
        if relax or references != "fit" or freeze or slow or replay:
            refuse("`--relax`, `--references`, `--freeze`, `--slow` and `--replay` have no meaning with `--peer`.")
        fine_tune_peer(
            peer, model, data, folder, steps=steps or 200, rank=rank, standard=standard, override=override or [],
            restart=restart == "auto",
        )  # fmt: skip
        return
    if standard:
        refuse("`--standard` is for `--peer`; a model of mdrelax is relaxed with `--relax` only.")
    fractions = dict.fromkeys(freeze or [], 0.0) | dict(map(_fraction, slow or []))
    document = fine_tuning(
        Path(model), data, steps=steps or 2000, relax=relax, references=references, fractions=fractions, replay=replay
    )
    config = folder / "fine-tune.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(config, yaml.safe_dump(document, sort_keys=False).encode())
    train(str(config), out=folder, override=override, restart=restart)


def _fraction(text: str) -> tuple[str, float]:
    pattern, equals, number = text.rpartition("=")
    try:
        fraction = float(number)
    except ValueError:
        fraction = -1.0
    if not equals or not 0 <= fraction <= 1:
        refuse(f"`--slow` is written PATTERN=FRACTION with a fraction from 0 to 1, got `{text}`.")
    return pattern, fraction
