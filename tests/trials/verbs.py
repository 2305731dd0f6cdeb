"""The commands that are killed, each on the smallest input that exercises it, and how each is resumed."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.io import read

from mdrelax.datasets.sample import sample_path
from small_runs import clusters, document, write_config, write_frames
from untrained_models import saved

__all__ = ["VERBS", "Verb", "prepared", "wanted"]

RUN = ["--out", "run"]
SMALL_STUDY = ["--seeds", "0", "--jobs", "2"]
NBODY = [
    "--layers", "1", "--train-sizes", "40", "--epochs", "4", "--no-compile", "-r", "n_validation=20", "-r", "n_test=20",
    "-r", "channels=4", "-r", "training.validate_every=2", "-r", "training.ema=0.9", "-r", "training.warmup_steps=2",
]  # fmt: skip
MD = ["md", "../inputs/m.safetensors", "../inputs/water.xyz", "--ps", "0.1", "--temperature", "1", "--log", "log.csv"]


class Verb(NamedTuple):
    """A command and the words that resume it; paths are relative to its folder, beside which lies ``inputs``."""

    words: list[str]
    resuming: list[str] = []  # noqa: RUF012 - a constant; added to the words
    ranks: int = 1
    resumes: bool = True  # whether its last words name the command that resumes; else it starts again
    package: str = "torch"  # without which it is left out


VERBS: dict[str, Verb] = {
    "train": Verb(["train", "../inputs/train.yaml", *RUN], ["--restart", "auto"]),
    "baseline": Verb(["train", "../inputs/baseline.yaml", *RUN], ["--restart", "auto"]),
    "committee": Verb(["train", "../inputs/committee.yaml", *RUN], ["--restart", "auto"]),
    "torchrun": Verb(["train", "../inputs/train.yaml", *RUN], ["--restart", "auto"], ranks=2),
    "generate": Verb(["data", "generate", "H2", "h2.extxyz", "--frames", "8", "--interval", "5"], package="tblite"),
    "fetch": Verb(["data", "fetch", "md17:ethanol"]),
    "project": Verb(["project", "../inputs/run", "--output", "model.safetensors"], resumes=False),
    "md": Verb([*MD, "--trajectory", "frames.extxyz"], ["--restart", "auto"]),
    "md-traj": Verb([*MD, "--trajectory", "frames.traj"], ["--restart", "auto"]),
    "compare": Verb(["compare", "../inputs/train.yaml", *RUN, "--arms", "standard,relaxed", *SMALL_STUDY]),
    "nbody": Verb(["bench", "nbody", *RUN, *SMALL_STUDY, *NBODY]),
}


def wanted(names: str | None) -> list[str]:
    """The chosen verbs, all unless given, without those whose packages are missing; raises ``ValueError``."""
    chosen = names.split(",") if names else list(VERBS)
    if unknown := sorted(set(chosen) - VERBS.keys()):
        raise ValueError(f"There is no verb {', '.join(unknown)} here; known: {', '.join(VERBS)}.")
    return [name for name in chosen if find_spec(VERBS[name].package)]


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[dict[str, str]]:
    """Write the inputs of all verbs into ``folder / "inputs"``; yields the environment they need.

    It has the proxy that stands for a mirror, and a cache folder in the place where a command works.
    """
    place = folder / "inputs"
    place.mkdir(parents=True)
    frames = write_frames(place / "clusters.extxyz", clusters(32))
    short = document(frames, training={"steps": 12, "validate_every": 3}) | {"md_picoseconds": 0.0}
    write_config(place / "train.yaml", short)
    write_config(place / "baseline.yaml", short | {"standard_baseline": True})
    write_config(place / "committee.yaml", {**short, "training": {**short["training"], "committee": 2}})
    saved(place / "m.safetensors", 1, 8)
    (place / "water.xyz").write_text("3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n")
    mirror = [sys.executable, str(Path(__file__).with_name("mirror.py")), str(_molecules(place / "ethanol.npz"))]
    with subprocess.Popen(mirror, stdout=subprocess.PIPE, text=True) as server:
        try:
            proxy = f"http://127.0.0.1:{int((server.stdout or sys.stdin).readline())}"
            yield {
                **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy),
                "MDRELAX_CACHE": ".", "MPLCONFIGDIR": str(place / "matplotlib"), "no_proxy": "", "NO_PROXY": "",
            }  # fmt: skip
        finally:
            server.kill()


def _molecules(path: Path) -> Path:
    """The sample of ethanol in the form of MD17."""
    structures = [atoms for atoms in read(sample_path("ethanol"), ":") if len(atoms) == 9]
    positions = np.stack([atoms.positions for atoms in structures])
    energies = np.arange(len(structures), dtype=float)
    np.savez(path, z=structures[0].numbers, R=positions, E=energies, F=np.zeros_like(positions))
    return path
