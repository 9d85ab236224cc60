"""Host and device: what is brought there, and when the one waits for the other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor


def bring(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for what that is at."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        if torch.cuda.is_current_stream_capturing():  # the graph would read the host's memory when it is long used anew
            raise RuntimeError("a CUDA graph cannot hold what is brought from the host")
        return tensor.pin_memory().to(device, non_blocking=True)  # from other memory it would be waited for
    return tensor.to(device)


@lru_cache(maxsize=4096)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A vector that is brought to a device once, so that no stage has to wait for it."""
    with torch.inference_mode(False):  # whoever asks first may be drawing, and the next one training
        return torch.tensor(values, dtype=dtype, device=device)


def check_processes(devices: object, accelerator: object) -> None:
    """Raises a ValueError if Lightning's trainer is to run more than two processes for each core of a CPU."""
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())
    most = 2 * (os.cpu_count() or 1)
    if on_cpu and str(devices).isdecimal() and int(str(devices)) > most:
        raise ValueError(f"--trainer.devices is at most {most} here, two processes for each core, got {devices}")


def cpu_units() -> Mapping[str, bool]:
    """Which units this CPU has, as far as PyTorch tells, which before 2.9 it does not."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


def wait_for(device: torch.device) -> None:
    """Returns when a device has done all that it was given."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def name_of(device: torch.device) -> str:
    """What kind of device it is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
