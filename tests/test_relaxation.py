"""The relaxed layer: where it is put, what theta does, and which symmetries survive it."""

from collections.abc import Callable

import pytest
import torch
from ase import Atoms
from e3nn import o3
from torch import Tensor, nn

from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.symmetry import equivariance_error
from mdrelax.method.penalty import penalty, record_inputs
from mdrelax.method.relaxation import INITIAL_STD, Relaxed, is_relaxed, relax_constraints, relaxed_layers, set_theta
from mdrelax.method.sites import relaxable_sites
from mdrelax.structures.graph import Graph
from molecules import batch_of, ethanol, graph_of, normal, rattled, tiny_force_field, water

EVERY = ["potential.blocks.0.feed_forward", "potential.blocks.1.feed_forward", "potential.blocks.2.feed_forward"]
SITES = EVERY[:-1]  # the default: what the last block makes are scalars


def network() -> ForceField:
    """Three blocks, of which the middle one is neither first nor last."""
    return tiny_force_field(n_blocks=3)


def relaxed_network(initial_std: float = 0.1) -> ForceField:
    """The same network with free maps in every block, large enough to be seen."""
    model = network()
    relax_constraints(model, where=EVERY, initial_std=initial_std, generator=torch.Generator().manual_seed(0))
    return model


def structures() -> Graph:
    """Two ethanols and a water in one batch."""
    return batch_of(*rattled(ethanol(), 2, seed=0), *rattled(water(), 1, seed=1))


def outputs(model: ForceField) -> Tensor:
    """Energies and forces in one vector."""
    prediction = model(structures(), stress=True)
    return torch.cat([prediction.energy, prediction.energies, prediction.forces.flatten()])


def set_gammas(model: nn.Module, theta: float) -> None:
    """theta as a controller sets it: a leaf scalar of each layer, and a number where it is 0 for good."""
    for layer in relaxed_layers(model).values():
        layer.control(torch.tensor(theta, dtype=torch.float64, requires_grad=True))
        if theta == 0:
            layer.set_theta(0.0)


SetTheta = Callable[[nn.Module, float], None]
each_way = pytest.mark.parametrize("set_any", [set_theta, set_gammas])


class Vectors(nn.Module):
    """A small e3nn network: two linear maps of irreps around a norm activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = o3.Linear("3x0e+2x1o", "4x0e+3x1o")
        self.second = o3.Linear("4x0e+3x1o", "1x0e+2x1o")

    def forward(self, x: Tensor) -> Tensor:
        """(..., 9) to (..., 7)."""
        hidden = self.first(x)
        return self.second(hidden * hidden.square().sum(-1, keepdim=True).tanh())


def vectors() -> Vectors:
    """The e3nn network in float64 with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Vectors().double()


# --- where -----------------------------------------------------------------------------------------------------------


def test_the_default_is_the_papers_place_but_in_the_last_block():
    """In the Equiformer: beside the feed-forward networks, W from a normal of standard deviation 1e-4."""
    model = network()
    assert relax_constraints(model, generator=torch.Generator().manual_seed(0)).names == SITES
    layers = relaxed_layers(model)
    assert list(layers) == SITES
    dim = o3.Irreps("8x0e+4x1o+4x2e").dim
    assert [tuple(layer.free.weight.shape) for layer in layers.values()] == [(dim, dim), (dim, dim)]
    assert layers[SITES[0]].free.weight.std().item() == pytest.approx(INITIAL_STD, rel=0.1)  # 1600 numbers: 2 %
    assert all(layer.free.weight.dtype == torch.float64 for layer in layers.values())


def test_a_network_of_one_block_is_relaxed_there():
    """There is no other place, and the free map reads what the block would else not compute."""
    model = tiny_force_field(n_blocks=1)
    assert relax_constraints(model).names == [EVERY[0]]
    outputs(model)


def test_the_default_of_an_e3nn_network_is_every_linear():
    """Any module of e3nn's linear maps can be relaxed; e3nn keeps channels first."""
    model = vectors()
    assert relax_constraints(model).names == ["first", "second"]
    assert model.first.free.source.layout == "mul_ir"  # type: ignore[union-attr]


def test_patterns_choose_among_the_sites():
    """`where` takes shell patterns, from the model's root or from any depth."""
    for pattern in ("blocks.1.*.source", "potential.blocks.1.attention.source", "*1.attention.s*"):
        assert relax_constraints(network(), where=[pattern]).names == ["potential.blocks.1.attention.source"]


