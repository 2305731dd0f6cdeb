"""The verbs `train`, `predict`, `eval` and `audit` for the task packs, which have model files of their own."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mdrelax.cli.certificates import say_errors, say_layers
from mdrelax.cli.output import refuse, write_text

if TYPE_CHECKING:
    from mdrelax.packs.registry import Pack

__all__ = ["audit_pack", "evaluated_by_pack", "train_pack"]


def train_pack(
    pack: "Pack", document: dict[str, Any], folder: Path, *, overrides: list[str], restart: bool, tensorboard: bool
) -> None:
    """Train, project, certify and test a network of a pack in a run folder."""
    from mdrelax.base.sections import load
    from mdrelax.cli.bench.studies import say_validation
    from mdrelax.training.folders import RESULTS, refuse_begun

    if tensorboard:
        refuse("`--tensorboard` is for force fields; the run folder of this task has its numbers in metrics.csv.")
    if not restart:
        refuse_begun(folder)
    settings = load(pack.settings, document, overrides=overrides)
    results = pack.run(settings, folder, listener=say_validation, tell=typer.echo)
    numbers = {key: value for key, value in results.items() if isinstance(value, float | int)}
    typer.echo("\n".join(f"{key:24s}{value:.6g}" for key, value in numbers.items()))
    model = folder / "model.safetensors"
    typer.echo(f"Model: {model}" if model.is_file() else f"Results: {folder / RESULTS}")


def evaluated_by_pack(model: Path, data: str, folder: Path, *, number: int | None) -> bool:
    """Print the errors of a pack's network and write them to eval.json; False for the model file of a force field."""
    from mdrelax.base.provenance import command_line, environment
    from mdrelax.packs.registry import pack_of_model

    if (pack := pack_of_model(model)) is None:
        return False
    found = pack.evaluate(model, data, number=number)
    for key, value in found.items():
        shown = [f"{each:.4g}" for each in value] if isinstance(value, list) else [str(value)]
        typer.echo(f"{key:24s}" + " ".join(f"{value:.6g}" if isinstance(value, float) else each for each in shown))
    record = {"command": command_line(), "environment": environment(device="cpu", seed=0), **found}
    write_text(folder / "eval.json", json.dumps(record, indent=2))
    typer.echo(folder / "eval.json")
    return True


def audit_pack(
    pack: "Pack", model: Path, data: str | None, *, number: int, operations: int, seed: int, output: Path | None
) -> None:
    """Measure the symmetry of a network again; fails if it claims one and does not have it."""
    from mdrelax.method.certificate import require

    old, new = pack.audit(model, data, number=number, operations=operations, seed=seed)
    claim = "no exact symmetry is claimed" if new.symmetry == "none" else new.symmetry
    say_errors(f"{claim}; largest relative error, {new.n_structures} inputs", {"in the file": old, "measured now": new})
    say_layers(new.layers)
    if output is not None:
        write_text(output, json.dumps(new.to_dict(), indent=2))
    if new.symmetry != "none":
        require(new)
