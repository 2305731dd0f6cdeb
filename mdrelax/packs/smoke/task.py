"""The smoke task, to predict the next frames of a flow: a ``Task`` of the trainer, its errors, and symmetry errors.

A network predicts one frame from n_in; the prediction is appended to them, and the oldest is dropped. In training that
is done for the split's n_out frames, with the loss

    sum over predicted frames of the mean squared error of the velocity + the network's own constraint

The error is the root mean square over windows, frames, components and pixels (published: RMSE); a test predicts
n_rollout frames. The symmetry error of a network f, under quarter turns g of velocities (grid and components), is

    ||f(g x) - g f(x)|| / ||f(x)||        root mean squares over windows and the three turns
"""

import copy
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mdrelax.base.seeds import generator
from mdrelax.datasets.plume import Indices, PlumeSet, PlumeSplit, read_windows
from mdrelax.method.certificate import EquivarianceError
from mdrelax.packs.smoke.convolution import assembled_once
from mdrelax.training.ranks import ALONE, EVERYTHING, Ranks

__all__ = ["Forecast", "Frames", "RolloutErrors", "commutation_error", "evenly", "predict", "quarter_turned",
           "roll_out", "rollout_errors", "rollout_loss", "symmetry_error"]  # fmt: skip

EVALUATION_BATCH = 16  # windows predicted at once
SMALLEST_SCALE = 1e-12  # a network that predicts no flow has no scale of its own


class Frames(NamedTuple):
    """Windows in the network's precision."""

    inputs: Tensor  # (B, n_in, 2, H, W)
    targets: Tensor  # (B, n_out, 2, H, W)


class RolloutErrors(NamedTuple):
    """Errors of rollouts, in cells per step."""

    rmse: float
    by_step: list[float]  # RMSE of each predicted frame
    size: float  # root mean square of the true velocity: the error of predicting no flow


def roll_out(model: nn.Module, inputs: Tensor, n_frames: int) -> Iterator[Tensor]:
    """The next frames (B, 2, H, W) one after the other, from ``inputs`` (B, n_in, 2, H, W)."""
    seen = inputs.flatten(1, 2)
    for _ in range(n_frames):
        frame = model(seen)
        yield frame
        seen = torch.cat([seen[:, 2:], frame], dim=1)


def quarter_turned(velocity: Tensor, turns: int = 1) -> Tensor:
    """Velocities (..., 2, H, W) turned by ``rot90`` of the last two axes: grid and components.

    Rows count upwards, so this is clockwise: (u, v) becomes (v, -u).
    """
    for _ in range(turns % 4):
        u, v = torch.rot90(velocity, 1, (-2, -1)).unbind(-3)
        velocity = torch.stack([v, -u], dim=-3)
    return velocity


