"""Metrics: errors of predictions against references, with the unit in every name.

    MAE = mean |prediction - reference|        RMSE = sqrt(mean (prediction - reference)^2)

| quantity | the mean runs over | units |
| --- | --- | --- |
| energy | structures | meV, meV/atom (each error divided by its structure's atoms), kcal/mol |
| forces | the 3N components of all atoms, not their norms | meV/A, kcal/mol/A |
| stress | the 9 components of all structures | meV/A^3 |

A NaN reference is a missing label and is left out; a NaN prediction makes its metric NaN.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from ase.data import chemical_symbols

from mdrelax.base.units import EV_PER_KCAL_MOL

__all__ = [
    "Labels",
    "Predictions",
    "error_percentiles",
    "errors",
    "errors_by_element",
    "labels_of",
    "load_predictions",
    "mean_baseline",
    "net_force_and_torque",
]

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MEV = 1000.0  # meV in an eV
PERCENTILES = (50, 90, 95, 99)


class Labels(NamedTuple):
    """References of G structures with N atoms in all; absent labels are ``None``.

    | field | shape | unit |
    | --- | --- | --- |
    | numbers | (N,) | atomic numbers, structure after structure |
    | n_atoms | (G,) | atoms of each structure |
    | energy | (G,) | eV |
    | forces | (N, 3) | eV/A |
    | stress | (G, 3, 3) | eV/A^3, ASE's sign |
    """

    numbers: Integers
    n_atoms: Integers
    energy: Array
    forces: Array | None = None
    stress: Array | None = None


class Predictions(NamedTuple):
    """References and predictions, the content of ``test_predictions.npz``; shapes as in ``Labels``."""

    numbers: Integers
    n_atoms: Integers
    energy_true: Array
    energy_pred: Array
    forces_true: Array | None = None
    forces_pred: Array | None = None
    stress_true: Array | None = None
    stress_pred: Array | None = None

    def check(self) -> None:
        """Raise ``ValueError`` for shapes that do not fit together and for a label without its prediction."""
        graphs, atoms = len(self.n_atoms), len(self.numbers)
        expected = {"energy": (graphs,), "forces": (atoms, 3), "stress": (graphs, 3, 3)}
        if int(np.sum(self.n_atoms)) != atoms:
            raise ValueError(f"`n_atoms` adds up to {int(np.sum(self.n_atoms))}, but `numbers` has {atoms} atoms.")
        for name, shape in expected.items():
            pair = [getattr(self, f"{name}_{side}") for side in ("true", "pred")]
            shapes = [None if array is None else np.shape(array) for array in pair]
            if shapes not in ([shape, shape], [None, None]):
                raise ValueError(
                    f"`{name}_true` and `{name}_pred` must both have shape {shape} or both be absent, got shapes "
                    f"{shapes[0]} and {shapes[1]}."
                )


def errors(predictions: Predictions) -> dict[str, float]:
    """MAE and RMSE of everything that has labels, in meV, meV/atom, meV/A, meV/A^3 and kcal/mol(/A).

    Keys like ``forces_mae_meV_per_A``; those of a quantity without labels are absent. Raises ``ValueError`` for shapes
    that do not fit together.
    """
    predictions.check()
    energy = _differences(predictions, "energy")
    groups = {
        ("energy", "meV"): energy,
        ("energy", "meV_per_atom"): energy / predictions.n_atoms,
        ("forces", "meV_per_A"): _differences(predictions, "forces"),
        ("stress", "meV_per_A3"): _differences(predictions, "stress"),
    }
    table: dict[str, float] = {}
    for (name, unit), values in groups.items():
        known = _labelled(predictions, name, values)
        if known.size:
            table[f"{name}_mae_{unit}"] = float(np.abs(known).mean())
            table[f"{name}_rmse_{unit}"] = float(np.sqrt(np.square(known).mean()))
    for name, unit, per in (("energy", "meV", ""), ("forces", "meV_per_A", "_per_A")):
        for kind in ("mae", "rmse"):
            if f"{name}_{kind}_{unit}" in table:
                table[f"{name}_{kind}_kcal_per_mol{per}"] = table[f"{name}_{kind}_{unit}"] / (MEV * EV_PER_KCAL_MOL)
    return table


def net_force_and_torque(forces: Array, positions: Array, n_atoms: Integers) -> dict[str, float]:
    """Mean lengths over structures of sum F (meV/A) and of sum (r - centre) x F (meV): zero where energy is invariant.

    ``forces`` (N, 3) in eV/A and ``positions`` (N, 3) in A of molecules, structure after structure. In a periodic cell
    the torque is meaningless.
    """
    ends = np.cumsum(n_atoms)[:-1]
    totals, torques = [], []
    for force, position in zip(np.split(forces, ends), np.split(positions, ends), strict=True):
        totals.append(np.linalg.norm(force.sum(0)))
        torques.append(np.linalg.norm(np.cross(position - position.mean(0), force).sum(0)))
    return {"net_force_meV_per_A": MEV * float(np.mean(totals)), "net_torque_meV": MEV * float(np.mean(torques))}


def errors_by_element(predictions: Predictions) -> pd.DataFrame:
    """One row per element: atoms, force MAE, RMSE and the RMS of the reference forces, in meV/A over components.

    Empty without forces.
    """
    predictions.check()
    columns = ["element", "n_atoms", "forces_mae_meV_per_A", "forces_rmse_meV_per_A", "reference_rms_meV_per_A"]
    if predictions.forces_true is None:
        return pd.DataFrame(columns=columns)
    known = ~np.isnan(predictions.forces_true).any(axis=1)  # (N,)
    differences = _differences(predictions, "forces")
    rows = []
    for number in np.unique(predictions.numbers[known]):
        own = known & (predictions.numbers == number)
        error, reference = differences[own], MEV * predictions.forces_true[own]
        sizes = (np.abs(error).mean(), np.sqrt(np.square(error).mean()), np.sqrt(np.square(reference).mean()))
        rows.append((chemical_symbols[number], int(own.sum()), *map(float, sizes)))
    return pd.DataFrame(rows, columns=columns)


def error_percentiles(predictions: Predictions) -> pd.DataFrame:
    """The 50th to 99th percentile and the largest of the absolute errors, one row per quantity with its unit."""
    predictions.check()
    groups = {
        ("energy", "meV/atom"): _differences(predictions, "energy") / predictions.n_atoms,
        ("forces", "meV/A"): _differences(predictions, "forces"),
        ("stress", "meV/A^3"): _differences(predictions, "stress"),
    }
    rows = []
    for (name, unit), values in groups.items():
        known = np.abs(_labelled(predictions, name, values))
        if known.size:
            rows.append((name, unit, *np.percentile(known, PERCENTILES).tolist(), float(known.max())))
    return pd.DataFrame(rows, columns=["quantity", "unit", *(f"p{p}" for p in PERCENTILES), "max"])


def mean_baseline(train: Labels, test: Labels) -> Predictions:
    """The prediction without knowledge of the geometry: the mean energy of the composition, mean force and stress.

    The mean force is one vector over all atoms of the training set. For a composition that the training set lacks,
    the energy is the sum of its elements' least-squares energies. Raises ``ValueError`` for an element that the
    training set lacks.
    """
    forces = None if test.forces is None else _constant(train.forces, "forces", test.forces)
    stress = None if test.stress is None else _constant(train.stress, "stress", test.stress)
    energy = _mean_energies(train, test)
    return Predictions(test.numbers, test.n_atoms, test.energy, energy, test.forces, forces, test.stress, stress)


def labels_of(data: Sequence[Any]) -> Labels:
    """The labels of a sequence of ``torch_geometric`` structures; those that no structure has are ``None``.

    A structure without a label that others have gets NaN. Raises ``ValueError`` for an empty sequence.
    """
    if not len(data):
        raise ValueError("There are no structures to take labels from; check the split.")
    sizes = [len(frame.z) for frame in data]
    energy = [float(frame.energy) if "energy" in frame else np.nan for frame in data]
    numbers = np.concatenate([frame.z.numpy() for frame in data])
    forces = _stack(data, "forces", [(size, 3) for size in sizes])
    stress = _stack(data, "stress", [(1, 3, 3)] * len(data))
    return Labels(numbers, np.array(sizes), np.array(energy), forces, stress)


def load_predictions(path: str | Path) -> Predictions:
    """Read ``test_predictions.npz``; raises ``ValueError`` if arrays are missing or do not fit together."""
    with np.load(path) as file:
        missing = [name for name in Predictions._fields[:4] if name not in file]
        if missing:
            raise ValueError(
                f"`{path}` lacks the arrays {', '.join(missing)}, which `mdrelax train` writes into a run folder; "
                "restore that file, or train again."
            )
        predictions = Predictions(**{name: file[name] for name in Predictions._fields if name in file})
    predictions.check()
    return predictions


# --- errors ---


def _differences(predictions: Predictions, name: str) -> Array:
    """Prediction minus reference in thousandths of the reference's unit; empty without labels."""
    true, pred = getattr(predictions, f"{name}_true"), getattr(predictions, f"{name}_pred")
    if true is None:
        return np.empty(0)
    difference: Array = MEV * (np.asarray(pred, dtype=float) - np.asarray(true, dtype=float))
    return difference


