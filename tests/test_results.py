"""Results: every number in the tables of README and docs is the number in a stored result file."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from blueprint import ROOT
from mdrelax.analysis.benchmarks.speed_report import report as speed_page
from mdrelax.analysis.studies import forces, nbody, rmd17

# | ... | force MAE | energy MAE | [file](path) |
ROW = re.compile(
    r"^\|.*\| (?P<forces>[\d.]+) \| (?P<energy>[\d.]+) \| \[.*\]\((?P<path>[\w./-]+\.json)\) \|$", re.MULTILINE
)
RUNS = sorted(path for folder in ("", "backbones") for path in (ROOT / "docs/results" / folder).glob("*.json"))
PAGES = ["docs/studies/results.md", "docs/studies/backbones.md"]


@pytest.mark.parametrize("page", PAGES)
def test_tables_say_what_the_result_files_say(page):
    """Force MAE (meV/A) and energy MAE (meV) of the test set, rounded as printed; each page has such rows."""
    rows = list(ROW.finditer((ROOT / page).read_text()))
    assert rows
    for row in rows:
        test = json.loads(((ROOT / page).parent / row["path"]).read_text())["test"]
        for printed, key in ((row["forces"], "forces_mae_meV_per_A"), (row["energy"], "energy_mae_meV")):
            digits = len(printed.partition(".")[2])
            assert printed == f"{test[key]:.{digits}f}", f"{page}: {row[0]}"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_result_files_tell_seed_versions_machine_and_date(path):
    """A number without them cannot be checked."""
    content = json.loads(path.read_text())
    assert {"seed", "date", "platform", "torch", "e3nn", "python"} <= content["environment"].keys()
    assert content["certificate"]["passed"]
    assert content["command"].startswith("mdrelax ")
    assert "/" not in content["command"].replace("runs/", ""), "result files name no paths of a machine"


STUDIES = sorted((ROOT / "docs/results/nbody").glob("*/summary.csv"))


def rows_of(text):
    """The lines of Markdown tables, their cells stripped."""
    return [tuple(cell.strip() for cell in line.split("|")) for line in text.splitlines() if line.startswith("| ")]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_the_nbody_page_repeats_the_stored_studies(path):
    """study.md is what runs.csv gives, and its rows stand in docs/studies/nbody.md."""
    study = (path.parent / "study.md").read_text()
    numbers = [row for row in rows_of(study) if row[2].isdigit()]
    assert numbers
    assert study == nbody.STUDY.report(nbody.STUDY.summarize(pd.read_csv(path.with_name("runs.csv"))))
    assert set(numbers) <= set(rows_of((ROOT / "docs/studies/nbody.md").read_text()))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.parent.name)
def test_nbody_studies_tell_seeds_versions_machine_date_and_command(path):
    """And every network in them is exactly equivariant."""
    study = json.loads((path.parent / "study.json").read_text())
    assert study["command"].startswith("mdrelax bench nbody ")
    assert {"torch", "e3nn", "python", "platform", "threads"} <= study["environment"].keys()
    runs = pd.read_csv(path.parent / "runs.csv")
    assert (runs.equivariance_error < 1e-9).all()
    assert runs.groupby(["n_layers", "n_train", "seed"]).arm.nunique().min() > 1, "arms have the same seeds"


def test_the_readme_says_what_the_full_nbody_studies_found():
    """Mean and spread of both arms, in 1e-3, with tuned training and with the published recipe."""
    text = (ROOT / "README.md").read_text().replace("\n", " ")
    for study, sentence in (
        ("full", "{standard} (standard) and {relaxed} (relaxed), in units of 1e-3"),
        ("published", "{standard} and {relaxed} with the published recipe"),
    ):
        table = pd.read_csv(ROOT / "docs/results/nbody" / study / "summary.csv").set_index("arm")
        assert (table.seeds >= 3).all()
        shown = {arm: f"{1e3 * row.test_mse:.2f} +- {1e3 * row.test_mse_std:.2f}" for arm, row in table.iterrows()}
        assert sentence.format(**shown) in text


RMD17 = ROOT / "docs/results/rmd17"
SUMMARIES = [
    *((nbody.STUDY, path) for path in STUDIES),
    (rmd17.STUDY, RMD17 / "study/summary.csv"),
    *((forces.STUDY, path) for path in sorted(RMD17.glob("ablation/*/summary.csv"))),
]


@pytest.mark.parametrize(("study", "path"), SUMMARIES, ids=[path.parent.name for _, path in SUMMARIES])
def test_stored_summaries_are_what_the_stored_runs_give(study, path):
    """Means, spreads and paired differences of every study, to the rounding of a mean in another order."""
    found = study.summarize(pd.read_csv(path.with_name("runs.csv")))
    pd.testing.assert_frame_equal(found, pd.read_csv(path), check_dtype=False, rtol=1e-9)


RMD17_RUNS = sorted(path for study in ("study", "joint") for path in (RMD17 / study).glob("*-*-*.json"))
# | `run` | ... | validation force MAE |
SEARCH_ROW = re.compile(r"^\|.*\| `(?P<run>[\w/-]+)` \| (?P<forces>[\d.]+) \|$", re.MULTILINE)


def test_the_rmd17_page_repeats_the_stored_study():
    """study.md is what the result files give, and its rows stand in docs/studies/rmd17.md."""
    text = rmd17.STUDY.report(rmd17.STUDY.summarize(rmd17.STUDY.collect(rmd17.read_study(RMD17 / "study"))))
    assert (RMD17 / "study/study.md").read_text() == text
    rows = [row for row in rows_of(text) if row[3].isdigit()]
    assert rows
    assert set(rows) <= set(rows_of((ROOT / "docs/studies/rmd17.md").read_text()))


def test_the_first_table_of_the_readme_is_made_of_stored_numbers():
    """Accuracy and cost, a row per model: errors of the study, published errors, and medians of the speed benchmark."""
    rows = [row[1:-1] for row in rows_of((ROOT / "README.md").read_text()) if " / " in row[3] and row[2][0].isdigit()]
    study = pd.read_csv(RMD17 / "study/summary.csv").set_index(["molecule", "arm"])
    speed = pd.read_csv(ROOT / "docs/results/speed/main/speed.csv").set_index(["contestant", "case"])
    (published,) = (models for source, models in rmd17.PUBLISHED.items() if source.startswith("rMD17"))
    timed = {"MACE": "mace-128", "NequIP": "nequip-l2"}
    arms = {"Equiformer `small`, standard": "standard", "Equiformer `small`, relaxed and projected": "relaxed"}
    assert [row[0] for row in rows] == [*arms, *timed]
    for model, parameters, *cells in rows:
        network = timed.get(model, "equiformer-small")
        steps, compiled = (
            [speed.ms_median.get((name, f"md-{molecule}")) for molecule in ("ethanol", "aspirin")]
            for name in (network, f"{network}:compiled")
        )
        assert int(parameters.replace(",", "")) == speed.loc[(network, "md-ethanol"), "n_parameters"]
        if model in timed:
            errors, hours = [published[model][molecule] for molecule in ("ethanol", "aspirin")], ""
            shown = [f"{energy} / {force}" for energy, force in errors]
        else:
            found = [study.loc[(molecule, arms[model])] for molecule in ("ethanol", "aspirin")]
            shown = [f"{run.test_energy:.2f} / {run.test_forces:.2f}" for run in found]
            hours = " / ".join(f"{run.cpu_minutes / 60:.2f}" for run in found)
        times = [" / ".join(f"{ms:.1f}" for ms in pair) if pair[0] else "" for pair in (steps, compiled)]
        assert cells == [*shown, hours, *times], model


@pytest.mark.parametrize("path", RMD17_RUNS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_rmd17_runs_tell_seed_versions_machine_date_and_command(path):
    """Each network is exactly equivariant, was tested on the split's test frames, and names no path of a machine."""
    run = json.loads(path.read_text())
    assert {"seed", "date", "platform", "torch", "e3nn", "python"} <= run["environment"].keys()
    assert run["certificate"]["passed"]
    assert run["command"].startswith("mdrelax bench rmd17")
    assert "/" not in run["config"]["data"]["source"]
    assert run["config"]["data"]["test_source"] == f"rmd17_{run['molecule']}_test_01.npz"
    assert path.stem == f"{run['molecule']}-{run['arm']}-{run['seed']}"


