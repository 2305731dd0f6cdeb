"""Random kills: every command that works for long is killed again and again, resumed, and compared bit for bit.

    python tests/trials/kills.py --minutes 10 [--seed N] [--out FILE] [--verbs train,generate,...] [--kills N]

SIGKILL, SIGTERM or SIGINT, at a random time or at the n-th change of a file, to the process or to its whole group; one
command in six is started twice at once. Then it is resumed until it finishes, and its folder must be the one of the run
that nothing disturbed. Also checked: exit codes 130 and 143 with the sentence that resumes, and that no process
outlives the one that started it.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trials.findings import Deadline, Findings, options_of, parser_of
from trials.processes import Started, ended, start, survivors, warm_up
from trials.sameness import content_of, differences
from trials.verbs import VERBS, Verb, prepared, wanted

PATIENCE = 300.0  # seconds for anything to end, on a busy machine
ORPHANS = 60.0  # seconds in which the children of a killed process have to end; they look twice a second
WATCHED = 0.003  # seconds between two looks at the files
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WORDS = {signal.SIGINT: "Interrupted (Ctrl-C); ", signal.SIGTERM: "Terminated (SIGTERM); "}


class Undisturbed(NamedTuple):
    """A run that nothing disturbed: its result, how long it took, and how many changes of files were seen."""

    content: dict[str, str]
    seconds: float
    changes: int


class Kill(NamedTuple):
    """How and when a command is killed."""

    number: signal.Signals
    group: bool
    seconds: float  # after its start, or
    change: int  # at this change of the files, if it is not 0
    cold: bool
    twice: bool

    def __str__(self) -> str:
        when = f"at change {self.change} of its files" if self.change else f"after {self.seconds:.2f} s"
        whom = "the group" if self.group else "the process"
        return f"{self.number.name} to {whom} {when}{', cold' * self.cold}{', started twice' * self.twice}"


class Case:
    """One command in its folder, killed several times and then resumed."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], found: Findings) -> None:
        self.name, self.verb, self.folder, self.environment, self.found = name, VERBS[name], folder, environment, found
        self.told: list[str] = []
        self.started = 0
        folder.mkdir(parents=True)

    def start(self, *, cold: bool) -> Started:
        """The command, or from the second time on the one that resumes it."""
        words = [*self.verb.words, *(self.verb.resuming if self.told else [])]
        said = self.folder.with_name(f"{self.folder.name}.{self.started}.said")
        self.started += 1
        return start(
            words, self.folder, said, cold=cold, ranks=self.verb.ranks, environment=self.environment
        )  # fmt: skip

    def report(self, what: str) -> None:
        """A finding, with the history of this case."""
        launcher = "torchrun --nproc-per-node 2 -m " if self.verb.ranks > 1 else ""
        command = f"`{launcher}mdrelax {' '.join(self.verb.words)}`"
        what = what.replace(f"{self.folder.parent}/", "")
        self.found.report(self.name, what, f"{command}: {'; '.join(self.told) or 'undisturbed'}; then resumed")

    def kill(self, how: Kill) -> bool:
        """Start and kill it; True if it had finished before."""
        processes = [self.start(cold=how.cold) for _ in range(1 + how.twice)]
        self.told.append(str(how))
        _wait_for(how, processes, self.folder)
        for process in processes:
            process.send(how.number, group=how.group)
        for process in processes:
            if not ended(process, patience=PATIENCE):
                self.report(f"It does not end within {PATIENCE:.0f} s")
                process.send(signal.SIGKILL, group=True)
                ended(process, patience=PATIENCE)
            if alive := survivors(process, patience=ORPHANS):
                self.report(f"{len(alive)} processes that it started outlive it by {ORPHANS:.0f} s")
                _end(alive)
            if wrong := wrong_end(process, how, self.verb):
                self.report(wrong)
        return all(process.code == 0 for process in processes)

    def finish(self, *, cold: bool) -> bool:
        """Resume it undisturbed; False with a finding if it fails."""
        process = self.start(cold=cold)
        if not ended(process, patience=PATIENCE):
            process.send(signal.SIGKILL, group=True)
            ended(process, patience=PATIENCE)
            self.report(f"The resumed command does not end within {PATIENCE:.0f} s")
        elif process.code != 0:
            self.report(f"The resumed command ends with code {process.code}: {process.last_line()}")
        return process.code == 0


def wrong_end(process: Started, how: Kill, verb: Verb) -> str:
    """A sentence on an exit code or on last words that are wrong; empty if they are right."""
    code, last = process.code, process.last_line()
    if code == 0 or verb.ranks > 1:  # it had finished; torchrun has codes of its own
        return ""
    if how.twice and code in (1, 2, -how.number) and last.endswith(".") and "Traceback" not in process.text():
        return ""  # the other one was there first; a signal may come when this one has said so and is ending
    if code == -how.number and (how.number == signal.SIGKILL or (how.cold and not process.text())):
        return ""  # killed, or ended while Python was starting
    if how.number == signal.SIGKILL:
        return f"It ends by itself with code {code}: {last}"
    remedy = "resume with `mdrelax " if verb.resumes else "`mdrelax "
    if code == 128 + how.number and last.startswith(WORDS[how.number] + remedy):
        return ""
    return f"It ends with code {code}, expected {128 + how.number}, and says: {last}"


