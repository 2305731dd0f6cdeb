"""Bad input: each mistake ends in one clear sentence that names the value and the remedy, and in its exit code."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import pytest
from ase import Atoms

from command_line import Said, mdrelax
from mdrelax.cli import CONFIG, DATA, OTHER
from mdrelax.datasets.journal import Journal
from small_runs import NETWORK, clusters, document, write_config, write_frames

Content = dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for H and O, hardly trained."""
    folder = tmp_path_factory.mktemp("model")
    source = write_frames(folder / "clusters.extxyz", clusters(12))
    content = document(source, data={"train": 6, "validation": 3, "test": 3}, training={"steps": 2})
    said = mdrelax("train", write_config(folder / "c.yaml", content), "--out", folder / "run")
    assert said.code == 0, said.err
    return folder / "run" / "model.safetensors"


def assert_one_sentence(said: Said, code: int, message: str) -> None:
    """The exit code, the message last on the screen, and no traceback before it."""
    assert said.code == code, f"{said.code}: {said.err}"
    assert message in said.last_line, said.err
    assert said.last_line.endswith((".", "?")), said.last_line
    assert "Traceback" not in said.err + said.out


# --- mistakes in a training run ---------------------------------------------------------------------------------------


def frames_with(change: Callable[[Atoms], Any]) -> list[Atoms]:
    """Good frames, of which the fourth is changed."""
    frames = clusters(32)
    change(frames[3])
    return frames


def _nan(atoms: Atoms) -> None:
    atoms.arrays["REF_forces"][2, 1] = np.nan


def _other_key(atoms: Atoms) -> None:
    atoms.info["energy"] = atoms.info.pop("REF_energy")


def _other_names() -> list[Atoms]:
    """Labels under names that nobody can guess."""
    frames = clusters(32)
    for atoms in frames:
        atoms.info["dft_energy"] = atoms.info.pop("REF_energy")
        atoms.arrays["dft_force"] = atoms.arrays.pop("REF_forces")
    return frames


class Mistake(NamedTuple):
    """What is wrong with a run, and how it ends."""

    code: int
    message: str
    sections: Content = {}  # noqa: RUF012 - never changed
    frames: Callable[[], list[Atoms]] = lambda: clusters(32)


