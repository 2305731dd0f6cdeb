"""Layers of other kinds, relaxed, penalised, projected and certified by the same functions."""

from functools import partial

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from haar import action, axis_rotation, rotations
from mdrelax.method.certificate import EquivarianceError, certificate_of, require
from mdrelax.method.free_conv import FreeConv2d
from mdrelax.method.free_low_rank import FreeLowRank
from mdrelax.method.free_maps import FOLDS, AxesView, FreeLinear
from mdrelax.method.free_mlp import FreeMLP
from mdrelax.method.groups import Blocks, IrrepsRepresentation, cyclic_regular
from mdrelax.method.penalty import penalty, record_inputs
from mdrelax.method.projection import project
from mdrelax.method.relaxation import relax_constraints, relaxed_layers, set_theta
from mdrelax.method.sites import Site
from molecules import normal


class VectorNeuron(nn.Module):
    """V -> M V on (B, C, 3, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(normal(4, 5, seed=1))

    def relaxable(self) -> Site:
        """Where the free map stands."""
        sides = (IrrepsRepresentation(f"{n}x1o", "mul_ir") for n in (5, 4))
        return Site(*sides, view=AxesView(channels=1, components=2))

    def forward(self, x: Tensor) -> Tensor:
        """Features to features."""
        return torch.einsum("oc,bcdn->bodn", self.mixing, x)

    @torch.no_grad()
    def fold(self, blocks: Blocks) -> None:
        """Vectors are mixed by one matrix (4, 5)."""
        self.mixing += blocks[0, 0]


class C4Convolution(nn.Module):
    """A kernel averaged over C4, between regular representations: (B, 8, H, W) to (B, 12, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.sides, self.kernel = (
            (cyclic_regular(4, 2), cyclic_regular(4, 3)),
            nn.Parameter(normal(12, 8, 3, 3, seed=1)),
        )

    def relaxable(self) -> Site:
        """Where the free map stands."""
        return Site(*self.sides, make_free=partial(FreeConv2d, kernel_size=3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Features to features."""
        source, output = self.sides
        return nn.functional.conv2d(x, output.orbit_of_kernel(self.kernel, source).mean(0), padding=1)

    @torch.no_grad()
    def fold(self, kernel: Tensor) -> None:
        """The average of an equivariant kernel is the kernel itself."""
        self.kernel += kernel


def quarter(x: Tensor) -> Tensor:
    """A quarter turn of images whose channels are regular fibres of C4: entries shift by one."""
    return torch.rot90(x.unflatten(1, (-1, 4)).roll(1, 2).flatten(1, 2), 1, (-2, -1))


def turn(x: Tensor) -> Tensor:
    """A rotation of the 3-vectors."""
    return torch.einsum("de,bcen->bcdn", rotations(1, seed=0)[0], x)


CASES = {
    "vector neurons": (VectorNeuron, (2, 5, 3, 7), turn, "E(3)"),
    "C4 convolution": (C4Convolution, (2, 8, 6, 6), quarter, "C4"),
}


@pytest.mark.parametrize(("build", "shape", "act", "symmetry"), CASES.values(), ids=CASES)
def test_any_layer_is_relaxed_penalised_projected_and_certified(build, shape, act, symmetry):
    """LD by turning the input and the output; 0 for P(W); theta acts; the projected layer is the old one."""
    model, x = nn.Sequential(build()), normal(*shape, seed=3)
    plain = model(x)
    assert relax_constraints(model, initial_std=0.3, generator=torch.Generator().manual_seed(0)).names == ["0"]
    with record_inputs(model) as inputs:
        assert (model(x) - plain).norm() > 1
    free, whole = relaxed_layers(model)["0"].free, penalty(model, inputs)
    assert free.penalty_terms(inputs["0"]).derivative > 0.1
    if symmetry == "C4":
        change = act(free(x)) - free(act(x))
        expected = change.square().sum() / change[:, 0].numel()
        torch.testing.assert_close(free.penalty_terms(inputs["0"]).derivative, expected)
    part = free.equivariant_part().detach()
    assert 0.05 < part.norm() < free.weight.norm()
    torch.testing.assert_close(free.spectrum().sum(), free.weight.square().sum())
    free.weight.data = part
    for recorded in (inputs["0"], None):
        assert free.penalty_terms(recorded).derivative < 1e-20
    assert 0 < penalty(model, inputs) < whole
    set_theta(model, 0.5)
    layers = project(model)
    torch.testing.assert_close(model(x), plain, rtol=0, atol=0)

    def measure(dtype: torch.dtype) -> EquivarianceError:
        twin, y = model.to(dtype), x.to(dtype)
        error = (act(twin(y).double()) - twin(act(y.double()).to(dtype)).double()).abs().max().item()
        return EquivarianceError(error, (twin(-y) + twin(y)).abs().max().item(), 0.0, 0.0)

    require(certificate_of(model, measure, symmetry=symmetry, n_structures=2, layers=layers))


def averaged_kernel(kernel: Tensor) -> Tensor:
    """P(K) by hand, entry by entry: the mean over four quarter turns of the grid and of both channel fibres."""
    n_out, n_in, side, _ = kernel.shape
    mean = torch.zeros_like(kernel)
    for k in range(4):
        for o in range(n_out):
            for i in range(n_in):
                there = o - o % 4 + (o + k) % 4, i - i % 4 + (i + k) % 4  # rho shifts entry j of a fibre to j + k
                for row in range(side):
                    for column in range(side):
                        a, b = row, column
                        for _ in range(k):
                            a, b = side - 1 - b, a  # counter-clockwise, the first row on top
                        mean[(*there, a, b)] += kernel[o, i, row, column] / 4
    return mean


@pytest.mark.parametrize("theta", [0.4, 1.0])
def test_a_steerable_convolution_takes_up_the_average_of_its_free_kernel(theta):
    """`fold`: the layer's own kernel plus theta P(K), and what is folded is nearer to the relaxed layer than nothing.

    The free kernel's cost is printed: 12 x 8 x 3 x 3, as many as the layer's own.
    """
    model, x = nn.Sequential(C4Convolution()), normal(50, 8, 6, 6, seed=3)
    plain = model(x)
    placed = relax_constraints(model, initial_std=0.3, generator=torch.Generator().manual_seed(0))
    assert str(placed) == "Relaxed 0: 864 free parameters next to the network's 864."
    set_theta(model, theta)
    kernel, relaxed = model[0].free.weight.detach(), model(x)
    torch.testing.assert_close(relaxed, plain + theta * nn.functional.conv2d(x, kernel, padding=1))
    (record,) = project(model, how="fold")
    assert record.how == "folded"
    assert isinstance(model[0], C4Convolution)
    expected = plain + theta * nn.functional.conv2d(x, averaged_kernel(kernel), padding=1)
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(quarter(model(x)), model(quarter(x)))
    assert (model(x) - relaxed).norm() < (plain - relaxed).norm()


def test_vector_neurons_take_up_the_average_of_their_free_map():
    """P(W) of 3-vectors is a third of the traces: M + theta tr W_oc / 3."""
    model, x = nn.Sequential(VectorNeuron()), normal(2, 5, 3, 7, seed=3)
    plain, mixing = model(x), model[0].mixing.detach().clone()
    placed = relax_constraints(model, initial_std=0.3, generator=torch.Generator().manual_seed(0))
    assert str(placed) == "Relaxed 0: 180 free parameters next to the network's 20."
    set_theta(model, 0.4)
    weight = model[0].free.weight.detach()
    free = (weight @ x.movedim(3, 1).flatten(2).mT).mT.unflatten(2, (4, 3)).movedim(1, 3)
    torch.testing.assert_close(model(x), plain + 0.4 * free)
    (record,) = project(model, how="fold")
    assert record.how == "folded"
    traces = torch.einsum("odcd->oc", weight.view(4, 3, 5, 3))
    torch.testing.assert_close(model[0].mixing.detach(), mixing + 0.4 * traces / 3)


def test_a_layer_without_fold_drops_its_free_kernel_and_a_rule_for_its_type_folds_it(monkeypatch):
    """Dropped, the layer is what it was; `FOLDS` does for layers of other packages what the method `fold` does."""

    class Rigid(C4Convolution):
        fold = None  # type: ignore[assignment]

    model, x = nn.Sequential(Rigid()), normal(2, 8, 6, 6, seed=3)
    plain = model(x)
    relax_constraints(model, initial_std=0.3)
    assert project(model, how="fold")[0].how == "dropped"
    assert torch.equal(model(x), plain)

    def rule(layer: Rigid, kernel: Tensor) -> bool:
        layer.kernel += kernel
        return True

    monkeypatch.setitem(FOLDS, C4Convolution, rule)  # holds for its subclasses
    relax_constraints(model, initial_std=0.3)
    part = relaxed_layers(model)["0"].free.equivariant_part().detach()
    assert project(model, how="fold")[0].how == "folded"
    torch.testing.assert_close(model(x), plain + nn.functional.conv2d(x, part, padding=1))


class TwoNames(nn.Module):
    """One layer under two names, called twice, whose attribute is read."""

    def __init__(self) -> None:
        super().__init__()
        self.up = o3.Linear("2x0e+2x1o", "2x0e+2x1o").double()
        self.again = self.up

    def forward(self, x: Tensor) -> Tensor:
        """Features to features."""
        assert x.shape[-1] == self.up.irreps_out.dim
        return self.again(self.up(x))


def test_a_layer_under_two_names_is_relaxed_under_both_and_all_its_calls_count():
    """And its attributes are reached; the penalty is that of both inputs; projection gives both names back."""
    model, x = TwoNames(), normal(6, 8, seed=0)
    layer = model.up
    plain = model(x)
    assert relax_constraints(model, initial_std=0.3).names == ["up"]
    assert model.up is model.again
    with record_inputs(model) as inputs:
        assert (model(x) - plain).norm() > 0.1
    assert len(inputs["up"]) == 2
    both = torch.cat(inputs["up"])
    terms = model.up.free.penalty_terms([both])
    torch.testing.assert_close(terms.size, (both @ model.up.free.weight.T).square().sum(1).mean())
    torch.testing.assert_close(penalty(model, inputs), terms.derivative.sqrt() + terms.size.sqrt(), rtol=1e-6, atol=0)
    set_theta(model, 0.0)
    assert torch.equal(model(x), plain)
    project(model)
    assert model.up is model.again is layer


@pytest.mark.parametrize("how", ["drop", "fold"])
def test_e3nns_linear_with_fibres_is_relaxed_and_folded(how):
    """`f_in` and `f_out`: an equivariant W is folded without loss."""
    model = nn.Sequential(o3.Linear("2x0e+1x1o", "1x0e+2x1o", f_in=3, f_out=2)).double()
    x = normal(4, 3, 5, seed=0)
    plain = model(x)
    relax_constraints(model, initial_std=0.3)
    free = relaxed_layers(model)["0"].free
    with record_inputs(model) as inputs:
        assert (model(x) - plain).norm() > 0.1
    size = (x.flatten(1) @ free.weight.T).square().sum(1).mean()
    torch.testing.assert_close(free.penalty_terms(inputs["0"]).size, size)
    free.weight.data = free.equivariant_part().detach()
    assert free.penalty_terms(inputs["0"]).derivative < 1e-20
    relaxed = model(x)
    project(model, how=how)
    torch.testing.assert_close(model(x), relaxed if how == "fold" else plain)


# --- low rank, and perceptrons ---------------------------------------------------------------------------------------


def test_a_map_of_low_rank_is_its_matrix():
    """U V^T has the result, the penalties, the records and the fold of a dense W with the same entries."""
    source, output = IrrepsRepresentation("3x0e+2x1o", "mul_ir"), IrrepsRepresentation("4x0e+3x1o", "mul_ir")
    low, dense = FreeLowRank(source, output, rank=2).double(), FreeLinear(source, output).double()
    low.reset(0.5, torch.Generator().manual_seed(0))
    dense.weight.data = low.up.detach() @ low.down.detach().T
    x = normal(6, source.dim, seed=1)
    torch.testing.assert_close(low(x), dense(x), atol=1e-12, rtol=0)
    for inputs in (None, [x]):
        for ours, theirs in zip(low.penalty_terms(inputs), dense.penalty_terms(inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert low.sizes()[:3] == pytest.approx(dense.sizes()[:3], rel=1e-12)
    layers = [o3.Linear(source.irreps, output.irreps).double() for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    assert low.fold_into(layers[0], 0.3)
    assert dense.fold_into(layers[1], 0.3)
    torch.testing.assert_close(layers[0](x), layers[1](x), atol=1e-12, rtol=0)


def test_low_rank_entries_have_the_standard_deviation_that_was_asked_for():
    """Of 60,000 entries of rank 16, half of which are correlated: within 10 %."""
    irreps = IrrepsRepresentation("100x0e+50x1o", "mul_ir")
    low = FreeLowRank(irreps, irreps, rank=16)
    low.reset(1e-3, torch.Generator().manual_seed(0))
    assert low.matrix().std().item() == pytest.approx(1e-3, rel=0.1)


def test_rank_is_used_where_it_saves_parameters():
    """20 x 20 of rank 2 is 80 numbers instead of 400; 4 x 20 of rank 4 would be more than it replaces."""
    model = nn.Sequential(o3.Linear("8x0e+4x1o", "8x0e+4x1o"), o3.Linear("8x0e+4x1o", "4x0e"))
    assert relax_constraints(model, rank=2).n_free == 2 * 40 + 2 * 24
    project(model)
    assert relax_constraints(model, rank=4).n_free == 4 * 40 + 80
    with pytest.raises(ValueError, match=r"`rank` must be at least 1 .*, got 0"):
        relax_constraints(nn.Sequential(o3.Linear("1o", "1o")), rank=0)


def test_the_lie_derivative_of_a_perceptron_is_that_of_finite_rotations():
    """|| (rho(R) m(x) - m(rho(R) x)) / angle || summed over three axes, angle 1e-4: relative errors of 1e-6.

    The inversion is a finite element: || rho m(x) - m(rho x) ||^2 as it stands.
    """
    source, output = IrrepsRepresentation("2x0e+2x1o", "mul_ir"), IrrepsRepresentation("2x0e+1x1o", "mul_ir")
    free = FreeMLP(source, output).double()
    free.reset(0.3, torch.Generator().manual_seed(0))
    x, expected = normal(5, source.dim, seed=1), 0.0
    for axis in range(3):
        ahead, behind = axis_rotation(axis, 1e-4), axis_rotation(axis, -1e-4)
        moved = [free(x) @ action(output, g).T - free(x @ action(source, g).T) for g in (ahead, behind)]
        expected += ((moved[0] - moved[1]) / 2e-4).square().sum().item() / 5
    flip_in, flip_out = (action(r, -torch.eye(3).double()) for r in (source, output))
    expected += (free(x) @ flip_out.T - free(x @ flip_in.T)).square().sum().item() / 5
    terms = free.penalty_terms([x])
    assert terms.derivative.item() == pytest.approx(expected, rel=1e-5)
    assert terms.size.item() == pytest.approx(free(x).square().sum(1).mean().item(), rel=1e-12)
    terms.derivative.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in free.parameters())


def test_a_perceptron_is_dropped_and_its_penalty_needs_inputs():
    """No layer represents it, so `fold` drops it; there is no closed form."""
    model, x = nn.Sequential(o3.Linear("8x0e+4x1o", "8x0e+4x1o")), torch.randn(3, 20)
    plain = model(x)
    placed = relax_constraints(model, kind="mlp", initial_std=0.1)
    assert placed.n_free == 3 * (20 * 20 + 20)
    assert not torch.equal(model(x), plain)
    with pytest.raises(ValueError, match="no penalty in closed form"):
        penalty(model, kind="weight")
    (record,) = project(model, how="fold")
    assert (record.how, record.spectrum) == ("dropped", [])
    assert torch.equal(model(x), plain)


def test_a_perceptron_cannot_stand_beside_a_kernel():
    """Images are no vectors: refused with the name of the layer."""
    with pytest.raises(ValueError, match="free map of `0` is no matrix"):
        relax_constraints(nn.Sequential(C4Convolution()), kind="mlp")
    with pytest.raises(ValueError, match="did you mean `mlp`"):
        relax_constraints(nn.Sequential(o3.Linear("1o", "1o")), kind="mpl")  # type: ignore[arg-type]
