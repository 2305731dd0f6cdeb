"""Projection gives back the network that was there, or with `fold` the nearest equivariant one."""

import math

import pytest
import torch
from e3nn import o3
from e3nn.util.test import equivariance_error as e3nn_error
from torch import Tensor, nn

from haar import haar_average
from mdrelax.method.free_maps import FreeLinear
from mdrelax.method.groups import cyclic_regular
from mdrelax.method.projection import project, projected_copy
from mdrelax.method.relaxation import Relaxed, is_relaxed, relax_constraints, relaxed_layers, set_theta
from molecules import batch_of, ethanol, normal, rattled, tiny_force_field

FEATURES = "3x0e+2x1o+1x1e"
EVERYWHERE = ["*.attention.source", "*.attention.out", "*.feed_forward", "*.shortcut", "potential.hidden"]


def relax(model: nn.Module, theta: float, where: list[str] | None = None) -> None:
    """Free maps of order 0.1, seeded, with the given theta."""
    relax_constraints(model, where=where, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    set_theta(model, theta)


def outputs(model: nn.Module) -> Tensor:
    """Energies and forces of two ethanols in one vector."""
    prediction = model(batch_of(*rattled(ethanol(), 2, seed=0)))
    return torch.cat([prediction.energy, prediction.forces.flatten()])


def linear(**options: object) -> nn.Sequential:
    """One e3nn linear map in a container, float64, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(o3.Linear(FEATURES, "2x1o+1x0e+1x1e", **options)).double()


def matrix(model: nn.Module, dim: int = o3.Irreps(FEATURES).dim) -> Tensor:
    """The matrix of a linear map of row vectors without bias, (dim_out, dim_in)."""
    return model(torch.eye(dim, dtype=torch.float64)).T.detach()


# --- law 8: the same network again -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [None, EVERYWHERE], ids=["default", "everywhere"])
def test_dropping_gives_back_the_very_network(where: list[str] | None):
    """The same modules (so the same classes and speed), parameters and state-dict keys, in the same order."""
    model = tiny_force_field()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    energies = outputs(model)
    relax(model, 1.0, where)
    assert list(model.state_dict()) != list(state)
    assert not torch.equal(outputs(model), energies)
    project(model)
    assert [(name, id(m)) for name, m in model.named_modules()] == [(name, id(m)) for name, m in modules.items()]
    assert [(n, id(p)) for n, p in model.named_parameters()] == [(n, id(p)) for n, p in parameters.items()]
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(outputs(model), energies)


def test_folding_keeps_modules_and_names_too():
    """Only the values of the weights that take up P(W) are other ones."""
    model = tiny_force_field()
    modules, state = dict(model.named_modules()), {k: v.clone() for k, v in model.state_dict().items()}
    relax(model, 1.0, EVERYWHERE)
    records = project(model, how="fold")
    assert [(name, id(m)) for name, m in model.named_modules()] == [(name, id(m)) for name, m in modules.items()]
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    folded = {record.name for record in records if record.how == "folded"}
    assert {key.rpartition(".weights")[0] for key in changed} == folded
    assert {record.name for record in records} - folded == {f"potential.blocks.{k}.feed_forward" for k in (0, 1)}


def test_keeping_records_and_changes_nothing():
    """The records are those of dropping but for their last word; modules, weights, theta and outputs stay."""
    model = tiny_force_field()
    relax(model, 0.6, EVERYWHERE)
    modules, before = list(model.named_modules()), outputs(model)
    kept = project(model, how="keep")
    assert list(model.named_modules()) == modules
    assert torch.equal(outputs(model), before)
    assert {(record.how, record.theta) for record in kept} == {("kept", 0.6)}
    assert [record._replace(how="dropped") for record in kept] == project(model)


def test_a_copy_is_projected_and_the_model_trains_on():
    """Validation runs on the copy: the model keeps its free maps, its mode and its memory to itself."""
    model = tiny_force_field().train()
    plain = outputs(model)
    relax(model, 0.5)
    model(batch_of(ethanol()), create_graph=True)  # leaves inputs behind
    before = outputs(model)
    twin, records = projected_copy(model)
    assert not is_relaxed(twin)
    assert not twin.training
    assert torch.equal(outputs(twin), plain)
    assert [(record.name, record.theta) for record in records] == [("potential.blocks.0.feed_forward", 0.5)]
    assert is_relaxed(model)
    assert model.training
    assert torch.equal(outputs(model), before)
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_a_copy_is_prepared_before_it_is_projected():
    """The hook sees the relaxed copy, not the model; what it puts into the free maps is what is folded."""
    model = linear()
    relax(model, 1.0)
    plain, before = matrix(projected_copy(model)[0]), matrix(model)

    def fill(twin: nn.Module) -> None:
        assert is_relaxed(twin)
        assert twin is not model
        for layer in relaxed_layers(twin).values():
            layer.free.weight.data.mul_(2.0)

    once, twice = (projected_copy(model, how="fold", prepare=hook)[0] for hook in (lambda twin: None, fill))
    torch.testing.assert_close(matrix(twice) - plain, 2 * (matrix(once) - plain), atol=1e-12, rtol=0)
    assert (matrix(once) - plain).norm() > 0.01
    assert torch.equal(matrix(model), before)


def test_projecting_twice_is_projecting_once():
    """A network without free maps is left as it is."""
    model = tiny_force_field()
    relax(model, 1.0)
    project(model)
    assert project(model) == []


def test_a_misspelt_way_names_the_nearest():
    """`how` is drop or fold, and nothing is projected by the refused call."""
    model = tiny_force_field()
    relax(model, 1.0)
    with pytest.raises(ValueError, match=r"`folding`; did you mean `fold`\?"):
        project(model, how="folding")  # type: ignore[arg-type]
    assert is_relaxed(model)


# --- folding: the nearest equivariant layer --------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.3, 1.0])
def test_a_folded_e3nn_layer_is_the_haar_average_of_the_relaxed_one(theta: float):
    """The mean of the relaxed matrix over O(3), by quadrature with scipy's rotations, is the folded matrix."""
    model = linear()
    relax(model, theta)
    layer = relaxed_layers(model)["0"]
    expected = haar_average(matrix(model), layer.free.output, layer.free.source)  # type: ignore[arg-type]
    (record,) = project(model, how="fold")
    assert record.how == "folded"
    torch.testing.assert_close(matrix(model), expected, atol=1e-11, rtol=0)


def test_a_folded_layer_is_the_best_fit_to_the_relaxed_one():
    """Least squares over the layer's own weights finds no nearer matrix; dropping is farther by ||P(W)||."""
    distances = {}
    for how in ("drop", "fold"):
        model = linear()
        unrelaxed = matrix(model)
        relax(model, 1.0)
        relaxed = matrix(model)
        project(model, how=how)  # type: ignore[arg-type]
        distances[how] = (matrix(model) - relaxed).norm().item()
        (layer,) = model
        weights = torch.eye(layer.weight.numel(), dtype=torch.float64)
        eye = torch.eye(relaxed.shape[1], dtype=torch.float64)
        basis = torch.stack([layer(eye, weight).T.flatten() for weight in weights], dim=1)
    solution = torch.linalg.lstsq(basis, relaxed.flatten()).solution
    nearest = (basis @ solution - relaxed.flatten()).norm().item()
    assert distances["fold"] == pytest.approx(nearest, rel=1e-12)
    part = matrix(model) - unrelaxed  # P(W), with theta = 1; orthogonal to W - P(W)
    assert part.norm() > 0.1
    assert distances["drop"] == pytest.approx(math.hypot(nearest, part.norm()), rel=1e-12)


def test_folding_loses_nothing_of_an_equivariant_map():
    """When training left W equivariant, the folded network gives the relaxed one's energies and forces (to 1e-10)."""
    model = tiny_force_field()
    relax(model, 0.8, ["*.attention.source", "*.attention.out", "potential.hidden"])
    with torch.no_grad():
        for layer in relaxed_layers(model).values():
            layer.free.weight.copy_(haar_average(layer.free.weight, layer.free.output, layer.free.source))  # type: ignore[arg-type]
    expected = outputs(model)
    twin, records = projected_copy(model, how="fold")
    torch.testing.assert_close(outputs(twin), expected, atol=1e-10, rtol=1e-10)
    assert (outputs(projected_copy(model)[0]) - expected).abs().max() > 1e-3
    assert {record.how for record in records} == {"folded"}


def test_folding_at_theta_zero_is_dropping():
    """The map does not act then, so nothing is added."""
    model = linear()
    before = matrix(model)
    relax(model, 0.0)
    assert project(model, how="fold")[0].how == "dropped"
    assert torch.equal(matrix(model), before)


def test_an_e3nn_layer_that_lacks_a_path_is_dropped():
    """With only some of the paths connected, P(W) does not fit into the layer's weights."""
    model = linear(instructions=[(1, 0)])
    before = matrix(model)
    relax(model, 1.0)
    assert project(model, how="fold")[0].how == "dropped"
    assert torch.equal(matrix(model), before)


def test_a_bias_survives_the_fold():
    """e3nn appends its bias to the paths; it is left alone."""
    model = linear(biases=True)
    with torch.no_grad():
        model[0].bias.fill_(0.7)
    bias = model(torch.zeros(1, o3.Irreps(FEATURES).dim).double())
    relax(model, 1.0)
    project(model, how="fold")
    assert torch.equal(model(torch.zeros(1, o3.Irreps(FEATURES).dim).double()), bias)


@pytest.mark.parametrize("how", ["drop", "fold"])
def test_e3nns_own_test_finds_the_projected_layer_equivariant(how: str):
    """e3nn's measure, with reflections: 1e-5 because its Wigner matrices are rounded to float32."""
    model = linear()
    relax(model, 1.0)

    def error() -> float:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            x = normal(5, o3.Irreps(FEATURES).dim, seed=1)
            found = e3nn_error(model, [x], [o3.Irreps(FEATURES)], [o3.Irreps("2x1o+1x0e+1x1e")], ntrials=3)
        return max(value.max().item() for value in found.values())

    assert error() > 0.1
    project(model, how=how)  # type: ignore[arg-type]
    assert error() < 1e-5


# --- what is written down --------------------------------------------------------------------------------------------


def test_the_record_of_a_layer_is_right():
    """||W||, ||W - P(W)|| by quadrature, a bound that is one, and a spectrum that adds up to ||W||^2."""
    model = linear()
    relax(model, 0.6)
    layer = relaxed_layers(model)["0"]
    weight = layer.free.weight.detach()
    distance = (weight - haar_average(weight, layer.free.output, layer.free.source)).norm().item()  # type: ignore[arg-type]
    (record,) = project(model)
    assert (record.name, record.theta, record.how) == ("0", 0.6, "dropped")
    assert record.norm == pytest.approx(weight.norm().item(), rel=1e-12)
    assert record.distance == pytest.approx(distance, rel=1e-12)
    assert record.distance < record.bound < 3 * record.distance
    assert len(record.spectrum) == 3  # J up to 1 + 1
    assert sum(record.spectrum) == pytest.approx(record.norm**2, rel=1e-12)


@pytest.mark.parametrize("how", ["drop", "fold"])
def test_maps_between_fibres_of_a_finite_group_are_dropped(how: str):
    """No layer could take up the average; the spectrum over frequencies 0, 1 and 2 adds up to ||W||^2."""
    regular = cyclic_regular(4, channels=2)
    model = nn.Sequential(Relaxed(nn.Linear(8, 8), FreeLinear(regular, regular)))
    nn.init.normal_(model[0].free.weight, generator=torch.Generator().manual_seed(0))
    (record,) = project(model, how=how)  # type: ignore[arg-type]
    assert record.how == "dropped"
    assert len(record.spectrum) == 3
    assert sum(record.spectrum) == pytest.approx(record.norm**2, rel=1e-12)
    assert 0 < record.distance <= record.bound
    assert isinstance(model[0], nn.Linear)
