"""Small point-cloud data sets in each form in which they are published, written for a test."""

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np

CLASSES = ("cube", "wedge")
CUBE = ("8 6 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 1\n1 0 1\n1 1 1\n0 1 1\n4 0 3 2 1\n4 4 5 6 7\n4 0 1 5 4\n4 1 2 6 5\n"
        "4 2 3 7 6\n4 3 0 4 7\n")  # fmt: skip
WEDGE = "4 4 0\n0 0 0\n2 0 0\n0 1 0\n0 0 3\n3 0 2 1\n3 0 1 3\n3 1 2 3\n3 0 3 2\n"


def clouds(n: int = 6, n_points: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, n_points, 3), tall along z, and labels in turn."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_points, 3)) * [1.0, 2.0, 5.0], np.arange(n) % 2


def write_npz(folder: Path) -> Path:
    """Our npz form."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, part in enumerate(("train", "test")):
        points, labels = clouds(seed=seed)
        whole = np.round(points / np.abs(points).max() * 32767).astype(np.int16)
        names = [f"{part}_{k}" for k in range(len(labels))]
        np.savez(folder / f"set_{part}.npz", points=whole, labels=labels, names=names, classes=CLASSES)
    return folder


def write_h5(folder: Path) -> Path:
    """The h5 form, y upright, training shapes in two files."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("train0", "train1", "test0")):
        points, labels = clouds(seed=seed)
        with h5py.File(folder / f"ply_data_{name}.h5", "w") as file:
            file["data"] = (points[..., [0, 2, 1]] * [1, 1, -1]).astype(np.float32)
            file["label"] = labels[:, None].astype(np.uint8)
    (folder / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def write_off(archive: Path, *, broken_header: bool = True) -> Path:
    """Meshes in a zip archive, those of one class with ModelNet's broken header."""
    with zipfile.ZipFile(archive, "w") as file:
        for part in ("train", "test"):
            for k in range(3):
                for name, mesh in zip(CLASSES, (CUBE, WEDGE), strict=True):
                    header = "OFF" if broken_header and name == "cube" else "OFF\n"
                    file.writestr(f"ModelNet2/{name}/{part}/{name}_{part}_{k}.off", header + mesh)
    return archive


def npz_bytes(**arrays: object) -> bytes:
    """The bytes of an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
