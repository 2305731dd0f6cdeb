"""Certificates on the screen: measured errors and the layers' free maps."""

from typing import Any

import typer

__all__ = ["say_errors", "say_layers"]


def say_errors(title: str, measured: dict[str, Any]) -> None:
    """A table of certificates or of errors by precision, under a title."""
    typer.echo(title)
    typer.echo(f"{'':34s}{'rotation':>12s}{'reflection':>12s}{'translation':>12s}{'permutation':>12s}")
    for name, each in measured.items():
        for precision in ("float64", "float32"):
            errors = each[precision] if isinstance(each, dict) else getattr(each, precision)
            typer.echo(f"{name + ', ' + precision:34s}" + "".join(f"{value:12.1e}" for value in errors))


def say_layers(layers: "list[Any]") -> None:
    """One line per relaxed layer."""
    for layer in layers:
        spectrum = " ".join(f"{value:.2e}" for value in layer.spectrum)
        typer.echo(
            f"{layer.name}: {layer.how}, ||W|| {layer.norm:.3e}, ||W - P(W)|| {layer.distance:.3e} (bound "
            f"{layer.bound:.3e}), ||W_J||^2 for J = 0, 1, ...: {spectrum}"
        )
