"""Fine-tuning: the settings of a run that continues from a model file, for those who want no config.

The network has learnt already: a fifth of the usual rate, no relaxation unless it is asked for, short averages.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["fine_tuning"]

TRAINING = {
    "optimizer": "muon", "learning_rate": 0.001, "betas": [0.98, 0.99], "batch_size": 5, "ema": 0.99,
}  # fmt: skip
VALIDATIONS = 20
WARM_UP = 0.05  # of the steps


def fine_tuning(
    model: str | Path,
    data: str | Path | None = None,
    *,
    steps: int = 2000,
    relax: bool = False,
    references: str = "fit",
    fractions: Mapping[str, float] | None = None,
    replay: str | Path | None = None,
) -> dict[str, Any]:
    """The document of a fine-tuning run, for ``mdrelax.train`` or as a config file.

    Args:
        model: The model file to continue from.
        data: Labelled structures; without them they are passed to ``mdrelax.train``.
        steps: Optimiser steps.
        relax: Whether to relax the constraint, also of a model that never was relaxed.
        references: ``fit``, ``isolated`` or ``keep``, see ``mdrelax.runs.continued``.
        fractions: Learning rates by name pattern, as fractions of the rate; 0 freezes.
        replay: Data that the model has learnt from, and shall not forget.
    """
    return {
        "data": {
            **({} if data is None else {"source": str(data)}),
            **({} if replay is None else {"replay": str(replay)}),
        },
        "potential": {"start": str(model)},
        "relaxation": {"schedule": "triangle" if relax else "off"},
        "training": {
            **TRAINING, "steps": steps, "warmup_steps": round(WARM_UP * steps),
            "validate_every": max(1, steps // VALIDATIONS), "rate_fractions": dict(fractions or {}),
        },
        "reference_energies": references,
    }  # fmt: skip
