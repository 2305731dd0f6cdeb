"""Bad calls of the Python API: the calculators, the readers, and what a notebook calls."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

import mdrelax
from mdrelax import datasets
from mdrelax.engines.md import run_md

__all__ = ["Call", "bad_calls"]

WATER = ("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
NAN = float("nan")


class Call(NamedTuple):
    """A call that has to raise, and how it is written."""

    kind: str
    written: str
    call: Callable[[], Any]


def bad_calls(good: dict[str, Path], folder: Path) -> Iterator[Call]:
    """All of them."""
    yield from _structures(good["model"])
    yield from _makers(good)
    yield from _runs(good, folder)
    yield from _readers(good, folder)


def _water(**changes: Any) -> Atoms:
    atoms = Atoms(*WATER)
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


STRUCTURES: dict[str, Callable[[], Atoms]] = {
    "no atoms": Atoms,
    "NaN position": lambda: Atoms("OH", [[0, 0, 0], [NAN, 0, 0]]),
    "infinite position": lambda: Atoms("OH", [[0, 0, 0], [np.inf, 0, 0]]),
    "atoms at one point": lambda: Atoms("OH", [[0, 0, 0], [0, 0, 0]]),
    "unknown element": lambda: Atoms("N2", [[0, 0, 0], [0, 0, 1.1]]),
    "dummy atom": lambda: Atoms("XH", [[0, 0, 0], [0, 0, 1.1]]),
    "element 200": lambda: Atoms(numbers=[200, 1], positions=[[0, 0, 0], [0, 0, 1.1]]),
    "singular cell": lambda: _water(pbc=True),
    "flat cell": lambda: _water(cell=[5, 5, 0], pbc=True),
    "NaN cell": lambda: _water(cell=[5, 5, NAN], pbc=True),
    "tiny cell": lambda: _water(cell=[0.05, 0.05, 0.05], pbc=True),
    "huge numbers": lambda: Atoms("OH", [[0, 0, 0], [1e300, 0, 0]], cell=[5, 5, 5], pbc=True),
}


def _structures(model: Path) -> Iterator[Call]:
    """Impossible structures, for energy, forces and many at once."""
    calculator = mdrelax.MDRelaxCalculator.from_file(model)

    def single(make: Callable[[], Atoms], method: str) -> Any:
        atoms = make()
        atoms.calc = calculator
        return getattr(atoms, method)()

    for kind, make in STRUCTURES.items():
        for method in ("get_potential_energy", "get_forces"):
            yield Call(kind, f"atoms.{method}()  # {kind}", lambda make=make, method=method: single(make, method))
        written = f"calculator.calculate_many([water, atoms])  # {kind}"
        yield Call(kind, written, lambda make=make: calculator.calculate_many([_water(), make()]))
    yield Call("no volume", "water.get_stress()", lambda: single(_water, "get_stress"))
    yield Call("no structure", "calculator.calculate_many(['water'])", lambda: calculator.calculate_many(["water"]))
    for directions in (np.zeros((2, 2)), np.full((1, 3, 3), NAN), "x"):
        written = f"calculator.get_hessian_products(water, {directions!r:.40})"
        yield Call(
            "directions", written, lambda directions=directions: calculator.get_hessian_products(_water(), directions)
        )


def _makers(good: dict[str, Path]) -> Iterator[Call]:
    """Calculators, models and schedules that cannot be made."""
    model, read = good["model"], mdrelax.MDRelaxCalculator.from_file
    for options in (
        {"dtype": "float16"}, {"dtype": "flaot64"}, {"dtype": 64}, {"device": "abacus"}, {"device": "cuda:99"},
        {"skin": -1.0}, {"skin": NAN}, {"skin": "wide"},
    ):  # fmt: skip
        yield Call(
            "option", f"MDRelaxCalculator.from_file(model, **{options})", lambda options=options: read(model, **options)
        )
    for name in ("water", "frames", "config", "run"):
        path = good[name]
        yield Call("no model", f"MDRelaxCalculator.from_file({path.name!r})", lambda path=path: read(path))
        yield Call("no model", f"load_model({path.name!r})", lambda path=path: mdrelax.load_model(path))
        written = f"MDRelaxCalculator.from_compiled({path.name!r})"
        yield Call("no model", written, lambda path=path: mdrelax.MDRelaxCalculator.from_compiled(path))
        if name != "run":
            written = f"CommitteeCalculator.from_file({path.name!r})"
            yield Call("no model", written, lambda path=path: mdrelax.CommitteeCalculator.from_file(path))
    yield Call("no model", "load_model('nowhere')", lambda: mdrelax.load_model("nowhere"))
    yield Call("no model", "CommitteeCalculator([])", lambda: mdrelax.CommitteeCalculator([]))
    yield Call("no model", "ForceField(None, elements=(1,))", lambda: mdrelax.ForceField(None, elements=(1,)))  # type: ignore[arg-type]
    for settings in ({"peak": 1.3}, {"peak": NAN}, {"kind": "squre"}, {"end": -1}, {"ramp": 0.7}):
        yield Call("schedule", f"Schedule(**{settings}).check()", lambda own=settings: mdrelax.Schedule(**own).check())


def _runs(good: dict[str, Path], folder: Path) -> Iterator[Call]:
    """Molecular dynamics and trainings that make no sense."""
    calculator = mdrelax.MDRelaxCalculator.from_file(good["model"])

    def md(**options: Any) -> Any:
        atoms = _water()
        atoms.calc = calculator
        return run_md(atoms, **{"ensemble": "nve", "temperature_K": 1.0, "duration_ps": 0.001, **options})

    for options in (
        {"ensemble": "npt"}, {"temperature_K": -1.0}, {"temperature_K": NAN}, {"temperature_K": np.inf},
        {"duration_ps": -1.0}, {"duration_ps": NAN}, {"duration_ps": np.inf}, {"timestep_fs": 0.0},
        {"timestep_fs": NAN}, {"timestep_fs": -0.5}, {"ensemble": "nvt", "friction_per_fs": -1.0},
        {"ensemble": "nvt", "friction_per_fs": NAN}, {"log_interval": 0}, {"trajectory_interval": -3}, {"seed": 1.5},
    ):  # fmt: skip
        yield Call("dynamics", f"run_md(water, **{options})", lambda options=options: md(**options))
    config, place = str(good["config"]), folder / "trained"
    for first, data in (
        ("nowhere.yaml", None), (str(good["model"]), None), ({}, None), ({"trainng": {}}, None), (3, None),
        (None, None), (config, "nowhere.extxyz"), (config, []), (config, [1, 2]), (config, [Atoms("H")] * 40),
        (config, 3),
    ):  # fmt: skip
        written = f"train({Path(first).name if isinstance(first, str) else first!r}, {data!r:.60}, folder=...)"
        yield Call("training", written, lambda first=first, data=data: mdrelax.train(first, data, folder=place))  # type: ignore[arg-type]


def _readers(good: dict[str, Path], folder: Path) -> Iterator[Call]:
    """Data sets that cannot be read."""
    for options in (
        {"format": "xls"}, {"energy_unit": "kcla/mol"}, {"energy_kye": "E"}, {"forces_sign": "upside down"},
        {"length_unit": ""}, {"stress_unit": "bar/eV"}, {"energy_key": "nowhere"}, {"labels": "revised"},
    ):  # fmt: skip
        written = f"load_frames('frames.extxyz', **{options})"
        yield Call("reading", written, lambda options=options: datasets.load_frames(good["frames"], **options))
    for source in (
        "nowhere.extxyz",
        "",
        "sample:ethane",
        "rmd17:ethanl",
        "nbody:chargd",
        "*.nothing",
        [],
        folder,
        "\0",
    ):
        shown = source.name if isinstance(source, Path) else source
        yield Call("source", f"load_frames({shown!r})", lambda source=source: datasets.load_frames(source))
    for number, (kind, arrays) in enumerate(_arrays().items()):
        path = folder / f"arrays-{number}.npz"
        np.savez(path, **arrays)
        yield Call(f"npz: {kind}", f"load_frames(npz)  # {kind}", lambda path=path: datasets.load_frames(path))


def _arrays() -> dict[str, dict[str, Any]]:
    z, positions, energies = np.array([8, 1, 1]), np.random.default_rng(0).normal(size=(4, 3, 3)), np.zeros(4)
    whole = {"z": z, "R": positions, "E": energies, "F": np.zeros((4, 3, 3))}
    return {
        "nothing": {},
        "no energies": {key: whole[key] for key in "zRF"},
        "no positions": {key: whole[key] for key in "zEF"},
        "complex": {**whole, "R": positions.astype(complex)},
        "words": {**whole, "E": np.array(list("abcd"))},
        "dates": {**whole, "E": np.zeros(4, "datetime64[s]")},
        "too few energies": {**whole, "E": np.zeros(3)},
        "two dimensions": {**whole, "R": positions[:, :, :2]},
        "no frames": {**whole, "R": positions[:0], "E": energies[:0], "F": positions[:0]},
        "no atoms": {**whole, "z": z[:0], "R": positions[:, :0], "F": positions[:, :0]},
        "NaN": {**whole, "R": np.full((4, 3, 3), NAN)},
        "charges of half": {**whole, "z": np.array([8.5, 1, 1])},
        "element 0": {**whole, "z": np.array([0, 1, 1])},
        "element 1000": {**whole, "z": np.array([1000, 1, 1])},
    }
