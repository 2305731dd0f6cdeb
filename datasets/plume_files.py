"""Plume files: one npz per set, read task by task, and the published folders of ``raw_data_*.pt``."""

from pathlib import Path

from mdrelax.datasets.plume import PlumeSet, Sampling

__all__ = ["open_plumes"]


def open_plumes(source: str | Path, *, sampling: Sampling = "centres") -> PlumeSet:
    """Open a set of plumes; the velocities are read when they are asked for."""
    raise NotImplementedError(source)
