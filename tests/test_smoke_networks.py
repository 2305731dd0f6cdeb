"""Plume networks: steerable kernels solve their equation, networks commute with quarter turns, sizes are published."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.analysis.benchmarks.plain_rsteer import PlainRSteer, plain_step
from mdrelax.method.groups import FiniteRepresentation, cyclic_regular
from mdrelax.packs.smoke import convolution, winograd
from mdrelax.packs.smoke.scale import RelaxedScaleConv, ResidualScaleConv, ScaleConv, scale_basis
from mdrelax.packs.smoke.sizes import build_network
from mdrelax.packs.smoke.steerable_kernels import by_quarter_turns, flow_vectors, steerable_basis
from mdrelax.packs.smoke.task import Frames, rollout_loss
from molecules import normal

SIDES = {"vector": flow_vectors, "regular": cyclic_regular}
PAIRS = [("vector", "regular"), ("regular", "regular"), ("regular", "vector"), ("vector", "vector")]


def turned_flow(velocity: Tensor) -> Tensor:
    """Velocities (..., 2, n, n) turned a quarter clockwise about the centre, pixel by pixel: an independent form.

    With x along the columns and y along the rows, the point (x, y) goes to (y, -x), and so does the arrow there.
    """
    n = velocity.shape[-1]
    out = torch.empty_like(velocity)
    for row in range(n):
        for column in range(n):
            x, y = column - (n - 1) / 2, row - (n - 1) / 2
            to_row, to_column = round(-x + (n - 1) / 2), round(y + (n - 1) / 2)
            out[..., 0, to_row, to_column] = velocity[..., 1, row, column]
            out[..., 1, to_row, to_column] = -velocity[..., 0, row, column]
    return out


def network(
    name: str, group: str = "C4", *, seed: int = 0, n_in: int = 3, size: int = 12, **other: object
) -> nn.Module:
    """A tiny network whose norms have seen some frames, in evaluation mode and float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_network(name, "tiny", group, n_in=n_in, size=(size, size), **other).double()  # type: ignore[arg-type]
        model(normal(4, 2 * n_in, size, size, seed=1))
    return model.eval()


# --- kernels ---


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("n", [4, 8])
@pytest.mark.parametrize("pair", PAIRS)
def test_basis_kernels_are_orthonormal_and_steerable(pair: tuple[str, str], n: int, size: int):
    """rho_out(g) K(g^-1 x) rho_in(g)^-1 = K(x) for quarter turns, by the method's own action on kernels."""
    source, output = (SIDES[name](n) for name in pair)
    basis = steerable_basis(source, output, size)
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)).double(), atol=1e-12, rtol=0)
    for kernel in basis:
        orbit = by_quarter_turns(output).orbit_of_kernel(kernel, by_quarter_turns(source))
        torch.testing.assert_close(orbit, kernel.expand_as(orbit), atol=1e-12, rtol=0)


@pytest.mark.parametrize("pair", PAIRS[:3])
def test_the_basis_of_c4_lacks_only_what_the_band_limit_removes(pair: tuple[str, str]):
    """Of all kernels that C_4 allows (the rank of the average over it), 8 of 9 functions of a 3 x 3 grid are left.

    The ninth alternates between edges and corners, cos(4 phi). The published basis (e2cnn) has as many: 32 between
    regular fibres, 16 between a regular fibre and a vector.
    """
    source, output = (SIDES[name](4) for name in pair)
    d_out, d_in = output.dim, source.dim
    units = torch.eye(d_out * d_in * 9).double().view(-1, d_out, d_in, 3, 3)
    averages = torch.stack([output.orbit_of_kernel(unit, source).mean(0) for unit in units])
    n_all = int(torch.linalg.matrix_rank(averages.flatten(1)))
    basis = steerable_basis(source, output, 3)
    assert (n_all, len(basis)) == (d_out * d_in * 9 / 4, d_out * d_in * 8 / 4)
    assert torch.linalg.matrix_rank(torch.cat([averages, basis]).flatten(1)) == n_all


