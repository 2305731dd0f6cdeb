"""Bad inputs to every verb, the calculators and the Python API: each has to end in one sentence, soon.

    python tests/trials/inputs.py [--minutes 10] [--seed N] [--out FILE] [--cases N]

The cases are made from the commands, the settings and a few good files (trials/bad_*.py), shuffled by the seed, and
run until the time or their number is up. A verb has to say exactly one sentence on stderr (warnings aside) of at most
600 characters that names the option, the value or the file, without a traceback, and to exit with 1 to 4. A call has to
raise one of the documented errors with such a sentence.
"""

import errno
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mdrelax.base.sections import ConfigError
from mdrelax.cli import CONFIG, app
from trials.bad_calls import Call, bad_calls
from trials.bad_documents import spoilt_configs
from trials.bad_files import good_files, spoilt_files, spoilt_frames, spoilt_outputs
from trials.bad_words import VERBS, Bad, spoilt_words
from trials.findings import Deadline, Findings, options_of, parser_of
from trials.processes import ended, start, warm_up

PATIENCE = 30.0  # seconds for one case on a busy machine; most take a tenth of one
LONGEST = 600  # characters of a message
RAW = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b")
DOCUMENTED = (ValueError, OSError, ImportError, TypeError, RuntimeError)  # the package's own derive from them
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


def full_disk() -> None:
    """Let every file that is synced find the disk full."""

    def fails(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = fails  # type: ignore[assignment]


def wrong_message(message: str, named: tuple[str, ...]) -> str:
    """A sentence on what is wrong with a message; empty if it is right."""
    if "\n" in message:
        return f"{len(message.splitlines())} lines in place of one: {message[-200:]!r}"
    if not message:
        return "No message"
    if len(message) > LONGEST:
        return f"{len(message):,} characters: {message[:100]!r} ..."
    if RAW.match(message) or not message.endswith((".", "?")):
        return f"No sentence of ours: {message!r}"
    if named and not any(word and word in message for word in named):
        return f"It names neither of {named!r:.200}: {message!r}"
    return ""


def wrong_lines(lines: list[str], named: tuple[str, ...]) -> str:
    """The same for the sentences on a config, one for each mistake, of which one names the word."""
    wrong = [wrong_message(line, ()) for line in lines or [""]]
    return next(filter(None, wrong), "") or wrong_message(" ".join(lines), named)


def wrong_end(code: int | None, errors: str, named: tuple[str, ...]) -> str:
    """A sentence on what is wrong with the end of a verb; empty if it is right."""
    if code is None:
        return f"It does not end within {PATIENCE:.0f} s"
    if code == 0:
        return "It is accepted"
    if "Traceback" in errors:
        return f"A traceback: {errors.strip().splitlines()[-1]:.300}"
    if code not in (1, 2, 3, 4):
        return f"Exit code {code}: {errors[-200:]!r}"
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith("Warning: ")]
    return wrong_lines(lines, named) if code == CONFIG else wrong_message("\n".join(lines), named)


class Bench:
    """The folder in which verbs are tried, one after the other."""

    def __init__(self, folder: Path, good: dict[str, Path]) -> None:
        self.folder, self.good = folder, good
        self.tried = 0
        self.messages: dict[str, str] = {}  # the last one of each kind

    def wrong(self, case: Bad) -> str:
        """Try a verb; a sentence on what is wrong with its end, or empty."""
        self.tried += 1
        place = self.folder / f"case-{self.tried}"
        place.mkdir()
        known = {**{name: str(path) for name, path in self.good.items()}, "new": str(place / "new")}
        words = [_filled(word, known) for word in case.words]
        said, errors = place / "said", place / "errors"
        process = start(
            words, place, said, cold=False, environment={**NO_NETWORK, "MDRELAX_CACHE": str(place / "cache")},
            errors=errors, first=full_disk if case.full_disk else lambda: None,
        )  # fmt: skip
        if not ended(process, patience=PATIENCE):
            os.killpg(process.pid, signal.SIGKILL)
            ended(process, patience=PATIENCE)
            process.code = None
        text = errors.read_text(errors="replace") if errors.exists() else ""
        shutil.rmtree(place, ignore_errors=True)
        self.messages[f"{' '.join(case.words[:2])}: {case.kind}"] = text.strip()[-LONGEST:]
        return wrong_end(process.code, text, case.named)