def _labelled(predictions: Predictions, name: str, values: Array) -> Array:
    """The entries of ``values`` whose reference is a number, flat."""
    true = getattr(predictions, f"{name}_true")
    return values if true is None else values[~np.isnan(true)]


# --- baseline ---


def _compositions(labels: Labels, elements: Integers) -> Integers:
    """The number of atoms of each element in each structure, (G, elements)."""
    structure = np.repeat(np.arange(len(labels.n_atoms)), labels.n_atoms)  # (N,)
    counts = np.zeros((len(labels.n_atoms), len(elements)), dtype=np.int64)
    np.add.at(counts, (structure, np.searchsorted(elements, labels.numbers)), 1)
    return counts


def _mean_energies(train: Labels, test: Labels) -> Array:
    elements = np.unique(train.numbers)
    unknown = np.setdiff1d(test.numbers, elements)
    if unknown.size:
        raise ValueError(
            f"The test set has elements {[chemical_symbols[z] for z in unknown]} that the training set lacks; "
            "make the split again."
        )
    known = ~np.isnan(train.energy)
    counts, energies = _compositions(train, elements)[known], train.energy[known]
    per_element = np.linalg.lstsq(counts.astype(float), energies, rcond=None)[0]
    table = {row.tobytes(): energies[(counts == row).all(axis=1)].mean() for row in np.unique(counts, axis=0)}
    wanted = _compositions(test, elements)
    return np.array([table.get(row.tobytes(), row @ per_element) for row in wanted])


def _constant(train: Array | None, name: str, like: Array) -> Array:
    """The mean of a training label, repeated for each entry of ``like``."""
    if train is None:
        raise ValueError(f"The test set has {name}, but the training set has none; give both the same labels.")
    return np.broadcast_to(np.nanmean(train, axis=0), like.shape)


def _stack(data: Sequence[Any], name: str, shapes: list[tuple[int, ...]]) -> Array | None:
    if not any(name in frame for frame in data):
        return None
    parts = [
        frame[name].numpy() if name in frame else np.full(shape, np.nan)
        for frame, shape in zip(data, shapes, strict=True)
    ]
    return np.concatenate(parts)
