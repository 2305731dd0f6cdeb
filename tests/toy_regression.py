"""A task of the trainer that takes milliseconds and knows nothing of force fields: fit an equivariant linear map."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

from mdrelax.method.relaxation import relax_constraints
from mdrelax.training.checkpoint import load_checkpoint
from mdrelax.training.settings import OptimisationConfig, RelaxationConfig
from mdrelax.training.trainer import Progress, Trainer

IRREPS = o3.Irreps("3x0e+2x1e")


class Network(nn.Module):
    """Two equivariant linear maps with e3nn's norm activation between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = o3.Linear(IRREPS, IRREPS), o3.Linear(IRREPS, IRREPS)

    def forward(self, x: Tensor) -> Tensor:
        """Features (M, 9) to features."""
        return self.last(torch.cat([torch.tanh(self.first(x)[:, :3]), x[:, 3:]], dim=1))


class Regression:
    """Fit a fixed equivariant map from 40 noisy pairs, in batches of 8; select by what is no loss."""

    train_columns = ("train_mae",)
    validation_columns = ("val_mse", "val_worst")
    selected = "val_worst"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(48, IRREPS.dim, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.y = Network()(self.x).detach() + 0.1 * torch.randn(self.x.shape, generator=generator)
        self.validated: list[nn.Module] = []

    def batches(self, epoch: int, *, start: int) -> Iterator[Tensor]:
        """Positions in an order that follows from the epoch."""
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
        yield from order.split(8)[start:]

    def n_steps(self, epochs: int) -> int:
        """Five batches an epoch."""
        return 5 * epochs

    def loss(self, model: nn.Module, batch: Tensor, *, step: int) -> tuple[Tensor, list[Tensor]]:
        """Mean square, and the mean error beside it: NaN in every third step."""
        difference = model(self.x[batch]) - self.y[batch]
        mae = difference.detach().abs().mean()
        return difference.square().mean(), [mae if step % 3 else torch.full_like(mae, torch.nan)]

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean square and largest error on the last eight pairs."""
        self.validated.append(model)
        with torch.no_grad():
            difference = model(self.x[40:]) - self.y[40:]
        return {"val_mse": difference.square().mean().item(), "val_worst": difference.abs().max().item()}


def network(relaxed: bool = True) -> Network:
    """The network with seeded weights, and free maps of standard deviation 0.1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Network()
    if relaxed:
        relax_constraints(model, initial_std=0.1, generator=torch.Generator().manual_seed(2))
    return model


def trainer(
    folder: Path,
    *,
    model: nn.Module | None = None,
    listener: Any = lambda progress: None,
    relaxed: bool = True,
    relaxation: dict[str, Any] | None = None,
    **training: Any,
) -> Trainer:
    """Seven epochs of ``model``, or of ``network(relaxed)``, with a validation every six steps."""
    keys = {"epochs": 7, "learning_rate": 0.03, "warmup_steps": 0, "validate_every": 6, "ema": 0.5, **training}
    relax = RelaxationConfig(**{"schedule": "triangle" if relaxed else "off", **(relaxation or {})})
    settings = OptimisationConfig(**keys)
    model = network(relaxed) if model is None else model
    return Trainer(model, Regression(), training=settings, relaxation=relax, folder=folder, listener=listener)


class Stop(BaseException):
    """What ends a run in the middle."""


def stop_at(step: int) -> Callable[[Progress], None]:
    """A listener that ends the run after a step."""

    def listen(progress: Progress) -> None:
        if progress.step == step:
            raise Stop

    return listen


def final_state(folder: Path) -> dict[str, Any]:
    """The last checkpoint of a run without its times."""
    state = load_checkpoint(folder / "checkpoints" / "last.pt")
    for times in (state, *state["rows"]):
        for name in ("seconds", "cpu_seconds", "time_s"):
            times.pop(name, None)
    return state


def assert_equal(a: Any, b: Any) -> None:
    """The same nest of tensors and primitives, bit for bit."""
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def assert_resumes(folder: Path, build: Callable[..., Trainer], *, stop: int = 16, last_validation: int = 12) -> None:
    """``build(folder, listener=...)``, stopped between two validations and resumed, ends as the uninterrupted run."""
    build(folder / "whole").run()
    with pytest.raises(Stop):
        build(folder / "parts", listener=stop_at(stop)).run()
    again = build(folder / "parts")
    again.resume()
    assert again.step == last_validation
    again.run()
    assert_equal(final_state(folder / "whole"), final_state(folder / "parts"))