def _filled(word: str, known: dict[str, str]) -> str:
    """A word with its placeholder replaced."""
    for name, value in known.items():
        word = word.replace(f"{{{name}}}", value)
    return word


class TooLongError(BaseException):
    """A call that does not end."""


def wrong_call(call: Callable[[], Any]) -> str:
    """Make a call; a sentence on what is wrong with its error, or empty."""

    def late(*_: object) -> NoReturn:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except TooLongError:
        return f"It does not end within {PATIENCE:.0f} s"
    except DOCUMENTED as error:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        wrong = wrong_lines(message.splitlines(), ()) if isinstance(error, ConfigError) else wrong_message(message, ())
        return f"{type(error).__name__}: {wrong}" if wrong else ""
    except Exception as error:
        return f"An error of another kind, {type(error).__name__}: {error!s:.200}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "It is accepted"


def all_cases(good: dict[str, Path], folder: Path) -> list[Bad | Call]:
    """Every bad input."""
    spoilt: list[Bad | Call] = [
        *spoilt_words(app),
        *spoilt_files(good, folder / "files"),
        *spoilt_outputs(good),
        *spoilt_frames(folder),
        *spoilt_configs(good["config"], folder / "configs"),
        *bad_calls(good, folder),
    ]
    return spoilt


def chosen(cases: list[Bad | Call], seed: int, number: int) -> list[Bad | Call]:
    """``number`` of the cases in random order, the kinds and verbs in turns."""
    chance = random.Random(seed)
    order = chance.sample(cases, len(cases))
    turns: dict[str, int] = {}
    ranked = []
    for place, case in enumerate(order):
        group = f"{_verb(case)} {case.kind}"
        turns[group] = turns.get(group, -1) + 1
        ranked.append((turns[group], place))
    return [order[place] for _, place in sorted(ranked)][:number]


def _verb(case: Bad | Call) -> str:
    if isinstance(case, Call):
        return "Python"
    return next((verb for verb in VERBS if case.words[: len(verb.split())] == verb.split()), case.words[0])


def _portable(case: Bad | Call, folder: Path) -> str:
    """How a case is written, without places of this machine."""
    if isinstance(case, Call):
        return case.written
    words = [word.replace(f"{folder}/", "").replace("{new}", "new")[:80] for word in case.words]
    return " ".join(["mdrelax", *(word if word.isascii() and word.isprintable() else repr(word) for word in words)])


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = parser_of("inputs", "Bad inputs to every verb and to the Python API, and whether each ends in a sentence.")
    parser.add_argument("--cases", type=int, default=10**9, help="stop after so many, if the time is not up before")
    parser.add_argument("--only", default="", help="cases whose verb and kind contain this word")
    options = options_of(parser, arguments)
    found = Findings("inputs", options.seed)
    warm_up()
    with tempfile.TemporaryDirectory(prefix="inputs-") as name:
        folder = Path(name)
        good = good_files(folder)
        bench, deadline = Bench(folder / "cases", good), Deadline(options.minutes)
        bench.folder.mkdir()
        cases = [case for case in all_cases(good, folder) if options.only in f"{_verb(case)} {case.kind}"]
        os.chdir(bench.folder)
        slowest = 0.0
        for case in chosen(cases, options.seed, options.cases):
            if deadline.is_over():
                break
            since = time.monotonic()
            found.count(_verb(case))
            wrong = wrong_call(case.call) if isinstance(case, Call) else bench.wrong(case)
            slowest = max(slowest, time.monotonic() - since)
            if wrong:
                found.report(_verb(case), f"{case.kind}: {wrong}".replace(f"{folder}/", ""), _portable(case, folder))
        os.chdir("/")
        found.notes = {"made": len(cases), "slowest_seconds": round(slowest, 1)}
    return found.finish(options.out)


if __name__ == "__main__":
    sys.exit(main())
