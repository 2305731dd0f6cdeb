"""Optimisers: steps and weight decay, against their formulas and torch's own."""

import copy
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from e3nn import o3
from torch import nn

from mdrelax.method.relaxation import relax_constraints, relaxed_layers
from mdrelax.training.optimizers import OPTIMIZERS, make_optimizer, set_rate
from mdrelax.training.settings import OptimisationConfig


class Network(nn.Module):
    """A matrix, its bias, a norm's scale, and an offset in the shape of a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(4))
        self.offset = nn.Parameter(torch.ones(1, 4, 1))


def test_only_matrices_decay():
    """With zero gradients AdamW moves what decays, p <- p (1 - lr d), and nothing else."""
    model = Network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.5, betas=(0.9, 0.99))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["linear.weight"], 0.95 * before["linear.weight"])
    for name in ("linear.bias", "scale", "offset"):
        assert torch.equal(after[name], before[name]), name


def test_every_parameter_is_optimised_once_and_frozen_ones_are_not():
    """The two groups share out the trainable parameters."""
    model = Network()
    model.scale.requires_grad_(False)
    groups = make_optimizer(model, lr=0.1, weight_decay=0.0, betas=(0.9, 0.99)).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p is not model.scale)


def test_the_config_knows_the_registry():
    """A key of the one is a value of the other."""
    assert set(get_args(OptimisationConfig.model_fields["optimizer"].annotation)) == set(OPTIMIZERS)


def test_an_unknown_optimizer_names_the_nearest():
    """For those who call the function themselves."""
    with pytest.raises(ValueError, match="Unknown optimizer `muonn`; did you mean `muon`"):
        make_optimizer(Network(), kind="muonn", lr=0.1, weight_decay=0.0, betas=(0.9, 0.99))


def _reference(kind: str, model: Network) -> torch.optim.Optimizer:
    """The same by torch's own constructor, tensor by tensor."""
    parameters = dict(model.named_parameters())
    if kind == "adam":
        return torch.optim.Adam(parameters.values(), lr=0.1, betas=(0.8, 0.95), weight_decay=0.3, foreach=False)
    if kind == "sgd":
        return torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.8, weight_decay=0.3, foreach=False)
    if kind == "rmsprop":
        return torch.optim.RMSprop(parameters.values(), lr=0.1, alpha=0.95, weight_decay=0.3, foreach=False)
    groups = [{"params": [p], "weight_decay": 0.3 * (name == "linear.weight")} for name, p in parameters.items()]
    return torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.95), foreach=False)


@pytest.mark.parametrize("kind", ["adam", "adamw", "rmsprop", "sgd"])
def test_torchs_optimizers_are_torchs(kind):
    """Five steps at changing rates; `adamw` shrinks matrices, the others add every parameter's decay to its gradient.

    The first beta is the momentum of `sgd`, the second the decay of `rmsprop`.
    """
    models = Network().double(), Network().double()
    models[1].load_state_dict(models[0].state_dict())
    ours = make_optimizer(models[0], kind=kind, lr=0.1, weight_decay=0.3, betas=(0.8, 0.95))
    theirs = _reference(kind, models[1])
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            a.grad = torch.randn(a.shape, generator=generator, dtype=a.dtype)
            b.grad = a.grad.clone()
        for optimizer in (ours, theirs):
            set_rate(optimizer, 0.1 / (step + 1))
            optimizer.step()
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_fits_a_line(kind):
    """The loss of a small regression falls to a tenth of the start."""
    loss_of = _regression()
    model = nn.Linear(4, 3)
    before = loss_of(model).item()
    optimizer = make_optimizer(model, kind=kind, lr=0.05, weight_decay=0.0, betas=(0.9, 0.99))
    for step in range(150):
        optimizer.zero_grad()
        loss_of(model).backward()
        set_rate(optimizer, 0.05 * (1 - step / 150))
        optimizer.step()
    assert loss_of(model).item() < 0.1 * before


