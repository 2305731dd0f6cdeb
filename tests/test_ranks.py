"""Training on several ranks is the training of one process: losses, gradients, weights, errors, and resuming."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from command_line import ROOT
from mdrelax.base import o3
from mdrelax.base.sections import ConfigError
from mdrelax.method.penalty import penalty, record_inputs
from mdrelax.method.relaxation import relax_constraints
from mdrelax.training.ranks import ALONE, Ranks, joined, launched, use_gpu
from mdrelax.training.trainer import Trainer, TrainingError
from ranks_worker import FORCES, NBODY, SMOKE
from toy_regression import trainer

EXACT = 1e-12  # in float64, relative; found: below 2e-15 after 20 steps
COMPILED = [name for name in FORCES if "compiled" in name]
CASES = [name for name in (*FORCES, *NBODY, *SMOKE) if name not in COMPILED]


def on_two_ranks(folder: Path, *names: str, seconds: float) -> dict[str, Any]:
    """What ``ranks_worker`` finds."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [str(ROOT / "tests" / "ranks_worker.py"), str(folder), *names]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    end = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    assert end.returncode == 0, end.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of all quick cases, in two processes that are started once."""
    return on_two_ranks(tmp_path_factory.mktemp("ranks"), *CASES, "statistics", "resume", seconds=300)


# --- the same training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process(found, name):
    """Gradients of the first and last step, weights after 20 steps, every column of metrics.csv, penalty included.

    The last batch of an epoch of clusters has one structure, so that rank 1 has none; the ranks begin with different
    weights, of which those of rank 0 count.
    """
    assert {"weights", "gradient of the last step", "train_loss", "penalty"} <= found[name].keys()
    assert max(found[name].values()) < EXACT, found[name]


@pytest.mark.slow
def test_two_ranks_train_compiled_as_one_process(tmp_path):
    """The same with compiled steps, for any edges and for edges that all structures share."""
    for name, differences in on_two_ranks(tmp_path, *COMPILED, seconds=3000).items():
        assert max(differences.values()) < EXACT, (name, differences)


def test_a_run_on_ranks_resumes_bit_for_bit_and_alone_to_rounding(found):
    """Stopped on both ranks after step 11: on both from step 8 with the same bits, by one process with the same run."""
    assert found["resume"]["begun at"] == 8
    assert found["resume"]["same bits"]
    assert found["resume"]["alone"] < EXACT


def test_batch_norms_of_the_validated_network_are_those_of_one_process(found):
    """Means over the same batches, of which each rank has every other one."""
    assert max(found["statistics"]) < EXACT


# --- parts of a batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "largest"),
    [
        ([1] * 32, [16, 11, 8]),
        ([9, 1, 1, 1, 6], [9, 9, 9]),
        ([100, 1, 1], [100, 100, 100]),
        ([5], [5, 5, 5]),
        ([0, 0, 3], [3, 3, 3]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [24, 17, 15]),
    ],
)
def test_parts_are_consecutive_and_their_largest_is_smallest(sizes, largest):
    """By hand, for 2, 3 and 4 ranks: everything is in one part, and rank 0 has one."""
    for n_ranks, wanted in zip((2, 3, 4), largest, strict=True):
        parts = [Ranks(rank, n_ranks).part(sizes) for rank in range(n_ranks)]
        assert [k for part in parts for k in range(len(sizes))[part]] == list(range(len(sizes)))
        assert max(sum(sizes[part]) for part in parts) == wanted
        assert parts[0].stop > 0
    assert ALONE.part(sizes) == slice(0, len(sizes))
    assert ALONE.part([]) == slice(0, 0)


class Together:
    """Processes, one after the other: the rows of each are known, and the test sums their terms."""

    def __init__(self, rank: int, rows: list[int]) -> None:
        self.rank, self.size, self.rows = rank, len(rows), rows

    def gather(self, numbers: Tensor) -> Tensor:
        """The rows of each process in each layer."""
        return torch.tensor(self.rows).unsqueeze(1).expand(-1, len(numbers))

    def total(self, own: Tensor) -> Tensor:
        """Only the own terms, for the test to sum."""
        return own


@pytest.mark.parametrize("rows", [None, 3, 5, 40])
@pytest.mark.parametrize("kind", ["activation", "weight"])
def test_the_penalty_of_three_parts_is_that_of_the_batch(rows, kind):
    """Squares of the parts' terms add up to those of the whole, sampled rows or all, and one part may be empty."""
    model = nn.Sequential(o3.Linear("2x0e+1x1o", "2x0e+1x1o"))
    relax_constraints(model, initial_std=1.0, generator=torch.Generator().manual_seed(0))
    x, counts = torch.randn(11, 5, generator=torch.Generator().manual_seed(1)), [7, 0, 4]
    with record_inputs(model) as whole:
        model(x)
    squares = []
    for rank, part in enumerate(x.split(counts)):
        with record_inputs(model) as inputs:
            if len(part):
                model(part)
        own = partial(penalty, model, inputs, kind=kind, rows=rows, processes=Together(rank, counts))
        terms = [own(lie=0.0), own(lie=1.0)]
        squares.append(torch.stack([terms[0], terms[1] - terms[0]]).square())
    size = penalty(model, whole, kind=kind, rows=rows, lie=0.0)
    both = penalty(model, whole, kind=kind, rows=rows)
    torch.testing.assert_close(sum(squares).sqrt(), torch.stack([size, both - size]), rtol=1e-5, atol=1e-6)


# --- joining ----------------------------------------------------------------------------------------------------------


def test_a_process_without_a_launcher_is_alone(monkeypatch):
    """No process group, and one rank of torchrun's is no group either."""
    four = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}
    for environment in ({}, four, {"PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1"}):
        assert launched(environment) == (0, 1)
    with joined() as ranks:
        assert ranks is ALONE
    assert not torch.distributed.is_initialized()


def test_torchruns_variables_name_the_rank():
    """Beside srun's, which started torchrun on every machine."""
    four = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    assert launched({**four, "SLURM_STEP_NUM_TASKS": "2"}) == (5, 8)


def test_one_gpu_for_all_ranks_is_refused():
    """`cuda:0` on two ranks; one process may have it."""
    use_gpu("cuda:0", ALONE)
    use_gpu("cpu", Ranks(1, 2))
    with pytest.raises(ConfigError, match=r"`training\.device: cuda:0` puts all 2 ranks on one GPU; `cuda` gives"):
        use_gpu("cuda:0", Ranks(1, 2))


def test_a_task_that_cannot_be_divided_is_refused(tmp_path):
    """Before anything is exchanged: each rank would train on everything, and gradients would count twice."""
    own = trainer(tmp_path)
    with pytest.raises(TrainingError, match="The task `Regression` cannot be divided among 2 ranks: it has no method"):
        Trainer(
            own.model, own.task, training=own.settings, relaxation=own.relaxation, folder=tmp_path, ranks=Ranks(0, 2)
        )
