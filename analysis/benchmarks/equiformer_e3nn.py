"""Equiformer in the ordinary e3nn way: the same network on flat irreps vectors with o3.Linear and o3.TensorProduct.

It is the reference of the parity tests, and represents the published code in the speed benchmark, which is written in
this way and not available as a package. Every part is built from its fast counterpart and takes its weights one to one;
the numbers agree to rounding. It shares the fast network's differences from the published one (see its module).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.analysis.benchmarks.segnn_e3nn import gate
from mdrelax.base import o3
from mdrelax.forces.potential import Potential
from mdrelax.potentials.edge_convolution import EdgeBasis, EdgeConvolution
from mdrelax.potentials.equiformer import Equiformer
from mdrelax.potentials.equiformer_layers import Attention, Block, FeedForward, smooth_leaky_relu
from mdrelax.potentials.radial import RadialNetworks, polynomial_envelope
from mdrelax.potentials.steerable import SCALAR_EPS, SILU_SCALE, JointLayerNorm, LayerNorm, Linear
from mdrelax.structures.graph import Edges

__all__ = ["E3nnEquiformer"]

Maps = dict[o3.Irrep, Tensor]  # a matrix (C_in, C_out) for each irrep


class E3nnEquiformer(Potential):
    """The plain form of a fast network: same arguments and results of ``forward``, same weights, dtype and cut-off.

    e3nn keeps Clebsch-Gordan coefficients in torch's default dtype: make it float64 if more than seven digits matter.
    """

    def __init__(self, fast: Equiformer) -> None:
        super().__init__()
        self.cutoff, self.irreps, self.average_neighbors = fast.cutoff, fast.irreps, fast.average_neighbors
        self.irreps_edge = fast.basis.irreps_edge
        self.radial_basis = fast.radial_basis
        self.embedding = nn.Parameter(fast.embedding.detach().clone())
        self.degree_product = depthwise(fast.degree_basis, weighted=True)
        self.degree_radial = radial_network(fast.degree_radial, 0, fast.degree_basis, self.degree_product)
        self.degree_mix = mixing(fast.degree, self.degree_product, fast.degree.irreps_out)
        self.places, self.reached = ([ir for _, ir in irreps] for irreps in (fast.irreps, fast.degree.irreps_out))
        self.blocks = nn.ModuleList(
            E3nnBlock(cast(Block, block), fast.radial, number) for number, block in enumerate(fast.blocks)
        )
        self.norm = norm_of(fast.norm)
        self.hidden, self.energy = linear(fast.hidden), linear(fast.energy)
        self.to(fast.embedding.dtype)

    def forward(self, species: Tensor, edges: Edges) -> Tensor:
        """Energies (N,) of the atoms; see ``Potential``."""
        (source, target), edge_vectors = edges.index, edges.vectors
        lengths = edge_vectors.norm(dim=1)
        harmonics = o3.spherical_harmonics(self.irreps_edge, edge_vectors, True, "component")
        basis = self.radial_basis(lengths)
        envelope = polynomial_envelope(lengths / self.cutoff).unsqueeze(1)
        x = self._embed(species, target, harmonics, basis, envelope)
        for block in self.blocks:
            x = block(x, source, target, harmonics, basis, envelope)
        return self.energy(SILU_SCALE * functional.silu(self.hidden(self.norm(x)))).flatten()

    def _embed(self, species: Tensor, target: Tensor, harmonics: Tensor, basis: Tensor, envelope: Tensor) -> Tensor:
        ones = basis.new_ones(len(target), self.embedding.shape[1])
        product = self.degree_mix(self.degree_product(ones, harmonics, self.degree_radial(basis)))
        product = product * envelope / math.sqrt(self.average_neighbors)
        summed = _sum(product, target, len(species))
        x = summed.new_zeros(len(species), self.irreps.dim)
        for ir, where in zip(self.reached, self.degree_mix.irreps_out.slices(), strict=True):
            x[:, self.irreps.slices()[self.places.index(ir)]] = summed[:, where]
        x[:, : self.embedding.shape[1]] += self.embedding[species]
        return x


class E3nnBlock(nn.Module):
    """Attention and feed-forward network on flat vectors, each with a pre-norm and a residual connection."""

    def __init__(self, fast: Block, radial: RadialNetworks, number: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = norm_of(fast.norm_1), norm_of(fast.norm_2)
        self.attention = E3nnAttention(fast.attention, radial, number)
        self.feed_forward = E3nnFeedForward(fast.feed_forward)
        self.shortcut = None if fast.shortcut is None else linear(fast.shortcut)

    def forward(
        self, x: Tensor, source: Tensor, target: Tensor, harmonics: Tensor, basis: Tensor, envelope: Tensor
    ) -> Tensor:
        """Map node features of one block to those of the next."""
        x = x + self.attention(self.norm_1(x), source, target, harmonics, basis, envelope)
        return (x if self.shortcut is None else self.shortcut(x)) + self.feed_forward(self.norm_2(x))


class E3nnAttention(nn.Module):
    """Graph attention on flat vectors, with its own radial network."""

    def __init__(self, fast: Attention, radial: RadialNetworks, number: int) -> None:
        super().__init__()
        self.irreps, self.n_heads = fast.out.irreps_out, fast.n_heads
        self.source, self.target, self.out = linear(fast.source), linear(fast.target), linear(fast.out)
        self.product = depthwise(fast.message.basis, weighted=True)
        self.radial = radial_network(radial, number, fast.message.basis, self.product)
        self.gate = None if fast.gate is None else gate(fast.gate.irreps)
        n = fast.n_logit_scalars
        self.for_logits = mixing(fast.message, self.product, o3.Irreps([(n, "0e")]), slice(n))
        values = self.irreps if self.gate is None else self.gate.irreps_in.simplify()
        self.for_values = mixing(fast.message, self.product, values, slice(n, None))
        self.logit = nn.Parameter(fast.logit.detach().clone())
        if fast.value is not None:
            self.value_product = depthwise(fast.value.basis, weighted=False)
            self.value_mix = mixing(fast.value, self.value_product, self.irreps)

    def forward(
        self, x: Tensor, source: Tensor, target: Tensor, harmonics: Tensor, basis: Tensor, envelope: Tensor
    ) -> Tensor:
        """Node features to an update of the same irreps."""
        message = self.source(x)[source] + self.target(x)[target]
        product = self.product(message, harmonics, self.radial(basis))
        weights = self._softmax(self.for_logits(product), target, envelope, len(x))
        value = self.for_values(product)
        if self.gate is not None:
            value = self.value_mix(self.value_product(self.gate(value), harmonics))
        summed = _sum(self._heads(value) * weights.unsqueeze(2), target, len(x))
        return self.out(self._join(summed))

    def _softmax(self, scalars: Tensor, target: Tensor, envelope: Tensor, n_atoms: int) -> Tensor:
        """Weights (E, H) with the envelope and the null neighbour of logit 0."""
        activated = smooth_leaky_relu(scalars.view(-1, *self.logit.shape))
        logits = (activated * self.logit).sum(2)
        index = target.unsqueeze(1).expand_as(logits)
        largest = logits.new_zeros(n_atoms, self.n_heads).scatter_reduce(0, index, logits.detach(), "amax")
        raised = envelope * torch.exp(logits - largest[target])
        return raised / (torch.exp(-largest) + _sum(raised, target, n_atoms))[target]

    def _heads(self, x: Tensor) -> Tensor:
        """Flat vectors (E, dim) to heads (E, H, dim / H): the channels of each irrep are split over the heads."""
        return torch.cat([x[:, where].reshape(len(x), self.n_heads, -1) for where in self.irreps.slices()], dim=2)

    def _join(self, x: Tensor) -> Tensor:
        """Heads (N, H, dim / H) back to flat vectors (N, dim)."""
        sizes = [mul * ir.dim // self.n_heads for mul, ir in self.irreps]
        return torch.cat([part.flatten(1) for part in x.split(sizes, dim=2)], dim=1)


class E3nnFeedForward(nn.Module):
    """Linear - gate - linear on flat vectors."""

    def __init__(self, fast: FeedForward) -> None:
        super().__init__()
        self.gate = gate(fast.gate.irreps)
        self.up, self.down = linear(fast.up, self.gate.irreps_in.simplify()), linear(fast.down)

    def forward(self, x: Tensor) -> Tensor:
        """Flat features to flat features."""
        return self.down(self.gate(self.up(x)))


def norm_of(fast: LayerNorm) -> nn.Module:
    """The plain form of a layer norm."""
    return E3nnJointLayerNorm(fast) if isinstance(fast, JointLayerNorm) else E3nnSeparableLayerNorm(fast)


class E3nnJointLayerNorm(nn.Module):
    """Equivariant layer norm on flat vectors: scalars centred, all irreps divided by one number."""

    def __init__(self, fast: JointLayerNorm) -> None:
        super().__init__()
        self.irreps, self.eps, self.n_measured = fast.irreps, fast.eps, fast.n_measured
        self.weight = nn.Parameter(torch.cat(list(fast.weights)).detach().clone())  # one per channel of every irrep
        self.bias = nn.Parameter(fast.bias.detach().clone())
        self.square = o3.Norm(fast.irreps, squared=True)
        self.scale = o3.ElementwiseTensorProduct(fast.irreps, f"{fast.irreps.num_irreps}x0e")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised features of the same irreps."""
        n = len(self.bias)
        x = torch.cat([x[:, :n] - x[:, :n].mean(1, keepdim=True), x[:, n:]], dim=1)
        squares = self.square(x).split([mul for mul, _ in self.irreps], dim=1)
        means = [square.mean(1) / ir.dim for square, (_, ir) in zip(squares, self.irreps, strict=True)]
        size = (torch.stack(means[: self.n_measured]).mean(0) + self.eps).sqrt()
        y = self.scale(x, self.weight / size.unsqueeze(1))
        return torch.cat([y[:, :n] + self.bias, y[:, n:]], dim=1)


