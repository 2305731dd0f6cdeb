"""References: how a model reaches its layers, by every name and past them.

A relaxed layer takes the place of the layer in the tables of submodules. What a model keeps elsewhere would call the
layer without its free map, so that theta had no effect there; it is refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["names_of_modules", "refuse_hidden_references", "shares_parameters"]

TABLES = vars(nn.Module()).keys()  # torch's own attributes: submodules, parameters, hooks


def names_of_modules(model: nn.Module) -> dict[int, list[str]]:
    """All names of every submodule, by its id."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def refuse_hidden_references(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise ``ValueError`` if the model is wrapped for several devices, or also keeps a layer in a plain attribute."""
    known = {id(layer): name for name, layer in layers.items()}
    for owner, module in model.named_modules():
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            raise ValueError(
                f"The model is wrapped in `{type(module).__name__}`, which would not know the free maps: relax the "
                "network first, then wrap it."
            )
        own = {} if id(module) in known else vars(module)
        for attribute in own.keys() - TABLES:
            kept = [known[id(thing)] for thing in _inside(own[attribute], set()) if id(thing) in known]
            if kept:
                raise ValueError(
                    f"{f'`{owner}`' if owner else 'The model'} also keeps the layer `{kept[0]}` in its plain attribute "
                    f"`{attribute}`, and would call it there without its free map: use the registered submodule (or an "
                    "nn.ModuleList), or leave the layer out of `where`."
                )


def shares_parameters(model: nn.Module, layer: nn.Module) -> bool:
    """Whether a parameter of the layer is that of another module too (tied weights)."""
    own, inside = {id(parameter) for parameter in layer.parameters()}, {id(module) for module in layer.modules()}
    others = (module for module in model.modules() if id(module) not in inside)
    return any(id(parameter) in own for module in others for parameter in module._parameters.values())


def _inside(value: Any, seen: set[int]) -> Iterator[Any]:
    """The modules in a plain attribute: itself, the owner of a bound method, and the content of containers."""
    if id(value) in seen:
        return
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, (dict, list, set, tuple)):
        seen.add(id(value))
        for each in value.values() if isinstance(value, dict) else value:
            yield from _inside(each, seen)
    elif isinstance(getattr(value, "__self__", None), nn.Module):
        yield value.__self__
