"""Export: a force field compiled for this process, or a model compiled into a `.pt2` file."""

import tempfile
from pathlib import Path
from typing import Any

from mdrelax.base.files import write_atomically
from mdrelax.compiled.files import seal
from mdrelax.compiled.inference import CompiledPotential, compile_potential, load_library
from mdrelax.compiled.parity import Parity, arguments_of, example_graphs, measure_parity, require_parity
from mdrelax.compiled.recording import CompileError
from mdrelax.forces.forcefield import ForceField
from mdrelax.method.relaxation import is_relaxed
from mdrelax.modelfile import LoadedModel, frozen_copy

__all__ = ["compile_force_field", "export_model"]


def compile_force_field(force_field: ForceField, *, dtype: str | None = None) -> ForceField:
    """A force field with the same numbers whose network is compiled for this process; the original is not changed.

    ``dtype`` is ``"float32"`` or ``"float64"``; ``None`` keeps the model's own. It takes about a minute and needs a
    C++ compiler; nothing is stored on disk except torch's own cache.

    Raises ``CompileError`` if the network cannot be compiled or the compiled one differs, ``ValueError`` for
    relaxed layers and an unknown ``dtype``.
    """
    with tempfile.TemporaryDirectory(prefix="mdrelax-") as folder:
        return _compile(force_field, Path(folder) / "model.pt2", dtype)[0]


def export_model(model: LoadedModel, output: str | Path, *, dtype: str | None = None) -> dict[str, Any]:
    """Compile a loaded model into a `.pt2` file with all that a calculator needs; returns its document.

    Raises the errors of ``compile_force_field``, ``ValueError`` for an output with another suffix and ``OSError`` if
    the disk is full (an old file stays).
    """
    output = Path(output)
    if output.suffix != ".pt2":
        raise ValueError(f"A compiled model is a file `*.pt2`, got `{output}`.")
    with tempfile.TemporaryDirectory(prefix="mdrelax-") as folder:
        package = Path(folder) / "model.pt2"
        compiled, parity = _compile(model.force_field, package, dtype)
        header = seal(package, compiled, model.header, parity._asdict())
        write_atomically(output, package.read_bytes())
    return header


def _compile(force_field: ForceField, package: Path, dtype: str | None) -> tuple[ForceField, Parity]:
    """Write the compiled network to ``package`` and check it; returns the force field that uses it."""
    original = _frozen(force_field, dtype)
    graphs = example_graphs(original.elements, original.cutoff)
    compile_potential(original.potential, arguments_of(original, graphs[0]), package)
    network = CompiledPotential(
        load_library(package),
        cutoff=original.cutoff,
        dtype=original.dtype,
        takes_table=original.potential.takes_table,
        n_rounds=original.potential.n_rounds,
        roughness=original.roughness,
    )
    compiled = original.with_potential(network)
    rounding = measure_parity(original, _frozen(force_field, "float64"), graphs)
    return compiled, require_parity(measure_parity(compiled, original, graphs), original.dtype, rounding=rounding)


def _frozen(force_field: ForceField, dtype: str | None) -> ForceField:
    """A copy to compile, on the CPU; raises for networks that cannot be compiled."""
    if is_relaxed(force_field):
        raise ValueError("The network still has free maps; `project` it before it is compiled.")
    if not force_field.conservative:
        raise CompileError(
            "This model predicts forces directly (`forces: direct`); only forces that are the gradient of the energy "
            "are compiled. Use it uncompiled."
        )
    return frozen_copy(force_field, dtype).cpu()
