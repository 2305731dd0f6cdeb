"""Run folders: which run in one is resumed, and which one is refused, of task packs and of peers alike."""

from pathlib import Path

import pytest
import yaml

from mdrelax.base.sections import ConfigError
from mdrelax.peers.fine_tune import PeerFineTuning
from mdrelax.runs.fine_tune import fine_tuning
from mdrelax.training.folders import RESULTS, enter
from mdrelax.training.settings import OptimisationConfig

FILE = "fine-tune.yaml"
SETTINGS = PeerFineTuning(peer="mace", model="m.model", data="d.extxyz", training=OptimisationConfig(steps=4))


def entered(folder: Path, settings: PeerFineTuning = SETTINGS, *, restart: bool = False) -> bool:
    """Whether a fine-tuning of a peer resumes in a folder."""
    return enter(settings, folder, restart=restart, file=FILE)


def begun(folder: Path) -> Path:
    """The folder of a run with a checkpoint."""
    assert not entered(folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").touch()
    return folder


def test_a_run_is_resumed_on_request_only(tmp_path: Path) -> None:
    """One that ended before its first checkpoint does not count."""
    assert not entered(tmp_path)
    begun(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(ConfigError, match="already contains a run; add `--restart auto` to resume it"):
        entered(tmp_path)
    assert not (tmp_path / FILE).exists()  # a refused run leaves nothing behind
    assert entered(tmp_path, restart=True)


def test_other_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    """Also on request; the settings in the folder stay."""
    other = SETTINGS.model_copy(update={"validation": 3})
    with pytest.raises(ConfigError, match=r"holds a run with other settings(.|\n)*\n  validation: 10 -> 3$"):
        entered(begun(tmp_path), other, restart=True)
    assert yaml.safe_load((tmp_path / FILE).read_text())["validation"] == 10


def test_a_finished_run_without_its_checkpoint_is_not_trained_again(tmp_path: Path) -> None:
    """Its results would be replaced."""
    assert not entered(tmp_path)
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(ConfigError, match="is finished, but has no checkpoint any more"):
        entered(tmp_path, restart=True)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (yaml.safe_dump(fine_tuning("m.safetensors", "d.extxyz")), "`peer` is missing"),
        ("peer: mace\npeer: sevenn\n", "not valid YAML"),
        ("[" * 100 + "]" * 100, "nested deeper"),
    ],
)
def test_a_file_that_holds_no_such_settings_is_named(tmp_path: Path, text: str, cause: str) -> None:
    """That of a force field's fine-tuning, which has the same name, and files beyond the limits of the reader."""
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=rf"holds no settings of such a run; choose another folder\..*{cause}"):
        entered(tmp_path, restart=True)
    assert (tmp_path / FILE).read_text() == text
