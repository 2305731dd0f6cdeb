"""Batches: their order, their budget, and rotations that take the labels along."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.loader import Batch, Loader, distinct_elements, frames_from_data, join, rotate_batch, split_batch
from mdrelax.forces.loss import Targets
from mdrelax.potentials import build_potential
from molecules import ethanol, graph_of, normal, rattled, tiny_force_field, water
from small_runs import CRYSTAL_CUTOFF, NETWORK, clusters, crystals, data_of


def frames(n: int = 10) -> list[Batch]:
    """Molecules of two sizes with made-up labels: 3 atoms and 6 edges, or 9 atoms and 72 edges."""
    molecules = [m for pair in zip(rattled(water(), n, 0), rattled(ethanol(), n, 1), strict=True) for m in pair][:n]
    return [
        Batch(
            graph_of(atoms),
            Targets(torch.tensor([float(k)]), normal(len(atoms), 3, seed=k), normal(1, 3, 3, seed=k)),
        )
        for k, atoms in enumerate(molecules)
    ]


def test_the_order_follows_from_seed_and_epoch_only():
    """What a resumed run sees is what the uninterrupted one saw, whatever was drawn in between."""
    first, second = (Loader(frames(), batch_size=3, seed=5) for _ in range(2))
    orders = [first.order(epoch) for epoch in range(4)]
    torch.rand(7)
    assert [second.order(epoch) for epoch in (3, 2, 1, 0)] == orders[::-1]
    assert len({tuple(order) for order in orders}) == 4
    assert Loader(frames(), batch_size=3, seed=6).order(0) != orders[0]


@pytest.mark.parametrize("max_edges", [None, 80, 150])
def test_every_frame_is_seen_once_in_an_epoch(max_edges):
    """No frame is dropped at the end of an epoch or at a full batch."""
    loader = Loader(frames(), batch_size=3, max_edges=max_edges)
    for epoch in range(3):
        assert sorted(k for batch in loader.positions(epoch) for k in batch) == list(range(10))


@pytest.mark.parametrize("max_edges", [72, 80, 150, 1000])
def test_the_edge_budget_is_kept(max_edges):
    """No batch has more edges than the budget, or more frames than `batch_size`; no batch is empty."""
    loader = Loader(frames(), batch_size=4, max_edges=max_edges)
    for epoch in range(5):
        for batch in loader.batches(epoch):
            assert batch.graph.edge_index.shape[1] <= max_edges
            assert 1 <= batch.graph.n_graphs <= 4


def test_batches_are_filled_up_to_the_budget():
    """A batch ends only where the next frame does not fit any more."""
    loader = Loader(frames(), batch_size=4, max_edges=150)
    for epoch in range(5):
        plan = loader.positions(epoch)
        for batch, following in pairwise(plan):
            load = sum(loader.n_edges[k] for k in batch)
            assert len(batch) == 4 or load + loader.n_edges[following[0]] > 150


def test_a_frame_above_the_budget_makes_a_batch_of_its_own():
    """Ethanol has 72 edges: with a budget of 20, three waters fit together and each ethanol is alone."""
    loader = Loader(frames(), batch_size=4, max_edges=20)
    alone = [batch for batch in loader.positions(0) if any(loader.n_edges[k] > 20 for k in batch)]
    assert [len(batch) for batch in alone] == [1] * 5


def test_an_epoch_can_be_entered_in_its_middle():
    """Resuming at batch 2 gives the batches that were left."""
    loader = Loader(frames(), batch_size=3)
    whole = [batch.targets.energy.tolist() for batch in loader.batches(1)]
    assert [batch.targets.energy.tolist() for batch in loader.batches(1, start=2)] == whole[2:]


@pytest.mark.parametrize("max_edges", [None, 100])
def test_n_steps_counts_the_batches(max_edges):
    """`epochs` in a config becomes the number of steps that these epochs have."""
    loader = Loader(frames(), batch_size=3, max_edges=max_edges)
    assert loader.n_steps(4) == sum(len(list(loader.batches(epoch))) for epoch in range(4))


def test_without_shuffling_the_frames_keep_their_order():
    """Evaluation goes through the frames as they are."""
    assert Loader(frames(), batch_size=4, shuffle=False).order(3) == list(range(10))


def test_nothing_to_load_is_an_error():
    """Whole sentences, with both values."""
    with pytest.raises(ValueError, match="no frames"):
        Loader([], batch_size=2)
    with pytest.raises(ValueError, match="at least 1, got 0 and None"):
        Loader(frames(), batch_size=0)
    with pytest.raises(ValueError, match="at least 1, got 2 and 0"):
        Loader(frames(), batch_size=2, max_edges=0)


def test_missing_labels_become_nan(tmp_path):
    """A frame without forces and stress has NaN there; energies are read."""
    data = data_of(tmp_path / "energies.extxyz", clusters(2, labels=("energy",)))
    (first, second) = frames_from_data(data, cutoff=4.0)
    assert join([first, second]).targets.energy.tolist() == [float(item.energy) for item in data]
    assert first.targets.forces.shape == (4, 3)
    assert first.targets.forces.isnan().all()
    assert first.targets.stress.shape == (1, 3, 3)
    assert not first.targets.has_stress()


def test_rotated_labels_are_those_of_the_rotated_structures(tmp_path):
    """Forces turn as R F and stress as R S R^T: an equivariant model agrees with the turned labels (float64, 1e-12)."""
    torch_state = torch.random.get_rng_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_potential("equiformer", 1, {**NETWORK, "cutoff": CRYSTAL_CUTOFF})
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    model = ForceField(network, elements=(29,)).to_dtype(torch.float64)
    batch = join(frames_from_data(data_of(tmp_path / "cu.extxyz", crystals(3)), cutoff=CRYSTAL_CUTOFF))
    labels = model(batch.graph, stress=True)
    turned = rotate_batch(batch._replace(targets=Targets(labels.energy, labels.forces, labels.stress)), seed=3, step=17)
    predicted = model(turned.graph, stress=True)
    assert (turned.graph.positions - batch.graph.positions).abs().max() > 0.5, "nothing was turned"
    torch.testing.assert_close(predicted.energy, turned.targets.energy, rtol=0, atol=1e-12)
    torch.testing.assert_close(predicted.forces, turned.targets.forces, rtol=0, atol=1e-12)
    torch.testing.assert_close(predicted.stress, turned.targets.stress, rtol=0, atol=1e-12)


def test_each_structure_gets_a_rotation_of_its_own():
    """One rotation for a whole batch would be a weaker augmentation: the same molecule twice comes out differently."""
    frame = frames(2)[1]
    turned = rotate_batch(join([frame, frame]), seed=0, step=0).graph.positions.view(2, -1, 3)
    assert (turned[0] - turned[1]).abs().max() > 0.5
    torch.testing.assert_close(torch.pdist(turned[0]), torch.pdist(turned[1]))


def test_rotations_follow_from_seed_and_step_only():
    """Nothing random is kept between steps, so nothing random has to be saved."""
    batch = join(frames(4))
    once, again = (rotate_batch(batch, seed=1, step=9).graph.positions for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, rotate_batch(batch, seed=1, step=10).graph.positions)
    assert not torch.equal(once, rotate_batch(batch, seed=2, step=9).graph.positions)


def test_a_joined_batch_is_predicted_as_its_frames_one_by_one():
    """Batching is a matter of speed; float64 sums in another order, so 1e-12."""
    model, parts = tiny_force_field(), frames(4)
    together = model(join(parts).graph)
    alone = [model(part.graph) for part in parts]
    np.testing.assert_allclose(together.energy, torch.cat([p.energy for p in alone]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(together.forces, torch.cat([p.forces for p in alone]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 4, 10, 11])
def test_a_split_batch_is_its_frames_again(size):
    """So many structures at a time, in their order, with their labels; and no more parts than needed."""
    known = frames()
    parts = split_batch(join(known), size)
    assert len(parts) == -(-10 // size)
    expected = [join(known[k : k + size]) for k in range(0, 10, size)]
    for part, wanted in zip(parts, expected, strict=True):
        for ours, theirs in zip((*part.graph, *part.targets), (*wanted.graph, *wanted.targets), strict=True):
            assert torch.equal(ours, theirs)


def test_distinct_elements_are_sorted():
    """The order of elements in a model does not depend on the order of frames."""
    numbers = [torch.tensor([8, 1, 1]), torch.tensor([6, 1])]
    assert distinct_elements(numbers) == distinct_elements(numbers[::-1]) == (1, 6, 8)