def test_the_search_in_the_rmd17_page_is_the_stored_one():
    """Every printed validation error is that of the run in runs.csv."""
    runs = pd.read_csv(RMD17 / "search/runs.csv").set_index("run").validation_forces
    rows = list(SEARCH_ROW.finditer((ROOT / "docs/studies/rmd17.md").read_text()))
    assert len(rows) >= 10
    for row in rows:
        assert row["forces"] == f"{runs[row['run']]:.2f}", row[0]


# | small | `arm` | ... | seeds | validation force MAE +- spread | minus standard [interval] |
ABLATION_ROW = re.compile(
    r"^\| (?P<size>small|tiny|tiny, theta kept) \| `(?P<arm>[\w.-]+)` \|.*"
    r"\| (?P<seeds>\d) \| (?P<forces>[\d.+ -]+) \| (?P<difference>.*) \|$",
    re.MULTILINE,
)


def test_the_ablation_in_the_rmd17_page_is_the_stored_one():
    """Each arm of both networks: mean and spread on validation frames, and the paired difference with its interval."""
    rows = list(ABLATION_ROW.finditer((ROOT / "docs/studies/rmd17.md").read_text()))
    places = {"small": "small", "tiny": "tiny", "tiny, theta kept": "kept"}
    tables = {
        size: pd.read_csv(RMD17 / f"ablation/{name}/summary.csv").set_index("arm") for size, name in places.items()
    }
    assert [(row["size"], row["arm"]) for row in rows] == [(size, arm) for size, t in tables.items() for arm in t.index]
    for row in rows:
        found = tables[row["size"]].loc[row["arm"]]
        assert found.judged_by == "validation"
        assert int(row["seeds"]) == found.seeds
        assert row["forces"] == f"{found.validation_forces:.2f} +- {found.validation_forces_std:.2f}"
        if row["arm"] != "standard":
            low, high = found.forces_minus_first_low, found.forces_minus_first_high
            assert row["difference"] == f"{found.forces_minus_first:+.2f} [{low:+.2f}, {high:+.2f}]"


