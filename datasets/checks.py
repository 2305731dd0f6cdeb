"""Checks: whether a data set is consistent and plausible, as ``mdrelax data check`` reports.

Each check is a function of the frames and of shared evidence; its message gives causes and remedy. Checks of single
frames are here, checks of labels against each other in ``consistency``, and of chemistry in ``plausibility``.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch_geometric.data import Data

from mdrelax.datasets import plausibility
from mdrelax.datasets.bonds import bonds_of, stiffnesses
from mdrelax.datasets.consistency import Evidence, Finding, check_forces_and_energies, check_references, check_stress
from mdrelax.datasets.frames import min_distance, place_of
from mdrelax.datasets.near_pairs import near_pairs

__all__ = ["CheckLimits", "check_frames"]

SHOWN = 5  # frames that a message names
SAME = 1e-4  # Angstrom, root mean square: the same geometry


class CheckLimits(NamedTuple):
    """Limits beyond which ``check_frames`` reports a frame."""

    min_distance: float = 0.5  # Angstrom; H-H, the shortest bond, is 0.74
    min_bond: float = 0.55  # of the sum of the covalent radii
    net_force: float = 0.1  # eV/Angstrom, on a molecule; zero in exact calculations
    max_force: float = 50.0  # eV/Angstrom
    torque: float = 0.05  # of the sum of |r| |F|, on a molecule; zero in exact calculations
    energy_widths: float = 3.0  # distance from the 5-95 % range of the energies of one composition, in its widths


Check = Callable[[Sequence[Data], CheckLimits, Evidence], Finding]


def check_frames(data: Sequence[Data], *, limits: CheckLimits | None = None) -> pd.DataFrame:
    """One row per check: ``check``, ``passed``, ``frames`` (list of indices), ``message``.

    The message is a sentence when the check failed, or when the data do not allow it ("Not tested: ..."). It names
    frames as they are numbered in their file.
    """
    limits = CheckLimits() if limits is None else limits
    evidence = _evidence(data)
    rows = []
    for name, check in CHECKS.items():
        finding = check(data, limits, evidence)
        named = f" {_named(data, finding.frames)}" if finding.frames else ""
        rows.append((name, not finding.failed, finding.frames, f"{finding.sentence}{named}"))
    return pd.DataFrame(rows, columns=["check", "passed", "frames", "message"])


def _evidence(data: Sequence[Data]) -> Evidence:
    """Evidence shared by several checks, from the frames whose numbers are finite."""
    names = ("pos", "cell", "energy", "forces", "stress")
    places = [k for k, f in enumerate(data) if all(bool(f[name].isfinite().all()) for name in names if name in f)]
    finite = [data[k] for k in places]
    where = np.array(places, dtype=np.int64)
    kinds = [kind._replace(first=where[kind.first], second=where[kind.second]) for kind in near_pairs(finite)]
    return Evidence(kinds, stiffnesses(finite))


def _named(data: Sequence[Data], frames: list[int]) -> str:
    """The frames of a finding: "Frames 3, 5 of `x.extxyz`."."""
    places = [place_of(data[k], k) for k in frames[:SHOWN]]
    numbers, source = [place.split()[1] for place in places], " ".join(places[0].split()[2:])
    more = f" and {len(frames) - SHOWN} more" if len(frames) > SHOWN else ""
    named = f"Frames {', '.join(numbers)}{more}" if len(frames) > 1 else f"Frame {numbers[0]}"
    return f"{named} {source}".rstrip() + "."


def _where(data: Sequence[Data], suspicious: Callable[[Data], bool]) -> list[int]:
    return [index for index, frame in enumerate(data) if suspicious(frame)]


def _in(frames: list[int], sentence: str) -> Finding:
    """A finding about some frames; without frames, the check has passed."""
    return Finding(frames, sentence if frames else "", failed=bool(frames))


def _check_finite(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    names = ("pos", "cell", "energy", "forces", "stress")
    frames = _where(data, lambda f: any(name in f and not bool(f[name].isfinite().all()) for name in names))
    return _in(frames, "Some numbers are NaN or infinite; remove these frames or label them again.")


def _check_labels(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    """Frames of the same elements and periodicity have the same labels; clusters and crystals may differ."""
    kinds: dict[tuple[frozenset[int], str], list[int]] = {}
    for index, frame in enumerate(data):
        kinds.setdefault((frozenset(frame.z.tolist()), str(frame.pbc.tolist())), []).append(index)
    missing, partial = [], set()
    for indices in kinds.values():
        for name in ("energy", "forces", "stress"):
            without = [k for k in indices if name not in data[k]]
            if 0 < len(without) < len(indices):
                missing += without
                partial.add(name)
    return _in(sorted(set(missing)), f"Labels that similar frames have ({', '.join(sorted(partial))}) are missing.")


def _check_distances(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    def near(frame: Data) -> bool:
        if min_distance(frame) < limits.min_distance:
            return True
        pairs, _, vectors = bonds_of(frame, limits.min_bond)
        return bool(len(pairs) and len(vectors))

    return _in(
        _where(data, near),
        f"Two atoms are nearer than {limits.min_distance} Angstrom, or than {limits.min_bond} of the sum of their "
        "covalent radii: (a) a broken geometry, (b) a wrong unit of length or a wrong cell, or (c) wrong elements.",
    )


def _check_duplicates(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    """Frames whose geometry, up to rotation and translation, has occurred before: they may leak across a split."""
    seen: set[bytes] = set()
    frames = set()
    for index, frame in enumerate(data):
        key = _geometry_key(frame)
        if key in seen:
            frames.add(index)
        seen.add(key)
    frames |= {b for _, b in _equal_pairs(evidence)}
    return _in(sorted(frames), "The same geometry occurred before; a copy in the test set makes its error too small.")


def _equal_pairs(evidence: Evidence) -> list[tuple[int, int]]:
    """Pairs of frames that differ by a rotation and a translation only."""
    return [
        (int(a), int(b))
        for kind in evidence.kinds
        for a, b, distance, strain_work, mirrored in zip(
            kind.first, kind.second, kind.distance, kind.strain_work, kind.mirrored, strict=True
        )
        if distance < SAME and strain_work == 0 and not mirrored
    ]


def _geometry_key(frame: Data) -> bytes:
    digest = hashlib.sha256(frame.z.numpy().tobytes())
    for values in (frame.pos, frame.cell):
        digest.update((values.numpy().round(5) + 0.0).tobytes())  # + 0.0 turns -0.0 into 0.0
    return digest.digest()


def _check_equal(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    """Equal geometries have equal energies: a network sees neither charge nor spin."""
    by_key: dict[bytes, int] = {}
    pairs = set(_equal_pairs(evidence))
    for index, frame in enumerate(data):
        first = by_key.setdefault(_geometry_key(frame), index)
        if first != index:
            pairs.add((first, index))
    both = [(a, b) for a, b in sorted(pairs) if "energy" in data[a] and "energy" in data[b]]
    unequal = [(a, b) for a, b in both if abs(float(data[a].energy - data[b].energy)) > 1e-3]
    states = sorted({name for a, b in unequal for name in ("charge", "spin") if data[a].get(name) != data[b].get(name)})
    cause = f"they differ in {' and '.join(states)}, which a network does not see" if states else (
        "their labels are shuffled, or of different methods, charges or spins"
    )  # fmt: skip
    frames = sorted({k for pair in unequal for k in pair})
    return _in(frames, f"Equal geometries have different energies: {cause}.")


def _check_net_force(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    frames = _where(data, lambda f: "forces" in f and float(f.forces.sum(dim=0).norm()) > limits.net_force)
    return _in(
        frames,
        f"The forces add up to more than {limits.net_force} eV/Angstrom; a model without external field cannot learn "
        "that: (a) loose integration grids, (b) wrong forces key, or (c) an atom is missing.",
    )


def _check_torque(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    """The forces of an open system have no torque; those of a crystal whose cell is missing do."""

    def turned(frame: Data) -> bool:
        if "forces" not in frame or bool(frame.pbc.any()) or len(frame.z) < 2:
            return False
        r, f = (frame.pos - frame.pos.mean(dim=0)).numpy(), frame.forces.numpy()
        torque = float(np.linalg.norm(np.cross(r, f).sum(axis=0)))
        whole = float((np.linalg.norm(r, axis=1) * np.linalg.norm(f, axis=1)).sum())
        return torque > max(limits.torque * whole, limits.net_force)

    return _in(
        _where(data, turned),
        "The forces of an open structure have a net torque, as with a missing cell or field: (a) the cell or pbc "
        "was lost, (b) forces and positions belong to different frames or orientations, or (c) an atom is missing.",
    )


def _check_forces(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    frames = _where(data, lambda f: "forces" in f and float(f.forces.norm(dim=1).max()) > limits.max_force)
    return _in(
        frames,
        f"A force is above {limits.max_force} eV/Angstrom: a failed calculation, atoms too near, or a wrong unit.",
    )


def _check_energies(data: Sequence[Data], limits: CheckLimits, evidence: Evidence) -> Finding:
    """Energies far outside the range that 90 % of their composition have."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, frame in enumerate(data):
        if "energy" in frame:
            groups.setdefault(tuple(sorted(frame.z.tolist())), []).append(index)
    frames = []
    for indices in groups.values():
        energies = np.array([float(data[index].energy) for index in indices])
        frames += [indices[k] for k in _outliers(energies, limits.energy_widths)]
    return _in(
        sorted(frames),
        f"An energy is over {limits.energy_widths:g} times the width of its composition's 5-95 % range away from it: "
        "an unconverged calculation, another level of theory, or a broken geometry.",
    )


