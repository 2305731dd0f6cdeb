"""What a trial found: counts by kind, findings with how to reproduce them, seed, versions, machine and date.

    options = options_of(parser_of("kills", "Random kills of every verb."))  # --minutes --seed --out
    found = Findings("kills", options.seed)
    deadline = Deadline(options.minutes)
    while not deadline.is_over():
        found.count("train")                                          # one case more of this kind
        found.report("train", "the weights differ", "python tests/trials/kills.py --seed 7 --verbs train")
    sys.exit(found.finish(options.out))                               # 1 with findings

The stored file is read by docs/trust.md's readers and by nobody else; it names no path and no host of the machine.
"""

import argparse
import json
import secrets
import shlex
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from mdrelax.base.files import write_atomically
from mdrelax.base.provenance import environment, portable

__all__ = ["Deadline", "Finding", "Findings", "options_of", "parser_of"]

FORMAT_VERSION = 1
MOST_SHOWN = 20  # findings that are printed; all are stored


class Finding(NamedTuple):
    """One thing that went wrong."""

    kind: str
    what: str  # a sentence: the right value and the wrong one
    reproduce: str  # a command, or the input itself


class Deadline:
    """The end of a trial, ``minutes`` after it was made."""

    def __init__(self, minutes: float) -> None:
        self._start = time.monotonic()
        self._seconds = 60 * minutes

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def is_over(self) -> bool:
        """True when the time is used up."""
        return self.elapsed() >= self._seconds


class Findings:
    """Counts and findings of one trial; ``finish`` stores and prints them."""

    def __init__(self, trial: str, seed: int) -> None:
        self.trial, self.seed = trial, seed
        self.counts: Counter[str] = Counter()  # kind -> cases
        self.findings: list[Finding] = []
        self.notes: dict[str, Any] = {}  # what else should be stored, JSON values
        self._start = time.monotonic()

    def count(self, kind: str, n: int = 1) -> None:
        """Count ``n`` cases of a kind, whether they passed or not."""
        self.counts[kind] += n

    def report(self, kind: str, what: str, reproduce: str) -> None:
        """Record a finding and print it at once: a trial may be stopped at any time."""
        self.findings.append(Finding(kind, what, reproduce))
        print(f"FINDING ({kind}): {what}\n  {reproduce}", flush=True)

    def record(self) -> dict[str, Any]:
        """The content of the result file."""
        return {
            "format_version": FORMAT_VERSION,
            "trial": self.trial,
            "command": portable(shlex.join(["python", *_script(sys.argv)])),
            "seconds": round(time.monotonic() - self._start, 1),
            "cases": self.counts.total(),
            "counts": dict(sorted(self.counts.items())),
            "findings": [finding._asdict() for finding in self.findings],
            **self.notes,
            "environment": environment(device="cpu", seed=self.seed),
        }

    def finish(self, out: Path | None) -> int:
        """Store the record (atomically) if ``out`` is given, print a summary, and return the exit code."""
        record = self.record()
        if out is not None:
            write_atomically(out, (json.dumps(record, indent=2) + "\n").encode())
        for kind, n in sorted(self.counts.items()):
            wrong = sum(finding.kind == kind for finding in self.findings)
            print(f"{kind:>24}  {n:>7,} cases  {wrong:>4} findings")
        for finding in self.findings[:MOST_SHOWN]:
            print(f"- {finding.kind}: {finding.what}\n  {finding.reproduce}")
        n_cases, n_findings = record["cases"], len(self.findings)
        print(f"{self.trial}: {n_cases:,} cases, {n_findings} findings, {record['seconds']:.0f} s, seed {self.seed}")
        return int(bool(self.findings))


def parser_of(trial: str, description: str) -> argparse.ArgumentParser:
    """The options that every trial has; a trial may add its own."""
    parser = argparse.ArgumentParser(prog=f"python tests/trials/{trial}.py", description=description)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on; the last case is finished")
    parser.add_argument("--seed", type=int, help="of everything random; another one each time if left out")
    parser.add_argument("--out", type=lambda word: Path(word).absolute(), help="a JSON file for the result")
    return parser


def options_of(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """The parsed options, with a seed."""
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**31)
    return options


def _script(words: list[str]) -> list[str]:
    """The command's words with the script's place in the repository."""
    return [f"tests/trials/{Path(words[0]).name}", *words[1:]]
