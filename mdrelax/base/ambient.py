"""Ambient state of torch that a caller may have switched on, and that must decide no number of ours.

Under ``torch.inference_mode`` autograd records nothing, so that forces would be zero; under ``torch.autocast`` matrix
products round to half precision; torch's default dtype decides which random numbers initial weights are, and its
default device (``torch.set_default_device``) where tensors are made that are copied from numpy's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["default_float32", "is_disturbed", "out_of_inference_mode", "undisturbed"]

P = ParamSpec("P")
T = TypeVar("T")


def is_disturbed(device: torch.device) -> bool:
    """Whether inference mode or autocast on this kind of device is switched on, or the default device is another."""
    return torch.is_inference_mode_enabled() or torch.is_autocast_enabled(device.type) or _elsewhere()


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Switch inference mode and autocast off, make the CPU the default device.

    Tensors that were made in inference mode have to be cloned inside.
    """
    cpu = torch.device("cpu") if _elsewhere() else nullcontext()
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), cpu:
        yield


def _elsewhere() -> bool:
    """By making a tensor: ``torch.get_default_device`` takes four times as long, and this is asked in every MD step."""
    return not torch.empty(0).is_cpu


@contextmanager
def default_float32() -> Iterator[None]:
    """Set torch's default dtype to float32, and back."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def out_of_inference_mode(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that makes parameters: those made in inference mode could never be differentiated.

    They are made on the CPU, whatever the default device.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.device("cpu") if _elsewhere() else nullcontext():
            return function(*args, **kwargs)

    return wrapper
