"""`disa env`: versions and devices, for a report of a bug."""

from __future__ import annotations

import os
import platform
import re
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

_NAME = "disa-framework"


def env() -> None:
    """Prints what a report of a bug should say."""
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"
    facts = {
        _NAME: _version(_NAME),
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "CPU": f"{_cpu()}, {torch.backends.cpu.get_cpu_capability()}, {threads}",
        "GPU": ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "none",
        "CUDA": torch.version.cuda or "none",
    }
    needed = (requirement for requirement in requires(_NAME) or () if not re.search("extra == .dev", requirement))
    names = dict.fromkeys(re.split(r"[^\w.-]", requirement)[0] for requirement in needed)
    packages = {name: _version(name) for name in names if name != _NAME}
    width = max(map(len, [*facts, *packages]))
    for name, fact in {**facts, **packages}.items():
        print(f"{name:<{width}}  {fact}")
    sys.stdout.flush()


def _cpu() -> str:
    """Its name, where the system tells."""
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
