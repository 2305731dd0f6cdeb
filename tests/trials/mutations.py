"""Trial: mutations of every file that is read back, in one process, thousands a minute.

    python tests/trials/mutations.py --n 100000
    python tests/trials/mutations.py --minutes 10 --seed 3 --out docs/results/trials/mutations.json

Model files of every kind, checkpoints, journals, states and compiled packages (the golden files of this version) are
changed as in ``mutated``. A mutant must be refused in one sentence by an error of ours, or load to exactly the numbers
that it stated before (of a forgery: that it states), within bounded time and memory; and nothing in it may run.
Mutant k of a seed is always the same: `--first k --n 1` makes it again.
"""

import json
import math
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (1, 2)]

import torch
from torch import Tensor

from hostile import is_one_sentence
from mdrelax import potentials
from mdrelax.base.containers import ModelFileError
from mdrelax.base.names import printable
from mdrelax.base.sealed import unseal
from mdrelax.cli import is_sentence
from mdrelax.compiled import files as compiled_files
from mdrelax.compiled import load_compiled
from mdrelax.datasets.journal import Journal
from mdrelax.engines.md_files import read_state
from mdrelax.method.certificate import CertificateError
from mdrelax.modelfile import load_model
from mdrelax.packs.modelnet.model_file import load_network
from mdrelax.packs.smoke.model_file import load_flow
from mdrelax.runs.checkpoints import open_checkpoint
from mdrelax.runs.network import read_network
from mdrelax.training.checkpoint import CheckpointError, load_checkpoint
from mdrelax.training.trainer import CHECKPOINT_DEFAULTS, CHECKPOINT_KEYS, PRIMITIVES, STATES, TrainingError
from toy_regression import trainer
from trials import mutated
from trials.findings import Deadline, Findings, options_of, parser_of
from trials.mutated import CANARY, Mutate

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "2026-11"
OURS = (ModelFileError, CertificateError, CheckpointError, TrainingError)
SECONDS = 10.0  # a mutant may take, on a busy machine
MEGABYTES = 300  # a mutant may add to the peak
RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "os.mkdir",
    "os.rename",
    "socket.connect",
)


class Specimen(NamedTuple):
    """A file that is mutated, and what reading it gives."""

    name: str
    path: Path  # where mutants are put
    original: bytes
    read: Callable[[Path], Any]  # numbers, in the form of ``Mutant.states``
    mutations: tuple[Mutate, ...]
    stated: Callable[[Any], Any] = lambda states: states  # what reading a forgery has to give


class TooSlowError(BaseException):
    """A mutant was read for longer than it may be."""


# --- what is read ---


def _of_container(load: Callable[[Path], Any], network: str) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        loaded = load(path)
        return {"header": loaded.header, "tensors": dict(getattr(loaded, network).state_dict())}

    return read


def _of_package(path: Path) -> Any:
    ran: list[Path] = []
    with (
        mock.patch.object(compiled_files, "this_machine", return_value={"torch": "golden"}),
        mock.patch.object(compiled_files, "load_library", side_effect=ran.append),
    ):
        header = load_compiled(path).header
    with zipfile.ZipFile(path) as archive:
        (code,) = [name for name in archive.namelist() if name.endswith(".so")]
        return {"header": header, "code": archive.read(code)}


def _of_run(path: Path) -> Any:
    """The best network in a run's checkpoint, which `mdrelax project` would certify and save."""
    run = open_checkpoint(path.parent.parent, potentials)
    network, layers = run.best()
    return {"best": dict(network.state_dict()), "layers": [layer._asdict() for layer in layers]}


def _stated_by_run(state: Any) -> Any:
    best = state.get("best")
    return {"best": best.get("state"), "layers": best.get("layers")} if isinstance(best, dict) else None


def _of_definition(path: Path) -> Any:
    """The network in network.json, and the averages with its free maps."""
    definition, network = read_network(path.parent), open_checkpoint(path.parent, potentials).unprojected()
    assert definition is not None
    structures = [structure.pos.tolist() for structure in definition.structures]
    return {"averages": dict(network.state_dict()), **definition._asdict(), "structures": structures}


def _of_resumed(path: Path) -> Any:
    """The state of a trainer that resumes; a network of a few numbers."""
    resumed = trainer(path.parent.parent)
    resumed.resume()
    return {**{name: getattr(resumed, name) for name in PRIMITIVES},
            **{name: getattr(resumed, name).state_dict() for name in STATES}}  # fmt: skip


def _of_state(path: Path) -> Any:
    """The state from which a simulation is continued."""
    return read_state(path, json.loads((GOLDEN / path.name).read_text(encoding="utf-8"))["settings"])


def _of_journal(path: Path) -> Any:
    """The rows of an interrupted job; missing ones are made again, and would be those of the golden file."""
    whole = [unseal(json.loads(line)) for line in (GOLDEN / path.name).read_text(encoding="utf-8").splitlines()]
    journal = Journal(path, {name: value for name, value in whole[0].items() if name != "kind"})
    right = {kind: [row for row in whole if row["kind"] == kind] for kind in ("frame", "label")}
    return {kind: (rows := journal.rows(kind)) + right[kind][len(rows) :] for kind in right}


def _of_checkpoint(path: Path) -> Any:
    return load_checkpoint(path, keys=CHECKPOINT_KEYS, defaults=CHECKPOINT_DEFAULTS)


