"""The Equiformer equals its plain e3nn form: the oracle that guards the fast path. Everything is float64.

Both sum the same products in another order, which costs some 1e-15 of the largest value; 1e-10 is the bound that an
optimisation must keep.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mdrelax.analysis.benchmarks.equiformer_e3nn import E3nnEquiformer
from mdrelax.forces.forcefield import ForceField
from mdrelax.potentials.equiformer import Equiformer
from mdrelax.structures.graph import Graph
from molecules import ELEMENTS, batch_of, crystal, ethanol, rattled, tiny_equiformer, water

LIMIT = 1e-10
MD17 = {"irreps": "8x0e+4x1e+4x2e", "nonlinear_messages": True, "radial_basis": "expnormal", "expansion": 3}
CASES = {
    "md17, small": MD17,  # as published: one parity, SE(3)
    "md17, small, published norm": {**MD17, "norm": "separable"},
    "linear messages": {"nonlinear_messages": False},
    "l = 3": {"irreps": "8x0e+4x1o+4x2e+4x3o", "lmax_edge": 3},
    "both parities": {"irreps": "8x0e+4x0o+4x1o+4x1e+4x2e"},
    "harmonics of l = 1 only": {"lmax_edge": 1},
    "scalars": {"irreps": "8x0e"},
}


def graphs() -> list[Graph]:
    """One molecule (as many edges an atom), a batch of different ones, a crystal through several images."""
    (one,) = rattled(ethanol(), 1, seed=0)
    return [batch_of(one), batch_of(one, water()), batch_of(crystal())]


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    """e3nn makes its tables in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[Equiformer, E3nnEquiformer]:
    """A fast network and its plain form."""
    fast = tiny_equiformer(**CASES[request.param])
    return fast, E3nnEquiformer(fast)


def test_energies_and_forces_are_those_of_the_plain_form(pair):
    """Molecules, batches and crystals."""
    for graph in graphs():
        ours, theirs = (ForceField(network, elements=ELEMENTS)(graph) for network in pair)
        assert difference(ours.energies, theirs.energies) < LIMIT
        assert difference(ours.forces, theirs.forces) < LIMIT


def test_gradients_of_a_loss_of_forces_are_those_of_the_plain_form(pair):
    """Through the double backward pass, for the parameters that both forms keep alike: some at every depth."""
    gradients = []
    for network in pair:
        prediction = ForceField(network, elements=ELEMENTS)(graphs()[1], create_graph=True)
        (prediction.forces.square().sum() + prediction.energy.square().sum()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    ours, theirs = gradients
    alike = [name for name in ours if name in theirs and ("norm" in name or "logit" in name or name == "embedding")]
    assert {"embedding", "blocks.0.attention.logit", "blocks.1.attention.logit"} <= set(alike)
    assert difference(*(torch.cat([each[name].flatten() for name in alike]) for each in gradients)) < LIMIT


def test_the_plain_form_has_as_many_parameters(pair):
    """Weights map one to one."""
    fast, plain = (sum(p.numel() for p in network.parameters()) for network in pair)
    assert fast == plain


def test_a_different_weight_makes_a_difference():
    """The limit is not met by chance: one radial weight changed by a percent is seen."""
    fast = tiny_equiformer(**MD17)
    plain = E3nnEquiformer(fast)
    with torch.no_grad():
        fast.radial.outputs[0][0, 0] *= 1.01
    ours, theirs = (ForceField(network, elements=ELEMENTS)(graphs()[0]) for network in (fast, plain))
    assert difference(ours.energies, theirs.energies) > 1e3 * LIMIT
