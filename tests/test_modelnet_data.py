"""Point clouds: every published form is read alike, and whatever is wrong with a file is said in one sentence."""

from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import mdrelax
from mdrelax.datasets.download import fetch
from mdrelax.datasets.meshes import parse_off, sample_surface
from mdrelax.datasets.modelnet import is_modelnet, load_modelnet
from mdrelax.datasets.point_clouds import check_clouds, protocol_poses, random_poses
from mdrelax.datasets.solids import SOLIDS, solid_points
from shapes_on_disk import CLASSES, CUBE, WEDGE, clouds, npz_bytes, write_h5, write_npz, write_off


def test_solids_need_no_files_and_have_every_class_in_every_part():
    """The synthetic set is the same each time; its clouds are centred and fill the unit sphere."""
    data, again = load_modelnet(n_points=2048), load_modelnet(n_points=2048)
    assert data.train.classes == tuple(SOLIDS)
    for part, other in zip(data, again, strict=True):
        assert torch.equal(part.points, other.points)
        assert set(part.labels.tolist()) == set(range(8))
        assert part.points.mean(1).abs().max() < 1e-6  # float32 means of 2,048 numbers below 1
        torch.testing.assert_close(part.points.norm(dim=2).amax(1), torch.ones(len(part.labels)))
    assert check_clouds(data._asdict())["passed"].all()


@pytest.mark.parametrize("kind", sorted(SOLIDS))
def test_points_of_solids_are_uniform_on_the_surface(kind: str):
    """Two halves that a plane of symmetry makes hold equally many points: 5 sigma of 20,000 coin tosses is 354."""
    points = solid_points(kind, 20_000, np.random.default_rng(1))
    assert points.shape == (20_000, 3)
    assert abs((points[:, 0] > 0).sum() - 10_000) < 354
    if kind == "box":  # sides by area: as many points per area on each of the three pairs
        half = np.quantile(np.abs(points), 0.999, axis=0)
        on_side = [(np.abs(points[:, k]) > half[k] - 0.06).sum() for k in range(3)]
        share = np.array(on_side) / np.sum(on_side)
        np.testing.assert_allclose(share, (1 / half) / (1 / half).sum(), atol=0.06)


def test_npz_and_h5_forms_give_the_same_clouds(tmp_path: Path):
    """The h5 form has y upright: read, its shapes stand as those of the npz form; int16 rounds to 3e-5."""
    npz, h5 = (load_modelnet(write(tmp_path / write.__name__), n_points=40) for write in (write_npz, write_h5))
    assert npz.train.classes == h5.train.classes == CLASSES
    one = {name: x for part in npz[:2] for name, x in zip(part.names, part.points, strict=True)}
    for part in h5[:2]:
        assert all(x.std(0).argmax() == 2 for x in part.points)
    assert sum(len(part.labels) for part in h5[:2]) == 12  # two files
    raw, _ = clouds(seed=0)
    expected = torch.from_numpy(raw[3] - raw[3].mean(0))
    torch.testing.assert_close(one["train_3"].double(), expected / expected.norm(dim=1).max(), atol=1e-4, rtol=0)


def test_meshes_are_sampled_by_area_whatever_their_header(tmp_path: Path):
    """OFF8 6 0 is read as OFF, 8 6 0; every point lies on the surface; a second reading gives the same points."""
    data = load_modelnet(write_off(tmp_path / "meshes.zip"), n_points=2048, cache=tmp_path / "cache")
    again = load_modelnet(tmp_path / "meshes.zip", n_points=2048, cache=tmp_path / "cache")
    assert torch.equal(data.train.points, again.train.points)
    assert data.test.classes == CLASSES
    assert [len(part.labels) for part in data] == [4, 2, 6]
    vertices, triangles = parse_off(b"OFF" + CUBE.encode(), name="cube.off")
    assert triangles.shape == (12, 3)
    points = sample_surface(vertices, triangles, 6000, generator=np.random.default_rng(0))
    distance = np.minimum(np.abs(points), np.abs(1 - points)).min(1)
    assert distance.max() < 1e-12  # rounding of sums of three products
    on_side = np.array([(np.abs(points[:, k] - side) < 1e-12).sum() for k in range(3) for side in (0, 1)])
    assert abs(on_side - 1000).max() < 145  # 5 sigma of 6,000 draws of one in six