TRAINING = {
    "missing label key": Mistake(DATA, "keys found: dft_energy, dft_force", frames=_other_names),
    "missing forces key": Mistake(DATA, "There is no forces under `f`", {"data": {"forces_key": "f"}}),
    "another key in one frame": Mistake(
        DATA, "There is no energy under `REF_energy` in frame 3", frames=lambda: frames_with(_other_key)
    ),
    "wrong unit name": Mistake(DATA, "did you mean `kcal/mol`", {"data": {"energy_unit": "kcal/mole"}}),
    "NaN force": Mistake(DATA, "value of nan in frame 3 of `c.extxyz`, atom 2", frames=lambda: frames_with(_nan)),
    "cut-off of zero": Mistake(CONFIG, "`potential.cutoff`: input should be greater", {"potential": {"cutoff": 0}}),
    "negative cut-off": Mistake(CONFIG, "greater than 0, got -5", {"potential": {"cutoff": -5}}),
    "unknown config key": Mistake(CONFIG, "did you mean `learning_rate`", {"training": {"learnig_rate": 1}}),
    "unknown section": Mistake(CONFIG, "did you mean `training`", {"trainings": {"steps": 1}}),
    "unknown preset": Mistake(CONFIG, "did you mean `tiny`", {"potential": {"preset": "tinny"}}),
    "unknown network": Mistake(CONFIG, "did you mean `equiformer`", {"potential": {"name": "equiformr"}}),
    "unknown argument": Mistake(CONFIG, "n_blcks", {"potential": {"arguments": {**NETWORK, "n_blcks": 1}}}),
    "impossible argument": Mistake(CONFIG, "n_heads=3", {"potential": {"arguments": {**NETWORK, "n_heads": 3}}}),
    "no training frames": Mistake(DATA, "train", {"data": {"train": 0}}),
    "no validation frames": Mistake(DATA, "set `data.validation`", {"data": {"validation": 0}}),
    "nothing to validate on": Mistake(DATA, "no validation frames", {"data": {"validation": 0}}),
    "more frames than there are": Mistake(DATA, "needs more than the 32 frames", {"data": {"train": 500}}),
    "missing file": Mistake(DATA, "There is no file", {"data": {"source": "nowhere.extxyz"}}),
    "unknown format": Mistake(DATA, "`extxy`; did you mean `extxyz`", {"data": {"format": "extxy"}}),
    "isolated atoms missing": Mistake(CONFIG, "config_type=IsolatedAtom", {"reference_energies": "isolated"}),
    "stress weight, no stress": Mistake(CONFIG, "no training frame has a stress", {"training": {"stress_weight": 1}}),
    "no such layer to relax": Mistake(CONFIG, "No layer matches", {"relaxation": {"where": ["blocks.*.nothing"]}}),
    "no such device": Mistake(CONFIG, "`training.device: abacus` cannot be used", {"training": {"device": "abacus"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINING)
def test_a_mistake_in_a_training_run_is_one_sentence(tmp_path, name):
    """`mdrelax train` on each line of the table."""
    mistake = TRAINING[name]
    sections = {k: v for k, v in mistake.sections.items() if isinstance(v, dict)}
    content = document(write_frames(tmp_path / "c.extxyz", mistake.frames()), **sections)
    content |= {k: v for k, v in mistake.sections.items() if not isinstance(v, dict)}
    said = mdrelax("train", write_config(tmp_path / "c.yaml", content), "--out", tmp_path / "run")
    assert_one_sentence(said, mistake.code, mistake.message)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"4\n", "cannot be read as extxyz"), (b"\x89PNG\r\n\x1a\n", "cannot be read as extxyz")],
)
def test_a_file_that_holds_no_frames_is_refused(tmp_path, content, message):
    """Empty, cut off, and another format."""
    (tmp_path / "c.extxyz").write_bytes(content)
    config = write_config(tmp_path / "c.yaml", document(tmp_path / "c.extxyz"))
    assert_one_sentence(mdrelax("train", config, "--out", tmp_path / "run"), DATA, message)
    assert_one_sentence(mdrelax("data", "stats", tmp_path / "c.extxyz"), DATA, message)


def test_an_element_of_the_test_set_only_is_refused_before_training(tmp_path):
    """Not after hours, when the test begins."""
    other = clusters(4)
    for atoms in other:
        atoms.numbers[0] = 7
    data = {"test_source": str(write_frames(tmp_path / "test.extxyz", other)), "test": None}
    content = document(write_frames(tmp_path / "c.extxyz", clusters(32)), data=data)
    said = mdrelax("train", write_config(tmp_path / "c.yaml", content), "--out", tmp_path / "run")
    assert_one_sentence(said, DATA, "The test frames have atomic numbers [7]")
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_keeps_the_checkpoint(tmp_path, monkeypatch, call):
    """The disk fills up after the first checkpoint, which stays whole, and nothing half-written is left.

    When there is space again, the run goes on.
    """
    config = write_config(tmp_path / "c.yaml", document(write_frames(tmp_path / "c.extxyz", clusters(32))))
    real, checkpoint = getattr(os, call), tmp_path / "run" / "checkpoints" / "last.pt"

    def full(*arguments: Any) -> Any:
        if checkpoint.is_file():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        said = mdrelax("train", config, "--out", tmp_path / "run")
    assert_one_sentence(said, OTHER, "could not be written (No space left on device); an older one is unchanged.")
    assert checkpoint.is_file()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".part")]
    again = mdrelax("train", config, "--out", tmp_path / "run", "--restart", "auto")
    assert again.code == 0, again.err
    assert "Resumed at step" in again.out


