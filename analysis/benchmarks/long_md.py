"""Long MD: trained networks over hundreds of thousands of steps, and whether they keep what dynamics must keep.

    data -> training (`mdrelax train`) -> compilation (`mdrelax export`) -> runs, each in a process of its own

Ten molecules: four of rMD17, and six labelled by GFN2-xTB (`mdrelax data generate`) at 800 K, so that the dynamics, at
300 and 500 K, stay within the training data. NVE of all of them with the compiled model, of two also with the plain
one, and a cell of silicon at constant pressure. Every stage resumes, and what is finished is not repeated.

| file | content |
| --- | --- |
| data/NAME/frames.extxyz | generated frames |
| models/NAME/ | the training run; model.pt2 is the compiled model |
| starts/NAME.xyz | the structure that the runs begin with |
| runs/NAME-ENSEMBLE-T/ | log, trajectory and state of a run |
| results/NAME-ENSEMBLE-T.json | what was measured, with versions, machine, date and command |
| results/long-md.md | the table of all results |
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms
from ase.build import bulk
from ase.io import write

from mdrelax.analysis.benchmarks import smoothness
from mdrelax.analysis.benchmarks.long_run import RESULT, LongRun
from mdrelax.analysis.markdown import markdown
from mdrelax.analysis.studies import forces, rmd17
from mdrelax.analysis.studies.measures import Factor
from mdrelax.analysis.studies.run_files import Run
from mdrelax.analysis.tables import read_json
from mdrelax.base.files import write_atomically
from mdrelax.base.sections import ConfigError
from mdrelax.compiled import file_hash
from mdrelax.datasets import load_frames
from mdrelax.datasets.frames import to_atoms
from mdrelax.runs.inputs import open_config
from mdrelax.runs.jobs import Start, run_side_by_side

__all__ = ["LIMIT", "MOLECULES", "QUICK", "SYSTEMS", "Inputs", "laws", "page", "planned", "read_results",
           "run_all"]  # fmt: skip

LIMIT = 0.1  # meV/atom/ps
SHORTEST = 1.0  # ps: the slope of a shorter run is that of the oscillation about it
GROWTH_MB = 5.0  # of memory, from a tenth of a run to its end
GENERATED = {  # ASE's names
    "methanol": "CH3OH", "methanethiol": "CH3SH", "dimethyl-ether": "CH3OCH3", "acetamide": "CH3CONH2",
    "acetone": "CH3COCH3", "benzene": "C6H6",
}  # fmt: skip
FRAMES, SAMPLING_K, SPACING_FS = 500, 800.0, 20.0
CRYSTALS: dict[str, Callable[[], Atoms]] = {
    "silicon": lambda: bulk("Si", cubic=True) * (2, 2, 2),
    "copper": smoothness.copper,
}
MOLECULES = (*rmd17.MOLECULES, *GENERATED)
QUICK = ("sample-ethanol", "copper")  # needs neither files nor extras
SYSTEMS = (*MOLECULES, "silicon", *QUICK)
PLAIN = ("ethanol", "aspirin", "sample-ethanol")  # also run without compilation
COMMAND = (sys.executable, "-m", "mdrelax")


class Inputs(NamedTuple):
    """What the benchmark is made from."""

    rmd17: Path | None = None  # folder with the published files; none: fetched trajectories
    silicon: Path | None = None  # an extxyz with energies, forces and stress
    models: Mapping[str, Path] = {}  # model files of systems that are not trained here
    steps: int = 2000  # of each training
    jobs: int = 1


# --- runs ---


def planned(
    systems: Sequence[str], temperatures: Sequence[float], *, ps: float, plain_ps: float, npt_ps: float, compiled: bool
) -> list[LongRun]:
    """The runs of some systems: NVE of molecules at all temperatures, NPT of crystals at the first one.

    Without ``compiled`` every run is plain. Raises ``ConfigError`` for an unknown system or a length that is not
    positive.
    """
    for name, value in (("--ps", ps), ("--plain-ps", plain_ps), ("--npt-ps", npt_ps)):
        if not value > 0:
            raise ConfigError(f"`{name}` must be > 0, got {value:g}.")
    for name in systems:
        if name not in SYSTEMS:
            raise ConfigError(f"There is no system `{name}`; choose from {', '.join(SYSTEMS)}.")
    molecules = [name for name in systems if name not in CRYSTALS]
    runs = [LongRun(name, t, ps) for name in molecules for t in temperatures if compiled]
    runs += [
        LongRun(name, t, plain_ps, compiled=False)
        for name in molecules for t in temperatures if name in PLAIN or not compiled
    ]  # fmt: skip
    return runs + [
        LongRun(name, temperatures[0], npt_ps, "npt", compiled, timestep=1.0) for name in systems if name in CRYSTALS
    ]


def run_all(
    runs: Sequence[LongRun],
    folder: Path,
    results: Path,
    inputs: Inputs,
    *,
    start: Start,
    command: str,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Make what the runs need, run those that are not finished, and store each result as soon as it is there.

    Raises ``ConfigError`` for missing inputs and ``RuntimeError`` naming what failed.
    """
    systems = list(dict.fromkeys(run.system for run in runs))
    stage = partial(run_side_by_side, jobs=inputs.jobs, start=start, tell=tell)
    plans = {name: _plan(name, folder, inputs) for name in systems if name not in inputs.models}
    _make_data(list(plans), folder, stage)
    STUDY.run(list(plans.values()), folder, jobs=inputs.jobs, start=start, tell=tell)
    models = {name: inputs.models.get(name, folder / "models" / name / "model.safetensors") for name in systems}
    packages = {folder / "models" / run.system: models[run.system] for run in runs if run.compiled}
    stage(
        list(packages),
        lambda place: [*COMMAND, "export", str(packages[place]), "--out", str(place / "model.pt2")],
        finished=lambda place: "compiled" if (place / "model.pt2").is_file() else None,
    )
    for name in systems:
        _write_start(name, folder, plans.get(name))
    places = {folder / "runs" / run.name: run for run in runs}

    def finished(place: Path) -> str | None:
        run = places[place]
        result = read_json(place / RESULT) if (place / RESULT).is_file() else {"picoseconds": 0}
        if result["picoseconds"] < run.picoseconds:
            return None
        facts = _facts(models[run.system], plans.get(run.system), folder)
        _store(results / f"{run.name}.json", {**result, "model": facts, "command": command})
        return f"{result['drift_meV_per_atom_ps']:+.4f} meV/atom/ps"

    def words(place: Path) -> list[str]:
        run = places[place]
        model = folder / "models" / run.system / "model.pt2" if run.compiled else models[run.system]
        return [*COMMAND, "bench", "long-md-run", json.dumps(run._asdict()), str(model),
                str(folder / "starts" / f"{run.system}.xyz"), str(place)]  # fmt: skip

    stage(list(places), words, finished=finished)


