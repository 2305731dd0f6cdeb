"""The penalty: zero for equivariant W and for nothing else, finite at W = 0, and felt by the free maps alone."""

from typing import get_args

import pytest
import torch
from e3nn import o3
from scipy.linalg import circulant
from torch import Tensor, nn

from haar import action, axis_rotation, haar_average, rotations
from mdrelax.method.free_maps import FreeLinear
from mdrelax.method.groups import IrrepsRepresentation, Layout, Representation, cyclic_regular
from mdrelax.method.penalty import PenaltyKind, penalty, record_inputs
from mdrelax.method.relaxation import Relaxed, relax_constraints, relaxed_layers, set_theta
from molecules import batch_of, ethanol, normal, rattled, tiny_force_field

KINDS: tuple[PenaltyKind, ...] = get_args(PenaltyKind)
LAYOUTS: tuple[Layout, Layout] = ("ir_mul", "mul_ir")
ROUNDING = 1e-7  # sqrt(LD) of rounding errors is below 1e-13, but the guard takes 1e-8 off each root

each_kind = pytest.mark.parametrize("kind", KINDS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def derivative_part(weight: Tensor, output: Representation, source: Representation, kind: PenaltyKind) -> float:
    """sqrt(LD) of one free map at random inputs: the penalty less sqrt(N), which is computed here."""
    layer = Relaxed(nn.Linear(source.dim, output.dim).double(), FreeLinear(source, output)).double()
    with torch.no_grad():
        layer.free.weight.copy_(weight)
    x = normal(6, source.dim, seed=11)
    with record_inputs(layer) as inputs:
        layer(x)
    size = weight.norm() if kind == "weight" else (x @ weight.T).square().sum(1).mean().sqrt()
    return (penalty(layer, inputs, kind=kind) - size).item()


# --- law 1: zero for equivariant maps, positive otherwise ------------------------------------------------------------


@each_layout
@each_kind
@pytest.mark.parametrize("irrep", ["0e", "0o", "1o", "1e", "2e", "2o", "3o", "3e", "4e"])
def test_an_equivariant_map_has_no_penalty_at_any_degree(irrep: str, kind: PenaltyKind, layout: Layout):
    """Channel mixing commutes with every irrep of O(3): 3 channels to 2 by a matrix times the identity of 2l+1."""
    source, output = IrrepsRepresentation(f"3x{irrep}", layout), IrrepsRepresentation(f"2x{irrep}", layout)
    mixing, eye = normal(2, 3, seed=0), torch.eye(o3.Irrep(irrep).dim, dtype=torch.float64)
    weight = torch.kron(eye, mixing) if layout == "ir_mul" else torch.kron(mixing, eye)
    assert abs(derivative_part(weight, output, source, kind)) < ROUNDING


@each_layout
@each_kind
def test_the_haar_average_of_a_random_map_has_no_penalty(kind: PenaltyKind, layout: Layout):
    """Equivariant by construction: averaged over O(3) with scipy's rotations, between mixed irreps and parities."""
    source, output = IrrepsRepresentation("2x0e+2x1o+1x2e", layout), IrrepsRepresentation("2x1o+1x0e+2x2e+1x1e", layout)
    weight = normal(output.dim, source.dim, seed=0)
    assert abs(derivative_part(haar_average(weight, output, source), output, source, kind)) < ROUNDING
    assert derivative_part(weight, output, source, kind) > 1


@each_kind
def test_an_equivariant_map_of_vector_neurons_has_no_penalty(kind: PenaltyKind):
    """Vector neurons are channels of 3-vectors, `Cx1o` with the channel first, and V -> M V is equivariant."""
    source, output = IrrepsRepresentation("5x1o", "mul_ir"), IrrepsRepresentation("4x1o", "mul_ir")
    mixing, vectors = normal(4, 5, seed=0), normal(5, 3, seed=1)
    weight = torch.kron(mixing, torch.eye(3, dtype=torch.float64))
    (rotation,) = rotations(1, seed=2)
    torch.testing.assert_close(  # vectors as rows, turned by scipy's rotation: the claim that W is equivariant
        weight @ (vectors @ rotation.T).flatten(), (mixing @ vectors @ rotation.T).flatten(), atol=1e-12, rtol=0
    )
    assert abs(derivative_part(weight, output, source, kind)) < ROUNDING
    swapped = torch.kron(torch.eye(3, dtype=torch.float64), mixing)  # the same numbers in the other layout
    assert derivative_part(swapped, output, source, kind) > 1


@each_kind
def test_a_circulant_map_of_c4_has_no_penalty(kind: PenaltyKind):
    """Regular representation of C4: circulants, channel by channel, are equivariant; other matrices are not."""
    source, output = cyclic_regular(4, channels=3), cyclic_regular(4, channels=2)
    rows = [torch.cat([torch.tensor(circulant(normal(4, seed=7 * o + i))) for i in range(3)], 1) for o in range(2)]
    assert abs(derivative_part(torch.cat(rows), output, source, kind)) < ROUNDING
    assert derivative_part(normal(8, 12, seed=0), output, source, kind) > 1


@each_layout
@each_kind
@pytest.mark.parametrize(("irreps_out", "irreps_in"), [("2x1e", "2x1o"), ("1x0o", "1x0e"), ("1x2o", "1x2e")])
def test_a_map_that_mixes_parities_is_penalised(irreps_out: str, irreps_in: str, kind: PenaltyKind, layout: Layout):
    """1o -> 1e by channel mixing commutes with all rotations but not with the inversion: LD = ||2 W x||^2."""
    source, output = IrrepsRepresentation(irreps_in, layout), IrrepsRepresentation(irreps_out, layout)
    weight = torch.eye(source.dim, dtype=torch.float64)
    x = normal(6, source.dim, seed=11)  # as in derivative_part
    size = weight.norm() if kind == "weight" else x.square().sum(1).mean().sqrt()
    assert derivative_part(weight, output, source, kind) == pytest.approx(2 * size.item(), rel=ROUNDING)


@each_layout
def test_the_penalty_is_the_papers_formula(layout: Layout):
    """sqrt(sum_l LD_l) + sqrt(sum_l N_l) over two layers, with drho(A) by finite differences of dense rotations.

    Central differences with angle 1e-4: relative errors of 1e-8.
    """
    irreps_in, irreps_out = "2x0e+1x1o", "1x0e+1x1o+1x2e"
    source, output = IrrepsRepresentation(irreps_in, layout), IrrepsRepresentation(irreps_out, layout)
    model = nn.ModuleList(
        Relaxed(nn.Linear(source.dim, output.dim).double(), FreeLinear(source, output)) for _ in range(2)
    ).double()
    derivatives, sizes, inputs = 0.0, 0.0, {}
    for k, layer in enumerate(model):
        nn.init.normal_(layer.free.weight, generator=torch.Generator().manual_seed(k))
        x, weight = normal(5, source.dim, seed=k), layer.free.weight.detach()
        inputs[str(k)] = [x]
        sizes += (x @ weight.T).square().sum(1).mean().item()
        for axis in range(3):
            ahead, behind = axis_rotation(axis, 1e-4), axis_rotation(axis, -1e-4)
            d_in, d_out = ((action(r, ahead) - action(r, behind)) / 2e-4 for r in (source, output))
            derivatives += (x @ (d_out @ weight - weight @ d_in).T).square().sum(1).mean().item()
        flip_in, flip_out = (action(r, -torch.eye(3).double()) for r in (source, output))
        derivatives += (x @ (flip_out @ weight - weight @ flip_in).T).square().sum(1).mean().item()
    assert penalty(model, inputs).item() == pytest.approx(derivatives**0.5 + sizes**0.5, rel=1e-6)


def test_the_weight_penalty_is_the_activation_penalty_at_the_identity():
    """With x running over the unit vectors, sum ||W x||^2 = ||W||^2: the two kinds agree up to the mean over rows."""
    source = output = IrrepsRepresentation("2x0e+2x1o+1x2e")
    layer = Relaxed(nn.Identity(), FreeLinear(source, output)).double()
    nn.init.normal_(layer.free.weight, generator=torch.Generator().manual_seed(0))
    with record_inputs(layer) as inputs:
        layer(torch.eye(source.dim, dtype=torch.float64))
    expected = source.dim**0.5 * penalty(layer, inputs, kind="activation")
    torch.testing.assert_close(penalty(layer, kind="weight"), expected, rtol=1e-6, atol=0)  # the guard's 1e-8


def test_the_published_reshape_makes_an_equivariant_map_look_broken():
    """N-body release: generators side by side as [Xx|Yx|Zx] were unflattened to (-1, 3), which scrambles them.

    An exactly equivariant W then has a relative penalty of order 1 (1.37 in the release) where ours is 0.
    """
    source = output = IrrepsRepresentation("4x0e+4x1o+4x2e", "mul_ir")
    weight = haar_average(normal(output.dim, source.dim, seed=0), output, source)
    x = normal(6, source.dim, seed=11)
    image = x @ weight.T
    derived_in = torch.cat([*source.lie(x)], dim=1)  # (N, 3 dim): [Xx|Yx|Zx]
    derived_out = torch.cat([*output.lie(image)], dim=1)

    def relative(moved: Tensor, expected: Tensor) -> float:
        return ((expected - moved).norm() / expected.norm()).item()

    published = derived_in.unflatten(1, (-1, 3)), derived_out.unflatten(1, (-1, 3))
    right = derived_in.unflatten(1, (3, -1)).mT, derived_out.unflatten(1, (3, -1)).mT
    assert relative(weight @ published[0], published[1]) > 1
    assert relative(weight @ right[0], right[1]) < 1e-12
    assert abs(derivative_part(weight, output, source, "activation")) < ROUNDING


# --- law 5: gradients ------------------------------------------------------------------------------------------------


@each_kind
def test_gradients_are_finite_at_zero_weights(kind: PenaltyKind):
    """sqrt(0) has an infinite slope (NaN at the point-cloud release's first step); the task moves W off zero."""
    model = tiny_force_field().train()
    relax_constraints(model, initial_std=0.0)
    with record_inputs(model) as inputs:
        prediction = model(batch_of(*rattled(ethanol(), 2, seed=0)), create_graph=True)
    total = (
        prediction.energy.square().sum() + prediction.forces.square().sum() + 0.01 * penalty(model, inputs, kind=kind)
    )
    total.backward()
    assert penalty(model, inputs, kind=kind) == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    for layer in relaxed_layers(model).values():
        assert layer.free.weight.grad is not None
        assert layer.free.weight.grad.norm() > 0


@each_kind
def test_the_penalty_trains_the_free_maps_and_nothing_else(kind: PenaltyKind):
    """Its input is detached: in the MD17 release the penalty leaked into 198 of 210 parameters of the trunk."""
    model = tiny_force_field().train()
    relax_constraints(model, generator=torch.Generator().manual_seed(0))
    with record_inputs(model) as inputs:
        model(batch_of(*rattled(ethanol(), 2, seed=0)), create_graph=True)
    penalty(model, inputs, kind=kind).backward()
    free = {f"{name}.free.weight" for name in relaxed_layers(model)}
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == free
    assert all(parameter.grad.norm() > 0 for parameter in model.parameters() if parameter.grad is not None)


def test_the_task_trains_the_trunk_and_the_free_maps():
    """The loss on energies and forces reaches every parameter that it reached before, and every W too.

    Some more of the trunk besides: W brings the last block's vectors, which nothing read, to the energy.
    """
    reached = []
    for relaxed in (False, True):
        model = tiny_force_field().train()
        names = relax_constraints(model, generator=torch.Generator().manual_seed(0)).names if relaxed else []
        prediction = model(batch_of(*rattled(ethanol(), 2, seed=0)), create_graph=True)
        (prediction.energy.square().sum() + prediction.forces.square().sum()).backward()
        moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert {f"{name}.free.weight" for name in names} <= moved
        reached.append({name.replace(".layer.", ".") for name in moved} - {f"{name}.free.weight" for name in names})
    assert len(reached[0]) > 50  # of some 70
    assert reached[0] <= reached[1]


@each_kind
def test_descending_the_penalty_alone_leads_to_zero(kind: PenaltyKind):
    """The penalty contains ||W||: following its gradient shrinks W, which no term holds back."""
    model = tiny_force_field().train()
    relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    graph = batch_of(*rattled(ethanol(), 1, seed=0))
    with record_inputs(model) as inputs:
        model(graph)
    before = [layer.free.weight.norm().item() for layer in relaxed_layers(model).values()]
    penalty(model, inputs, kind=kind).backward()
    for layer, norm in zip(relaxed_layers(model).values(), before, strict=True):
        assert layer.free.weight.grad is not None
        shrunk = layer.free.weight - 1e-3 * layer.free.weight.grad
        assert shrunk.norm() < norm


# --- misuse ----------------------------------------------------------------------------------------------------------


def test_a_misspelt_kind_names_the_nearest():
    """An unknown kind of penalty is an error that names the known one."""
    model = tiny_force_field()
    relax_constraints(model)
    with pytest.raises(ValueError, match=r"`activations`; did you mean `activation`\?"):
        penalty(model, kind="activations")  # type: ignore[arg-type]


def test_the_activation_penalty_needs_recorded_inputs():
    """Without inputs there is nothing to measure: one sentence says how to record them, one names the layer."""
    model = tiny_force_field()
    relax_constraints(model)
    model(batch_of(ethanol()))
    with pytest.raises(ValueError, match=r"with record_inputs\(model\) as inputs"):
        penalty(model)
    with record_inputs(model) as inputs:
        pass
    with pytest.raises(ValueError, match=r"`potential\.blocks\.0\.feed_forward` was recorded"):
        penalty(model, inputs)
    assert penalty(model, kind="weight") > 0


def test_a_model_without_free_maps_has_no_penalty():
    """Asking for one is an error that says what to do."""
    with pytest.raises(ValueError, match="call `relax_constraints` first"):
        penalty(tiny_force_field())


def test_theta_does_not_scale_the_penalty():
    """The penalty is of W, not of theta W: it goes on holding W small while theta is small."""
    model = tiny_force_field().train()
    relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(0))
    values = []
    for theta in (0.0, 1.0):
        set_theta(model, theta)
        model(batch_of(ethanol()))
        values.append(penalty(model, kind="weight").item())
    assert values[0] == values[1] > 0


