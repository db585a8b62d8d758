"""Where tensors live: which device a run uses, how much memory it has, and how data gets there without a wait."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def resolve(name: str) -> torch.device:
    """The device that `name` means.

    Args:
        name: "cpu", "cuda" or "cuda:N".

    Returns:
        The device, with its index where it is a GPU.

    Raises:
        ValueError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; expected cpu, cuda or cuda:N") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"device is {name!r}; expected cpu, cuda or cuda:N")
    lacking = missing()
    if lacking:
        raise ValueError(f"device is {name!r}, but {lacking}; expected cpu")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}; expected cuda:N with N below {torch.cuda.device_count()}")
    return torch.device("cuda", index)


def missing() -> str:
    """The reason why no GPU can be used, in words; "" where one can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no usable GPU or driver"
    return ""


def device_name(device: torch.device) -> str:
    """The name of the device for an error or a report."""
    if device.type == "cpu":
        return "this machine"
    return f"{torch.cuda.get_device_name(device)} ({device})"


def total_memory(device: torch.device) -> int:
    """The bytes of memory that the device has, used or not."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.cuda.get_device_properties(device).total_memory


def upload(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`. On the way to a GPU it passes through pinned memory, so that nobody waits for the copy.

    An expanded tensor is written out first. Pinned memory takes over the strides, and it cannot be filled where a
    stride is 0.
    """
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.contiguous().pin_memory()
    return value.to(device, non_blocking=True)
