"""What the activation penalty sees: every row that a relaxed layer was given in a step, and each of them once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.forcematching import ForceMatching
from mdrelax.forces.loader import Batch, Loader, frames_from_data, join
from mdrelax.forces.settings import TrainingConfig
from mdrelax.method.free_maps import FreeLinear
from mdrelax.method.groups import IrrepsRepresentation
from mdrelax.method.penalty import Inputs, penalty, record_inputs
from mdrelax.method.relaxation import Relaxed, relax_constraints
from mdrelax.potentials import edge_chunks
from mdrelax.structures.graph import Edges, Graph
from molecules import ELEMENTS, batch_of, ethanol, normal, rattled, tiny_segnn, water
from small_runs import CLUSTER_CUTOFF, clusters, data_of

SAME = {"rtol": 1e-10, "atol": 1e-12}  # float64: rounding of sums in another order
ON_EDGES = ["*.message_2"]  # layers that are called once for each chunk of edges
ON_NODES = ["*.update_1", "*.update_2"]


def relaxed_segnn(where: list[str]) -> nn.Module:
    """A SEGNN in training mode with free maps that count."""
    model = tiny_segnn(channels=4).train()
    relax_constraints(model, where=where, initial_std=0.2, generator=torch.Generator().manual_seed(1))
    return model


def force_field(where: list[str]) -> ForceField:
    """The same as a force field."""
    return ForceField(relaxed_segnn(where), elements=ELEMENTS).train()


def at_once(monkeypatch: pytest.MonkeyPatch, edges: int, *, kept: int = 10**9) -> None:
    """So many edges in a chunk of a trained network; chunks that begin at or after ``kept`` are checkpointed."""
    monkeypatch.setattr(edge_chunks, "EDGES_AT_ONCE_IN_TRAINING", edges)
    monkeypatch.setattr(edge_chunks, "EDGES_KEPT", kept)


def rows(inputs: Inputs) -> dict[str, Tensor]:
    """All rows of each layer, in the order of its calls."""
    return {name: torch.cat([call.flatten(0, -2) for call in calls]) for name, calls in inputs.items()}


# --- chunks of edges --------------------------------------------------------------------------------------------------


def test_the_penalty_sees_the_edges_of_all_chunks(monkeypatch):
    """26,994 edges, two for each atom, are trained in chunks of 13,498 and 13,496; formerly the last one was seen.

    The penalty is that of all edges at once, and not that of the last chunk.
    """
    model, n = relaxed_segnn(ON_EDGES), 13_497
    target = torch.arange(n).repeat_interleave(2)
    index = torch.stack([(target + torch.tensor([1, 7]).repeat(n)) % n, target])
    vectors = normal(2 * n, 3, seed=2) * torch.linspace(0.2, 1.5, 2 * n, dtype=torch.float64).unsqueeze(1)
    species, edges = torch.arange(n) % len(ELEMENTS), Edges(index, vectors)
    with record_inputs(model) as in_chunks:
        model(species, edges)
    assert [[len(call) for call in calls] for calls in in_chunks.values()] == [[13_498, 13_496]] * 2
    at_once(monkeypatch, edges=30_000)
    with record_inputs(model) as whole:
        model(species, edges)
    assert [[len(call) for call in calls] for calls in whole.values()] == [[26_994]] * 2
    expected = penalty(model, whole)
    torch.testing.assert_close(penalty(model, in_chunks), expected, **SAME)
    last = penalty(model, {name: calls[-1:] for name, calls in in_chunks.items()})
    assert abs(last / expected - 1) > 0.01


def forces_and_gradient(model: ForceField, graph: Graph) -> Inputs:
    """A step of force matching: forces with their graph, and the backward pass, all of it while inputs are recorded."""
    model.zero_grad()
    with record_inputs(model) as inputs:
        prediction = model(graph, create_graph=True)
        (prediction.energy.square().sum() + prediction.forces.square().sum()).backward()
    return inputs


def test_recomputation_records_nothing_twice_and_loses_nothing(monkeypatch):
    """All chunks of some 30 edges are computed again in both backward passes: rows and gradients are the whole's."""
    model, graph = force_field(ON_EDGES), batch_of(*rattled(ethanol(), 2, seed=0), water())
    whole = rows(forces_and_gradient(model, graph))
    expected = [p.grad for p in model.parameters()]
    recomputed: list[int] = []

    def counted(function, *arguments, **settings):
        def run(*given):
            recomputed.append(torch._C._current_graph_task_id())
            return function(*given)

        return checkpoint(run, *arguments, **settings)

    at_once(monkeypatch, edges=30, kept=0)
    monkeypatch.setattr(edge_chunks, "checkpoint", counted)
    found = rows(forces_and_gradient(model, graph))
    assert recomputed.count(-1) < len(recomputed), "nothing was recomputed: the law is not tested"
    assert found.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(found[name], whole[name], **SAME)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        assert (p.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_any_checkpointed_layer_is_recorded_once(reentrant):
    """With both of torch's kinds of activation checkpointing, in a network of somebody else."""
    layer = Relaxed(nn.Linear(3, 3), FreeLinear(*[IrrepsRepresentation("1x1o")] * 2)).double()
    layer.layer.double()
    x = normal(5, 3, seed=0).requires_grad_()
    with record_inputs(layer) as inputs:
        checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    (calls,) = inputs.values()
    assert len(calls) == 1
    assert torch.equal(calls[0], x)
    assert not calls[0].requires_grad
    assert layer.free.weight.grad is not None


# --- micro-batches ----------------------------------------------------------------------------------------------------


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """Five labelled clusters of different shape."""
    return join(frames_from_data(data_of(tmp_path / "c.extxyz", clusters(5)), cutoff=CLUSTER_CUTOFF))


@pytest.mark.parametrize("where", [ON_EDGES, ON_NODES], ids=["on edges", "on nodes"])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_penalty_of_micro_batches_is_that_of_the_whole_batch(tmp_path, batch, micro, where):
    """All structures are seen, in parts of 1, 2 + 2 + 1 or 4 + 1: the same penalty, rows and gradient."""
    frames = frames_from_data(data_of(tmp_path / "v.extxyz", clusters(2)), cutoff=CLUSTER_CUTOFF)
    found = []
    for size in (None, micro):
        model = force_field(where)
        settings = TrainingConfig(steps=1, dtype="float64", micro_batch_size=size)
        task = ForceMatching(Loader(frames, batch_size=2), frames, settings)
        with record_inputs(model) as inputs:
            loss, _ = task.loss(model, batch, step=0)
        extra = penalty(model, inputs)
        (loss + extra).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append(([extra.detach(), *gradients], rows(inputs)))
    for ours, theirs in zip(*(numbers for numbers, _ in found), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))
    for name, whole in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], whole, **SAME)