def _outliers(values: np.ndarray, widths: float) -> np.ndarray:
    """Indices of the values far outside the 5-95 % range; a range of fewer than 20 values is meaningless."""
    if len(values) < 20 or not np.isfinite(values).all():
        return np.empty(0, dtype=int)
    low, high = np.quantile(values, [0.05, 0.95])
    return np.flatnonzero(np.maximum(low - values, values - high) > widths * max(high - low, 1e-6))


CHECKS: dict[str, Check] = {
    "all numbers finite": _check_finite,
    "labels complete": _check_labels,
    "no atoms too near": _check_distances,
    "lengths fit the elements": lambda data, _, __: plausibility.check_lengths(data),
    "elements fit the bonds": lambda data, _, __: plausibility.check_elements(data),
    "no cell too small": lambda data, _, __: plausibility.check_density(data),
    "no cell lost": _check_torque,
    "no duplicate geometry": _check_duplicates,
    "equal geometries have equal labels": _check_equal,
    "no net force": _check_net_force,
    "no extreme force": _check_forces,
    "forces fit the bonds": lambda _, __, evidence: plausibility.check_stiffness(evidence.stiffnesses),
    "forces agree with energies": lambda data, _, evidence: check_forces_and_energies(data, evidence),
    "stress agrees with energies": lambda data, _, evidence: check_stress(data, evidence),
    "no energy outlier": _check_energies,
    "one reference for all energies": lambda data, _, evidence: check_references(data, evidence),
}
