"""RSteer in its plain published form (Wang, Walters, Yu, ICML 2022): the kernels are expanded at every call.

Slow and simple: ``mdrelax.packs.smoke`` is compared with it, in the tests for equal numbers and in `bench smoke-speed`
for time and memory. Training steps hold all windows and frames of a batch at once, as the published ones do.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mdrelax.packs.smoke.networks import ConvNetwork
from mdrelax.packs.smoke.steerable import RelaxedSteerableConv

__all__ = ["PlainRSteer", "plain_step"]


class PlainLayer(nn.Module):
    """Kernels between fibres as sum_b basis_b[p, q, x] w[o, b, i, x], by one contraction."""

    basis: Tensor  # (K, d_out, d_in, k k)

    def __init__(self, layer: RelaxedSteerableConv) -> None:
        super().__init__()
        self.register_buffer("basis", layer.fibres.basis.flatten(3).to(layer.weight))
        self.weight = nn.Parameter(layer.weight.detach().permute(2, 1, 3, 0).contiguous())  # (C_out, K, C_in, k k)
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.size = layer.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, dim_in, H, W) to (B, dim_out, H, W)."""
        kernel = torch.einsum("bpqk,obik->opiqk", self.basis, self.weight)
        kernel = kernel.reshape(len(self.bias), x.shape[1], self.size, self.size)
        return functional.conv2d(x, kernel, self.bias, padding=self.size // 2)


class PlainRSteer(nn.Module):
    """The plain form of a network ``rsteer``, with copies of its weights."""

    def __init__(self, network: ConvNetwork) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainLayer(layer) for layer in network.layers)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """The next frame (B, 2, H, W) from frames (B, 2 n_in, H, W)."""
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


def plain_step(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The published loss of a rollout, all windows at once, and its backward pass."""
    seen, loss = inputs.flatten(1, 2), inputs.new_zeros(())
    for target in targets.unbind(1):
        frame = model(seen)
        loss = loss + (frame - target).square().mean()
        seen = torch.cat([seen[:, 2:], frame], dim=1)
    loss.backward()
    return loss.detach()