def test_places_between_invariant_scalars_are_left_out_and_named():
    """Every map of them is equivariant, so there is nothing to relax; who wants it all the same says so."""

    def build() -> nn.Module:
        return nn.Sequential(o3.Linear("2x0e+1x1o", "3x0e"), o3.Linear("3x0e", "2x0e"), o3.Linear("2x0o", "1x0o"))

    placed = relax_constraints(build())
    assert placed.names == ["0", "2"]  # odd scalars change sign under the inversion
    assert placed.left_out == ["1"]
    assert (placed.n_free, placed.n_parameters) == (3 * 5 + 1 * 2, 3 * 2 + 3 * 2 + 2)
    assert str(placed).splitlines() == [
        "Relaxed 0, 2: 17 free parameters next to the network's 14.",
        "Left out 1: every map between invariant scalars is equivariant. Name them in `where` to relax them anyway.",
    ]
    model, x = build(), torch.ones(1, 5)
    assert relax_constraints(model, where=["1"], initial_std=1.0) == (["1"], [], 6, 14)
    scalars = model[0](x)
    torch.testing.assert_close(model[1](scalars) - model[1].layer(scalars), scalars @ model[1].free.weight.T)
    assert penalty(model, kind="weight").item() == pytest.approx(model[1].free.weight.norm().item(), abs=1e-6)  # LD = 0
    with pytest.raises(ValueError, match=r"no other place in this model. Left out 0, 1: every map"):
        relax_constraints(nn.Sequential(o3.Linear("2x0e", "3x0e"), o3.Linear("3x0e", "1x0e")))


def test_sites_are_layers_with_weights_below_the_model():
    """What has nothing to learn (tables of couplings) and the model itself, which has no parent, are no sites."""
    assert "potential.basis" not in relaxable_sites(network())
    linear = o3.Linear("2x0e+1x1o", "2x0e+1x1o")
    assert relaxable_sites(linear) == {}
    with pytest.raises(ValueError, match="none can be relaxed"):
        relax_constraints(linear)


def test_a_misspelt_place_names_the_nearest():
    """The MD17 release lost theta to a misspelt keyword; here both a keyword and a place raise."""
    with pytest.raises(ValueError, match=r"did you mean `potential\.blocks\.0\.feed_forward`\?"):
        relax_constraints(network(), where=["blocks.0.feedforward"])
    with pytest.raises(TypeError, match="initial_sdt"):
        relax_constraints(network(), initial_sdt=0.1)  # type: ignore[call-arg]


def test_a_layer_and_its_part_are_not_relaxed_both():
    """Two free maps around one layer would be one too many; nothing is changed by the refused call."""
    model = network()
    with pytest.raises(ValueError, match="lie inside layers that are chosen too"):
        relax_constraints(model, where=["blocks.0.feed_forward", "blocks.0.feed_forward.up"])
    assert not is_relaxed(model)


def test_a_model_is_relaxed_once():
    """A second relaxation would hide the first one's maps inside its own."""
    with pytest.raises(ValueError, match="relaxed already"):
        relax_constraints(relaxed_network())


def test_free_maps_come_from_the_generator():
    """The same generator gives the same W, and the global one is neither used nor moved."""
    state = torch.get_rng_state()
    first, again = relaxed_network(), relaxed_network()
    for a, b in zip(relaxed_layers(first).values(), relaxed_layers(again).values(), strict=True):
        assert torch.equal(a.free.weight, b.free.weight)
    assert torch.equal(torch.get_rng_state(), state)


# --- law 2: what theta does ------------------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_theta_zero_is_the_unrelaxed_network_bit_for_bit(dtype: torch.dtype, set_any: SetTheta):
    """Energies and forces are the same numbers, not nearly the same; in training mode too."""
    expected = outputs(network().to_dtype(dtype))
    model = relaxed_network().to_dtype(dtype)
    set_any(model, 0.0)
    assert torch.equal(outputs(model.eval()), expected)
    assert torch.equal(outputs(model.train()), expected)


def test_free_maps_are_not_even_read_at_theta_zero():
    """0 times infinity is NaN: a free map that exploded cannot hurt the network that is left at theta = 0."""
    model, expected = relaxed_network(), outputs(network())
    for layer in relaxed_layers(model).values():
        nn.init.constant_(layer.free.weight, float("inf"))
    set_theta(model, 0.0)
    assert torch.equal(outputs(model), expected)


def test_theta_one_is_another_network():
    """And so is any theta between; a new relaxation starts at 1."""
    model, plain = relaxed_network(), outputs(network())
    distances = []
    for theta in (None, 1.0, 0.5, 0.01):
        if theta is not None:
            set_theta(model, theta)
        distances.append((outputs(model) - plain).abs().max().item())
    assert distances[0] == distances[1] > 0.1
    assert min(distances) > 1e-4


@each_way
@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
def test_an_e3nn_linear_gains_theta_times_w(theta: float, set_any: SetTheta):
    """f(x) = f_e(x) + theta W x on flat vectors with any leading dimensions."""
    model, x = vectors(), normal(4, 2, 9, seed=1)
    expected = model.first(x)
    relax_constraints(model, initial_std=1.0, generator=torch.Generator().manual_seed(0))
    set_any(model, theta)
    layer = relaxed_layers(model)["first"]
    torch.testing.assert_close(layer(x), expected + theta * x @ layer.free.weight.T, atol=1e-12, rtol=0)


