"""The point-cloud task: losses and errors as published, deterministic batches, and the measure of invariance."""

import math

import pytest
import torch
from torch import Tensor, nn

from mdrelax.datasets.modelnet import load_modelnet
from mdrelax.packs.modelnet.networks import VNDGCNN, VNPointNet
from mdrelax.packs.modelnet.plain_networks import GroupAveraged, PointNet
from mdrelax.packs.modelnet.sizes import build_network
from mdrelax.packs.modelnet.task import Classification, Shapes, errors_of, score_error, shapes
from molecules import normal


class Fixed(nn.Module):
    """Scores that do not depend on the shape, with a weight to train."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, points: Tensor) -> Tensor:
        """One row of the scores for each cloud."""
        return self.scores[: len(points)]


def task(**changes: object) -> Classification:
    """A task on the solids."""
    data = load_modelnet(n_points=64)
    train, validation, _ = (shapes(part) for part in data)
    settings = {"batch_size": 10, "n_points": 32, "n_classes": 8, "seed": 3, **changes}
    return Classification(train, validation, **settings)  # type: ignore[arg-type]


def test_label_smoothing_gives_its_share_to_the_wrong_classes():
    """The published loss, written out, against torch's, whose share is that of all classes."""
    scores, labels, share = normal(10, 8, seed=0).float(), torch.arange(10) % 8, 0.2
    loss, (wrong,) = task(smoothing=share).loss(Fixed(scores), Shapes(torch.zeros(10, 64, 3), labels), step=0)
    logs = scores.log_softmax(1)
    target = torch.full((10, 8), share / 7).scatter(1, labels[:, None], 1 - share)
    torch.testing.assert_close(loss.detach(), -(target * logs).sum(1).mean())
    assert wrong == (scores.argmax(1) != labels).float().mean()


def test_errors_count_shapes_and_classes():
    """Of class 0 one of three is right, of class 1 the only one; no shape is of class 2."""
    labels, taken = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 1])
    model = Fixed(10 * nn.functional.one_hot(taken, 3).float())
    found = errors_of(model, Shapes(torch.zeros(4, 5, 3), labels), n_classes=3)
    assert found.error == pytest.approx(0.5)
    assert found.class_error == pytest.approx(1 - (1 / 3 + 1) / 2)
    assert found.confusion == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    wrong, right = math.log(2 + math.exp(10)), math.log(1 + 2 * math.exp(-10))
    assert found.loss == pytest.approx((2 * wrong + 2 * right) / 4, rel=1e-5)


def test_every_shape_is_seen_once_an_epoch_and_a_resumed_run_sees_the_rest():
    """Batches of an epoch are those of the whole one from a number on; the last one that is not full is left out."""
    own = task()
    whole = list(own.batches(2, start=0))
    assert own.n_steps(3) == 3 * len(whole) == 3 * 28  # of 288 shapes
    rest = list(own.batches(2, start=25))
    assert all(torch.equal(a.points, b.points) for a, b in zip(whole[25:], rest, strict=True))
    rows = torch.cat([batch.points for batch in whole]).flatten(1)
    assert len(rows.unique(dim=0)) == 280
    assert not torch.equal(whole[0].points, next(iter(own.batches(3, start=0))).points)


@pytest.mark.parametrize("augmentation", ["rotate", "pointnet"])
@pytest.mark.parametrize("resample", [True, False])
def test_augmentation_follows_from_the_step(augmentation: str, resample: bool):
    """Same step, same clouds; turned points keep their lengths; drawn points are points of the shape."""
    own = task(augmentation=augmentation, resample=resample)
    points = next(iter(own.batches(0, start=0))).points
    one, again, other = (own.augmented(points, step) for step in (5, 5, 6))
    assert one.shape == (10, 32, 3)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    lengths, known = one.norm(dim=2), points.norm(dim=2)
    ratio = lengths.amax(1) / known.amax(1)
    if augmentation == "rotate":
        nearest = (lengths.unsqueeze(2) - known.unsqueeze(1)).abs().amin(2)
        assert nearest.max() < 1e-6  # float32 rotations of points in the unit sphere
        assert torch.allclose(lengths, known[:, :32], atol=1e-6) == (not resample)
    else:
        assert (ratio < 1.25).all()
        assert any(len(cloud.unique(dim=0)) < 32 for cloud in one)


def test_poses_about_z_keep_heights():
    """The protocol's training poses."""
    own = task(poses="z")
    points = next(iter(own.batches(0, start=0))).points
    assert torch.equal(own.augmented(points, 1)[..., 2], points[:, :32, 2])
    assert torch.equal(task(poses=None).augmented(points, 1), points[:, :32])


def test_a_batch_larger_than_the_training_set_is_refused():
    """Both numbers."""
    with pytest.raises(ValueError, match="`batch_size` must be at most the 288 training shapes, got 300"):
        task(batch_size=300)


def test_fine_tuning_by_averages_begins_at_its_step():
    """Before it the plain network is trained."""
    model, own = GroupAveraged(PointNet(8, widths=(4, 6, 8), hidden=(8, 6))), task(tuning_from=7)
    batch = next(iter(own.batches(0, start=0)))
    for step, averages in ((6, False), (7, True)):
        own.loss(model, batch, step=step)
        assert model.averages == averages


@pytest.mark.parametrize("kind", [VNPointNet, VNDGCNN])
def test_the_measure_finds_what_is_broken_and_nothing_else(kind: type[nn.Module]):
    """Exact networks are invariant to 1e-9 in float64 and 1e-5 in float32; with a free map they are not."""
    name = {VNPointNet: "vn-pointnet", VNDGCNN: "vn-dgcnn"}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_network(name, "small", 8)
        points = load_modelnet(n_points=128).test.points[:16]
        for _ in range(3):
            model(points)
    model.eval()
    double, single = (score_error(model, points, dtype=dtype) for dtype in (torch.float64, torch.float32))
    for error, limit in ((double, 1e-9), (single, 1e-5)):
        assert max(error.rotation, error.translation, error.permutation) < limit
        assert (error.reflection < limit) == (kind is VNDGCNN)
    assert next(model.parameters()).dtype == torch.float32
    plain = build_network("pointnet", "tiny", 8)
    plain(points)
    broken = score_error(plain.eval(), points)
    assert broken.rotation > 1e-3
    assert broken.permutation < 1e-9


def test_names_of_networks_and_presets_are_checked():
    """The nearest one is named."""
    with pytest.raises(ValueError, match="no network `vn-pointnets`; did you mean `vn-pointnet`"):
        build_network("vn-pointnets", "tiny", 8)
    with pytest.raises(ValueError, match="no preset `tiniest`; did you mean `tiny`"):
        build_network("vn-pointnet", "tiniest", 8)
    with pytest.raises(ValueError, match="no comparator `equi-tune`; did you mean `equi-tuning`"):
        build_network("vn-pointnet", "tiny", 8, comparator="equi-tune")
