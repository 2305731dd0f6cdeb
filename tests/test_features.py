"""Features of atoms: invariant, one row per atom, and those that the energy is read from."""

import numpy as np
import pytest
import torch

from lennard_jones import cluster, lj_force_field
from mdrelax.structures.rotate import random_rotations, rotate
from molecules import batch_of, crystal, ethanol, graph_of, rattled, tiny_force_field, water
from potential_cases import force_field_of

NETWORKS = {"equiformer E(3) l=2": 16, "segnn l=1": 8, "equiformer-pytorch l=2": 16}  # and their features


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_invariant_and_one_row_per_atom(name: str) -> None:
    """Under rotations and permutations; batching changes nothing. Rounding of float64: 1e-9."""
    model = force_field_of(name)
    structures = [*rattled(ethanol(), 1, seed=0), crystal(), water()]
    graph = batch_of(*structures)
    found = model.features(graph)
    assert found.shape == (len(graph.numbers), NETWORKS[name])
    assert not found.requires_grad
    turned = rotate(graph, random_rotations(3, torch.Generator().manual_seed(0)).to(graph.positions))
    torch.testing.assert_close(model.features(turned), found, rtol=0, atol=1e-9)
    alone = torch.cat([model.features(graph_of(atoms)) for atoms in structures])
    torch.testing.assert_close(alone, found, rtol=0, atol=1e-9)
    mirrored = structures[0][::-1]
    torch.testing.assert_close(model.features(graph_of(mirrored)), found[:9].flip(0), rtol=0, atol=1e-9)


def test_energies_are_a_function_of_the_features() -> None:
    """The read-out of Equiformer, applied to the features, gives the energies of the atoms up to one constant."""
    model, graph = tiny_force_field(scale=0.7), graph_of(rattled(ethanol(), 1, seed=1)[0])
    network = model.potential
    (x,) = network.hidden((model.features(graph).unsqueeze(1),))
    (energies,) = network.energy((torch.nn.functional.silu(x),))
    prediction = model(graph).energies - model.reference_energies[model.species_of(graph.numbers)]
    ratio = prediction / energies.flatten()
    torch.testing.assert_close(ratio, ratio[:1].expand(9), rtol=1e-9, atol=0)


def test_equal_environments_have_equal_features() -> None:
    """The mirror images of staggered ethanol's hydrogens, and no others: to 1e-6 of a network with reflections."""
    atoms = ethanol()
    features = tiny_force_field().features(graph_of(atoms)).numpy()
    across = [
        (i, j)
        for i in range(9)
        for j in range(i)
        if atoms.numbers[i] == atoms.numbers[j]
        and np.allclose(atoms.positions[i] * [1, 1, -1], atoms.positions[j], atol=1e-6)
    ]
    assert len(across) == 2
    for i in range(9):
        for j in range(i):
            assert np.allclose(features[i], features[j], atol=1e-6) == ((i, j) in across)


def test_a_network_without_features_says_so() -> None:
    """One of the user's own, or a compiled one."""
    with pytest.raises(ValueError, match=r"`SmoothLennardJones` has no features: use the model file that a compiled"):
        lj_force_field().features(graph_of(cluster()))
