"""Networks that other people wrote, and every place of ours: relaxed, penalised and projected as they stand."""

import itertools
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from e3nn import o3
from e3nn.nn.models.gate_points_2101 import Network
from e3nn.nn.models.v2104.voxel_convolution import Convolution
from e3nn.nn.models.v2106.gate_points_message_passing import MessagePassing
from e3nn.nn.models.v2106.gate_points_networks import NetworkForAGraphWithAttributes, SimpleNetwork
from torch import Tensor, nn

from mdrelax.forces.forcefield import ForceField
from mdrelax.method.penalty import PenaltyKind, penalty, record_inputs
from mdrelax.method.projection import project
from mdrelax.method.relaxation import relax_constraints, relaxed_layers, set_theta
from mdrelax.method.sites import relaxable_sites
from molecules import ELEMENTS, batch_of, ethanol, normal, rattled, tiny_segnn

POSITIONS = normal(6, 3, seed=0)
Case = tuple[nn.Module, Callable[[], Tensor]]  # a network, and its output for some input


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """The network in float64 with seeded weights, none of which is zero.

    e3nn's convolutions start with ``alpha`` = 0, which hides all that was convolved.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().double()
    for k, parameter in enumerate(model.parameters()):
        if not parameter.any():
            parameter.data = normal(*parameter.shape, seed=k)
    return model


def simple_network() -> Case:
    """e3nn's network for point clouds, Convolutions of four tensor products each and gates."""
    model = seeded(
        lambda: SimpleNetwork("2x0e", "0e+1o", max_radius=3.0, num_neighbors=3.0, num_nodes=6, mul=4, layers=2, lmax=2)
    )
    return model, lambda: model({"pos": POSITIONS, "x": normal(6, 2, seed=1)})


def network_with_attributes() -> Case:
    """e3nn's network for graphs whose nodes and edges have attributes: products with vectors."""
    model = seeded(
        lambda: NetworkForAGraphWithAttributes(
            "0e+1o", "0e+1o", "0e", "2x0e", max_radius=3.0, num_neighbors=3.0, num_nodes=6, mul=3, layers=1, lmax=1
        )
    )
    edges = torch.combinations(torch.arange(6), 2).T
    data = {
        "pos": POSITIONS, "edge_index": torch.cat([edges, edges.flip(0)], 1), "node_input": normal(6, 4, seed=2),
        "node_attr": normal(6, 4, seed=3), "edge_attr": normal(30, 1, seed=4),
    }  # fmt: skip
    return model, lambda: model(data)


def message_passing() -> Case:
    """e3nn's message passing by itself, with pseudovectors."""
    model = seeded(
        lambda: MessagePassing(["0e", "2x0e+2x1e", "0e+1e"], "0e+1e", "0e+1e", fc_neurons=[2, 8], num_neighbors=3.0)
    )
    source, target = torch.combinations(torch.arange(6), 2).T
    arguments = normal(6, 1, seed=1), normal(6, 4, seed=2), source, target, normal(15, 4, seed=3), normal(15, 2, seed=4)
    return model, lambda: model(*arguments)


def network_of_2101() -> Case:
    """e3nn's network of January 2021, with node attributes."""
    model = seeded(
        lambda: Network(
            "2x0e", "4x0e+4x1o", "1x0e+1x1o", "1x0e", "1x0e", layers=1, max_radius=3.0, number_of_basis=4,
            radial_layers=1, radial_neurons=8, num_neighbors=3.0, num_nodes=6.0,
        )
    )  # fmt: skip
    whole = torch.zeros(6, dtype=torch.long)
    data = {"pos": POSITIONS, "x": normal(6, 2, seed=1), "z": normal(6, 1, seed=2), "batch": whole}
    return model, lambda: model(data)


def voxel_convolutions() -> Case:
    """Three of e3nn's convolutions of voxels: a linear map of the last axis beside a kernel of external weights."""
    irreps = ("1x0e+1x1o", "2x0e+2x1o", "2x0e+2x1o", "1x0e+1x1o")
    pairs = itertools.pairwise(irreps)
    model = seeded(
        lambda: nn.Sequential(*(Convolution(*pair, "1x0e+1x1o", diameter=3.0, num_radial_basis=2) for pair in pairs))
    )
    return model, lambda: model(normal(1, 4, 4, 4, 4, seed=0))


class Products(nn.Module):
    """Weighted products of every kind beside linear maps; one layer has two names and is called twice."""

    def __init__(self) -> None:
        super().__init__()
        irreps = "3x0e+3x1o"
        self.up = o3.Linear("1x0e+1x1o", irreps)
        channelwise = [(0, 0, 0, "uvu", True), (1, 1, 0, "uvu", True), (1, 0, 1, "uvu", True), (0, 1, 1, "uvu", True)]
        self.depthwise = o3.TensorProduct(
            irreps, "1x0e+1x1o", irreps, channelwise, internal_weights=True, shared_weights=True
        )
        self.square = o3.TensorSquare(irreps, irreps)
        self.again = self.square
        self.external = o3.FullyConnectedTensorProduct(irreps, "1x0e", irreps, shared_weights=False)
        self.fibres = o3.Linear(irreps, irreps, f_in=2, f_out=2)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 4) to (N, 2, 12); reads irreps and weights of its layers, and names an argument."""
        hidden = self.up(features=x) / self.up.weight.norm()
        assert hidden.shape[-1] == self.depthwise.irreps_in1.dim
        hidden = self.depthwise(hidden, x) + self.square(hidden) + self.again(x=2 * hidden)
        weight = torch.ones(len(x), self.external.weight_numel, dtype=x.dtype)
        hidden = self.external(hidden, torch.ones_like(x[:, :1]), weight)
        return self.fibres(torch.stack([hidden, hidden.square().sum(1, keepdim=True) * hidden], dim=1))


def products() -> Case:
    """Every kind of e3nn's weighted products."""
    model = seeded(Products)
    return model, lambda: model(normal(5, 4, seed=0))


