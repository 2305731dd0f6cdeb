"""Sources: one name, several, a folder or a pattern, as the files that they stand for; and their frames together."""

import glob
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mdrelax.datasets.frames import Frames, LabelReport, shortened

__all__ = ["expand", "joined"]

SAME_ENERGY = 1e-6  # eV: isolated atoms of two files


def expand(source: str | Path | Sequence[str | Path], known: Callable[[Path], bool]) -> list[str]:
    """The names in ``source``: files in rising order in place of folders and patterns such as ``runs/**/OUTCAR``.

    In folders, also inner ones, the files whose format is ``known`` count; a pattern takes what it fits. Raises
    ``ValueError`` for a list without names, and ``FileNotFoundError`` for a folder or pattern without files.
    """
    if not isinstance(source, str | Path):
        if not source:
            raise ValueError("`data.source` is an empty list; name at least one file.")
        return [name for each in source for name in expand(each, known)]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*") if file.is_file() and known(file))
        if not found:
            raise FileNotFoundError(f"The folder `{source}` holds no file whose name shows a data format.")
        return found
    if glob.has_magic(str(source)) and not path.exists():
        found = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
        if not found:
            raise FileNotFoundError(f"No file fits the pattern `{source}`.")
        return found
    return [str(source)]


def joined(parts: Sequence[Frames]) -> Frames:
    """The frames of several sources as one set; raises ``ValueError`` for isolated atoms of two energies."""
    if len(parts) == 1:
        return parts[0]
    energies: dict[int, float] = {}
    for part in parts:
        for number, energy in part.isolated_energies.items():
            if abs(energies.setdefault(number, energy) - energy) > SAME_ENERGY:
                raise ValueError(
                    f"Isolated atoms of atomic number {number} have the energies {energies[number]} and {energy} eV in "
                    f"two of the files, `{part.report.source}` being the second: keep one, or train on one level of "
                    "theory."
                )
    data = [frame for part in parts for frame in part.data]
    return Frames(data, energies, _report([part.report for part in parts], len(energies)))


def _report(reports: Sequence[LabelReport], n_isolated: int) -> LabelReport:
    """One report on several files; what differs between them is named side by side."""
    labels = dict.fromkeys(label for report in reports for label in report.keys)
    axes = dict.fromkeys(name for report in reports for name in report.periodic)
    ranges = [report.energy_range for report in reports if report.energy_range is not None]
    symbols = {symbol: None for report in reports for symbol in report.elements}
    notes = [f"{report.source}: {note}" for report in reports for note in report.notes]
    return LabelReport(
        source=f"{len(reports)} files ({shortened([report.source for report in reports], 4)})",
        keys={label: _side_by_side(r.keys[label] for r in reports if label in r.keys) for label in labels},
        counts={label: sum(report.counts.get(label, 0) for report in reports) for label in labels},
        n_frames=sum(report.n_frames for report in reports),
        n_isolated=n_isolated,
        elements=tuple(symbols),
        periodic={name: sum(report.periodic.get(name, 0) for report in reports) for name in axes},
        units=tuple(dict.fromkeys(unit for report in reports for unit in report.units)),
        energy_range=(min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None,
        largest_force=max((r.largest_force for r in reports if r.largest_force is not None), default=None),
        shortest_distance=min((r.shortest_distance for r in reports if r.shortest_distance is not None), default=None),
        unused_keys=tuple(dict.fromkeys(key for report in reports for key in report.unused_keys)),
        units_assumed=tuple(dict.fromkeys(unit for report in reports for unit in report.units_assumed)),
        notes=tuple(notes),
    )


def _side_by_side(names: Iterable[str]) -> str:
    return "` and `".join(dict.fromkeys(names))
