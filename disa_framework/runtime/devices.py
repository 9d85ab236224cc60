"""Host and device: what is brought there, and when the one waits for the other."""

from __future__ import annotations

import torch
from torch import Tensor


def bring(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for what that is at."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)  # from other memory it would be waited for
    return tensor.to(device)


def wait_for(device: torch.device) -> None:
    """Returns when a device has done all that it was given."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def name_of(device: torch.device) -> str:
    """What kind of device it is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
