"""Plumes without a simulator: smooth flows that drift over a grid, tasks and splits named like the published ones."""

from pathlib import Path

import numpy as np

from mdrelax.datasets.plume import PlumeInfo, PlumeSet, PlumeSplit, PlumeTask, Sampling


def _velocity(seed: int, n_frames: int, size: int) -> np.ndarray:
    """Sums of a few travelling waves, (T, 2, H, W)."""
    random = np.random.default_rng(seed)
    t = np.arange(n_frames)[:, None, None]
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    parts = []
    for _ in range(2):
        waves = [
            random.normal() * np.sin(2 * np.pi * (kx * x + ky * y) / size + 0.2 * t + random.uniform(0, 6))
            for kx, ky in ((0, 1), (1, 0), (1, 1))
        ]
        parts.append(np.sum(waves, axis=0))
    return np.stack(parts, axis=1).astype(np.float32)


def plumes_in_memory(
    source: str | Path = "sample:plume", *, sampling: Sampling = "centres", size: int = 16, n_frames: int = 26
) -> PlumeSet:
    """In the place of ``open_plumes``: a rotation set with the tasks of ``PlumeSplit.sample``."""
    split = PlumeSplit.sample()
    tasks = tuple(
        PlumeTask(PlumeInfo(name, symmetry_error=0.1 * k), lambda k=k: _velocity(k, n_frames, size), "faces")
        for k, name in enumerate((*split.train_tasks, *split.domain_tasks))
    )
    return PlumeSet("rotation", tasks, (n_frames, 2, size, size), str(source))
