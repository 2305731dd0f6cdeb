"""`mdrelax train` and `mdrelax report`: a run with its progress bar, its paired standard run, its MD and its report."""

import contextlib
import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mdrelax.cli.packs import train_pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from mdrelax.runs.config import Config
    from mdrelax.runs.train import Outcome
    from mdrelax.training.trainer import Progress

_RECIPE = "The default recipe for data: {}. Change it with `-r section.key=value`."
_ONE_THREAD = "One thread per process, which is fastest for small networks; set OMP_NUM_THREADS for more."
_NO_BASELINE = (
    "`standard_baseline: true` trains a second network in a process of its own, which torchrun does not start: set it "
    "to false, and compare arms with `mdrelax compare --ranks N`."
)


def train(
    config: Annotated[
        str, typer.Argument(help="A YAML file, a preset such as ethanol-tiny, or data, which get the default recipe.")
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME of the config or data.")] = None,
    override: Annotated[list[str] | None, typer.Option("-r", help="section.key=value, any number of times.")] = None,
    restart: Annotated[str, typer.Option(help="`auto` resumes from the last checkpoint; `never` refuses.")] = "never",
    tensorboard: Annotated[bool, typer.Option(help="Write logs for TensorBoard (extra `tensorboard`).")] = False,
) -> None:
    """Train a potential, project it to exact equivariance, certify, test and report it.

    Recipes with a `pack` (presets smoke-ARM, modelnet-NETWORK) train networks of other tasks.
    """
    own_threads = _one_thread_unless_told()
    import mdrelax
    from mdrelax.base.sections import ConfigError
    from mdrelax.packs.registry import pack_of_recipe
    from mdrelax.runs.inputs import is_data, open_config, recipe_of
    from mdrelax.training.ranks import joined

    if restart not in ("auto", "never"):
        raise ConfigError(f"`--restart` must be auto or never, got {restart!r}.")
    folder = out or Path("runs") / run_name(config)
    if (chosen := pack_of_recipe(config)) is not None:
        train_pack(*chosen, folder, overrides=override or [], restart=restart == "auto", tensorboard=tensorboard)
        return
    with joined() as ranks:
        with ranks.in_turn():
            settings = open_config(config, override or [])
        if ranks.size > 1 and ranks.share(settings.standard_baseline):
            raise ranks.one_sentence(ConfigError(_NO_BASELINE))
        if ranks.first:
            said = [_RECIPE.format(recipe_of(settings))] if is_data(config, override or []) else []
            said += [_ONE_THREAD] if own_threads else []
            _train_and_log(settings, folder, restart=restart, tensorboard=tensorboard, said=said)
        else:
            warnings.simplefilter("ignore")  # rank 0 has the same
            mdrelax.train(settings, folder=folder, restart=restart == "auto")


def _train_and_log(settings: "Config", folder: Path, *, restart: str, tensorboard: bool, said: list[str]) -> None:
    """Train in a locked folder, whose log begins with the sentences ``said`` and keeps any traceback."""
    from mdrelax.base.files import locked_folder
    from mdrelax.base.sections import ConfigError

    log = _Log(folder)
    with locked_folder(folder):
        for sentence in said:
            log(sentence)
        try:
            if settings.training.committee > 1:
                _train_committee(settings, folder, restart=restart, log=log)
            else:
                _train(settings, folder, restart=restart, tensorboard=tensorboard, log=log)
        except ConfigError:
            raise
        except Exception:
            log.keep(traceback.format_exc())  # the user sees the message, the log has the traceback
            raise


def run_name(source: str) -> str:
    """The name of a run by its config, preset or data."""
    return Path(Path(source).name.removesuffix(".gz")).stem.replace(":", "-")


def _train(settings: "Config", folder: Path, *, restart: str, tensorboard: bool, log: "_Log") -> None:
    import mdrelax
    from mdrelax.runs.experiment import write_results
    from mdrelax.runs.inputs import check_folder

    if longer := check_folder(settings, folder, restart=restart == "auto"):  # raises before anything is started
        log(longer)
    with _standard_arm(settings, folder, restart=restart) as standard, _progress_bar(folder, tensorboard) as listener:
        outcome = mdrelax.train(settings, folder=folder, restart=restart == "auto", tell=log, listener=listener)
        standard_results = standard()
    results = outcome.results
    if standard_results and "test" in standard_results:
        results["baselines"]["standard"] = {**standard_results["test"], "seconds": standard_results["seconds"]}
    log(_certificate_text(outcome))
    log(_errors_text(results))
    if settings.md_picoseconds > 0:
        with _threads(1):  # fastest for a molecule; on a busy machine more threads only wait for each other
            results["md"] = _molecular_dynamics(settings, folder, outcome)
        log(_md_text(results["md"]))
    write_results(folder, results)
    log(f"Model: {folder / 'model.safetensors'}\nReport: {write_report(folder)}")


def _train_committee(settings: "Config", folder: Path, *, restart: str, log: "_Log") -> None:
    from mdrelax.runs.committee import errors_in_words, run_committee

    committee = run_committee(settings, folder, restart=restart == "auto", tell=log)
    log(f"Mean of the committee: {errors_in_words(committee.results)}.")
    if "uncertainty" in committee.results:
        found = committee.results["uncertainty"]
        log(
            f"Spread of the forces {found['spread_rms_meV_per_A']:.1f} meV/A, their error "
            f"{found['error_rms_meV_per_A']:.1f} meV/A (root mean squares over atoms)."
        )
    log(f"Committee: CommitteeCalculator.from_file({str(folder)!r})")


def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the plots and report.html of a run folder again."""
    typer.echo(write_report(run))


def write_report(folder: Path) -> Path:
    """plots/ and report.html of a run."""
    from mdrelax.analysis.report import write_report as write

    return write(folder)


class _Log:
    """Prints a line and writes it to train.log."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "train.log"

    def __call__(self, line: str) -> None:
        typer.echo(line)
        self.keep(line)

    def keep(self, line: str) -> None:
        """Write a line to the log without printing it; on a full disk only the line is lost."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def _one_thread_unless_told() -> bool:
    """Ask for one thread, before torch is imported, if the environment does not say how many; True if so.

    Threads of two processes that share the cores wait for each other: a run took eight times its CPU time.
    """
    if "OMP_NUM_THREADS" in os.environ or "torch" in sys.modules:
        return False
    os.environ["OMP_NUM_THREADS"] = "1"
    return True


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Set the number of threads inside the context, and restore it afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _standard_arm(config: "Config", folder: Path, *, restart: str) -> Iterator["Callable[[], dict[str, Any] | None]"]:
    """Run the same config without relaxation in another process; returns a function that waits for its results.

    The two processes share the cores evenly, so that both get the same budget in steps and in time.
    """
    if not config.standard_baseline:
        yield lambda: None
        return
    import torch
    import yaml

    from mdrelax.runs.jobs import PARENT

    threads = max(1, torch.get_num_threads() // 2)
    document = config.model_dump(mode="json")
    document |= {"standard_baseline": False, "md_picoseconds": 0.0}
    document["relaxation"]["schedule"] = "off"
    path = folder / "standard.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    command = [sys.executable, "-m", "mdrelax", "train", str(path), "--out", str(folder / "standard")]
    command += ["--restart", restart]
    with (folder / "standard.log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid())},
        )  # fmt: skip

        def wait() -> dict[str, Any] | None:
            if process.wait() != 0:
                typer.echo(f"The standard run failed; see {folder / 'standard.log'}.", err=True)
                return None
            results: dict[str, Any] = json.loads((folder / "standard" / "results.json").read_text())
            return results

        try:
            with _threads(threads):
                yield wait
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


@contextlib.contextmanager
def _progress_bar(folder: Path, tensorboard: bool) -> Iterator["Callable[[Progress], None]"]:
    """A progress bar with the remaining time and four numbers: force and energy MAE, theta, penalty."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    writer = _tensorboard(folder) if tensorboard else None
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    bar = Bar(*columns, console=console)
    task = bar.add_task("first validation to come", total=None)

    def listen(progress: "Progress") -> None:
        bar.start()  # at the first step, so that errors before it are shown alone
        text = None
        if progress.row is not None:
            text = _numbers(progress.row)
            if not console.is_terminal:
                typer.echo(f"step {progress.step}/{progress.n_steps}  {text}", err=True)
            if writer is not None:
                for name, value in progress.row.items():
                    writer.add_scalar(name, value, progress.step)
        bar.update(task, total=progress.n_steps, completed=progress.step, description=text)

    try:
        yield listen
    finally:
        if bar.live.is_started:
            bar.stop()
        if writer is not None:
            writer.close()


def _numbers(row: dict[str, float]) -> str:
    """Errors of the labels that the validation frames have, theta and penalty."""
    forces, energy, theta = row["val_forces_mae_meV_per_A"], row["val_energy_mae_meV"], row["theta"]
    errors = ["" if forces != forces else f"forces {forces:.1f} meV/A  "]  # NaN: there is no label
    errors += ["" if energy != energy else f"energy {energy:.1f} meV  "]
    return f"{''.join(errors)}theta {theta:.2f}  penalty {row['penalty']:.3f}"


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("`--tensorboard` needs `pip install 'mdrelax[tensorboard]'`.") from error
    return SummaryWriter(str(folder / "tb"))


def _certificate_text(outcome: "Outcome") -> str:
    """The certificate in a few lines."""
    from mdrelax.method.certificate import LARGEST_ERROR_FLOAT32, LARGEST_ERROR_FLOAT64

    certificate = outcome.certificate
    verdict: Literal["PASSED", "FAILED"] = "PASSED" if certificate.passed else "FAILED"
    rows = [
        f"  {name}: rotation {e.rotation:.1e}  reflection {e.reflection:.1e}  translation {e.translation:.1e}  "
        f"permutation {e.permutation:.1e}"
        for name, e in (("float64", certificate.float64), ("float32", certificate.float32))
    ]
    layers = [
        f"  {layer.name}: ||W|| {layer.norm:.3f}, non-equivariant part {layer.distance:.3f}, {layer.how}"
        for layer in certificate.layers
    ]
    limits = f"limits {LARGEST_ERROR_FLOAT64:.0e} and {LARGEST_ERROR_FLOAT32:.0e}"
    head = (
        f"Certificate {verdict}: {certificate.symmetry}, largest errors of energy and forces relative to the "
        f"terms summed, {certificate.n_structures} structures ({limits})"
    )
    history = [] if certificate.history is None else [f"  the network was {certificate.history}"]
    return "\n".join([head, *rows, *history, *layers])


def _errors_text(results: dict[str, Any]) -> str:
    """Test errors compared with the baselines."""
    if "test" not in results:
        return "There are no test frames; validation errors are in results.json."
    rows = {"this model": results["test"], "mean of the training set": results["baselines"]["mean"]}
    if "standard" in results["baselines"]:
        rows["standard (never relaxed)"] = results["baselines"]["standard"]
    lines = [f"{'test MAE':28s}{'forces meV/A':>14s}{'energy meV':>12s}{'meV/atom':>10s}"]
    for name, errors in rows.items():
        columns = (("forces_mae_meV_per_A", "14.2f"), ("energy_mae_meV", "12.2f"), ("energy_mae_meV_per_atom", "10.3f"))
        lines.append(f"{name:28s}" + "".join(format(errors.get(key, float("nan")), width) for key, width in columns))
    return "\n".join(lines)


def _md_text(md: dict[str, Any]) -> str:
    verdict = "stable" if md["broken_bond"] is None else f"the bond between atoms {md['broken_bond']} BROKE"
    verdict = f"EXPLODED ({md['reason']})" if md["exploded"] else verdict
    drift = md["drift_meV_per_atom_per_ps"]
    return f"NVE at 300 K, {md['duration_ps']:g} ps: energy drift {drift:+.4f} meV/atom/ps, {verdict}."


def _molecular_dynamics(config: "Config", folder: Path, outcome: "Outcome") -> dict[str, Any]:
    """NVE at 300 K from an equilibrated test frame; md_log.csv and the summary."""
    from mdrelax.analysis.trajectory import broken_bonds
    from mdrelax.datasets import to_atoms
    from mdrelax.engines.ase import MDRelaxCalculator
    from mdrelax.engines.nve import nve_after_langevin

    data = (outcome.parts.test or outcome.parts.validation)[0]
    atoms = to_atoms(data)
    atoms.calc = MDRelaxCalculator(outcome.fit.model, certificate=outcome.certificate)
    result = nve_after_langevin(
        atoms, temperature_K=300.0, warm_up_ps=0.25, duration_ps=config.md_picoseconds, log=folder / "md_log.csv"
    )
    broken = None if atoms.pbc.any() else broken_bonds([result.atoms], atoms)
    return {
        "drift_meV_per_atom_per_ps": result.drift_meV_per_atom_ps,
        "broken_bond": None if broken is None else list(broken.atoms),
        "temperature_K": float(result.log["temperature_K"].mean()),
        "n_atoms": len(atoms),
        "duration_ps": config.md_picoseconds,
        "timestep_fs": 0.5,
        "exploded": result.exploded,
        "reason": result.reason,
    }
