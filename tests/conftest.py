"""What every test shares: where the real data lie, one thread, seeds, and a watch over torch's global settings."""

import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

os.environ.setdefault("MPLBACKEND", "Agg")  # figures are drawn into files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for the real data with ``data``."""
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed the global generators by the test's name: its numbers do not depend on the tests that ran before it."""
    seed = zlib.crc32(item.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (other packages draw from it)
    torch.manual_seed(seed)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order on every machine, and no threads that wait for each other over tensors of a few atoms."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def untouched_globals(one_thread: None) -> Iterator[None]:
    """No code under test changes the global dtype, the thread count or the gradient mode behind the user's back."""
    before = _globals()
    yield
    after = _globals()
    torch.set_default_dtype(before["default dtype"])
    torch.set_num_threads(before["threads"])
    torch.set_grad_enabled(before["gradients"])
    torch.use_deterministic_algorithms(before["deterministic"])
    assert after == before, f"the test left a global setting of torch changed: {before} became {after}"


def _globals() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: ``MDRELAX_DATA``, else ``../shared/data`` beside the repository, else a skip."""
    named = os.environ.get("MDRELAX_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if named and not folder.is_dir():
        pytest.fail(f"MDRELAX_DATA names `{named}`, which is no folder; unset it to skip the tests on real data.")
    if not folder.is_dir():
        pytest.skip("no real data: set MDRELAX_DATA to the folder that holds rmd17/ and silicon/")
    return folder
