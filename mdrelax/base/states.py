"""States: the tensors of a network or an optimiser, which another one takes as they are or not at all."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["load_exactly", "refuse_changed"]


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


def refuse_changed(given: Any, taken: Any) -> None:
    """Raise ``ValueError`` if a nest of tensors, numbers and words was not ``taken`` as it was ``given``.

    Optimisers cast their state to the dtype of the parameters without a word, make numbers tensors, and replace some.
    Tensors are compared in dtype and shape. A key that only one of them has is passed over (versions differ).
    """
    if isinstance(given, Tensor) and isinstance(taken, Tensor):
        if (given.dtype, given.shape) != (taken.dtype, taken.shape):
            raise ValueError(f"a tensor of its state is {given.dtype} {tuple(given.shape)!s:.60}")
    elif isinstance(given, Mapping) and isinstance(taken, Mapping):
        for key in given.keys() & taken.keys():
            refuse_changed(given[key], taken[key])
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for one, other in zip(given, taken, strict=False):
            refuse_changed(one, other)
    elif type(given) is not type(taken) or (given != taken and given == given):
        raise ValueError(f"a value of its state is {given!s:.60}, which was taken as {taken!s:.60}")