def test_kernels_of_c8_are_steerable_between_pixels_of_the_plane():
    """An eighth turn moves edges to corners: scalar kernels of C_8 are rings, constant along the angle."""
    trivial = FiniteRepresentation(torch.ones(8, 1, 1), 1, (1,))
    basis = steerable_basis(trivial, trivial, 3)
    assert len(basis) == 2  # the centre and the ring; cos(4 phi) needs frequency 4
    for kernel in basis[:, 0, 0]:
        edges, corners = kernel[[0, 1, 1, 2], [1, 0, 2, 1]], kernel[[0, 0, 2, 2], [0, 2, 0, 2]]
        for ring in (edges, corners):
            torch.testing.assert_close(ring, ring[:1].expand(4), atol=1e-12, rtol=0)


def test_flow_vectors_turn_as_arrows_do():
    """Element 1 of C_4 on a velocity (u, v): (v, -u), and the grid by rot90; against the pixel-by-pixel form."""
    velocity = normal(2, 6, 6, seed=0)
    grid = torch.rot90(velocity, 1, (-2, -1))
    turned = torch.einsum("ij,jhw->ihw", flow_vectors(4).matrices[1], grid)
    torch.testing.assert_close(turned, turned_flow(velocity))


def test_wrong_kernels_and_groups_are_refused():
    """One sentence each."""
    with pytest.raises(ValueError, match="`kernel_size` must be odd, got 4"):
        steerable_basis(cyclic_regular(4), cyclic_regular(4), 4)
    with pytest.raises(ValueError, match="must be of the same finite group"):
        steerable_basis(cyclic_regular(4), cyclic_regular(8), 3)


# --- networks ---


@pytest.mark.parametrize("group", ["C4", "C8"])
def test_equivariant_networks_commute_with_quarter_turns(group: str):
    """f(g x) = g f(x) with grid and components turned: to 1e-9 in float64 and 1e-5 in float32, relative to rms."""
    model = network("equiv", group)
    for dtype, limit in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model.to(dtype)
        frames = normal(2, 3, 2, 12, 12, seed=3).to(dtype)
        still = model(frames.flatten(1, 2))
        change = model(turned_flow(frames).flatten(1, 2)) - turned_flow(still)
        assert change.abs().max() < limit * still.square().mean().sqrt()


@pytest.mark.parametrize("name", ["mlp", "conv", "rpp", "lift", "rsteer"])
def test_the_other_networks_do_not(name: str):
    """The same measure finds what has no symmetry, by far."""
    model, frames = network(name), normal(2, 3, 2, 12, 12, seed=3)
    still = model(frames.flatten(1, 2))
    change = model(turned_flow(frames).flatten(1, 2)) - turned_flow(still)
    assert change.square().mean() > 1e-3 * still.square().mean()


def test_rpp_and_rsteer_are_equivariant_where_they_do_not_deviate():
    """RPP without its residual, RSteer with weights that do not vary and a bias that is equal in each fibre."""
    frames = normal(2, 3, 2, 12, 12, seed=3)
    rpp, rsteer = network("rpp", norm=False), network("rsteer")
    for layer in rpp.layers:
        layer.residual.data.zero_()
        layer.bias.data.zero_()
    for layer in rsteer.layers:
        layer.weight.data[:] = layer.weight.data.mean(0)
        layer.bias.data.zero_()
    for model in (rpp, rsteer):
        assert model.constraint() == 0
        still = model(frames.flatten(1, 2))
        change = model(turned_flow(frames).flatten(1, 2)) - turned_flow(still)
        assert change.abs().max() < 1e-9 * still.square().mean().sqrt()


def test_published_sizes():
    """Hidden 92, 5 layers, N = 4: 32 or 16 weights for each point of the kernel and pair of fibres, and biases."""
    model = build_network("rsteer", "published", "C4", n_in=10, size=(64, 64))
    hidden, ends = 3 * 92 * 92 * 32 * 9, 92 * 10 * 16 * 9 + 92 * 16 * 9
    assert sum(p.numel() for p in model.parameters()) == hidden + ends + 4 * 4 * 92 + 2
    assert [len(layer.fibres.basis) for layer in model.layers] == [16, 32, 32, 32, 16]


def test_another_grid_than_the_perceptrons_and_unknown_names_are_refused():
    """One sentence each."""
    with pytest.raises(ValueError, match=r"made for grids of \(12, 12\), got \(8, 8\)"):
        network("mlp")(normal(1, 6, 8, 8, seed=0))
    with pytest.raises(ValueError, match="no network `rstear`; did you mean `rsteer`"):
        build_network("rstear", "tiny", "C4", n_in=2, size=(8, 8))
    with pytest.raises(ValueError, match="no network `lift` for scalings"):
        build_network("lift", "tiny", "scale", n_in=2, size=(8, 8))


