"""`mdrelax bench ranks`: one process and several in turns, medians of their steps and ratios; and a pack on ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import ROOT, mdrelax
from mdrelax.analysis.benchmarks import ranks as benchmark
from mdrelax.packs.nbody.run import NBodyRun, run_nbody
from mdrelax.training.folders import prepare_folder
from small_runs import CLUSTER_CUTOFF, NETWORK, clusters, write_frames

SMALL = NBodyRun(
    data="charged", n_train=12, n_validation=7, n_test=8, n_layers=2, channels=4,
    training={"steps": 8, "batch_size": 6, "validate_every": 4, "dtype": "float64"},
    relaxation={"penalty_rows": 5}, arm="relaxed",
)  # fmt: skip


def test_the_speed_up_is_the_median_of_the_rounds_ratios(monkeypatch):
    """Three rounds, of which the machine was slow in one: both kinds were, and their ratio counts."""
    times = iter([[0.2, 0.2, 0.9], [0.1, 0.1, 0.1], [0.8, 0.8], [0.4, 0.4], [0.3], [0.1]])
    asked: list[tuple[int, int]] = []

    def steps(config: dict, ranks: int, threads: int) -> list[float]:
        asked.append((ranks, threads))
        return next(times)

    monkeypatch.setattr(benchmark, "_steps", steps)
    said: list[str] = []
    alone, both = benchmark.time_ranks({}, ranks=2, rounds=3, threads=4, tell=said.append).to_dict("records")
    assert asked == [(1, 4), (2, 4)] * 3
    assert (alone["ms_median"], alone["speed_up"]) == pytest.approx((300.0, 1.0))
    assert (both["ms_median"], both["ms_smallest"], both["ms_largest"]) == pytest.approx((100.0, 100.0, 400.0))
    assert (both["speed_up"], both["speed_up_smallest"], both["speed_up_largest"]) == pytest.approx((2.0, 2.0, 3.0))
    assert said[0] == "round 1/3: 1: 200 ms, 2: 100 ms"


def test_the_config_is_the_small_network_with_batches_of_32(tmp_path):
    """As many steps as are timed, three before them and one after, with the only validation; keys may be overridden."""
    config = benchmark.ranks_config("aspirin.npz", steps=10, overrides=["training.compile=true"])
    assert (config["potential"]["preset"], config["training"]["batch_size"]) == ("small", 32)
    assert config["training"]["max_edges"] is None  # which would make smaller batches of large molecules
    assert (config["training"]["steps"], config["training"]["compile"]) == (14, True)
    assert config["training"]["validate_every"] == 14


@pytest.mark.slow
def test_the_command_times_both_and_keeps_the_table(tmp_path):
    """On clusters and a tiny network, in one round."""
    source = write_frames(tmp_path / "c.extxyz", clusters(40))
    keys = ["data.train=32", f"potential.cutoff={CLUSTER_CUTOFF}", f"potential.arguments={json.dumps(NETWORK)}"]
    words = [word for key in ["potential.preset=tiny", "training.batch_size=8", *keys] for word in ("-r", key)]
    end = mdrelax("bench", "ranks", "--source", source, "--rounds", "1", "--steps", "2", "--out", tmp_path, *words)
    assert end.code == 0, end.err
    rows = json.loads((tmp_path / "ranks.json").read_text())["rows"]
    assert [row["ranks"] for row in rows] == [1, 2]
    assert all(row["ms_median"] > 0 for row in rows)


@pytest.mark.slow
def test_a_run_of_a_pack_is_the_same_on_two_ranks(tmp_path):
    """`torchrun -m mdrelax bench nbody-run`: weights, errors and certificate of a run by one process, to rounding."""
    alone = run_nbody(SMALL, tmp_path / "alone")
    prepare_folder(SMALL, tmp_path / "together")
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mdrelax", "bench", "nbody-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # the second time the finished run is read, on both ranks
        subprocess.run(
            [sys.executable, "-m", *words, str(tmp_path / "together")], env=environment, check=True, timeout=300
        )
    together = json.loads((tmp_path / "together" / "results.json").read_text())
    assert (alone["ranks"], together["ranks"]) == (1, 2)
    for name in ("test_mse", "validation_mse"):
        assert together[name] == pytest.approx(alone[name], rel=1e-10)  # rounding, grown in 8 steps
    assert sorted(path.name for path in Path(tmp_path / "together").iterdir()) == sorted(
        path.name for path in Path(tmp_path / "alone").iterdir()
    )
