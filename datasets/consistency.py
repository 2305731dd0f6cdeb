"""Consistency: whether energies, forces and stress of a data set agree with each other.

Between near frames the energy changes by the work of forces and stress (``near_pairs``):

    E_b - E_a = k_F W + k_S S

k_F and k_S are 1 if the units agree, the ratio of two units if they do not, and negative if a sign is wrong. They are
fitted by least absolute deviations, because single frames may be wrong. The trapezoid rule is exact for quadratic
energies; for real ones k_F lies between 0.7 and 1.2, so that factors from 1.9 (Bohr for Angstrom, Hartree for Rydberg)
on can be distinguished from 1. The residual of a single frame, E - k_F W - k_S S, shows outliers and shifted energies.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch_geometric.data import Data

from mdrelax.base.units import ENERGY_UNITS, LENGTH_UNITS, STRESS_UNITS
from mdrelax.datasets.bonds import Stiffness
from mdrelax.datasets.near_pairs import NearPairs
from mdrelax.datasets.plausibility import PASSED, Finding

__all__ = [
    "Evidence",
    "Finding",
    "agreement_of_forces",
    "agreement_of_stress",
    "check_forces_and_energies",
    "check_references",
    "check_stress",
    "residuals",
    "shift_of",
]

STRESS_RANGE_OF_FEW, MANY_PAIRS = (0.1, 10.0), 30  # fewer pairs fix k_S badly
ABOVE_NOISE = 2.0  # times the residual of a typical pair: work of the stress that can be tested
FEWEST = 12  # least number of pairs: fits to fewer were wrong by factors of two
FORCES_RANGE = (0.64, 1.3)  # of k_F: 0.72 to 1.1 in real data; Bohr for Angstrom is 0.53 or 1.89
STRESS_RANGE = (0.45, 2.2)  # of k_S: 0.7 to 1.35 in real data; units of stress lie far apart
CHANCE = (0.3, 0.7)  # share of pairs whose energy goes with the work, if both have nothing to do with each other
CURVED = 2.0  # times the curvature: no anharmonicity makes the work wrong by more
SMALLEST_SHIFT = 0.1  # eV; smaller disagreements of single frames are numerical noise
TRIALS = 300  # draws of as few pairs as fix the factors
BEST = 0.35  # share of the pairs that has to agree
MUCH_BETTER = 0.4  # times the imbalance of a fit to all pairs
MANY = 0.05  # share of pairs that are wrong, from which on it is not single frames
CLUSTERED = 0.3  # median deviation of the shifts from their median, in that median
GAP = 4.0  # eV per atom, between energies of one reference and of another

Array = np.ndarray


class Evidence(NamedTuple):
    """Evidence shared by several checks."""

    kinds: Sequence[NearPairs]
    stiffnesses: Sequence[Stiffness]


class Agreement(NamedTuple):
    """A fitted factor over some pairs, and the share of pairs whose energy changes in the direction of the work."""

    n_pairs: int
    factor: float
    share: float

    @property
    def unrelated(self) -> bool:
        """True if energies change with the work as often as against it."""
        return CHANCE[0] < self.share < CHANCE[1]


class Residuals(NamedTuple):
    """The residual of each pair, in eV, and whether it is more than any anharmonicity explains."""

    first: Array
    second: Array
    energy: Array
    wrong: Array


class _Table(NamedTuple):
    """The pairs of all kinds with the labels that the energy balance needs."""

    first: Array
    second: Array
    energy: Array
    work: Array
    strain_work: Array
    curvature: Array


def agreement_of_forces(kinds: Sequence[NearPairs]) -> Agreement | None:
    """k_F, from pairs in which forces do more work than stress; None if there are too few."""
    table, (forces, stress) = _one_reference(kinds)
    energy = table.energy - stress * table.strain_work
    mainly = abs(forces * table.work) > abs(stress * table.strain_work)
    return _agreement(energy, table.work, forces, mainly=mainly)


def agreement_of_stress(kinds: Sequence[NearPairs]) -> Agreement | None:
    """k_S, from pairs in which the work of the stress is significant; None if there are too few."""
    table, (forces, stress) = _one_reference(kinds)
    energy = table.energy - forces * table.work
    noise = float(np.median(abs(energy - stress * table.strain_work))) if len(energy) else 0.0
    matters = max(1.0, abs(stress)) * abs(table.strain_work) > ABOVE_NOISE * noise
    return _agreement(energy, table.strain_work, stress, mainly=matters & (table.strain_work != 0))


def residuals(kinds: Sequence[NearPairs]) -> Residuals:
    """The energy balance of every pair with the fitted factors."""
    table, (forces, stress) = _balance(kinds)
    left = table.energy - forces * table.work - stress * table.strain_work
    noise = 4 * np.quantile(abs(left), BEST) if len(left) else 0.0
    bound = CURVED * abs(forces * table.curvature) + 0.5 * abs(stress * table.strain_work) + noise + SMALLEST_SHIFT
    return Residuals(table.first, table.second, left, abs(left) > bound)


def shift_of(left: Residuals) -> float | None:
    """The size of the shifts (eV) if many pairs are out of balance by about the same; else None."""
    sizes = abs(left.energy[left.wrong])
    if len(sizes) < max(FEWEST, MANY * len(left.wrong)):
        return None
    frames = np.concatenate([left.first[left.wrong], left.second[left.wrong]])
    if np.unique(frames, return_counts=True)[1].max() > 0.5 * len(sizes):  # one frame is in most of them: an outlier
        return None
    typical = float(np.median(sizes))
    return typical if np.median(abs(sizes - typical)) < CLUSTERED * typical else None


def _one_reference(kinds: Sequence[NearPairs]) -> tuple[_Table, tuple[float, float]]:
    """The balance, without pairs across two references."""
    table, factors = _balance(kinds)
    left = residuals(kinds)
    if shift_of(left) is not None:
        table = _Table(*(column[~left.wrong] for column in table))
    return table, factors


def factor_named(factor: float, quantity: str) -> str:
    """The units whose ratio a factor is nearly, as a clause for a sentence; empty if no ratio is near.

    ``quantity`` is ``forces`` (units of energy and length) or ``stress``.
    """
    ratios: dict[str, float] = {}
    if quantity == "forces":
        for a, size in ENERGY_UNITS.items():
            ratios |= {f"{a} and {b}": size / other for b, other in ENERGY_UNITS.items() if a != b}
        for a, size in LENGTH_UNITS.items():
            ratios |= {f"{a} and {b}": size / other for b, other in LENGTH_UNITS.items() if a != b}
        common = ("eV", "Hartree", "kcal/mol", "kJ/mol", "Rydberg", "Angstrom", "Bohr", "nm")
        ratios = {names: r for names, r in ratios.items() if all(n in common for n in names.split(" and "))}
    else:
        ratios = {f"eV/Angstrom^3 and {name}": 1 / size for name, size in STRESS_UNITS.items() if size != 1}
        ratios |= {f"{name} and eV/Angstrom^3": size for name, size in STRESS_UNITS.items() if size != 1}
    distances = {names: abs(np.log(ratio / abs(factor))) for names, ratio in ratios.items()} if factor else {}
    near = sorted((d, names) for names, d in distances.items() if d < np.log(1.35))
    return f", about the ratio of {' or of '.join(names for _, names in near[:2])}" if near else ""


def _table(kinds: Sequence[NearPairs]) -> _Table:
    columns = [np.concatenate([getattr(kind, name) for kind in kinds] or [np.empty(0)]) for name in _Table._fields]
    known = np.isfinite(np.stack(columns[2:])).all(axis=0)
    return _Table(*(column[known] for column in columns))


def _balance(kinds: Sequence[NearPairs]) -> tuple[_Table, tuple[float, float]]:
    """The pairs, and k_F and k_S; a factor that no pair depends on is 1."""
    table = _table(kinds)
    columns = np.stack([table.work, table.strain_work], axis=1)
    used = abs(columns).max(axis=0, initial=0.0) > 1e-9
    factors = np.ones(2)
    if used.any() and len(columns) >= FEWEST:
        factors[used] = _robust_factors(columns[:, used], table.energy)
    return table, (float(factors[0]), float(factors[1]))


def _robust_factors(columns: Array, values: Array) -> Array:
    """The factors of all pairs, or of the third that agrees best if that is in much better balance than the whole.

    With energies of two references half the pairs are off by their difference, which no fit to all pairs survives.
    """
    whole = _least_deviations(columns, values)
    draws = np.random.default_rng(0).integers(len(values), size=(TRIALS, columns.shape[1]))
    matrices = columns[draws]  # (T, K, K)
    sizes = np.abs(matrices).max(axis=(1, 2), initial=0.0) ** columns.shape[1]
    regular = abs(np.linalg.det(matrices)) > 1e-3 * sizes
    if not regular.any():
        return whole
    trials = np.linalg.solve(matrices[regular], values[draws[regular]][:, :, None])[:, :, 0]
    left = abs(values - np.vstack([whole, trials]) @ columns.T)  # (T, P)
    quantiles = np.quantile(left, BEST, axis=1)
    best = int(quantiles.argmin())
    if quantiles[best] > MUCH_BETTER * quantiles[0]:
        return whole
    chosen = left[best] <= quantiles[best]
    return _least_deviations(columns[chosen], values[chosen])


def _least_deviations(columns: Array, values: Array) -> Array:
    """The factors that minimise the sum of absolute deviations: iteratively reweighted least squares."""
    sizes = np.maximum(np.median(abs(columns), axis=0), 1e-3 * abs(columns).max(axis=0))
    scaled = columns / sizes
    weights = 1 / np.maximum(np.linalg.norm(scaled, axis=1), 1e-3)
    factors = np.zeros(columns.shape[1])
    for _ in range(100):
        root = np.sqrt(weights)
        factors = np.linalg.lstsq(scaled * root[:, None], values * root, rcond=None)[0]
        left = abs(values - scaled @ factors)
        weights = 1 / np.maximum(left, 1e-3 * np.median(abs(values)) + 1e-12)
    return factors / sizes


def _agreement(energy: Array, work: Array, factor: float, *, mainly: Array) -> Agreement | None:
    """The share of agreeing signs among those of the chosen pairs in which the work is not small."""
    chosen = mainly & (abs(work) > 0)
    if chosen.sum() < FEWEST:
        return None
    large = chosen & (abs(work) >= np.quantile(abs(work[chosen]), 0.5 if chosen.sum() > 16 else 0.0))
    return Agreement(int(chosen.sum()), factor, float((np.sign(energy[large]) == np.sign(work[large])).mean()))


# --- the checks ---


def check_forces_and_energies(data: Sequence[Data], evidence: Evidence) -> Finding:
    """k_F is 1, and no frame is out of balance with all its neighbours."""
    found = agreement_of_forces(evidence.kinds)
    if found is None:
        return Finding(
            [], f"Not tested: fewer than {FEWEST} pairs of near frames have energies and forces.", failed=False
        )
    if found.unrelated:
        sentence = (
            "Energies do not follow the forces between near frames: (a) labels are shuffled or belong to other frames, "
            "or (b) one of the keys is another quantity."
        )
        return Finding([], sentence, failed=True)
    if found.share < CHANCE[0]:
        sentence = (
            "Energies rise where forces say that they fall: forces have the sign of gradients "
            f"(`forces_sign: opposite`), or energies the wrong sign (factor {found.factor:.3g})."
        )
        return Finding([], sentence, failed=True)
    if not FORCES_RANGE[0] < found.factor < FORCES_RANGE[1]:
        n_atoms = float(np.median([len(data[k].z) for kind in evidence.kinds for k in kind.first]))
        per_atom = n_atoms > 1 and abs(np.log(found.factor * n_atoms)) < np.log(1.35)
        sentence = (
            f"Between near frames energies change by {found.factor:.3g} times the work of the forces"
            f"{factor_named(found.factor, 'forces')}: units do not agree (`energy_unit`, `forces_unit`, `length_unit`)"
            f"{', or energies are per atom, where those of whole structures are needed' if per_atom else ''}."
        )
        return Finding([], sentence, failed=True)
    frames = _out_of_balance(residuals(evidence.kinds))
    if frames:
        sentence = "Energy or forces do not fit those of near frames: an unconverged or misplaced label."
        return Finding(frames, sentence, failed=True)
    return PASSED


def check_stress(data: Sequence[Data], evidence: Evidence) -> Finding:
    """k_S is 1; with a fixed cell, no stress is beyond what bonds could bear."""
    if not any("stress" in frame for frame in data):
        return Finding([], "Not tested: there is no stress.", failed=False)
    found = agreement_of_stress(evidence.kinds)
    if found is None:
        return _check_strength(data, evidence)
    lowest, highest = STRESS_RANGE if found.n_pairs >= MANY_PAIRS else STRESS_RANGE_OF_FEW
    options = "`stress_unit`, `stress_sign`, or a virial under the key of a stress"
    if found.unrelated:
        sentence = "Energies do not follow the stress where the cell changes: it is shuffled, or another quantity."
    elif found.share < CHANCE[0]:
        sentence = f"Energies fall where the stress says that they rise: it has the opposite sign ({options})."
    elif not lowest < found.factor < highest:
        sentence = (
            f"Where the cell changes, energies change by {found.factor:.3g} times the work of the stress"
            f"{factor_named(found.factor, 'stress')}: its unit is another ({options})."
        )
    else:
        return PASSED
    return Finding([], sentence, failed=True)


def _check_strength(data: Sequence[Data], evidence: Evidence) -> Finding:
    """The stress is below the modulus of the bonds, K / r."""
    largest = [float(frame.stress.abs().max()) for frame in data if "stress" in frame]
    moduli = [bond.stiffness / bond.length for bond in evidence.stiffnesses if bond.correlation > 0.5]
    if not moduli:
        return Finding([], f"Not tested: fewer than {FEWEST} pairs of near frames differ in their cells.", failed=False)
    if np.median(largest) < max(moduli):
        sentence = "Tested for its magnitude only: no near frames differ in their cells."
        return Finding([], sentence, failed=False)
    sentence = (
        f"The stress is typically {np.median(largest):.3g} eV/Angstrom^3, more than bonds bear: its unit is another "
        "(`stress_unit: GPa` or kbar), or it is a virial."
    )
    return Finding([], sentence, failed=True)


def check_references(data: Sequence[Data], evidence: Evidence) -> Finding:
    """Energies of all frames have the same zero."""
    left = residuals(evidence.kinds)
    shift = shift_of(left)
    found = agreement_of_forces(evidence.kinds)
    if shift is not None and found is not None and found.share > CHANCE[1]:
        sentence = (
            f"Near frames have energies that differ by about {shift:.3g} eV more than forces explain, in many "
            "frames: energies of different references or methods are mixed."
        )
        return Finding(_minority(left), sentence, failed=True)
    frames = _apart_by_composition(data)
    sentence = (
        "Energies fall into two sets once what each element contributes is fitted: total energies of different "
        "references or methods are mixed."
    )
    return Finding(frames, sentence, failed=True) if frames else PASSED


def _out_of_balance(left: Residuals) -> list[int]:
    """Frames of which at least three quarters of the pairs, and at least two, are wrong, each pair on one side."""
    total: Counter[int] = Counter()
    wrong: Counter[int] = Counter()
    signs: Counter[int] = Counter()
    for a, b, energy, bad in zip(*left, strict=True):
        total.update((int(a), int(b)))
        if bad:
            wrong.update((int(a), int(b)))
            signs[int(a)] -= int(np.sign(energy))
            signs[int(b)] += int(np.sign(energy))
    return sorted(k for k, n in wrong.items() if n >= 2 and n >= 0.75 * total[k] and abs(signs[k]) == n)


def _minority(left: Residuals) -> list[int]:
    """The frames out of balance if fewer than half, else none, because then the right ones are unknown."""
    frames = _out_of_balance(left)
    return frames if len(frames) < len(set(left.first.tolist()) | set(left.second.tolist())) / 2 else []


def _apart_by_composition(data: Sequence[Data]) -> list[int]:
    """The smaller of two sets of frames whose energies per atom lie apart by more than any binding."""
    frames = [k for k, frame in enumerate(data) if "energy" in frame and bool(frame.energy.isfinite().all())]
    if len(frames) < 10:
        return []
    elements = sorted({int(z) for k in frames for z in data[k].z})
    counts = np.array([[int((data[k].z == z).sum()) for z in elements] for k in frames], dtype=np.float64)
    energies = np.array([float(data[k].energy) for k in frames])
    per_atom = (energies - counts @ _least_deviations(counts, energies)) / counts.sum(axis=1)
    order = np.argsort(per_atom)
    gaps = np.diff(per_atom[order])
    cut = int(gaps.argmax()) + 1
    sides = sorted((order[:cut], order[cut:]), key=len)
    spreads = [float(np.ptp(per_atom[side])) for side in sides]
    if gaps.max() < GAP or gaps.max() < 2 * max(spreads) or len(sides[0]) < 2:
        return []
    return sorted(frames[k] for k in sides[0])
