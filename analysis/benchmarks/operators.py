"""Operators: the time of a training step by torch operation, in the plain and in the fast form.

torch's profiler counts each operation's own time on the CPU, without the operations it calls, for forward and both
backward passes together. Profiling slows small operations down, so shares matter and milliseconds do not.
"""

import pandas as pd
from torch.profiler import ProfilerActivity, profile

from mdrelax.analysis.benchmarks import mdrelax_worker
from mdrelax.analysis.benchmarks.implementations import CASES, structures_of
from mdrelax.analysis.benchmarks.peers.protocol import Task
from mdrelax.base.places import naming

__all__ = ["operator_table"]

WARM_UP = 2


def operator_table(implementations: list[str], case: str, *, steps: int = 1, rows: int = 10) -> pd.DataFrame:
    """The largest operations of a case for each of our implementations: calls and milliseconds per step, share.

    Raises ``KeyError`` for an unknown case, ``ValueError`` for an unknown network.
    """
    chosen = CASES[case]
    task = Task(chosen.kind, structures_of(chosen))
    return pd.concat(
        [_of_one(name, task, steps, rows).assign(case=case) for name in implementations], ignore_index=True
    )


def _of_one(name: str, task: Task, steps: int, rows: int) -> pd.DataFrame:
    with naming(f"implementation `{name}`"):
        work = mdrelax_worker.prepare(name, task)
    for _ in range(WARM_UP):
        work.step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            work.step()
    events = [event for event in profiler.key_averages() if event.key.startswith("aten::")]
    table = pd.DataFrame(
        {
            "contestant": name,
            "operator": [event.key.removeprefix("aten::") for event in events],
            "calls": [event.count / steps for event in events],
            "ms": [event.self_cpu_time_total / 1e3 / steps for event in events],
        }
    )
    table["share"] = table.ms / table.ms.sum()
    table["all_ms"], table["all_calls"] = table.ms.sum(), table.calls.sum()
    return table.nlargest(rows, "ms")