# | molecule | drift of a trajectory | [result](path)
NVE_ROW = re.compile(
    r"^\| (?P<molecule>\w+) \| (?P<drift>-?[\d.]+) \| \[result\]\((?P<path>[\w./-]+\.json)\)", re.MULTILINE
)


def test_the_drifts_in_the_rmd17_page_are_the_stored_ones():
    """A trajectory of each molecule of the study, on its test frames, which nothing broke."""
    rows = list(NVE_ROW.finditer((ROOT / "docs/studies/rmd17.md").read_text()))
    studied = {path.name.partition("-")[0] for path in (RMD17 / "study").glob("*-*-*.json")}
    assert {row["molecule"] for row in rows} == studied
    for row in rows:
        run = json.loads((ROOT / "docs/studies" / row["path"]).read_text())
        assert run["data"] == f"rmd17_{row['molecule']}_test_01.npz"
        assert row["drift"] == f"{run['md']['drift_meV_per_atom_per_ps']:.4f}"
        # The file says which network it was by its test error: compiled or not, to rounding in float32.
        studied_run = json.loads((RMD17 / f"study/{row['molecule']}-relaxed-0.json").read_text())
        same = pytest.approx(studied_run["test"]["forces_mae_meV_per_A"], rel=1e-4)
        assert run["errors"]["forces_mae_meV_per_A"] == same
        assert run["md"]["duration_ps"] >= 20
        assert not run["md"]["exploded"]
        assert run["md"]["first_broken_bond_ps"] is None


SPEEDS = sorted((ROOT / "docs/results/speed").glob("*/speed.csv"))


@pytest.mark.parametrize("path", SPEEDS, ids=lambda path: path.parent.name)
def test_the_speed_pages_are_made_of_the_stored_tables(path):
    """speed.md is what speed.csv and the limits give; versions, machine and a command without paths stand beside it."""
    record = json.loads(path.with_name("speed.json").read_text())
    text = speed_page(pd.read_csv(path), record["limits"], dtype=record["rules"]["dtype"])
    assert path.with_name("speed.md").read_text() == text
    assert {"date", "platform", "torch"} <= record["environment"].keys()
    assert record["versions"]
    assert record["command"].startswith("mdrelax bench speed")
    assert not any(word.startswith("/") for word in record["command"].split())


