"""The other packages as implementations: each trains a step and does an MD step. Needs `make peers`; `-m peer`."""

import os
from pathlib import Path

import pytest

from blueprint import ROOT
from mdrelax.analysis.benchmarks.implementations import CASES, PACKAGES, PEERS, implementations, structures_of
from mdrelax.analysis.benchmarks.peers.protocol import Task
from mdrelax.analysis.benchmarks.workers import start

VENVS = Path(os.environ.get("MDRELAX_PEERS", ROOT / ".peers"))
# As these networks had when they were measured before, with other scripts: the hyperparameters are the same.
PARAMETERS = {
    "mace-128": 604_432,
    "mace-64": 204_432,
    "nequip-l2": 849_024,
    "nequip-M": 3_186_912,
    "torchmdnet-et": 1_339_906,
    "torchmdnet-tensornet": 766_337,
    "painn-128": 589_057,
}


def installed(name: str):
    """The implementation, or a skip."""
    (implementation,) = implementations([name], peers=True, venvs=VENVS)
    if not implementation.installed:
        pytest.skip(f"{name} is not installed: make peers")
    return implementation


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_trains_and_runs_md(name, dtype):
    """Two kinds of steps in both precisions; the network has the size that is written in the docs."""
    worker = start(installed(name), longest=200)
    try:
        for case in ("ethanol-b1", "md-water-192"):
            structures = [each._asdict() for each in structures_of(CASES[case])]
            prepared = worker.ask("prepare", task=Task(CASES[case].kind, structures, dtype, 5.0, 0.1)._asdict())
            assert prepared["n_parameters"] == PARAMETERS[name]
            assert worker.ask("step")["ms"] > 0
        assert worker.ask("hello")["versions"]["torch"]
    finally:
        worker.close()


@pytest.mark.peer
@pytest.mark.parametrize("package", PACKAGES)
def test_a_peer_is_imported(package):
    """What its import is timed with."""
    assert start(installed(package), longest=200).ask("step")["ms"] > 0


def test_every_peer_has_its_list_of_pinned_packages():
    """One file for each environment; torch is not among them, since it is installed first and alone."""
    folder = ROOT / "analysis" / "benchmarks" / "peers"
    lists = {path.stem: path.read_text().splitlines() for path in folder.glob("*.txt")}
    assert lists.keys() == PACKAGES.keys() == {peer.venv for peer in PEERS.values()}
    for name, lines in lists.items():
        pins = [line for line in lines if not line.startswith("#")]
        assert all(line.count("==") == 1 for line in pins), name
        assert not [line for line in pins if line.startswith("torch==")], name
