"""The workers of the speed benchmark: their protocol, their turns, and what happens when one of them fails."""

import io
import json
import sys
from pathlib import Path

import pytest

from mdrelax.analysis.benchmarks.implementations import CASES, Implementation
from mdrelax.analysis.benchmarks.interleaved import Rules, run_cases
from mdrelax.analysis.benchmarks.peers.protocol import Server, Task, Work, converse
from mdrelax.analysis.benchmarks.workers import LostWorkerError, start
from speed_workers import answering, misbehaving

NBODY = CASES["nbody"]


def fakes(*names):
    """Implementations of the N-body case whose workers the test starts itself."""
    return [misbehaving("works")._replace(name=name) for name in names]


def test_each_line_of_question_has_one_line_of_answer():
    """hello, prepare, step: what was prepared is stepped through, with time and memory; JSON in, JSON out."""
    steps = []
    server = Server(lambda task: Work(lambda: steps.append(task.kind), 42), ["numpy"])
    task = Task("training", [], "float64", 4.0, 1e-9)._asdict()
    questions = [{"do": "hello"}, {"do": "prepare", "task": task}, {"do": "step"}, {"do": "rest"}, {"do": "step"}]
    out = io.StringIO()
    converse(server, [json.dumps(question) for question in questions], out)
    hello, prepared, step, _, _ = map(json.loads, out.getvalue().splitlines())
    assert list(hello["versions"]) == ["numpy"]
    assert prepared["n_parameters"] == 42
    assert step["ms"] >= 0
    assert step["peak_MB"] + 1 >= step["resident_MB"] > 1  # the kernel adds up the pages of threads now and then
    assert steps == ["training"] * 4  # a warm-up, a step, and after a rest one that is not timed


def test_a_failure_is_an_answer_of_one_line():
    """Also a question for a step before anything was prepared."""
    assert Server(lambda task: Work(lambda: None, 0), []).answer({"do": "step"}) == {
        "error": "RuntimeError: nothing was prepared"
    }


def test_what_a_library_prints_is_no_answer():
    """The process's standard output belongs to the protocol."""
    worker = start(misbehaving("prints"), longest=60)
    assert worker.ask("prepare", task=Task("nbody")._asdict())["n_parameters"] == 7
    assert "ms" in worker.ask("step")
    worker.close()


@pytest.mark.parametrize(
    ("kind", "longest", "sentence"),
    [
        ("raises", 60, "ValueError: no such path"),
        ("dies", 60, "ended with code 3: a last word"),
        ("is killed", 60, "killed by the system, which happens when memory runs out"),
        ("sleeps", 1, "no answer in 1 s"),
    ],
)
def test_a_worker_that_fails_is_lost_with_one_line(kind, longest, sentence):
    """An exception, a sudden end, silence: one sentence each, and no process is left."""
    worker = start(misbehaving(kind), longest=longest)
    with pytest.raises(LostWorkerError) as error:
        worker.ask("prepare", task=Task("nbody")._asdict())
    assert str(error.value) == sentence
    assert worker.process.poll() is not None


def test_a_crash_loses_the_case_and_the_others_go_on():
    """The table has the other implementation, and the crash is told of in one line."""
    said = []
    implementations = [misbehaving("dies"), misbehaving("works")]
    rules = Rules(repeats=2)
    table, _ = run_cases([NBODY], implementations, lambda who: start(who, longest=60), rules=rules, tell=said.append)
    assert table.contestant.tolist() == ["works"]
    assert table.repeats.tolist() == [2]
    assert [line for line in said if "dies is" in line] == [
        "nbody: dies is left out, ended with code 3: a last word",
    ]


def test_implementations_are_timed_in_turns():
    """One step each, round after round: a slow minute of the machine falls on all."""
    log = []
    start_fake = answering({"a": 1.0, "b": 2.0, "c": 3.0}, log)
    run_cases([NBODY], fakes("a", "b", "c"), start_fake, rules=Rules(repeats=3), tell=lambda line: None)
    assert log == ["a", "b", "c"] * 3 + ["end of a", "end of b", "end of c"]


def test_a_slow_implementation_stops_after_its_seconds_but_not_before_three():
    """The others have all their repeats."""
    log = []
    start_fake = answering({"slow": 9e9, "fast": 1.0}, log)
    rules = Rules(repeats=5, seconds=1.0)
    table, _ = run_cases([NBODY], fakes("slow", "fast"), start_fake, rules=rules, tell=lambda line: None)
    assert table.set_index("contestant").repeats.to_dict() == {"slow": 3, "fast": 5}


def test_a_worker_serves_all_cases_of_its_implementation():
    """It is started once and ended when no case is left for it."""
    log = []
    both = fakes("a")[0]._replace(kinds=("training", "nbody"))
    cases = [CASES["ethanol-b1"], NBODY, CASES["md-ethanol"]]
    kept = []
    table, _ = run_cases(
        cases, [both], answering({"a": 1.0}, log), rules=Rules(repeats=1), tell=lambda line: None,
        keep=lambda so_far, versions: kept.append(len(so_far)),
    )  # fmt: skip
    assert table.case.tolist() == ["ethanol-b1", "nbody"]
    assert log == ["a", "a", "end of a"]
    assert kept == [1, 2, 2]  # after every case there is something to keep


def test_workers_that_hold_too_much_memory_together_rest():
    """Beyond the limit the one that has just worked gives back what it does not use."""
    asked = []

    class Large:
        def ask(self, do: str, **details: object) -> dict[str, object]:
            asked.append(do)
            return {"ms": 1.0, "resident_MB": 900.0 if do in ("prepare", "step") else 100.0}

        def close(self) -> None:
            pass

    rules = Rules(repeats=1, together_MB=1000.0)
    run_cases([NBODY], fakes("a", "b"), lambda implementation: Large(), rules=rules, tell=lambda line: None)
    assert asked == ["hello", "prepare", "hello", "prepare", "rest", "step", "step", "rest"]


def test_imports_are_timed_in_fresh_processes():
    """Each step is a process from its start to its end; a failing import says why."""
    base = misbehaving("works")._replace(kinds=("import",))
    timer = start(base._replace(command=(sys.executable, "-c", "import json")), longest=60)
    timer.ask("prepare")
    assert timer.ask("step")["ms"] > 1
    broken: Implementation = base._replace(command=(sys.executable, "-c", "import no_such_package"))
    with pytest.raises(LostWorkerError, match="ended with code 1: ModuleNotFoundError: No module named"):
        start(broken, longest=60).ask("step")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is the kernel's")
def test_a_worker_that_wants_too_much_memory_is_refused_and_nobody_else_suffers():
    """It may hold 300 MB and asks for 400: an error of one line; if all memory were gone, it would be ended first."""
    worker = start(misbehaving("greedy"), longest=60)
    worker.ask("hello", memory_MB=300.0)
    with pytest.raises(LostWorkerError, match="MemoryError"):
        worker.ask("prepare", task=Task("nbody")._asdict())
    modest = start(misbehaving("works"), longest=60)
    modest.ask("prepare", task=Task("nbody")._asdict())
    assert Path(f"/proc/{modest.process.pid}/oom_score_adj").read_text().strip() == "1000"
    modest.close()