def segnn() -> Case:
    """Our SEGNN, of which only the updates are relaxed by default."""
    model, graph = ForceField(tiny_segnn(), elements=ELEMENTS), batch_of(*rattled(ethanol(), 1, seed=0))
    return model, lambda: model(graph, create_graph=True).forces


CASES = {
    "SimpleNetwork": simple_network,
    "NetworkForAGraphWithAttributes": network_with_attributes,
    "MessagePassing": message_passing,
    "Network of 2101": network_of_2101,
    "voxel convolutions": voxel_convolutions,
    "products": products,
    "SEGNN": segnn,
}


@pytest.mark.parametrize("case", CASES)
def test_every_place_of_a_network_can_be_relaxed(case: str) -> None:
    """One by one: theta moves the output; at theta = 0 and when projected the network is what it was, bit for bit."""
    model, output = CASES[case]()
    plain, modules = output().detach(), [(name, id(module)) for name, module in model.named_modules()]
    places = list(relaxable_sites(model))
    assert len(places) >= 3  # more than one layer, and more than one kind of place
    for place in places:
        generator = torch.Generator().manual_seed(0)
        assert relax_constraints(model, where=[place], initial_std=0.1, generator=generator).names == [place]
        with record_inputs(model) as inputs:
            moved = (output() - plain).abs().max().item()
        assert moved > 1e-6, place  # a free map of 0.1, damped by what follows
        for kind in get_args(PenaltyKind):
            model.zero_grad()
            value = penalty(model, inputs, kind=kind)
            value.backward()
            assert value > 0, place
            assert {n for n, p in model.named_parameters() if p.grad is not None} == {f"{place}.free.weight"}
        set_theta(model, 0.0)
        assert torch.equal(output(), plain), place
        set_theta(model, 1.0)
        project(model)
        assert torch.equal(output(), plain), place
        assert [(name, id(module)) for name, module in model.named_modules()] == modules, place


@pytest.mark.parametrize("case", CASES)
def test_the_default_relaxes_a_whole_network(case: str) -> None:
    """Every place but those between invariant scalars; the task's gradient reaches every W."""
    model, output = CASES[case]()
    plain, places = output().detach(), relaxable_sites(model)
    placed = relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    assert all(places[name].is_trivial for name in placed.left_out)
    if case != "SEGNN":  # which has a default of its own
        assert {*placed.names, *placed.left_out} == places.keys()
    assert (output() - plain).abs().max() > 1e-3
    output().square().sum().backward()
    assert all(layer.free.weight.grad.norm() > 0 for layer in relaxed_layers(model).values())  # type: ignore[union-attr]
    project(model)
    assert torch.equal(output(), plain)


# --- what cannot be relaxed ------------------------------------------------------------------------------------------


class Hidden(nn.Module):
    """A layer that is registered, and called through something else."""

    def __init__(self, keep: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.up = o3.Linear("1o", "1o")
        self.kept = keep(self.up)


@pytest.mark.parametrize(
    "keep", [lambda up: [up], lambda up: {"a": (up,)}, lambda up: up.forward], ids=["list", "dict", "method"]
)
def test_a_layer_that_is_also_kept_elsewhere_is_refused(keep: Callable[[nn.Module], object]) -> None:
    """It would be called without its free map, and theta would do nothing; nothing is changed."""
    model = Hidden(keep)
    with pytest.raises(ValueError, match="The model also keeps the layer `up` in its plain attribute `kept`"):
        relax_constraints(model)
    assert not relaxed_layers(model)


def test_a_wrapped_model_is_refused() -> None:
    """The wrapper has made its list of parameters already."""
    with pytest.raises(ValueError, match=r"`DataParallel`.*relax the network first, then wrap it"):
        relax_constraints(nn.DataParallel(nn.Sequential(o3.Linear("1o", "1o"))))


def test_weights_in_each_call_are_no_place() -> None:
    """A product without weights of its own has nothing that a free map could stand in for."""
    assert "external" not in relaxable_sites(Products())


def test_a_layer_is_found_under_each_of_its_names() -> None:
    """Relaxed once, under both names; both are what it was after projection."""
    model = Products()
    square = model.square
    assert relax_constraints(model, where=["again"]).names == ["square"]
    assert model.square is model.again
    assert model.square is not square
    project(model)
    assert model.square is model.again is square


def test_tied_and_computed_weights_are_not_folded() -> None:
    """P(W) of one layer must not reach another, and cannot be added to weights that are computed."""
    tied = nn.Sequential(o3.Linear("2x1o", "2x1o"), o3.Linear("2x1o", "2x1o"))
    tied[1].weight = tied[0].weight
    computed = nn.Sequential(o3.Linear("2x1o", "2x1o"))
    nn.utils.parametrizations.weight_norm(computed[0], dim=None)
    for model in (tied, computed):
        x = normal(3, 6, seed=0).float()
        plain = model(x)
        relax_constraints(model, initial_std=0.5)
        assert not torch.equal(model(x), plain)
        assert {record.how for record in project(model, how="fold")} == {"dropped"}
        assert torch.equal(model(x), plain)
