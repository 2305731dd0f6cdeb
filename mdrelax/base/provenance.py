"""Provenance: the record that makes a number reproducible: versions, machine, date, threads and seed."""

import datetime
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["command_line", "environment", "portable", "software_versions"]

PACKAGES = ("mdrelax", "torch", "e3nn", "ase", "numpy", "torch-geometric", "vesin")  # those that affect numbers


def software_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect numbers."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def environment(*, device: str, seed: int) -> dict[str, Any]:
    """The provenance that is stored with every result."""
    return {
        **software_versions(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seed": seed,
    }


def command_line() -> str:
    """The `mdrelax` command of this process, in the form of ``portable``."""
    return portable(shlex.join(["mdrelax", *sys.argv[1:]]))


def portable(command: str) -> str:
    """A command with absolute paths reduced to their last component: they mean nothing on another machine."""
    words = []
    for word in shlex.split(command):
        option, equals, value = word.rpartition("=")
        words.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return shlex.join(words)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # mdrelax itself, run from a bare checkout
        return "not installed"
