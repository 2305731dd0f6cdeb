"""Implementations for the tests of the speed benchmark: some run in this process, some misbehave in their own."""

import os
import sys
from collections.abc import Callable
from typing import Any

from mdrelax.analysis.benchmarks import mdrelax_worker
from mdrelax.analysis.benchmarks.implementations import HERE, Implementation
from mdrelax.analysis.benchmarks.peers.protocol import Server

LIMITS = {"gflop_per_s": 50.0, "gbyte_per_s": 10.0, "threads": 1}  # measuring them takes seconds

# What a worker does in a step; it imports the protocol as a peer does, without torch and mdrelax.
SCRIPT = """
import os, sys, time
from peers.protocol import Work, serve

def step():
    kind = sys.argv[1]
    if kind == "prints":
        print("loud")
    if kind == "raises":
        raise ValueError("no such path\\nsecond line")
    if kind == "dies":
        sys.stderr.write("a last word\\n")
        sys.stderr.flush()
        os._exit(3)
    if kind == "is killed":
        os.kill(os.getpid(), 9)
    if kind == "greedy":
        bytearray(400_000_000)
    if kind == "sleeps":
        time.sleep(60)

serve(lambda task: Work(step, 7), ())
"""


def misbehaving(kind: str) -> Implementation:
    """A process that does what ``SCRIPT`` has for ``kind`` in each step; any other word: it just works."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return Implementation(kind, (sys.executable, "-c", SCRIPT, kind), HERE, environment, ("nbody",))


class Answering:
    """A worker that notes who was asked for a step; ``ms`` are its times."""

    def __init__(self, name: str, ms: float, log: list[str]) -> None:
        self.name, self.ms, self.log = name, ms, log

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Plausible answers."""
        if do == "step":
            self.log.append(self.name)
        answers = {"step": {"ms": self.ms, "peak_MB": 1.0}, "prepare": {"n_parameters": 7}}
        return answers.get(do, {})

    def close(self) -> None:
        """Notes its end."""
        self.log.append(f"end of {self.name}")


class InProcess:
    """One of our own implementations without a process: the protocol's server, asked directly."""

    def __init__(self, implementation: Implementation) -> None:
        name = implementation.command[-1]
        self.server = Server(lambda task: mdrelax_worker.prepare(name, task), mdrelax_worker.PACKAGES)

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """The server's answer; an error is raised."""
        if do == "limits":
            return LIMITS
        answer = self.server.answer({"do": do, **{**details, **({"memory_MB": 0} if do == "hello" else {})}})
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """Nothing to end."""


def in_process(implementation: Implementation, **options: Any) -> InProcess:
    """Starts nothing."""
    return InProcess(implementation)


def answering(times: dict[str, float], log: list[str]) -> Callable[[Implementation], Answering]:
    """Starts workers with fixed times."""
    return lambda implementation: Answering(implementation.name, times[implementation.name], log)
