"""The Equiformer: its published size, its presets, its two ways of summing over edges, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from ase import Atoms
from torch import Tensor

from mdrelax.potentials import POTENTIALS, PRESETS, build_potential, preset
from mdrelax.potentials.adjacency import _common_number, make_adjacency
from mdrelax.structures.graph import Edges
from molecules import batch_of, ethanol, graph_of, normal, rattled, tiny_equiformer, tiny_force_field, water

PUBLISHED = 3_496_001  # parameters of the published MD17 network with 64 species, as counted by running it
# What ours leaves out (difference 2 of the module):
ALWAYS_ZERO = 73_280  # degree embedding: paths from the l > 0 channels of a vector of ones that has none
REPEATED = 6_144  # path weights before a mixing matrix, biases on embeddings


def _radial(n_weights: int, n_basis: int = 32, hidden: int = 64) -> int:
    """linear - norm - linear - norm - linear, each norm and linear with biases."""
    return (n_basis * hidden + hidden) + 2 * hidden + (hidden * hidden + hidden) + 2 * hidden + (hidden + 1) * n_weights


def _paths(degree_in: int, degree_out: int, lmax: int = 2) -> int:
    """Degrees of the harmonics that couple two irreps (SE(3): parity forbids nothing)."""
    return sum(abs(degree_in - degree_out) <= degree <= degree_in + degree_out for degree in range(lmax + 1))


def _block(channels: list[int], features: int | None) -> int:
    """One block: attention, feed-forward network, two norms, its radial network; ``features`` for the last one."""
    degrees = range(len(channels))
    scalars, gates = channels[0], sum(channels[1:])
    square = sum(c * c for c in channels)
    norm = sum(channels) + scalars  # a weight a channel, a bias a scalar
    # Tensor products, mixed to the message (logits' scalars, values' scalars, gates) and to the value.
    into = [sum(_paths(i, o) * channels[i] for i in degrees) for o in degrees]
    message_scalars = scalars + scalars + gates
    message = into[0] * message_scalars + sum(into[o] * channels[o] for o in degrees[1:]) + message_scalars
    value = sum(into[o] * channels[o] for o in degrees) + scalars
    projections = square + scalars + square + square + scalars  # source and out with biases, target without
    attention = projections + message + scalars + value  # the logits' vectors: one number a scalar
    radial = _radial(sum(into))
    # Feed-forward network: three times the channels, and gates for those of l > 0.
    middle = [3 * c for c in channels]
    up_scalars = sum(middle)
    up = scalars * up_scalars + up_scalars + sum(c * m for c, m in zip(channels[1:], middle[1:], strict=True))
    if features is None:
        down, shortcut = sum(m * c for m, c in zip(middle, channels, strict=True)) + scalars, 0
    else:
        down, shortcut = middle[0] * features + features, scalars * features + features
    return 2 * norm + attention + radial + up + down + shortcut


def test_md17_has_the_published_number_of_parameters() -> None:
    """Layer by layer for 128x0e+64x1e+32x2e, and in total what the published network has less what ours leaves out."""
    channels, features, n_species = [128, 64, 32], 512, 64
    embedding = n_species * channels[0]
    degree = _radial(len(channels) * channels[0]) + channels[0] * sum(channels) + channels[0]
    read_out = 2 * features + (features * features + features) + (features + 1)
    expected = embedding + degree + 5 * _block(channels, None) + _block(channels, features) + read_out

    network = build_potential("equiformer", n_species, preset("equiformer", "md17"))
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert expected == PUBLISHED - ALWAYS_ZERO - REPEATED


@pytest.mark.parametrize(("name", "symmetry"), [("tiny", "E(3)"), ("small", "E(3)"), ("md17", "SE(3)")])
def test_presets_build_and_run(name: str, symmetry: str) -> None:
    """Each preset gives finite energies and says its symmetry."""
    network = build_potential("equiformer", 3, preset("equiformer", name))
    graph = graph_of(water())
    energies = network(torch.tensor([2, 0, 0]), Edges(graph.edge_index, normal(6, 3, seed=0).float()))
    assert network.symmetry == symmetry
    assert energies.shape == (3,)
    assert energies.isfinite().all()


def test_every_preset_is_of_a_potential() -> None:
    """The table of presets and that of potentials have the same names, and asking for one hands out a copy."""
    assert PRESETS.keys() == POTENTIALS.keys()
    preset("equiformer", "tiny")["n_blocks"] = 100
    assert preset("equiformer", "tiny")["n_blocks"] == 2


@pytest.mark.parametrize(
    ("irreps", "symmetry"),
    [("8x0e", "E(3)"), ("8x0e+4x1e", "SE(3)"), ("8x0e+4x2e", "SE(3)"), ("8x0e+4x1o", "E(3)"), ("8x0e+4x0o", "E(3)")],
)
def test_the_claimed_symmetry_follows_from_the_parities(irreps: str, symmetry: str) -> None:
    """All parities even with l > 0 ignores reflections; everything else keeps them."""
    assert tiny_equiformer(irreps).symmetry == symmetry


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"cutoff": 0.0}, "`cutoff` must be a finite number > 0, got 0.0"),
        ({"cutoff": math.nan}, "`cutoff` must be a finite number > 0, got nan"),
        ({"cutoff": math.inf}, "`cutoff` must be a finite number > 0, got inf"),
        ({"average_neighbors": 0.0}, "`average_neighbors` must be a finite number > 0"),
        ({"n_blocks": 0}, "`n_blocks` must be at least 1, got 0"),
        ({"n_heads": 0}, "`n_heads` must be at least 1, got 0"),
        ({"n_basis": 0}, "`n_basis` must be at least 1"),
        ({"lmax_edge": -1}, "at least 0, got -1"),
        ({"irreps": "6x0e+4x1o"}, "must be a positive multiple of n_heads=4, got 6x0e"),
        ({"irreps": "8x0e+0x1o"}, "must be a positive multiple of n_heads=4"),
        ({"irreps": "4x1o+8x0e"}, "must begin with the invariant scalars"),
        ({"irreps": "8x0o+4x1o"}, "must begin with the invariant scalars"),
        ({"irreps": ""}, "must begin with the invariant scalars"),
        ({"irreps": "4x0e+4x0e"}, "Each irrep may appear once"),
        ({"irreps": "8x0"}, r"`irreps` must be irreps, each with degree and parity .*, got `8x0`\."),
        ({"irreps": "40000000000x0e"}, "Each multiplicity of `irreps` must be at most 10,000, got 40,000,000,000"),
        ({"irreps": "8x0e+4x13e"}, "The largest degree in `irreps` may be 12, got 13"),
        ({"lmax_edge": 13}, "The largest degree in `lmax_edge` may be 12, got 13"),
        ({"n_features": 10**9}, "`n_features` must be at most 10,000, got 1,000,000,000"),
        ({"radial_basis": "gauss"}, "must be one of \\['bessel', 'expnormal'\\], got 'gauss'"),
        ({"n_layers": 3}, "cannot be built: .*n_layers"),
    ],
)
def test_impossible_arguments_are_refused_with_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    """The error names the argument, its range and the value."""
    with pytest.raises(ValueError, match=sentence):
        build_potential("equiformer", 3, preset("equiformer", "tiny") | arguments)


def test_unknown_names_lead_to_the_nearest_known_one() -> None:
    """A misspelt potential or preset is an error that says what was meant."""
    with pytest.raises(ValueError, match="equiformer"):
        build_potential("equifomer", 3, {})
    with pytest.raises(ValueError, match="small"):
        preset("equiformer", "smal")


def test_both_ways_of_summing_over_edges_agree() -> None:
    """An atom-by-degree table where all atoms have the same number of sorted edges, scattered sums elsewhere."""
    molecule = rattled(ethanol(), 1, seed=0)[0]
    alone, batch = graph_of(molecule), batch_of(molecule, water())
    degrees = [_common_number(g.edge_index, len(g.numbers)) for g in (alone, batch)]
    assert degrees == [8, 0]
    model = tiny_force_field()
    fast, general = model(alone), model(batch)
    torch.testing.assert_close(general.energy[:1], fast.energy, rtol=0, atol=1e-12)
    torch.testing.assert_close(general.forces[:9], fast.forces, rtol=0, atol=1e-12)


def test_each_edge_operation_agrees_on_both_ways() -> None:
    """Sum, hand-out and maximum (at least 0) by table and by index; the sum rounds in another order."""
    targets = torch.arange(5).repeat_interleave(3)
    table = make_adjacency(torch.stack([targets.flip(0), targets]), 5, normal(15, seed=0))
    scattered = table._replace(edges_per_atom=0)
    assert table.edges_per_atom == 3
    per_edge, per_atom = normal(15, 4, seed=1), normal(5, 2, 3, seed=2)
    torch.testing.assert_close(table.sum_at_target(per_edge), scattered.sum_at_target(per_edge), rtol=0, atol=1e-14)
    assert torch.equal(table.at_target(per_atom), scattered.at_target(per_atom))
    assert torch.equal(table.max_at_target(per_edge), scattered.max_at_target(per_edge))
    assert table.max_at_target(-per_edge.abs()).eq(0).all()


@pytest.mark.parametrize(
    ("targets", "n_atoms", "degree"),
    [
        ([0, 0, 1, 1], 2, 2),
        ([0, 1, 0, 1], 2, 0),  # not sorted
        ([0, 0, 0, 1], 2, 0),  # as many edges as atoms allow, unevenly spread
        ([0, 0, 1], 2, 0),
        ([0, 0, 1, 1], 3, 0),  # the third atom has none
        ([], 2, 0),
        ([], 0, 0),
    ],
)
def test_the_table_is_used_only_where_it_is_right(targets: list[int], n_atoms: int, degree: int) -> None:
    """The common degree of sorted targets, else 0."""
    edges = torch.tensor([targets, targets], dtype=torch.int64)
    assert _common_number(edges, n_atoms) == degree


def test_attention_weights_are_a_softmax_with_a_null_neighbour() -> None:
    """alpha_j = f_j exp(a_j) / (1 + sum_k f_k exp(a_k)), even for logits that overflow exp."""
    attention = tiny_equiformer(n_heads=1).blocks[0].attention
    edges = make_adjacency(torch.tensor([[1, 2, 0], [0, 0, 1]]), 3, torch.tensor([0.9, 0.3, 0.7]).double())
    for size in (1.0, 2000.0):
        scalars = size * normal(3, 1, attention.n_logit_scalars, seed=3)
        z = scalars[:, 0]
        activated = 0.2 * z + 0.8 * z * torch.sigmoid(z)
        logits = (activated * attention.logit).sum(1).detach()
        weights = attention._softmax(scalars, edges).flatten().detach()
        torch.testing.assert_close(weights, _softmax(logits, edges.envelope[:, 0], [0, 0, 1]), rtol=1e-10, atol=1e-300)


def _softmax(logits: Tensor, envelope: Tensor, targets: list[int]) -> Tensor:
    """By logarithms, one atom at a time."""
    found = []
    for logit, f, target in zip(logits, envelope, targets, strict=True):
        near = [k for k, other in enumerate(targets) if other == target]
        terms = torch.cat([torch.zeros(1).double(), logits[near] + envelope[near].log()])  # the null neighbour first
        found.append(torch.exp(logit + f.log() - torch.logsumexp(terms, 0)))
    return torch.stack(found)


def test_elements_are_told_apart() -> None:
    """Another element at the same place changes the energy of every atom in reach."""
    model, molecule = tiny_force_field(), water()
    other = Atoms("CHH", molecule.positions)
    change = model(graph_of(molecule)).energies - model(graph_of(other)).energies
    assert (change.abs() > 1e-6).all()
