"""States: the tensors of a network, which another one takes as they are or not at all."""

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["load_exactly"]


def load_exactly(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """``model.load_state_dict(state)``, for tensors of the model's own dtypes: torch would round others silently.

    Raises ``ValueError`` for another dtype, and ``RuntimeError`` for missing, unknown or misshapen tensors.
    """
    for name, own in model.state_dict().items():
        given = state.get(name)
        if isinstance(given, Tensor) and given.dtype != own.dtype:
            found, right = (str(each.dtype).removeprefix("torch.") for each in (given, own))
            raise ValueError(f"its `{name:.60}` is {found}, where the network has {right}")
    model.load_state_dict(state)
