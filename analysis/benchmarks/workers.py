"""Workers: the processes of the implementations, which answer the benchmark's questions."""

import contextlib
import json
import queue
import subprocess
import tempfile
import threading
import time
from typing import Any, Protocol

from mdrelax.analysis.benchmarks.implementations import Implementation
from mdrelax.base.words import last_sentence

__all__ = ["LostWorkerError", "Process", "Timer", "Worker", "start"]

GRACE = 5.0  # seconds that a worker has to end
KILLED = -9  # exit code of a process that the system killed


class LostWorkerError(RuntimeError):
    """A worker failed, died or did not respond in time; the message is one line."""


class Worker(Protocol):
    """The interface that the benchmark needs."""

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """The answer to a question; raises ``LostWorkerError`` if there is none."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Process:
    """A worker in its own process; ``longest`` is the time limit of an answer in seconds."""

    def __init__(self, implementation: Implementation, *, longest: float) -> None:
        self.longest = longest
        self.late = False
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            implementation.command,
            cwd=implementation.folder,
            env=implementation.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)  # pipes have no time-outs on every system
        self.reader.start()

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Send a line and wait for one."""
        try:
            answer = json.loads(self._line(json.dumps({"do": do, **details})))
        except LostWorkerError:
            self.close()
            raise
        if "error" in answer:
            self.close()
            raise LostWorkerError(answer["error"])
        return dict(answer)

    def close(self) -> None:
        """End the process, by force if it does not end by itself."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(GRACE if self.process.poll() is None and not self.late else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.complaints.close()

    def _read(self) -> None:
        """Every line of the process, and an empty one when it has ended."""
        for line in self.process.stdout or ():
            self.lines.put(line)
        self.lines.put(b"")

    def _line(self, question: str) -> bytes:
        """The next line of answer; raises ``LostWorkerError`` if the process ends or takes too long."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):  # it ended: the empty line below says so
                self.process.stdin.write(question.encode() + b"\n")
                self.process.stdin.flush()
        try:
            line = self.lines.get(timeout=self.longest)
        except queue.Empty:
            self.late = True
            raise LostWorkerError(f"no answer in {self.longest:g} s") from None
        if not line:
            raise LostWorkerError(self._last_words())
        return line

    def _last_words(self) -> str:
        """How the process ended, and the last line that it wrote."""
        code = self.process.wait()
        if code == KILLED:
            return "killed by the system, which happens when memory runs out"
        self.complaints.seek(0)
        return f"ended with code {code}: {last_sentence(self.complaints.read()) or 'without a word'}"


class Timer:
    """A command that is started for every step, and timed from start to exit."""

    def __init__(self, implementation: Implementation, *, longest: float) -> None:
        self.implementation, self.longest = implementation, longest

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Answer a question; only ``step`` does anything."""
        if do == "step":
            start = time.perf_counter()
            self._run()
            return {"ms": 1e3 * (time.perf_counter() - start)}
        if do == "prepare":
            self._run()  # files are cached, bytecode is written
        return {}

    def close(self) -> None:
        """Do nothing: there is no process between steps."""

    def _run(self) -> None:
        try:
            subprocess.run(
                self.implementation.command,
                cwd=self.implementation.folder,
                env=self.implementation.environment,
                capture_output=True,
                timeout=self.longest,
                check=True,
            )
        except subprocess.TimeoutExpired as error:
            raise LostWorkerError(f"no end in {self.longest:g} s") from error
        except subprocess.CalledProcessError as error:
            words = last_sentence(error.stderr.decode(errors="replace")) or "without a word"
            raise LostWorkerError(f"ended with code {error.returncode}: {words}") from error


def start(implementation: Implementation, *, longest: float) -> Worker:
    """The worker of an implementation: a persistent process, or for imports one that is started for every step."""
    if "import" in implementation.kinds:
        return Timer(implementation, longest=longest)
    return Process(implementation, longest=longest)
