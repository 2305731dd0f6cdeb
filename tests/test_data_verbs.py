"""`mdrelax data`: what fetch, stats and check say; and files taken from this machine, verified as far as one can."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from command_line import mdrelax
from mdrelax.cli import DATA
from mdrelax.datasets import load_frames
from mdrelax.datasets.catalogue import Item, Source
from mdrelax.datasets.download import fetch
from small_runs import crystals, write_frames

ADDRESS = "http://127.0.0.1:9/water.npz"  # nobody answers there


def npz(seed: int = 0) -> bytes:
    """Twenty frames of water in rMD17's layout."""
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    arrays = {"coords": rng.normal(size=(20, 3, 3)), "forces": rng.normal(size=(20, 3, 3))}
    np.savez(buffer, nuclear_charges=np.array([8, 1, 1], dtype=np.uint8), energies=rng.normal(size=20), **arrays)
    return buffer.getvalue()


def water(checksum: str | None) -> dict[str, Item]:
    """A catalogue of one single file."""
    return {"rmd17:water": Item("rmd17_water.npz", (Source(ADDRESS, checksum),), "H2O")}


def file(path: Path, content: bytes) -> Path:
    """A file with that content."""
    path.write_bytes(content)
    return path


def test_a_single_file_from_this_machine_is_verified_where_its_checksum_is_known(tmp_path):
    """Its md5 is compared; other content of the same molecule is refused and not kept."""
    catalogue = water(f"md5:{hashlib.md5(npz(), usedforsecurity=False).hexdigest()}")
    options = {"folder": tmp_path / "cache", "catalogue": catalogue}
    with pytest.raises(ValueError, match=r"is not the published file, or was cut off: its md5 sum is .*data\.source"):
        fetch("rmd17:water", from_file=file(tmp_path / "other.npz", npz(seed=1)), **options)
    assert not list((tmp_path / "cache").iterdir())
    fetched = fetch("rmd17:water", from_file=file(tmp_path / "mine.npz", npz()), **options)
    assert "taken from `mine.npz`, with the published md5 sum" in fetched.verdict


def test_a_single_file_without_a_known_checksum_is_called_unverified(tmp_path):
    """The form alone proves little."""
    path = file(tmp_path / "mine.npz", npz())
    fetched = fetch("rmd17:water", folder=tmp_path / "cache", from_file=path, catalogue=water(None))
    assert "unverified: no checksum of it is known" in fetched.verdict


def test_fetch_says_path_and_verdict(tmp_path, monkeypatch):
    """Two lines on stdout for whoever reads on; the progress bar is on stderr."""
    item = Item("rmd17_ethanol.npz", (Source(file(tmp_path / "w.npz", npz()).as_uri()),), "H2O")
    monkeypatch.setitem(fetch.__kwdefaults__, "catalogue", {"rmd17:ethanol": item})
    monkeypatch.setenv("MDRELAX_CACHE", str(tmp_path / "cache"))
    said = mdrelax("data", "fetch", "rmd17:ethanol")
    assert said.code == 0, said.err
    path, verdict = said.out.strip().split("\n")
    assert Path(path).read_bytes() == npz()
    assert verdict.startswith("It came from file://")
    assert "rmd17:ethanol" in said.err


@pytest.mark.parametrize("verb", ["stats", "check"])
def test_stats_and_check_read_the_labels_and_units_that_they_are_told(tmp_path, verb):
    """Labels under any names, in any units: forces are those of the same file read as eV, times the unit (27.2)."""
    frames = crystals(3)
    for atoms in frames:
        for table, label in ((atoms.info, "energy"), (atoms.arrays, "forces"), (atoms.info, "stress")):
            table[f"dft_{label}"] = table.pop(f"REF_{label}")
    path = write_frames(tmp_path / "c.extxyz", frames)
    keys = [word for label in ("energy", "forces", "stress") for word in (f"--{label}-key", f"dft_{label}")]
    assert mdrelax("data", verb, path).code == DATA
    said = mdrelax("data", verb, path, *keys, "--length-unit", "Angstrom", "--energy-unit", "eV")
    assert said.code == 0, said.err
    if verb == "stats":
        assert "energy from `dft_energy`, forces from `dft_forces`, stress from `dft_stress`" in said.out
        assert "the file's units: eV, Angstrom" in said.out
        hartree = mdrelax("data", verb, path, *keys, "--energy-unit", "Hartree").out
        assert "the file's units: Hartree; units assumed: Angstrom" in hartree
        largest = max(np.linalg.norm(atoms.arrays["dft_forces"], axis=1).max() for atoms in frames)
        assert f"largest force: {largest * 27.211386245988:.4f}" in hartree


def test_stats_and_check_know_plumes(tmp_path):
    """One row per task, a picture if asked for, and the checks of flows; `--plot` draws nothing else."""
    picture = tmp_path / "flows.png"
    said = mdrelax("data", "stats", "sample:plume", "--plot", picture)
    assert said.code == 0, said.err
    assert "rotation set, 6 tasks, 25 frames, 32 x 32" in said.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "ok      no divergence" in mdrelax("data", "check", "sample:plume").out
    refused = mdrelax("data", "stats", "sample:ethanol", "--plot", picture)
    assert refused.code == DATA
    assert "`--plot` draws plumes; `sample:ethanol` holds none." in refused.err


def test_plumes_are_no_frames():
    """A potential cannot be trained on smoke; the sentence names the reader of plumes."""
    with pytest.raises(ValueError, match="holds smoke plumes and no atoms; `open_plumes` reads it"):
        load_frames("sample:plume")


def test_generate_takes_a_molecule_or_plumes(tmp_path):
    """`generate MOLECULE FILE` and `generate plume --out FILE`; each refuses what it cannot make."""
    said = mdrelax("data", "generate", "unobtainium", tmp_path / "x.extxyz")
    assert said.code == DATA
    assert "neither a file nor a molecule that ASE knows" in said.err
    said = mdrelax("data", "generate", "plume", "--tasks", "99", "--out", tmp_path / "x.npz")
    assert said.code == DATA
    assert "`n_tasks` must lie between 1 and 36 for rotation plumes, got 99" in said.err