def test_features_per_irrep_gain_theta_times_w():
    """A tuple of (N, D, C) is flattened block by block, D before C, W is applied, and the result is cut up again."""
    layer = relaxed_layers(relaxed_network())[SITES[0]]
    x = tuple(normal(5, dim, mul, seed=dim) for dim, mul in ((1, 8), (3, 4), (5, 4)))
    flat = torch.cat([block.reshape(5, -1) for block in x], dim=1)
    layer.theta = 0.5
    free = [relaxed - plain for relaxed, plain in zip(layer(x), layer.layer(x), strict=True)]
    flat_free = torch.cat([block.reshape(5, -1) for block in free], dim=1)
    torch.testing.assert_close(flat_free, 0.5 * flat @ layer.free.weight.T, atol=1e-12, rtol=0)


def test_a_graph_without_atoms_passes_the_free_maps():
    """No atoms, no rows: an energy of zero, relaxed or not, and a penalty of zero."""
    model, nothing = relaxed_network().train(), graph_of(Atoms())
    with record_inputs(model) as inputs:
        assert model(nothing).energy.tolist() == network()(nothing).energy.tolist() == [0.0]
    assert penalty(model, inputs) == 0


@pytest.mark.parametrize("theta", [-0.1, 1.1, float("nan")])
def test_theta_outside_its_range_is_refused(theta: float):
    """theta lies in [0, 1]."""
    with pytest.raises(ValueError, match=r"`theta` must lie in \[0, 1\]"):
        set_theta(relaxed_network(), theta)


def test_theta_of_a_model_without_free_maps_is_refused():
    """Setting theta where nothing listens is the MD17 release's mistake."""
    with pytest.raises(ValueError, match="No layer of the model is relaxed"):
        set_theta(network(), 0.5)


# --- law 3: theta reaches every layer --------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("site", EVERY)
def test_theta_reaches_every_layer(site: str, set_any: SetTheta):
    """Moving one layer's W moves the output when theta > 0, and does not when theta = 0."""
    model = relaxed_network()
    for theta in (0.7, 0.0):
        set_any(model, theta)
        before = outputs(model)
        with torch.no_grad():
            relaxed_layers(model)[site].free.weight.add_(0.1)
        assert torch.equal(outputs(model), before) == (theta == 0)


def test_every_layer_has_the_theta_that_was_set():
    """One number is shared by the network."""
    model = relaxed_network()
    set_theta(model, 0.25)
    assert [layer.theta for layer in relaxed_layers(model).values()] == [0.25] * 3


# --- law 4: what the relaxation does not break -----------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("theta", [0.0, 0.3, 1.0])
def test_translations_and_permutations_stay_exact_at_every_theta(theta: float, set_any: SetTheta):
    """W acts on the layer's own features, atom by atom; only the rotations are given up, and those when theta > 0.

    1e-11 of what is summed: rounding of positions moved by 10 A.
    """
    model = relaxed_network()
    set_any(model, theta)
    error = equivariance_error(model, structures(), n_operations=2)
    assert error.translation < 1e-11
    assert error.permutation < 1e-11
    assert (error.rotation > 1e-3) == (error.reflection > 1e-3) == (theta > 0)


def test_the_net_force_is_zero_with_the_relaxation_on():
    """The MD17 release's branch on absolute positions pushed whole molecules; ours sees edge vectors only."""
    forces = relaxed_network()(graph_of(rattled(ethanol(), 1, seed=0)[0])).forces
    assert forces.sum(0).abs().max() < 1e-12 * forces.abs().max() * len(forces)


# --- bookkeeping -----------------------------------------------------------------------------------------------------


def test_inputs_are_recorded_explicitly_and_without_their_history():
    """What the penalty sees is detached; outside the ``with`` statement no features are kept alive."""
    model = relaxed_network().train()
    with record_inputs(model) as inputs:
        model(structures(), create_graph=True)
    model(structures())
    assert [len(calls) for calls in inputs.values()] == [1, 1, 1]
    assert all(x.shape == (21, 40) and not x.requires_grad for (x,) in inputs.values())


def test_the_free_map_takes_the_layers_dtype_and_mode():
    """Relaxing a float32 network in evaluation mode gives float32 maps in evaluation mode."""
    model = network().to_dtype(torch.float32).eval()
    relax_constraints(model)
    assert all(
        layer.free.weight.dtype == torch.float32 and not layer.training for layer in relaxed_layers(model).values()
    )


def test_a_relaxed_layer_is_found_anywhere():
    """`is_relaxed` looks into containers."""
    linear = o3.Linear("2x1o", "2x1o")
    model = nn.Sequential(nn.ModuleDict({"a": nn.Sequential(linear)}))
    assert not is_relaxed(model)
    assert relax_constraints(model).names == ["0.a.0"]
    assert isinstance(model[0]["a"][0], Relaxed)  # type: ignore[index]
