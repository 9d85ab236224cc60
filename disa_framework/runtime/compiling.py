"""Compilation: which parts of a model become one kernel or a few, and whether there is what it takes."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from disa_framework.nn.region import Region


def compile_regions(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles a model's regions, when they are first called. Its parameters keep their names.

    Args:
        model: of any family.
        backend: of `torch.compile`.
    """
    for module in model.modules():
        if isinstance(module, Region):
            module.compile(dynamic=True, backend=backend)


def missing_for_compilation() -> str | None:
    """What this machine lacks, if it lacks anything."""
    if torch.cuda.is_available():
        if not importlib.util.find_spec("triton"):
            return "the package triton is not installed"
        found = any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang")))
        return None if found else "there is no C compiler, which triton needs: install gcc, or name one by CC"
    found = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
    return None if found else "there is no C++ compiler: install g++, or name one by CXX"
