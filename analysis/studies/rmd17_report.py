"""The report of the rMD17 study: its tables beside published errors, and the learning curves of each molecule."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mdrelax.analysis.drawing import fit_axes, panels, shared_legend, step_axis, styled
from mdrelax.analysis.markdown import markdown
from mdrelax.analysis.studies.arm_figures import arm_style, in_order

__all__ = ["PUBLISHED", "molecule_curves", "report"]

HEADER = ["molecule", "arm", "seeds", "steps", "CPU-h", "force MAE", "minus {first}", "energy MAE", "NVE drift"]
EXPLANATION = (
    "950 training frames, errors on the test frames: mean absolute ones of force components (meV/A) and energies "
    "(meV), `+-` the sample standard deviation over seeds. `minus {first}` is the mean difference of force errors "
    "over common seeds, with its 95 % t interval. CPU-h are one run's hours on one core. NVE drift: the largest of the "
    "runs at 300 K, meV/atom/ps; a run that exploded or broke a bond is counted beside it."
)
PUBLISHED = {  # energy / force in meV and meV/A, 950 training frames
    "rMD17, the official splits (from the MACE paper, arXiv 2206.07697)": {
        "MACE": {"ethanol": (0.4, 2.1), "malonaldehyde": (0.8, 4.1), "uracil": (0.5, 2.1), "aspirin": (2.2, 6.6)},
        "NequIP": {"ethanol": (0.4, 2.8), "malonaldehyde": (0.8, 5.1), "uracil": (0.4, 3.1), "aspirin": (2.3, 8.2)},
    },
    "original MD17, other labels (arXiv 2206.11990)": {"Equiformer, L = 2": {"aspirin": (5.3, 7.2)}},
}


def report(summary: pd.DataFrame) -> str:
    """The text of study.md, from a table with a row a molecule and arm."""
    molecules = list(dict.fromkeys(summary.molecule))
    firsts = set(summary.groupby("molecule").arm.first())
    first = firsts.pop() if len(firsts) == 1 else "first arm"
    header = [name.format(first=first) for name in HEADER]
    ours = markdown([header, *(_cells(row) for row in summary.to_dict("records"))])
    explanation = EXPLANATION.format(first=first)
    return "\n\n".join(["# rMD17 study", ours, explanation, "Published, energy / force:", published(molecules)]) + "\n"


def published(molecules: Sequence[str]) -> str:
    """The published errors of some molecules as a table."""
    rows = [["", "data", *molecules]]
    for data, networks in PUBLISHED.items():
        for network, errors in networks.items():
            if not set(errors) & set(molecules):
                continue
            cells = [f"{errors[m][0]} / {errors[m][1]}" if m in errors else "" for m in molecules]
            rows.append([network, data, *cells])
    return markdown(rows)


def _cells(row: Mapping[Any, Any]) -> list[str]:
    def spread(name: str) -> str:
        deviation = f" +- {row[f'{name}_std']:.2f}" if row["seeds"] > 1 else ""
        return f"{row[name]:.2f}{deviation}"

    difference = ""
    if row.get("pairs", 0) > 0:
        difference = f"{row['forces_minus_first']:+.2f}"
    if row.get("pairs", 0) > 1:
        difference += f" [{row['forces_minus_first_low']:+.2f}, {row['forces_minus_first_high']:+.2f}]"
    drift = "" if pd.isna(row["worst_nve_drift"]) else f"{row['worst_nve_drift']:.4f}"
    if row["unstable"]:
        drift = f"{drift} ({row['unstable']} unstable)".strip()
    numbers = [row["molecule"], row["arm"], str(row["seeds"]), f"{row['steps']:,}", f"{row['cpu_minutes'] / 60:.2f}"]
    return [*numbers, spread("test_forces"), difference, spread("test_energy"), drift]


@styled
def molecule_curves(documents: Sequence[Mapping[str, Any]]) -> Figure:
    """Validation force error against the step, a panel a molecule on one scale, a line a run, from the stored files."""
    molecules = list(dict.fromkeys(d["molecule"] for d in documents))
    arms = in_order(d["arm"] for d in documents)
    figure, axes = panels(len(molecules), "there is no run", height=3.2)
    for ax, molecule in zip(axes, molecules, strict=True):
        for document in (d for d in documents if d["molecule"] == molecule):
            colour, _ = arm_style(document["arm"], arms)
            curve = document["curve"]
            ax.plot(curve["step"], curve["val_forces_mae_meV_per_A"], color=colour, lw=1.0, label=document["arm"])
        ax.set(title=molecule, xlabel="optimiser step")
        step_axis(ax)
    fit_axes(axes)
    axes[0].set_ylabel("validation force MAE (meV/Å)")
    shared_legend(figure)
    return figure
