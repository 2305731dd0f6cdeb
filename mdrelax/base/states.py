"""States: the tensors of a network, which another one takes as they are or not at all."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn

__all__ = ["load_exactly"]


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], *, may_lack: Collection[str] | None = ()) -> None:
    """``model.load_state_dict(state)`` for tensors of the model's own names, dtypes and shapes.

    Torch itself would round another dtype without a word, take a vector of one number for a scalar, and let modules
    fill in what is missing. ``may_lack`` names tensors that they may fill in (None: all, as for older checkpoints).

    Raises ``ValueError`` for a missing tensor and one of another dtype or shape, ``RuntimeError`` for unknown tensors.
    """
    for name, own in model.state_dict().items():
        given = state.get(name)
        if given is None and may_lack is not None and name not in may_lack:
            raise ValueError(f"the tensor `{name:.60}` is missing")
        if isinstance(given, Tensor) and (given.dtype, given.shape) != (own.dtype, own.shape):
            found, right = (f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape)}" for each in (given, own))
            raise ValueError(f"its `{name:.60}` is {found:.60}, where the network has {right}")
    model.load_state_dict(state)
