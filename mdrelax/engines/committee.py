"""CommitteeCalculator: several models of one training set as one ASE calculator, with the spread of their forces.

    x = mean_m x_m        std(x) = sqrt( sum_m (x_m - x)^2 / (M - 1) )        spread_i = sqrt( sum_a std(F_ia)^2 )

over the M members m, with atoms i and directions a. Networks that differ in their seed alone agree where the data
determine them, so that the spread tells where they do not; it is an estimate of the error, and usually too small by
a factor that `mdrelax eval` measures.

    atoms.calc = CommitteeCalculator.from_file("runs/mine")  # a run with `training.committee: 4`
    atoms.get_forces(); atoms.calc.results["forces_std"]
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mdrelax.compiled import compile_force_field
from mdrelax.engines.ase import MDRelaxCalculator
from mdrelax.engines.calculators import ModelCalculator, refuse_other_devices
from mdrelax.engines.results import Results, split_prediction
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.spread import force_spread
from mdrelax.modelfile import ModelFileError, load_model
from mdrelax.structures.graph import Graph

__all__ = ["CommitteeCalculator", "is_committee", "model_files", "open_calculator"]

MEMBERS = "member-*/model.safetensors"  # of a run folder
FEWEST = 2


class CommitteeCalculator(ModelCalculator):
    """Means of the members' energy, forces and stress, and the standard deviations of energy and forces.

    | in ``results`` | shape | unit |
    | --- | --- | --- |
    | energy, free_energy, energies, forces, stress | as in ``MDRelaxCalculator`` | eV, eV/A, eV/A^3 |
    | energy_std | a number | eV |
    | forces_std | (N, 3), of each component | eV/A |
    | forces_spread | (N,), the length of an atom's ``forces_std`` | eV/A |

    Other arguments and errors as for ``MDRelaxCalculator``. Raises ``ValueError`` for fewer than two members, and for
    members of different elements, cut-offs or physics. Dispersion, the same in all of them, is computed once.
    """

    implemented_properties: list[str] = [  # noqa: RUF012 (as ASE has it)
        *ModelCalculator.implemented_properties, "energy_std", "forces_std", "forces_spread",
    ]  # fmt: skip

    def __init__(
        self,
        members: Sequence[ForceField],
        *,
        dtype: str | None = None,
        device: str | torch.device = "cpu",
        skin: float = 0.5,
        keep_memory: bool = True,
    ) -> None:
        _check_alike(members)
        super().__init__(members, dtype=dtype, device=device, skin=skin, keep_memory=keep_memory)

    @classmethod
    def from_file(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        dtype: str | None = None,
        device: str | torch.device = "cpu",
        skin: float = 0.5,
        compile: bool = False,
        keep_memory: bool = True,
    ) -> "CommitteeCalculator":
        """The committee of a run folder, or of several model files; ``compile`` as for ``MDRelaxCalculator``.

        Raises ``ModelFileError`` for a folder without members, and the errors of ``load_model``.
        """
        if compile:
            refuse_other_devices(device)
        files = model_files(path) if isinstance(path, str | Path) else [Path(each) for each in path]
        members = [load_model(file).force_field for file in files]
        if compile:
            members = [compile_force_field(member, dtype=dtype) for member in members]
        return cls(members, dtype=dtype, device=device, skin=skin, keep_memory=keep_memory)

    def _predicted(self, graph: Graph, sizes: Sequence[int], volumes: Sequence[bool]) -> list[Results]:
        parts = [split_prediction(member(graph, stress=any(volumes)), sizes, volumes) for member in self.members]
        return [_joined(of_members) for of_members in zip(*parts, strict=True)]


def open_calculator(path: str | Path, **options: Any) -> MDRelaxCalculator | CommitteeCalculator:
    """The calculator of a model file, or of a committee's run folder; options as for ``from_file``."""
    if is_committee(path):
        return CommitteeCalculator.from_file(path, **options)
    return MDRelaxCalculator.from_file(path, **options)


def is_committee(path: str | Path) -> bool:
    """True for a folder, which can only be a committee's."""
    return Path(path).is_dir()


def model_files(folder: str | Path) -> list[Path]:
    """The members' model files in a run folder, by number; raises ``ModelFileError`` if there are fewer than two."""
    found = sorted(Path(folder).glob(MEMBERS), key=lambda path: int(path.parent.name.rpartition("-")[2]))
    if len(found) < FEWEST:
        raise ModelFileError(
            f"`{folder}` holds no committee: there are {len(found)} model files `{MEMBERS}` in it, and at least "
            f"{FEWEST} are needed. Name a model file, or train with `training.committee: 4`."
        )
    return found


def _joined(results: Sequence[Results]) -> Results:
    """Means over the members' results of one structure, and their spread."""
    stacked = {name: np.array([result[name] for result in results]) for name in results[0]}
    joined: Results = {name: values.mean(axis=0) for name, values in stacked.items()}
    joined |= {name: float(joined[name]) for name in ("energy", "free_energy")}
    joined["energy_std"] = float(stacked["energy"].std(ddof=1))
    joined["forces_std"], joined["forces_spread"] = force_spread(stacked["forces"])
    return joined


def _check_alike(members: Sequence[ForceField]) -> None:
    if len(members) < FEWEST:
        raise ValueError(f"A committee needs at least {FEWEST} members, got {len(members)}.")
    for name in ("elements", "cutoff", "physics"):
        found = {getattr(member, name) for member in members}
        if len(found) > 1:
            raise ValueError(
                f"The members of a committee must have the same {name}, got {sorted(map(str, found))}; train them on "
                "one data set with `training.committee`."
            )
