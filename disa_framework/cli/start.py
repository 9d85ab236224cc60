"""Where the programs begin: before anything that they need besides PyTorch is imported."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib import import_module

_EXTRA = "pip install 'disa-framework[all]'"


def _start(name: str) -> None:
    os.environ["MPLBACKEND"] = "agg"  # pictures become files; a notebook's backend may not even be installed
    try:
        module = import_module(f"disa_framework.cli.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("disa_framework"):
            raise
        sys.exit(f"disa-{name}: error: the package {error.name} is missing: {_EXTRA}")
    module.command()


bench, cache, convert, diagnose, download, evaluate, fit, predict, search = (
    partial(_start, name)
    for name in ("bench", "cache", "convert", "diagnose", "download", "evaluate", "fit", "predict", "search")
)