def specimens(scratch: Path) -> Iterator[Specimen]:
    """Every file that is mutated, in folders of their own below ``scratch``."""
    models = {"force-field-equiformer": (load_model, "force_field"), "force-field-segnn": (load_model, "force_field"),
              "point-clouds": (load_network, "network"), "flow-exact": (load_flow, "network"),
              "flow-kept": (load_flow, "network")}  # fmt: skip
    for name, (load, network) in models.items():
        original = (GOLDEN / f"{name}.safetensors").read_bytes()
        yield Specimen(name, scratch / f"{name}.safetensors", original, _of_container(load, network), mutated.MODEL)
    package = scratch / "compiled.pt2"
    yield Specimen("compiled", package, (GOLDEN / package.name).read_bytes(), _of_package, mutated.PACKAGE)
    run, definition = (shutil.copytree(GOLDEN / "relaxed", scratch / name) for name in ("run", "definition"))
    checkpoint, document = run / "checkpoints" / "last.pt", definition / "network.json"
    yield Specimen("run", checkpoint, checkpoint.read_bytes(), _of_run, mutated.CHECKPOINT, _stated_by_run)
    yield Specimen("definition", document, document.read_bytes(), _of_definition, mutated.TEXT)
    for name, read in (("md.restart", _of_state), ("hydrogen.extxyz.journal", _of_journal)):
        yield Specimen(name, scratch / name, (GOLDEN / name).read_bytes(), read, mutated.TEXT)
    nbody = scratch / "nbody" / "last.pt"
    nbody.parent.mkdir()
    original = (GOLDEN / "nbody" / "checkpoints" / "last.pt").read_bytes()
    yield Specimen("nbody", nbody, original, _of_checkpoint, mutated.ARCHIVE)
    trainer(scratch / "resumed").run()
    resumed = scratch / "resumed" / "checkpoints" / "last.pt"
    yield Specimen("resumed", resumed, resumed.read_bytes(), _of_resumed, mutated.CHECKPOINT,
                   lambda state: {**CHECKPOINT_DEFAULTS, **state})  # fmt: skip


# --- judgement ---


def same(a: Any, b: Any, *, more: bool = False) -> bool:
    """Two nests of numbers are the same, bit for bit and in their types; with ``more``, ``a`` may hold defaults too."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, dict) and isinstance(b, dict):
        return (a.keys() >= b.keys() if more else a.keys() == b.keys()) and all(same(a[k], b[k], more=more) for k in b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, more=more) for x, y in zip(a, b, strict=True))
    return bool(type(a) is type(b) and (a == b or (a != a and b != b)))


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(signum: int, frame: Any) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Watch:
    """Sees what a process does while a file is read: an audit hook, which stays for the life of the process."""

    def __init__(self) -> None:
        self.on, self.seen = False, ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in RUNS:
            self.seen = event


def judged(specimen: Specimen, mutant: mutated.Mutant, right: Any, watch: Watch) -> tuple[str, str | None]:
    """The outcome (refused or same), and what is wrong with it, if anything."""
    specimen.path.write_bytes(mutant.content)
    peak, watch.on, watch.seen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, True, ""
    try:
        with _limited(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome, wrong = _read(specimen, mutant, right)
    except TooSlowError:
        outcome, wrong = "neither", f"took more than {SECONDS:g} s"
    finally:
        watch.on = False
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    if grown > MEGABYTES:
        wrong = f"took {grown:.0f} MB"
    if watch.seen or CANARY.exists():
        wrong = f"ran something ({watch.seen})"
    return outcome, wrong


def _read(specimen: Specimen, mutant: mutated.Mutant, right: Any) -> tuple[str, str | None]:
    try:
        found = specimen.read(specimen.path)
    except Exception as error:
        if not (isinstance(error, OURS) or (isinstance(error, ValueError) and is_sentence(error))):
            return "neither", f"raw {type(error).__name__}: {error!s:.200}"
        fine = is_one_sentence(error) and str(error).isprintable()
        return "refused", None if fine else f"no sentence: {str(error)!r:.300}"
    forged = mutant.states is not None
    fine = same(found, specimen.stated(mutant.states) if forged else right, more=forged and specimen.name == "resumed")
    return "same", None if fine else "loaded with other numbers"


def trial(*, seed: int, minutes: float = math.inf, n: int | None = None, first: int = 0) -> Findings:
    """Mutants ``first``, ``first + 1``, ... of a seed, up to a number of them or for a time."""
    watch, found, deadline, outcomes = Watch(), Findings("mutations", seed), Deadline(minutes), Counter[str]()
    slowest, k = 0.0, first
    with tempfile.TemporaryDirectory(prefix="mdrelax-trial-") as scratch:
        known = list(specimens(Path(scratch)))
        right = {}
        for each in known:
            each.path.write_bytes(each.original)
            right[each.name] = each.read(each.path)
        while (n is None or k - first < n) and not deadline.is_over():
            draw = random.Random(f"{seed} {k}")
            specimen = known[k % len(known)]
            mutant, began = draw.choice(specimen.mutations)(specimen.original, draw), time.monotonic()
            outcome, wrong = judged(specimen, mutant, right[specimen.name], watch)
            slowest = max(slowest, time.monotonic() - began)
            found.count(specimen.name)
            outcomes[outcome] += 1
            if wrong is not None:
                again = f"python tests/trials/mutations.py --seed {seed} --first {k} --n 1"
                found.report(specimen.name, printable(f"{mutant.change:.200}: {wrong}"), again)
                CANARY.exists() and CANARY.rmdir()
            k += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found.notes = {"outcomes": dict(outcomes), "slowest_s": round(slowest, 2), "peak_MB": round(peak)}
    return found


def main() -> int:
    """The command."""
    parser = parser_of("mutations", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, help="end after so many mutants, whatever --minutes says")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    given = options_of(parser)
    torch.set_num_threads(1)
    minutes = given.minutes if given.n is None else math.inf
    found = trial(seed=given.seed, minutes=minutes, n=given.n, first=given.first)
    print(found.notes)
    return found.finish(given.out)


if __name__ == "__main__":
    sys.exit(main())
