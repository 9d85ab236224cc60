"""How much memory a run takes; and freed memory that stays, to be taken again without the system's help.

Linux's C library takes every large block from the system and gives it back when it is freed. The system clears the
pages each time: a network that makes and drops large tensors over and over spends a quarter of its time on that.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_CHOSEN_BY_THE_USER = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Asks glibc to keep freed blocks of up to 1 GiB (32 MiB before glibc 2.35), and returns whether it does.

    Nothing is changed where there is no glibc, or where the environment sets its limits or loads another allocator.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _CHOSEN_BY_THE_USER):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    larger = mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)  # all that glibc before 2.35 takes
    return bool(larger and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory(device: torch.device, run: Callable[[], object]) -> int | None:
    """Bytes in use at the height of a run: allocated ones of a GPU, resident ones of a process on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # starts the high-water mark anew, see proc(5)
    except OSError:
        run()
        return None
    run()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