def _regression() -> Callable[[nn.Module], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, slope = torch.randn(32, 4, generator=generator), torch.randn(4, 3, generator=generator)
    return lambda model: (model(x) - x @ slope - 0.5).square().mean()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_from_its_state(kind):
    """Saved after three steps into another object, the fourth and fifth are the same, bit for bit."""
    models = Network(), Network()
    optimizers = [make_optimizer(m, kind=kind, lr=0.1, weight_decay=0.01, betas=(0.9, 0.99)) for m in models]
    generator = torch.Generator().manual_seed(0)
    gradients = [[torch.randn(p.shape, generator=generator) for p in models[0].parameters()] for _ in range(5)]
    for each in gradients[:3]:
        _step(models[0], optimizers[0], each)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        for each in gradients[3:]:
            _step(model, optimizer, each)
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def _step(model: nn.Module, optimizer: Any, gradients: list[torch.Tensor]) -> None:
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()


def _clear_gradients(model: nn.Module) -> list[torch.Tensor]:
    """Random gradients of at least 0.01 in size, beside which the 1e-8 in AdamW's denominator vanishes."""
    drawn = [torch.randn(p.shape) for p in model.parameters()]
    return [torch.copysign(g.abs().clamp(min=0.01), g) for g in drawn]


@pytest.mark.parametrize("fraction", [0.2, 0.05])
def test_muon_hands_vectors_to_adamw_at_a_fraction_of_its_rate(fraction):
    """The matrix moves by the rate in the spectral norm; in the first step AdamW moves every entry by its fraction."""
    model = Network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(
        model, kind="muon", lr=1.0, weight_decay=0.0, betas=(0.9, 0.99), vector_fraction=fraction
    )
    set_rate(optimizer, 0.5)
    _step(model, optimizer, _clear_gradients(model))
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    assert 0.3 < torch.linalg.matrix_norm(moved["linear.weight"], 2) < 0.65
    for name in ("linear.bias", "scale", "offset"):
        torch.testing.assert_close(moved[name].abs(), torch.full_like(moved[name], 0.5 * fraction), rtol=1e-4, atol=0)


def test_soap_without_its_library_names_the_remedy(monkeypatch):
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match=r"pip install 'mdrelax\[soap\]'"):
        make_optimizer(Network(), kind="soap", lr=0.1, weight_decay=0.0, betas=(0.9, 0.99))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_free_maps_move_at_their_fraction_of_the_rate(kind):
    """With every kind: the trunk's groups get the rate (muon's vectors a fifth), the free maps' a tenth of that."""
    model = nn.Sequential(o3.Linear("4x0e+4x1o", "4x0e+4x1o"), nn.Linear(16, 2))
    relax_constraints(model)
    optimizer = make_optimizer(model, kind=kind, lr=0.1, weight_decay=0.0, betas=(0.9, 0.99), free_fraction=0.1)
    set_rate(optimizer, 0.05)
    (layer,) = relaxed_layers(model).values()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(layer.free.weight)] == pytest.approx(0.005)
    assert rates[id(model[1].weight)] == pytest.approx(0.05)
    layer.free.weight.grad = torch.ones_like(layer.free.weight)
    before = layer.free.weight.detach().clone()
    for _ in range(2):  # soap's first step only looks
        optimizer.step()
    assert not torch.equal(layer.free.weight, before)


def test_free_maps_may_have_an_optimizer_of_their_own():
    """AdamW's first step moves every entry of a free map by the rate; Muon's moves the trunk's matrix by its norm."""
    model = nn.Sequential(o3.Linear("4x0e+4x1o", "4x0e+4x1o"), nn.Linear(16, 2))
    relax_constraints(model)
    optimizer = make_optimizer(model, kind="muon", free_kind="adamw", lr=0.1, weight_decay=0.0, betas=(0.9, 0.99))
    (layer,) = relaxed_layers(model).values()
    free, matrix = layer.free.weight.detach().clone(), model[1].weight.detach().clone()
    _step(model, optimizer, _clear_gradients(model))
    torch.testing.assert_close((layer.free.weight - free).abs(), torch.full_like(free, 0.1), rtol=1e-4, atol=1e-6)
    assert 0.06 < torch.linalg.matrix_norm(model[1].weight - matrix, 2) < 0.13
    with pytest.raises(ValueError, match="Unknown optimizer `adanw`"):
        make_optimizer(model, free_kind="adanw", lr=0.1, weight_decay=0.0, betas=(0.9, 0.99))
