"""The relaxed constraint on steerable convolutions: the laws of the method, for finite groups on grids and channels."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.method.free_conv import FreeConv2d
from mdrelax.method.groups import cyclic_regular
from mdrelax.method.penalty import penalty, record_inputs
from mdrelax.method.projection import project
from mdrelax.method.relaxation import relax_constraints, relaxed_layers, set_theta
from mdrelax.packs.smoke.convolution import assembled_once
from mdrelax.packs.smoke.steerable import RelaxedSteerableConv, SteerableConv
from mdrelax.packs.smoke.steerable_kernels import flow_vectors, steerable_basis
from mdrelax.packs.smoke.task import Frames, commutation_error, rollout_loss
from molecules import normal
from test_smoke_networks import network

SIDES = {"regular": cyclic_regular(4, 2), "vector": flow_vectors(4, 3)}
KINDS = [("vector", "regular"), ("regular", "regular"), ("regular", "vector"), ("vector", "vector")]
NETWORKS = [("equiv", "C4"), ("equiv", "C8"), ("rsteer", "C4"), ("equiv", "scale"), ("rsteer", "scale")]


def relaxed(name: str, group: str, *, std: float = 0.1) -> nn.Module:
    """A tiny relaxed network in float64."""
    model = network(name, group)
    relax_constraints(model, where=["layers.*"], initial_std=std, generator=torch.Generator().manual_seed(4))
    return model.double()


def frames(n: int = 2) -> Tensor:
    """Input of the networks."""
    return normal(n, 6, 12, 12, seed=5)


@pytest.mark.parametrize("kind", ["weight", "activation"])
@pytest.mark.parametrize("sides", KINDS)
def test_the_penalty_of_an_equivariant_kernel_is_its_size(sides: tuple[str, str], kind: str):
    """Law 1: LD is 0 to rounding for kernels of the basis, positive for others; a symmetric grid alone does not do."""
    source, output = (SIDES[name] for name in sides)
    free = FreeConv2d(source, output, kernel_size=3, padding=1).double()
    basis = steerable_basis(*(type(side)(side.matrices, 1, side.generators) for side in (source, output)), 3)
    weights = normal(len(basis), output.channels, source.channels, seed=1)
    free.weight.data = torch.einsum("bpqxy,boi->opiqxy", basis, weights).reshape(free.weight.shape)
    inputs = None if kind == "weight" else [normal(2, source.dim, 6, 6, seed=2)]
    exact = free.penalty_terms(inputs)
    assert exact.derivative < 1e-20 * exact.size
    free.weight.data = normal(*free.weight.shape, seed=3)
    other = free.penalty_terms(inputs)
    assert other.derivative > 0.1 * other.size
    free.weight.data = (free.weight.data + torch.rot90(free.weight.data, 2, (-2, -1))) / 2
    free.weight.data = (free.weight.data + torch.rot90(free.weight.data, 1, (-2, -1))) / 2
    assert free.penalty_terms(inputs).derivative > 0.01 * other.size  # what the release takes for equivariant


@pytest.mark.parametrize(("name", "group"), NETWORKS)
def test_theta_zero_is_the_network_itself_and_theta_reaches_every_layer(name: str, group: str):
    """Laws 2 and 3: bit for bit at 0; at theta > 0 a change of any W changes the output, at 0 of none."""
    plain, model, x = network(name, group), relaxed(name, group), frames()
    set_theta(model, 0.0)
    assert torch.equal(model(x), plain(x))
    for theta in (0.0, 0.5):
        set_theta(model, theta)
        before = model(x)
        for layer in relaxed_layers(model).values():
            kept = layer.free.weight.data.clone()
            layer.free.weight.data += 0.1
            assert torch.equal(model(x), before) == (theta == 0)
            layer.free.weight.data = kept


@pytest.mark.parametrize(("name", "group"), NETWORKS)
def test_one_convolution_is_the_sum_of_both(name: str, group: str):
    """f(x) = f_e(x) + theta W x: the joint kernel against the layer and its free map, applied one after the other."""
    model, x = relaxed(name, group), frames()
    set_theta(model, 0.7)
    first = relaxed_layers(model)["layers.0"]
    expected = first.layer(x) + 0.7 * first.free(x)
    torch.testing.assert_close(first(x), expected, atol=1e-12, rtol=0)
    with assembled_once():
        once, again = first(x), first(x)
    torch.testing.assert_close(once, expected, atol=1e-12, rtol=0)
    assert torch.equal(once, again)


@pytest.mark.parametrize(("name", "group"), NETWORKS)
def test_gradients_are_finite_and_the_penalty_trains_the_free_maps_only(name: str, group: str):
    """Law 5, from W = 0 on; the task's gradient reaches layers and free maps, through parts of a batch too."""
    model = relaxed(name, group, std=0.0)
    set_theta(model, 1.0)
    with record_inputs(model) as inputs:
        loss = rollout_loss(model, Frames(normal(3, 3, 2, 12, 12, seed=1), normal(3, 2, 2, 12, 12, seed=2)), part=2)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(layer.free.weight.grad.abs().max() > 0 for layer in relaxed_layers(model).values())
    for kind in ("weight", "activation"):
        for layer in relaxed_layers(model).values():
            layer.free.weight.data += 0.01 * normal(*layer.free.weight.shape, seed=3)
        model.zero_grad(set_to_none=True)
        penalty(model, inputs, kind=kind).backward()  # type: ignore[arg-type]
        reached = {name for name, p in model.named_parameters() if p.grad is not None}
        assert reached == {f"{name}.free.weight" for name in relaxed_layers(model)}