def test_the_tables_of_the_speed_page_stand_in_the_stored_ones():
    """Every row of numbers under `Results` in docs/studies/speed.md is a row of a stored speed.md."""
    stored = {row for path in SPEEDS for row in rows_of(path.with_name("speed.md").read_text())}
    text = (ROOT / "docs/studies/speed.md").read_text().partition("## Results")[2].partition("### Operators")[0]
    shown = [row for row in rows_of(text) if not set("".join(row)) <= set("-: ") and row[1]]
    assert len(shown) > 20
    missing = [row for row in shown if row not in stored]
    assert not missing


SILICON = ROOT / "docs/results/phonons/silicon"
# column of the page: special point, branch from the lowest one up
SILICON_BRANCHES = [("G", 4), ("X", 1), ("X", 3), ("X", 5), ("L", 1), ("L", 3), ("L", 4), ("L", 5)]


def _bands(name: str) -> pd.DataFrame:
    return pd.read_csv(SILICON / name).filter(like="_THz")


def test_the_phonons_of_silicon_in_the_page_are_the_stored_ones():
    """The row of the model, no imaginary mode, and bands that do not depend on the displacement."""
    text = (ROOT / "docs/studies/vibrations.md").read_text()
    (row,) = re.findall(r"^\| `silicon`, 2,000 steps \|(.*)\|$", text, re.MULTILINE)
    labelled = pd.read_csv(SILICON / "bands.csv").dropna(subset="label").drop_duplicates("label").set_index("label")
    stored = [f"{labelled.loc[point, f'branch_{branch}_THz']:.2f}" for point, branch in SILICON_BRANCHES]
    assert [cell.strip() for cell in row.split("|")] == stored
    exact, near, far = (_bands(name) for name in ("bands.csv", "bands-finite-0.003.csv", "bands-finite-0.03.csv"))
    assert (near - exact).abs().max(axis=None) < 1e-4
    assert (far - near).abs().max(axis=None) < 0.01
    assert exact.min(axis=None) > -1e-3
    for path in SILICON.glob("*.json"):
        document = json.loads(path.read_text())
        assert document["command"].startswith("mdrelax phonons ")
        assert {"torch", "platform", "date", "seed"} <= document["environment"].keys()


def test_the_table_of_the_smoothness_page_is_the_stored_one():
    """k(d), test error and float32 forces of every network, as printed."""
    stored = json.loads((ROOT / "docs/results/smoothness/smoothness.json").read_text())
    rows = rows_of((ROOT / "docs/studies/smoothness.md").read_text())
    printed = {row[1].strip("`"): row[2:-1] for row in rows if re.match(r"-?\d", row[2])}
    assert printed.keys() == {row["network"] for row in stored["rows"]}
    for row in stored["rows"]:
        constants = [f"{value:.3f}" for key, value in row.items() if key.startswith("k(")]
        errors = ["", ""] if row["network"] == "EMT" else [
            f"{row['force_mae_meV_per_A']:.2f}", f"{row['float32_force_eV_per_A']:.1e}",
        ]  # fmt: skip
        assert list(printed[row["network"]]) == [*constants, *errors]
    assert stored["command"].startswith("mdrelax bench smoothness")
    assert {"torch", "platform", "date"} <= stored["environment"].keys()


@pytest.mark.parametrize("name", ["ethanol", "ethanol-rmd17"])
def test_the_vibrations_of_ethanol_in_the_page_are_the_stored_ones(name):
    """Mean and largest error of the frequencies, against the stored table, mode by mode."""
    folder = ROOT / "docs/results/vibrations" / name
    found, table = json.loads((folder / "eval.json").read_text()), pd.read_csv(folder / "harmonic.csv")
    error, worst = table.difference_per_cm.abs().mean(), table.loc[table.difference_per_cm.abs().idxmax()]
    assert found["harmonic"]["mae_per_cm"] == pytest.approx(error)
    sentence = (
        f"MAE {error:.1f} / cm, largest error {worst.difference_per_cm:+.1f} / cm at {worst.reference_per_cm:.0f} / cm "
        f"({len(table)} modes, paired by overlap"
    )
    assert sentence in (ROOT / "docs/studies/vibrations.md").read_text().replace("\n", " ")
    assert {"torch", "platform", "date"} <= found["environment"].keys()


