"""Plume files: published folders and our npz, and one sentence that names the file for each way they can be broken."""

import zipfile

import numpy as np
import pytest
import torch

from mdrelax.datasets.plume_files import is_plumes, open_plumes
from mdrelax.datasets.sample import sample_path


def published(folder, *, names=("1_0", "2_1"), n_frames=5, grid=4):
    """A folder as the notebook of the authors writes it: float32, (frames, 2, grid, grid)."""
    generator = torch.Generator().manual_seed(0)
    for name in names:
        torch.save(torch.randn(n_frames, 2, grid, grid, generator=generator), folder / f"raw_data_{name}.pt")
    return folder


def test_published_files_are_read_as_they_are(tmp_path):
    """Tasks in the order of their numbers, faces unchanged, sides and kind from the names."""
    plumes = open_plumes(published(tmp_path, names=("10_1", "9_0")), sampling="faces")
    assert (plumes.kind, plumes.shape) == ("rotation", (5, 2, 4, 4))
    assert [(task.info.name, task.info.side) for task in plumes.tasks] == [("9_0", 0), ("10_1", 1)]
    stored = torch.load(tmp_path / "raw_data_10_1.pt", weights_only=True)
    np.testing.assert_array_equal(plumes.tasks[1].velocity, stored)


def test_published_scales_have_one_number(tmp_path):
    """`raw_data_7.pt` is scale 1.7."""
    plumes = open_plumes(published(tmp_path, names=("7", "0")))
    assert plumes.kind == "scale"
    assert [task.info.scale for task in plumes.tasks] == pytest.approx([1.0, 1.7])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(5, 2, 8, 8), r"shape \(5, 2, 8, 8\), but the first file of its set \(5, 2, 4, 4\)"),
        (torch.zeros(5, 1, 4, 4), r"shape \(5, 1, 4, 4\); a plume is \(frames, 2, H, W\)"),
        (torch.zeros(5, 2, 4, 3), "a grid of 4 x 3 cells; it must be square"),
        (torch.full((5, 2, 4, 4), torch.nan), "NaN or infinite in frame 0"),
        ({"velocity": torch.zeros(1)}, "holds a dict"),
    ],
)
def test_a_wrong_published_file_is_named(tmp_path, content, words):
    """Another grid, a missing channel, NaN and something else: one sentence with the name of the file."""
    folder = published(tmp_path)
    torch.save(content, folder / "raw_data_3_2.pt")
    with pytest.raises(ValueError, match=words) as caught:
        _ = open_plumes(folder).tasks[2].velocity
    assert "raw_data_3_2.pt" in str(caught.value)


def test_a_truncated_published_file_is_named(tmp_path):
    """A download that broke off."""
    path = published(tmp_path) / "raw_data_2_1.pt"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"raw_data_2_1\.pt` cannot be read as a tensor .* \(a\) cut off"):
        _ = open_plumes(tmp_path).tasks[1].velocity


class Harmful:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        """Write a file."""
        return (exec, ("open('harm', 'w').close()",))


def test_published_files_run_no_code(tmp_path, monkeypatch):
    """A pickled object is refused before anything in it is run."""
    monkeypatch.chdir(tmp_path)
    folder = published(tmp_path)
    torch.save(Harmful(), folder / "raw_data_3_2.pt")
    with pytest.raises(ValueError, match="objects other than tensors, which are refused"):
        _ = open_plumes(folder).tasks[2].velocity
    assert not (tmp_path / "harm").exists()


def test_other_folders_are_refused(tmp_path):
    """The translation set has two numbers too, but its second is no side; an empty folder is no plume."""
    assert not is_plumes(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no `raw_data_\*\.pt`"):
        open_plumes(tmp_path)
    with pytest.raises(ValueError, match="the translation set is not supported"):
        open_plumes(published(tmp_path, names=("48_10", "56_10")))
    with pytest.raises(FileNotFoundError, match="There are no plumes"):
        open_plumes(tmp_path / "none.npz")


def test_a_truncated_set_is_named(tmp_path):
    """An npz that broke off has lost its table of contents."""
    path = tmp_path / "rotation.npz"
    path.write_bytes(sample_path("plume").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"rotation\.npz` is cut off, or no set of plumes"):
        open_plumes(path)


def test_a_damaged_task_is_named(tmp_path):
    """Every member has a checksum; the other tasks can still be read."""
    path = tmp_path / "rotation.npz"
    content = bytearray(sample_path("plume").read_bytes())
    with zipfile.ZipFile(sample_path("plume")) as archive:
        member = archive.getinfo("3_2.npy")
    content[member.header_offset + member.compress_size // 2] ^= 255
    path.write_bytes(content)
    tasks = open_plumes(path).tasks
    assert np.isfinite(tasks[0].velocity).all()
    with pytest.raises(ValueError, match=r"rotation\.npz/3_2` is damaged"):
        _ = tasks[2].velocity


def test_an_npz_of_molecules_holds_no_plumes(tmp_path):
    """Only the header makes an npz a set of plumes."""
    path = tmp_path / "md17.npz"
    np.savez(path, R=np.zeros((1, 2, 3)))
    assert not is_plumes(path)
    with pytest.raises(ValueError, match="no set of plumes"):
        open_plumes(path)
