"""Networks that other people wrote, and every place of ours: relaxed, penalised and projected as they stand."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
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


def segnn() -> Case:
    """Our SEGNN, of which only the updates are relaxed by default."""
    model, graph = ForceField(tiny_segnn(), elements=ELEMENTS), batch_of(*rattled(ethanol(), 1, seed=0))
    return model, lambda: model(graph, create_graph=True).forces


CASES = {
    "SimpleNetwork": simple_network,
    "NetworkForAGraphWithAttributes": network_with_attributes,
    "MessagePassing": message_passing,
    "SEGNN": segnn,
}


@pytest.mark.parametrize("case", CASES)
def test_every_place_of_a_network_can_be_relaxed(case: str) -> None:
    """One by one: theta moves the output; at theta = 0 and when projected the network is what it was, bit for bit."""
    model, output = CASES[case]()
    plain, modules = output().detach(), [(name, id(module)) for name, module in model.named_modules()]
    places = list(relaxable_sites(model))
    assert len(places) >= 6  # more than one layer, and more than one kind of place
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
