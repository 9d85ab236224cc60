"""Processes that load data: what they hand over lies in memory without a name.

PyTorch takes files in /dev/shm for it, which in containers holds 64 MiB; where it is full, the loader waits for ever.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from multiprocessing.reduction import DupFd, ForkingPickler
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SHARED = Path("/dev/shm")  # where Linux keeps semaphores, too
_ROOM = 2**18  # bytes; those of a loader take some pages


def worker_options(num_workers: int) -> dict[str, Any]:
    """Options of a `DataLoader` with so many processes; 0 loads in the main one.

    Raises:
        OSError: there is no room for their semaphores.
    """
    if num_workers and _SHARED.is_dir():
        room = os.statvfs(_SHARED)
        if room.f_bavail * room.f_frsize < _ROOM or not os.access(_SHARED, os.W_OK):
            raise OSError(
                f"{_SHARED} is full or cannot be written to, and processes that load data need a little of it: give "
                "--num_workers 0, or make room (docker run --shm-size)"
            )
    return {"num_workers": num_workers, "worker_init_fn": _begin}


def _begin(worker: int) -> None:
    """Makes a worker hand over all of its tensors in this way, and leave it to the main process what a signal to all of
    them does: one that dies takes that along in the middle of its work."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = lambda *error: None  # of the thread that hands over, when the main process has gone
    if hasattr(os, "memfd_create"):
        ForkingPickler.register(Tensor, _handed)


def _handed(tensor: Tensor) -> tuple[Any, ...]:
    content = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
    try:
        with open(os.memfd_create("batch"), "wb") as memory:
            memory.write(content)
            memory.flush()
            return _taken, (DupFd(memory.fileno()), tensor.dtype, tensor.shape)
    except OSError:  # as under a limit for the size of files: through the pipe
        return _copied, (bytes(content), tensor.dtype, tensor.shape)


def _copied(content: bytes, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


def _taken(memory: Any, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    with open(memory.detach(), "rb+") as file:
        if not shape.numel():
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=dtype).reshape(shape)