class E3nnSeparableLayerNorm(nn.Module):
    """The published equivariant layer norm on flat vectors."""

    def __init__(self, fast: LayerNorm) -> None:
        super().__init__()
        self.irreps, self.eps = fast.irreps, fast.eps
        self.weights = nn.ParameterList(weight.detach().clone() for weight in fast.weights)
        self.bias = nn.Parameter(fast.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalised features of the same irreps."""
        parts = []
        for (mul, ir), where, weight in zip(self.irreps, self.irreps.slices(), self.weights, strict=True):
            part = x[:, where].reshape(-1, mul, ir.dim)
            if ir.is_scalar():
                part = functional.layer_norm(part.squeeze(2), (mul,), weight, self.bias, SCALAR_EPS)
            else:
                part = part * (part.square().mean((1, 2), keepdim=True) + self.eps).rsqrt() * weight.unsqueeze(1)
            parts.append(part.flatten(1))
        return torch.cat(parts, dim=1)


def _sum(x: Tensor, target: Tensor, n_atoms: int) -> Tensor:
    """Edge values (E, ...) summed at their targets: (N, ...)."""
    return x.new_zeros(n_atoms, *x.shape[1:]).index_add(0, target, x)


def linear(fast: Linear, irreps_out: o3.Irreps | None = None) -> o3.Linear:
    """e3nn's linear map with the weights of ours; ``irreps_out`` may put the output in another order."""
    plain = o3.Linear(fast.irreps_in, irreps_out or fast.irreps_out, biases=fast.bias is not None)
    irreps = [ir for _, ir in fast.irreps_out]
    return _fill(plain, dict(zip(irreps, fast.weights, strict=True)), fast.bias)


def depthwise(basis: EdgeBasis, *, weighted: bool) -> o3.TensorProduct:
    """The depthwise tensor product: an output for each path, sorted by irrep; external weights, one per channel."""
    paths = [
        (i, j, ir)
        for i, (_, ir_in) in enumerate(basis.irreps_in)
        for j, (_, ir_edge) in enumerate(basis.irreps_edge)
        for ir in ir_in * ir_edge
        if ir in basis.irreps_out
    ]
    products = o3.Irreps([(basis.irreps_in[i].mul, ir) for i, _, ir in paths]).sort()
    instructions = [(i, j, products.p[k], "uvu", weighted) for k, (i, j, _) in enumerate(paths)]
    return o3.TensorProduct(
        basis.irreps_in, basis.irreps_edge, products.irreps, instructions, shared_weights=False, internal_weights=False
    )


def _fast_paths(basis: EdgeBasis, product: o3.TensorProduct) -> list[tuple[int, int]]:
    """For each instruction of the plain product: its coupling in the fast one, and the index of its path there."""
    place = {(c.source, basis.irreps_out[c.output].ir): k for k, c in enumerate(basis.couplings)}
    seen = [0] * len(basis.couplings)
    paths = []
    for instruction in product.instructions:  # in ascending degree of the harmonics, as in a coupling
        coupling = place[instruction.i_in1, product.irreps_out[instruction.i_out].ir]
        paths.append((coupling, seen[coupling]))
        seen[coupling] += 1
    return paths


def mixing(
    fast: EdgeConvolution, product: o3.TensorProduct, irreps_out: o3.Irreps, scalars: slice = slice(None)
) -> o3.Linear:
    """e3nn's linear map after the plain product, with the fast layer's weights; ``scalars`` of them are used."""
    plain = o3.Linear(product.irreps_out.simplify(), irreps_out, biases=True)
    rows: dict[o3.Irrep, list[Tensor]] = {}
    paths = _fast_paths(fast.basis, product)
    for number in sorted(range(len(paths)), key=lambda k: product.instructions[k].i_out):
        ir, (coupling, path) = product.irreps_out[product.instructions[number].i_out].ir, paths[number]
        weight = fast.weights[coupling][path]
        rows.setdefault(ir, []).append(weight[:, scalars] if ir.is_scalar() else weight)
    return _fill(plain, {ir: torch.cat(parts) for ir, parts in rows.items()}, fast.bias[scalars])


@torch.no_grad()
def _fill(plain: o3.Linear, maps: Maps, bias: Tensor | None) -> o3.Linear:
    """Weights into e3nn's linear map, which multiplies them by its path weight."""
    for number, instruction in enumerate(plain.instructions):
        if instruction.i_in >= 0:
            ir = plain.irreps_out[instruction.i_out].ir
            plain.weight_view_for_instruction(number).copy_(maps[ir] / instruction.path_weight)
    if bias is not None:
        plain.bias.copy_(bias)
    return plain


@torch.no_grad()
def radial_network(fast: RadialNetworks, number: int, basis: EdgeBasis, product: o3.TensorProduct) -> nn.Sequential:
    """One of the fast radial networks as a stack of layers, its outputs in the order of the plain product."""
    layers: list[nn.Module] = []
    for k, weights in enumerate(fast.weights):
        norm = nn.LayerNorm(fast.hidden)
        norm.weight.copy_(fast.norm_weights[k][number, 0])
        norm.bias.copy_(fast.norm_biases[k][number, 0])
        layers += [_dense(weights[number], fast.biases[k][number, 0]), norm, nn.SiLU()]
    columns = []  # (coupling, its columns of one path)
    for coupling, path in _fast_paths(basis, product):
        channels = basis.couplings[coupling].channels
        columns.append((coupling, slice(path * channels, (path + 1) * channels)))
    weight = torch.cat([fast.outputs[coupling][number][:, where] for coupling, where in columns], dim=1)
    offset = torch.cat([fast.offsets[coupling][number][0, where] for coupling, where in columns])
    return nn.Sequential(*layers, _dense(weight, offset))


def _dense(weight: Tensor, bias: Tensor) -> nn.Linear:
    """torch's linear layer with a weight (n_in, n_out) and a bias (n_out,)."""
    layer = nn.Linear(*weight.shape)
    layer.weight.copy_(weight.T)
    layer.bias.copy_(bias)
    return layer