# --- scalings ---


def test_one_set_of_weights_acts_at_all_scales():
    """The kernel at scale s is the same combination of Hermite functions of x / s; against a sum written out."""
    scales, x = (1.0, 2.0), torch.arange(5).double() - 2
    basis = scale_basis(scales, 5)
    flat = basis.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)).double(), atol=1e-10, rtol=0)
    gaussian = torch.exp(-((x / 2) ** 2) / 2) / 2
    low = torch.zeros(2, 5, 5).double()  # psi_0 at both scales; that at scale 1 has a kernel of 3 x 3
    low[1] = torch.outer(gaussian, gaussian)
    small = torch.exp(-(torch.arange(-1.0, 2.0).double() ** 2) / 2)
    low[0, 1:4, 1:4] = torch.outer(small, small)
    torch.testing.assert_close((flat @ low.flatten()) @ flat, low.flatten(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [ScaleConv, ResidualScaleConv, RelaxedScaleConv])
def test_scales_do_not_mix_in_a_hidden_layer(kind: type[ScaleConv]):
    """A change of the features at one scale changes the results at that scale only; the last layer reads the first."""
    layer, last = kind(3, 4, (1.0, 2.0), 5), kind(3, 2, (1.0,), 5, before_relu=False)
    x = normal(1, 6, 8, 8, seed=0).float()
    other = x.clone()
    other[:, 3:] += 1
    change = (layer(other) - layer(x)).abs().amax((0, 2, 3))
    assert (change[:4] == 0).all()
    assert (change[4:] > 0).all()
    assert torch.equal(last(other), last(x))


# --- the same numbers by fewer operations ---


def test_winograds_convolution_is_the_convolution():
    """Values and both gradients, against torch's own; grids that are no squares, and of one tile."""
    for height, width in ((8, 12), (4, 4)):
        x, kernel = normal(2, 5, height, width, seed=0).requires_grad_(), normal(7, 5, 3, 3, seed=1).requires_grad_()
        plain, fast = functional.conv2d(x, kernel, padding=1), winograd.convolve(x, kernel, winograd.transform(kernel))
        torch.testing.assert_close(fast, plain, atol=1e-12, rtol=0)
        g = normal(*plain.shape, seed=2)
        for a, b in zip(*(torch.autograd.grad(y, (x, kernel), g) for y in (plain, fast)), strict=True):
            torch.testing.assert_close(b, a, atol=1e-11, rtol=0)


def test_winograds_rounding_in_float32_is_that_of_a_direct_sum():
    """Rms error, relative to the rms result, under twice 1e-6; 576 products are summed."""
    x, kernel = normal(1, 64, 16, 16, seed=0), normal(64, 64, 3, 3, seed=1) / 24
    exact = functional.conv2d(x, kernel, padding=1)
    found = winograd.convolve(x.float(), kernel.float(), winograd.transform(kernel.float()))
    assert (found - exact).square().mean().sqrt() < 2e-6 * exact.square().mean().sqrt()


@pytest.mark.parametrize("fewest", [8, math.inf])
def test_a_training_step_is_that_of_the_published_form(monkeypatch: pytest.MonkeyPatch, fewest: float):
    """Loss and all gradients to 1e-10 in float64: assembled once, in parts, with Winograd's products or without."""
    monkeypatch.setattr(convolution, "FEWEST_CHANNELS", fewest)
    model = network("rsteer").train()
    plain = PlainRSteer(model)  # type: ignore[arg-type]
    frames = Frames(normal(5, 3, 2, 12, 12, seed=2), normal(5, 4, 2, 12, 12, seed=3))
    loss = rollout_loss(model, frames, part=2)
    loss.backward()
    torch.testing.assert_close(loss.detach(), plain_step(plain, *frames), atol=1e-10, rtol=1e-10)
    for layer, twin in zip(model.layers, plain.layers, strict=True):
        scale = twin.weight.grad.abs().max()
        assert (layer.weight.grad.permute(2, 1, 3, 0) - twin.weight.grad).abs().max() < 1e-10 * scale
        torch.testing.assert_close(layer.bias.grad, twin.bias.grad, atol=1e-10, rtol=1e-10)