def test_points_in_a_triangle_are_uniform():
    """The mean of the points is the centroid: 5 sigma of the mean of 20,000 points."""
    vertices, triangles = parse_off(b"OFF\n# a comment\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", name="t.off")
    points = sample_surface(vertices, triangles, 20_000, generator=np.random.default_rng(3))
    np.testing.assert_allclose(points.mean(0), [1 / 3, 1 / 3, 0], atol=5 * 0.236 / 20_000**0.5)


def test_the_validation_part_is_taken_out_of_the_training_set_class_by_class():
    """No shape is in two parts, the same seed holds out the same shapes, another seed others."""
    data, again, other = (load_modelnet(validation=0.25, split_seed=seed, n_points=64) for seed in (0, 0, 1))
    assert not set(data.train.names) & set(data.validation.names)
    assert data.validation.names == again.validation.names != other.validation.names
    assert torch.bincount(data.validation.labels).tolist() == [10] * 8


def test_protocols_turn_about_the_upright_axis_or_anyhow():
    """z keeps heights; SO(3) does not; both are rotations; a test pose follows from its seed."""
    generator = torch.Generator().manual_seed(0)
    for poses in ("z", "SO3"):
        turns = random_poses(50, poses, generator)
        torch.testing.assert_close(turns @ turns.mT, torch.eye(3).double().expand(50, 3, 3), atol=1e-12, rtol=0)
        assert (torch.linalg.det(turns) > 0).all()
        assert torch.equal(turns[:, 2, 2], torch.ones(50).double()) == (poses == "z")
    assert [protocol_poses(name) for name in ("z/z", "z/SO3", "SO3/SO3")] == [("z", "z"), ("z", "SO3"), ("SO3", "SO3")]
    part = load_modelnet(n_points=16).test
    assert torch.equal(part.posed("SO3", 1).points, part.posed("SO3", 1).points)
    assert not torch.equal(part.posed("SO3", 1).points, part.posed("SO3", 2).points)
    with pytest.raises(ValueError, match="no protocol `SO3/z`; did you mean"):
        protocol_poses("SO3/z")


GOOD = {"points": clouds()[0], "labels": clouds()[1], "classes": CLASSES}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"points": np.full((6, 40, 3), np.nan)}, "set_train.npz`: a coordinate of `shape 0` is NaN"),
        ({"points": np.ones((6, 40, 3))}, "all points of `shape 0` are one point"),
        ({"points": np.ones((6, 40, 2))}, r"points of shape \(6, 40, 2\) and 6 labels"),
        ({"points": np.random.default_rng(0).normal(size=(6, 9, 3))}, "has 9 points per shape"),
        ({"labels": np.array([0, 1, 0, 1, 0, 7])}, "the label of `shape 5` is 7, but the classes are 0 to 1"),
        ({"labels": np.array([0, 1, 1, 1, 1, 1])}, "The class `cube` has one training shape"),
        ({"classes": ("cube", "ball")}, "has a class `wedge` that the training set has not"),
    ],
)  # fmt: skip
def test_a_wrong_array_is_named_with_its_file(tmp_path: Path, change: dict[str, object], sentence: str):
    """NaN, no extent, wrong forms, too few points, labels and classes out of range."""
    (write_npz(tmp_path) / "set_train.npz").write_bytes(npz_bytes(**{**GOOD, **change}))
    with pytest.raises(ValueError, match=sentence):
        load_modelnet(tmp_path, n_points=40)


