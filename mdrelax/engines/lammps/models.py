"""Models: what a command line names, checked before LAMMPS starts."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from ase.data import atomic_masses, atomic_numbers, chemical_symbols

from mdrelax.base.names import nearest_name
from mdrelax.compiled import CompiledPotential, load_compiled
from mdrelax.engines.lammps.domain import Halo, halo_width
from mdrelax.engines.results import own_copy
from mdrelax.forces.forcefield import ForceField
from mdrelax.modelfile import load_model

__all__ = ["DispersionLeftOutWarning", "SwappedElementsWarning", "chosen_halo", "elements_by_mass", "load",
           "numbers_of", "warn_of_masses"]  # fmt: skip


class DispersionLeftOutWarning(UserWarning):
    """Warns of a model whose dispersion LAMMPS has to add."""


class SwappedElementsWarning(UserWarning):
    """Warns of types whose masses are those of other elements than they are given."""


def load(model: Path | None, compiled: Path | None, dtype: str | None, device: str, rank: int) -> ForceField:
    """The force field of a model file, in float32 unless another ``dtype`` is given, or of a compiled one.

    ``device`` is a torch device; the ranks are dealt over all devices if it is ``cuda``. Warnings are those of rank 0:
    dispersion is left to LAMMPS (``DispersionLeftOutWarning``).
    Raises the errors of ``load_model`` and ``load_compiled``, and ``ValueError`` for a device that cannot be used and a
    model with direct forces.
    """
    with warnings.catch_warnings():
        if rank:
            warnings.simplefilter("ignore")
        if compiled is not None:
            force_field = load_compiled(compiled).force_field
            _warn_of_dispersion(compiled, force_field)
            return own_copy(force_field, dtype, "cpu")
        force_field = load_model(str(model)).force_field
        _warn_of_dispersion(model, force_field)
    if not force_field.conservative:
        raise ValueError(
            f"`{model}` predicts forces directly (`forces: direct`): they are not the gradient of its energy, and "
            "there is no pressure. Train with `forces: gradient` for simulations."
        )
    if device == "cuda" and torch.cuda.is_available():
        device = f"cuda:{rank % torch.cuda.device_count()}"
    return own_copy(force_field, dtype or "float32", device)


def _warn_of_dispersion(path: Path | None, force_field: ForceField) -> None:
    functional = force_field.physics.dispersion
    if functional is not None:
        warnings.warn(
            f"`{path}` needs the D3(BJ) dispersion of {functional}, which this engine does not compute: the forces are "
            f"those of the network alone. Add LAMMPS's own, `pair_style dispersion/d3 bj {functional.lower()} 30 20`.",
            DispersionLeftOutWarning,
            stacklevel=3,
        )


def numbers_of(elements: str, force_field: ForceField) -> list[int]:
    """The atomic numbers of symbols such as ``H,O``; raises ``ValueError`` for others than the model's elements."""
    symbols = [symbol.strip() for symbol in elements.split(",")]
    for symbol in symbols:
        if atomic_numbers.get(symbol, 0) == 0:
            raise ValueError(f"`--elements {elements}` names `{symbol}`, {nearest_name(symbol, set(atomic_numbers))}")
    numbers = [atomic_numbers[symbol] for symbol in symbols]
    force_field.species_of(torch.tensor(numbers, device=force_field.scale.device))
    return numbers


def elements_by_mass(masses: Sequence[float], known: Sequence[int]) -> str:
    """A clause with the ``--elements`` of types with these masses (g/mol), empty if a mass was not set.

    >>> from mdrelax.engines.lammps.models import elements_by_mass
    >>> elements_by_mass([15.999, 1.008], [1, 8])
    ': --elements O,H by their masses 15.999, 1.008'
    """
    if not masses or not min(masses) > 0:
        return ""
    symbols = [chemical_symbols[_nearest(mass, known)] for mass in masses]
    return f": --elements {','.join(symbols)} by their masses {', '.join(f'{mass:g}' for mass in masses)}"


def warn_of_masses(masses: Sequence[float], elements: Sequence[int]) -> None:
    """Warn (``SwappedElementsWarning``) if a type's mass is nearer to that of another of the elements.

    Heavier hydrogen passes. Masses that all are the same, which some choose to sample faster, pass too.
    """
    for kind, (mass, number) in enumerate(zip(masses, elements, strict=False), 1):
        nearest = _nearest(mass, elements)
        if mass > 0 and nearest != number and len(set(masses)) > 1:
            warnings.warn(
                f"`--elements` says that type {kind} is {chemical_symbols[number]}, but its mass of {mass:g} is that "
                f"of {chemical_symbols[nearest]}: name the elements in the order of the types.",
                SwappedElementsWarning,
                stacklevel=3,
            )
            return


def _nearest(mass: float, elements: Sequence[int]) -> int:
    """The one of some elements with the nearest mass."""
    return min(elements, key=lambda number: abs(atomic_masses[number] - mass))


def chosen_halo(named: Halo | None, force_field: ForceField, n_ranks: int) -> Halo:
    """The halo asked for, or else the one that suits the model; raises ``ValueError`` if they do not go together."""
    compiled = isinstance(force_field.potential, CompiledPotential)
    if compiled and named == "exchange" and n_ranks > 1:
        raise ValueError("A compiled model cannot exchange features between ranks; use `--halo wide`, or `--model`.")
    halo: Halo = named or ("wide" if compiled and n_ranks > 1 else "exchange")
    halo_width(force_field, halo)
    return halo