def _end(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _wait_for(how: Kill, processes: list[Started], folder: Path) -> None:
    """Return when the moment of a kill has come, or when all have ended."""
    since, state, changes = time.monotonic(), _state(folder), 0
    while any(process.poll() is None for process in processes):
        if how.change:
            before, state = state, _state(folder)
            changes += state != before
        if changes >= how.change if how.change else time.monotonic() - since >= how.seconds:
            return
        time.sleep(WATCHED)


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all files."""
    found = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(place, name))
            except FileNotFoundError:
                continue
            found.append((os.path.join(place, name), status.st_size, status.st_mtime_ns))
    return sorted(found)


def undisturbed(case: Case) -> Undisturbed | None:
    """Run a command to its end; None with a finding if it fails."""
    since, state, changes = time.monotonic(), [], 0
    process = case.start(cold=False)
    while process.poll() is None and time.monotonic() - since < PATIENCE:
        before, state = state, _state(case.folder)
        changes += state != before
        time.sleep(WATCHED)
    if process.poll() != 0:
        process.send(signal.SIGKILL, group=True)
        case.report(f"The undisturbed command ends with code {process.code}: {process.last_line()}")
        return None
    return Undisturbed(content_of(case.folder), time.monotonic() - since, changes)


def drawn(chance: random.Random, usual: Undisturbed) -> Kill:
    """A random kill."""
    return Kill(
        number=chance.choice(SIGNALS),
        group=chance.random() < 0.5,
        seconds=chance.uniform(0.0, usual.seconds),
        change=chance.randint(1, max(1, usual.changes)) if chance.random() < 0.6 else 0,
        cold=chance.random() < 0.15,
        twice=chance.random() < 1 / 6,
    )


def one_case(case: Case, usual: Undisturbed, chance: random.Random) -> Counter[str]:
    """Kill a command one to four times, resume it, and compare; returns the signals that were sent."""
    sent: Counter[str] = Counter()
    for _ in range(chance.randint(1, 4)):
        how = drawn(chance, usual)
        finished = case.kill(how)
        if finished:
            break
        case.found.count(case.name)
        sent[how.number.name] += 1
    else:
        if not case.finish(cold=chance.random() < 0.15):
            return sent
    if wrong := differences(content_of(case.folder), usual.content):
        case.report(f"The result is not the one of the undisturbed run: {', '.join(wrong)}")
    return sent


def references(names: list[str], folder: Path, environment: dict[str, str], found: Findings) -> dict[str, Undisturbed]:
    """The undisturbed run of each verb; `project` needs that of `train`."""
    usual: dict[str, Undisturbed] = {}
    for name in sorted({*names, *(["train"] if "project" in names else [])}, key=list(VERBS).index):
        case = Case(name, folder / f"{name}-undisturbed", environment, found)
        if (run := undisturbed(case)) is not None:
            usual[name] = run
            print(f"{name}: {run.seconds:.1f} s, {run.changes} changes of files", flush=True)
        if name == "train":
            shutil.copytree(case.folder / "run", folder / "inputs" / "run")
    return {name: usual[name] for name in names if name in usual}


def trial(names: list[str], deadline_minutes: float, most: int, folder: Path, found: Findings) -> None:
    """Cases of the verb that has had the least time so far, until the time or the number of kills is reached."""
    sent: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    warm_up()
    with prepared(folder) as environment:
        usual = references(names, folder, environment, found)
        deadline, spent = Deadline(deadline_minutes), dict.fromkeys(usual, 0.0)
        while usual and not deadline.is_over() and found.counts.total() < most:
            name = min(spent, key=spent.__getitem__)
            since, before = time.monotonic(), len(found.findings)
            case = Case(name, folder / f"{name}-{compared[name]}", environment, found)
            sent += one_case(case, usual[name], random.Random(f"{found.seed} {name} {compared[name]}"))
            compared[name] += 1
            spent[name] += time.monotonic() - since
            if len(found.findings) == before:
                shutil.rmtree(case.folder)
    found.notes = {"signals": dict(sorted(sent.items())), "results_compared": dict(sorted(compared.items()))}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = parser_of("kills", "Random kills of the commands that work for long, and whether anything is lost.")
    parser.add_argument("--verbs", help=f"comma-separated: {', '.join(VERBS)}")
    parser.add_argument("--kills", type=int, default=10**9, help="stop after so many, if the time is not up before")
    options = options_of(parser, arguments)
    found = Findings("kills", options.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    trial(wanted(options.verbs), options.minutes, options.kills, folder, found)
    code = found.finish(options.out)
    if code == 0:
        shutil.rmtree(folder)
    else:
        print(f"The folders of the findings are in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
