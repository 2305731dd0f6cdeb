"""The point-cloud networks: published sizes, equal to the plain form, invariant; the relaxed constraint's laws."""

import copy

import pytest
import torch
from torch import Tensor, nn

from haar import rotations
from mdrelax.datasets.modelnet import load_modelnet
from mdrelax.method.penalty import PenaltyKind, penalty, record_inputs
from mdrelax.method.projection import project
from mdrelax.method.relaxation import relax_constraints, relaxed_layers, set_theta
from mdrelax.packs.modelnet.networks import VNDGCNN, VNPointNet
from mdrelax.packs.modelnet.plain_networks import DGCNN, Canonicalised, GroupAveraged, PointNet, cube_rotations
from molecules import normal
from vector_neuron_oracle import PlainVNDGCNN, PlainVNPointNet

PLAIN = {VNPointNet: PlainVNPointNet, VNDGCNN: PlainVNDGCNN}
TINY = {
    VNPointNet: {"channels": (4, 5, 8), "hidden": (16, 8), "n_neighbours": 6},
    VNDGCNN: {"channels": (4, 3, 5, 6), "wide": 8, "hidden": (16, 8), "n_neighbours": 6},
}
each_network = pytest.mark.parametrize("kind", PLAIN)


def tiny(kind: type[nn.Module], **changes: object) -> nn.Module:
    """A small network in float64 with weights of its own, in evaluation mode after it has seen a few clouds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(8, **{**TINY[kind], **changes}).double()
        for _ in range(3):
            model(clouds())
    return model.eval()


def clouds(n: int = 8) -> Tensor:
    """Clouds of 40 points, one of each kind of solid."""
    return load_modelnet(n_points=40).test.points[:n].double()


def scale_of(scores: Tensor) -> float:
    """Root mean square, which errors are compared with."""
    return scores.square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("kind", "own", "free"),
    [
        (VNPointNet, 1_972_745, 9 * 778_347),  # published: 7,005,381 free ones, some of its maps have a bias
        (VNDGCNN, 2_899_830, 9 * 659_028),  # published: 5,929,725, the shared direction map has none
        (PointNet, 3_471_473, 0),
        (DGCNN, 1_809_576, 0),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(kind: type[nn.Module], own: int, free: int):
    """Forty classes; a free map has nine numbers for each one of the vector-neuron map beside it, and no bias."""
    model = kind(40)
    assert sum(p.numel() for p in model.parameters()) == own
    if free:
        assert relax_constraints(model).n_free == free


@pytest.mark.parametrize("training", [True, False])
@each_network
def test_networks_equal_the_plain_form(kind: type[nn.Module], training: bool):
    """Scores and gradients of all weights, of einsums over pairs that are made first: 1e-10 of their sizes."""
    model = tiny(kind, dropout=0.0).train(training)
    plain = PLAIN[kind](copy.deepcopy(model))
    ours, theirs = model(clouds()), plain(clouds())
    torch.testing.assert_close(ours, theirs, atol=1e-10 * scale_of(theirs), rtol=0)
    weights = normal(*ours.shape, seed=3)
    for network, scores in ((model, ours), (plain, theirs)):
        (scores * weights).sum().backward()
        assert all(p.grad is not None for p in network.parameters())
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        largest = max(p.grad.abs().max().item() for p in plain.parameters())
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-9 * largest, rtol=0)


@each_network
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_scores_are_invariant(kind: type[nn.Module], pooling: str):
    """Rotations, translations, the order of the points; reflections where the network claims them."""
    model, x = tiny(kind, pooling=pooling), clouds()
    scores = model(x)
    (matrix,) = rotations(1, seed=5)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = [x @ matrix.mT, x + 3.0, x[:, order], *([-x] if model.symmetry == "E(3)" else [])]
    for other in moved:
        torch.testing.assert_close(model(other), scores, atol=1e-9 * scale_of(scores), rtol=0)
    if model.symmetry == "SE(3)":  # of the cross products
        assert (model(-x) - scores).abs().max() > 1e-6 * scale_of(scores)


# --- the laws of the relaxed constraint ------------------------------------------------------------------------------


@each_network
def test_theta_reaches_every_map_and_zero_gives_the_network_back(kind: type[nn.Module]):
    """Each free map moves the scores if and only if theta > 0; at 0 they are those of the network bit for bit."""
    model, x = tiny(kind), clouds()
    scores = model(x)
    names = relax_constraints(model, initial_std=0.0).names
    linear_maps = [name for name, module in tiny(kind).named_modules() if type(module).__name__ == "VectorLinear"]
    assert names == linear_maps
    for name in names:
        layer = relaxed_layers(model)[name]
        with torch.no_grad():
            layer.free.weight.copy_(normal(*layer.free.weight.shape, seed=1))
        set_theta(model, 1.0)
        assert not torch.equal(model(x), scores)
        set_theta(model, 0.0)
        assert torch.equal(model(x), scores)
        with torch.no_grad():
            layer.free.weight.zero_()


@each_network
def test_a_relaxed_network_keeps_translations_and_permutations(kind: type[nn.Module]):
    """At every theta; rotations it does not keep."""
    model, x = tiny(kind), clouds()
    relax_constraints(model, initial_std=0.3, generator=torch.Generator().manual_seed(1))
    order, (matrix,) = torch.randperm(40, generator=torch.Generator().manual_seed(0)), rotations(1, seed=5)
    for theta in (0.3, 1.0):
        set_theta(model, theta)
        scores = model(x)
        for other in (x + 3.0, x[:, order]):
            torch.testing.assert_close(model(other), scores, atol=1e-9 * scale_of(scores), rtol=0)
        assert (model(x @ matrix.mT) - scores).abs().max() > 1e-3 * scale_of(scores)


@each_network
def test_equivariant_free_maps_have_no_lie_penalty_and_fold_into_the_network(kind: type[nn.Module]):
    """W = M x identity of the 3-vector: LD = 0, and `fold` keeps the scores without the maps; others have LD > 0."""
    model, x = tiny(kind), clouds()
    relax_constraints(model)
    for seed, layer in enumerate(relaxed_layers(model).values()):
        mixing = 0.3 * normal(layer.n_out, layer.n_in, seed=seed)
        with torch.no_grad():
            layer.free.weight.copy_(torch.kron(mixing, torch.eye(3, dtype=torch.float64)))
    with record_inputs(model) as inputs:
        relaxed = model(x)
    for kind_of_penalty in ("activation", "weight"):
        both, size = (penalty(model, inputs, kind=kind_of_penalty, lie=lie).item() for lie in (1.0, 0.0))
        assert abs(both - size) < 1e-6 * size  # the guard takes 1e-8 off the root
    project(model, how="fold")
    torch.testing.assert_close(model(x), relaxed, atol=1e-10 * scale_of(relaxed), rtol=0)
    relax_constraints(model, initial_std=0.1)
    with record_inputs(model) as inputs:
        model(x)
    assert penalty(model, inputs) > 1.1 * penalty(model, inputs, lie=0.0)


@pytest.mark.parametrize("penalty_kind", ["activation", "weight"])
@each_network
def test_gradients_are_finite_at_zero_and_the_penalty_trains_the_maps_only(
    kind: type[nn.Module], penalty_kind: PenaltyKind
):
    """The task's gradient reaches network and maps."""
    model = tiny(kind).train()
    relax_constraints(model, initial_std=0.0)
    with record_inputs(model) as inputs:
        loss = model(clouds()).square().sum()
    penalty(model, inputs, kind=penalty_kind).backward()
    free = {id(layer.free.weight) for layer in relaxed_layers(model).values()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in free)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("how", ["drop", "fold"])
