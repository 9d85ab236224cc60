"""The script for a machine with a GPU, tried without one, and without the packages that such a machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.__main__ import SHARES
from disa_framework.solvers import Euler

MISSING = "jsonargparse optuna diffusers torch_fidelity sklearn scikit_learn matplotlib PIL pillow scipy pytest"
HIDING = """
import os, sys
from importlib.machinery import PathFinder

missing = set(os.environ["MISSING"].split())

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        return () if (context.name or "").replace("-", "_") in missing else super().find_distributions(context)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


def dry_run(folder: Path, *options: str, missing: str = MISSING) -> tuple[int, dict[str, Any]]:
    """Its exit status, and what each part found."""
    (folder / "sitecustomize.py").write_text(HIDING)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--dry",
        "--output",
        str(folder / "found" / "gpu.json"),
        *options,
    ]
    done = subprocess.run(command, env={**os.environ, "MISSING": missing, "PYTHONPATH": str(folder)})
    return done.returncode, json.loads((folder / "found" / "gpu.json").read_text())["parts"]


def test_a_dry_run_goes_through_without_packages_that_are_not_needed(tmp_path: Path) -> None:
    status, parts = dry_run(tmp_path)
    assert status == 0 and list(parts) == list(SHARES)
    assert not [name for name, found in parts.items() if "cut" in found]
    assert parts["tests"]["skipped without CUDA"] == {"skipped": "pytest is not installed"}
    assert parts["agreement"]["xAR"][repr(Euler())]["float32"] == 0
    for system in ("mar", "flowar", "xar"):
        assert {"as on the CPU", "torch.bfloat16, batch 2, graphs, compiled"} < set(parts[system])
        assert parts[system]["torch.float32, batch 2, graphs"]["constant, s"] > 0


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    status, parts = dry_run(tmp_path, "--parts", "waiting", "environment", missing="transformers")
    assert status == 1 and "transformers" in parts["waiting"]["Harmon, torch.float32"]["error"]
    assert parts["waiting"]["mixture, torch.float32"] == "never" and "versions" in parts["environment"]


def test_a_part_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    status, parts = dry_run(tmp_path, "--parts", "mar", "--minutes", "0.01")
    assert status == 0 and "cut" in parts["mar"]