def test_the_penalty_at_all_rows_is_the_penalty_and_at_some_an_estimate():
    """``rows`` at or above their number changes nothing; fewer give the penalty of exactly those evenly spaced rows."""
    source, output = IrrepsRepresentation("3x0e+2x1o"), IrrepsRepresentation("2x0e+2x1o")
    layer = Relaxed(nn.Linear(source.dim, output.dim).double(), FreeLinear(source, output)).double()
    layer.free.weight.data = normal(output.dim, source.dim, seed=1)
    x = normal(10, source.dim, seed=2)
    with record_inputs(layer) as inputs:
        layer(x)
    assert penalty(layer, inputs, rows=10) == penalty(layer, inputs, rows=99) == penalty(layer, inputs)
    some = penalty(layer, inputs, rows=4)
    with record_inputs(layer) as inputs:
        layer(x[[0, 2, 5, 7]])
    torch.testing.assert_close(some, penalty(layer, inputs), rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="`rows` must be at least 1, got 0"):
        penalty(layer, inputs, rows=0)


@each_kind
def test_the_lie_term_can_be_left_out(kind: PenaltyKind):
    """The penalty is linear in the factor of the Lie-derivative term, and without it the size is left."""
    irreps = IrrepsRepresentation("3x1o")
    layer = Relaxed(nn.Linear(9, 9).double(), FreeLinear(irreps, irreps)).double()
    with torch.no_grad():
        layer.free.weight.copy_(normal(9, 9, seed=3))
    with record_inputs(layer) as inputs:
        layer(normal(20, 9, seed=4))
    none, one, two = (penalty(layer, inputs, kind=kind, lie=factor).item() for factor in (0.0, 1.0, 2.0))
    sizes = layer.free.penalty_terms(None if kind == "weight" else inputs[""]).size
    assert none == pytest.approx(sizes.sqrt().item(), rel=1e-6)  # the guard takes 1e-8 off
    assert two - one == pytest.approx(one - none, rel=1e-9)
    assert one > none