def evenly(rows: Indices, n: int | None) -> Indices:
    """``n`` evenly spaced rows, or all of them."""
    return rows if n is None or n >= len(rows) else rows[np.arange(n) * len(rows) // n]


class Forecast:
    """The training task; see ``mdrelax.training.trainer.Task``.

    Orders follow from (seed, epoch), turns from (seed, step).

    Args:
        plumes: The set.
        split: How many frames are seen and predicted.
        train: Training windows (M, 2); validation: those that choose the network.
        batch_size: Windows in a batch; the last one of an epoch may be smaller, but has at least two.
        rotate: Turn each window of a batch by a random multiple of 90 degrees.
        part: Windows whose loss is made at a time, for networks without batch norm: the same gradient from less memory.
    """

    train_columns: tuple[str, ...] = ("train_mse",)
    validation_columns: tuple[str, ...] = ("val_rmse",)
    selected = "val_rmse"

    def __init__(
        self, plumes: PlumeSet, split: PlumeSplit, *, train: Indices, validation: Indices, batch_size: int,
        seed: int = 0, rotate: bool = False, part: int = 4, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.plumes, self.split, self.train, self.validation = plumes, split, train, validation
        self.batch_size, self.seed, self.rotate, self.part, self.dtype = batch_size, seed, rotate, part, dtype
        self.n_batches = math.ceil(len(train) / batch_size) - (len(train) % batch_size == 1 and len(train) > 1)
        if not len(train) or not len(validation):
            raise ValueError("The split leaves no window to train on, or none to validate with.")

    def n_steps(self, epochs: int) -> int:
        """The number of batches in so many epochs."""
        return epochs * self.n_batches

    def batches(self, epoch: int, *, start: int) -> Iterable[Frames]:
        """The batches of an epoch from number ``start`` on."""
        order = torch.randperm(len(self.train), generator=generator(self.seed, "order", epoch)).numpy()
        for k in range(start, self.n_batches):
            rows = self.train[order[k * self.batch_size : (k + 1) * self.batch_size]]
            yield self.frames(rows)

    def frames(self, rows: Indices) -> Frames:
        """Windows as they are trained on."""
        inputs, targets = read_windows(self.plumes, rows, self.split.n_in, self.split.n_out)
        return Frames(inputs.to(self.dtype), targets.to(self.dtype))

    def sizes(self, batch: Frames) -> list[int]:
        """All windows cost the same."""
        return [1] * len(batch.inputs)

    def loss(
        self, model: nn.Module, batch: Frames, *, step: int, part: slice = EVERYTHING
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss of a batch and the mean squared error of its frames, or a part's shares; batch norms see the part.

        Gradients of windows end at the kernels until the loss is used.
        """
        whole = self._turned(batch, step) if self.rotate else batch
        own = self._on_device(model, Frames(*(windows[part] for windows in whole)))
        share = len(own.inputs) / len(batch.inputs)
        loss = rollout_loss(model, own, part=self.part, share=share)
        return loss + share * model.constraint(), [loss.detach() / own.targets.shape[1]]  # type: ignore[operator]

    def validate(self, model: nn.Module, *, ranks: Ranks = ALONE) -> dict[str, float]:
        """The RMSE of a network in evaluation mode on the validation windows, of which each rank has a part."""
        found = rollout_errors(
            model, self.plumes, self.split, self.validation, self.split.n_out, dtype=self.dtype, ranks=ranks
        )
        return {"val_rmse": found.rmse}

    def _turned(self, batch: Frames, step: int) -> Frames:
        turns = torch.randint(4, (len(batch.inputs),), generator=generator(self.seed, "rotations", step)).tolist()
        pairs = [[quarter_turned(x, k) for x, k in zip(part, turns, strict=True)] for part in batch]
        return Frames(*(torch.stack(part) for part in pairs))

    def _on_device(self, model: nn.Module, batch: Frames) -> Frames:
        device = next(model.parameters()).device
        return Frames(*(part.to(device) for part in batch))


def rollout_loss(model: nn.Module, batch: Frames, *, part: int, share: float = 1.0) -> Tensor:
    """The sum over predicted frames of the mean squared error, times ``share``; its graph begins at the kernels.

    ``part`` windows are computed at a time, unless the network has batch norms; kernels are assembled once for all.
    """
    n, n_frames = batch.targets.shape[:2]
    size = n if _has_norms(model) else part
    with assembled_once() as kernels:
        total = batch.inputs.new_zeros(())
        for inputs, targets in zip(batch.inputs.split(size), batch.targets.split(size), strict=True):
            pairs = zip(roll_out(model, inputs, n_frames), targets.unbind(1), strict=True)
            loss = torch.stack([(frame - target).square().mean() for frame, target in pairs]).sum()
            loss = loss * (share * len(inputs) / n)
            if loss.requires_grad:
                loss.backward()
            total = total + loss.detach()
        return kernels.loss(total)


def _has_norms(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@torch.no_grad()
def rollout_errors(
    model: nn.Module, plumes: PlumeSet, split: PlumeSplit, rows: Indices, n_frames: int,
    *, dtype: torch.dtype = torch.float32, ranks: Ranks = ALONE,
) -> RolloutErrors:  # fmt: skip
    """Errors of rollouts of so many frames on windows; not finite for a rollout that explodes.

    Of several ranks each evaluates its part of the windows.
    """
    own = rows[ranks.part([1] * len(rows))]
    squares, device = torch.zeros(n_frames, dtype=torch.float64), next(model.parameters()).device
    size = torch.zeros((), dtype=torch.float64)
    with assembled_once():
        for k in range(0, len(own), EVALUATION_BATCH):
            inputs, targets = read_windows(plumes, own[k : k + EVALUATION_BATCH], split.n_in, n_frames)
            truth = targets.to(device, dtype)
            for step, frame in enumerate(roll_out(model, inputs.to(device, dtype), n_frames)):
                squares[step] += (frame - truth[:, step]).double().square().mean((1, 2, 3)).sum().cpu()
            size += truth.double().square().mean((1, 2, 3, 4)).sum().cpu()
    squares, size = ranks.sum(squares) / len(rows), ranks.sum(size) / len(rows)
    return RolloutErrors(squares.mean().sqrt().item(), squares.sqrt().tolist(), size.sqrt().item())


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, n_frames: int, *, bounded: bool = True) -> Tensor:
    """The next frames (B, n_frames, 2, H, W) from ``inputs`` (B, n_in, 2, H, W), in the network's precision.

    Raises ``ValueError`` if ``bounded`` and a frame is not finite: the rollout is unstable.
    """
    frames, like = [], next(model.parameters())
    with assembled_once():
        for step, frame in enumerate(roll_out(model, inputs.to(like), n_frames)):
            if bounded and not torch.isfinite(frame).all():
                raise ValueError(
                    f"The rollout is unstable: frame {step + 1} of {n_frames} is not finite; predict fewer frames, or "
                    "train the network on longer rollouts."
                )
            frames.append(frame)
    return torch.stack(frames, dim=1)


@torch.no_grad()
def _commutators(model: nn.Module, inputs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """f(g x) - g f(x) for the three turns g (3, B, 2, H, W), and f(x)."""
    twin, x = copy.deepcopy(model).to(dtype).eval(), inputs.to(next(model.parameters()).device, dtype)

    def predicted(frames: Tensor) -> Tensor:
        return torch.cat([twin(part.flatten(1, 2)) for part in frames.split(EVALUATION_BATCH)])

    still = predicted(x)
    changes = [predicted(quarter_turned(x, k)) - quarter_turned(still, k) for k in (1, 2, 3)]
    return torch.stack(changes), still


def commutation_error(model: nn.Module, inputs: Tensor, *, dtype: torch.dtype = torch.float64) -> EquivarianceError:
    """The largest change of a pixel under quarter turns of inputs (B, n_in, 2, H, W), relative to the rms velocity.

    The model itself is not touched. Reflections, translations and permutations do not apply.
    """
    changes, still = _commutators(model, inputs, dtype)
    worst = changes.abs().max() / still.square().mean().sqrt().clamp(min=SMALLEST_SCALE)
    return EquivarianceError(torch.nan_to_num(worst, nan=torch.inf).item(), 0.0, 0.0, 0.0)


def symmetry_error(model: nn.Module, inputs: Tensor) -> float:
    """The root-mean-square symmetry error of one predicted frame on inputs (B, n_in, 2, H, W), see the module."""
    changes, still = _commutators(model, inputs, torch.float64)
    return (changes.square().mean() / still.square().mean().clamp(min=SMALLEST_SCALE**2)).sqrt().item()
