"""`mdrelax eval`: the errors of a finished model on labelled structures, and the behaviour of its dynamics."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdrelax.cli.harmonic import OF_HARMONIC, Harmonic, wanted_reference
from mdrelax.cli.harmonic import harmonic as compare_vibrations
from mdrelax.cli.options import with_label_options
from mdrelax.cli.output import refuse
from mdrelax.cli.packs import evaluated_by_pack
from mdrelax.cli.simulate import refuse_existing

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from ase import Atoms
    from matplotlib.figure import Figure
    from torch_geometric.data import Data

    from mdrelax.engines.ase import MDRelaxCalculator
    from mdrelax.engines.committee import CommitteeCalculator
    from mdrelax.forces.metrics import Predictions

Out = Annotated[
    Path | None,
    typer.Option(help="Folder for tables and pictures; default: runs/eval-NAME of the file, or of its run folder."),
]
ReferenceTrajectory = Annotated[
    Path | None,
    typer.Option(help="A trajectory of the same atoms with velocities: its vibrations are shown for comparison."),
]
ReferenceInterval = Annotated[
    float | None, typer.Option(min=0, help="fs between the frames of `--reference`; default: by its time_fs.")
]

EQUILIBRATION_PS = 1.0
TIMESTEP_FS = 0.5
INTERVAL = 4  # steps between frames: 2 fs, enough for a C-H stretch
OF_DYNAMICS = (
    "nve.csv", "nve.traj", "nve.png", "bonds.csv", "bonds.png",
    "spectrum.csv", "reference_spectrum.csv", "spectrum.png",
)  # fmt: skip


@with_label_options
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors), or the run folder of a committee.")],
    data: Annotated[str, typer.Argument(help="Labelled structures: a file, `sample:ethanol`, `rmd17:ethanol`, ...")],
    out: Out = None,
    frames: Annotated[int | None, typer.Option(help="Largest number of structures, spread over the set.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Structures of the largest force errors, in worst.extxyz.")] = 10,
    nve: Annotated[float, typer.Option(min=0, help="ps of NVE dynamics from the first structure; 0: none.")] = 0.0,
    temperature: Annotated[float, typer.Option(min=0, help="K, of the dynamics.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Seed of the dynamics' momenta and noise.")] = 0,
    reference: ReferenceTrajectory = None,
    reference_interval: ReferenceInterval = None,
    harmonic: Harmonic = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile first (minutes) for faster steps.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing evaluation.")] = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Measure errors by element, kind of structure and percentile; compare vibrations; run NVE, compare its bonds."""
    from mdrelax import datasets
    from mdrelax.base.provenance import command_line, environment
    from mdrelax.datasets.structure_files import spread
    from mdrelax.engines.committee import open_calculator

    folder = out or Path("runs") / f"eval-{_name(model)}"
    if evaluated_by_pack(model, data, folder, number=frames):
        return
    _check(folder, frames=frames, overwrite=overwrite, reference=reference, nve=nve)
    loaded = datasets.load_frames(data, **reading)
    typer.echo(loaded.report)
    structures = loaded.data if frames is None else spread(loaded.data, frames)
    atoms = [datasets.to_atoms(frame) for frame in structures]
    wanted = None if harmonic is None else _wanted(harmonic, model, atoms[0])
    recorded = None if reference is None else _recorded(reference, reference_interval, atoms[0])
    summary: dict[str, Any] = {
        "command": command_line(), "environment": environment(device="cpu", seed=seed), "model": model.name,
        **_identity(model), "data": Path(data).name, "n_structures": len(structures),
    }  # fmt: skip
    calculator = open_calculator(model, compile=compile)
    _enter(folder, overwrite=overwrite)
    summary["errors"] = _errors(folder, calculator, structures, worst)
    _write(folder / "eval.json", json.dumps(summary, indent=2))  # before dynamics that may take hours
    if wanted is not None:
        summary["harmonic"] = compare_vibrations(folder, model, wanted)
        _write(folder / "eval.json", json.dumps(summary, indent=2))
    if nve > 0:
        summary["md"] = _dynamics(folder, calculator, atoms, recorded, ps=nve, temperature=temperature, seed=seed)
        _write(folder / "eval.json", json.dumps(summary, indent=2))
    typer.echo(f"Tables and pictures: {folder}")


