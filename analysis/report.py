"""Report: a run folder becomes plots/*.png and report.html, one offline file with its images inside.

It reads config.yaml and metrics.csv, which every run folder has, and env.json, split.json, results.json, layers.csv,
test_predictions.npz, md_log.csv and standard/metrics.csv if they exist; missing parts are left out. The content is not
trusted: text is escaped, and whether the certificate passed is evaluated again from its numbers.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from mdrelax.analysis import figures
from mdrelax.analysis.drawing import save
from mdrelax.analysis.html import duration, embedded, number, write_page
from mdrelax.analysis.tables import read_json, read_optional
from mdrelax.forces.metrics import Predictions, error_percentiles, errors_by_element, load_predictions
from mdrelax.method.certificate import LARGEST_ERROR_FLOAT32, LARGEST_ERROR_FLOAT64, Certificate

__all__ = ["Run", "read_run", "write_report"]

REQUIRED = ("config.yaml", "metrics.csv")
FIGURES = ("learning_curves", "schedule", "controller", "parity", "equivariance", "symmetry_spectra", "md_energy")
ROWS = {
    "forces_mae_meV_per_A": ("Force MAE", "meV/Å"),
    "forces_rmse_meV_per_A": ("Force RMSE", "meV/Å"),
    "energy_mae_meV": ("Energy MAE", "meV"),
    "energy_mae_meV_per_atom": ("Energy MAE", "meV/atom"),
    "energy_rmse_meV_per_atom": ("Energy RMSE", "meV/atom"),
    "stress_mae_meV_per_A3": ("Stress MAE", "meV/Å³"),
    "stress_rmse_meV_per_A3": ("Stress RMSE", "meV/Å³"),
    "forces_mae_kcal_per_mol_per_A": ("Force MAE", "kcal/mol/Å"),
    "energy_mae_kcal_per_mol": ("Energy MAE", "kcal/mol"),
}


class Run(NamedTuple):
    """The content of a run folder; ``None`` or empty for missing parts."""

    name: str
    config: str  # YAML text
    environment: dict[str, Any]
    split: dict[str, Any]
    metrics: pd.DataFrame
    layers: pd.DataFrame | None
    standard: pd.DataFrame | None
    results: dict[str, Any]
    certificate: Certificate | None
    predictions: Predictions | None
    md_log: pd.DataFrame | None


def write_report(run: Path) -> Path:
    """Write ``plots/*.png`` and ``report.html`` into a run folder and return the path of the latter.

    A report is replaced atomically. Raises ``ValueError`` if the folder is not a run folder or a file in it cannot be
    read.
    """
    folder = Path(run)
    contents = read_run(folder)
    return write_page(
        folder / "report.html",
        "report.html.j2",
        title=contents.name,
        run=contents,
        headline=_headline(contents.results),
        verdict=_verdict(contents.results),
        facts=_facts(contents),
        standard=(contents.results.get("baselines") or {}).get("standard"),
        md=contents.results.get("md") or {},
        exploded=bool((contents.results.get("md") or {}).get("exploded")),
        images=_draw_all(contents, folder / "plots"),
        by_element=_rows(errors_by_element, contents.predictions),
        percentiles=_rows(error_percentiles, contents.predictions),
        limits={"float64": LARGEST_ERROR_FLOAT64, "float32": LARGEST_ERROR_FLOAT32},
    )


def read_run(folder: Path) -> Run:
    """Read a run folder; raises ``ValueError`` if it is not one, or naming the file that cannot be read."""
    lacking = [name for name in REQUIRED if not (folder / name).is_file()]
    if lacking:
        raise ValueError(
            f"`{folder}` is not a run folder: it lacks {' and '.join(lacking)}. "
            "Name the folder that `mdrelax train` wrote with `--out`."
        )
    read = partial(read_optional, remedy="Restore it; optional files may be removed.")
    return Run(
        name=folder.resolve().name,
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        environment=read(folder / "env.json", read_json, {}),
        split=read(folder / "split.json", read_json, {}),
        metrics=read(folder / "metrics.csv", _table, pd.DataFrame()),
        layers=read(folder / "layers.csv", _table, None),
        standard=read(folder / "standard" / "metrics.csv", _table, None),
        results=read(folder / "results.json", read_json, {}),
        certificate=read(folder / "results.json", _certificate, None),
        predictions=read(folder / "test_predictions.npz", load_predictions, None),
        md_log=read(folder / "md_log.csv", _table, None),
    )


# --- read ---


def _certificate(path: Path) -> Certificate | None:
    content = read_json(path).get("certificate")
    return Certificate.from_dict(content) if content else None


def _table(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path)
    known = ("step", "time_ps")  # one of them is the index of every table of a run
    if not any(name in table for name in known):
        raise ValueError(f"expected a column {' or '.join(known)}, got {', '.join(table.columns)}")
    return table


# --- tables ---


def _headline(results: dict[str, Any]) -> dict[str, Any]:
    """Column titles, and rows of (quantity, unit, one value per column); empty without test metrics."""
    baselines = results.get("baselines") or {}
    sources = {
        "this run, test": results.get("test"),
        "this run, validation": results.get("validation"),
        "standard arm, test": baselines.get("standard"),
        "mean baseline, test": baselines.get("mean"),
    }
    known = {title: metrics for title, metrics in sources.items() if metrics}
    rows = [
        (*label, [metrics.get(key) for metrics in known.values()])
        for key, label in ROWS.items()
        if any(metrics.get(key) is not None for metrics in known.values())
    ]
    return {"columns": list(known), "rows": rows}


def _verdict(results: dict[str, Any]) -> str:
    """One sentence: the first test error and how it compares with the baselines."""
    test, baselines = results.get("test") or {}, results.get("baselines") or {}
    key = next((key for key in ("forces_mae_meV_per_A", "energy_mae_meV") if test.get(key) is not None), None)
    if key is None:
        return ""
    label, unit = ROWS[key]
    parts = [
        f"{_ratio(test[key], baselines[arm][key])} {title}'s {number(baselines[arm][key])}"
        for arm, title in (("mean", "the mean baseline"), ("standard", "the standard arm"))
        if (baselines.get(arm) or {}).get(key)
    ]
    comparison = f": {' and '.join(parts)}" if parts else ""
    return f"{label} on the test set {number(test[key])} {unit}{comparison}."


def _facts(run: Run) -> list[str]:
    """The network, the length of the training and the data, as far as the folder records them."""
    phrases = {
        "n_parameters": "{:,} parameters",
        "n_free_parameters": "{:,} free ones while training, removed by projection",
        "steps": "{:,} steps",
        "best_step": "model of step {:,}",
        "largest_gamma": "largest |gamma| at the end {:.3g}",
    }
    known = run.results
    if run.layers is not None and "dual" in run.layers and run.layers.dual.notna().any():
        known = {**known, "largest_gamma": known.get("theta_at_end")}
    facts = [phrase.format(known[key]) for key, phrase in phrases.items() if known.get(key)]
    if run.certificate is not None and run.certificate.history is not None:
        facts.append(run.certificate.history)
    if run.results.get("seconds"):
        facts.append(f"{duration(run.results['seconds'])} of training")
    sizes = {part: len(members) for part, members in run.split.items() if isinstance(members, list)}
    if run.predictions is not None:  # a separate test file is not part of the split
        sizes["test"] = len(run.predictions.n_atoms)
    names = {"train": "training", "valid": "validation"}
    return facts + [f"{size:,} {names.get(part, part)} structures" for part, size in sizes.items() if size]


def _ratio(value: float, reference: float) -> str:
    """The comparison of a value with a positive reference, in words."""
    if not math.isfinite(value):
        return "not comparable with"
    if value < 0.5 * reference:
        return f"{number(reference / value)} times smaller than" if value > 0 else "smaller than"
    change = 100 * (value / reference - 1)
    return f"{abs(change):.1f} % {'smaller' if change < 0 else 'larger'} than"


def _rows(make: Callable[[Predictions], pd.DataFrame], predictions: Predictions | None) -> list[dict[str, Any]]:
    if predictions is None:
        return []
    return [{str(name): value for name, value in row.items()} for row in make(predictions).to_dict("records")]


# --- draw and write ---


def _draw_all(run: Run, folder: Path) -> dict[str, str]:
    """Every figure that has something to show, written into ``folder``: name -> data URI of the PNG."""
    best = run.results.get("best_step")
    n_atoms = (run.results.get("md") or {}).get("n_atoms")
    drawings: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: figures.learning_curves(run.metrics, run.standard, best_step=best),
        "schedule": lambda: figures.schedule_plot(run.metrics),
    }
    if run.layers is not None:
        drawings["controller"] = partial(figures.controller_plot, run.layers)
    if run.predictions is not None:
        drawings["parity"] = partial(figures.parity, run.predictions)
    if run.certificate is not None:
        drawings["equivariance"] = partial(figures.equivariance_bars, run.certificate)
        drawings["symmetry_spectra"] = partial(figures.symmetry_spectra, run.certificate)
    if run.md_log is not None:
        drawings["md_energy"] = partial(figures.md_energy, run.md_log, n_atoms=n_atoms)
    images = {}
    for name in FIGURES:
        (folder / f"{name}.png").unlink(missing_ok=True)  # an old figure must not remain next to new numbers
    for name, draw in drawings.items():
        if (content := save(folder / f"{name}.png", draw)) is not None:
            images[name] = embedded(content)
    return images
