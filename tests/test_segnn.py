"""SEGNN: the published network to the last parameter, exactly equivariant before relaxation and after projection.

The potential's own laws are in test_potentials.py. Everything is float64.
"""

import pytest
import torch
from e3nn import o3
from torch import Tensor

from mdrelax.analysis.benchmarks.segnn_e3nn import E3nnNBodySEGNN
from mdrelax.method.penalty import record_inputs
from mdrelax.method.projection import project
from mdrelax.method.relaxation import relax_constraints, relaxed_layers, set_theta
from mdrelax.packs.nbody.networks import NBodySEGNN
from mdrelax.packs.nbody.task import Systems, displacement_error
from mdrelax.potentials.segnn import SEGNNPotential
from molecules import normal

LIMIT = 1e-9  # of the issue; rounding gives 1e-15
# Dynamo itself makes an instance of each autograd function it meets
MEETS_AUTOGRAD_FUNCTIONS = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def network(**arguments: int) -> NBodySEGNN:
    """An N-body network with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NBodySEGNN(**arguments).double()


def systems(n_systems: int = 6, n_particles: int = 5) -> Systems:
    """Random systems of charged particles."""
    x, v, d = (normal(n_systems, n_particles, 3, seed=k) for k in range(3))
    return Systems(x, v, normal(n_systems, n_particles, seed=3).sign(), d)


def displacements(model: torch.nn.Module, s: Systems) -> Tensor:
    """What a network predicts."""
    return model(s.positions, s.velocities, s.charges)


def test_the_published_network_has_147424_parameters_and_196608_relaxed_ones():
    """Hidden 32x0e+32x1o, four layers; W beside both products of each node update, 256 x 128 and 128 x 128."""
    model = network()
    assert sum(p.numel() for p in model.parameters()) == 147_424
    assert len((placed := relax_constraints(model)).names) == 8
    assert placed.n_free == sum(layer.free.weight.numel() for layer in relaxed_layers(model).values()) == 196_608


def test_the_standard_network_is_equivariant_below_1e_9():
    """Rotations, reflections, translations and permutations."""
    assert displacement_error(network(), systems()).worst(reflections=True) < LIMIT


@pytest.mark.parametrize("how", ["drop", "fold"])
def test_the_projected_network_is_equivariant_below_1e_9_and_the_relaxed_one_is_not(how):
    """With free maps of size 0.1 rotations break at theta > 0, translations and permutations never do."""
    model, s = network(), systems()
    keys = model.state_dict().keys()
    relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    set_theta(model, 0.7)
    relaxed = displacement_error(model, s)
    assert min(relaxed.rotation, relaxed.reflection) > 1e-2
    assert max(relaxed.translation, relaxed.permutation) < LIMIT
    records = project(model, how=how)
    assert displacement_error(model, s).worst(reflections=True) < LIMIT
    assert model.state_dict().keys() == keys
    assert [r.how for r in records] == ["dropped", "folded" if how == "fold" else "dropped"] * 4  # U1 has a gate


def test_fold_is_nearer_to_the_relaxed_network_than_drop():
    """Over random rotations of the input, which average what no equivariant network can follow."""
    s, distances = systems(200), {}
    for how in ("drop", "fold"):
        model = network()
        relax_constraints(
            model, where=["layers.*.update_2"], initial_std=0.05, generator=torch.Generator().manual_seed(0)
        )
        before = displacements(model, s)
        project(model, how=how)
        distances[how] = (displacements(model, s) - before).square().mean().item()
    assert distances["fold"] < distances["drop"]


def test_the_published_centring_is_not_equivariant():
    """The release takes ``pos.mean(1)`` of (particles, 3): the mean of x, y and z, not of the particles of a system."""

    class Published(torch.nn.Module):
        """Centred over the wrong axis: positions moved by the mean of their own coordinates, then as ours."""

        def __init__(self) -> None:
            super().__init__()
            self.right = network()

        def forward(self, positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
            embedding, wrong = self.right.segnn.embedding.forward, positions - positions.mean(2, keepdim=True)
            centred = (positions - positions.mean(1, keepdim=True)).flatten(0, 1)

            def as_published(x: tuple[Tensor, Tensor], attribute: object) -> object:
                assert torch.equal(x[1][:, :, 0], centred)
                return embedding((x[0], torch.stack([wrong.flatten(0, 1), x[1][:, :, 1]], 2)), attribute)

            self.right.segnn.embedding.forward = as_published
            try:
                return self.right(positions, velocities, charges)
            finally:
                self.right.segnn.embedding.forward = embedding

    ours, published = (displacement_error(model, systems()) for model in (network(), Published()))
    assert ours.rotation < LIMIT
    assert published.rotation > 0.1
    assert published.translation > 0.1


def test_the_fast_network_is_its_plain_e3nn_form():
    """Flat irreps, FullyConnectedTensorProduct and Gate of e3nn with the same weights: the same displacements."""
    model, s = network(), systems()
    for k, parameter in enumerate(model.parameters()):
        parameter.data += 0.1 * normal(*parameter.shape, seed=k)
    plain = E3nnNBodySEGNN.from_fast(model)
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters())
    expected = displacements(plain, s).detach()
    torch.testing.assert_close(displacements(model, s), expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_gradients_agree_with_the_plain_e3nn_form():
    """The gradient of a loss with respect to positions, through both networks."""
    model = network()
    plain, s, found = E3nnNBodySEGNN.from_fast(model), systems(), []
    for each in (model, plain):
        x = s.positions.clone().requires_grad_()
        loss = (displacements(each, s._replace(positions=x)) - s.displacements).square().mean()
        found.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12 * float(found[1].abs().max()))


@pytest.mark.parametrize("n_particles", [2, 3, 7])
def test_systems_of_other_sizes_are_equivariant_too(n_particles):
    """Two particles to seven."""
    model = network(n_layers=2)
    assert displacement_error(model, systems(3, n_particles)).worst(reflections=True) < LIMIT


def test_systems_in_a_batch_do_not_see_each_other():
    """A batch is its systems one by one."""
    model, s = network(n_layers=2), systems()
    alone = torch.cat([displacements(model, s.take(slice(k, k + 1))) for k in range(6)])
    torch.testing.assert_close(displacements(model, s), alone, rtol=1e-12, atol=1e-14)


def test_particles_at_rest_give_finite_predictions_and_gradients():
    """A velocity of zero has no direction; its harmonics of degree 1 count as zero."""
    model, s = network(n_layers=1), systems()
    s.velocities[0] = 0
    loss = displacements(model, s).square().mean()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(model.parameters())))


def test_higher_degrees_are_equivariant():
    """Features and attributes up to l = 2."""
    model = network(lmax=2, lmax_attribute=2, n_layers=2, channels=8)
    assert displacement_error(model, systems()).worst(reflections=True) < LIMIT
    assert model.segnn.layers[0].update_2.irreps_out == o3.Irreps("8x0e+8x1o+8x2e")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lmax": 2, "lmax_attribute": 1}, r"`lmax` must lie in \[0, lmax_attribute\], got 2 and 1"),
        ({"channels": 0}, "`channels` must be at least 1, got 0"),
        ({"channels": 10**9}, "`channels` must be at most 10,000, got 1,000,000,000"),
        ({"lmax_attribute": 13}, "The largest degree in `lmax_attribute` may be 12, got 13"),
        ({"norm": "instance"}, "`norm` must be none, joint or separable, got 'instance'"),
        ({"cutoff": -1.0}, "`cutoff` must be a finite number > 0, got -1.0"),
        ({"n_basis": 0}, "`n_basis` must be at least 1, got 0"),
    ],
)
def test_impossible_arguments_are_sentences(arguments, message):
    """The value, the range."""
    with pytest.raises(ValueError, match=message):
        SEGNNPotential(2, **arguments)


@MEETS_AUTOGRAD_FUNCTIONS
def test_torch_can_record_the_relaxed_network_whole():
    """One graph without a break, with eager's numbers and gradients; the slow test beside this one compiles it."""
    torch._dynamo.reset()
    eager, s = network(n_layers=1, channels=4), systems()
    relax_constraints(eager, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    recorded = torch.compile(eager, fullgraph=True, backend="eager")
    found, expected = displacements(recorded, s), displacements(eager, s)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weights = [p for p in eager.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(d.square().sum(), weights) for d in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@MEETS_AUTOGRAD_FUNCTIONS
def test_the_compiled_relaxed_network_follows_theta_without_a_new_compilation():
    """torch.compile gives eager's numbers at every theta, the free maps' inputs included (needs a C++ compiler)."""
    torch._dynamo.reset()
    eager, s = network(n_layers=1, channels=8), systems()
    relax_constraints(eager, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(eager, dynamic=False, fullgraph=True)
    for theta in (0.0, 0.25, 1.0):
        set_theta(eager, theta)
        with record_inputs(eager) as inputs:
            found = displacements(compiled, s)
        with record_inputs(eager) as wanted:
            expected = displacements(eager, s)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        for name, calls in wanted.items():
            torch.testing.assert_close(inputs[name], calls, rtol=1e-10, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