def _enter(folder: Path, *, overwrite: bool) -> None:
    """Make the folder; dynamics and vibrations of an older model may not stand next to the new errors."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*OF_DYNAMICS, *OF_HARMONIC) if overwrite else ():
        (folder / name).unlink(missing_ok=True)


def _check(folder: Path, *, frames: int | None, overwrite: bool, reference: Path | None, nve: float) -> None:
    """Raise ``ConfigError`` for invalid options before any computation."""
    from mdrelax.base.sections import ConfigError

    if frames is not None and frames < 1:
        raise ConfigError(f"`--frames` must be at least 1, got {frames}.")
    if reference is not None and nve <= 0:
        raise ConfigError("`--reference` is compared with the dynamics of `--nve`; give both.")
    if not overwrite:
        refuse_existing(folder / "eval.json")


def _wanted(harmonic: str, model: Path, atoms: "Atoms") -> Any:
    """The reference of ``--harmonic``; raises ``ConfigError`` for a committee, which has no Hessian."""
    from mdrelax.engines.committee import is_committee

    if is_committee(model):
        refuse("`--harmonic` compares one model: name a member's file, `member-0/model.safetensors`.")
    return wanted_reference(harmonic, atoms)


def _name(model: Path) -> str:
    """The name of the file, or of its folder if the file has the default name of a run."""
    return model.resolve().parent.name if model.stem == "model" else model.stem


def _identity(model: Path) -> dict[str, Any]:
    """The identity of the network: its content hash, and seed and schedule of its training if recorded."""
    from mdrelax.engines.committee import is_committee, model_files
    from mdrelax.modelfile import load_model

    if is_committee(model):
        return {"members": [_identity(member) for member in model_files(model)]}
    header = load_model(model).header
    config = header.get("card", {}).get("config", {})
    trained = {"seed": config.get("training", {}).get("seed"), "schedule": config.get("relaxation", {}).get("schedule")}
    return {"model_content": header["content"], "trained": trained}


def _recorded(path: Path, interval_fs: float | None, like: "Atoms") -> "pd.DataFrame":
    """The velocity spectrum of a reference trajectory; raises ``ConfigError`` if it has no velocities."""
    from mdrelax.analysis.spectra import velocity_spectrum
    from mdrelax.base.sections import ConfigError
    from mdrelax.datasets.structure_files import read_structures

    frames = read_structures(path)
    if frames[0].numbers.tolist() != like.numbers.tolist():
        raise ConfigError(f"`{path}` is of {frames[0].symbols}, the dynamics of {like.symbols}; name one of these.")
    times = [frame.info["time_fs"] for frame in frames[:2] if "time_fs" in frame.info]
    if interval_fs is None:
        if len(times) < 2:
            raise ConfigError(f"`{path}` does not contain the times of its frames; give `--reference-interval` in fs.")
        interval_fs = times[1] - times[0]
    if not any(frame.has("momenta") for frame in frames):
        raise ConfigError(f"`{path}` has no velocities; write them with the trajectory (ASE: momenta).")
    return velocity_spectrum(frames, interval_fs)


def _errors(
    folder: Path, calculator: "MDRelaxCalculator | CommitteeCalculator", structures: "list[Data]", worst: int
) -> dict[str, Any]:
    """Print the errors, and write their tables, figures and worst structures to the folder."""
    from mdrelax.forces import metrics
    from mdrelax.forces.dispersion import with_dispersion, without_dispersion
    from mdrelax.forces.loader import frames_from_data
    from mdrelax.forces.predict import predictions_of
    from mdrelax.forces.spread import mean_of

    fields = calculator.members
    functional, species_of = fields[0].physics.subtracted, fields[0].species_of
    frames = without_dispersion(structures, functional)
    batches = frames_from_data(frames, cutoff=fields[0].cutoff, check=species_of)
    stress = any("stress" in frame for frame in structures)
    if stress and "stress" not in calculator.implemented_properties:
        typer.echo("The model predicts forces directly, so it has no stress: that of the data is left out.")
        stress = False
    learnt, spread = mean_of([predictions_of(field, batches, stress=stress) for field in fields])
    predictions = with_dispersion(learnt, structures, functional)
    errors: dict[str, Any] = metrics.errors(predictions)
    _tables(folder, predictions, [frame.config_type for frame in structures])
    _worst(folder, predictions, structures, worst)
    typer.echo(_text(errors, len(structures)))
    if spread is not None and predictions.forces_true is not None:
        errors["uncertainty"] = _calibration(folder, predictions, spread)
    return errors


def _calibration(folder: Path, predictions: "Predictions", spread: Any) -> dict[str, Any]:
    """calibration.csv and calibration.png of a committee, and a line."""
    from mdrelax.analysis import figures
    from mdrelax.forces.spread import calibration

    found = calibration(predictions, spread)
    _write(folder / "calibration.csv", found.table.to_csv(index=False))
    _picture(folder / "calibration.png", lambda: figures.calibration_plot(found))
    typer.echo(
        f"Spread of the forces {found.summary['spread_rms_meV_per_A']:.4g} meV/A, their error "
        f"{found.summary['error_rms_meV_per_A']:.4g} meV/A: errors are {found.summary['factor']:.2f} times the spread."
    )
    return found.summary


def _text(errors: dict[str, float], n: int) -> str:
    names = {
        "forces_mae_meV_per_A": "force MAE, meV/A", "forces_rmse_meV_per_A": "force RMSE, meV/A",
        "forces_mae_kcal_per_mol_per_A": "force MAE, kcal/mol/A",
        "forces_rmse_kcal_per_mol_per_A": "force RMSE, kcal/mol/A",
        "energy_mae_meV": "energy MAE, meV", "energy_rmse_meV": "energy RMSE, meV",
        "energy_mae_meV_per_atom": "energy MAE, meV/atom", "energy_rmse_meV_per_atom": "energy RMSE, meV/atom",
        "energy_mae_kcal_per_mol": "energy MAE, kcal/mol", "energy_rmse_kcal_per_mol": "energy RMSE, kcal/mol",
        "stress_mae_meV_per_A3": "stress MAE, meV/A^3", "stress_rmse_meV_per_A3": "stress RMSE, meV/A^3",
    }  # fmt: skip
    lines = [f"{n} structures"] + [f"  {names[key]:24s}{errors[key]:10.4g}" for key in names if key in errors]
    return "\n".join(lines)


def _tables(folder: Path, predictions: "Predictions", config_types: list[str]) -> None:
    """errors_by_element.csv, errors_by_config_type.csv, percentiles.csv and parity.png."""
    from mdrelax.analysis import figures
    from mdrelax.analysis.evaluation import errors_by_config_type
    from mdrelax.forces import metrics

    tables = {
        "errors_by_element": metrics.errors_by_element(predictions),
        "errors_by_config_type": errors_by_config_type(predictions, config_types),
        "percentiles": metrics.error_percentiles(predictions),
    }
    for name, table in tables.items():
        _write(folder / f"{name}.csv", table.to_csv(index=False))
        if len(table) > 1:
            typer.echo("\n" + table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    _picture(folder / "parity.png", lambda: figures.parity(predictions))


def _worst(folder: Path, predictions: "Predictions", structures: list[Any], number: int) -> None:
    """worst.extxyz: references and predictions of the worst structures, worst first."""
    import numpy as np

    from mdrelax.analysis.evaluation import take, worst_structures
    from mdrelax.datasets import write_predictions

    if number < 1:
        return
    places = worst_structures(predictions, number)
    chosen = take(predictions, places)
    ends = chosen.n_atoms.cumsum()[:-1]
    forces = None if chosen.forces_pred is None else np.split(chosen.forces_pred, ends)
    write_predictions(
        folder / "worst.extxyz", [structures[k] for k in places], energies=chosen.energy_pred, forces=forces
    )


def _dynamics(
    folder: Path, calculator: "MDRelaxCalculator | CommitteeCalculator", data: "list[Atoms]",
    recorded: "pd.DataFrame | None", *, ps: float, temperature: float, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """NVE after a short NVT, and the files ``OF_DYNAMICS`` up to its end."""
    from ase.io import iread

    from mdrelax.analysis import figures, spectra
    from mdrelax.analysis.trajectory import broken_bonds
    from mdrelax.engines.nve import nve_after_langevin

    start, path = data[0], folder / "nve.traj"
    start.calc = calculator
    result = nve_after_langevin(
        start, temperature_K=temperature, warm_up_ps=EQUILIBRATION_PS, duration_ps=ps, seed=seed,
        timestep_fs=TIMESTEP_FS, log=folder / "nve.csv", trajectory=path, trajectory_interval=INTERVAL,
    )  # fmt: skip
    trajectory = list(iread(path)) if path.is_file() else []
    broken = None if start.pbc.any() else broken_bonds(trajectory, start)
    found = {
        "duration_ps": ps, "temperature_K": float(result.log["temperature_K"].mean()),
        "drift_meV_per_atom_per_ps": result.drift_meV_per_atom_ps, "exploded": result.exploded,
        "reason": result.reason, "first_broken_bond_ps": None if broken is None else broken.time_fs / 1000,
    }  # fmt: skip
    if trajectory:
        _picture(folder / "nve.png", lambda: figures.md_energy(result.log, n_atoms=len(start)))
    if trajectory and not start.pbc.any():
        like = [atoms for atoms in data if (atoms.numbers.tolist() == start.numbers.tolist())]
        own, reference = (spectra.bond_lengths(frames, start) for frames in (trajectory, like))
        table = spectra.bond_table(own, reference)
        _write(folder / "bonds.csv", table.to_csv(index=False))
        _picture(folder / "bonds.png", lambda: spectra.draw_bonds(own, reference))
        typer.echo("\n" + table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
    if len(trajectory) >= 16:
        spectrum = spectra.velocity_spectrum(trajectory, TIMESTEP_FS * INTERVAL)
        _write(folder / "spectrum.csv", spectrum.to_csv(index=False))
        if recorded is not None:
            found["vibrations_distance_per_cm"] = spectra.spectrum_distance(spectrum, recorded)
            _write(folder / "reference_spectrum.csv", recorded.to_csv(index=False))
            typer.echo(f"Vibrations: {found['vibrations_distance_per_cm']:.1f} / cm from those of the reference.")
        _picture(folder / "spectrum.png", lambda: spectra.draw_spectrum(spectrum, recorded))
    verdict = f"EXPLODED: {found['reason']}" if found["exploded"] else "stable"
    if broken is not None:
        verdict += f", a bond broke after {found['first_broken_bond_ps']:g} ps"
    drift = found["drift_meV_per_atom_per_ps"]
    typer.echo(f"NVE at {temperature:g} K, {ps:g} ps: drift {drift:+.4f} meV/atom/ps, {verdict}.")
    return found


def _write(path: Path, text: str) -> None:
    from mdrelax.base.files import write_atomically

    write_atomically(path, text.encode())


def _picture(path: Path, draw: "Callable[[], Figure]") -> None:
    """Draw the available data into a file."""
    from mdrelax.analysis.drawing import save

    save(path, draw)
