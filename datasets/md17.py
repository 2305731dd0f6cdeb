"""MD17, rMD17 and MD22: molecular trajectories in npz files, read into eV and Angstrom.

Two layouts are known by their keys:

- rMD17 (Christensen & von Lilienfeld 2020, doi 10.6084/m9.figshare.12672038): ``nuclear_charges`` (N,), ``coords``
  (F, N, 3), ``energies`` (F,), ``forces`` (F, N, 3), and the original MD17 labels of the same frames as
  ``old_energies``, ``old_forces``; kcal/mol and Angstrom.
- sGDML (MD17, MD22; Chmiela et al. 2017, 2023): ``z`` (N,), ``R`` (F, N, 3), ``E`` (F,) or (F, 1), ``F`` (F, N, 3);
  kcal/mol and Angstrom unless the file's own ``e_unit``, ``r_unit`` say otherwise. A crystal has ``lattice`` (3, 3),
  whose *columns* are the lattice vectors.

Any of them may have a ``cell`` (3, 3) or (F, 3, 3), whose rows are the lattice vectors, and ``pbc``.
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.formula import Formula
from ase.symbols import Symbols
from torch_geometric.data import Data

from mdrelax.base import units
from mdrelax.base.places import frame_name
from mdrelax.datasets.frames import Frames, check_structure, make_frame, report_on, require_finite

__all__ = ["MD17_FORMULAS", "RMD17_MAX_TRAIN", "load_md17", "warn_about_md17_noise"]

MD17_FORMULAS = {
    "aspirin": "C9H8O4",
    "azobenzene": "C12H10N2",
    "benzene": "C6H6",
    "ethanol": "C2H6O",
    "malonaldehyde": "C3H4O2",
    "naphthalene": "C10H8",
    "paracetamol": "C8H9NO2",
    "salicylic": "C7H6O3",
    "toluene": "C7H8",
    "uracil": "C4H4N2O2",
}
RMD17_MAX_TRAIN = 1000  # limit recommended by the authors: frames are correlated in time


class _Layout(NamedTuple):
    """The key of each array in one kind of npz file, and the ``config_type`` its frames get."""

    numbers: str
    positions: str
    energy: str
    forces: str
    config_type: str


RMD17 = _Layout("nuclear_charges", "coords", "energies", "forces", "rmd17")
RMD17_OLD = _Layout("nuclear_charges", "coords", "old_energies", "old_forces", "rmd17-original")
SGDML = _Layout("z", "R", "E", "F", "sgdml")
COLUMNS = "lattice"  # sGDML: lattice vectors are columns
ROWS = ("cell", "cells", "_cell", "box", "boxes", "unit_cell", "lattices")  # as in ASE
PERIODIC = ("pbc", "_pbc")
UNITS = ("e_unit", "r_unit")
READ = {*RMD17[:4], *RMD17_OLD[:4], *SGDML[:4], COLUMNS, *ROWS, *PERIODIC, *UNITS, "theory"}
# Metadata of the publishers, and the old labels and frame numbers of rMD17.
EXTREMES = {f"{label}_{moment}" for label in "EF" for moment in ("min", "max", "mean", "var")}
DESCRIPTION = {"type", "name", "md5", "code_version", "old_indices", *EXTREMES}


def load_md17(
    path: str | Path,
    *,
    labels: str | None = None,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    forces_unit: str | None = None,
) -> Frames:
    """Read an MD17, rMD17 or MD22 npz file into frames in eV and Angstrom.

    ``labels`` chooses between the ``"revised"`` (default) and the ``"original"`` labels of an rMD17 file. Units are
    those of the publishers (kcal/mol, Angstrom) unless given; forces are in energy/length unless ``forces_unit`` is
    given. Warns if the noisy original MD17 labels are used. Raises ``ValueError`` for a file of another kind
    (listing its keys), wrong shapes, a cell that cannot be read, or NaN (naming frame and atom).
    """
    source = Path(path).name
    arrays = _read_npz(Path(path))
    layout = _layout(arrays, labels, source)
    energy_name = energy_unit or _declared(arrays, "e_unit", "kcal/mol")
    length_name = length_unit or _declared(arrays, "r_unit", "Angstrom")
    energy, length = units.energy_unit(energy_name), units.length_unit(length_name)
    force = units.force_unit(forces_unit) if forces_unit else energy / length
    numbers, positions, energies, forces = _labels(arrays, layout, source)
    cells, pbc = _cells(arrays, len(energies), source)
    data = []
    for k, (x, e, f, cell) in enumerate(zip(positions * length, energies, forces, cells * length, strict=True)):
        check_structure(numbers, x, cell, pbc & cell.any(axis=1), source=source, number=k)
        data.append(
            make_frame(
                numbers,
                x,
                energy=e * energy,
                forces=f * force,
                cell=cell,
                pbc=pbc & cell.any(axis=1),
                config_type=layout.config_type,
                place=frame_name(k, source),
            )
        )
    if _is_noisy(layout, numbers, arrays):
        warnings.warn(_noise_sentence(source), UserWarning, stacklevel=2)
    keys = {"energy": layout.energy, "forces": layout.forces}
    unused = tuple(sorted(arrays.keys() - READ - DESCRIPTION))
    named = (energy_name, length_name, *([forces_unit] if forces_unit else []))
    return Frames(data, {}, report_on(data, source=source, keys=keys, units=named, unused_keys=unused))


def warn_about_md17_noise(train: Sequence[Data]) -> None:
    """Warn if more than 1,000 frames of rMD17 are trained on: neighbours in time leak the test set."""
    n_frames = sum(str(frame.config_type).startswith("rmd17") for frame in train)
    if n_frames > RMD17_MAX_TRAIN:
        warnings.warn(
            f"Training takes {n_frames} frames of rMD17; its authors ask for at most {RMD17_MAX_TRAIN}, because frames "
            f"close in time make the test error too small. Use those of one of the published index files.",
            UserWarning,
            stacklevel=2,
        )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays by key; those that are not needed are not read (empty)."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{path}`.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {key: _read_array(archive, key) if key in READ else np.empty(0) for key in archive.files}
    except Exception as error:  # numpy, zipfile, zlib and tokenize raise anything for a damaged file
        raise ValueError(
            f"`{path}` cannot be read as an npz file ({error!s:.200}); it is (a) cut off, (b) another kind of file, or "
            "(c) holds pickled objects, which are refused."
        ) from error


def _read_array(archive: Any, key: str) -> np.ndarray:
    """One array; raises ``ValueError`` for one whose header announces more bytes than follow."""
    with archive.zip.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        wanted, held = math.prod(shape) * dtype.itemsize, archive.zip.getinfo(f"{key}.npy").file_size
    if not 0 <= wanted <= held:
        raise ValueError(f"`{key}` of shape {shape} would have {wanted} bytes, and {held} are there")
    return archive[key]


def _layout(arrays: dict[str, np.ndarray], labels: str | None, source: str) -> _Layout:
    if labels not in (None, "revised", "original"):
        raise ValueError(f"`labels` must be revised or original, got `{labels}`.")
    if RMD17.positions in arrays or RMD17.numbers in arrays:
        layout = RMD17_OLD if labels == "original" else RMD17
    elif labels == "revised" and SGDML.positions in arrays:
        raise ValueError(f"`{source}` is in the original MD17 format and has no revised labels; fetch rMD17 instead.")
    else:
        layout = SGDML
    missing = [key for key in layout[:4] if key not in arrays]
    if missing:
        raise ValueError(
            f"`{source}` lacks {', '.join(missing)}; keys found: {', '.join(sorted(arrays)) or 'none'}. Expected are "
            f"{', '.join(RMD17[:4])} (rMD17) or {', '.join(SGDML[:4])} (MD17, MD22)."
        )
    return layout


def _declared(arrays: dict[str, np.ndarray], key: str, default: str) -> str:
    """The unit that an sGDML file declares, or the publishers' unit."""
    if key not in arrays:
        return default
    value = arrays[key].item()
    return value.decode() if isinstance(value, bytes) else str(value)


