"""Splits: seeded, disjoint, saved with the run."""

import errno
import os

import numpy as np
import pytest
import torch

from mdrelax.datasets.frames import data_hash, make_frame
from mdrelax.datasets.split import Split, index_split, load_split, random_split, read_indices, save_split


def rng(seed: int = 0) -> np.random.Generator:
    """An explicit generator."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train": 60, "valid": 10}, (60, 10, 30)),
        ({"train": 0.6, "valid": 0.1}, (60, 10, 30)),
        ({"train": 0.29, "valid": 0.57}, (29, 57, 14)),  # 0.29 * 100 is 28.999999999999996
        ({"train": 50, "valid": 0.1, "test": 20}, (50, 10, 20)),
        ({"train": 100, "valid": 0, "test": 0}, (100, 0, 0)),
    ],
)
def test_random_split_gives_the_sizes_asked_for(sizes, expected):
    """Counts, fractions and the rest; no frame twice."""
    split = random_split(100, **sizes, generator=rng())
    assert tuple(len(part) for part in split) == expected
    used = [index for part in split for index in part]
    assert len(set(used)) == len(used) == sum(expected)
    assert set(used) <= set(range(100))


def test_random_split_follows_its_generator_and_nothing_else():
    """The same seed gives the same split whatever the global seed; another seed another one."""
    first = random_split(50, train=30, valid=10, generator=rng(1))
    np.random.seed(7)  # noqa: NPY002
    assert random_split(50, train=30, valid=10, generator=rng(1)) == first
    assert random_split(50, train=30, valid=10, generator=rng(2)) != first


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"train": 90, "valid": 20}, "needs more than the 100 frames"),
        ({"train": 50, "valid": 10, "test": 50}, "needs more than the 100 frames"),
        ({"train": 0.001, "valid": 10}, "train part of the split of 100 frames is empty"),
        ({"train": 0, "valid": 10}, "train part of the split of 100 frames is empty"),
        ({"train": 90, "valid": 0.001}, r"valid part .* is empty; .*`data.validation`\)\.$"),
        ({"train": 90, "valid": 10}, "test part .* is empty; .*`data.test`.*, or for 0 to do without"),
        ({"train": 1.5, "valid": 10}, "fraction between 0.0 and 1.0, got 1.5"),
        ({"train": -3, "valid": 10}, "must be a count"),
        ({"train": True, "valid": 10}, "got True"),
    ],
)
def test_impossible_sizes_are_refused(sizes, sentence):
    """No part is ever empty without having been asked to be."""
    with pytest.raises(ValueError, match=sentence):
        random_split(100, **sizes, generator=rng())


def test_a_split_of_no_frames_is_refused():
    """Zero frames after the split are an error, not an empty training."""
    with pytest.raises(ValueError, match="train part of the split of 0 frames is empty"):
        random_split(0, train=0.8, valid=0.1, generator=rng())


def test_rmd17_index_files_are_followed(tmp_path):
    """One index a line, as rMD17's CSV files have them; validation is held out of the training part."""
    train, test = tmp_path / "index_train_01.csv", tmp_path / "index_test_01.csv"
    train.write_text("".join(f"{index}\n" for index in range(0, 100, 2)))
    test.write_text("1\n3\n5\n")
    split = index_split(100, train=train, valid=5, test=test, generator=rng())
    assert split.test == [1, 3, 5]
    assert len(split.valid) == 5
    assert sorted(split.train + split.valid) == list(range(0, 100, 2))
    assert index_split(100, train=train, valid=5, test=test, generator=rng()) == split


def test_given_lists_are_taken_in_their_order():
    """Lists, ranges and arrays alike."""
    split = index_split(10, train=[3, 1, 2], valid=range(4, 6), test=np.array([9, 8]))
    assert split == Split([3, 1, 2], [4, 5], [9, 8])


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"train": [1, 2], "test": [2, 3]}, "Frame 2 is in train and in test"),
        ({"train": [1, 2, 1]}, "Frame 1 is twice in train"),
        ({"train": [1, 10]}, "Index 10 of the train part is out of range: the data has 10 frames"),
        ({"train": [1, -1]}, "Index -1 of the train part is out of range"),
        ({"train": []}, "train part .* is empty"),
        ({"train": [1, 2], "valid": 2}, "needs a `generator`"),
    ],
)
def test_wrong_indices_are_refused(parts, sentence):
    """Overlaps between training and test make every number a lie."""
    with pytest.raises(ValueError, match=sentence):
        index_split(10, **parts)


def test_holding_out_everything_is_refused():
    """A frame must be left to train on."""
    with pytest.raises(ValueError, match="between 0 and the 3 training frames, got 3"):
        index_split(10, train=[1, 2, 3], valid=3, generator=rng())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("1\ntwo\n", "line 2: `two`"),
        ("1\n2.5\n", "`2.5`"),
        ("-1\n", "`-1`"),
        ("PK\x03\n", "is not an index"),
    ],
)
def test_broken_index_files_name_the_line(tmp_path, text, sentence):
    """A header line or a wrong file is not read as indices."""
    path = tmp_path / "index.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_indices(path)


def test_a_saved_split_comes_back_as_it_was(tmp_path):
    """The indices are saved with the run."""
    split = random_split(20, train=10, valid=5, generator=rng())
    save_split(tmp_path / "split.json", split, data_hash="abc")
    assert load_split(tmp_path / "split.json") == split
    assert load_split(tmp_path / "split.json", data_hash="abc") == split


def test_a_split_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    """A full disk is one sentence, and nothing half-written stays."""
    save_split(tmp_path / "split.json", Split([0], [1], [2]))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match=r"split\.json` could not be written \(No space left\); an older one"):
        save_split(tmp_path / "split.json", Split([5], [6], [7]))
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]
    assert load_split(tmp_path / "split.json") == Split([0], [1], [2])


def test_a_split_of_other_data_is_refused(tmp_path):
    """Indices into changed data mean other frames."""
    save_split(tmp_path / "split.json", Split([0], [1], [2]), data_hash="abc")
    with pytest.raises(ValueError, match="made for other data"):
        load_split(tmp_path / "split.json", data_hash="abd")


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"train": [1], "valid": [2], "test": ["x"]}'])
def test_a_broken_split_file_is_one_clear_error(tmp_path, text):
    """Truncated or foreign JSON."""
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match="not a split file"):
        load_split(tmp_path / "split.json")


def test_the_data_hash_sees_every_change_and_no_other():
    """Positions, labels, order and units of storage: one bit anywhere is another hash; a copy is the same."""

    def frames():
        generator = rng()
        return [make_frame([8, 1], generator.normal(size=(2, 3)), energy=k, forces=np.ones((2, 3))) for k in range(3)]

    reference = data_hash(frames())
    assert data_hash(frames()) == reference
    hashes = {reference, data_hash(frames()[::-1]), data_hash(frames()[:2])}
    for name, change in (("pos", 1e-15), ("energy", 1e-15), ("forces", 1e-15), ("z", 1)):
        changed = frames()
        changed[0][name] = changed[0][name] + torch.tensor(change).to(changed[0][name].dtype)
        hashes.add(data_hash(changed))
    unlabelled = frames()
    del unlabelled[1].forces
    assert len(hashes | {data_hash(unlabelled)}) == 8
