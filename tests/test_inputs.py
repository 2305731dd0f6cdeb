"""What a run starts from: no part of the data is taken silently from elsewhere, cut, or ignored."""

from pathlib import Path

import pytest

from mdrelax.base.sections import ConfigError
from mdrelax.runs.config import load_config
from mdrelax.runs.inputs import load_parts, prepare_folder, resolve
from small_runs import clusters, document, write_frames


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 labelled clusters, and files beside them: five test frames, and frame numbers for each part."""
    folder = tmp_path_factory.mktemp("data")
    write_frames(folder / "five.extxyz", clusters(5, seed=1))
    for name, numbers in (("train", range(8)), ("validation", (8, 9)), ("test", (15, 12))):
        (folder / f"{name}.csv").write_text("".join(f"{number}\n" for number in numbers))
    return write_frames(folder / "clusters.extxyz", clusters(16))


def data(source: Path, **keys: object) -> dict[str, object]:
    """The section `data`; index and test files are named without their folder."""
    named = {key: str(source.parent / value) if isinstance(value, str) else value for key, value in keys.items()}
    return {"train": 8, "validation": 2, "test": None, **named}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"validation_indices": "validation.csv"}, "need `data.train_indices` as well"),
        ({"test_indices": "test.csv"}, "need `data.train_indices` as well"),
        ({"train_indices": "train.csv", "test": 4}, "`data.test_indices`, not `data.test`, which is 4"),
        ({"train_indices": "train.csv", "test_indices": "test.csv", "test": 4}, "not `data.test`, which is 4"),
        ({"train_indices": "train.csv", "test_indices": "test.csv", "test_source": "five.extxyz"}, "leave one of them"),
        ({"test_source": "five.extxyz", "test": 6}, "`data.test: 6` asks for 6 of the 5 frames of `data.test_source`"),
        ({"test_source": "five.extxyz", "test": 0}, "`data.test: 0` asks for 0 of the 5 frames"),
        ({"test_source": "five.extxyz", "test": 0.1}, "`data.test: 0.1` asks for 0 of the 5 frames"),
        ({"test_source": "five.extxyz", "test": 1.5}, "`data.test: 1.5` asks for 7 of the 5 frames"),
    ],
)
def test_keys_that_would_be_ignored_or_cut_are_refused(source, keys, message):
    """Index files without training indices (leakage), sizes beside index files, more test frames than there are."""
    with pytest.raises(ConfigError, match=message):
        load_parts(load_config(document(source, data=data(source, **keys))).data)


@pytest.mark.parametrize(
    ("config", "structures", "message"),
    [
        (3, None, "A config is a dict, a YAML file or a preset such as ethanol-tiny, got int."),
        (None, None, "A config is a dict, a YAML file or a preset such as ethanol-tiny, got NoneType."),
        ({}, 3, "Data are a list of `ase.Atoms`, a file, or a data set's name, got int 3."),
        ({}, [1, 2], r"Data are a list of `ase.Atoms`, a file, or a data set's name, got list \[1, 2\]."),
    ],
)
def test_arguments_of_another_kind_are_named(config, structures, message):
    """`mdrelax.train(3)` was an error of Python's."""
    with pytest.raises(ConfigError, match=message):
        resolve(config, structures)


def test_index_files_decide_every_part(source):
    """In the order of the files, none of the frames elsewhere."""
    keys = {f"{part}_indices": f"{part}.csv" for part in ("train", "validation", "test")}
    parts = load_parts(load_config(document(source, data=data(source, **keys))).data)
    assert parts.split == (list(range(8)), [8, 9], [15, 12])
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (8, 2, 2)


def test_index_files_may_be_fetched_names(source, tmp_path, monkeypatch):
    """``rmd17:index_train_01`` is the file that was fetched; before that, the error names the command."""
    monkeypatch.setenv("MDRELAX_CACHE", str(tmp_path))
    content = document(source, data={**data(source), "train_indices": "rmd17:index_train_01"})
    with pytest.raises(FileNotFoundError, match="run `mdrelax data fetch rmd17:index_train_01` first"):
        load_parts(load_config(content).data)
    (tmp_path / "rmd17_index_train_01.csv").write_text("3\n1\n2\n5\n")
    split = load_parts(load_config(content).data).split
    assert sorted(split.train + split.valid) == [1, 2, 3, 5]
    assert len(split.valid) == 2


@pytest.mark.parametrize(("test", "taken"), [(None, 5), (5, 5), (2, 2), (0.4, 2)])
def test_a_test_file_gives_as_many_frames_as_asked_for(source, test, taken):
    """All of them without a number; none comes from the training file."""
    parts = load_parts(load_config(document(source, data=data(source, test_source="five.extxyz", test=test))).data)
    assert len(parts.test) == taken
    assert parts.split.test == []


def test_a_resumed_run_may_change_nothing_that_changes_a_number(source, tmp_path):
    """The length of the MD at the end may be new; the standard baseline, which shares the cores, may not."""
    content = document(source)
    prepare_folder(load_config(content), tmp_path, restart=False)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    assert prepare_folder(load_config({**content, "md_picoseconds": 1.0}), tmp_path, restart=True)
    with pytest.raises(ConfigError, match="standard_baseline"):
        prepare_folder(load_config({**content, "standard_baseline": True}), tmp_path, restart=True)
