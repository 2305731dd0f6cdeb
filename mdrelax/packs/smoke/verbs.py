"""What `mdrelax train`, `predict`, `eval` and `audit` do with flows; see ``mdrelax.packs.registry``."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mdrelax.base.files import whole_file
from mdrelax.datasets.plume import read_windows
from mdrelax.datasets.plume_files import is_plumes, open_plumes
from mdrelax.method.certificate import Certificate
from mdrelax.packs.recipes import recipe
from mdrelax.packs.smoke.model_file import LoadedFlow, load_flow
from mdrelax.packs.smoke.run import ARMS, SAMPLE, windows_of
from mdrelax.packs.smoke.task import commutation_error, evenly, rollout_errors, symmetry_error

__all__ = ["audit", "evaluate", "predict", "presets"]

LEAST_FRAMES = 20  # predicted unless more are asked for


def presets() -> dict[str, dict[str, Any]]:
    """`smoke-ARM` trains on the shipped set, `smoke-ARM-published` at the published size."""
    small, published = (recipe("smoke", "rotation", size) for size in ("small", "published"))
    return {
        **{f"smoke-{arm}": {**small, "pack": "smoke", "arm": arm} for arm in ARMS},
        **{f"smoke-{arm}-published": {**published, "pack": "smoke", "arm": arm} for arm in ARMS},
    }


def predict(model: Path, data: str, output: Path, *, number: int | None = None) -> str:
    """Write rollouts from the last frames that are given, as an npz; returns a line on what was written.

    ``data`` is a set of plumes, each task of which is continued from its end, or an npy with velocities (frames, 2, H,
    W). ``number`` is that of the predicted frames. Raises ``ValueError`` as ``LoadedFlow.predict``.
    """
    loaded, n_frames = load_flow(model), number or LEAST_FRAMES
    if n_frames < 1:
        raise ValueError(f"The number of predicted frames must be at least 1, got {n_frames}.")
    arrays = {}
    for name, velocity in _velocities(data, loaded).items():
        frames = torch.from_numpy(np.ascontiguousarray(velocity)).unsqueeze(0)
        arrays[name] = loaded.predict(frames, n_frames)[0].float().numpy()
    with whole_file(output) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return f"{len(arrays)} rollouts of {n_frames} frames written to {output}"


def _velocities(data: str, loaded: LoadedFlow) -> dict[str, npt.NDArray[np.floating]]:
    """Velocities by name, as the network was trained on them."""
    if is_plumes(data) or not data.endswith(".npy"):
        plumes = open_plumes(data, sampling=loaded.built.sampling)  # type: ignore[arg-type]
        return {task.info.name: task.velocity[-loaded.built.n_in :] for task in plumes.tasks}
    path = Path(data)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file `{data}`.")
    try:
        velocity = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"`{data}` cannot be read as an npy array ({error}); it may be cut off.") from error
    if velocity.ndim != 4 or velocity.shape[1] != 2 or not np.issubdtype(velocity.dtype, np.floating):
        raise ValueError(f"`{data}` must hold velocities (frames, 2, H, W), got {velocity.dtype} {velocity.shape}.")
    return {path.stem: velocity}


def evaluate(model: Path, data: str | None, *, number: int | None = None) -> dict[str, Any]:
    """RMSE of rollouts on the Future and Domain windows of a set, and the symmetry error (of rotations, not scalings).

    ``data`` is the set that the network was trained on unless given; ``number`` windows of each test are used.
    """
    loaded = load_flow(model)
    run = loaded.header["card"].get("run", {})
    windows = windows_of(
        data or run.get("data", SAMPLE), sampling=loaded.built.sampling,  # type: ignore[arg-type]
        level=run.get("level"), n_test=number,
    )  # fmt: skip
    _check_grid(loaded, windows.plumes.shape[2:], windows.plumes.source)
    found: dict[str, Any] = {"data": Path(windows.plumes.source).name}
    dtype = next(loaded.network.parameters()).dtype
    for name, rows in (("future", windows.future), ("domain", windows.domain)):
        split = windows.split
        errors = rollout_errors(loaded.network, windows.plumes, split, rows, split.n_rollout, dtype=dtype)
        if not np.isfinite(errors.rmse):
            raise ValueError(
                f"The rollouts on the {name} windows are unstable: an error is not finite within {split.n_rollout} "
                "frames; train longer, or on longer rollouts."
            )
        found |= {f"{name}_rmse": errors.rmse, f"{name}_by_step": errors.by_step, f"{name}_windows": len(rows)}
    if windows.plumes.kind != "scale":
        inputs, _ = read_windows(windows.plumes, evenly(windows.future, 8), windows.split.n_in, 1)
        found["symmetry_error"] = symmetry_error(loaded.network, inputs)
    return found


def _check_grid(loaded: LoadedFlow, size: tuple[int, int], source: str) -> None:
    if tuple(size) != loaded.built.size:
        raise ValueError(f"The network was trained on a grid of {loaded.built.size}, but `{source}` has {tuple(size)}.")


def audit(
    model: Path, data: str | None, *, number: int = 8, operations: int = 3, seed: int = 0
) -> tuple[Certificate, Certificate]:
    """The certificate in the file, and one measured now on ``number`` inputs: all quarter turns, nothing random."""
    loaded = load_flow(model, certified=False)
    run = loaded.header["card"].get("run", {})
    plumes = open_plumes(data or run.get("data", SAMPLE), sampling=loaded.built.sampling)  # type: ignore[arg-type]
    _check_grid(loaded, plumes.shape[2:], plumes.source)
    n_in = loaded.built.n_in
    starts = [(k, plumes.shape[0] - n_in - 1) for k in range(len(plumes.tasks))]
    inputs, _ = read_windows(plumes, evenly(np.array(starts), number), n_in, 1)
    double, single = (
        commutation_error(loaded.network, inputs, dtype=dtype) for dtype in (torch.float64, torch.float32)
    )
    old = loaded.certificate
    return old, Certificate(old.symmetry, double, single, len(inputs), old.layers)