def test_a_full_disk_under_a_journal_is_one_sentence(tmp_path, monkeypatch):
    """It was the system's three words, without the name of the file."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="could not be written") as caught:
        Journal(tmp_path / "x.journal", {"seed": 0})
    assert caught.value.strerror.endswith("make room and repeat the command.")


# --- mistakes in using a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["md", "predict", "audit"])
def test_an_unknown_element_is_refused(tmp_path, monkeypatch, model, verb):
    """With the elements that the model knows."""
    ase.io.write(tmp_path / "n.extxyz", Atoms("N2", [(0, 0, 0), (0, 0, 1.1)]))
    if verb == "audit":
        frames = clusters(1)
        frames[0].numbers[0] = 7
        write_frames(tmp_path / "n.extxyz", frames)
    target = [tmp_path / "out.extxyz"] if verb == "predict" else []
    monkeypatch.chdir(tmp_path)
    said = mdrelax(verb, model, tmp_path / "n.extxyz", *target)
    assert_one_sentence(said, DATA, "Atomic numbers [7] are unknown to this model, which was trained on [1, 8]")


@pytest.mark.parametrize("verb", ["md", "vibrations"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_structure_without_positions_is_named(tmp_path, model, verb, value):
    """`md` ended in "LinAlgError: SVD did not converge"."""
    ase.io.write(tmp_path / "n.extxyz", Atoms("OH", [(0, 0, 0), (0, 0, value)]))
    out = ["--out", tmp_path / "v"] if verb == "vibrations" else ["--trajectory", tmp_path / "t.traj"]
    log = ["--log", tmp_path / "l.csv"] if verb == "md" else []
    said = mdrelax(verb, model, tmp_path / "n.extxyz", *out, *log)
    assert_one_sentence(said, DATA, "Positions in frame 0 of `n.extxyz` are NaN or infinite")


@pytest.mark.parametrize("verb", ["info", "md", "predict", "audit"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "There is no model file"), (b"junk", "truncated or not a safetensors file")],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, verb, content, message):
    """By every verb that takes one."""
    path, frames = tmp_path / "m.safetensors", write_frames(tmp_path / "c.extxyz", clusters(1))
    if content is not None:
        path.write_bytes(content)
    arguments = {"info": [], "md": [frames], "audit": [frames], "predict": [frames, tmp_path / "o.extxyz"]}[verb]
    assert_one_sentence(mdrelax(verb, path, *arguments), OTHER, message)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["md", "{model}", "nowhere.xyz"], DATA, "There is no file `nowhere.xyz`."),
        (["md", "{model}", "{junk}"], DATA, "cannot be read as extxyz"),
        (["md", "{model}", "{frames}", "--ensemble", "npt"], CONFIG, "must be nve or nvt, got 'npt'"),
        (["md", "{model}", "{frames}", "--ps", "-1"], DATA, "-1"),
        (["md", "{model}", "{frames}", "--dtype", "float16"], DATA, "float16"),
        (["predict", "{model}", "nowhere.xyz", "o.extxyz"], DATA, "There is no file `nowhere.xyz`."),
        (["report", "."], DATA, "is not a run folder"),
        (["project", "."], CONFIG, "cannot be read"),
        (["train", "nowhere.yaml"], CONFIG, "There is no config file `nowhere.yaml`"),
        (["train", "ethanol-tny"], CONFIG, "did you mean `ethanol-tiny`"),
        (["train", "ethanol-tiny", "--restart", "always"], CONFIG, "must be auto or never, got 'always'"),
        (["train", "ethanol-tiny", "-r", "training.stps=3"], CONFIG, "did you mean `steps`"),
        (["data", "fetch", "rmd17:ethanl"], DATA, "did you mean `rmd17:ethanol`"),
        (["data", "stats", "sample:ethane"], DATA, "ethanol"),
    ],
)
def test_a_wrong_argument_is_one_sentence(tmp_path, monkeypatch, model, arguments, code, message):
    """Files that are not there, words that are not known, numbers that make no sense."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.xyz").write_text("no structure\n")
    places = {"model": model, "junk": tmp_path / "junk.xyz", "frames": write_frames(tmp_path / "c.extxyz", clusters(1))}
    said = mdrelax(*(argument.format(**places) for argument in arguments))
    assert_one_sentence(said, code, message)