def _cells(arrays: dict[str, np.ndarray], n_frames: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Cells (F, 3, 3) in the file's unit, rows being lattice vectors and zeros for molecules, and pbc (3,).

    Raises ``ValueError`` for a cell or pbc of another shape.
    """
    named = [key for key in (COLUMNS, *ROWS) if key in arrays]
    pbc = np.array([bool(named)] * 3)
    for key in (key for key in PERIODIC if key in arrays):
        if arrays[key].size not in (1, 3):
            raise ValueError(f"`{key}` of `{source}` has shape {arrays[key].shape}; it must be one or three booleans.")
        pbc[:] = arrays[key].ravel().astype(bool)
    if not named:
        if pbc.any():
            raise ValueError(f"`{source}` is periodic (pbc), but has no cell; add it as `cell` of shape (3, 3).")
        return np.zeros((n_frames, 3, 3)), pbc
    cell = arrays[named[0]]
    if cell.size not in (9, 9 * n_frames) or cell.dtype.kind not in "fiu":
        raise ValueError(
            f"`{named[0]}` of `{source}` has shape {cell.shape}; it must be (3, 3), or ({n_frames}, 3, 3) with one "
            "cell for each frame."
        )
    cells = np.broadcast_to(cell.reshape(-1, 3, 3).astype(np.float64), (n_frames, 3, 3))
    return (np.swapaxes(cells, 1, 2) if named[0] == COLUMNS else cells), pbc


def _labels(
    arrays: dict[str, np.ndarray], layout: _Layout, source: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (N,), positions (F, N, 3), energies (F,), forces (F, N, 3); raises ``ValueError`` on wrong shapes."""
    for key in layout[:4]:
        if arrays[key].dtype.kind not in "fiu":
            raise ValueError(f"`{key}` of `{source}` holds {arrays[key].dtype}; it must hold real numbers.")
    if (arrays[layout.numbers] % 1 != 0).any():
        raise ValueError(f"`{layout.numbers}` of `{source}` must hold atomic numbers, which are whole.")
    numbers, positions = arrays[layout.numbers].astype(np.int64).ravel(), arrays[layout.positions]
    energies, forces = arrays[layout.energy].ravel(), arrays[layout.forces]
    expected = (len(energies), len(numbers), 3)
    if positions.shape != expected or forces.shape != expected:
        raise ValueError(
            f"`{source}` has {len(energies)} energies and {len(numbers)} atoms, but {layout.positions} of shape "
            f"{positions.shape} and {layout.forces} of shape {forces.shape}; both must be {expected}."
        )
    if not positions.size:
        raise ValueError(f"`{source}` holds no frames.")
    for label, values in (("energy", energies), ("positions", positions), ("forces", forces)):
        require_finite(label, values, source=source)
    return numbers, positions.astype(np.float64), energies.astype(np.float64), forces.astype(np.float64)


def _is_noisy(layout: _Layout, numbers: np.ndarray, arrays: dict[str, np.ndarray]) -> bool:
    """Original MD17 labels: the old ones of an rMD17 file, or one of its ten molecules at DFT level."""
    if layout is not SGDML:
        return layout is RMD17_OLD
    formula = Formula(Symbols(numbers).get_chemical_formula()).count()
    theory = str(arrays.get("theory", ""))
    return "CC" not in theory and any(Formula(known).count() == formula for known in MD17_FORMULAS.values())


def _noise_sentence(source: str) -> str:
    return (
        f"`{source}`: the original MD17 labels carry numerical noise (loose SCF and integration grids), which bounds "
        "the error that any model can reach; the revised labels (`mdrelax data fetch rmd17:...`) do not."
    )
