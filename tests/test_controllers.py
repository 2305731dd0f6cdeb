"""ACE: gammas that the loss and their dual variables move, their way to zero, and the laws of the method under them."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mdrelax.analysis.drawing import NothingToDrawError
from mdrelax.analysis.figures import controller_plot
from mdrelax.forces.forcefield import ForceField
from mdrelax.forces.forcematching import ForceMatching
from mdrelax.forces.loader import Loader, frames_from_data
from mdrelax.forces.settings import TrainingConfig
from mdrelax.method.controllers import Ace, AceSettings, Scheduled
from mdrelax.method.penalty import penalty, record_inputs
from mdrelax.method.projection import project
from mdrelax.method.relaxation import is_relaxed, relax_constraints, relaxed_layers
from mdrelax.method.schedule import Schedule
from mdrelax.packs.nbody.run import NBodyRun
from mdrelax.potentials import edge_chunks
from mdrelax.training.checkpoint import load_checkpoint, save_checkpoint
from mdrelax.training.settings import RelaxationConfig
from mdrelax.training.trainer import CHECKPOINT_DEFAULTS, CHECKPOINT_KEYS, Trainer
from molecules import ELEMENTS, batch_of, crystal, ethanol, rattled, tiny_equiformer, tiny_force_field
from small_runs import CLUSTER_CUTOFF, clusters, data_of
from toy_regression import assert_resumes, network, trainer

ACE = {"controller": "ace", "weight": 0.0}


def relaxed_force_field() -> ForceField:
    """Two relaxed blocks, their maps large enough to be seen."""
    model = tiny_force_field()
    where = ["blocks.*.feed_forward"]
    relax_constraints(model, where=where, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    return model


def gammas(model: nn.Module) -> list[Tensor]:
    """The leaf of each layer."""
    return [layer.theta for layer in relaxed_layers(model).values()]  # type: ignore[misc]


# --- the primal-dual pair --------------------------------------------------------------------------------------------


def path_of_gamma(n_steps: int, settings: AceSettings, *, slope: float = -0.3) -> list[float]:
    """gamma of every step for the loss slope * gamma with noise of 0.1: a task that would rather not be symmetric."""
    model, noise = nn.ModuleList([network().first]), torch.Generator().manual_seed(0)
    ace, found = Ace(model, n_steps=n_steps, settings=settings), []
    for step in range(n_steps):
        ace.begin_step(model, step=step)
        found.append(gammas(model)[0].item())
        ((slope + 0.1 * torch.randn((), generator=noise)) * gammas(model)[0]).backward()
        ace.after_backward(model)
    return found


def test_damping_brings_gamma_to_zero_and_without_it_gamma_swings():
    """A loss without curvature in gamma: with the default rates, gamma starts at 1 and is near 0 for the last quarter.

    Undamped, the pair is an oscillator: in the last quarter it still is ten times as far away, on both sides.
    """
    n_steps = 1500
    damped, free = (path_of_gamma(n_steps, AceSettings(damping=rho, end=1.0)) for rho in (4.0, 0.0))
    assert damped[0] == free[0] == 1.0
    late = slice(3 * n_steps // 4, None)
    assert max(map(abs, damped[late])) < 0.03
    assert max(map(abs, free[late])) > 0.25
    assert min(free) < -0.2


def test_the_dual_variable_finds_the_slope_of_the_task():
    """At the saddle point dJ/dgamma + lambda = 0: lambda is the price of the symmetry, +0.3 for a slope of -0.3."""
    model = nn.ModuleList([network().first])
    ace = Ace(model, n_steps=1500, settings=AceSettings(end=1.0))
    for step in range(1500):
        ace.begin_step(model, step=step)
        (-0.3 * gammas(model)[0]).backward()
        ace.after_backward(model)
    assert list(ace.duals().values()) == pytest.approx([0.3], abs=0.03)


def test_gamma_is_zero_in_the_last_steps_and_its_size_before_is_reported():
    """At 90 % of 50 steps, as a number: the free map is not read any more."""
    model = nn.ModuleList([network().first])
    ace = Ace(model, n_steps=50)
    sizes = []
    for step in range(50):
        sizes.append(ace.begin_step(model, step=step))
        layer = relaxed_layers(model)["0"]
        if step < 45:
            assert isinstance(layer.theta, Tensor)
            layer.theta.backward()
        else:
            assert layer.theta == layer.theta_tensor == 0.0
            nn.init.constant_(layer.free.weight, torch.inf)
            assert layer(torch.ones(1, 9)).isfinite().all()
        ace.after_backward(model)
    assert sizes[45:] == [0.0] * 5
    assert min(sizes[:45]) > 0
    assert ace.theta_at_end() == sizes[44]


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        (AceSettings(), "at the end, before it was set to 0 (equality form)"),
        (AceSettings(end=1.0), "in the last step, and was not set to 0 before the projection (equality form)"),
        (AceSettings("resilient"), "in the last step (resilient form, in which it need not be 0)"),
    ],
)
def test_the_end_is_told_in_the_words_of_its_form(settings: AceSettings, how: str):
    """Only the equality form sets gamma to 0, and only if it is to do so before the last step."""
    model = nn.ModuleList([network().first])
    ace = Ace(model, n_steps=20, settings=settings)
    for step in range(20):
        ace.begin_step(model, step=step)
        if not ace.ended:
            gammas(model)[0].backward()
        ace.after_backward(model)
    assert ace.in_words() == f"the largest |gamma| was {ace.theta_at_end():.3g} {how}"


@pytest.mark.parametrize(("gain", "stays"), [(0.5, True), (-0.5, False)])
def test_the_resilient_form_keeps_what_pays(gain: float, stays: bool):
    """J = 2 (gamma - gain)^2 / 2 with r = 1: with |gamma| <= u and u^2 / 2 the minimum is at 2 gain / 3.

    A task that wants gamma = -0.5 crosses zero and gets -1/3: the constraint is on |gamma|.
    """
    model = nn.ModuleList([network().first])
    ace = Ace(model, n_steps=1500, settings=AceSettings("resilient"))
    for step in range(1500):
        ace.begin_step(model, step=step)
        (gammas(model)[0] - gain).square().backward()
        ace.after_backward(model)
    assert gammas(model)[0].item() == pytest.approx(2 * gain / 3, abs=0.03)
    (dual,) = ace.duals().values()
    assert dual == pytest.approx(1 / 3, abs=0.05)
    assert stays == (gammas(model)[0].item() > 0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"form": "equal"}, "did you mean `equality`"),
        ({"rate": 0.0}, r"`AceSettings\(rate=\.\.\.\)` must be positive, got 0"),
        ({"damping": -1.0}, "must be 0 or positive, got -1"),
        ({"end": 0.0}, r"must lie in \(0, 1\], got 0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], sentence: str):
    """In a sentence with the value and the range."""
    with pytest.raises(ValueError, match=sentence):
        Ace(network(), n_steps=10, settings=AceSettings(**wrong))


def test_a_model_without_free_maps_has_nothing_to_control():
    """Said with the remedy."""
    with pytest.raises(ValueError, match="call `relax_constraints` first"):
        Ace(network(relaxed=False), n_steps=10)


# --- the laws of the method under ACE --------------------------------------------------------------------------------


def test_the_derivative_by_gamma_comes_from_the_same_backward_pass():
    """It is that of finite differences of the loss (steps of 1e-4: relative error 1e-6), at gammas of both signs."""
    model, graph = relaxed_force_field(), batch_of(*rattled(ethanol(), 1, seed=0))
    Ace(model, n_steps=10).begin_step(model, step=0)
    with torch.no_grad():
        for gamma, value in zip(gammas(model), (0.7, -0.3), strict=True):
            gamma.fill_(value)

    def loss() -> Tensor:
        prediction = model(graph, create_graph=True)
        return prediction.energy.square().sum() + prediction.forces.square().sum()

    loss().backward()
    for gamma in gammas(model):
        derivative, losses = gamma.grad, []
        for shift in (1e-4, -1e-4):
            with torch.no_grad():
                gamma += shift
            losses.append(loss().item())
            with torch.no_grad():
                gamma -= shift
        assert derivative.item() == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-5)


def test_the_penalty_reaches_neither_the_trunk_nor_gamma():
    """Law 5: it trains W alone, and is finite at W = 0."""
    model = tiny_force_field()
    relax_constraints(model, initial_std=0.0)
    Ace(model, n_steps=10).begin_step(model, step=0)
    with record_inputs(model) as inputs:
        model(batch_of(ethanol()), create_graph=True).energy.sum().backward()
    assert all(gamma.grad == 0 for gamma in gammas(model))  # W = 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()
    penalty(model, inputs).backward()
    assert {name.split(".free.")[-1] for name, p in model.named_parameters() if p.grad is not None} == {"weight"}
    assert all(gamma.grad == 0 for gamma in gammas(model))


def test_projection_gives_the_network_that_was_never_relaxed():
    """Law 8: classes, keys and numbers, whatever the gammas are."""
    plain, model = tiny_force_field(), relaxed_force_field()
    Ace(model, n_steps=10).begin_step(model, step=0)
    records = project(model)
    assert [record.theta for record in records] == [1.0] * 2
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    graph = batch_of(ethanol())
    assert torch.equal(model(graph).forces, plain(graph).forces)


@pytest.mark.parametrize("gamma", [0.5, -0.5])
def test_a_fold_takes_the_sign_of_gamma(gamma: float):
    """f + gamma P(W): an equivariant W = identity on vectors is added with its gamma."""
    model = network()
    layer = relaxed_layers(model)["first"]
    layer.free.weight.data = torch.eye(9)
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    layer.control(torch.tensor(gamma, requires_grad=True))
    before = layer(x).detach()
    assert project(model, how="fold")[0].how == "folded"
    torch.testing.assert_close(model.first(x), before, atol=1e-6, rtol=0)


# --- training --------------------------------------------------------------------------------------------------------


def controlled(folder: Path, **keys: Any) -> Trainer:
    """The small task under ACE."""
    own = {name: keys.pop(name) for name in list(keys) if name in RelaxationConfig.model_fields}
    return trainer(folder, relaxation={**ACE, **own}, **keys)


def test_a_run_under_ace_ends_symmetric_and_says_how(tmp_path):
    """Laws 3 and 6: validated and saved networks are projected, the last steps have gamma = 0; all of it is logged."""
    subject = controlled(tmp_path, epochs=12)
    fit = subject.run()
    assert not any(is_relaxed(model) for model in subject.task.validated)
    assert not is_relaxed(fit.model)
    assert fit.metrics["theta"].iloc[0] > 0.5
    assert fit.metrics["theta"].iloc[-1] == 0.0
    assert (fit.metrics["penalty"] == 0).all()
    layers = pd.read_csv(tmp_path / "layers.csv")
    assert layers[["theta", "dual"]].notna().all().all()
    assert layers.groupby("layer").theta.nunique().min() > 3
    assert (layers[layers.step == 60].theta == 0).all()
    assert 0 < subject.controller.theta_at_end() <= layers[layers.step < 54].theta.abs().max()
    figure = controller_plot(layers)
    lines = figure.axes[0].get_lines()
    assert lines[0].get_ydata().tolist() == layers[layers.layer == "first"].theta.tolist()


def test_a_run_by_schedule_has_no_dual_variables(tmp_path):
    """Its layers.csv has theta, an empty column, and no figure."""
    trainer(tmp_path).run()
    layers = pd.read_csv(tmp_path / "layers.csv")
    assert layers.theta.iloc[-1] == 0
    assert layers.dual.isna().all()
    with pytest.raises(NothingToDrawError, match="no dual variables"):
        controller_plot(layers)


@pytest.mark.parametrize("keys", [{}, {"free_map": "mlp"}, {"ace_form": "resilient", "projection": "keep"}])
def test_a_run_under_ace_resumes_bit_for_bit(tmp_path, keys):
    """gammas, dual variables and both optimisers are in the checkpoint."""
    assert_resumes(tmp_path, partial(controlled, **keys))


def test_the_resilient_form_is_deployed_with_its_gammas(tmp_path):
    """The result has the gamma of each layer at its best step, and its validation error."""
    subject = controlled(tmp_path, ace_form="resilient", projection="keep")
    fit = subject.run()
    thetas = [layer.theta for layer in relaxed_layers(fit.model).values()]
    assert thetas == [record.theta for record in fit.layers]
    assert len(set(thetas)) == 2
    assert subject.task.validate(fit.model)["val_worst"] == fit.metrics["val_worst"].min()


def test_checkpoints_without_a_controller_are_those_of_a_schedule(tmp_path):
    """Older versions did not write the key; the state of a schedule is empty."""
    subject = trainer(tmp_path)
    subject.run()
    path = tmp_path / "checkpoints" / "last.pt"
    state = load_checkpoint(path, keys=CHECKPOINT_KEYS)
    assert state.pop("controller") == Scheduled(Schedule(), n_steps=3).state_dict() == {}
    save_checkpoint(path, state)
    assert load_checkpoint(path, keys=CHECKPOINT_KEYS, defaults=CHECKPOINT_DEFAULTS)["controller"] == {}
    trainer(tmp_path).resume()


def test_micro_batches_add_up_the_derivatives_by_gamma(tmp_path):
    """Two parts of a batch of four: the derivative of the whole batch, to rounding (float64)."""
    frames = frames_from_data(data_of(tmp_path / "c.extxyz", clusters(8)), cutoff=CLUSTER_CUTOFF)
    found = []
    for size in (None, 2):
        model = ForceField(tiny_equiformer("8x0e+4x1o", n_blocks=1), elements=ELEMENTS)
        relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0))
        ace = Ace(model, n_steps=10)
        settings = TrainingConfig(steps=10, batch_size=4, micro_batch_size=size, dtype="float64")
        task = ForceMatching(Loader(frames[:6], batch_size=4, seed=0), frames[6:], settings)
        ace.begin_step(model, step=0)
        task.loss(model, next(iter(task.batches(0, start=0))), step=0)[0].backward()
        found.append(gammas(model)[0].grad.item())  # type: ignore[union-attr]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert abs(found[0]) > 1e-6


def test_recomputed_edge_chunks_find_the_same_derivative(monkeypatch):
    """Free maps inside the chunks, whose backward pass calls them again."""
    found = []
    for at_once in (10_000, 50):
        monkeypatch.setattr(edge_chunks, "EDGES_AT_ONCE_IN_TRAINING", at_once)
        monkeypatch.setattr(edge_chunks, "EDGES_KEPT", 0)
        model = tiny_force_field()
        where = ["blocks.*.attention.*"]
        relax_constraints(model, where=where, initial_std=0.1, generator=torch.Generator().manual_seed(0))
        Ace(model, n_steps=10).begin_step(model, step=0)
        model(batch_of(crystal(), *rattled(ethanol(), 1, seed=0)), create_graph=True).forces.square().sum().backward()
        found.append([gamma.grad for gamma in gammas(model)])
    assert len(found[0]) > 2
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


def test_torch_compile_reads_and_differentiates_gamma():
    """N-body networks are compiled as they are: a new gamma needs no recompilation, and gets its derivative."""
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    found = []
    for compiled in (False, True):
        model = network()
        ace = Ace(model, n_steps=20)
        forward, counter = model, CompileCounterWithBackend("aot_eager")
        if compiled:
            torch._dynamo.reset()
            forward = torch.compile(model, backend=counter)
        for step in (0, 1, 19):
            ace.begin_step(model, step=step)
            forward(x).square().mean().backward()
            found.append([gamma.grad for gamma in ace.gammas])
            ace.after_backward(model)
    assert counter.frame_count == 1
    for eager, graph in zip(found[:2], found[3:5], strict=True):
        torch.testing.assert_close(graph, eager, rtol=1e-5, atol=1e-7)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"peak": 0.5}, "`controller: ace` moves theta itself and has no schedule: leave out `peak`, got 0.5"),
        ({"schedule": "constant"}, "leave out `schedule`, got constant"),
        ({"projection": "keep"}, "`projection: keep`.*`ace_form: resilient`"),
        ({"free_map": "mlp", "rank": 4}, "`rank` is of linear free maps, got 4"),
        ({"free_map": "mlp", "penalty": "weight", "weight": 0.1}, "`penalty: weight` has a closed form for linear"),
        ({"controller": "ase"}, "'schedule' or 'ace'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(keys: dict[str, Any], sentence: str):
    """When they are read, in one sentence with the remedy."""
    with pytest.raises(ValidationError, match=sentence):
        RelaxationConfig(**{"controller": "ace", **keys})


def test_ace_has_no_penalty_unless_it_is_asked_for():
    """As published; an arm of a study replaces the schedule and the penalty of the study's recipe."""
    assert RelaxationConfig(controller="ace").weight == 0.0
    assert RelaxationConfig(controller="ace", weight=0.1).weight == 0.1
    assert RelaxationConfig().weight == 0.01
    relaxation = {"schedule": "linear", "peak": 0.3, "weight": 0.01, "ace_damping": 2.0}
    run = NBodyRun(arm="ace-mlp", training={"steps": 1}, relaxation=relaxation)
    own = run.relaxation
    assert (own.controller, own.weight, own.free_map, own.ace_damping) == ("ace", 0.0, "mlp", 2.0)


def test_the_standard_arm_is_standard_under_any_controller(tmp_path):
    """`schedule: off` relaxes nothing, whatever else is set: the paired run of `standard_baseline` has that key."""
    fit = trainer(tmp_path, relaxed=False, relaxation={"controller": "ace", "schedule": "off"}).run()
    assert fit.layers == []
    assert (fit.metrics["theta"] == 0).all()
