"""The report: one offline file that says what the run folder says, whatever is missing in it."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mdrelax.analysis.report import write_report
from mdrelax.forces.metrics import Predictions, errors

GOOD = {"rotation": 1e-14, "reflection": 2e-14, "translation": 1e-15, "permutation": 0.0}
LAYER = {
    "name": "a.b",
    "norm": 1.5,
    "distance": 0.5,
    "bound": 0.7,
    "spectrum": [2.0, 0.25],
    "theta": 0.0,
    "how": "dropped",
}
CERTIFICATE = {
    "symmetry": "E(3)",
    "float64": GOOD,
    "float32": GOOD,
    "n_structures": 8,
    "layers": [LAYER],
    "passed": True,
}


def _minimal(folder: Path) -> Path:
    """What a run folder has after its first validation."""
    folder.mkdir()
    steps = np.arange(0, 50, 10)
    table = {"step": steps, "theta": steps / 50, "lr": 1e-3, "val_forces_mae_meV_per_A": 400.0 / (1 + steps)}
    pd.DataFrame(table).to_csv(folder / "metrics.csv", index=False)
    (folder / "config.yaml").write_text("seed: 0\nnote: <script>alert(1)</script>\n")
    return folder


def _complete(folder: Path, **changes: Any) -> Path:
    """A finished run of everything; ``changes`` go into results.json."""
    _minimal(folder)
    rng = np.random.default_rng(0)
    forces = rng.normal(size=(20, 3))
    energy = rng.normal(size=10)
    arrays = (np.tile([1, 8], 10), np.full(10, 2), energy, energy + 0.01, forces, forces + 0.025)
    predictions = Predictions(*arrays)
    np.savez(folder / "test_predictions.npz", **{k: v for k, v in predictions._asdict().items() if v is not None})
    test = errors(predictions)
    baselines = {
        "mean": {"forces_mae_meV_per_A": 750.0},
        "standard": {"forces_mae_meV_per_A": 50 / 1.8, "seconds": 90.0},
    }
    md = {"drift_meV_per_atom_per_ps": -0.0345, "temperature_K": 301.0, "duration_ps": 2, "timestep_fs": 0.5}
    results = {
        "test": test,
        "baselines": baselines,
        "certificate": CERTIFICATE,
        "n_parameters": 12345,
        "md": md,
        **changes,
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "env.json").write_text(json.dumps({"torch": "2.13.0", "packages": {"e3nn": "0.6"}}))
    (folder / "split.json").write_text(json.dumps({"train": [0, 1, 2], "data_hash": "abc"}))
    time = np.linspace(0, 2, 21)
    log = pd.DataFrame({"time_ps": time, "total_energy_eV": -1.0 - 1e-4 * time, "temperature_K": 300.0})
    log.to_csv(folder / "md_log.csv", index=False)
    (folder / "standard").mkdir()
    (folder / "standard" / "metrics.csv").write_bytes((folder / "metrics.csv").read_bytes())
    return folder


def _text(path: Path) -> str:
    """The page without markup and with single spaces."""
    page = re.sub(r"<style>.*?</style>", "", path.read_text(encoding="utf-8"), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_report_is_one_offline_file_with_its_images_inside(tmp_path: Path) -> None:
    """No address to fetch anything from; each embedded image is the PNG that lies in plots/."""
    path = write_report(_complete(tmp_path / "run"))
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "run" / "report.html"
    assert not re.search(r"https?:|<script|<link|url\(|@import", page)
    embedded = {base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)}
    plots = {file.stem: file.read_bytes() for file in (tmp_path / "run" / "plots").iterdir()}
    assert set(plots) == {"learning_curves", "schedule", "parity", "equivariance", "symmetry_spectra", "md_energy"}
    assert embedded == set(plots.values())
    assert all(image.startswith(b"\x89PNG") for image in embedded)


def test_report_of_a_run_under_ace_shows_its_gammas(tmp_path: Path) -> None:
    """The picture of gammas and dual variables, and the largest gamma at the end among the facts."""
    folder = _complete(tmp_path / "run", theta_at_end=0.0213)
    columns = {"step": [1, 2], "layer": "a.b", "theta": [1.0, 0.5], "dual": [0.0, 0.1]}
    pd.DataFrame(columns).to_csv(folder / "layers.csv", index=False)
    path = write_report(folder)
    assert (folder / "plots" / "controller.png").is_file()
    assert "largest |gamma| at the end 0.0213" in _text(path)
    pd.DataFrame(columns).assign(dual=np.nan).to_csv(folder / "layers.csv", index=False)
    assert "largest |gamma|" not in _text(write_report(folder))
    assert not (folder / "plots" / "controller.png").exists()


def test_report_compares_with_both_baselines(tmp_path: Path) -> None:
    """25 meV/A is 30 times smaller than 750 and 10 % smaller than 27.8, in the first sentence and in the table."""
    text = _text(write_report(_complete(tmp_path / "run")))
    assert "Force MAE on the test set 25.0 meV/Å: 30.0 times smaller than the mean baseline's 750" in text
    assert "10.0 % smaller than the standard arm's 27.8" in text
    assert "Force MAE meV/Å 25.0 27.8 750" in text
    assert "Energy MAE meV 10.0 – –" in text


def test_report_shows_where_the_numbers_come_from(tmp_path: Path) -> None:
    """Size, data, drift, environment and configuration are there, and what the files say is text, not markup."""
    path = write_report(_complete(tmp_path / "run"))
    text = _text(path)
    for fact in (
        "12,345 parameters",
        "3 training structures",
        "-0.0345 meV/atom/ps",
        "torch 2.13.0",
        "arXiv:2408.13242",
    ):
        assert fact in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("test", [[], [3, 4]])
def test_report_counts_the_structures_that_were_tested(tmp_path: Path, test: list[int]) -> None:
    """Ten predictions are ten test structures, though the split has none when the test frames have their own file."""
    folder = _complete(tmp_path / "run")
    (folder / "split.json").write_text(json.dumps({"train": [0, 1, 2], "valid": [5], "test": test}))
    text = _text(write_report(folder))
    assert " 10 test structures" in text
    assert "1 validation structures" in text
    assert f" {len(test)} test structures" not in text


def test_certificate_is_judged_by_its_numbers(tmp_path: Path) -> None:
    """PASS under the limits; FAIL above, whatever the file calls itself, with the number shown."""
    good = _text(write_report(_complete(tmp_path / "good")))
    assert "PASS" in good
    assert "FAIL" not in good
    bad = {**CERTIFICATE, "float64": {**GOOD, "rotation": 2.5e-3}, "passed": True}
    text = _text(write_report(_complete(tmp_path / "bad", certificate=bad)))
    assert "FAIL" in text
    assert "PASS" not in text
    assert "2.5e-3" in text
    assert "not E(3)-equivariant to rounding: do not use it" in text


def test_explosion_is_not_hidden(tmp_path: Path) -> None:
    """A potential with small errors whose dynamics explode says so in the heading."""
    md = {"drift_meV_per_atom_per_ps": float("nan"), "exploded": True, "reason": "90,000 K at step 7."}
    text = _text(write_report(_complete(tmp_path / "run", md=md)))
    assert "Molecular dynamics EXPLODED" in text
    assert "90,000 K at step 7." in text


@pytest.mark.parametrize("missing", ["results.json", "env.json", "split.json", "test_predictions.npz", "md_log.csv"])
def test_optional_parts_may_be_missing(tmp_path: Path, missing: str) -> None:
    """Without one of the files the report is written without its part."""
    folder = _complete(tmp_path / "run")
    (folder / missing).unlink()
    assert "Training" in _text(write_report(folder))


def test_unfinished_run_has_a_report(tmp_path: Path) -> None:
    """Configuration and learning curves are enough, and the report says that there are no test results."""
    text = _text(write_report(_minimal(tmp_path / "run")))
    assert "The run is not finished" in text
    assert "Certificate" not in text
    assert {file.stem for file in (tmp_path / "run" / "plots").iterdir()} == {"learning_curves", "schedule"}


def test_new_report_replaces_the_old_one_with_its_pictures(tmp_path: Path) -> None:
    """Pictures of data that are gone do not stay beside new numbers, other files do; nothing is left half-written."""
    folder = _complete(tmp_path / "run")
    write_report(folder)
    (folder / "plots" / "mine.png").write_bytes(b"")
    (folder / "md_log.csv").unlink()
    write_report(folder)
    names = {file.name for file in (folder / "plots").iterdir()}
    assert "md_energy.png" not in names
    assert {"mine.png", "parity.png"} <= names
    assert not [file for file in folder.rglob("*") if file.name.startswith(".") or file.suffix == ".part"]


def test_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    """The error says which files are missing and which folder is wanted; nothing is written."""
    with pytest.raises(ValueError, match=r"not a run folder: it lacks config.yaml and metrics.csv"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="not a run folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", "{"),
        ("results.json", "[]"),
        ("results.json", '{"certificate": {"symmetry": "E(3)"}}'),
        ("test_predictions.npz", "not a zip file"),
        ("md_log.csv", ""),
        ("metrics.csv", "a,b\n1,2\n"),
    ],
)
def test_broken_file_is_named_and_the_old_report_stays(tmp_path: Path, name: str, content: str) -> None:
    """One sentence with the file's path; a report that was there is not touched."""
    folder = _complete(tmp_path / "run")
    (folder / "report.html").write_text("old")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(name)}` cannot be read"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "old"