@each_network
def test_projection_gives_back_the_modules_of_a_network_that_was_never_relaxed(kind: type[nn.Module], how: str):
    """The same classes, keys and number of parameters; after `drop` also the same scores."""
    model, never, x = tiny(kind), tiny(kind), clouds()
    relax_constraints(model, initial_std=0.1)
    project(model, how=how)  # type: ignore[arg-type]
    assert [type(m) for m in model.modules()] == [type(m) for m in never.modules()]
    assert list(model.state_dict()) == list(never.state_dict())
    (matrix,) = rotations(1, seed=6)
    torch.testing.assert_close(model(x @ matrix.mT), model(x), atol=1e-9 * scale_of(model(x)), rtol=0)
    assert torch.equal(model(x), never(x)) == (how == "drop")


# --- plain networks --------------------------------------------------------------------------------------------------


def test_the_rotations_of_a_cube_are_a_group():
    """24 of them, and each product of two is one of them."""
    group = cube_rotations()
    assert len(group) == 24
    assert torch.equal(group[0], torch.eye(3, dtype=torch.float64))
    products = torch.einsum("aij,bjk->abik", group, group).flatten(0, 1)
    assert all((group == p).all(2).all(1).any() for p in products)


def test_averaging_gives_the_symmetry_of_the_cube_and_no_other():
    """In evaluation; while it is trained plainly the network is the plain one."""
    plain = PointNet(8, widths=(4, 6, 8), hidden=(8, 6), dropout=0.0).double()
    averaged, x = GroupAveraged(plain).double(), clouds()
    plain(x)
    assert torch.equal(averaged.train()(x), plain.train()(x))
    averaged.eval()
    scores, (matrix,) = averaged(x), rotations(1, seed=7)
    for turn in cube_rotations()[[3, 11, 20]]:
        torch.testing.assert_close(averaged(x @ turn.mT), scores, atol=1e-12 * scale_of(scores), rtol=1e-12)
    assert (averaged(x @ matrix.mT) - scores).abs().max() > 1e-4 * scale_of(scores)
    assert (plain(x @ cube_rotations()[3].mT) - plain(x)).abs().max() > 1e-4 * scale_of(scores)


def test_canonicalisation_makes_any_network_invariant():
    """Frames are rotations and turn with the cloud, so that scores do not change."""
    plain = DGCNN(8, widths=(4, 4, 5, 6), wide=8, hidden=(8, 6), n_neighbours=6)
    model, x = Canonicalised(plain, channels=(3, 4), n_neighbours=6).double(), clouds()
    model(x)
    frames, (matrix,) = model.eval().frames(x), rotations(1, seed=8)
    torch.testing.assert_close(frames.mT @ frames, torch.eye(3).double().expand(8, 3, 3), atol=1e-12, rtol=0)
    assert (torch.linalg.det(frames) > 0).all()
    torch.testing.assert_close(model.frames(x @ matrix.mT), matrix @ frames, atol=1e-10, rtol=0)
    torch.testing.assert_close(model(x @ matrix.mT), model(x), atol=1e-9, rtol=1e-9)
    assert not torch.allclose(plain(x @ matrix.mT), plain(x))


def test_another_pooling_is_refused():
    """One sentence."""
    with pytest.raises(ValueError, match="`pooling` must be mean or max, got `sum`"):
        VNDGCNN(8, pooling="sum")
