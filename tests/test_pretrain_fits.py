"""Between the two stages of a pre-trained run: scale and binding are fitted to the user's own labels."""

import pytest
import torch

from mdrelax.datasets import load_atoms
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.loader import Batch, frames_from_data
from mdrelax.forces.predict import predict
from mdrelax.potentials import build_potential
from mdrelax.runs.continued import fit_scale, mean_binding
from small_runs import CLUSTER_CUTOFF, NETWORK, clusters


@pytest.fixture
def frames() -> list[Batch]:
    """20 clusters of H and O."""
    return frames_from_data(load_atoms(clusters(20)).data, cutoff=CLUSTER_CUTOFF)


@pytest.fixture
def field() -> ForceField:
    """A network with random weights, whose forces are those of its energy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_potential("equiformer", 2, {**NETWORK, "cutoff": CLUSTER_CUTOFF, "average_neighbors": 3.0})
    return ForceField(network, elements=(1, 8), scale=0.5).eval()


@pytest.mark.parametrize("binding", [0.0, 0.7])
@pytest.mark.parametrize(("factor", "taken"), [(1.3, 1.3), (0.8, 0.8), (3.0, 1.0), (-1.0, 1.0)])
def test_the_scale_is_fitted_to_the_forces(
    field: ForceField, frames: list[Batch], binding: float, factor: float, taken: float
) -> None:
    """Labels that are the prediction times a factor, in what the network contributes; an absurd one is not taken."""
    scale = float(field.scale)
    field.binding.fill_(binding)
    field.scale.fill_(factor * scale)
    wanted = predict(field, frames)[0].forces.split([len(frame.graph.numbers) for frame in frames])
    frames = [
        frame._replace(targets=frame.targets._replace(forces=forces))
        for frame, forces in zip(frames, wanted, strict=True)
    ]
    field.scale.fill_(scale)
    fit_scale(field, frames)
    assert float(field.scale) == pytest.approx(taken * scale, rel=1e-5)


def test_the_binding_is_fitted_to_the_energies(field: ForceField, frames: list[Batch]) -> None:
    """Energies that are 0.3 eV for each bound atom more than the prediction need 0.3 eV more of it."""
    before, batch = predict(field, frames)
    field.binding += 0.3
    after, _ = predict(field, frames)
    assert mean_binding(field, batch, after.energy - before.energy) == pytest.approx(0.3, rel=1e-6)