def _store(path: Path, document: Mapping[str, Any]) -> None:
    """Write a result, unless the stored one is of the same run."""
    old = read_json(path) if path.is_file() else {}
    if old.get("environment") != document["environment"]:
        write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def _facts(model: Path, plan: Run | None, folder: Path) -> dict[str, Any]:
    """Training length, errors and hash of a model."""
    facts: dict[str, Any] = {"sha256": file_hash(model)}
    if plan is not None and (found := STUDY.read(folder / plan.name, plan.config)) is not None:
        facts |= {"steps": found["steps"], "training_cpu_seconds": found["cpu_seconds"], "test": found["test"]}
    return facts


# --- data, models, starts ---


def _make_data(systems: Sequence[str], folder: Path, stage: Callable[..., None]) -> None:
    """Generate the frames of molecules without published ones."""
    if "copper" in systems and not _frames(folder, "copper").is_file():
        _frames(folder, "copper").parent.mkdir(parents=True, exist_ok=True)
        write(_frames(folder, "copper"), smoothness.copper_frames())
    stage(
        [_frames(folder, name).parent for name in systems if name in GENERATED],
        lambda place: [
            *COMMAND, "data", "generate", GENERATED[place.name], str(_frames(folder, place.name)), "--frames",
            str(FRAMES), "--temperature", f"{SAMPLING_K:g}", "--interval", f"{SPACING_FS:g}",
        ],
        finished=lambda place: f"{FRAMES} frames" if _frames(folder, place.name).is_file() else None,
    )  # fmt: skip


def _frames(folder: Path, name: str) -> Path:
    return folder / "data" / name / "frames.extxyz"


def _plan(name: str, folder: Path, inputs: Inputs) -> Run:
    """The training run of a system; raises ``ConfigError`` if its data are not named."""
    if name == "copper":
        base: dict[str, Any] = smoothness.RECIPE
    else:
        base = open_config("silicon" if name == "silicon" else "ethanol-tiny", []).model_dump(mode="json")
    short = [*_data(name, folder, inputs), f"training.steps={inputs.steps}", "md_picoseconds=0"]
    (run,) = STUDY.plan(base, arms=["relaxed"], seeds=[0], levels={"system": [name]}, overrides=short)
    return run