def test_a_file_that_is_cut_off_is_named(tmp_path: Path):
    """npz, h5, off and zip."""
    for write, name in ((write_npz, "set_test.npz"), (write_h5, "ply_data_test0.h5")):
        place = write(tmp_path / name) / name
        place.write_bytes(place.read_bytes()[:600])
        with pytest.raises(ValueError, match=f"{name}` is cut off"):
            load_modelnet(place.parent, n_points=40)
    archive = write_off(tmp_path / "meshes.zip")
    archive.write_bytes(archive.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"meshes.zip` is cut off or no zip archive"):
        load_modelnet(archive)
    (tmp_path / "names").mkdir()
    write_h5(tmp_path / "names")
    (tmp_path / "names" / "shape_names.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks `shape_names.txt`"):
        load_modelnet(tmp_path / "names")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("PLY\n", "no .off file"),
        ("OFF\n", "cut off: it does not say"),
        ("OFF\n" + WEDGE[:20], "cut off: it has 2 of its 4 vertices"),
        ("OFF\n" + WEDGE[:-9], "cut off: it lacks some of its 4 faces"),
        ("OFF\n" + WEDGE.replace("3 1 2 3", "3 1 2 9"), "a face with vertex 9, but vertices are 0 to 3"),
        ("OFF\n" + WEDGE.replace("2 0 0", "x 0 0"), "something that is no number"),
        ("OFF\n" + WEDGE.replace("2 0 0", "nan 0 0"), "NaN or infinite"),
    ],
)
def test_a_broken_mesh_is_named(content: str, sentence: str):
    """One sentence for each thing that can be wrong with an .off file."""
    with pytest.raises(ValueError, match=f"`w.off`.*{sentence}"):
        parse_off(content.encode(), name="w.off")


def test_a_mesh_without_area_is_refused():
    """Three points on a line have no surface."""
    vertices, triangles = parse_off(b"OFF 3 1 0 0 0 0 1 0 0 2 0 0 3 0 1 2", name="line.off")
    with pytest.raises(ValueError, match=r"`line.off` has no surface"):
        sample_surface(vertices, triangles, 5, generator=np.random.default_rng(0), name="line.off")


def test_sources_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A name that is not known, one that was not fetched, a missing folder, an empty one, sizes out of range."""
    monkeypatch.setenv("MDRELAX_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"no point clouds `modelnet:41`; known: modelnet:solids, modelnet:10"):
        load_modelnet("modelnet:41")
    with pytest.raises(FileNotFoundError, match="mdrelax data fetch modelnet:40"):
        load_modelnet("modelnet:40")
    with pytest.raises(FileNotFoundError, match="no folder or zip file"):
        load_modelnet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no point clouds"):
        load_modelnet(tmp_path)
    with pytest.raises(ValueError, match="`validation` must lie between 0 and 1"):
        load_modelnet(validation=1.0)
    with pytest.raises(ValueError, match="`n_points` must be at least 1"):
        load_modelnet(n_points=0)


def test_an_archive_from_this_machine_is_taken_and_another_is_refused(tmp_path: Path):
    """`data fetch modelnet:10 --from-file`: a zip with meshes; a zip without any, or half of one, is not kept."""
    kept = fetch("modelnet:10", folder=tmp_path / "data", from_file=write_off(tmp_path / "m.zip"))
    assert len(load_modelnet(kept.path, cache=tmp_path).train.labels) == 4
    for name, content in (("half.zip", (tmp_path / "m.zip").read_bytes()[:900]), ("text.zip", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="no zip archive, or was cut off"):
            fetch("modelnet:10", folder=tmp_path / "other", from_file=tmp_path / name)
    with pytest.raises(ValueError, match=r"none ending in `.h5`"):
        fetch("modelnet:40", folder=tmp_path / "other", from_file=tmp_path / "m.zip")


def test_data_verbs_know_point_clouds(tmp_path: Path):
    """`data stats` counts shapes, `data check` finds a shape that is in training and test."""
    (tmp_path / "chair.off").touch()
    assert [is_modelnet(name) for name in ("modelnet:solids", str(tmp_path), "a.extxyz")] == [True, True, False]
    assert "torus" in mdrelax("data", "stats", "modelnet:solids").out
    folder = write_npz(tmp_path / "set")
    (folder / "set_test.npz").write_bytes((folder / "set_train.npz").read_bytes())
    with pytest.raises(ValueError, match="has 40 points per shape"):
        load_modelnet(folder)
    points, labels = clouds(n_points=1024)
    for part in ("train", "test"):
        (folder / f"set_{part}.npz").write_bytes(npz_bytes(points=points, labels=labels, classes=CLASSES))
    result = mdrelax("data", "check", folder)
    assert result.code == 3
    assert "(train) = shape" in result.out
