"""Protocol between the speed benchmark and its workers: JSON lines, one question and one answer at a time.

| question `do` | the worker | and answers |
| --- | --- | --- |
| hello | limits itself to `memory_MB` (0: any) | package `versions` |
| prepare | builds the task and warms up for about `seconds` | `n_parameters`, `resident_MB` |
| step | does one step | `ms`, `peak_MB` since prepare, `resident_MB` |
| rest | returns free memory to the system; the next step is preceded by one that is not timed | `resident_MB` |
| count | does one step more slowly | `gflop` and `gbyte` of it |
| limits | times a matrix product and a triad in `dtype` | `gflop_per_s`, `gbyte_per_s`, `threads` |

The `error` of an answer is a one-line message. A worker ends when its input ends. Output of the libraries goes to the
error stream, so that it cannot be mistaken for an answer.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any, NamedTuple, TextIO

from . import process_memory

__all__ = ["Server", "Structure", "Task", "Work", "serve"]

WARM_UP = 3  # steps: TorchScript optimises at the second

Message = dict[str, Any]


class Structure(NamedTuple):
    """Atoms as plain lists: positions and cell in Angstrom."""

    numbers: list[int]
    positions: list[list[float]]
    cell: list[list[float]]
    pbc: list[bool]


class Task(NamedTuple):
    """A task: ``training`` on all structures at once, ``md`` of the first, or ``nbody`` on the worker's own systems."""

    kind: str
    structures: Sequence[Structure] = ()
    dtype: str = "float32"
    cutoff: float = 5.0  # Angstrom
    seconds: float = 1.0  # approximate upper limit of the warm-up


class Work(NamedTuple):
    """A prepared task: one call is one step."""

    step: Callable[[], object]
    n_parameters: int


class Server:
    """Answers questions; ``prepare`` prepares a task, ``packages`` are those whose versions are reported.

    ``guard`` is called with the largest allowed size (MB, 0: any) before anything that takes memory.
    """

    def __init__(
        self,
        prepare: Callable[[Task], Work],
        packages: Sequence[str],
        guard: Callable[[float], None] = lambda most: None,
    ) -> None:
        self.prepare, self.packages, self.guard = prepare, packages, guard
        self.most = 0.0
        self.work: Work | None = None
        self.rested = False

    def answer(self, question: Message) -> Message:
        """The answer to one question; a failure is an answer too."""
        try:
            return getattr(self, f"_{question['do']}")(question)
        except Exception as error:  # whatever a library raises: the worker reports it and continues
            return {"error": _sentence(error)}

    def _hello(self, question: Message) -> Message:
        self.most = question.get("memory_MB", 0.0)
        return {"versions": {name: metadata.version(name) for name in self.packages}}

    def _prepare(self, question: Message) -> Message:
        self.work, self.rested = None, False
        process_memory.release()
        process_memory.reset_peak()
        self.guard(self.most)
        fields = dict(question["task"])
        task = Task(**{**fields, "structures": [Structure(**each) for each in fields.get("structures", ())]})
        self.work = self.prepare(task)
        start = time.perf_counter()
        for _ in range(WARM_UP):
            self.work.step()
            if time.perf_counter() - start > task.seconds:
                break
        return {"n_parameters": self.work.n_parameters, "resident_MB": process_memory.resident()}

    def _step(self, question: Message) -> Message:
        work = self._ready()
        if self.rested:
            work.step()
            self.rested = False
        start = time.perf_counter()
        work.step()
        ms = 1e3 * (time.perf_counter() - start)
        return {"ms": ms, "peak_MB": process_memory.peak(), "resident_MB": process_memory.resident()}

    def _rest(self, question: Message) -> Message:
        process_memory.release()
        self.rested = True
        return {"resident_MB": process_memory.resident()}

    def _count(self, question: Message) -> Message:
        from .counting import count

        return count(self._ready().step)._asdict()

    def _limits(self, question: Message) -> Message:
        from .counting import limits

        return limits(question["dtype"])._asdict()

    def _ready(self) -> Work:
        if self.work is None:
            raise RuntimeError("nothing was prepared")
        self.guard(self.most)
        return self.work


def serve(prepare: Callable[[Task], Work], packages: Sequence[str]) -> None:
    """Answer the lines of the standard input until it ends."""
    process_memory.go_first()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        converse(Server(prepare, packages, process_memory.limit), sys.stdin, out)


def converse(server: Server, lines: Iterable[str], out: TextIO) -> None:
    """One line of answer for each line of question."""
    for line in lines:
        out.write(json.dumps(server.answer(json.loads(line))) + "\n")
        out.flush()


def _sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
