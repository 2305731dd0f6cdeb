"""Interleaved timing: one step of each implementation, round after round, so that a busy machine slows all alike.

Only one worker computes at any time. A slow one stops early: after ``seconds`` of timed steps, but not before three.
One that fails, or does not respond, is dropped from the case with a one-line message; the others continue.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mdrelax.analysis.benchmarks.implementations import Case, Implementation, structures_of
from mdrelax.analysis.benchmarks.workers import LostWorkerError, Worker

__all__ = ["Rules", "run_cases"]

FEWEST = 3  # repeats of a slow implementation
QUARTILES = ("ms_lower_quartile", "ms_median", "ms_upper_quartile")

Table = list[dict[str, Any]]
Versions = dict[str, dict[str, str]]
Start = Callable[[Implementation], Worker]
Keep = Callable[[pd.DataFrame, Versions], None]
Tell = Callable[[str], None]


class Rules(NamedTuple):
    """How long and how carefully to time."""

    repeats: int = 15
    seconds: float = 20.0  # of timed steps for each implementation and case, and a quarter of it at most to warm up
    dtype: str = "float32"
    memory_MB: float = 0.0  # of a worker; 0: its share of what is free
    together_MB: float = 0.0  # total resident size above which they are asked to release free memory; 0: no limit


class Entry:
    """An implementation in a case."""

    def __init__(self, worker: Worker, prepared: dict[str, Any]) -> None:
        self.worker = worker
        self.n_parameters: int | None = prepared.get("n_parameters")
        self.resident: float = prepared.get("resident_MB", 0.0)
        self.times: list[float] = []
        self.peak: float | None = None
        self.cost: dict[str, Any] = {}

    def finished(self, rules: Rules) -> bool:
        """Whether it has done its repeats, or used its seconds and done three repeats."""
        late = len(self.times) >= FEWEST and sum(self.times) > 1e3 * rules.seconds
        return late or len(self.times) >= rules.repeats

    def step(self) -> None:
        """One timed step."""
        answer = self.worker.ask("step")
        self.times.append(answer["ms"])
        self.peak, self.resident = answer.get("peak_MB"), answer.get("resident_MB", 0.0)

    def rest(self) -> None:
        """Release free memory."""
        self.resident = self.worker.ask("rest").get("resident_MB", 0.0)

    def count(self) -> None:
        """Count operations and bytes of a step."""
        self.cost = self.worker.ask("count")

    def row(self) -> dict[str, Any]:
        """Its line of the table."""
        return {
            **dict(zip(QUARTILES, np.quantile(self.times, [0.25, 0.5, 0.75]).tolist(), strict=True)),
            "repeats": len(self.times),
            "peak_MB": self.peak,
            "n_parameters": self.n_parameters,
            **self.cost,
        }


def run_cases(
    cases: Sequence[Case],
    implementations: Sequence[Implementation],
    start: Start,
    *,
    rules: Rules,
    tell: Tell,
    keep: Keep = lambda table, versions: None,
) -> tuple[pd.DataFrame, Versions]:
    """Time every implementation on the cases of its kinds; returns one row each, and the versions each worker reported.

    ``start`` starts the worker of an implementation. A worker serves all cases of its implementation, and is replaced
    by a new one if it is lost. ``keep`` is called with the rows so far after every case.
    """
    crew, rows = Crew(start, rules, tell), []
    try:
        for number, case in enumerate(cases, 1):
            rows += crew.run(case, [each for each in implementations if case.kind in each.kinds])
            keep(pd.DataFrame(rows), crew.versions)
            kinds = {later.kind for later in cases[number:]}
            crew.dismiss([each for each in implementations if not kinds & set(each.kinds)])
    finally:
        crew.dismiss(implementations)
    return pd.DataFrame(rows), crew.versions


class Crew:
    """The running workers."""

    def __init__(self, start: Start, rules: Rules, tell: Tell) -> None:
        self.start, self.rules, self.tell = start, rules, tell
        self.workers: dict[str, Worker] = {}
        self.versions: Versions = {}
        self.case = ""
        self.entries: dict[str, Entry] = {}

    def run(self, case: Case, implementations: Sequence[Implementation]) -> Table:
        """The rows of a case."""
        self.case, self.entries = case.name, {}
        for implementation in implementations:
            self.tell(f"{case.name}: {implementation.name} warms up")
            with self._losing(implementation.name):
                self.entries[implementation.name] = self._prepare(case, implementation)
                self._make_room(implementation.name)
        self.tell(f"{case.name}: {len(self.entries)} in turns")
        self._go_round()
        for implementation in implementations:
            if implementation.counted and implementation.name in self.entries:
                with self._losing(implementation.name, keep=True):
                    self.entries[implementation.name].count()
        return [{"case": case.name, "contestant": name, "kind": case.kind, "n_atoms": case.n_atoms, **entry.row()}
                for name, entry in self.entries.items()]  # fmt: skip

    def dismiss(self, implementations: Sequence[Implementation]) -> None:
        """End the workers of implementations that are no longer needed."""
        for implementation in implementations:
            self._end(implementation.name)

    def _end(self, name: str) -> None:
        worker = self.workers.pop(name, None)
        if worker is not None:
            worker.close()

    def _prepare(self, case: Case, implementation: Implementation) -> Entry:
        worker = self.workers.get(implementation.name)
        if worker is None:
            worker = self.workers[implementation.name] = self.start(implementation)
            hello = worker.ask("hello", memory_MB=self.rules.memory_MB)
            self.versions[implementation.name] = hello.get("versions", {})
        task = {
            "kind": case.kind,
            "structures": [each._asdict() for each in structures_of(case)],
            "dtype": self.rules.dtype,
            "cutoff": implementation.cutoff,
            "seconds": self.rules.seconds / 4,
        }
        return Entry(worker, worker.ask("prepare", task=task))

    def _go_round(self) -> None:
        """Rounds of one step each, until all have finished."""
        while waiting := [name for name, entry in self.entries.items() if not entry.finished(self.rules)]:
            for name in waiting:
                with self._losing(name):
                    self.entries[name].step()
                    self._make_room(name)

    def _make_room(self, name: str) -> None:
        """Ask a worker to release its free memory if all together use too much."""
        limit = self.rules.together_MB
        if 0 < limit < sum(entry.resident for entry in self.entries.values()):
            self.entries[name].rest()

    @contextlib.contextmanager
    def _losing(self, name: str, *, keep: bool = False) -> Iterator[None]:
        """Context in which a lost worker is dropped from the case (unless ``keep``, for steps after the timing)."""
        try:
            yield
        except LostWorkerError as error:
            self.tell(f"{self.case}: {name} {'is not counted' if keep else 'is left out'}, {error}")
            self._end(name)
            if not keep:
                self.entries.pop(name, None)
