"""Active learning of ethanol: a committee chooses which frames to label, beside a random choice.

    pip install 'mdrelax[generate]'
    python docs/examples/active_learning.py --out runs/active

1. GFN2-xTB Langevin dynamics at 600 K makes a pool and, with another seed, a test set.
2. Both arms begin with the same few frames of the pool.
3. In each round a committee is trained on the labelled frames of its arm and tested. The pool's other frames are
   candidates: one arm adds those that `mdrelax data select` would take, the other arm random ones.

`curve.csv` has one row per arm and round, `curve.png` shows force errors against the number of labels. A stopped script
resumes: finished rounds are read, and an unfinished committee continues at its checkpoints.

Labels of the pool are known from the start, because they cost next to nothing here; the committee never sees those of
frames that it has not chosen. With labels that cost hours, compute them where this script takes them from the pool.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms
from matplotlib.figure import Figure

import mdrelax
from mdrelax import datasets
from mdrelax.analysis.selection import select
from mdrelax.engines.committee import CommitteeCalculator

ARMS = ("committee", "random")
TEMPERATURE = 600.0  # K


def main(
    out: Path,
    *,
    molecule: str = "CH3CH2OH",
    rounds: int = 10,
    start: int = 20,
    per_round: int = 20,
    pool: int = 2000,
    test: int = 500,
    config: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Run both arms and return the learning curve: arm, round, labels, force MAE in meV/A, spread in meV/A."""
    candidates = frames_of(molecule, out / "pool.extxyz", pool, seed=0)
    held_out = frames_of(molecule, out / "test.extxyz", test, seed=1)
    rng = np.random.default_rng(0)
    first = rng.choice(len(candidates), start, replace=False).tolist()
    rows = []
    for arm in ARMS:
        chosen = list(first)
        for number in range(rounds):
            record = out / arm / f"round-{number}.json"
            if not record.is_file():
                found = one_round(out / arm / f"round-{number}", arm, candidates, chosen, held_out, per_round, config)
                record.write_text(json.dumps(found))
            found = json.loads(record.read_text())
            rows.append({"arm": arm, "round": number, "n_labels": len(chosen), **found["errors"]})
            print(f"{arm}, round {number}: {len(chosen)} labels, {found['errors']['forces_mae_meV_per_A']:.1f} meV/A")
            chosen += found["next"]
    curve = pd.DataFrame(rows)
    curve.to_csv(out / "curve.csv", index=False)
    draw(curve).savefig(out / "curve.png", dpi=160)
    return curve


def frames_of(molecule: str, path: Path, number: int, *, seed: int) -> list[Atoms]:
    """Frames of the molecule with GFN2-xTB labels, made once."""
    settings = datasets.GenerateSettings(n_frames=number, temperature=TEMPERATURE, seed=seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        datasets.generate(molecule, path, settings=settings)
    return [datasets.to_atoms(frame) for frame in datasets.load(path)]


def one_round(
    folder: Path,
    arm: str,
    candidates: list[Atoms],
    chosen: list[int],
    held_out: list[Atoms],
    per_round: int,
    config: dict[str, Any] | None,
) -> dict[str, Any]:
    """Train a committee on the chosen frames, test it, and choose the next ones."""
    labelled = [candidates[k] for k in chosen]
    run = mdrelax.train_committee(config or recipe(), labelled, folder=folder, restart=True)
    calculator = CommitteeCalculator.from_file(run.folder)
    results = calculator.calculate_many(held_out)
    errors = np.concatenate([r["forces"] - a.arrays["REF_forces"] for r, a in zip(results, held_out, strict=True)])
    spread = np.concatenate([r["forces_spread"] for r in results])
    rest = sorted(set(range(len(candidates))) - set(chosen))
    if arm == "committee":
        places, _ = select(calculator, [candidates[k] for k in rest], per_round)
    else:
        places = np.random.default_rng(len(chosen)).choice(len(rest), per_round, replace=False).tolist()
    measured = {"forces_mae_meV_per_A": 1e3 * abs(errors).mean(), "spread_meV_per_A": 1e3 * spread.mean()}
    return {"errors": measured, "next": [rest[k] for k in places]}


def recipe() -> dict[str, Any]:
    """The settings of every committee: from scratch, so that rounds can be compared."""
    return {
        "data": {"train": 0.9, "validation": 0.1, "test": 0},
        "potential": {"preset": "tiny"},
        "relaxation": {"schedule": "off"},
        "training": {
            "committee": 4, "steps": 3000, "batch_size": 5, "optimizer": "muon", "learning_rate": 0.005,
            "betas": [0.98, 0.99], "validate_every": 250,
        },
    }  # fmt: skip


def draw(curve: pd.DataFrame) -> Figure:
    """Force errors against the number of labels."""
    figure = Figure(figsize=(5.7, 4.3), layout="constrained")
    ax = figure.subplots()
    for arm, colour in zip(ARMS, ("#0072B2", "#D55E00"), strict=True):
        own = curve[curve.arm == arm]
        ax.plot(own.n_labels, own.forces_mae_meV_per_A, "o-", color=colour, label=f"{arm} chooses")
    ax.set(xlabel="labelled frames", ylabel="force MAE on other frames (meV/Å)", yscale="log")
    ax.legend()
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Active learning with a committee, beside a random choice.")
    parser.add_argument("--out", type=Path, default=Path("runs/active"))
    parser.add_argument("--molecule", default="CH3CH2OH", help="a geometry file, or a molecule that ASE knows")
    for name, default in (("rounds", 10), ("start", 20), ("per-round", 20), ("pool", 2000), ("test", 500)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = vars(parser.parse_args())
    main(arguments.pop("out"), **arguments)