@pytest.mark.parametrize("how", ["drop", "fold"])
@pytest.mark.parametrize("group", ["C4", "C8"])
def test_projected_networks_commute_with_quarter_turns(group: str, how: str):
    """Law 8 and the certificate: same class, keys and parameters; exact to 1e-9 in float64 and to 1e-5 in float32."""
    model, plain = relaxed("equiv", group), network("equiv", group)
    set_theta(model, 0.5)
    inputs = normal(3, 3, 2, 12, 12, seed=6)
    assert commutation_error(model, inputs).rotation > 1e-2
    records = project(model, how=how)  # type: ignore[arg-type]
    assert commutation_error(model, inputs).rotation < 1e-9
    assert commutation_error(model, inputs, dtype=torch.float32).rotation < 1e-5
    assert list(model.state_dict()) == list(plain.state_dict())
    assert {type(a) for a in model.modules()} == {type(a) for a in plain.modules()}
    assert all(0 < record.distance <= record.bound * (1 + 1e-9) for record in records)


@pytest.mark.parametrize("kind", [SteerableConv, RelaxedSteerableConv])
def test_fold_takes_the_nearest_kernel_of_the_basis(kind: type[SteerableConv]):
    """The folded layer is the layer plus theta times W's orthogonal projection onto the span of its basis."""
    layer = kind(SIDES["vector"], SIDES["regular"], 3).double()
    model = nn.Sequential(layer)
    relax_constraints(model, initial_std=0.1)
    model.double()
    set_theta(model, 0.5)
    before, free = layer.kernel().detach().clone(), model[0].free.weight.data.clone()
    project(model, how="fold")
    change = (layer.kernel() - before).detach()
    blocks = (free - change / 0.5).view(2, 4, 3, 2, 3, 3)
    left = torch.einsum("bpqxy,opiqxy->boi", layer.fibres.basis, blocks)
    assert left.abs().max() < 1e-12  # what is left of W is orthogonal to the basis
    assert change.norm() > 0.01


def test_kept_free_maps_are_measured_not_removed():
    """`keep` returns records at the network's theta and leaves it as it was."""
    model, x = relaxed("equiv", "C4"), frames()
    set_theta(model, 1.0)
    before = model(x)
    records = project(model, how="keep")
    assert {record.how for record in records} == {"kept"}
    assert torch.equal(model(x), before)


def test_the_distance_of_a_scale_kernel_is_that_from_its_form():
    """P is a projection onto kernels of one set of weights; the spectrum sums to the square; fold is exact for P(W)."""
    model = relaxed("equiv", "scale")
    for name, layer in relaxed_layers(model).items():
        free = layer.free
        part = free.equivariant_part()
        twin = copy.deepcopy(free)
        twin.weight.data = part.detach().clone()
        torch.testing.assert_close(twin.equivariant_part(), part, atol=1e-12, rtol=0)
        torch.testing.assert_close(free.spectrum().sum(), free.weight.square().sum())
        assert twin.penalty_terms().derivative < 1e-20
        x = normal(2, layer.groups * layer.form.c_in, 8, 8, seed=1)
        expected = layer.layer(x) + functional.conv2d(x, part, padding=part.shape[-1] // 2, groups=layer.groups)
        assert free.fold_into(layer.layer, 1.0), name
        torch.testing.assert_close(layer.layer(x), expected, atol=1e-10, rtol=0)