def _data(name: str, folder: Path, inputs: Inputs) -> list[str]:
    """The overrides that name a system's data, and their split."""
    if name in rmd17.MOLECULES:
        keys = rmd17.data_keys(inputs.rmd17, name)
        return [*keys, "data.train=950", "data.validation=50", "reference_energies=fit", *(
            [] if inputs.rmd17 else ["data.test=1000"]
        )]  # fmt: skip
    if name in GENERATED:
        source = _frames(folder, name).resolve()
        return [f"data.source={source}", "data.train=0.8", "data.validation=0.1", "data.test=null"]
    if name == "silicon":
        if inputs.silicon is None:
            raise ConfigError("`silicon` needs data: name them (`--silicon FILE`) or a model (`--model silicon=FILE`).")
        return [f"data.source={inputs.silicon.resolve()}", "data.train=0.85", "data.validation=0.1"]
    return [f"data.source={_frames(folder, name).resolve()}"] if name == "copper" else []


def _write_start(name: str, folder: Path, plan: Run | None) -> None:
    """The structure that runs begin with: a crystal at its lattice constant, or the last frame of a molecule's data."""
    path = folder / "starts" / f"{name}.xyz"
    if path.is_file():
        return
    if name in CRYSTALS:
        atoms = CRYSTALS[name]()
    elif plan is None:
        raise ConfigError(f"`--model {name}=FILE` replaces the training of crystals only, whose structure is known.")
    else:
        atoms = to_atoms(load_frames(plan.config["data"]["source"]).data[-1])
        atoms.calc = None
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, atoms, format="extxyz")


STUDY = forces.STUDY._replace(
    title="long MD", factors={"system": Factor(known=SYSTEMS, keys=lambda name: [])}, name="models/{system}"
)


# --- results ---


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The stored results in a folder, in the order of ``SYSTEMS``; raises ``ValueError`` if there are none."""
    found = [read_json(path) for path in folder.glob("*.json")]
    if not found:
        raise ValueError(f"`{folder}` contains no finished run of long MD.")
    return sorted(found, key=lambda r: (SYSTEMS.index(r["system"]), not r["compiled"], r["temperature"]))


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """A table with one row per run, and a line for each law that one broke."""
    broken = [
        f"- {r['system']}, {r['temperature']:g} K: {law}. {r['exploded']}".rstrip() for r in results for law in laws(r)
    ]
    rows = [_row(result) for result in results]
    return "\n".join([markdown([list(rows[0]), *(list(row.values()) for row in rows)]), *broken]) + "\n"


def _row(result: Mapping[str, Any]) -> dict[str, str]:
    first, _, last = result["resident_MB"]
    plain = "" if result["compiled"] else ", plain"
    return {
        "system": result["system"],
        "run": f"{result['ensemble'].upper()} {result['temperature']:g} K{plain}",
        "ps": f"{result['picoseconds']:g}",
        "mean T, K": f"{result['mean_temperature_K']:.0f}",
        "drift": f"{result['drift_meV_per_atom_ps']:+.4f}",
        "about it": f"{result['fluctuation_meV_per_atom']:.2f}",
        "longest bond": f"{result['largest_stretch']:.2f}",
        "centre, A": _small(result, "centre_of_mass_A"),
        "L, hbar": _small(result, "angular_momentum_hbar"),
        "MB": f"{last:.0f} ({last - first:+.1f})",
        "files": f"{result['open_files'][-1]} ({result['open_files'][-1] - result['open_files'][0]:+d})",
        "steps/s": f"{result['steps_per_cpu_second']:.0f}",
    }


def _small(result: Mapping[str, Any], name: str) -> str:
    return f"{result[name]:.0e}" if name in result else ""


def laws(result: Mapping[str, Any]) -> list[str]:
    """The laws that a run broke, as sentences without a full stop; none for a good run.

    Drifts are judged from a picosecond on.
    """
    first, _, last = result["resident_MB"]
    drifts = not abs(result["drift_meV_per_atom_ps"]) < LIMIT and result["picoseconds"] >= SHORTEST
    found = {
        "it exploded": bool(result["exploded"]),
        f"the energy drifts by more than {LIMIT} meV/atom/ps": drifts,
        "a bond broke": result["broken"],
        f"memory grew by more than {GROWTH_MB:g} MB": last - first > GROWTH_MB,
        "more files are open at the end": result["open_files"][-1] > result["open_files"][0],
    }
    return [words for words, true in found.items() if true]
