"""Folders of N-body runs as they look when they are finished, with made-up numbers and in no time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mdrelax.base.provenance import environment
from mdrelax.method.free_map_log import LAYER_COLUMNS
from mdrelax.packs.nbody.run import NBodyRun
from mdrelax.training.folders import prepare_folder

STEPS = np.arange(10, 101, 10)
THETA = 1 - np.abs(STEPS / 50 - 1)  # 0.2, 0.4, ..., 1 at step 50, ..., 0
LAYERS = [f"segnn.layers.{depth}.update_{number}" for depth in (0, 1) for number in (1, 2)]
EXACT = {"rotation": 1e-14, "reflection": 2e-14, "translation": 3e-15, "permutation": 0.0}


def settings(arm: str, seed: int, *, n_layers: int = 4, n_train: int = 3000, **other: Any) -> NBodyRun:
    """A run of a hundred steps."""
    training = {"steps": 100, "seed": seed, "validate_every": 10}
    return NBodyRun(**{"arm": arm, "n_layers": n_layers, "n_train": n_train, "training": training, **other})


def metrics(level: float = 1.0, *, relaxed: bool = False) -> pd.DataFrame:
    """metrics.csv: the validation error falls to ``level``."""
    columns = {"step": STEPS, "epoch": 0, "time_s": 0.1 * STEPS, "lr": 5e-4, "theta": THETA * relaxed, "penalty": 0.0}
    return pd.DataFrame({**columns, "train_loss": 0.1, "val_mse": level * (1 + 100 / STEPS)})


def layers(scale: float = 1.0) -> pd.DataFrame:
    """layers.csv: layer k has the weights' derivative (k + 1) scale and twice that at activations, times theta."""
    rows = [
        (int(step), name, 1.0, 0.5, scale * (k + 1) * theta, (2 * scale * (k + 1) * theta) ** 2, theta, np.nan)
        for step, theta in zip(STEPS, THETA, strict=True)
        for k, name in enumerate(LAYERS)
    ]
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS))


def write_run(folder: Path, arm: str, seed: int, test_mse: float, *, finished: bool = True, **other: Any) -> Path:
    """A run folder below ``folder``; not ``finished``: without results.json."""
    run = settings(arm, seed, **other)
    place, relaxed = folder / run.name(), run.relaxation.schedule != "off"
    prepare_folder(run, place)
    metrics(test_mse, relaxed=relaxed).to_csv(place / "metrics.csv", index=False)
    if relaxed:
        layers().to_csv(place / "layers.csv", index=False)
    result = {
        "run": run.model_dump(mode="json"), "n_parameters": 1000, "n_free_parameters": 500 * relaxed,
        "test_mse": test_mse, "test_median": 0.1 * test_mse, "test_share_of_worst_twentieth": 0.6,
        "validation_mse": 0.9 * test_mse, "best_step": 90, "steps": 100,
        "seconds": 50.0, "cpu_seconds": 60.0 + 6 * seed, "layers": [],
        "equivariance_error_float64": EXACT, "equivariance_error_float32": {key: 1e6 * e for key, e in EXACT.items()},
        "environment": {**environment(device="cpu", seed=seed), "date": f"2026-01-0{seed + 1}T00:00:00+00:00"},
    }  # fmt: skip
    if finished:
        (place / "results.json").write_text(json.dumps(result))
    return place
