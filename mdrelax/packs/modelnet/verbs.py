"""What `mdrelax train`, `predict`, `eval` and `audit` do with point clouds; see ``mdrelax.packs.registry``."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mdrelax.base.files import write_atomically
from mdrelax.datasets.modelnet import load_modelnet
from mdrelax.datasets.point_clouds import PointClouds
from mdrelax.method.certificate import Certificate
from mdrelax.packs.modelnet.model_file import LoadedNetwork, load_network
from mdrelax.packs.modelnet.sizes import PLAIN_FORM
from mdrelax.packs.modelnet.task import errors_of, score_error, shapes
from mdrelax.packs.recipes import recipe

__all__ = ["audit", "evaluate", "predict", "presets"]

SOLIDS = "modelnet:solids"


def presets() -> dict[str, dict[str, Any]]:
    """`modelnet-NETWORK` trains the relaxed network on solids, `modelnet-NETWORK-published` at the published size."""
    names = {f"modelnet-{network}{end}": (network, size)
             for network in PLAIN_FORM for end, size in (("", "small"), ("-published", "published"))}  # fmt: skip
    return {
        name: {**recipe("modelnet", network, size), "pack": "modelnet", "arm": "relaxed"}
        for name, (network, size) in names.items()
    }


def _test_shapes(loaded: LoadedNetwork, data: str | None, number: int | None) -> PointClouds:
    """The test shapes of a set, with as many points as the network was trained on."""
    source = data or loaded.header["card"].get("run", {}).get("data", SOLIDS)
    test = load_modelnet(source, n_points=loaded.header["n_points"]).test
    return (
        test if number is None else test.take(torch.arange(min(number, len(test.labels))) * len(test.labels) // number)
    )


def predict(model: Path, data: str, output: Path, *, number: int | None = None) -> str:
    """Write a CSV with the probability of each class for the test shapes of a set; returns a line on it."""
    loaded = load_network(model)
    test = _test_shapes(loaded, data, number)
    probabilities = loaded.probabilities(test.points)
    table = pd.DataFrame(probabilities.tolist(), columns=list(loaded.classes))
    table.insert(0, "predicted", [loaded.classes[k] for k in probabilities.argmax(1).tolist()])
    table.insert(0, "shape", list(test.names))
    write_atomically(output, table.to_csv(index=False).encode())
    return f"{len(table)} shapes written to {output}"


def evaluate(model: Path, data: str | None, *, number: int | None = None) -> dict[str, Any]:
    """Accuracies on the test shapes of a set, in per cent; raises ``ValueError`` for a set with other classes."""
    loaded = load_network(model)
    test = _test_shapes(loaded, data, number)
    if test.classes != loaded.classes:
        raise ValueError(
            f"The network knows the classes {', '.join(loaded.classes)}, but the data have {', '.join(test.classes)}."
        )
    dtype = next(loaded.network.parameters()).dtype
    errors = errors_of(loaded.network, shapes(test, dtype), n_classes=len(test.classes))
    return {
        "data": Path(str(data or "")).name,
        "n_shapes": len(test.labels),
        "accuracy_percent": 100 * (1 - errors.error),
        "class_accuracy_percent": 100 * (1 - errors.class_error),
        "cross_entropy": errors.loss,
    }


def audit(
    model: Path, data: str | None, *, number: int = 8, operations: int = 4, seed: int = 0
) -> tuple[Certificate, Certificate]:
    """The certificate in the file, and one measured now on ``number`` shapes under random operations."""
    loaded = load_network(model, certified=False)
    points = _test_shapes(loaded, data, number).points
    double, single = (
        score_error(loaded.network, points, dtype=dtype, n_operations=operations, seed=seed)
        for dtype in (torch.float64, torch.float32)
    )
    old = loaded.certificate
    return old, Certificate(old.symmetry, double, single, len(points), old.layers)