def test_the_rmd17_page_has_the_runs_with_the_joint_norm():
    """A row for each, with the errors of the published norm for the same seed next to it."""
    text = (ROOT / "docs/studies/rmd17.md").read_text()
    runs = sorted((RMD17 / "joint").glob("*-standard-0.json"))
    assert len(runs) >= 2
    for path in runs:
        new, old = (json.loads((RMD17 / study / path.name).read_text())["test"] for study in ("joint", "study"))
        forces, energies = (
            [f"{run[key]:.2f}" for run in (new, old)] for key in ("forces_mae_meV_per_A", "energy_mae_meV")
        )
        assert f"| {path.name.partition('-')[0]} | {' | '.join([*forces, *energies])} |" in text


def test_the_page_on_scale_repeats_the_costs_of_lammps():
    """All rows of the stored table, rounded as printed."""
    table = pd.read_csv(ROOT / "docs/results/speed/lammps/lammps.csv")
    found = {
        (
            f"{row.atoms:,.0f}", f"{row.ranks:.0f}", f"{row.us_per_atom_step / 1000:.2f}",
            f"{row['outside_network_%']:.1f}", f"{row['exchange_%']:.1f}", f"{row['neighbours_%']:.1f}",
            f"{row.ghosts_per_atom:.2f}", f"{row.memory_GiB:.1f}",
        )
        for _, row in table.iterrows()
    }  # fmt: skip
    page = {row[1:-1] for row in rows_of((ROOT / "docs/scale.md").read_text())}
    assert len(found) == 10
    assert found <= page


def test_the_page_on_scale_repeats_the_drifts_of_lammps_and_ase():
    """Slope and largest deviation, which follow from the stored energies too."""
    folder = ROOT / "docs/results/speed/lammps-nve"
    text = (ROOT / "docs/scale.md").read_text().replace("\n", " ")
    rows = {row["engine"]: row for row in json.loads((folder / "lammps-nve.json").read_text())["rows"]}
    for engine, row in rows.items():
        table = pd.read_csv(folder / f"{engine}.csv")
        energies = 1000 * table.energy_eV / row["atoms"]
        assert np.polyfit(table.step / 1000, energies, 1)[0] == pytest.approx(row["drift_meV_per_atom_ps"], abs=1e-7)
        assert (energies - energies[0]).abs().max() == pytest.approx(row["largest_deviation_meV_per_atom"], abs=1e-7)
    lammps, ase = rows["lammps"], rows["ase"]
    assert f"by {lammps['drift_meV_per_atom_ps']:+.4f} meV/atom/ps in LAMMPS on 2 ranks" in text
    assert f"by {ase['drift_meV_per_atom_ps']:+.4f} in ASE" in text
    deviations = " and ".join(f"{row['largest_deviation_meV_per_atom']:.3f}" for row in (lammps, ase))
    assert f"within {deviations} meV/atom" in text


def test_the_page_on_scale_repeats_the_gain_of_torch_sim():
    """Steps per second of the batch over those of its molecules one by one."""
    one, many = json.loads((ROOT / "docs/results/speed/torch-sim/torch-sim.json").read_text())["rows"]
    gain = many["molecule_steps_per_s"] / one["molecule_steps_per_s"]
    sentence = f"{many['molecules']} molecules of ethanol at once made {gain:.1f} times as many steps per second"
    assert sentence in (ROOT / "docs/scale.md").read_text().replace("\n", " ")


def test_the_page_on_scale_repeats_the_speed_up_of_ranks():
    """Median, smallest and largest of the rounds."""
    *_, two = json.loads((ROOT / "docs/results/speed/ranks/ranks.json").read_text())["rows"]
    text = (ROOT / "docs/scale.md").read_text().replace("\n", " ")
    assert f"{two['speed_up']:.2f} times as fast" in text
    assert f"from {two['speed_up_smallest']:.2f} to {two['speed_up_largest']:.2f}" in text


@pytest.mark.parametrize("molecule", ["aspirin", "ethanol"])
def test_the_readme_says_what_the_runs_with_the_joint_norm_found(molecule):
    """Energy and force errors."""
    test = json.loads((RMD17 / f"joint/{molecule}-standard-0.json").read_text())["test"]
    errors = f"{test['energy_mae_meV']:.2f} / {test['forces_mae_meV_per_A']:.2f}"
    assert f"{errors} on {molecule}" in (ROOT / "README.md").read_text()
